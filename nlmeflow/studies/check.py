"""Whether the rows of a study are those that are stored."""

import numpy as np
import pandas as pd

SECONDS = ("seconds", "job seconds")  # never the same twice


def differences(rows: pd.DataFrame, stored: pd.DataFrame, key: list[str]) -> list[str]:
    """Return in words what differs in the rows of the same jobs, to six digits, a line for each column.

    Rows are told apart by the values of their job, `key`, and their columns of text.
    """
    if lost := [name for name in key if name not in stored]:
        return [f"the stored rows have no {', '.join(lost)}"]
    stored = stored.merge(rows[key].drop_duplicates(), on=key).dropna(axis=1, how="all")
    rows = rows.dropna(axis=1, how="all")
    common = [str(name) for name in rows if name in stored and name not in SECONDS]
    found = [f"column '{name}' is not stored" for name in rows if name not in {*stored, *SECONDS}]
    found += [f"column '{name}' is stored only" for name in stored if name not in {*rows, *SECONDS}]
    labels = key + [name for name in common if name not in key and rows[name].dtype == "str"]
    new, old = (part[common].sort_values(labels, kind="stable", ignore_index=True) for part in (rows, stored))
    if len(new) != len(old):
        return [*found, f"{len(new)} rows, and {len(old)} are stored"]
    for name in common:
        one, other = new[name].map(_digits), old[name].map(_digits)
        if (differ := np.flatnonzero(one != other)).size:
            job = ", ".join(f"{label} {new[label][differ[0]]}" for label in labels)
            example = f"{one[differ[0]] or 'nothing'}, stored {other[differ[0]] or 'nothing'} ({job})"
            found.append(f"column '{name}' differs in {differ.size} of {len(new)} rows: {example}")
    return found


def _digits(value: object) -> str:
    """Return a number, or each of a list, to six digits, a word as it is, nothing for what is missing."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float | np.number | np.bool_):
        return "" if np.isnan(value) else f"{float(value):.6g}"
    return "" if value is None else " ".join(map(_digits, value))  # type: ignore[call-overload]
