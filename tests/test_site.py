"""The site in build/quick-site: pages, links, figures, errors; in a browser maths and folded solutions."""

import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "build" / "quick-site"
PAGES = sorted((SITE / "book").glob("*.html"))
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if not PAGES:
    pytest.skip("no site: make build/quick-site/index.html", allow_module_level=True)
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def parse(page):
    return BeautifulSoup(page.read_text(), "html.parser")


def test_every_chapter_of_the_book_has_a_page():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    chapters = {Path(chapter["file"]).name for chapter in toc["chapters"]}
    assert chapters | {"index"} <= {page.stem for page in PAGES}
    assert (SITE / "index.html").is_file()


@by_page
def test_links_inside_the_site_lead_somewhere(page):
    for tag, key in (("a", "href"), ("img", "src"), ("script", "src"), ("link", "href")):
        for element in parse(page).find_all(tag):
            target = urlsplit(element.get(key) or "")
            if target.scheme or target.netloc or not target.path:
                continue
            assert (page.parent / unquote(target.path)).exists(), element[key]


@by_page
def test_nothing_is_fetched_from_elsewhere(page):
    soup = parse(page)
    for tag, key in (("script", "src"), ("img", "src")):
        for element in soup.find_all(tag):
            assert not urlsplit(element.get(key) or "").netloc, element
    for element in soup.find_all("link", rel="stylesheet"):
        assert not urlsplit(element["href"]).netloc, element


@by_page
def test_figures_have_alternative_text_and_cells_no_errors(page):
    soup = parse(page)
    article = soup.find("article") or soup
    for image in article.find_all("img"):
        assert len(image.get("alt", "")) > 60, image
    assert not soup.select(".cell_output .traceback, .output.traceback")
    assert "Traceback (most recent call last)" not in soup.get_text()
    assert not soup.select(".problematic, .system-message")


def test_chapters_show_their_figures():
    for name, least in (("shape", 3), ("mixed_models", 4), ("arabidopsis", 3), ("senescence", 6)):
        assert len(parse(SITE / "book" / f"{name}.html").select("article figure img")) >= least


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@by_page
def test_in_a_browser_maths_are_set_and_solutions_folded(page, tmp_path):
    command = [
        CHROMIUM,
        *["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"],
        *["--disable-background-networking", "--disable-component-update", "--disable-sync"],
        f"--user-data-dir={tmp_path}",
        "--virtual-time-budget=20000",
        "--dump-dom",
        page.as_uri(),
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    soup = BeautifulSoup(run.stdout, "html.parser")
    assert bool(soup.select("mjx-container")) == bool(parse(page).select(".math"))
    assert not soup.select("mjx-merror")
    visible = soup.find("article").get_text()
    assert "\\frac" not in visible
    for solution in soup.select("div.solution.dropdown, details.solution"):
        folded = solution.name == "details" and not solution.has_attr("open")
        assert folded or "toggle-hidden" in solution.get("class", [])
