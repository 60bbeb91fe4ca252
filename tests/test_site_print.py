"""The site on paper: pages printed to PDF by Chromium, and all pages as one book."""

import base64
import io
import sys
import unicodedata
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from pypdf import PdfReader

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "build" / "quick-site"
PAGES = sorted((SITE / "book").glob("*.html"))
sys.path.insert(0, str(ROOT / "tools"))
if not PAGES:
    pytest.skip("no site: make build/quick-site/index.html", allow_module_level=True)
import paper  # noqa: E402

WIDTH = 658  # pixels of CSS: A4 without the margins of print.css


def words(text):
    return " ".join(unicodedata.normalize("NFKC", text).split())  # without ligatures


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_on_paper_nothing_is_wider_than_the_page_and_only_the_article_is_left(page, browser, site):
    browser.open(f"{site}/book/{page.name}", width=WIDTH)
    browser.send("Emulation.setEmulatedMedia", media="print")
    try:
        assert browser.ask("document.documentElement.scrollWidth") <= WIDTH
        outside = """[...document.querySelectorAll("body *")]
          .filter((e) => e.checkVisibility() && !e.children.length && !e.closest("article"))
          .filter((e) => e.textContent.trim()).map((e) => e.outerHTML)"""
        assert browser.ask(outside) == []
        folded = """[...document.querySelectorAll("article .toggle-hidden > *")]
          .concat([...document.querySelectorAll("article details.sd-dropdown p")])
          .filter((e) => !e.matches("button") && !e.checkVisibility({visibilityProperty: true})).length"""
        assert browser.ask(folded) == 0
    finally:
        browser.send("Emulation.setEmulatedMedia", media="")


def test_a_printed_chapter_has_its_text_equations_figures_and_open_solutions(browser, site):
    browser.open(f"{site}/book/flows.html")
    answer = browser.send("Page.printToPDF", preferCSSPageSize=True, printBackground=True)
    pages = PdfReader(io.BytesIO(base64.b64decode(answer["data"]))).pages
    assert 10 < len(pages) < 30
    assert all(float(page.mediabox.width) == pytest.approx(595, abs=1) for page in pages)
    text = words(" ".join(page.extract_text() for page in pages))
    article = BeautifulSoup((SITE / "book" / "flows.html").read_text(), "html.parser").select_one("article")
    for heading in article.select("h1, h2"):
        assert words(heading.get_text().removesuffix("#")) in text
    for caption in article.select("figcaption"):
        assert words(caption.get_text().replace("#", ""))[-40:] in text
    assert len(article.select("div.solution")) == text.count("Solution to Exercise") > 2
    assert "Show code cell source" not in text
    assert "Skip to main content" not in text
    assert "Download this chapter" not in text
    assert text.count("∂") >= article.get_text().count("∂") > 10  # in equations
    assert sum(len(page.images) for page in pages) >= len(article.select("img[src$='.png']"))
    size = [len(page.extract_text().strip()) + 1000 * len(page.images) for page in pages]
    assert min(size[:-1]) > 200  # no page is nearly empty


def test_the_whole_book_is_one_page_whose_links_lead_inside_it():
    names = paper.chapters(ROOT)
    assert {page.stem for page in PAGES} >= set(names)
    soup = BeautifulSoup(paper.join(SITE, names), "html.parser")
    assert [article["id"] for article in soup.select("article.bd-article")] == names
    assert not soup.find_all("script")
    anchors = {element["id"] for element in soup.select("[id]")}
    inside = [link["href"] for link in soup.select("article a[href^='#']")]
    assert len(inside) > 200
    assert not [link for link in inside if link[1:] not in anchors]
    for link in soup.select("article a[href]"):
        assert not any(link["href"].split("#")[0] == f"{name}.html" for name in names), link
    for image in soup.select("article img"):
        assert (SITE / "book" / image["src"]).is_file()
