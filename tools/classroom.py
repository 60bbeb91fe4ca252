"""Write class notebooks: a chapter's exercises with room for an answer, and without the solutions."""

import argparse
import ast
import builtins
import re
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
ANSWER = "**Your answer to exercise {number}.** Words here, code in the cell below."
OPENS = re.compile(r"^(?P<fence>`{3,}|:{3,})\{(?P<name>[\w-]+)\}")  # a block


@dataclass
class Chapter:
    """A chapter as it is read from top to bottom, and the cells of its class notebook.

    exercises : their labels, in order
    inside : whether what is read lies between {solution-start} and {solution-end}
    """

    cells: list[NotebookNode] = field(default_factory=list)
    exercises: list[str] = field(default_factory=list)
    inside: bool = False

    def page(self, cell: NotebookNode) -> None:
        """Take a cell of text: keep it but for solutions, with an answer's place after each exercise."""
        kept: list[str] = []
        name, fence = "", ""  # of the block that is read
        for line in cell.source.splitlines():
            opened = OPENS.match(line)
            if not fence and opened:
                name, fence = opened["name"], opened["fence"]
                self.inside |= name == "solution-start"
            shown = not self.inside and not name.startswith("solution")
            if shown:
                kept.append(line)
            if name == "exercise" and line.startswith(":label:"):
                self.exercises.append(line.split()[1])
            if fence and not opened and closes(line, fence):
                if name == "solution-end":
                    self.inside = False
                if name == "exercise" and shown:
                    self.text(kept, cell)
                    self.answer()
                    kept = []
                name, fence = "", ""
        if fence:
            raise ValueError(f"A block {{{name}}} has no end.")
        self.text(kept, cell)

    def text(self, lines: list[str], cell: NotebookNode) -> None:
        """Add a cell of text like `cell`, unless there is nothing in it."""
        source = "\n".join(lines).strip()
        if source:
            used = any(cell.get("id") == other.get("id") for other in self.cells)
            new = cell.copy()
            new.source = source
            if used:
                new.id = f"{cell.id}-{len(self.cells)}"
            self.cells.append(new)

    def answer(self) -> None:
        """Add the place where an answer is written: a cell of text and an empty cell of code."""
        label = self.exercises[-1]
        about = {"tags": ["answer"]}
        text = ANSWER.format(number=len(self.exercises))
        self.cells += [
            nbformat.v4.new_markdown_cell(text, id=f"answer-{label}", metadata=about),
            nbformat.v4.new_code_cell("", id=f"code-{label}", metadata=about),
        ]


def closes(line: str, fence: str) -> bool:
    """Say whether a line ends a block: a bare fence of the same sign, as long or longer."""
    bare = line.strip()
    return len(bare) >= len(fence) and set(bare) == {fence[0]}


def classroom(notebook: NotebookNode) -> NotebookNode:
    """Return the class notebook of a chapter: without solutions and outputs, everything else as it was.

    A solution is a block {solution}, or all cells between {solution-start} and {solution-end}.

    Raises
    ------
    ValueError
        a solution does not end, or a later cell needs what only a solution computes

    """
    chapter, gone = Chapter(), set[str]()
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            chapter.page(cell)
        elif chapter.inside:
            gone |= names(cell.source)[0]
        else:
            new = cell.copy()
            if cell.cell_type == "code":
                new.update(outputs=[], execution_count=None)
            chapter.cells.append(new)
    if chapter.inside:
        raise ValueError("A solution has no end.")
    found: NotebookNode = nbformat.v4.new_notebook(cells=chapter.cells, metadata=notebook.metadata)
    found.nbformat_minor = notebook.nbformat_minor
    if missing := sorted(needed(found) & gone):
        raise ValueError(f"Cells outside of the solutions need what solutions compute: {', '.join(missing)}.")
    nbformat.validate(found)
    return found


def needed(notebook: NotebookNode) -> set[str]:
    """Return the names that a notebook's code uses before any cell has made them."""
    made, missing = set(dir(builtins)), set[str]()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            new, used = names(cell.source)
            made |= new
            missing |= used - made
    return missing


def names(code: str) -> tuple[set[str], set[str]]:
    """Return the names that code makes, and those that it uses."""
    made, used = set[str](), set[str]()
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                used.add(name)
            case ast.Name(id=name) | ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.arg(arg=name):
                made.add(name)
            case ast.alias(name=name, asname=other):
                made.add(other or name.partition(".")[0])
    return made, used


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("chapters", type=Path, nargs="*", help="notebooks; all of book/ if none is named")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "class", help="a folder")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for path in arguments.chapters or sorted((ROOT / "book").glob("*.ipynb")):
        try:
            found = classroom(nbformat.read(path, as_version=4))
        except ValueError as error:
            raise SystemExit(f"{path}: {error}") from None
        nbformat.write(found, arguments.out / path.name)
        exercises = sum("answer" in cell.metadata.get("tags", []) for cell in found.cells) // 2
        print(f"{arguments.out / path.name}: {exercises} exercise{'s' * (exercises != 1)}")


if __name__ == "__main__":
    main()
