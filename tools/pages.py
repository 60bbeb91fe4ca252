"""What the build adds to the pages of the site: a footer, and tables that can be read on any screen."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import nbformat
from bs4 import BeautifulSoup, Tag
from narrow import NAME

from nlmeflow.studies.table import git

NUMBER = re.compile(
    r"^[-+−±≤<>~]*\s*\d[\d,. ]*(e[-+]?\d+)?\s*%?(\s*(±|to|–)\s*[-+−]?[\d,. ]+%?|\s*\([^()]*\))?$"
)
ABSENT = {"", "nan", "NaN", "None", "–", "-", "—"}
FOOTER = "{links of this page}"
FIGURE = re.compile(
    r'(<figure class="align-default"[^>]*>\s*)(<img [^>]*src="([^"]*/)([^"/]*)"[^>]*>)(.*?</figure>)',
    re.DOTALL,
)
STACKED = '<p class="stacked">On this screen the panels stand under each other, left before right.</p>'
PHONE = "(max-width: 600px)"  # as in book.css
QUOTED = re.compile(r'"([\w-]+)"')
OUTPUT = re.compile(r'(<div class="output (?:stream|text_plain)[^"]*)"([^>]*>.*?<pre>)(.*?)</pre>', re.DOTALL)
ALIGNED = re.compile(r"\S  +\S")
NAMED = re.compile(r'<code class="docutils literal notranslate"><span class="pre">([\w./-]+)</span></code>')


def version(root: Path) -> str:
    """Return the version of the package."""
    return str(tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"])


def web_address(root: Path, configured: str) -> str:
    """Return where the repository lies on the web: its origin if that is on GitHub, or what is configured."""
    origin = git(root, "remote", "get-url", "origin") or ""
    match = re.fullmatch(r"(?:https://github\.com/|git@github\.com:)([\w.-]+/[\w.-]+?)(?:\.git)?/?", origin)
    return f"https://github.com/{match[1]}" if match else configured


def commit(root: Path) -> str:
    """Return the commit that the site is built from, or `unknown` outside of a repository."""
    return git(root, "rev-parse", "--short=10", "HEAD") or "unknown"


def cells(row: Tag) -> list[Tag]:
    """Return the cells of a row."""
    return list(row.find_all(["th", "td"]))


def merge_names(table: Tag) -> None:
    """Move the names of the index, for which pandas opens a row of their own, into the row above."""
    rows = table.select("thead tr")
    if len(rows) > 1:
        above, names = cells(rows[-2]), cells(rows[-1])
        texts = [cell.get_text(strip=True) for cell in names]
        levels = max((place + 1 for place, text in enumerate(texts) if text), default=0)
        if 0 < levels < len(names) and len(above) == len(names):
            for place in range(levels):
                above[place].string = texts[place]
            rows[-1].decompose()
    for row in table.select("thead tr"):
        if not row.get_text(strip=True):
            row.decompose()
    for head in table.find_all("thead"):
        if not head.find("tr"):
            head.decompose()
    for cell in table.select("thead th"):
        if not cell.get_text(strip=True) and not cell.find(True):
            cell.name = "td"


def mark(cell: Tag) -> None:
    """Mark a cell as a number's."""
    cell["class"] = " ".join([name for name in cell.get_attribute_list("class") if name] + ["number"])


def align(table: Tag) -> None:
    """Mark the columns of numbers, which the style sheet sets flush right.

    Columns are counted from the right, because names of an index may span rows.
    """
    rows = [cells(row) for row in table.select("tbody tr") if not row.select("[colspan]")]
    heads = [cells(row) for row in table.select("thead tr") if not row.select("[colspan]")]
    for place in range(1, min(map(len, rows), default=0) + 1):
        texts = [row[-place].get_text(" ", strip=True) for row in rows]
        written = [text for text in texts if text not in ABSENT]
        if written and all(NUMBER.match(text) for text in written):
            for row in (*rows, *(head for head in heads if len(head) >= place)):
                mark(row[-place])


def readable(match: re.Match[str]) -> str:
    """Return a table with one header row, numbers flush right, in a box that scrolls."""
    soup = BeautifulSoup(match[0], "html.parser")
    table = soup.find("table")
    assert isinstance(table, Tag)
    merge_names(table)
    align(table)
    table.attrs.pop("border", None)
    return f'<div class="table-box" tabindex="0" role="group" aria-label="Table">{soup}</div>'


def set_tables(page: str) -> str:
    """Return a page with readable tables."""
    page = re.sub(r"<style scoped>.*?</style>\s*", "", page, flags=re.DOTALL)
    return re.sub(r"<table.*?</table>", readable, page, flags=re.DOTALL)


def set_citations(page: str) -> str:
    """Return a page that cites works of many authors, given in part, as those whose authors are all given."""
    return re.sub(r"(<a [^>]*>)([^<>]+) and others, (\d{4})", r"\1\2 <em>et al.</em>, \3", page)


def set_figures(page: str, narrow: set[str]) -> str:
    """Return a page whose figures are others on a phone where there are such, with panels under each other.

    The rest lie in boxes, which scroll where a small screen would shrink their text.
    """

    def boxed(match: re.Match[str]) -> str:
        start, image, folder, name, caption = match.groups()
        if name not in narrow:
            return f'{start}<div class="figure-box">{image}</div>{caption}'
        source = f'<source media="{PHONE}" srcset="{folder}{NAME}/{name} 2x">'
        remark = STACKED if re.search(r"\b(left|right)\b", caption, re.IGNORECASE) else ""
        return f"{start}<picture>{source}{image}</picture>{remark}{caption}"

    return FIGURE.sub(boxed, page)


def set_outputs(page: str) -> str:
    """Return a page whose printed sentences wrap; what blanks align scrolls in its box."""

    def wrapped(match: re.Match[str]) -> str:
        return match[0] if ALIGNED.search(match[3]) else f'{match[1]} sentences"{match[2]}{match[3]}</pre>'

    return OUTPUT.sub(wrapped, page)


@dataclass(frozen=True)
class Repository:
    """The repository at `root`, which is on the web at `address`, in a branch."""

    root: Path
    address: str
    branch: str

    @property
    def name(self) -> str:
        """Its owner and name on GitHub."""
        return self.address.removeprefix("https://github.com/")

    def link(self, words: str, path: str) -> str:
        """Return words as a link to a file or folder."""
        kind = "tree" if (self.root / path).is_dir() else "blob"
        return f'<a class="file" href="{self.address}/{kind}/{self.branch}/{path}">{words}</a>'


def origins(notebook: Path, root: Path) -> list[str]:
    """Return the folders of stored results that a chapter reads, rows of studies first."""
    chapter = nbformat.read(notebook, as_version=4)
    code = "\n".join(cell.source for cell in chapter.cells if cell.cell_type == "code")
    calls = r"(?:rows_of|stored|Results)\(\s*|in \([^)]*"
    called = {name for name in QUOTED.findall(code) if re.search(rf'(?:{calls})"{name}"', code)}
    called |= {"linear" if alone else "core" for alone in re.findall(r"(linear_)?study\.stored\(\)", code)}
    called |= set(re.findall(r'stored_file\(\s*"([\w-]+)/', code))
    places = [f"data/{folder}{name}" for folder in ("studies/", "") for name in sorted(called)]
    return [place for place in places if (root / place).is_dir()]


def set_files(page: str, repository: Repository) -> str:
    """Return a page on which names of the repository's files and folders lead to them."""

    def link(match: re.Match[str]) -> str:
        path = match[1].rstrip("/")
        if "/" in match[1] and not path.startswith(("/", ".")):
            for place in (path, f"nlmeflow/{path}"):
                if (repository.root / place).exists():
                    return repository.link(match[0], place)
        return match[0]

    return NAMED.sub(link, page)


def page_links(name: str, repository: Repository, notebook: Path) -> str:
    """Return the links of one page: to report a fault; of a chapter its notebook, Binder, Colab, results.

    notebook : the executed chapter; a page without code has none there.
    """
    fault = f"{repository.address}/issues/new?title={quote(f'Page {name}: ')}"
    links = [f'<a href="{fault}">Report a fault on this page</a>']
    if notebook.exists():
        place = f"{repository.name}/blob/{repository.branch}/{name}.ipynb"
        binder = f"{repository.name}/{repository.branch}?urlpath=lab/tree/{name}.ipynb"
        links += [
            f'<a href="../_sources/{name}.ipynb" download>Download this chapter, executed</a>',
            f'<a href="https://mybinder.org/v2/gh/{binder}">Run it on Binder</a>',
            f'<a href="https://colab.research.google.com/github/{place}">Open it in Colab</a>',
        ]
        read = [repository.link(path, path) for path in origins(notebook, repository.root)]
        links += [f"Stored results read here: {', '.join(read)}"] if read else []
    return " · ".join(links)


def set_page(page: str, name: str, repository: Repository, notebook: Path, narrow: set[str]) -> str:
    """Return a page of the book with its footer filled; figures, tables, names of files, citations mended.

    narrow : names of the figures that are there for narrow screens, too.
    """
    if FOOTER not in page:
        return page
    filled = page.replace(FOOTER, page_links(name, repository, notebook))
    filled = set_files(filled.replace("{up}", "../" * name.count("/")), repository)
    return set_citations(set_outputs(set_tables(set_figures(filled, narrow))))
