"""Citation, archives, licences, the manifest of results, Binder, workflows: they agree, and are true."""

import json
import re
import shlex
import sys
import textwrap
import tomllib
import unicodedata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import nlmeflow as nf

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
CODEMETA = json.loads((ROOT / "codemeta.json").read_text())
ZENODO = json.loads((ROOT / ".zenodo.json").read_text())
CODECHECK = yaml.safe_load((ROOT / "codecheck.yml").read_text())
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"


def front_matter():
    return yaml.safe_load((ROOT / "paper" / "paper.md").read_text().split("---\n")[1])


UNCONFIRMED = {"Antic2009", "Schumitzky1991", "Savic2009"}  # references whose DOI we could not look up


def test_references_of_the_book_have_dois():
    entries = re.split(r"\n(?=@)", (ROOT / "book" / "references.bib").read_text())
    names = [re.match(r"@\w+\{([\w-]+),", entry)[1] for entry in entries]
    assert len(names) == len(set(names)) > 30
    without = {
        name for name, entry in zip(names, entries, strict=True) if not re.search(r"\bdoi = \{10\.", entry)
    }
    assert without == UNCONFIRMED


def test_version_title_licence_authors_and_keywords_agree():
    versions = {
        nf.__version__,
        PROJECT["version"],
        CITATION["version"],
        CODEMETA["version"],
        ZENODO["version"],
    }
    assert len(versions) == 1
    assert f"Version {nf.__version__}." in (ROOT / "book" / "index.md").read_text()
    titles = {CITATION["title"], CODEMETA["name"], ZENODO["title"], CODECHECK["paper"]["title"]}
    titles.add(front_matter()["title"])
    assert len(titles) == 1
    assert titles.pop() in " ".join((ROOT / "book" / "index.md").read_text().split())
    assert PROJECT["license"] == CITATION["license"] == ZENODO["license"] == "MIT"
    assert CODEMETA["license"].endswith("/MIT")
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")
    authors = [author["name"] for author in PROJECT["authors"]]
    for other in (CITATION["authors"], CODEMETA["author"], ZENODO["creators"], CODECHECK["paper"]["authors"]):
        assert [author["name"] for author in other] == authors
    assert [author["name"] for author in front_matter()["authors"]] == authors
    assert CITATION["keywords"] == CODEMETA["keywords"] == ZENODO["keywords"]
    assert PROJECT["description"] == CODEMETA["description"]
    assert PROJECT["description"] in ZENODO["description"]
    needed = [Requirement(line).name for line in PROJECT["dependencies"]]
    assert CODEMETA["softwareRequirements"] == needed


def test_a_version_has_a_date_of_release_when_the_changelog_says_that_it_is_released():
    (first,) = re.findall(
        rf"^## {re.escape(nf.__version__)} \((.+)\)", (ROOT / "CHANGELOG.md").read_text(), re.M
    )
    assert CITATION.get("date-released", "unreleased") == first


def test_the_licence_of_stored_results_and_the_sources_of_real_data_are_named():
    text = (ROOT / "data" / "README.md").read_text()
    assert "CC-BY-4.0" in text
    for folder in (path for path in (ROOT / "data").iterdir() if path.is_dir()):
        assert f"`{folder.name}`" in text, folder.name
    for name in ("phenovator", "potato"):
        about = str(nf.datasets.about(name))
        assert re.search(r"file: \S+/(\S+)", about)[1] in text
        licence = re.search(r"licence: (GPL|MIT)", about)[1]
        row = next(line for line in text.splitlines() if re.search(r"file: \S+/(\S+)", about)[1] in line)
        assert licence in row
        assert set(re.findall(r"doi:\S+\d", about)) == set(re.findall(r"doi:\S+\d", row))


ENTRIES = pytest.mark.parametrize("entry", CODECHECK["manifest"], ids=lambda entry: entry["file"])


@ENTRIES
def test_an_entry_of_the_manifest_has_a_file_and_a_command_that_exist(entry):
    assert (ROOT / entry["file"]).exists()
    assert 0 < entry["minutes"] < 1000
    assert len(entry["tolerance"]) > 3
    program, *words = shlex.split(entry["command"])
    assert program == ("Rscript" if words[0].endswith(".R") else "python")
    if words[0] == "-m":
        assert words[:3] == ["-m", "nlmeflow.studies", "run"]
        study = yaml.safe_load((ROOT / words[3]).read_text())
        assert {"measure", "grid"} <= set(study)
        assert len(words) == 4
    else:
        assert (ROOT / words[0]).is_file()
        assert all((ROOT / word).is_file() for word in words[1:] if not word.startswith("build/"))
    if entry["file"].startswith("book/"):
        assert entry["file"] in words


def test_every_stored_result_and_every_chapter_is_in_the_manifest_once():
    listed = [ROOT / entry["file"] for entry in CODECHECK["manifest"]]
    assert len(set(listed)) == len(listed)
    about = {ROOT / "data" / "README.md", ROOT / "data" / "LICENSE"}
    stored = [path for path in (ROOT / "data").rglob("*") if path.is_file() and path not in about]
    assert len(stored) > 50
    for path in [*stored, *(ROOT / "book").glob("*.ipynb")]:
        assert sum(path.is_relative_to(other) for other in listed) == 1, path


def test_the_code_in_r_that_the_book_shows_is_that_which_was_run():
    """Rosetta shows calls of nlme and lme4; their estimates are stored by tools/rosetta.R."""
    notebook = json.loads((ROOT / "book" / "rosetta.ipynb").read_text())
    text = "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    shown = re.findall(r"```r\n(.+?)```", text, re.S) + re.findall(r"(?:^ {4}.+\n?)+", text, re.M)
    shown = [textwrap.dedent(code) for code in shown if re.search(r"\bnlme\(|\bnlmer\(", code)]
    run = (ROOT / "tools" / "rosetta.R").read_text()
    assert len(shown) == 3
    assert all(code.strip() in run for code in shown)


def test_binder_installs_the_package_with_cpu_wheels_and_the_versions_of_the_book():
    lines = (ROOT / ".binder" / "requirements.txt").read_text().splitlines()
    lines = [line for line in lines if not line.startswith("#")]
    assert f"--extra-index-url {CPU_WHEELS}" in lines
    (constraint,) = [line.split()[1] for line in lines if line.startswith("-c ")]
    assert (ROOT / ".binder" / constraint).resolve() == ROOT / "constraints.txt"
    (package,) = [line.split()[1] for line in lines if line.startswith("-e ")]
    extras = re.fullmatch(r"\.\[(.+)\]", package)[1].split(",")
    assert set(extras) <= set(PROJECT["optional-dependencies"])
    assert (ROOT / ".binder" / "runtime.txt").read_text() == "python-3.11\n"


def test_what_binder_installs_is_what_the_chapters_import():
    """Each package that a chapter imports is the library, comes with it, or is named for Binder."""
    named = (ROOT / ".binder" / "requirements.txt").read_text()
    extras = re.search(r"-e \.\[(.+)\]", named)[1].split(",")
    lines = [
        *PROJECT["dependencies"],
        *(x for extra in extras for x in PROJECT["optional-dependencies"][extra]),
    ]
    there = {Requirement(line).name for line in lines} | set(re.findall(r"^\w+$", named, re.M)) | {"nlmeflow"}
    there |= {"IPython"}  # of ipykernel
    for path in (ROOT / "book").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        for name in re.findall(r"^\s*(?:from|import) (\w+)", code, re.M):
            assert name in there or name in sys.stdlib_module_names, (path.name, name)


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_has_jobs_with_steps_that_do_one_thing(path):
    about = yaml.load(path.read_text(), yaml.BaseLoader)  # `on` stays a word
    assert {"name", "on", "jobs"} <= set(about)
    for name, job in about["jobs"].items():
        assert "runs-on" in job
        assert int(job["timeout-minutes"]) > 0
        needs = job.get("needs", [])
        assert set([needs] if isinstance(needs, str) else needs) <= set(about["jobs"]) - {name}
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step.get("uses", "a/b@v1"))


def test_the_site_is_published_from_a_clean_clone():
    about = yaml.load((ROOT / ".github" / "workflows" / "pages.yml").read_text(), yaml.BaseLoader)
    assert about["permissions"] == {"contents": "read", "pages": "write", "id-token": "write"}
    build, publish = about["jobs"]["build"], about["jobs"]["publish"]
    kinds = [step.get("uses", step.get("run")).split("@")[0] for step in build["steps"]]
    order = ["actions/checkout", "actions/setup-python", "make book", "actions/upload-pages-artifact"]
    assert kinds == order
    site = build["steps"][-1]["with"]["path"]
    assert f"{site}/index.html" in (ROOT / "Makefile").read_text()
    assert build["env"]["TORCH_INDEX"] == CPU_WHEELS
    assert publish["needs"] == "build"
    assert publish["environment"]["name"] == "github-pages"
    assert publish["steps"][0]["uses"].startswith("actions/deploy-pages@")
    assert publish["steps"][0]["id"] in publish["environment"]["url"]


def key(term):
    plain = unicodedata.normalize("NFD", term.lower())
    return plain.encode("ascii", "ignore").decode()


def glossary():
    """Each term with its French words and its definition."""
    text = (ROOT / "book" / "glossary.md").read_text()
    entries = re.search(r"```\{glossary\}\n(.*?)\n```", text, re.S)[1].split("\n\n")
    found = [re.fullmatch(r"(\S[^\n]*)\n  \*(.+?)\*\. ([^\n]+)", entry) for entry in entries]
    assert all(found)
    return {match[1]: (match[2], match[3]) for match in found}


def test_the_glossary_is_alphabetical_and_each_term_is_defined_in_one_or_two_sentences():
    entries = glossary()
    assert len(entries) > 60
    assert list(entries) == sorted(entries, key=key)
    for term, (_, definition) in entries.items():
        assert 1 <= len(re.findall(r"[.](?= [A-Z]|$)", definition)) <= 2, term
        assert definition.endswith(".")


def test_every_french_term_leads_to_its_english_one():
    text = (ROOT / "book" / "glossary.md").read_text().split("## From French to English")[1]
    rows = re.findall(r"^\| (.+?) \| \{term\}`(.+?)` \|$", text, re.M)
    assert [french for french, _ in rows] == sorted((french for french, _ in rows), key=key)
    entries = glossary()
    for french, english in rows:
        assert french in entries[english][0], french
    for english, (french, _) in entries.items():
        assert key(french) == key(english) or english in dict(map(reversed, rows)), english


def test_the_lecturers_page_names_exercises_and_chapters_that_exist():
    text = (ROOT / "book" / "teaching.md").read_text()
    chapters = [path.read_text() for path in (ROOT / "book").glob("*.ipynb")]
    labels = re.findall(r"\{ref\}`(ex-[\w-]+)`", text)
    assert len(labels) > 12
    for label in labels:
        assert any(f":label: {label}\\n" in chapter for chapter in chapters), label
    for name in re.findall(r"\{doc\}`(\w+)`", text):
        assert list((ROOT / "book").glob(f"{name}.*")), name
    for path in re.findall(r"python (tools/\w+\.py)", text):
        assert (ROOT / path).is_file()
    assert re.search(r"^class:", (ROOT / "Makefile").read_text(), re.M)
