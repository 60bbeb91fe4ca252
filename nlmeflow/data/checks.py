"""Checks of a user's table: each says the column, the row and what would be accepted."""

import re
import reprlib
from collections.abc import Hashable, Iterable, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any
from unicodedata import normalize
from warnings import warn

import numpy as np
import pandas as pd

from nlmeflow.data.files import DATE, LINES, MINUS, NONE, ROWS, place, read_table, unseen, without_unseen
from nlmeflow.errors import MOST, DataError, is_number, written

OTHER_FLOATS = (np.dtype(np.float16), np.dtype(np.longdouble))  # which pandas cannot group
EMPTY = {"", "nan", "NaT", "<NA>"}  # what an empty cell becomes as text


def table_of(given: object, *names: object) -> pd.DataFrame:
    """Return a table, or the table in the CSV file at a path, in which some columns hold names.

    Raises
    ------
    DataError : it is neither, a column's name stands twice, or the names have several levels.

    """
    if isinstance(given, str | Path):
        table = read_table(given, [name for name in names if isinstance(name, str)])
        for remark in table.remarks:
            warn(f"{Path(given).name}: {remark}", stacklevel=3)
        given = table.frame
    if not isinstance(given, pd.DataFrame):
        found = f"{type(given).__module__}.{type(given).__name__}".removeprefix("builtins.")
        way = ", whose to_pandas() makes one" if hasattr(given, "to_pandas") else ""
        raise DataError(f"A pandas DataFrame is needed, or the path of a CSV file; got {found}{way}.")
    if given.columns.nlevels > 1:
        raise DataError(
            f"Names of columns have {given.columns.nlevels} levels, such as {given.columns[-1]!r}; one is "
            "needed: frame.columns = ['_'.join(map(str, name)).strip('_') for name in frame.columns]."
        )
    if not given.columns.is_unique:
        twice = given.columns[given.columns.duplicated()][0]
        raise DataError(f"Column '{twice}' stands twice in the table; give each column a name of its own.")
    named = pd.Index([name for name in given.index.names if name is not None])
    if not named.is_unique:
        twice = named[named.duplicated()][0]
        raise DataError(f"Two levels of the table's index are called '{twice}'; give each a name of its own.")
    levels = [name for name in given.index.names if name not in (None, LINES, ROWS, *given.columns)]
    return plain(given.reset_index(levels))  # a table's index may hold the individuals, and the times


def plain(given: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose columns of objects are numbers, or True and False, where all of them are.

    Such objects are Python's, Decimals, fractions, and scalars of numpy or torch. Dictionaries of pyarrow
    become categories.
    """
    table = given.copy(deep=False)
    for name, column in given.items():
        if column.dtype == object and pd.api.types.infer_dtype(column) != "string":
            values = column.map(_plain)  # pandas looks what they are
            if pd.api.types.is_any_real_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
                table[name] = values
        elif str(column.dtype).startswith("dictionary"):
            table[name] = column.astype("category")
        elif column.dtype in OTHER_FLOATS:
            table[name] = column.astype(np.float64)
    return table


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal) and value.is_nan():
        return np.nan
    if isinstance(value, Decimal | Fraction) and is_number(value):
        number = float(value)
        return int(value) if number.is_integer() else number
    if getattr(value, "ndim", None) == 0 and not isinstance(value, np.datetime64 | np.timedelta64):
        return value.item()
    return np.nan if value is None or value is pd.NA or value is pd.NaT else value


def listed(columns: object) -> list[Any]:
    """Return the names of columns, given as one name, several, or None, as a list."""
    if columns is None:
        return []
    several = isinstance(columns, Iterable) and not isinstance(columns, str)
    return list(columns) if several else [columns]  # type: ignore[call-overload]


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


def check_roles(roles: Mapping[str, str | None]) -> None:
    """Raise DataError when a role is not that of one column, or one column has two roles."""
    seen: dict[str, str] = {}
    for role, column in roles.items():
        if not isinstance(column, Hashable):
            raise DataError(f"{role} is the name of one column, got {column!r}.")
        if column is not None and seen.setdefault(column, role) != role:
            raise DataError(f"Column '{column}' cannot be both {seen[column]} and {role}.")


def check_single(frame: pd.DataFrame, column: str) -> None:
    """Raise DataError when a cell is no name, but several."""
    several = np.flatnonzero(frame[column].map(_is_no_name))
    if len(several):
        row = int(several[0])
        raise DataError(
            f"Column '{column}' is {frame[column].iloc[row]!r} in {place(frame, row)}; a name is one word or "
            f"number, such as frame['{column}'].map(lambda parts: '/'.join(map(str, parts)))."
        )


def check_names(frame: pd.DataFrame, column: str) -> None:
    """Raise DataError when a cell is no name, or two look the same but are not: 7 and "7", "p" and "p "."""
    check_single(frame, column)
    different = pd.Series(frame[column].unique(), dtype=object)
    empty = [name for name in different if isinstance(name, str) and _looks(name, False) in EMPTY]
    if empty:
        where = place(frame, int(np.flatnonzero(frame[column] == empty[0])[0]))
        raise DataError(
            f"Column '{column}' is {empty[0]!r} in {where}, as empty cells are that became text; every row "
            "needs a name."
        )
    any_number = bool(different.map(is_number).any())
    shown = different.map(lambda name: _looks(name, any_number))
    if pair := _first_pair(different, shown):
        one, other = map(repr if repr(pair[0]) != repr(pair[1]) else ascii, pair)
        cure = ".str.normalize('NFC').str.split().str.join(' ')"
        if any_number:
            cure = ".str.strip().str.removesuffix('.0')"
        if letters := unseen(f"{pair[0]}{pair[1]}"):
            cure = f".str.replace({f'[{letters}]'!a}, '', regex=True){cure}"
        raise DataError(
            f"Column '{column}' has {one} and {other}, which would be two different names. Make them one "
            f"kind without blanks: frame['{column}'] = frame['{column}'].astype(str){cure}."
        )
    if pair := _first_pair(different, shown.str.casefold()):
        warn(
            f"Column '{column}' has {pair[0]!r} and {pair[1]!r}, which are taken for two names.", stacklevel=4
        )


def _first_pair(names: pd.Series, seen: pd.Series) -> list[Any]:
    """Return the first two names of which the same is seen; none where all differ."""
    again = seen[seen.duplicated(keep=False)]
    return names[seen == again.iloc[0]].tolist()[:2] if len(again) else []


def _is_no_name(value: object) -> bool:
    return isinstance(value, tuple | list) or not isinstance(value, Hashable)


def _looks(name: object, as_number: bool) -> str:
    """Return what is seen of a name, accents in one form and single blanks; as a number, 7.0 as 7."""
    text = " ".join(normalize("NFC", without_unseen(str(name))).split())
    return text.removesuffix(".0") if as_number else text


def check_present(frame: pd.DataFrame, column: Hashable) -> None:
    """Raise DataError when a cell of a column is empty."""
    missing = np.flatnonzero(frame[column].isna())
    if len(missing):
        raise DataError(f"Column '{column}' is empty in {place(frame, missing[0])}; every row needs it.")


def check_real(frame: pd.DataFrame, column: str) -> None:
    """Raise DataError when a column holds complex numbers."""
    if pd.api.types.is_complex_dtype(frame[column]) or _holds(frame[column], complex):
        raise DataError(
            f"Column '{column}' holds complex numbers; real numbers are accepted, "
            f"such as frame['{column}'].to_numpy().real."
        )


def numbers(frame: pd.DataFrame, column: str) -> np.ndarray:
    """Return a column as numbers, NaN where it is empty, or raise DataError."""
    given = frame[column]
    if isinstance(given.dtype, pd.CategoricalDtype):
        given = given.astype(object)
    if isinstance(given.dtype, pd.SparseDtype):
        given = pd.Series(np.asarray(given), given.index)
    check_real(frame, column)
    _check_no_clock(given, column)
    if _holds(given, bool):
        row = int(given.map(lambda value: isinstance(value, bool)).to_numpy().argmax())
        raise DataError(
            f"Column '{column}' is {given.iloc[row]} in {place(frame, row)}, among numbers. Numbers, or "
            "empty cells for missing values, are accepted."
        )
    if given.dtype == object:
        given = given.map(
            lambda value: value if not isinstance(value, int) or is_number(value) else str(value)
        )
    numbers = pd.to_numeric(given, errors="coerce")
    wrong = np.flatnonzero(numbers.isna() & given.notna())
    if len(wrong):
        value = given.iloc[wrong[0]]
        raise DataError(
            f"Column '{column}' is not a number in {place(frame, wrong[0])}: {value!r}. "
            f"Numbers, or empty cells for missing values, are accepted.{_hint(str(value), column)}"
        )
    return numbers.to_numpy(dtype=np.float64, na_value=np.nan)


def _holds(column: pd.Series, *kinds: type) -> bool:
    """Return whether a column of objects has some of these kinds."""
    return column.dtype == object and bool(column.map(lambda value: isinstance(value, kinds)).any())


def _check_no_clock(given: pd.Series, column: str) -> None:
    """Raise DataError when a column holds durations, dates or times of day, and say how to make numbers."""
    if pd.api.types.is_numeric_dtype(given):
        return
    shown = f"frame['{column}']"

    if pd.api.types.is_timedelta64_dtype(given) or _holds(given, timedelta, np.timedelta64):
        spans = f"pd.to_timedelta({shown})" if given.dtype == object else shown
        raise DataError(
            f"Column '{column}' holds durations; give a number in a unit of your choice, for example days: "
            f"{spans}.dt.total_seconds() / 86400."
        )
    periods = isinstance(given.dtype, pd.PeriodDtype)
    if pd.api.types.is_datetime64_any_dtype(given) or periods or _holds(given, date, np.datetime64):
        dates = f"{shown}.dt.to_timestamp()" if periods else shown
        dates = f"pd.to_datetime({shown})" if given.dtype == object else dates
        raise DataError(
            f"Column '{column}' holds dates; give a number, for example days since the first date: "
            f"({dates} - {dates}.min()).dt.total_seconds() / 86400."
        )
    if _holds(given, time):
        raise DataError(
            f"Column '{column}' holds times of day; give a number, for example hours: "
            f"{shown}.map(lambda t: t.hour + t.minute / 60)."
        )


def _hint(value: str, column: str) -> str:
    """Return what a value that is no number may have been meant for."""
    if re.fullmatch(r"[<>]\s*([\d.,]+|[A-Z]*)|BLO?Q|BQL|L?LOQ|LOD", value, re.IGNORECASE):
        return (
            " A value that is only known to lie below or above a limit is given by the limit, and a column "
            'with "left" or "right", censoring= (CENS 1 or -1 in the manner of NONMEM).'
        )
    if DATE.fullmatch(value):
        dates = f"pd.to_datetime(frame['{column}'])"
        return (
            " This may be a date as text; give a number, for example days since the first: "
            f"({dates} - {dates}.min()).dt.total_seconds() / 86400."
        )
    if re.fullmatch(r"\d{1,2}:\d{2}", value):
        return (
            " This may be a time of day; give a number, for example hours: "
            f"pd.to_timedelta(frame['{column}'] + ':00').dt.total_seconds() / 3600."
        )
    if value.startswith(MINUS):
        return f" Its minus is another sign: frame['{column}'].str.replace('{MINUS}', '-')."
    if re.fullmatch(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}.*", value):
        return " This may be a date: write 2024-05-31, or give the number of days since the first date."
    if not value.strip():
        return f" It holds blanks alone: frame['{column}'] = pd.to_numeric(frame['{column}'].str.strip())."
    if re.fullmatch(r"[\d.,\s]+", value):
        return " Write thousands without a sign between them, and decimals with a point."
    return ""


def censoring_bounds(
    frame: pd.DataFrame, response: str, values: np.ndarray, censoring: str, limit: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return lower and upper bounds of each row, infinite where the response was observed.

    Raises
    ------
    DataError : a kind of censoring that is not known, an empty response, an interval without an upper end.

    """
    kind = frame[censoring].astype(object).where(frame[censoring].notna(), "").astype(str).str.strip()
    kind = kind.mask(kind.str.lower() == NONE, "")
    wrong = np.flatnonzero(~kind.isin(["", "left", "right", "interval"]))
    if len(wrong):
        raise DataError(
            f"Column '{censoring}' is {written(frame[censoring].iloc[wrong[0]])} in "
            f"{place(frame, wrong[0])}; accepted are 'left', 'right', 'interval', or an empty cell."
        )
    empty = np.flatnonzero(kind.ne("") & np.isnan(values))
    if len(empty):
        raise DataError(
            f"'{response}' is empty in {place(frame, empty[0])}, which is censored ({kind.iloc[empty[0]]}); "
            "it holds the limit of a censored observation."
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
                f"Column '{limit}' must be above column '{response}' in {place(frame, bad[0])}, which is an "
                "interval."
            )
        low[between], high[between] = values[between], ends[between]
    return low, high


def check_finite(frame: pd.DataFrame, column: str, values: np.ndarray, missing_allowed: bool) -> None:
    """Raise DataError when a number is infinite, or missing where it may not be."""
    wrong = np.flatnonzero(np.isinf(values) if missing_allowed else ~np.isfinite(values))
    if len(wrong):
        what = "infinite" if np.isinf(values[wrong[0]]) else "missing"
        raise DataError(f"Column '{column}' is {what} in {place(frame, wrong[0])}; it must be finite.")


def check_unique(frame: pd.DataFrame, individual: str, time: str, times: np.ndarray) -> None:
    """Raise DataError when an individual has two rows at one time, or more."""
    code, labels = pd.factorize(frame[individual])
    twice = np.flatnonzero(pd.DataFrame({"who": code, "time": times}).duplicated(keep=False))
    if len(twice):
        who, when = code[twice[0]], times[twice[0]]
        rows = np.flatnonzero((code == who) & (times == when))
        raise DataError(
            f"Individual '{labels[who]}' ({individual}) has {len(rows)} rows at {time} = {when:g}: "
            f"{place(frame, *rows.tolist())}. One row per individual and time is accepted: average them, or "
            "say that they are measurements of their own, replicates='keep'."
        )


def constant_covariates(
    frame: pd.DataFrame, individual: str, labels: list[Hashable], covariates: list[str]
) -> pd.DataFrame:
    """Return the covariates of each individual, or raise DataError when one changes within an individual."""
    for column in covariates:
        check_present(frame, column)
        check_real(frame, column)
    check_constant(frame, individual, covariates)
    return frame.groupby(individual, sort=False, observed=True)[covariates].first().reindex(labels)


def check_constant(frame: pd.DataFrame, individual: str, covariates: list[str]) -> None:
    """Raise DataError when a covariate changes within an individual; empty cells are no change."""
    grouped = frame.groupby(individual, sort=False, observed=True)
    for column in covariates:
        changing = grouped[column].nunique()
        changing = changing[changing > 1]
        if len(changing):
            raise DataError(
                f"Covariate '{column}' changes within individual '{changing.index[0]}'; "
                "a covariate is constant within an individual."
            )


def _is_whole(value: object) -> bool:
    return is_number(value) and value == int(value)  # type: ignore[call-overload]


def positions(index: object, labels: tuple[Hashable, ...]) -> np.ndarray:
    """Return the positions of the individuals that an index of `LongitudinalData.subset` chooses.

    Raises
    ------
    DataError : as in `LongitudinalData.subset`.

    """
    size = len(labels)
    arrays = np.ndarray | pd.Series | pd.Index | pd.api.extensions.ExtensionArray
    if isinstance(index, arrays) and index.ndim == 1 and pd.api.types.infer_dtype(index) == "boolean":
        index = pd.Series(index).astype("boolean")  # of dtype object too
    if isinstance(index, pd.Series) and pd.api.types.is_bool_dtype(index.dtype):
        if index.isna().any():
            raise DataError("The mask has empty cells; True or False is needed for every individual.")
        index = index.astype(bool)
    if isinstance(index, pd.Series) and index.dtype == bool and not isinstance(index.index, pd.RangeIndex):
        if set(index.index) != set(labels):
            raise DataError("The index of the mask holds other names than those of the individuals.")
        index = index.reindex(list(labels))
    try:
        if isinstance(index, slice):
            index = np.arange(size)[index]
        some = [index] if isinstance(index, str | int | float) else index
        array = np.atleast_1d(np.asarray(some if hasattr(some, "__array__") else list(some)))  # type: ignore[call-overload]
    except (TypeError, ValueError):
        raise DataError(
            f"An index is a mask, positions from 0, a slice of them, or names such as {labels[0]!r}; "
            f"got {reprlib.repr(index)}."
        ) from None
    if array.ndim != 1:
        raise DataError(f"An index has one axis; this one has the shape {array.shape}.")
    whole = array.dtype.kind in "fO" and all(map(_is_whole, array.tolist()))
    if whole and all(map(_is_whole, filter(is_number, labels))):  # else 2.0 may be a name beside 1.5
        if len(far := [value for value in array.tolist() if abs(value) > MOST]):
            raise DataError(f"Position {far[0]} is out of range: there are {size} individuals, from 0.")
        array = array.astype(np.int64)
    if array.dtype == bool:
        if len(array) != size:
            raise DataError(f"The mask has {len(array)} values for {size} individuals.")
        array = np.flatnonzero(array)
    elif np.issubdtype(array.dtype, np.integer):
        array = array.astype(np.int64)  # a length may lie beyond int8
        if len(array) == size > len(set(array.tolist())) and set(array.tolist()) <= {0, 1}:
            raise DataError(
                f"The index holds only 0 and 1, one for each of {size} individuals: it may be a mask. "
                "Write that as True and False, such as column == 1. Accepted too are positions, and names."
            )
        wrong = array[(array < -size) | (array >= size)]
        if len(wrong):
            raise DataError(f"Position {wrong[0]} is out of range: there are {size} individuals, from 0.")
        array = array % size
    elif len(array):
        place = {label: k for k, label in enumerate(labels)}
        unknown = [name for name in array.tolist() if name not in place]
        if unknown:
            raise DataError(
                f"No individual {unknown[0]!r}; an index is a mask, positions from 0, or names such as "
                f"{labels[0]!r}."
            )
        array = np.array([place[name] for name in array.tolist()])
    if len(array) == 0:
        raise DataError("A subset needs at least one individual; this index chooses nobody.")
    return array.astype(np.int64)
