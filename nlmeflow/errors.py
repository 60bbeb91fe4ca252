"""The errors a person can meet. Each message names what was written and what would be accepted."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

EXTRAS = {  # which extra has a package
    "arviz": "arviz",
    "distributed": "studies",
    "matplotlib": "plots",
    "pooch": "data",
    "pyarrow": "studies",
    "pyreadr": "data",
    "yaml": "studies",
}
MOST = 10_000_000  # of anything that is counted
SETTING = 1_000_000  # the most of a setting of a law
NUMBERS = 400_000_000  # kept in memory at once: 3.2 GB


class DataError(ValueError):
    """The table handed in cannot be used: the message names the column, the row and the cure."""


class ModelError(ValueError):
    """The curve, the error model, the law and the data do not fit together."""


class EstimationError(RuntimeError):
    """The estimation could not go on: the message names the parameter and its value."""


class NoPeakError(EstimationError):
    """The likelihood is flat where the estimation ended, or still rises in some direction."""


def whole(name: str, value: object, least: int, most: int = MOST) -> int:
    """Return an argument as an int, or raise ModelError unless it is a whole number from `least` to `most`.

    Numpy's integers and floats without a fraction, such as 1e3, are whole numbers.
    """
    if not is_number(value) or not least <= value <= most or value != int(value):  # type: ignore[call-overload, operator]
        end = f" to {most}" if most not in (MOST, SETTING) or (is_number(value) and value > most) else ""  # type: ignore[operator]
        raise ModelError(f"{name} is a whole number from {least}{end}, got {written(value)}.")
    return int(value)  # type: ignore[call-overload, no-any-return]


def check_memory(name: str, value: int, each: int, numbers: str) -> None:
    """Raise ModelError where `value` times `each` numbers are too many to be kept in memory at once."""
    if value * each > NUMBERS:
        raise ModelError(
            f"{name}={value:,} would keep {value * each:,} {numbers} in memory, "
            f"{8e-9 * value * each:,.0f} GB; at most {NUMBERS // each:,} are accepted here."
        )


def number(name: str, value: object, low: float = -math.inf, high: float = math.inf) -> float:
    """Return an argument as a float, or raise ModelError unless it is a number between two bounds.

    The bounds themselves are not accepted.
    """
    if not is_number(value) or not low < value < high:  # type: ignore[operator]
        between = f" between {low:g} and {high:g}" if high < math.inf else f" above {low:g}"
        raise ModelError(f"{name} is a number{between if low > -math.inf else ''}, got {written(value)}.")
    return float(value)  # type: ignore[arg-type]


def written(value: object) -> str:
    """Return how Python writes a value, a numpy scalar as the number or word that it holds."""
    return repr(value.item() if isinstance(value, np.generic) else value)


def is_number(value: object) -> bool:
    """Return whether a value can stand for a finite real number; a word, True and False cannot."""
    if isinstance(value, str | bool | np.bool_):
        return False
    try:
        return math.isfinite(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return False


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or its name where it says nothing."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def check_whole(owner: object, least: int, *names: str) -> None:
    """Make fields of a frozen dataclass whole numbers from `least`; None stays where it is the default.

    Raises
    ------
    ModelError : of the first field that is none.

    """
    for name in names:
        value, default = getattr(owner, name), owner.__dataclass_fields__[name].default  # type: ignore[attr-defined]
        if value is not None or default is not None:
            object.__setattr__(owner, name, whole(name, value, least, SETTING))


@contextmanager
def extra(what: str) -> Iterator[None]:
    """Say of what needs a package that is not installed which extra of nlmeflow has it.

    Raises
    ------
    ModuleNotFoundError : the package is not installed.

    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        message = f"{what} needs the package {package}: pip install 'nlmeflow[{EXTRAS[package]}]'."
        raise ModuleNotFoundError(message, name=package) from None
