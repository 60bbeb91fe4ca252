"""The errors a person can meet. Each message names what was written and what would be accepted."""

import numpy as np


class DataError(ValueError):
    """The table handed in cannot be used: the message names the column, the row and the cure."""


class ModelError(ValueError):
    """The curve, the error model, the law and the data do not fit together."""


class EstimationError(RuntimeError):
    """The estimation could not go on: the message names the parameter and its value."""


def whole(name: str, value: object, least: int) -> int:
    """Return an argument as an int, or raise ModelError unless it is a whole number of at least `least`.

    Numpy's integers and floats without a fraction, such as 1e3, are whole numbers.
    """
    number = not isinstance(value, bool | np.bool_) and isinstance(value, int | float | np.number)
    if not number or not np.isfinite(value) or value != int(value) or value < least:  # type: ignore[call-overload, operator]
        raise ModelError(f"{name} is a whole number from {least}, got {value!r}.")
    return int(value)  # type: ignore[call-overload, no-any-return]


def check_whole(owner: object, least: int, *names: str) -> None:
    """Make fields of a frozen dataclass whole numbers from `least`; None stays where it is the default."""
    for name in names:
        value, default = getattr(owner, name), owner.__dataclass_fields__[name].default  # type: ignore[attr-defined]
        if value is not None or default is not None:
            object.__setattr__(owner, name, whole(name, value, least))
