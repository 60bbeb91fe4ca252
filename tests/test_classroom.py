"""tools/classroom.py: class notebooks have the exercises and no solution, and run."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = sorted((ROOT / "book").glob("*.ipynb"))
by_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
sys.path.insert(0, str(ROOT / "tools"))
from classroom import classroom  # noqa: E402


def text(notebook):
    return "\n\n".join(cell.source for cell in notebook.cells)


def lines(source):
    """How often each line occurs that is not empty."""
    return Counter(line for line in source.splitlines() if line.strip())


def solutions(notebook):
    """The text of all solutions, found in the whole text of a chapter at once."""
    gated = r"^````?\{solution-start\}.*?^````?\{solution-end\}\n````?$"
    block = r"^````\{solution\} .*?^````$"
    return "\n".join(re.findall(f"{gated}|{block}", text(notebook), flags=re.S | re.M))


@by_chapter
def test_a_class_notebook_has_every_exercise_no_solution_and_all_the_rest(path):
    chapter = nbformat.read(path, as_version=4)
    before = text(chapter)
    found = classroom(chapter)
    nbformat.validate(found)
    assert text(chapter) == before, "the chapter itself is left alone"
    assert found.metadata == chapter.metadata
    exercises = re.findall(r"\{exercise\}\n:label: (\S+)", before)
    assert re.findall(r"\{exercise\}\n:label: (\S+)", text(found)) == exercises
    places = [cell for cell in found.cells if "answer" in cell.metadata.get("tags", [])]
    assert [cell.id for cell in places] == [f"{k}-{label}" for label in exercises for k in ("answer", "code")]
    hidden, shown = lines(solutions(chapter)), lines(text(found)) - Counter(cell.source for cell in places)
    assert sum(hidden.values()) > 4
    assert lines(before) == hidden + shown
    assert not [line for line in shown if "{solution" in line]
    own = [(cell.source, cell.metadata) for cell in chapter.cells if cell.cell_type == "code"]
    kept = [(cell.source, cell.metadata) for cell in found.cells if cell.cell_type == "code" and cell.source]
    assert [cell for cell in own if cell in kept] == kept, "in the same order, with their tags and captions"


def notebook(*cells):
    new = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    return nbformat.v4.new_notebook(cells=[new[kind](source) for kind, source in cells])


START, END = "````{solution-start} ex-a\n:class: dropdown\n````", "````{solution-end}\n````"
EXERCISE = "```{exercise}\n:label: ex-a\nHow many?\n```"


def test_text_around_a_solution_in_the_same_cell_stays():
    page = f"Before.\n\n{EXERCISE}\n\n{START}\n\nTwo.\n\n{END}\n\n```bash\nmake class\n```\n\nAfter."
    found = classroom(notebook(("markdown", page)))
    kinds = [cell.cell_type for cell in found.cells]
    assert kinds == ["markdown", "markdown", "code", "markdown"]
    assert found.cells[0].source == f"Before.\n\n{EXERCISE}"
    assert found.cells[3].source == "```bash\nmake class\n```\n\nAfter."
    assert len({cell.id for cell in found.cells}) == 4


def test_a_solution_in_one_block_with_code_goes_as_a_whole():
    page = f"{EXERCISE}\n\n````{{solution}} ex-a\n```python\nx = 2\n```\nTwo.\n````\n\nAfter."
    found = classroom(notebook(("markdown", page)))
    assert [cell.source for cell in found.cells][::3] == [EXERCISE, "After."]


def test_a_later_cell_that_needs_a_solution_is_refused():
    cells = [("markdown", f"{EXERCISE}\n\n{START}"), ("code", "count = 2"), ("markdown", END)]
    assert len(classroom(notebook(*cells)).cells) == 3
    with pytest.raises(ValueError, match="need what solutions compute: count"):
        classroom(notebook(*cells, ("code", "print(count)")))
    classroom(notebook(*cells, ("code", "count = 3\nprint(count)")))


@pytest.mark.parametrize("page", [START, "````{solution} ex-a\nTwo."])
def test_a_solution_without_an_end_is_refused(page):
    with pytest.raises(ValueError, match="no end"):
        classroom(notebook(("markdown", page)))


def test_outputs_are_removed():
    one = notebook(("code", "1 + 1"))
    one.cells[0].outputs = [nbformat.v4.new_output("stream", text="2")]
    assert classroom(one).cells[0].outputs == []


@pytest.mark.slow
def test_a_class_notebook_runs(tmp_path):
    command = [sys.executable, "tools/classroom.py", "book/rosetta.ipynb", "--out", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert "rosetta.ipynb: 3 exercises" in run.stdout
    command = [
        sys.executable,
        "tools/execute.py",
        str(tmp_path / "rosetta.ipynb"),
        str(tmp_path / "out.ipynb"),
    ]
    quick = ["--parameters", "book/parameters/quick/rosetta.yml"]
    subprocess.run([*command, *quick], cwd=ROOT, check=True, capture_output=True)
    done = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    assert any(cell.get("outputs") for cell in done.cells)
    assert not [o for cell in done.cells for o in cell.get("outputs", []) if o.output_type == "error"]
