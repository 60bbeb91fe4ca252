"""How pages are finished after they are built: tables, equations, style sheets."""

import sys
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

for needed in ("quickjs", "fontTools", "pybtex"):
    pytest.importorskip(needed)
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import author_year  # noqa: E402
import equations  # noqa: E402
import pages  # noqa: E402
import pandas as pd  # noqa: E402
import slim  # noqa: E402
from pybtex.database import Entry, Person  # noqa: E402


def texts(soup, selector):
    return [cell.get_text(strip=True) for cell in soup.select(selector)]


def test_names_of_an_index_move_into_the_header_row_and_numbers_are_marked():
    index = pd.MultiIndex.from_tuples([("rich", "L1"), ("rich", "L2")], names=["design", "population"])
    frame = pd.DataFrame({"law": ["flow", "mixture"], "KL": [0.041, float("nan")]}, index=index)
    frame.columns.name = "what"
    soup = BeautifulSoup(pages.set_tables(frame.to_html()), "html.parser")
    assert len(soup.select("thead tr")) == 1
    assert texts(soup, "thead tr > *") == ["design", "population", "law", "KL"]
    assert texts(soup, ".number") == ["KL", "0.041", "NaN"]
    assert soup.select_one("div.table-box[tabindex='0'] > table")


def test_a_header_row_without_words_goes_and_a_column_of_words_stays_left():
    soup = BeautifulSoup(
        pages.set_tables(
            "<table><thead><tr><th></th><th></th></tr></thead><tbody><tr><th>law</th><td>flow</td></tr></table>"
        ),
        "html.parser",
    )
    assert not soup.select("thead, .number")
    assert texts(soup, "tbody tr > *") == ["law", "flow"]


@pytest.mark.parametrize(
    "number",
    ["1", "-0.25", "−3", "1,434", "34 %", "0.41 (0.02)", "1e-05", "12 ± 3", "≤ 4", "0.55 (smoothed)"],
)
def test_a_number_is_known_as_one(number):
    assert pages.NUMBER.match(number)


@pytest.mark.parametrize("word", ["9 June", "L1", "2.13.0+cpu", "9:07", "day 76", ""])
def test_a_word_is_no_number(word):
    assert not pages.NUMBER.match(word)


def test_equations_become_html_with_mathml_for_screen_readers():
    page = '<p><span class="math notranslate">\\(a &lt; \\frac{1}{2}\\)</span> <code>\\(x\\)</code></p>'
    done = equations.set_page(page, equations.Typesetter())
    soup = BeautifulSoup(done, "html.parser")
    assert soup.select_one("mjx-container mjx-math[aria-hidden='true'] mjx-mfrac")
    assert texts(soup, "mjx-assistive-mml math > mo") == ["<"]
    assert texts(soup, "code") == ["\\(x\\)"]


def test_a_full_stop_stays_with_the_equation_before_it():
    page = (
        '<p><span class="math notranslate">\\(a\\)</span>, and <span class="math x">\\(b\\)</span> too.</p>'
    )
    kept = BeautifulSoup(equations.set_page(page, equations.Typesetter()), "html.parser").select(
        ".kept-together"
    )
    assert len(kept) == 1
    assert kept[0].get_text().endswith(",")


def test_printed_sentences_wrap_and_printed_tables_do_not():
    output = (
        '<div class="output stream highlight"><div class="highlight"><pre><span></span>{}</pre></div></div>'
    )
    done = pages.set_outputs(
        output.format("one sentence\nof two lines") + output.format("law   gain\nflow  0.1")
    )
    assert [div["class"] for div in BeautifulSoup(done, "html.parser").select("div.output")] == [
        ["output", "stream", "highlight", "sentences"],
        ["output", "stream", "highlight"],
    ]


def test_an_equation_that_cannot_be_set_is_an_error():
    with pytest.raises(ValueError, match="nosuch"):
        equations.Typesetter().set("\\nosuch{x}", display=True)


def test_rules_for_classes_that_no_page_has_go_and_others_stay():
    sheet = (
        '@charset "utf-8";/* } */.fa-bed:before,.fa-bars:before{content:"\\f0c9"}.gone{color:red}'
        "a:not(.gone) b{color:blue}@media (max-width:9px){.gone{top:0}}@font-face{font-family:x}"
        "@media print{.gone{top:0}.kept,.kept .gone{top:1px}}"
    )
    assert slim.slim_sheet(sheet, {"fa-bars", "kept"}) == (
        '@charset "utf-8";.fa-bars:before{content:"\\f0c9"}a:not(.gone) b{color:blue}'
        "@font-face{font-family:x}@media print{.kept{top:1px}}"
    )


@pytest.mark.parametrize(
    ("authors", "label"),
    [
        (["Mallet, Alain"], "Mallet, 1986"),
        (["Kuhn, E.", "Lavielle, M."], "Kuhn and Lavielle, 1986"),
        (["van Rooijen, R.", "others"], "van Rooijen et al., 1986"),
        (["A, A.", "B, B.", "C, C."], "A et al., 1986"),
    ],
)
def test_an_entry_is_labelled_by_author_and_year(authors, label):
    entry = Entry("article", {"year": "1986"}, {"author": [Person(name) for name in authors]})
    assert author_year.label(entry) == label


def test_links_point_to_the_page():
    notebook = ROOT / "book" / "flows.ipynb"
    links = pages.page_links("book/flows", pages.Repository(ROOT, "https://github.com/a/b", "main"), notebook)
    for link in (
        "https://github.com/a/b/issues/new?title=Page%20book/flows%3A%20",
        "https://mybinder.org/v2/gh/a/b/main?urlpath=lab/tree/book/flows.ipynb",
        "https://colab.research.google.com/github/a/b/blob/main/book/flows.ipynb",
    ):
        assert f'href="{link}"' in links
    assert pages.web_address(Path("/"), "https://github.com/c/d") == "https://github.com/c/d"
