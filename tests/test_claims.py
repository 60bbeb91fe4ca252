"""The book's sentences about results: each is asserted beside it, cited, or marked with what it stands on.

A sentence counts as a claim when it compares ("better", "most", "agrees") or gives a number. It stands when a
code cell at most two cells away asserts something, when it cites a source, or when its cell has a comment,
a line that starts with %, that says what it stands on:

    % asserted below          the cells of the chapter assert it, further away
    % by definition           it defines, sets a task, or says what a method does
    % computed                the sentence is printed by code
"""

import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell

CHAPTERS = sorted((Path(__file__).resolve().parent.parent / "book").glob("*.ipynb"))
COMPARES = re.compile(
    r"\b(better|worse|best|worst|most|fewer|more than|less than|larger|smaller|higher|lower|closer|nearer|"
    r"never|always|agrees?|wins?|loses?|beats?|hardly|none|nobody|clearly|half of|twice|times as)\b",
    re.IGNORECASE,
)
NUMBER = re.compile(r"(?<![\w.{-])\d+\.\d+|\d+ %")
APART = re.compile(r"```\{exercise\}.*?```|```.*?```|\$\$.*?\$\$|^%.*?$", re.DOTALL | re.MULTILINE)
MARKS = ("asserted below", "by definition", "computed")
NEAR = 2  # cells


def claims(text):
    """Return the sentences of a cell that compare or give a number."""
    sentences = re.split(r"(?<=[.:;])\s|\n", APART.sub("", text))
    return [s for s in sentences if COMPARES.search(s) or NUMBER.search(s)]


def unsupported(cells):
    """Return the claims that nothing supports."""
    found = []
    for k, cell in enumerate(cells):
        if cell.cell_type != "markdown":
            continue
        near = cells[max(0, k - NEAR) : k + NEAR + 1]
        asserted = any(c.cell_type == "code" and re.search(r"^\s*assert ", c.source, re.M) for c in near)
        marked = any(re.search(rf"^% {mark}$", cell.source, re.M) for mark in MARKS)
        if not (asserted or marked):
            found += [claim for claim in claims(cell.source) if "{cite" not in claim]
    return found


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_every_claim_of_a_chapter_stands_on_something(path):
    cells = nbformat.read(path, as_version=4).cells
    found = unsupported(cells)
    assert not found, "\n".join(found)
    if any("% asserted below" in cell.source for cell in cells):
        assert any(re.search(r"^\s*assert ", cell.source, re.M) for cell in cells if cell.cell_type == "code")


def test_a_bare_claim_is_found_and_a_supported_one_is_not():
    claim = new_markdown_cell("The flow is better than the mixture.\nIts divergence is 0.12.")
    assert len(unsupported([claim])) == 2
    assert len(unsupported([new_code_cell("print(1)"), claim])) == 2
    assert not unsupported([claim, new_code_cell("assert flow < mixture")])
    assert not unsupported([new_markdown_cell("Flows are better {cite}`A`.")])
    assert not unsupported([new_markdown_cell("% by definition\nThe higher density of the two.")])
    assert not unsupported([new_markdown_cell("```{exercise}\nWhich is better?\n```")])
    far = [claim, *(new_markdown_cell("Text.") for _ in range(NEAR)), new_code_cell("assert x")]
    assert len(unsupported(far)) == 2
