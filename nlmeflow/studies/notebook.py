"""What a chapter needs besides the subject: strict parameters, results that can be stored, versions."""

import ast
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

from nlmeflow.arguments import checked
from nlmeflow.errors import ModelError

DATA = Path(__file__).resolve().parents[2] / "data"  # beside the package, where it lies in its repository
STORE = "NLMEFLOW_STORE"
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]


@checked
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


def check_parameters(executed: Sequence[str], **accepted: Any) -> None:
    """Refuse parameters that the chapter does not have, and values that it cannot use.

    Called in the cell after the parameters with IPython's `In`: its last element is the calling
    cell, the one before it is papermill's injected cell if there is one, else the parameters.

    accepted : by name the least and the largest value, two integers where the parameter is one, else two
        floats, and None after them where there may be no value; or bool, str, or a list of words.

    Raises
    ------
    NameError : papermill set a name that the parameters cell does not have.
    ModelError : a value is of another type, or out of its range. A notebook shows both in one line.

    """
    try:
        _check(executed, accepted)
    except (NameError, ModelError) as error:
        line = f"{type(error).__name__}: {error}"
        error._render_traceback_ = lambda: [line]  # type: ignore[union-attr]
        raise


def _check(executed: Sequence[str], accepted: Mapping[str, Any]) -> None:
    if len(executed) < 3:
        return  # a runner that keeps no history
    injected = _assigned(executed[-2]) if executed[-2].startswith("# Parameters") else {}
    declared = _assigned(executed[-3 if injected else -2])
    unknown = [name for name in injected if name not in declared]
    if unknown:
        raise NameError(
            f"This notebook has no parameter {', '.join(unknown)}; its parameters are {', '.join(declared)}."
        )
    for name, value in {**declared, **injected}.items():
        if name in accepted:
            _check_value(name, value, accepted[name])


def _check_value(name: str, value: object, accepted: Any) -> None:
    """Raise ModelError unless a value is of the type, and in the range, that `check_parameters` accepts."""
    if accepted in (bool, str):
        good, words = isinstance(value, accepted), "True or False" if accepted is bool else "text"
    elif isinstance(accepted, list):
        good, words = value in accepted, f"one of {', '.join(accepted)}"
    else:
        low, high, *nothing = accepted
        kinds = int if isinstance(low, int) else int | float
        good = isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high
        good = good or (value is None and bool(nothing))
        words = f"{'an integer' if kinds is int else 'a number'} from {low:,} to {high:,}"
        words += ", or None" if nothing else ""
    if not good:
        raise ModelError(f"{name} is {words}; got {value!r}.")


def _assigned(source: str) -> dict[str, Any]:
    """Return the names that a cell assigns, in order, and their values; the text of what is no constant."""
    values: dict[str, Any] = {}
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign):
            try:
                value = ast.literal_eval(statement.value)
            except ValueError:
                value = ast.unparse(statement.value)
            values |= {target.id: value for target in statement.targets if isinstance(target, ast.Name)}
    return values


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


@checked
def table(frame: pd.DataFrame | pd.Series, digits: int | Mapping[str, int] = 2) -> pd.DataFrame:
    """Return a table as it is shown on a page: fractions with so many digits, a dash for what is absent.

    It has one row of heads: levels of the columns are joined by a comma. A series is a table of one column.
    digits : of all fractions, or by column, 2 in those that it does not name.

    Raises
    ------
    ModelError : digits of a column that the table does not have.

    """

    def column(values: pd.Series) -> pd.Series:
        places = digits if isinstance(digits, int) else digits.get(str(values.name), 2)

        def written(value: Any) -> Any:
            if pd.isna(value):
                return "–"
            return f"{round(value, places) + 0.0:.{places}f}" if isinstance(value, float) else value

        return values.map(written)

    shown = frame.to_frame() if isinstance(frame, pd.Series) else frame
    heads = [", ".join(map(str, head)) if isinstance(head, tuple) else head for head in shown]
    if not isinstance(digits, int) and (unknown := [name for name in digits if name not in map(str, heads)]):
        known = ", ".join(f"'{head}'" for head in heads)
        raise ModelError(f"digits names '{unknown[0]}', which is no column of the table: {known}.")
    return shown.set_axis(heads, axis=1).apply(column).rename_axis(columns=None)


@checked
def write_tables(folder: str | Path, tables: Mapping[str, pd.DataFrame]) -> None:
    """Write tables as CSV files into a folder, made where it is absent; none where its name is empty."""
    if not str(folder):
        return
    path = Path(folder).expanduser()
    path.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_csv(path / f"{name}.csv")


def versions() -> dict[str, str]:
    """Return the versions that a result depends on: of Python, and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for name in ("nlmeflow", "torch", "zuko", "numpy", "scipy", "pandas", "matplotlib"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def style() -> None:
    """Set the book's style of figures, in the colours of Okabe and Ito (2008), and of tables, uncut."""
    import matplotlib
    import matplotlib.pyplot as plt

    pd.set_option("display.max_colwidth", None)
    plt.rcParams.update(
        {
            "figure.figsize": (7.5, 4.2),
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "font.size": 10.5,
            "axes.prop_cycle": matplotlib.rcsetup.cycler(color=COLOURS),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
        }
    )
