"""A user's text file as a table: what separates its columns, how its decimals and dates are written."""

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from unicodedata import category

import numpy as np
import pandas as pd

from nlmeflow.arguments import checked, names_of
from nlmeflow.errors import DataError

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
SPACES = " "  # any number of them, where the first line has none of the others
MISSING = frozenset({"", ".", "-", "na", "n/a", "#n/a", "#na", "nan", "null"})
MOST_LETTERS = 100_000  # of a line in which separators are counted
NONE = "none"  # missing among numbers and dates, a level among words
LINES, ROWS = "line of the file", "row of the table"  # names of an index that says where rows stand
WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # first bytes of .xlsx and .xls
GZIP = b"\x1f\x8b"
MINUS = "\u2212"  # the sign that typesetters use for "-"
DATE = re.compile(r"\d{4}-\d{2}-\d{2}([ T]\d{2}:\d{2}(:\d{2}(\.\d+)?)?)?")
DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")
POINTS = re.compile(r"[+-]?[1-9]\d{0,2}(\.\d{3})+")  # 1.234 beside decimal commas
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")  # may be 1234 or 1.234


@dataclass(frozen=True)
class Table:
    """What a file holds.

    frame : columns of whole numbers, numbers, dates or text, indexed by the lines of the file, which messages
        name. Empty cells, and NA, n/a, NaN, null, ., -, are missing; "none" is so among numbers and dates,
        and a level in a column of text.
    remarks : what was not plain and how it was read, a sentence each.
    """

    frame: pd.DataFrame
    remarks: tuple[str, ...]


@checked
def read_table(path: str | Path, names: str | Sequence[str] = ()) -> Table:
    """Read a text file of columns, with their names in the first line.

    Columns may be separated by commas, semicolons, tabs, vertical bars or spaces, decimals written with a
    point or a comma, and the text encoded as UTF-8, UTF-16 or Windows-1252. Days and times written as
    2024-05-31 or 2024-05-31 14:30 become dates. Whole numbers with leading zeros, which are names such as
    007, stay text. Names of rows, for which the first line has no name (as R writes them), are left out.

    names : columns of names, of individuals and groups, which are kept as they are written (1.10, 2E1) where
        they are not whole numbers.

    Raises
    ------
    DataError : there is no such file, it is a workbook, it is empty, a line has more values than there are
        names of columns, two columns have one name, a column of `names` is not there, a cell is a lone
        quotation mark, or 1.234 may be 1234.

    """
    path, names = Path(path), names_of("names", names)
    remarks: list[str] = []
    text = _text(path, remarks)
    separator = _separator(text)
    if separator != ",":
        remarks.append(f"Columns are separated by {SEPARATORS.get(separator, 'spaces')}.")
    titles, rows, lines = _rows(path, text, separator, remarks)
    commas = any(map(_has_decimal_commas, rows.T))
    columns = {
        title: _values(title, values, remarks, title in names, commas)
        for title, values in zip(titles, rows.T, strict=True)
    }
    if not names:
        remarks += [_merged(title, values) for title, values in zip(titles, rows.T, strict=True)]
        remarks = [said for said in remarks if said]
    frame = pd.DataFrame(columns).set_axis(pd.Index(lines, name=None if LINES in columns else LINES))
    check_columns(frame, names)
    return Table(frame, tuple(remarks))


def check_columns(frame: pd.DataFrame, columns: Sequence[str]) -> None:
    """Raise DataError unless the table has these columns."""
    for column in columns:
        if column not in frame.columns:
            known = list(map(str, frame.columns))
            like = {name.casefold(): name for name in known}
            near = get_close_matches(str(column).casefold(), like, 1)
            times = [name for name in known if re.fullmatch(r"\D{0,5}\d[\d./:-]*", name)]
            hint = f" Is it {like[near[0]]!r}?" if near else ""
            if not near and not isinstance(column, str):
                hint = (
                    " A column's name is needed; one value for all rows is a column too: frame.assign(...)."
                )
            elif not near and len(times) > 1:
                hint = (
                    f" {times[0]} and {times[1]} may be times: one row for each measurement is needed, "
                    "with a column for the time and one for the response (pandas.melt makes them)."
                )
            raise DataError(f"No column '{column}' in the table; its columns are: {', '.join(known)}.{hint}")


@checked
def in_days(frame: pd.DataFrame, time: str) -> tuple[pd.DataFrame, str]:
    """Return a table whose dates in a column are days since the first of them, and a sentence that says so.

    The table itself and an empty sentence, where the column holds no dates.
    """
    if time not in frame or not pd.api.types.is_datetime64_any_dtype(frame[time]):
        return frame, ""
    first = frame[time].min()
    days = (frame[time] - first).dt.total_seconds() / 86400
    if pd.isna(first):
        return frame.assign(**{time: days}), ""
    said = f"Column '{time}' holds dates; time is in days since {first:%Y-%m-%d}."
    return frame.assign(**{time: days}), said


def place(frame: pd.DataFrame, *rows: int) -> str:
    """Return where rows of a table stand, for a message: their lines in a file, or their numbers from 0."""
    known = numbered(frame).index
    word = "line" if known.name == LINES else "row"
    return f"{word}{'s' if len(rows) > 1 else ''} {', '.join(str(known[row]) for row in rows)}"


def numbered(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose rows have the numbers that `place` names: their lines in a file, or from 0."""
    if frame.index.name in (LINES, ROWS) and frame.index.is_unique:  # not so of two files put together
        return frame
    return frame.set_axis(pd.RangeIndex(len(frame), name=None if ROWS in frame else ROWS))


def unseen(text: str) -> str:
    """Return the characters of a text that take no room, each once."""
    return "".join(sorted({letter for letter in text if category(letter) == "Cf"}))


def without_unseen(text: str) -> str:
    """Return a text without characters that take no room, and with blanks for those that do not break."""
    return text.translate(dict.fromkeys(map(ord, unseen(text)))).replace("\xa0", " ")


def _text(path: Path, remarks: list[str]) -> str:
    if not path.is_file():
        raise DataError(f"No file '{path}'; a pandas DataFrame, or the path of a CSV file, is needed.")
    content = path.read_bytes()
    if content.startswith(WORKBOOKS):
        raise DataError(
            f"'{path.name}' is a workbook; save its sheet as CSV, and give the path of that file."
        )
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        remarks.append("The text is encoded as UTF-16.")
        return content.decode("utf-16", errors="replace")
    if content.startswith(GZIP) or b"\0" in content:
        raise DataError(f"'{path.name}' is no text; unpack it, or save the table as CSV.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        remarks.append("The text is not encoded as UTF-8; it was read as Windows-1252.")
        return content.decode("cp1252", errors="replace")


def _separator(text: str) -> str:
    """Return the separator under which most lines have as many values as the first, and more than one."""
    first = [line[:MOST_LETTERS] for line in text.splitlines() if line.strip()][:100]

    def agreement(separator: str) -> tuple[float, int]:
        counts = [len(row) for row in csv.reader(first, delimiter=separator)]
        several = counts[0] if counts else 0
        return (float(np.mean([n == several for n in counts])) if several > 1 else 0.0), several

    bare = bool(first) and not any(separator in first[0] for separator in SEPARATORS)
    if bare and all(len(line.split()) > 1 for line in first):
        return SPACES
    return max(SEPARATORS, key=agreement)


def _rows(
    path: Path, text: str, separator: str, remarks: list[str]
) -> tuple[list[str], np.ndarray, list[int]]:
    """Return the names of the columns, the values as text (rows, columns), and the line of each row."""
    stream = io.StringIO(text, newline="")
    reader = csv.reader(stream, delimiter=separator, skipinitialspace=separator == SPACES)
    table: list[list[str]] = []
    lines: list[int] = []
    before = 0
    try:
        for row in reader:
            if any(value.strip() for value in row):
                _check_closed(path, row, before + 1, separator, table)
                table.append([value.strip() for value in row])
                lines.append(before + 1)
            before = reader.line_num
    except csv.Error as error:
        if max(map(len, text.splitlines())) > csv.field_size_limit():
            raise DataError(
                f"Line {before + 1} of '{path.name}' has a value of more than {csv.field_size_limit()} "
                "letters; it is not a table of numbers."
            ) from error
        raise DataError(_opened(path, before + 1)) from error
    if not table:
        raise DataError(f"'{path.name}' is empty; names of columns in the first line are needed.")
    names = [without_unseen(name).strip() for name in table[0]]
    while names and not names[-1]:
        names = names[:-1]
    if _has_row_names(names, table[1:], separator):
        remarks.append("The first line has no name for the first column, which was taken for names of rows.")
        table[1:] = [row[1:] for row in table[1:]]
    for row, line in zip(table[1:], lines[1:], strict=True):
        if any(row[len(names) :]):
            hint = ""
            if len(names) < 3:
                hint = f" The first line, '{separator.join(names)}', has to name the columns."
            elif separator == ",":
                hint = (
                    " Decimals may have been written with a comma: save it with semicolons between columns."
                )
            raise DataError(
                f"Line {line} of '{path.name}' has {len(row)} values, and the first line names {len(names)} "
                f"columns.{hint}"
            )
    names = [name or f"column {k}" for k, name in enumerate(names, 1)]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"Column '{twice[0]}' stands twice in the table; give each column a name of its own.")
    width = len(names)
    body = [(row + [""] * width)[:width] for row in table[1:]]
    return names, np.array(body, dtype=object).reshape(-1, width), lines[1:]


def _has_row_names(names: list[str], rows: list[list[str]], separator: str) -> bool:
    """Return whether the first values of the rows are names of rows, as R's write.table writes them.

    All rows have one value more than there are names of columns, the first values differ, and no decimal
    comma can have cut a number in two: other numbers have points.
    """
    one_more = all(len(row) == len(names) + 1 for row in rows) and any(row[-1] for row in rows)
    differ = len({row[0] for row in rows}) == len(rows)
    points = any(re.fullmatch(r"[+-]?\d*\.\d+", value) for row in rows for value in row[1:])
    return one_more and differ and len(rows) > 1 and (points or separator != ",")


def _check_closed(path: Path, row: list[str], line: int, separator: str, table: list[list[str]]) -> None:
    """Raise DataError when a cell is a lone quotation mark, which took what follows it into the cell."""
    width = len(table[0]) if table else len(row)
    for cell in row:
        rows = cell.startswith(("\r", "\n")) and cell.count(separator) >= width - 1
        within = cell.startswith(separator) and (len(row) < width or "\n" in cell or "\r" in cell)
        if rows or within:
            raise DataError(_opened(path, line))


def _opened(path: Path, line: int) -> str:
    return (
        f"A quotation mark in line {line} of '{path.name}' opens a cell that takes up what follows. If it "
        "stands for the value above it, write that value; else leave the cell empty."
    )


def _has_decimal_commas(values: np.ndarray) -> bool:
    """Return whether the commas of a column are those of decimals."""
    some = pd.Series([value for value in values if "," in value], dtype=object).str.rstrip("% ")
    return bool(some.str.fullmatch(DECIMAL_COMMA).all() and not some.str.fullmatch(THOUSANDS).all())


def _values(name: str, values: np.ndarray, remarks: list[str], is_name: bool, in_file: bool) -> pd.Series:
    """Return a column as whole numbers, numbers, dates or text (a name), with missing values empty.

    in_file : whether some column of the file has decimal commas, so that 1.234 may be 1234.
    """
    column = pd.Series(values, dtype=object)
    empty, missing = (column.str.lower().isin(words) for words in (MISSING, MISSING | {NONE}))
    if empty.all():
        return pd.Series(np.nan, index=column.index)
    known = column[~missing]
    if known.empty:
        return column.mask(empty)
    if known.str.fullmatch(r"[+-]?[0-9]+").all():
        named = known.str.fullmatch(r"0[0-9]+").any() or (is_name and _shortened(known, missing))
        return column.mask(missing) if named else _numbers(column, missing)
    if is_name:
        return column.mask(empty)
    plain, said = known.str.replace(MINUS, "-", regex=False), list[str]()
    if known.str.endswith("%").all():
        said.append(f"Column '{name}' holds percentages; 85 % is read as 85.")
        plain = plain.str.rstrip("%").str.strip()
    commas, points = (plain.str.contains(sign, regex=False) for sign in ",.")
    if in_file and points.any() and commas.any():
        return column.mask(missing)  # a message asks when the column is used
    if in_file and points.any() and plain[points].str.fullmatch(POINTS).all():
        first = plain[points].iloc[0]
        raise DataError(
            f"Column '{name}' has {first}, and decimals have a comma elsewhere in the file: it may be "
            f"{first.replace('.', '')}. Write thousands without a sign between them, and decimals with the "
            "same sign everywhere."
        )
    if commas.any() and plain[commas].str.fullmatch(DECIMAL_COMMA).all():
        if plain[commas].str.fullmatch(THOUSANDS).all():
            return column.mask(missing)  # 1,234 may be either; a message asks when the column is used
        said.append(f"Column '{name}' has decimal commas; 3,5 is read as 3.5.")
        plain = plain.str.replace(",", ".", regex=False)
    if pd.to_numeric(plain, errors="coerce").notna().all():
        remarks += said
        return _numbers(column.where(missing, plain), missing)
    if known.str.fullmatch(DATE).all():
        dates = pd.to_datetime(column.mask(missing), errors="coerce", format="ISO8601")
        if dates[~missing].notna().all():
            return dates
    return column.mask(empty)


def _shortened(known: pd.Series, missing: pd.Series) -> bool:
    """Return whether whole numbers would lose digits beside an empty cell, which makes them floats."""
    return bool(missing.any()) and any(int(value) != float(value) for value in known.unique())


def _merged(title: str, values: np.ndarray) -> str:
    """Return a sentence about numbers that may be names: all with a point, and one written in two ways."""
    texts = pd.Series(values[values != ""]).drop_duplicates()
    if not texts.str.fullmatch(r"\d+\.\d+").all():
        return ""
    same = texts[texts.astype(float).duplicated(keep=False)]
    if same.empty:
        return ""
    first = same[same.astype(float) == float(same.iloc[0])]
    return (
        f"Column '{title}' has {first.iloc[0]} and {first.iloc[1]}, which are one number; if they are names, "
        f"say so: names=['{title}']."
    )


def _numbers(column: pd.Series, missing: pd.Series) -> pd.Series:
    numbers: pd.Series = pd.to_numeric(column.mask(missing))
    return numbers
