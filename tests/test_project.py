"""The repository keeps its promises: chapters, profiles, environment, stored results."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from papermill.translators import PythonTranslator

import nlmeflow as nf

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = sorted((ROOT / "book").glob("*.ipynb"))
QUICK = ROOT / "book" / "parameters" / "quick"
by_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)


def sources(path, kind):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def test_the_environment_file_installs_what_the_book_is_made_with():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert {"python=3.11", "make", "pip"} <= {d for d in environment["dependencies"] if isinstance(d, str)}
    (pip,) = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    assert pip == ["--constraint constraints.txt", "--editable .[book,test]"]


def test_the_package_accepts_ranges_and_the_book_is_made_with_exact_versions():
    about = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert about["requires-python"] == ">=3.11,<3.14"
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[0-9][^,*+\s]*", pin) for pin in pins), "pins are exact"
    exact = {canonicalize_name(name): version for name, version in (pin.split("==") for pin in pins)}
    assert len(exact) == len(pins)
    extras = about["optional-dependencies"]
    needed = [Requirement(line) for lines in (about["dependencies"], *extras.values()) for line in lines]
    direct = {canonicalize_name(n.name): n.specifier for n in needed if n.name != "nlmeflow"}
    for name, accepted in direct.items():
        assert {part.operator for part in accepted} == {">=", "<"}, f"{name} has a range"
        assert accepted.contains(exact[name]), f"{name}=={exact[name]} is outside {accepted}"
    asked_for = {"jupyter-book", "jupyter", "torch", "numpy", "pandas", "matplotlib", "nbval", "papermill"}
    assert asked_for <= set(direct)
    assert not {"matplotlib", "pooch", "pyreadr", "statsmodels"} & {
        Requirement(line).name for line in about["dependencies"]
    }


def test_every_installed_version_that_the_book_depends_on_is_pinned():
    """The closure of nlmeflow[book,test] in this environment is what constraints.txt says."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    exact = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines if "==" in line}
    waiting, seen = [("nlmeflow", "book"), ("nlmeflow", "test")], set()
    while waiting:
        name, extra = pair = waiting.pop()
        if pair in seen:
            continue
        seen.add(pair)
        for needed in map(Requirement, distribution(name).requires or []):
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                waiting += [(canonicalize_name(needed.name), e) for e in ("", *needed.extras)]
    names = {name for name, _ in seen} - {"nlmeflow"}
    for name in names & set(exact):
        assert distribution(name).version.split("+")[0] == exact[name], name
    if distribution("torch").version.endswith("+cpu"):  # other builds of torch need more
        assert not names - set(exact)


def test_every_chapter_is_in_the_table_of_contents_and_has_a_quick_profile():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    listed = {Path(chapter["file"]).name for chapter in toc["chapters"]}
    assert {path.stem for path in CHAPTERS} <= listed
    assert {path.stem for path in CHAPTERS} == {path.stem for path in QUICK.glob("*.yml")}


@by_chapter
def test_quick_parameters_exist_and_differ_from_the_published_ones(path):
    declared = papermill.inspect_notebook(str(path))
    quick = yaml.safe_load((QUICK / f"{path.stem}.yml").read_text())
    assert set(quick) <= set(declared)
    assert all(str(quick[name]) != declared[name]["default"] for name in quick)


@by_chapter
def test_every_parameter_says_its_meaning(path):
    (cell,) = [c for c in sources(path, "code") if "parameters" in c.metadata.get("tags", [])]
    for line in cell.source.strip().splitlines():
        assert re.fullmatch(r"\w+ = [^#]+  # .{8,}", line), line


@by_chapter
def test_figures_have_captions_and_alternative_text(path):
    for cell in sources(path, "code"):
        if "plt.show()" in cell.source or "results.figure(" in cell.source:
            about = cell.metadata["mystnb"]
            assert len(about["image"]["alt"]) > 60
            assert len(about["figure"]["caption"]) > 60
            assert about["figure"]["name"].startswith("fig-")


@by_chapter
def test_a_chapter_has_the_parts_that_its_reader_expects(path):
    text = "\n".join(cell.source for cell in sources(path, "markdown"))
    for part in (
        "**Question.**",
        "**Answer.**",
        "After this chapter you can",
        "{admonition} In short",
        "What to know before",
        "What would falsify this",
        "{solution-start}",
        "Run it again",
        f"papermill book/{path.name} out.ipynb -p",
    ):
        assert part in text, part
    assert re.search(r"Reading time:(\*\*)? (about )?\d+ minutes", text)
    exercises = re.findall(r"```\{exercise\}\n:label: (ex-[\w-]+)\n\*([^*]+)\.\*", text)
    assert len(exercises) == text.count("{exercise}")
    levels = {words.removeprefix("A question ").lower() for _, words in exercises}
    assert levels == {"to think about", "a computation", "a small project"}
    parameters = papermill.inspect_notebook(str(path))
    shown = re.findall(r" -p (\w+) ", text)
    assert set(shown) <= set(parameters)


@by_chapter
def test_every_solution_runs_code(path):
    cells = nbformat.read(path, as_version=4).cells
    asked = [label for cell in cells for label in re.findall(r":label: (ex-[\w-]+)", cell.source)]
    for label in asked:
        (begin,) = [k for k, cell in enumerate(cells) if f"{{solution-start}} {label}\n" in cell.source]
        end = next(k for k, cell in enumerate(cells) if k > begin and "{solution-end}" in cell.source)
        code = "\n".join(cell.source for cell in cells[begin:end] if cell.cell_type == "code")
        assert re.search(r"^\s*assert ", code, re.M), label


@by_chapter
def test_notebooks_are_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.language == "python"
    assert notebook.metadata.language_info.name == "python"
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert "papermill" not in cell.metadata


def test_a_misspelt_parameter_fails(tmp_path):
    """Papermill itself only warns; the chapter refuses."""
    chapter = str(CHAPTERS[-1])
    command = [sys.executable, "-m", "papermill", chapter, str(tmp_path / "out.ipynb"), "-p", "sede", "3"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode != 0
    assert "no parameter sede" in run.stderr
    command = [sys.executable, "tools/execute.py", chapter, str(tmp_path / "x.ipynb"), "--parameters"]
    (tmp_path / "wrong.yml").write_text("sede: 3\n")
    run = subprocess.run([*command, str(tmp_path / "wrong.yml")], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode != 0
    assert "has no parameter sede" in run.stderr
    assert not (tmp_path / "x.ipynb").exists()


def test_check_parameters_reads_the_two_cells_before_it():
    declared, injected = "n = 3  # plants\nseed = 1  # of draws", "# Parameters\nn = 5\n"
    nf.notebook.check_parameters([declared, injected, "check"])
    nf.notebook.check_parameters(["import x", declared, "check"])
    nf.notebook.check_parameters([""])  # a runner without history
    with pytest.raises(NameError, match="no parameter m; its parameters are n, seed"):
        nf.notebook.check_parameters([declared, "# Parameters\nm = 5\n", "check"])
    with pytest.raises(
        nf.ModelError, match="n is an integer from 1 to 2,000; got 0"
    ):  # edited in the notebook
        nf.notebook.check_parameters(["import x", declared.replace("3", "0"), "check"], n=(1, 2000))


def test_tables_of_a_page_have_the_digits_of_their_columns():
    frame = pd.DataFrame({("gain", "S"): [1.0, -0.0001], ("gain", "R"): [None, 0.123456], "n": [1, 2]})
    shown = nf.notebook.table(frame, {"gain, R": 4})
    assert shown.to_numpy().tolist() == [["1.00", "–", 1], ["0.00", "0.1235", 2]]
    assert nf.notebook.table(frame, 1).iloc[1].tolist() == ["0.0", "0.1", 2]
    with pytest.raises(nf.ModelError, match="digits names 'gain', which is no column of the table"):
        nf.notebook.table(frame, {"gain": 3})


def checking(path):
    """Return a chapter's cell of parameters, the call that checks them, and what it accepts by name."""
    cells = sources(path, "code")
    (place,) = [k for k, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", [])]
    call = ast.parse(cells[place + 1].source).body[0]
    accepted = {word.arg: eval(ast.unparse(word.value)) for word in call.value.keywords}
    return cells[place].source, ast.unparse(call), accepted


def checked(path, **values):
    """Run the check of a chapter alone, on values that papermill injects."""
    declared, call, _ = checking(path)
    injected = PythonTranslator.codify(values, "Parameters")
    exec(call, {"nf": nf, "In": ["", declared, injected, call]})


@by_chapter
def test_each_parameter_has_a_type_and_a_range_in_which_its_values_lie(path):
    declared, call, accepted = checking(path)
    names = list(papermill.inspect_notebook(str(path)))
    assert list(accepted) == names
    exec(call, {"nf": nf, "In": ["", declared, call]})
    checked(path, **yaml.safe_load((QUICK / f"{path.stem}.yml").read_text()))
    text = "\n".join(cell.source for cell in sources(path, "markdown"))
    for name, value in re.findall(r" -p (\w+) (\S+)", text):
        checked(path, **{name: yaml.safe_load(value)})
    for name, about in accepted.items():
        good = {bool: (True, False), str: ("some words", "")}[about] if about in (bool, str) else about
        for value in good:
            checked(path, **{name: value})


@by_chapter
def test_a_value_of_another_type_or_out_of_range_is_answered_with_what_is_accepted(path):
    for name, about in checking(path)[2].items():
        wrong = ["abc", None, [1], float("nan"), float("inf")]
        if about is bool:
            wrong, words = [*wrong, 1, 0.5], "True or False"
        elif about is str:
            wrong, words = [None, [1], 1, True], "text"
        elif isinstance(about, list):
            words = f"one of {', '.join(about)}"
        else:
            low, high, *nothing = about
            wrong = [value for value in wrong if not (nothing and value is None)]
            whole = isinstance(low, int)
            wrong += [True, low - 1, high + 1, *([low + 1.0, low + 0.5] if whole else [])]
            words = f"{'an integer' if whole else 'a number'} from {low:,} to {high:,}"
            words += ", or None" if nothing else ""
        for value in wrong:
            with pytest.raises(nf.ModelError) as caught:
                checked(path, **{name: value})
            assert str(caught.value).startswith(f"{name} is {words}; got ")


def test_a_bad_value_stops_a_chapter_with_one_line(tmp_path):
    chapter = str(ROOT / "book" / "shape.ipynb")
    command = [sys.executable, "-m", "papermill", chapter, str(tmp_path / "out.ipynb"), "-p", "sigma", "0"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode != 0
    said = run.stderr.partition('Exception encountered at "In [4]":\n')[2].splitlines()
    assert said[0] == "ModelError: sigma is a number from 0.001 to 0.5; got 0."
    assert not any(said[1:])
    (tmp_path / "wrong.yml").write_text("sigma: 0\n")
    command = [sys.executable, "tools/execute.py", chapter, str(tmp_path / "x.ipynb"), "--parameters"]
    run = subprocess.run([*command, str(tmp_path / "wrong.yml")], capture_output=True, text=True, cwd=ROOT)
    assert f"{chapter}: sigma is a number from 0.001 to 0.5; got 0." in run.stderr.splitlines()
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "x.ipynb").exists()


def test_a_changed_chapter_alone_is_executed_again(tmp_path):
    """By make, on a copy in which every chapter was executed after everything that it needs."""
    copy = tmp_path / "project"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, tracked.stdout.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).touch()
    (copy / "Makefile").write_text((ROOT / "Makefile").read_text())
    for made in [".venv/.installed", *(f"build/published/{path.name}" for path in CHAPTERS)]:
        (copy / made).parent.mkdir(parents=True, exist_ok=True)
        (copy / made).touch()
    late = (copy / ".venv" / ".installed").stat().st_mtime + 60
    for path in (copy / "build" / "published").iterdir():
        os.utime(path, (late, late))

    def executed():
        command = ["make", "-n", "build/site/index.html"]
        run = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=True)
        return re.findall(r"tools/execute.py (\S+)", run.stdout)

    assert executed() == []
    os.utime(copy / "book" / "shape.ipynb", (late + 60, late + 60))
    assert executed() == ["book/shape.ipynb"]
    os.utime(copy / "nlmeflow" / "seeds.py", (late + 60, late + 60))
    assert sorted(executed()) == [f"book/{path.name}" for path in CHAPTERS]


@pytest.mark.parametrize(
    ("chapter", "figures", "word"), [("arabidopsis", 5, "check2"), ("senescence", 6, "Gompertz, late tail")]
)
def test_without_the_real_data_the_stored_results_are_shown(chapter, figures, word, tmp_path):
    """No folder, no cache, no network: the chapter runs, says so at its top and shows what is stored."""
    environment = os.environ | {
        "NLMEFLOW_DATA_DIR": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path),
        "https_proxy": "http://127.0.0.1:9",
    }
    target = tmp_path / "out.ipynb"
    command = [sys.executable, "tools/execute.py", f"book/{chapter}.ipynb", str(target)]
    subprocess.run(command, check=True, cwd=ROOT, env=environment, capture_output=True)
    outputs = [o for cell in sources(target, "code") for o in cell.outputs]
    first = next(o["data"]["text/markdown"] for o in outputs if "text/markdown" in o.get("data", {}))
    assert "stored results" in first
    assert sum("image/png" in o.get("data", {}) for o in outputs) == figures
    assert any(word in o.get("data", {}).get("text/plain", "") for o in outputs)


def test_the_reference_shows_every_public_name_and_its_examples_run(tmp_path, monkeypatch):
    text = (ROOT / "book" / "api.md").read_text()
    missing = [name for name in nf.__all__ if not re.search(rf"`(nf\.)?{name}\b", text)]
    assert not missing
    monkeypatch.chdir(tmp_path)
    space = {}
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.S):
        exec(compile(block, "book/api.md", "exec"), space)
    assert not list(tmp_path.iterdir())
