"""What a chapter needs besides the subject: strict parameters, results that can be stored, versions."""

import ast
import json
import os
import platform
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

DATA = Path(__file__).resolve().parents[2] / "data"  # beside the package, where it lies in its repository
STORE = "NLMEFLOW_STORE"


def stored_file(name: str) -> Path:
    """Return the path of a file that the project computed and keeps in its folder data/.

    Raises
    ------
    FileNotFoundError : the package was installed without its repository, which holds these files.

    """
    if not (path := DATA / name).is_file():
        raise FileNotFoundError(
            f"No stored results '{name}': they lie in the folder data/ of the project's repository, and the "
            "package runs without it. Work in a clone of the repository, or compute them again."
        )
    return path


def check_parameters(executed: Sequence[str]) -> None:
    """Raise NameError when papermill set a name that the parameters cell does not have.

    Called in the cell after the parameters with IPython's `In`: its last element is the calling
    cell, the one before it is papermill's injected cell if there is one, else the parameters.
    """
    if len(executed) < 3 or not executed[-2].startswith("# Parameters"):
        return  # the defaults, or a runner that keeps no history
    known, given = _assigned(executed[-3]), _assigned(executed[-2])
    unknown = [name for name in given if name not in known]
    if unknown:
        raise NameError(
            f"This notebook has no parameter {', '.join(unknown)}; its parameters are {', '.join(known)}."
        )


def _assigned(source: str) -> list[str]:
    """Return the names that a cell assigns, in order."""
    names = []
    for statement in ast.parse(source).body:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        names += [target.id for target in targets if isinstance(target, ast.Name)]
    return names


class Results:
    """A chapter's figures and tables: computed when `live`, read from data/<name> when not.

    With the environment variable NLMEFLOW_STORE set, what is computed is also stored.
    """

    def __init__(self, name: str, live: bool) -> None:
        self.folder = DATA / name
        self.live = live
        self.storing = live and bool(os.environ.get(STORE))

    def figure(self, name: str, make: Callable[[], Any]) -> Any:
        """Show a figure."""
        path = self.folder / f"{name}.png"
        if not self.live:
            from IPython.display import Image

            return Image(filename=str(stored_file(f"{self.folder.name}/{name}.png")))
        import matplotlib.pyplot as plt

        figure = make()
        if self.storing:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=110, metadata={"Software": ""})
        plt.show()
        return None

    def table(self, name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """Return a table."""
        path = self.folder / f"{name}.csv"
        if not self.live:
            path = stored_file(f"{self.folder.name}/{name}.csv")
            return pd.read_csv(path, index_col=0, keep_default_na=False)
        frame = make()
        if self.storing:
            path.parent.mkdir(parents=True, exist_ok=True)
            frame.to_csv(path)
        return frame

    def sidecar(self, **about: Any) -> None:
        """Store how the results came about: parameters and versions."""
        if self.storing:
            text = json.dumps({**about, "versions": versions()}, indent=2, default=str)
            (self.folder / "how.json").write_text(text + "\n")


def versions() -> dict[str, str]:
    """Return the versions that a result depends on: of Python, and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for name in ("nlmeflow", "torch", "zuko", "numpy", "scipy", "pandas", "matplotlib"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def style() -> None:
    """Set the book's figure style."""
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "figure.figsize": (7.5, 4.2),
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "font.size": 10.5,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
        }
    )
