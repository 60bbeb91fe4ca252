"""Figures for narrow screens: while a chapter is executed, each figure is kept a second time for a phone.

The panels stand under each other, as wide as a phone; letters keep their size. The file is named by the
SHA-256 of the figure that the page shows, which is how the build finds it (`tools/pages.py`).
"""

import base64
import hashlib
import os
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

NAME = "narrow"  # of their folder beside the executed chapters, and beside the images of the site
FOLDER = "NLMEFLOW_NARROW_FIGURES"
WIDTH = 3.6  # inches; a phone of 390 pixels shows it with 100 pixels an inch
DOTS = 200  # an inch: two for each pixel
LETTER = 0.075  # of a title or a label, inches
LOWEST, HIGHEST = 0.6, 1.1  # height of a panel over its width


def wrap(text: Any, room: float) -> None:
    """Break a title or a label into lines of so many inches."""
    lines = [textwrap.wrap(part, int(room / LETTER)) or [""] for part in text.get_text().split("\n")]
    text.set_text("\n".join(line for part in lines for line in part))


def label_all(panels: list[Any]) -> None:
    """Give each panel the title, labels and numbers that it shares with others in its row or column."""
    for panel in panels:
        place = panel.get_subplotspec()
        row = [one for one in panels if one.get_subplotspec().rowspan == place.rowspan]
        column = [one for one in panels if one.get_subplotspec().colspan == place.colspan]
        panel.tick_params(labelleft=True, labelbottom=True)
        panel.set_title(panel.get_title() or first(one.get_title() for one in column))
        panel.set_ylabel(panel.get_ylabel() or first(one.get_ylabel() for one in row))
        panel.set_xlabel(panel.get_xlabel() or first(one.get_xlabel() for one in reversed(column)))


def first(texts: Iterable[str]) -> str:
    """Return the first text that is not empty, or an empty one."""
    return next(filter(None, texts), "")


def move(legend: Any, owner: Any, **place: Any) -> int:
    """Draw a legend anew where it hides nothing; return how many rows it has."""
    names = [textwrap.fill(text.get_text(), 32) for text in legend.get_texts()]
    columns = 2 if max(map(len, names)) < 14 else 1
    title = legend.get_title().get_text() or None
    legend.remove()
    look = {"ncols": columns, "fontsize": "small", "frameon": False, "borderaxespad": 0.0}
    owner.legend(legend.legend_handles, names, title=title, **look, **place)
    return -(-sum(name.count("\n") + 1 for name in names) // columns)


def stack(figure: Any) -> None:
    """Set the panels of a figure under each other."""
    from matplotlib.gridspec import GridSpec

    panels = [one for one in figure.axes if one.get_subplotspec() is not None]
    wide, high = figure.get_size_inches()
    ratios = []
    for panel in panels:
        box = panel.get_position(original=True)
        ratios.append(min(max(box.height * high / (box.width * wide), LOWEST), HIGHEST))
    if len({panel.get_subplotspec().colspan.start for panel in panels}) > 1:
        label_all(panels)
        grid = GridSpec(len(panels), 1, figure, height_ratios=ratios)
        for place, panel in enumerate(panels):
            panel.set_subplotspec(grid[place])
    heights, rows = [0.8 * WIDTH * ratio for ratio in ratios], 0
    for panel, height in zip(panels, heights, strict=True):
        wrap(panel.title, 0.85 * WIDTH)
        wrap(panel.xaxis.label, 0.85 * WIDTH)
        wrap(panel.yaxis.label, height)
        if legend := panel.get_legend():
            down = 0.5 + 0.17 * panel.get_xlabel().count("\n")  # under the numbers and the label of the axis
            rows += move(legend, panel, loc="upper left", bbox_to_anchor=(0, -down / height))
    rows += sum(move(legend, figure, loc="outside lower center") for legend in list(figure.legends))
    figure.set_layout_engine("constrained")
    figure.set_size_inches(WIDTH, 0.3 + 0.22 * rows + sum(height + 0.7 for height in heights))


def install() -> None:
    """Have every figure that IPython shows kept for phones, in the folder that the environment names.

    The figure itself is changed, after it was shown: IPython closes it then.
    """
    from IPython.core import pylabtools

    folder = Path(os.environ[FOLDER])
    draw: Callable[..., Any] = pylabtools.print_figure

    def print_figure(figure: Any, *args: Any, **kwargs: Any) -> Any:
        shown = draw(figure, *args, **kwargs)
        stack(figure)
        name = hashlib.sha256(base64.b64decode(shown)).hexdigest()
        figure.savefig(folder / f"{name}.png", dpi=DOTS, bbox_inches="tight", pad_inches=0.05)
        return shown

    pylabtools.print_figure = print_figure  # type: ignore[assignment]
