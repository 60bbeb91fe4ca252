"""The errors a person can meet. Each message names what was written and what would be accepted."""


class DataError(ValueError):
    """The table handed in cannot be used: the message names the column, the row and the cure."""


class ModelError(ValueError):
    """The curve, the error model, the law and the data do not fit together."""


class EstimationError(RuntimeError):
    """The estimation could not go on: the message names the parameter and its value."""


def check_whole(name: str, value: object, least: int) -> None:
    """Raise ModelError unless an argument is a whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ModelError(f"{name} is a whole number from {least}, got {value!r}.")
