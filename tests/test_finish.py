"""How pages are finished after they are built: tables, equations, style sheets."""

import sys
from itertools import pairwise
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

for needed in ("quickjs", "fontTools", "pybtex"):
    pytest.importorskip(needed)
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import author_year  # noqa: E402
import equations  # noqa: E402
import matplotlib.pyplot as plt  # noqa: E402
import narrow  # noqa: E402
import pages  # noqa: E402
import pandas as pd  # noqa: E402
import slim  # noqa: E402
from pybtex.database import Entry, Person  # noqa: E402


def texts(soup, selector):
    return [cell.get_text(strip=True) for cell in soup.select(selector)]


def test_panels_of_a_figure_stand_under_each_other_on_a_phone_each_with_its_labels():
    figure, axes = plt.subplots(2, 2, sharex=True, sharey=True, figsize=(8, 6))
    for panel in axes.flat:
        panel.plot([0, 1], [0, 1], label="one law")
        panel.label_outer()
    axes[0, 0].legend()
    axes[0, 1].set_title("a title of a panel that is too long for the width of a phone")
    axes[1, 0].set(xlabel="day", ylabel="density")
    axes[1, 1].set_xlabel("speed")
    axes[0, 0].set_ylabel("share")
    axes[0, 0].set_title("one")
    narrow.stack(figure)
    figure.canvas.draw()
    boxes = [panel.get_window_extent() for panel in axes.flat]
    assert figure.get_size_inches()[0] == narrow.WIDTH
    assert all(above.y0 > below.y1 for above, below in pairwise(boxes))
    assert len({round(box.x0) for box in boxes}) == 1
    assert [panel.get_xlabel() for panel in axes.flat] == ["day", "speed", "day", "speed"]
    assert [panel.get_ylabel() for panel in axes.flat] == ["share", "share", "density", "density"]
    assert all(panel.xaxis.get_ticklabels()[0].get_visible() for panel in axes.flat)
    assert [panel.get_title() for panel in axes[:, 0]] == ["one", "one"]
    assert axes[0, 1].get_title() == axes[1, 1].get_title()
    assert "\n" in axes[1, 1].get_title()
    assert axes[0, 0].get_legend().get_window_extent().y1 < boxes[0].y0
    plt.close(figure)


def test_a_page_has_the_figure_for_phones_where_there_is_one():
    figure = '<figure class="align-default"><img alt="" src="../_images/{}.png"/><p>Left: {}</p></figure>'
    page = "".join(figure.format(name, name) for name in "ab")
    soup = BeautifulSoup(pages.set_figures(page, {"a.png"}), "html.parser")
    assert len(soup.select("picture + p.stacked + p")) == len(soup.select("p.stacked")) == 1
    assert soup.select_one("picture > source")["srcset"] == "../_images/narrow/a.png 2x"
    assert soup.select_one("picture > img")["src"] == "../_images/a.png"
    assert [img["src"] for img in soup.select(".figure-box > img")] == ["../_images/b.png"]


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
