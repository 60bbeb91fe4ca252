"""Checks of a user's table: each says the column, the row and what would be accepted."""

from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd

from nlmeflow.errors import DataError


def check_columns(frame: pd.DataFrame, columns: Sequence[str]) -> None:
    """Raise DataError unless it is a table and has these columns."""
    if not isinstance(frame, pd.DataFrame):
        raise DataError(f"A pandas DataFrame is needed, got {type(frame).__name__}.")
    for column in columns:
        if column not in frame.columns:
            known = ", ".join(map(str, frame.columns))
            raise DataError(f"No column '{column}' in the table; its columns are: {known}.")


def check_nested(frame: pd.DataFrame, individual: str, group: str) -> None:
    """Raise DataError when an individual stands in two groups."""
    several = frame.groupby(individual, sort=False)[group].nunique()
    several = several[several > 1]
    if len(several):
        who = several.index[0]
        where = frame.loc[frame[individual] == who, group].unique()
        raise DataError(
            f"Individual '{who}' stands in groups {where[0]!r} and {where[1]!r} ({group}). Where names are "
            f"used again in each group, make them one: frame['{individual}'] = "
            f"frame['{group}'].astype(str) + '/' + frame['{individual}'].astype(str)."
        )


def check_present(frame: pd.DataFrame, column: str) -> None:
    """Raise DataError when a cell of a column is empty."""
    missing = np.flatnonzero(frame[column].isna())
    if len(missing):
        raise DataError(f"Column '{column}' is empty in row {missing[0]}; every row needs it.")


def numbers(frame: pd.DataFrame, column: str) -> np.ndarray:
    """Return a column as numbers, NaN where it is empty, or raise DataError."""
    given = frame[column]
    if pd.api.types.is_datetime64_any_dtype(given):
        raise DataError(
            f"Column '{column}' holds dates; give a number, for example days since the first date: "
            f"(frame['{column}'] - frame['{column}'].min()).dt.total_seconds() / 86400."
        )
    numbers = pd.to_numeric(given, errors="coerce")
    wrong = np.flatnonzero(numbers.isna() & given.notna())
    if len(wrong):
        raise DataError(
            f"Column '{column}' is not a number in row {wrong[0]}: {given.iloc[wrong[0]]!r}. "
            "Numbers, or empty cells for missing values, are accepted."
        )
    return numbers.to_numpy(dtype=np.float64, na_value=np.nan)


def censoring_bounds(
    frame: pd.DataFrame, response: str, values: np.ndarray, censoring: str, limit: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return lower and upper bounds of each row, infinite where the response was observed."""
    kind = frame[censoring].fillna("").astype(str).str.strip().replace("none", "")
    wrong = np.flatnonzero(~kind.isin(["", "left", "right", "interval"]))
    if len(wrong):
        raise DataError(
            f"Column '{censoring}' is {frame[censoring].iloc[wrong[0]]!r} in row {wrong[0]}; accepted are "
            "'left', 'right', 'interval', or an empty cell."
        )
    low, high = np.full(len(values), -np.inf), np.full(len(values), np.inf)
    left, right, between = (kind.eq(k).to_numpy() for k in ("left", "right", "interval"))
    high[left], low[right] = values[left], values[right]
    if between.any():
        if limit is None:
            raise DataError("Interval-censored rows need the other end: name its column with limit=.")
        ends = numbers(frame, limit)
        bad = np.flatnonzero(between & ~(np.isfinite(ends) & (ends > values)))
        if len(bad):
            raise DataError(
                f"Column '{limit}' must be above column '{response}' in row {bad[0]}, which is an interval."
            )
        low[between], high[between] = values[between], ends[between]
    return low, high


def check_finite(frame: pd.DataFrame, column: str, values: np.ndarray, missing_allowed: bool) -> None:
    """Raise DataError when a number is infinite, or missing where it may not be."""
    wrong = np.flatnonzero(np.isinf(values) if missing_allowed else ~np.isfinite(values))
    if len(wrong):
        what = "infinite" if np.isinf(values[wrong[0]]) else "missing"
        raise DataError(f"Column '{column}' is {what} in row {wrong[0]}; it must be finite.")


def check_unique(frame: pd.DataFrame, individual: str, time: str, times: np.ndarray) -> None:
    """Raise DataError when an individual has two rows at one time."""
    keys = pd.DataFrame({"individual": frame[individual], "time": times})
    twice = np.flatnonzero(keys.duplicated(keep=False))
    if len(twice):
        key = keys.iloc[twice[0]]
        rows = np.flatnonzero((keys["individual"] == key["individual"]) & (keys["time"] == key["time"]))
        raise DataError(
            f"Individual '{key['individual']}' ({individual}) has {len(rows)} rows at "
            f"{time} = {key['time']:g}: rows {', '.join(map(str, rows))}. "
            "One row per individual and time is accepted: average them, or make the times differ."
        )


def constant_covariates(
    frame: pd.DataFrame, individual: str, labels: list[Hashable], covariates: list[str]
) -> pd.DataFrame:
    """Return the covariates of each individual, or raise DataError when one changes within an individual."""
    grouped = frame.groupby(individual, sort=False, observed=True)
    for column in covariates:
        check_present(frame, column)
        changing = grouped[column].nunique()
        changing = changing[changing > 1]
        if len(changing):
            raise DataError(
                f"Covariate '{column}' changes within individual '{changing.index[0]}'; "
                "a covariate is constant within an individual."
            )
    return grouped[covariates].first().reindex(labels)
