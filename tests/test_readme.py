"""README.md: its tour prints what it shows, its commands and links are those of the project."""

import contextlib
import io
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import papermill
import pytest
import yaml

import nlmeflow as nf
from nlmeflow.studies import rows
from nlmeflow.studies.__main__ import _parser
from nlmeflow.studies.run import Study, found

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, flags=re.S)
    for line in block.splitlines()
] + re.findall(r"`((?:make|pip|conda|python) [^`]+)`", README)
NUMBER = r"-?\d+\.?\d*(?:e[+-]\d+)?"


def alike(printed, shown):
    """The same words; numbers differ by no more than another machine's rounding of an iterative fit."""
    assert re.sub(NUMBER, "0", printed).split() == re.sub(NUMBER, "0", shown).split()
    for new, old in zip(re.findall(NUMBER, printed), re.findall(NUMBER, shown), strict=True):
        assert float(new) == pytest.approx(float(old), rel=0.03, abs=0.03), (new, old)


@pytest.mark.slow
def test_the_tour_prints_what_it_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", README, flags=re.S)
    assert sum(bool(shown) for _, shown in blocks) == 2
    space = {}
    for block, shown in blocks:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(block, "README.md", "exec"), space)
        alike(out.getvalue(), shown)
    assert (tmp_path / "population.png").stat().st_size > 10_000
    assert space["again"].log_likelihood() == space["table"].fits["flow"].log_likelihood()


def test_what_differs_from_what_is_shown_is_seen():
    alike("gain 0.24 of the flow", "gain  0.25 of the flow")
    for printed in ("gain 0.34 of the flow", "gain 0.24 of the mixture", "gain of the flow"):
        with pytest.raises(AssertionError):
            alike(printed, "gain 0.24 of the flow")


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def a_target(words):
    """What make would do; `make -n` fails where there is no such target."""
    run = subprocess.run([*words[:1], "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for word in words[2:]:
        assert re.search(
            rf"\$\(({word.split('=')[0]})\)|\b{word.split('=')[0]}\b", (ROOT / "Makefile").read_text()
        )


def an_installation(words):
    """Of PyTorch, of a tool, or of the package, by its source or its wheel, with extras that there are."""
    assert words[1] == "install"
    package = words[2]
    if extras := re.search(r"\[(.+)\]", package):
        assert set(extras[1].split(",")) <= set(EXTRAS)
    name = re.sub(r"\[.+\]", "", package)
    wheel = f"dist/nlmeflow-{nf.__version__}-py3-none-any.whl"  # tests/test_package.py makes it
    assert name in (".", wheel, "torch", "build", "pynlme==0.5.1")
    if name == "torch":
        assert words[3:] == ["--index-url", "https://download.pytorch.org/whl/cpu"]


def a_study(words):
    options = _parser().parse_args(words[3:])
    study = Study.read(options.study, options.replicates)
    assert study.jobs
    assert callable(found(study.report))


def a_program(words):
    """Its imports are there, and it begins nothing when it is only imported."""
    runpy.run_path(str(ROOT / words[1]), run_name="imported")


def a_chapter(words):
    """Papermill takes the parameters, and writes the notebook with them."""
    chapter, target, *parameters = words[1:]
    command = [sys.executable, "-m", "papermill", chapter, target, "--prepare-only", *parameters]
    subprocess.run([*command, "--cwd", str(ROOT)], cwd=ROOT, check=True, capture_output=True)
    (ROOT / target).unlink()
    assert set(parameters[1::3]) <= set(papermill.inspect_notebook(str(ROOT / chapter)))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_one_that_the_project_has(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command.replace(".venv/bin/", ""))
    if words[0] == "make":
        a_target(words)
    elif words[0] == "pip":
        an_installation(words)
    elif words[:3] == ["python", "-m", "nlmeflow.studies"]:
        a_study(words)
    elif words[:3] == ["python", "-m", "build"]:
        assert words[3:] == ["--wheel"]  # tests/test_package.py
    elif words[0] == "python":
        a_program(words)
    elif words[0] == "conda":
        name = yaml.safe_load((ROOT / "environment.yml").read_text())["name"]
        assert words[1:] in (["env", "create", "-f", "environment.yml"], ["activate", name])
    elif words[0] == "papermill":
        a_chapter(words)
    else:
        pytest.fail(f"no test for this kind of command: {command}")


def test_the_command_for_ones_own_table_is_what_the_report_takes():
    """What `make report` runs; tests/test_own_data.py runs it."""
    (command,) = [command for command in COMMANDS if command.startswith("make report")]
    words = shlex.split(command)
    run = subprocess.run([*words[:1], "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True, text=True)
    shown = run.stdout.replace("\\\n", " ").splitlines()
    line = shlex.split(next(part for part in shown if "tools/report.py" in part))
    assert line[1:5] == ["tools/report.py", "my.csv", "--out", "build/report"]
    assert line[5::2] == ["--set"] * 3
    settings = dict(word.split("=") for word in line[6::2])
    assert settings == {"individual": "variety", "time": "day", "response": "greenness"}
    assert set(settings) <= set(papermill.inspect_notebook(str(ROOT / "book" / "your_data.ipynb")))
    columns = (ROOT / "data" / "example" / "two_strategies.csv").read_text().splitlines()[0].split(",")
    assert list(settings.values()) == columns


def test_the_numbers_of_the_reliability_study_are_those_that_are_stored():
    table = rows("reliability")
    ends = table["end"].value_counts()
    text = " ".join(README.split())
    assert (
        f"of {len(table):,} random data sets {ends['converged']} fits converged, "
        f"{ends['refused']} were refused at once"
    ) in text
    assert (
        f"{ends['explained']} ended in an explanation, and {ends['not converged']} said that they had not "
        "converged."
    ) in text
    assert len(ends) == 4


def test_every_study_has_a_line_and_the_page_names_what_there_is():
    for path in (ROOT / "tools" / "studies").glob("*.yml"):
        assert f"| [{path.name}](tools/studies/{path.name}) |" in README
    for command in ("make book", "make test", "make class"):
        assert command in COMMANDS
