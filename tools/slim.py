"""Take from the site's own files what no page uses: rules of style sheets, icons, a live-code program."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from fontTools import subset
from fontTools.ttLib import TTFont

WORD = re.compile(r"[\w-]+")
CLASS = re.compile(r"\.(-?[A-Za-z_][\w-]*)")
CHARACTER = re.compile(r'content:\s*"\\([0-9a-f]{2,6})"')
ICONS = re.compile(r"url\([^)]*?(fa-[a-z]+-\d+)\.woff2\)[^;}]*")
LIVE_CODE = (
    r"<script>const THEBE_JS_URL.*?</script>\s*",
    r"<script[^>]*sphinx-thebe\.js[^>]*></script>\s*",
    r"<link[^>]*sphinx-thebe\.css[^>]*/>\s*",
    r'<script type="text/x-thebe-config">.*?</script>\s*',
    r"<script>kernelName = .*?</script>\s*",
)
PROGRAMS = (  # icons are drawn by their font, equations are set already, and search has a page of its own
    r'<script src="\.\./(?:_static/(?:searchtools|language_data)|searchindex)\.js[^"]*"></script>\s*',
    r"<!-- So that users can add custom icons -->\s*<script[^>]*fontawesome\.js[^>]*></script>\s*",
    r"<script>window\.MathJax = .*?</script>\s*",
    r"<script[^>]*(?:mathjax|MathJax)[^>]*></script>\s*",
)


def slim_page(page: str) -> str:
    """Return a page without programs that it does not use, and in light colours where none runs."""
    for pattern in (*LIVE_CODE, *PROGRAMS):
        page = re.sub(pattern, "", page, flags=re.DOTALL)
    page = page.replace('data-theme="auto"', 'data-theme="light"', 1)  # where scripts do not run
    twice = "<script>var togglebuttonSelector = '.toggle, .admonition.dropdown';</script>"
    first, *others = page.split(twice)
    return first + (twice if others else "") + "".join(others)


def parts(text: str, separator: str) -> list[str]:
    """Split at commas, say, that stand in no parentheses."""
    found, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == separator and depth == 0:
            found.append("")
        else:
            found[-1] += letter
    return found


def rules(sheet: str) -> Iterator[tuple[str, str | None]]:
    """Split a style sheet into rules, a selector and what its braces hold, and statements without braces."""
    place = 0
    while match := re.compile(r"[^{};]*[{;]").match(sheet, place):
        head, place = match[0], match.end()
        if head.endswith(";"):
            yield head, None
            continue
        depth, start = 1, place
        while depth:
            brace = re.compile(r"[{}]").search(sheet, place)
            assert brace is not None, head
            depth += 1 if brace[0] == "{" else -1
            place = brace.end()
        yield head[:-1], sheet[start : place - 1]


def used(selector: str, words: set[str]) -> bool:
    """Return whether all classes of a selector are words of the site; those in :not() do not count."""
    bare = re.sub(r":(?:not|is|where|has)\((?:[^()]|\([^()]*\))*\)", "", selector)
    return set(CLASS.findall(bare)) <= words


def slim_sheet(sheet: str, words: set[str]) -> str:
    """Return a style sheet without rules for classes that are nowhere in the site."""
    kept = []
    for head, body in rules(re.sub(r"/\*.*?\*/", "", sheet, flags=re.DOTALL)):
        name = head.strip()
        if body is None:
            kept.append(head)
        elif name.startswith(("@media", "@supports", "@layer", "@container")):
            inside = slim_sheet(body, words)
            if inside.strip():
                kept.append(f"{name}{{{inside}}}")
        elif name.startswith("@"):
            kept.append(f"{name}{{{body}}}")
        else:
            selectors = [one for one in parts(name, ",") if used(one, words)]
            if selectors:
                kept.append(f"{','.join(selectors)}{{{body}}}")
    return "".join(kept)


def slim_font(source: Path, target: Path, characters: set[int]) -> bool:
    """Write a font of some characters; return whether it has any of them."""
    font = TTFont(source)
    held = characters & set(font.getBestCmap())
    if held:
        options = subset.Options(flavor="woff", layout_features=[], hinting=False)
        chooser = subset.Subsetter(options)
        chooser.populate(unicodes=held)
        chooser.subset(font)
        font.flavor = "woff"
        font.save(target)
    return bool(held)


def slim_icons(sheet: str, folder: Path) -> str:
    """Write fonts of the icons that a style sheet shows, and return the sheet with their names."""
    characters = {int(code, 16) for code in CHARACTER.findall(sheet)}

    def face(match: re.Match[str]) -> str:
        name = ICONS.search(match[0])
        if name is None:
            return match[0]
        if not slim_font(folder / f"{name[1]}.ttf", folder / f"{name[1]}.woff", characters):
            return ""
        address = f'url(../vendor/fontawesome/webfonts/{name[1]}.woff) format("woff")'
        return ICONS.sub(lambda _: address, match[0])

    return re.sub(r"@font-face\{[^}]*\}", face, sheet)


def slim_static(static: Path, pages: Iterable[str]) -> None:
    """Slim the style sheets and icons in the folder of static files to what the pages use."""
    for unwanted in ("scripts/fontawesome.js", "sphinx-thebe.js", "sphinx-thebe.css"):
        (static / unwanted).unlink(missing_ok=True)
    for unused in static.rglob("*.map"):
        unused.unlink()
    programs = [path for path in static.rglob("*.js") if "mathjax" not in path.parts]
    texts = (*pages, *(path.read_text() for path in programs))
    words = {word for text in texts for word in WORD.findall(text)}
    icons = static / "vendor" / "fontawesome" / "webfonts"
    for path in static.rglob("*.css"):
        sheet = slim_sheet(path.read_text(), words)
        if path.name == "pydata-sphinx-theme.css":
            sheet = slim_icons(sheet, icons)
        path.write_text(sheet)
    for font in (*icons.glob("*.ttf"), *icons.glob("*.woff2")):
        font.unlink()
