"""The book's sentences about results: each is asserted beside it, cited, or marked with what it stands on.

A sentence counts as a claim when it compares ("better", "most", "agrees") or gives a number. It stands when a
code cell at most two cells away asserts something, when it cites a source, or when its cell has a comment,
a line that starts with %, that says what it stands on:

    % asserted below          the cells of the chapter assert it, further away
    % by definition           it defines, sets a task, or says what a method does
    % computed                the sentence is printed by code

Besides, every decimal and every percentage of the prose stands in the chapter's code as it is written, 12 %
also as .12, .88 or 1.12: a number that is changed in the text, or asserted as another, is found.

Claims are also those of captions and alternative texts, of cells that draw, of directives and of HTML. A
word that says how things look beside each other ("narrower", "between") counts too there, and so does a
number, but not the levels that are drawn ("contours enclose 20 and 50 %"). A cell that draws bears no
mark: its caption stands on an assertion or a citation, or describes what is drawn. In a page without
code, the paragraph before a figure has

    % asserted by tests/test_x.py   a test of this page
"""

import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

CHAPTERS = sorted((Path(__file__).resolve().parent.parent / "book").glob("*.ipynb"))
PAGES = sorted((Path(__file__).resolve().parent.parent / "book").glob("*.md"))
COMPARES = re.compile(
    r"\b(better|worse|best|worst|most|fewer|more than|less than|larger|smaller|higher|lower|closer|closest|"
    r"nearer|nearest|farther|farthest|further from|exceeds?|never|always|agrees?|wins?|loses?|beats?|hardly|"
    r"none|nobody|clearly|half of|twice|times as)\b",
    re.IGNORECASE,
)
NUMBER = re.compile(r"(?<![\w.{-])\d+\.\d+|\d+ %")
APART = re.compile(r"```\{exercise\}.*?```|```.*?```|\$\$.*?\$\$|^%.*?$", re.DOTALL | re.MULTILINE)
LOOKS = re.compile(
    COMPARES.pattern
    + r"|\b((broad|wid|narrow|flatt|steep|deep|shallow|slow|fast|earli|lat|high|low|clos|near|strong|weak)"
    r"(er|est)|(sharp|smooth|thinn|thick|small|long|short|few|great|bigg)(er|est)|like the|same as|as \w+ as|"
    r"between|outside|inside|beyond|nearly|close to|coincides?|lies? on|right (place|width|number)s?|wrong|"
    r"blurred|ragged|"
    r"(one|two|three|several|single)( \w+){0,2} (groups?|ellipses?|hills?|humps?|peaks?|ovals?|clouds?))\b",
    re.IGNORECASE,
)
RESULT = re.compile(r"\d\.\d|\d (%|percent)|\b(near|about|around|from) (day |minus )?\d", re.IGNORECASE)
DRAWN = re.compile(r"\b(contours?|regions?|quantiles?|intervals?|bands?|order|each)\b", re.IGNORECASE)
LEVELS = re.compile(
    r"\b(5|10|20|50|80|90|95)(,? and \d+| to \d+)? %|holds half of|(at most|more than) \d+\b(?! %)"
)
FIGURE = re.compile(
    r"```\{(?:figure|image)\}[^\n]*\n(?P<directive>.*?)```|<figcaption>(?P<html>.*?)</figcaption>|"
    r"\balt=\"(?P<alt>[^\"]*)\"|!\[(?P<image>[^\]]*)\]\(",
    re.DOTALL,
)
MARKS = ("asserted below", "by definition", "computed")
NEAR = 2  # cells


def claims(text):
    """Return the sentences of a cell that compare or give a number."""
    sentences = re.split(r"(?<=[.:;])\s|\n", APART.sub("", text))
    return [s for s in sentences if COMPARES.search(s) or NUMBER.search(s)]


def shown(text):
    """Return the sentences of a caption or an alternative text that compare or give a result."""
    found = []
    for sentence in re.split(r"(?<=[.:;])\s", " ".join(text.split())):
        rest = LEVELS.sub("", sentence) if DRAWN.search(sentence) else sentence
        if LOOKS.search(rest) or RESULT.search(rest):
            found.append(sentence)
    return found


def captions(cell):
    """Return the captions and alternative texts of a cell: of what it draws, of directives, of HTML."""
    if cell.cell_type == "markdown":
        found = [text for match in FIGURE.finditer(cell.source) for text in match.groups() if text]
        return [re.sub(r"^:(?:alt|name|width|figclass|align): ?", "", text, flags=re.M) for text in found]
    about = cell.metadata.get("mystnb", {})
    return [about.get("figure", {}).get("caption", ""), about.get("image", {}).get("alt", "")]


def unsupported(cells):
    """Return the claims that nothing supports."""
    found = []
    for k, cell in enumerate(cells):
        near = cells[max(0, k - NEAR) : k + NEAR + 1]
        asserted = any(c.cell_type == "code" and re.search(r"^\s*assert ", c.source, re.M) for c in near)
        prose = cell.cell_type == "markdown"
        marked = prose and any(re.search(rf"^% {mark}$", cell.source, re.M) for mark in MARKS)
        if not (asserted or marked):
            said = (claims(cell.source) if prose else []) + [
                c for text in captions(cell) for c in shown(text)
            ]
            found += [claim for claim in said if "{cite" not in claim]
    return found


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_every_claim_of_a_chapter_stands_on_something(path):
    cells = nbformat.read(path, as_version=4).cells
    found = unsupported(cells)
    assert not found, "\n".join(found)
    if any("% asserted below" in cell.source for cell in cells):
        assert any(re.search(r"^\s*assert ", cell.source, re.M) for cell in cells if cell.cell_type == "code")


def pages(text):
    """Return a page cut into figures and what stands between, each with the mark in the paragraph before."""
    parts = re.split(r"(```\{(?:figure|image|raw)\}.*?```)", text, flags=re.DOTALL)
    before = ["", *parts[:-1]]
    marks = [re.findall(r"^%.*$", one.rstrip().rpartition("\n\n")[2], re.M) for one in before]
    return [new_markdown_cell("\n".join([*mark, part])) for mark, part in zip(marks, parts, strict=True)]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_caption_of_a_page_describes_or_is_marked(path):
    directives = [cell for cell in pages(path.read_text()) if "```{" in cell.source]
    for k, cell in enumerate(directives):
        marked = re.search(r"^% asserted by (tests/\w+\.py)$", cell.source, re.M)
        found = [] if marked else [claim for text in captions(cell) for claim in shown(text)]
        assert not found, (k, found)
        if marked:
            assert path.name in (path.parents[1] / marked[1]).read_text()


def written(code):
    """Return the numbers that stand in code."""
    found = re.findall(r"(?<![\w.])((?:\d[\d_]*\.?\d*|\.\d+)(?:e[+-]?\d+)?)(?!\w)", code)
    return np.array([float(number.replace("_", "")) for number in found])


def bare(cells):
    """Return decimals and percentages of the prose that stand in no code, with their sentences."""
    found = []
    known = written("\n".join(cell.source for cell in cells if cell.cell_type == "code"))
    for cell in cells:
        if cell.cell_type == "code" or re.search(r"^% (by definition|computed)$", cell.source, re.M):
            continue
        prose = re.sub(r"`[^`]*`|\$[^$]*\$|\]\([^)]*\)", "", APART.sub("", cell.source))
        for sentence in re.split(r"(?<=[.:;])\s|\n", prose):
            for match in re.finditer(r"(?<![\w.{-])(\d+\.\d+|\d+(?= %))(?: (%))?", sentence):
                value = float(match[1])
                share = value / 100
                ways = [value, share, 1 - share, 1 + share] if match[2] else [value]
                if "{cite" not in sentence and not np.isclose(np.c_[ways], known).any():
                    found.append((match[0], sentence))
    return found


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_every_number_of_the_prose_stands_in_the_code_of_its_chapter(path):
    found = bare(nbformat.read(path, as_version=4).cells)
    assert not found, "\n".join(f"{number} in: {sentence}" for number, sentence in found)


def test_a_number_that_no_code_has_is_found():
    code = new_code_cell("assert round(gain, 2) == .12\nassert ratio < 1.3")
    for text in ("It gains 0.12 nats.", "A share of 12 %.", "It is 30 % further.", "See {cite}`A`, 0.7."):
        assert not bare([new_markdown_cell(text), code])
    assert bare([new_markdown_cell("It gains 0.13 nats, or 31 %."), code]) == [
        ("0.13", "It gains 0.13 nats, or 31 %."),
        ("31 %", "It gains 0.13 nats, or 31 %."),
    ]
    assert not bare([new_markdown_cell("% by definition\nA level of 0.13."), code])


def drawn(caption, alt=""):
    """Return a cell that draws a figure."""
    metadata = {"mystnb": {"figure": {"caption": caption}, "image": {"alt": alt}}}
    return new_code_cell("plt.show()", metadata=metadata)


def test_a_caption_that_compares_is_found_and_one_that_describes_is_not(tmp_path):
    notebook = new_notebook(
        cells=[
            drawn(
                "The flow is narrower than the Gaussian. Contours enclose 20, 50, 80 and 95 % of the mass."
            ),
            drawn("Two laws.", "The Gaussian has one broad peak near day 50; a dashed line."),
            drawn("The laws of a mixture and a flow, each with a 90 % band. Dotted: the last day."),
            new_markdown_cell(
                '```{raw} html\n<figcaption>12 % are early.</figcaption><img alt="Lines.">\n```'
            ),
            new_markdown_cell(
                "```{figure} a.png\n:alt: Two panels of points.\n\nThe right panel is flatter.\n```"
            ),
        ]
    )
    nbformat.write(notebook, tmp_path / "chapter.ipynb")
    cells = nbformat.read(tmp_path / "chapter.ipynb", as_version=4).cells
    assert unsupported(cells) == [
        "The flow is narrower than the Gaussian.",
        "The Gaussian has one broad peak near day 50;",
        "12 % are early.",
        "The right panel is flatter.",
    ]
    cells.insert(2, new_code_cell("assert flow < gaussian"))
    assert unsupported(cells) == ["The right panel is flatter."]
    assert not unsupported([drawn("Flows are narrower {cite}`A`.")])


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
