"""Write the still pictures of the interactive figures, as pages show them without scripts.

python tests/stills.py
"""

import tempfile
from pathlib import Path

from browser import served, started

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"coupling": "flows", "recovery": "how_many_plants"}
STYLED = (
    "fill",
    "fill-opacity",
    "stroke",
    "stroke-width",
    "stroke-dasharray",
    "opacity",
    "font-size",
    "text-anchor",
)
DRAWN = """(() => {
  const styled = %s, panels = [...document.querySelectorAll("figure[data-interactive=%s] .pictures > svg")];
  const width = panels[0].viewBox.baseVal.width, height = panels[0].viewBox.baseVal.height;
  const groups = panels.map((panel, i) => {
    const copy = panel.cloneNode(true), to = copy.querySelectorAll("*");
    panel.querySelectorAll("*").forEach((from, j) => {
      if (!["g", "clipPath"].includes(from.tagName))
        styled.forEach((name) => to[j].setAttribute(name, getComputedStyle(from).getPropertyValue(name)));
    });
    const inside = copy.innerHTML.replaceAll(/clip-[a-z0-9]+/g,
      (word) => word === "clip-path" ? word : `clip${i}`);
    return `<g transform="translate(${i * width} 0)">${inside}</g>`;
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${panels.length * width} ${height}" `
    + `font-family="sans-serif"><rect width="100%%" height="100%%" fill="#fff"/>${groups.join("")}</svg>\\n`;
})()"""


def still(browser, name):
    """The picture of a figure as it opens, with its colours."""
    return browser.ask(DRAWN % (list(STYLED), name))


if __name__ == "__main__":
    with (
        tempfile.TemporaryDirectory() as profile,
        served(ROOT / "build" / "quick-site") as site,
        started(Path(profile)) as tab,
    ):
        for figure, page in PAGES.items():
            tab.open(f"{site}/book/{page}.html")
            (ROOT / "book" / "interactive" / f"{figure}.svg").write_text(still(tab, figure))
