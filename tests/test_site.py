"""The site in build/quick-site: pages, links, tables; in a browser requests, widths, equations, solutions."""

import re
import subprocess
import tomllib
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import matplotlib.pyplot as plt
import pytest
import yaml
from bs4 import BeautifulSoup

import nlmeflow as nf

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "build" / "quick-site"
PAGES = sorted((SITE / "book").glob("*.html"))
MOST_BYTES = (
    1_000_000  # of a page with its style sheets, scripts and fonts, before compression, figures not counted
)
if not PAGES:
    pytest.skip("no site: make build/quick-site/index.html", allow_module_level=True)
# all tests of one page, then those of the next: it is read once, and shown once at each width
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem, scope="module")


@lru_cache(maxsize=4)
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
    for image in soup.find_all("img", src=lambda source: "logo_" not in source):
        assert len(image.get("alt", "")) > 60, image
    assert not soup.select(".cell_output .traceback, .output.traceback")
    assert "Traceback (most recent call last)" not in soup.get_text()
    assert not soup.select(".problematic, .system-message")


def test_chapters_show_their_figures():
    for name, least in (("shape", 3), ("mixed_models", 4), ("arabidopsis", 3), ("senescence", 6)):
        assert len(parse(SITE / "book" / f"{name}.html").select("article figure img")) >= least


@by_page
def test_tables_have_one_header_row_that_says_something_and_numbers_flush_right(page):
    for table in parse(page).select("article table"):
        assert not table.find_parent("table")
        heads = table.select("thead tr")
        assert len(heads) <= 1, table
        assert all(row.get_text(strip=True) for row in heads), table
        assert all(cell.get_text(strip=True) or cell.find(True) for cell in table.select("thead th")), table
        for cell in table.select("tbody td"):
            if re.fullmatch(r"-?\d+\.\d+", cell.get_text(strip=True)):
                column = [row.find_all(["th", "td"])[-1] for row in table.select("tbody tr")]
                alone = all(re.fullmatch(r"-?[\d.]+|nan", one.get_text(strip=True)) for one in column)
                assert "number" in cell.get("class", []) or not alone or cell not in column


def test_references_are_labelled_as_the_text_cites_them():
    soup = parse(SITE / "book" / "references.html")
    assert soup.select_one("#references h1, #references > h1")
    labels = {label.get_text().strip("[]") for label in soup.select(".citation > .label")}
    assert len(labels) > 20
    assert all(re.fullmatch(r"[^\d]+, \d{4}[a-z]?", label) for label in labels)
    cited = {
        link.get_text()
        for page in PAGES
        for link in parse(page).select("article a.reference.internal[title]")
        if re.search(r", \d{4}$", link.get_text())
    }
    assert cited
    assert cited <= labels


@by_page
def test_every_page_says_what_it_is_made_of_and_how_to_cite_or_mend_it(page):
    footer = parse(page).select_one(".extra_footer")
    links = {link.get_text(): link["href"] for link in footer.find_all("a")}
    repository = links["Repository"]
    assert repository.startswith("https://github.com/")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"nlmeflow {version}, commit" in footer.get_text()
    commit = footer.find("a", href=re.compile("/commit/")).get_text()
    command = ["git", "-C", str(ROOT), "rev-parse", "--verify", f"{commit}^{{commit}}"]
    assert commit == "unknown" or subprocess.run(command, capture_output=True).returncode == 0
    assert links["MIT licence"].endswith("/LICENSE")
    assert parse(page.parent / links["How to cite"].split("#")[0]).find(id="how-to-cite")
    assert links["Report a fault on this page"].startswith(f"{repository}/issues/new?title=")
    if (ROOT / "book" / f"{page.stem}.ipynb").exists():
        notebook = (page.parent / links["Download this chapter, executed"]).read_text()
        assert '"output_type"' in notebook
        for name in ("Run it on Binder", "Open it in Colab"):
            assert f"book/{page.stem}.ipynb" in links[name]
            assert repository.removeprefix("https://github.com/") in links[name]
    assert "{" not in footer.get_text()


@by_page
def test_a_page_asks_for_little_and_only_here_and_its_console_is_silent(page, browser, site):
    browser.look(f"{site}/book/{page.name}")
    assert browser.complaints == []
    sizes = {url: size for url, size in browser.bytes().items() if not url.startswith("data:")}
    assert all(url.startswith(site) for url in sizes)
    assert sizes[f"{site}/book/{page.name}"] >= page.stat().st_size
    assert sum(size for url, size in sizes.items() if "/_images/" not in url) < MOST_BYTES


WIDER = """(() => {
  const scrolls = (element) => {
    for (let above = element.parentElement; above.tagName !== "MAIN"; above = above.parentElement)
      if (["auto", "scroll"].includes(getComputedStyle(above).overflowX)) return true;
    return false;
  };
  const wide = (element) => {
    const box = element.getBoundingClientRect();
    return box.width > 1 && (box.right > innerWidth + 1 || box.left < -1);
  };
  return [...document.querySelectorAll("main *")]
    .filter((e) => !e.closest("mjx-assistive-mml, #pst-secondary-sidebar, svg") && wide(e) && !scrolls(e))
    .map((e) => e.outerHTML.slice(0, 200));
})()"""


# equations that begin left of their box, where no scrolling leads
CUT = """[...document.querySelectorAll("div.math mjx-math")]
  .filter((e) => e.getBoundingClientRect().left < e.closest("div.math").getBoundingClientRect().left - 1)
  .map((e) => e.closest("div.math").outerHTML.slice(0, 200))"""


@pytest.mark.parametrize("width", [1280, 390])
@by_page
def test_nothing_is_wider_than_the_screen_unless_it_scrolls_in_its_box(page, width, browser, site):
    browser.look(f"{site}/book/{page.name}", width=width)
    assert browser.ask("document.documentElement.scrollWidth") <= width
    assert browser.ask(WIDER) == []
    assert browser.ask(CUT) == []
    assert (
        browser.ask("""[...document.querySelectorAll("article table .number")]
        .filter((e) => getComputedStyle(e).textAlign !== "right").length""")
        == 0
    )
    code = "div.cell_input pre, div.highlight-python pre, div.highlight-bash pre"
    if width == 1280:
        code += ", div.output pre, .table-box"
    assert (
        browser.ask(f"""[...document.querySelectorAll("{code}")]
        .filter((e) => e.clientWidth && e.scrollWidth > e.clientWidth + 1).map((e) => e.textContent)""")
        == []
    )


GOES_ON = """[...document.querySelectorAll(
    ".table-box, .figure-box, div.output:not(.sentences) pre, div.math > mjx-container")]
    .filter((e) => e.checkVisibility()).map((e) => [e.scrollWidth > e.clientWidth + 1,
                                               getComputedStyle(e).maskImage !== "none"])"""


@by_page
def test_on_a_phone_what_goes_on_to_the_right_fades_there(page, browser, site):
    browser.look(f"{site}/book/{page.name}", width=390)
    for wider, fades in browser.ask(GOES_ON):
        assert wider == fades


@by_page
def test_text_of_figures_can_be_read_on_a_phone(page, browser, site):
    browser.look(f"{site}/book/{page.name}", width=390)
    with plt.rc_context():
        nf.notebook.style()
        drawn = plt.rcParams["font.size"] / 72 * plt.rcParams["figure.dpi"]  # pixels of a figure's letters
    shrunk = browser.ask(
        """[...document.querySelectorAll("figure.align-default img")]
        .map((e) => [e.closest("figure").id, e.clientWidth / e.naturalWidth])"""
    )
    assert [one for one in shrunk if one[1] * drawn < 9] == []


@by_page
def test_figures_are_whole_on_a_phone(page, browser, site):
    """Panels stand under each other; pictures that are stored in data/, shown without it, may scroll."""
    figures = """[...document.querySelectorAll("figure.align-default img")]
        .filter((e) => !e.closest(".figure-box"))
        .map((e) => [e.currentSrc.includes("/narrow/"), e.clientWidth <= innerWidth, e.naturalWidth > 0])"""
    browser.look(f"{site}/book/{page.name}", width=390)
    assert all(one == [True, True, True] for one in browser.ask(figures))
    if page.stem not in ("arabidopsis", "senescence"):
        assert browser.ask("document.querySelectorAll('.figure-box').length") == 0
    browser.look(f"{site}/book/{page.name}", width=1280)
    assert all(one == [False, True, True] for one in browser.ask(figures))


def test_names_of_files_lead_to_them_and_a_chapter_to_the_results_that_it_reads():
    links = {link.get_text(): link["href"] for link in parse(SITE / "book" / "trust.html").select("a.file")}
    assert links["data/studies/band_coverage"].endswith("/tree/main/data/studies/band_coverage")
    rows = {path.name for path in (ROOT / "data" / "studies").iterdir()}
    for page in PAGES:
        shown = parse(page).select("a.file")
        for link in shown:
            repository, _, path = re.sub("/(blob|tree)/", "/blob/", link["href"]).partition("/blob/main/")
            assert repository.startswith("https://github.com/")
            assert (ROOT / path).exists(), link
        notebook = ROOT / "book" / f"{page.stem}.ipynb"
        read = set(re.findall(r'rows_of\(\\"([\w-]+)', notebook.read_text())) if notebook.exists() else set()
        assert read & rows <= {link.get_text().rpartition("/")[2] for link in shown}


@by_page
def test_equations_are_set_and_screen_readers_have_them(page, browser, site):
    browser.look(f"{site}/book/{page.name}")
    written = len(parse(page).select("article .math"))
    assert browser.ask("document.querySelectorAll('article .math mjx-container').length") >= written
    assert browser.ask("document.querySelectorAll('article .math mjx-assistive-mml math').length") >= written
    assert (
        browser.ask("""[...document.querySelectorAll("article .math mjx-container")]
        .filter((e) => e.offsetParent && !(e.getBoundingClientRect().width > 3)).length""")
        == 0
    )
    if written:
        assert browser.ask(
            "[...document.fonts].some((f) => f.family.startsWith('MJX') && f.status === 'loaded')"
        )
        assert not browser.ask("[...document.fonts].some((f) => f.status === 'error')")
    for text in parse(page).find("article").find_all(string=True):
        assert text.find_parent(["code", "pre", "script"]) or not re.search(r"\\\(|\\\[|\\frac|\$\\", text)


CONTRASTS = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const colour = (text) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = (c) => {
    const [r, g, b] = c.slice(0, 3).map((v) => v / 255)
      .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const found = colour(getComputedStyle(at).backgroundColor);
      if (found[3] === 255) return found;
    }
    return [255, 255, 255, 255];
  };
  const texts = "figcaption p, figcaption, caption, .caption-text, .extra_footer p, .extra_footer a, "
    + ".legend, .reading";
  return [...document.querySelectorAll(texts)].map((e) => {
    const [a, b] = [luminance(colour(getComputedStyle(e).color)), luminance(behind(e))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  });
})()"""


@pytest.mark.parametrize("theme", ["light", "dark"])
@by_page
def test_captions_can_be_read_in_both_modes(page, theme, browser, site):
    browser.look(f"{site}/book/{page.name}", theme=theme)
    assert browser.ask("document.documentElement.dataset.theme") == theme
    assert min(browser.ask(CONTRASTS)) >= 4.5
    assert (
        browser.ask(
            "Math.min(...[...document.querySelectorAll('figcaption p')].map("
            "(e) => Number(getComputedStyle(e).fontWeight)).concat(400))"
        )
        >= 400
    )


FOCUSED = """(() => {
  document.addEventListener("focusin", (event) => { event.target.dataset.reached = "yes"; });
  return document.querySelectorAll("a[href], button, summary, input, [tabindex]").length;
})()"""
REACHABLE = "main :is(a[href], button, summary, input, [tabindex='0']):not([tabindex='-1'])"


@by_page
def test_the_keyboard_reaches_every_link_button_fold_and_slider(page, browser, site):
    browser.open(f"{site}/book/{page.name}")
    for _ in range(browser.ask(FOCUSED) + 10):
        browser.press("Tab")
    # subsections in the list of contents at the side are shown while their section is on the screen
    missed = f"""[...document.querySelectorAll("{REACHABLE}")].filter((e) => !e.closest(".page-toc li ul"))
        .filter((e) => e.checkVisibility({{visibilityProperty: true}}) && !e.disabled && !e.dataset.reached)
        .map((e) => e.outerHTML.slice(0, 200))"""
    assert browser.ask(missed) == []


@by_page
def test_solutions_are_folded_and_open_by_keyboard(page, browser, site):
    browser.open(f"{site}/book/{page.name}")
    solutions = browser.ask("document.querySelectorAll('div.solution.dropdown').length")
    assert solutions == len(parse(page).select("div.solution.dropdown"))
    assert solutions == browser.ask("document.querySelectorAll('div.solution.dropdown.toggle-hidden').length")
    if solutions:
        assert browser.offers("div.solution.dropdown button.toggle-button")
        browser.press("Enter")
        assert (
            browser.ask("document.querySelectorAll('div.solution.dropdown.toggle-hidden').length")
            == solutions - 1
        )
        browser.press("Enter")
        assert (
            browser.ask("document.querySelectorAll('div.solution.dropdown.toggle-hidden').length")
            == solutions
        )
