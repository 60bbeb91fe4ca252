"""Tables in the manner of NONMEM."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from nlmeflow.data.longitudinal import LongitudinalData
from nlmeflow.errors import DataError

NEEDED = ("ID", "TIME", "DV", "AMT")


def read_nonmem(frame: pd.DataFrame, covariates: Sequence[str] = ()) -> LongitudinalData:
    """Return data from a table with columns ID, TIME, DV, AMT (and EVID, MDV when there).

    A row with AMT above zero is a dose, the others are observations; "." is an empty cell; rows with MDV = 1
    and no dose are left out. Every individual has one dose; its amount becomes the covariate "AMT" (take
    it with nf.curves.oral("AMT")), and times count from it. covariates : further columns, constant within
    individuals.

    Raises
    ------
    DataError : a column is missing, an individual has no dose or several, a cell is not a number.

    """
    for column in (*NEEDED, *covariates):
        if column not in frame.columns:
            raise DataError(f"No column '{column}' in the table; it needs {', '.join(NEEDED)}.")
    table = frame.replace(".", np.nan).reset_index(drop=True)
    for column in [c for c in ("TIME", "DV", "AMT", "EVID", "MDV") if c in table]:
        numbers = pd.to_numeric(table[column], errors="coerce")
        wrong = np.flatnonzero(numbers.isna() & table[column].notna())
        if len(wrong):
            value = table[column].iloc[wrong[0]]
            raise DataError(f"Column '{column}' is not a number in row {wrong[0]}: {value!r}.")
        table[column] = numbers
    dose = table["AMT"].fillna(0) > 0
    doses = table[dose].groupby("ID", sort=False)
    counts = doses.size().reindex(table["ID"].unique(), fill_value=0)
    if (counts != 1).any():
        who = counts[counts != 1]
        raise DataError(
            f"Individual '{who.index[0]}' has {who.iloc[0]} doses; exactly one row with AMT above zero is "
            "accepted for each individual. Several doses need a curve of your own."
        )
    first = table[dose].set_index("ID")
    seen = table[~dose & ~(table["MDV"].eq(1) if "MDV" in table else False)]
    seen = seen.assign(TIME=seen["TIME"] - seen["ID"].map(first["TIME"]), AMT=seen["ID"].map(first["AMT"]))
    early = np.flatnonzero(seen["TIME"] < 0)
    if len(early):
        row = seen.iloc[early[0]]
        raise DataError(
            f"Individual '{row['ID']}' is observed {-row['TIME']:g} before its dose; leave it out."
        )
    return LongitudinalData.from_frame(seen, "ID", "TIME", "DV", ["AMT", *covariates])
