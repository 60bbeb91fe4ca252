"""Print the book: join the pages of the site into one, and let a headless Chromium make a PDF of it."""

import argparse
import re
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml
from bs4 import BeautifulSoup, Tag

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--no-pdf-header-footer", "--generate-pdf-document-outline"),
)
PATIENCE = 600  # seconds


def chapters(root: Path) -> list[str]:
    """Return the names of the book's pages in their order."""
    contents = yaml.safe_load((root / "_toc.yml").read_text())
    return [Path(name).name for name in (contents["root"], *(one["file"] for one in contents["chapters"]))]


def article(page: Path, names: list[str]) -> Tag:
    """Return the article of a page; its anchors and links hold in a page of all articles."""
    found = BeautifulSoup(page.read_text(), "html.parser").select_one("article.bd-article")
    assert found is not None
    for element in found.find_all(id=True):
        element["id"] = f"{page.stem}--{element['id']}"
    found["id"] = page.stem
    for link in found.find_all("a", href=True):
        match = re.fullmatch(r"(?:([\w-]+)\.html)?(?:#(.+))?", str(link["href"]))
        name = (match[1] or page.stem) if match else ""
        if match and name in names:
            link["href"] = f"#{name}--{match[2]}" if match[2] else f"#{name}"
    for heading in found.select("h1, h2, h3"):
        for link in heading.select("a.headerlink"):
            link.decompose()
        if not heading.select(":not(.section-number)"):  # one piece of text: the outline repeats pieces
            heading.string = heading.get_text()
    for still in found.find_all("noscript"):
        still.unwrap()
    for program in found.find_all("script"):
        program.decompose()
    return found


def join(site: Path, names: list[str]) -> str:
    """Return one page with the articles of all pages of a site, for the folder `book` of the site."""
    whole = BeautifulSoup((site / "book" / f"{names[0]}.html").read_text(), "html.parser")
    place = whole.select_one("article.bd-article")
    assert place is not None
    for program in whole.find_all("script"):
        program.decompose()
    parts = [article(site / "book" / f"{name}.html", names) for name in names]
    place.replace_with(*parts)
    return str(whole)


def chromium() -> str:
    """Return the program that prints.

    Raises
    ------
    SystemExit : there is none on this machine.

    """
    for name in PROGRAMS:
        if found := shutil.which(name):
            return found
    raise SystemExit(
        "Printing needs Chromium or Chrome. Install it, or print single pages from your browser."
    )


def to_pdf(page: Path, target: Path) -> None:
    """Print a page into a PDF."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as profile:
        options = (*OPTIONS, f"--user-data-dir={profile}", f"--print-to-pdf={target.resolve()}")
        command = [chromium(), *options, page.resolve().as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("site", type=Path)
    parser.add_argument("pdf", type=Path)
    arguments = parser.parse_args()
    whole = arguments.site / "book" / "whole-book.html"
    whole.write_text(join(arguments.site, chapters(ROOT)))
    try:
        to_pdf(whole, arguments.pdf)
    finally:
        whole.unlink()


if __name__ == "__main__":
    main()
