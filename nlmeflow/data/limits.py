"""Responses on a scale that ends, and scores in steps: what is known of the value behind each."""

import numpy as np
import pandas as pd

from nlmeflow.arguments import checked
from nlmeflow.data.checks import numbers, table_of
from nlmeflow.data.files import check_columns, place
from nlmeflow.errors import DataError, ModelError, number


@checked
def mark_limits(
    frame: pd.DataFrame,
    response: str,
    lower: float | None = None,
    upper: float | None = None,
    step: float | None = None,
) -> pd.DataFrame:
    """Return a table with columns `censoring` and `limit`, for `LongitudinalData.from_frame`.

    lower, upper : ends of the scale, such as 0 and 100; a response there says that the value behind it is at
        most, or at least, the end.
    step : of a visual score such as 0, 10, ..., 100; a score s stands for a value between s - step / 2 and
        s + step / 2, and a score at an end for one beyond the half step next to it. The response becomes the
        lower end of the interval and `limit` its upper end.

    Raises
    ------
    DataError : a response beyond the ends, or between two steps; the table has one of the columns already.
    ModelError : neither an end nor a step; an upper end below the lower; a step that is not positive.

    """
    frame = table_of(frame)
    check_columns(frame, [response])
    for name in ("censoring", "limit"):
        if name in frame:
            raise DataError(f"The table has a column '{name}' already, which mark_limits would write.")
    if lower is None and upper is None and step is None:
        raise ModelError("Give an end of the scale, lower= or upper=, or the step= of its scores.")
    if lower is not None and upper is not None and not lower < upper:
        raise ModelError(f"upper is a number above lower = {lower:g}, got {upper:g}.")
    values = numbers(frame, response)
    low = -np.inf if lower is None else number("lower", lower)
    high = np.inf if upper is None else number("upper", upper)
    for wrong, words in (
        (values < low, f"below lower = {low:g}"),
        (values > high, f"above upper = {high:g}"),
    ):
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise DataError(f"Column '{response}' is {values[row]:g} in {place(frame, row)}, {words}.")
    half, below, above = 0.0, values, values
    if step is not None:
        step, origin = number("step", step, 0), 0.0 if lower is None else low
        half, count = step / 2, _counted(frame, response, values, origin, step)
        below, above = origin + (count - 0.5) * step, origin + (count + 0.5) * step
    at_lower, at_upper = (np.isclose(values, end, rtol=1e-6, atol=1e-6 * half) for end in (low, high))
    between = (half > 0) & ~at_lower & ~at_upper & ~np.isnan(values)
    kind = np.select([at_lower, at_upper, between], ["left", "right", "interval"], "")
    ends = np.select([at_lower, at_upper | between], [above, below], values)
    return frame.assign(**{response: ends, "censoring": kind, "limit": np.where(between, above, np.nan)})


def _counted(
    frame: pd.DataFrame, response: str, values: np.ndarray, origin: float, step: float
) -> np.ndarray:
    """Return how many steps each score is from the origin, or raise DataError when one lies between two."""
    steps = (values - origin) / step
    wrong = np.flatnonzero(np.abs(steps - np.round(steps)) > 1e-6)
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"Column '{response}' is {values[row]:g} in {place(frame, row)}, which is no multiple of step = "
            f"{step:g} from {origin:g}."
        )
    rounded: np.ndarray = np.round(steps)
    return rounded
