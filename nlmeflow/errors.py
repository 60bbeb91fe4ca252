"""The errors a person can meet. Each message names what was written and what would be accepted."""


class DataError(ValueError):
    """The table handed in cannot be used: the message names the column, the row and the cure."""


class ModelError(ValueError):
    """The curve, the error model, the law and the data do not fit together."""


class EstimationError(RuntimeError):
    """The estimation could not go on: the message names the parameter and its value."""
