"""Set the equations of the site when it is built, so that no page has to load a typesetter.

MathJax runs in an embedded JavaScript engine and writes HTML for its own fonts, beside it MathML, which
screen readers read. All pages share one style sheet, of the characters that they use, and the fonts it names.
"""

import html
import json
import re
from importlib.util import find_spec
from pathlib import Path

import quickjs

PARTS = (
    *("startup", "core", "adaptors/liteDOM", "input/tex-base", "input/tex/extensions/ams"),
    *("input/tex/extensions/newcommand", "output/chtml", "output/chtml/fonts/tex"),
)
BEFORE = """
var quiet = () => {}, console = {log: quiet, warn: quiet, error: quiet, info: quiet};
globalThis.setTimeout = f => { Promise.resolve().then(f); return 0; };
globalThis.clearTimeout = quiet;
globalThis.MathJax = {
  loader: {load: []},
  startup: {typeset: false, input: ["tex"], output: "chtml", adaptor: "liteAdaptor", ready: quiet},
  tex: {packages: ["base", "ams", "newcommand"]},
  chtml: {fontURL: ".", adaptiveCSS: true},
};
"""
AFTER = """
MathJax.startup.getComponents();
MathJax.startup.makeMethods();
function set(tex, display) {
  const adaptor = MathJax.startup.adaptor;
  const drawn = adaptor.outerHTML(MathJax.tex2chtml(tex, {display, em: 16, ex: 8, containerWidth: 1280}));
  return JSON.stringify([drawn, MathJax.tex2mml(tex, {display})]);
}
const style = () => MathJax.startup.adaptor.textContent(MathJax.chtmlStylesheet());
"""
HIDDEN = (
    "mjx-assistive-mml{position:absolute!important;top:0;left:0;clip:rect(1px,1px,1px,1px);width:1px;height:1px;"
    "overflow:hidden!important;white-space:nowrap}mjx-container{position:relative}"
)
FOLLOWED = re.compile(r'(<span class="math [^"]*">(?:(?!</span>).)*</span>)([.,;:)]+)', re.DOTALL)
MATHS = re.compile(r'(<(span|div) class="[^"]*\bmath\b[^"]*"[^>]*>)(.*?)(</\2>)', re.DOTALL)
TEX = re.compile(r"\\\((?P<inline>.*)\\\)|\\\[(?P<display>.*)\\\]", re.DOTALL)


def mathjax() -> Path:
    """Return the folder of MathJax, which a package for Sphinx brings."""
    found = find_spec("sphinx-mathjax-offline")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "static" / "mathjax"


class Typesetter:
    """MathJax without a browser."""

    def __init__(self) -> None:
        self.engine = quickjs.Context()
        self.engine.set_max_stack_size(1 << 26)
        self.engine.eval(BEFORE)
        for part in PARTS:
            self.engine.eval((mathjax() / f"{part}.js").read_text())
            while self.engine.execute_pending_job():
                pass
        self.engine.eval(AFTER)

    def set(self, tex: str, display: bool) -> str:
        """Return an equation as HTML.

        Raises
        ------
        ValueError : MathJax does not understand it.

        """
        drawn: str
        mathml: str
        drawn, mathml = json.loads(self.engine.get("set")(tex, display))
        if "<merror" in mathml or "mjx-merror" in drawn:
            raise ValueError(f"MathJax does not understand {tex!r}")
        hidden = re.sub(r"\s*\n\s*", "", mathml)
        drawn = drawn.replace("<mjx-math", '<mjx-math aria-hidden="true"', 1)
        kind = "block" if display else "inline"
        assistive = f'<mjx-assistive-mml display="{kind}">{hidden}</mjx-assistive-mml>'
        return drawn.replace("</mjx-container>", f"{assistive}</mjx-container>")

    def style(self) -> str:
        """Return the style sheet of all that was set."""
        return str(self.engine.eval("style()")) + HIDDEN


def set_page(page: str, typesetter: Typesetter, up: str = "") -> str:
    """Return a page with its equations set, and with their style sheet, `up` folders above, if it has any."""

    def one(match: re.Match[str]) -> str:
        tex = html.unescape(match["inline"] if match["inline"] is not None else match["display"])
        return typesetter.set(tex.strip(), match["display"] is not None)

    def element(match: re.Match[str]) -> str:
        return match[1] + TEX.sub(one, match[3]) + match[4]

    done = MATHS.sub(element, page)
    done = FOLLOWED.sub(r'<span class="kept-together">\1\2</span>', done)
    link = f'<link rel="stylesheet" href="{up}_static/mathjax/mathjax.css" />\n</head>'
    return page if done == page else done.replace("</head>", link, 1)


def write_style(typesetter: Typesetter, folder: Path) -> None:
    """Write the style sheet of all equations that were set, and its fonts, into a new folder."""
    folder.mkdir(parents=True)
    style = typesetter.style()
    for name in sorted(set(re.findall(r"MathJax_[\w-]+\.woff", style))):
        font = mathjax() / "output" / "chtml" / "fonts" / "woff-v2" / name
        (folder / name).write_bytes(font.read_bytes())
    (folder / "mathjax.css").write_text(style)
