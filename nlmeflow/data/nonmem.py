"""Tables in the manner of NONMEM: doses and observations of one individual in rows below one another."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal
from warnings import warn

import numpy as np
import pandas as pd

from nlmeflow.data.checks import (
    check_constant,
    check_finite,
    check_present,
    check_single,
    listed,
    numbers,
    table_of,
)
from nlmeflow.data.files import check_columns, numbered, place
from nlmeflow.data.longitudinal import Doses, LongitudinalData
from nlmeflow.errors import DataError

NEEDED = ["ID", "TIME", "DV", "AMT"]
USED = ["EVID", "MDV", "CENS", "LIMIT", "ADDL", "II", "SS", "RATE", "TINF"]
ONE_VALUE = {"DVID": "kinds of response", "YTYPE": "kinds of response", "CMT": "compartments"}
ROUTES = {"CMT": "compartments", "ADM": "routes of administration"}  # of doses
MOST_DOSES = 10_000  # of an individual
FLAGS = {"BLQ", "BQL", "BLOQ", "ALQ", "AQL"}  # columns that other tables have in the place of CENS
LIMITS = {"LLOQ", "LOQ", "LOD"}
REFUSED = {
    "PCMT": "PCMT is not supported",
    "CALL": "CALL is not supported",
    "DUR": "DUR is not supported (call the duration of an infusion TINF)",
    "DATE": "calendar dates (DATE) are not supported: give TIME in one unit",
    "DAT1": "calendar dates (DAT1) are not supported: give TIME in one unit",
    "DAT2": "calendar dates (DAT2) are not supported: give TIME in one unit",
    "DAT3": "calendar dates (DAT3) are not supported: give TIME in one unit",
}


def read_nonmem(
    frame: pd.DataFrame | str | Path,
    covariates: Sequence[str] | None = (),
    replicates: Literal["refuse", "keep"] = "refuse",
) -> LongitudinalData:
    """Return data from a table, or a CSV file, with columns ID, TIME, DV, AMT; "." is an empty cell.

    A row with AMT above zero (EVID 1) is a dose, and DV in it is refused unless EVID or MDV is 1; rows with
    EVID 0 are observations, rows with EVID 2, or MDV 1 and no dose, are neither and left out; an individual
    whom this leaves without observations keeps its place. ADDL further doses follow at intervals of II. SS 1:
    a dose is the last of infinitely many, II apart (steady state), and what came before it counts no more;
    SS 2: they add to it. RATE, or the duration TINF, make a dose an infusion. CENS 1: DV is an upper bound (a
    limit of quantification), with LIMIT the lower one; CENS -1: a lower bound, with LIMIT the upper one.
    covariates : further columns, constant within individuals. replicates : as in
    `LongitudinalData.from_frame`.

    Times count from each individual's first dose. The amount of a single dose becomes the covariate "AMT",
    taken with nf.curves.oral("AMT"); several doses, steady states, and infusions with
    nf.curves.infusion("AMT", "TINF"), are superposed by the curve, which is linear in them. An observation at
    the time of a dose comes after it if the dose is the first or sets a steady state, before a later one.

    Raises
    ------
    DataError : a column is missing, or its name is not in capitals; an individual has no dose; a cell is not
        a number; a dose would hide an observation; II without a column ADDL or SS; a limit of quantification
        that CENS does not say; resets (EVID 3 and 4), modelled rates, several responses or compartments,
        which are not supported.

    """
    covariates = listed(covariates)
    table = numbered(_without_points(table_of(frame, "ID")))
    if "ID" in table and isinstance(table["ID"].dtype, pd.CategoricalDtype):  # of which some may be absent
        table["ID"] = table["ID"].astype(object).infer_objects()
    check_columns(table, [*NEEDED, *covariates])
    _check_capitals(table, covariates)
    check_single(table, "ID")
    check_present(table, "ID")
    numeric = ("TIME", "DV", "AMT", *USED, *ONE_VALUE, *ROUTES, "PCMT", "CALL", "DUR")
    for column in [c for c in numeric if c in table]:
        table[column] = numbers(table, column)
        if column != "DV":  # which is used in rows of observations only
            check_finite(table, column, table[column].to_numpy(), missing_allowed=True)
    if "CENS" not in table:
        _check_limits(table, covariates)
    if "II" in table and not {"ADDL", "SS"} & set(table):
        _check_alone(table)
    for column in USED:
        if column not in table:
            table[column] = np.nan
    _check_supported(table)
    begun = table["ID"][table["ID"].ne(table["ID"].shift())]  # where rows of another individual begin
    if begun.duplicated().any():
        warn(
            f"Rows of individual '{begun[begun.duplicated()].iloc[0]}' do not stand together. Here they are "
            "one individual; NONMEM would take them for several.",
            stacklevel=2,
        )
    event = table["EVID"].fillna((table["AMT"].fillna(0) > 0).astype(float))
    doses = table[event == 1]
    observed = (event == 0) & ~table["MDV"].eq(1)
    empty = ~table["ID"].isin(table.loc[observed, "ID"]) & ~table["ID"].duplicated()
    check_finite(table[observed], "TIME", table.loc[observed, "TIME"].to_numpy(), missing_allowed=False)
    seen = table[observed | empty].copy()
    first = doses.groupby("ID", sort=False)["TIME"].min()
    without = [who for who in table["ID"].unique() if who not in first.index]
    if without:
        raise DataError(f"Individual '{without[0]}' has no dose; one row with AMT above zero is needed.")
    seen["TIME"] -= seen["ID"].map(first)
    seen.loc[empty, ["TIME", "DV", "CENS"]] = [0.0, np.nan, np.nan]  # a row without data keeps the place
    early = np.flatnonzero(seen["TIME"] < 0)
    if len(early):
        who, before = seen["ID"].iloc[early[0]], -seen["TIME"].iloc[early[0]]
        raise DataError(f"Individual '{who}' is observed {before:g} before its dose; leave it out.")
    doses = _expanded(doses.assign(TIME=doses["TIME"] - doses["ID"].map(first)), seen["TIME"].max())
    counts = doses.groupby("ID").size()
    single = bool((counts == 1).all() and (doses[["duration", "interval"]] == 0).all(axis=None))
    if single:
        seen["AMT"] = seen["ID"].map(doses.set_index("ID")["AMT"])
    kept = [*(["AMT"] if single else []), *covariates]
    check_constant(table, "ID", [name for name in covariates if not (single and name == "AMT")])
    censoring, limit = _censored(seen)
    data = LongitudinalData.from_frame(
        seen, "ID", "TIME", "DV", kept, censoring, limit, replicates=replicates
    )
    data = replace(data, n_missing=data.n_missing - int(empty.sum()))
    return data if single else data.with_doses(Doses.of(doses, data.labels))


def _without_points(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with empty cells for "."; what is left of such a column are numbers, where all are."""
    found = table.replace(".", np.nan)
    for column in found.columns[(found.isna() & table.notna()).any()]:
        values = pd.to_numeric(found[column], errors="coerce")
        if values.notna().equals(found[column].notna()):
            found[column] = values
    return found


def _check_capitals(table: pd.DataFrame, covariates: list[str]) -> None:
    for column in table.columns.difference(covariates, sort=False):
        meant = str(column).upper()
        if meant in {*USED, *ONE_VALUE, *ROUTES, *REFUSED} and meant not in table:
            raise DataError(
                f"Column '{column}' may be meant for {meant}, which is written in capitals: "
                f"frame.rename(columns={{'{column}': '{meant}'}}). If it is something else, rename it too."
            )


def _check_limits(table: pd.DataFrame, covariates: list[str]) -> None:
    """Raise DataError where another column than CENS may say that a response lies beyond a limit."""
    observed = ~(table["AMT"] > 0) & table["DV"].notna()
    for column in table.columns.difference(covariates, sort=False):
        name = str(column).upper()
        if name not in FLAGS | LIMITS:
            continue
        values = numbers(table, column)
        beyond = table["DV"].le(values) if name in LIMITS else ~np.isnan(values) & (values != 0)
        if (beyond & observed).any():
            where = place(table, int(np.flatnonzero(beyond & observed)[0]))
            raise DataError(
                f"By column '{column}', DV may lie beyond a limit of quantification in {where}: say "
                "so with CENS 1 (below) or -1 (above), and the limit for DV. If it is something else, rename "
                "the column."
            )


def _check_alone(table: pd.DataFrame) -> None:
    given = np.flatnonzero(table["II"].gt(0) & table["AMT"].gt(0))
    if len(given):
        raise DataError(
            f"{place(table, int(given[0])).capitalize()} has II, the time between doses, and no column ADDL "
            "or SS says what is repeated. If nothing is, leave II out."
        )


def _check_supported(table: pd.DataFrame) -> None:
    for column in [name for name in REFUSED if name in table]:
        given = np.flatnonzero(table[column].notna() & ~table[column].isin([0, "0"]))
        if len(given):
            row, what = int(given[0]), REFUSED[column]
            raise DataError(f"{place(table, row).capitalize()}: {what}.")
    if "C" in table and (comment := table["C"].astype(str).eq("C")).any():
        row = int(np.flatnonzero(comment)[0])
        raise DataError(
            f"{place(table, row).capitalize()} is a comment: leave out those with C in column 'C'."
        )
    observed = table[table["AMT"].fillna(0) == 0]
    for column, what in ONE_VALUE.items():
        if column in table and observed[column].dropna().nunique() > 1:
            raise DataError(
                f"Column '{column}' tells several {what} apart among the observations; one is supported: "
                f"frame[frame['{column}'] == ...]."
            )
    dosed = table[table["AMT"].fillna(0) > 0]
    for column, what in ROUTES.items():
        if column in table and len(into := dosed[column].dropna().unique()) > 1:
            raise DataError(
                f"Column '{column}' has doses by several {what}, {into[0]:g} and {into[1]:g}; one is "
                "supported. Keep the individuals that are dosed by one of them."
            )
    for column, allowed in {"EVID": (0, 1, 2), "MDV": (0, 1), "SS": (0, 1, 2), "CENS": (-1, 0, 1)}.items():
        others = np.flatnonzero(table[column].notna() & ~table[column].isin(allowed))
        if len(others):
            raise DataError(
                f"Column '{column}' is {table[column].iloc[others[0]]:g} in {place(table, others[0])}; "
                f"supported are {', '.join(map(str, allowed))}."
            )
    dose, amount = table["EVID"].eq(1), table["AMT"].fillna(0) > 0
    response = table["DV"].fillna(0) != 0
    same = np.isclose(table["AMT"], table["RATE"] * table["TINF"])
    for wrong, why in (
        (dose & ~amount, "is a dose (EVID 1) without AMT above zero"),
        (amount & table["EVID"].isin((0, 2)), "has AMT above zero and is no dose by EVID"),
        (
            amount & response & table["EVID"].isna() & ~table["MDV"].eq(1),
            "has AMT above zero, which makes it a dose, and DV too, which would be lost: a dose and an "
            "observation need a row each, with AMT 0 in that of the observation, or EVID 1 where DV is none. "
            "One dose at time 0 that stands in every row is a covariate: "
            "nf.LongitudinalData.from_frame(frame, 'ID', 'TIME', 'DV', ['AMT'])",
        ),
        (table["RATE"].fillna(0) < 0, "has a modelled rate or duration (RATE below zero), not supported"),
        (table["AMT"].fillna(0) < 0, "has AMT below zero"),
        (amount & table["TIME"].isna(), "is a dose without TIME"),
        (table["TINF"].fillna(0) < 0, "has TINF below zero"),
        (
            amount & table["RATE"].gt(0) & table["TINF"].gt(0) & ~same,
            "has a duration TINF other than AMT / RATE",
        ),
        (table["ADDL"].fillna(0) < 0, "has ADDL below zero"),
        (table["ADDL"].fillna(0) % 1 != 0, "has ADDL that is no whole number"),
        (table["ADDL"].gt(0) & ~table["II"].gt(0), "has ADDL without II above zero"),
        (table["SS"].gt(0) & ~amount, "is at steady state (SS) without AMT above zero"),
        (
            table["SS"].gt(0) & ~table["II"].gt(0),
            "is at steady state (SS) without II, the time between doses",
        ),
    ):
        if wrong.any():
            where = place(table, int(np.flatnonzero(wrong)[0]))
            raise DataError(f"{where.capitalize()} {why}.")


def _expanded(doses: pd.DataFrame, last: float) -> pd.DataFrame:
    """Return one row per dose, the fields of `Doses`; SS 1 also cancels the doses that ADDL has in store.

    last : time after which nothing is observed, so that one dose after it stands for all that ADDL adds.
    """
    doses = doses.sort_values(["ID", "TIME"], kind="stable")
    resets = doses["TIME"].where(doses["SS"] == 1).groupby(doses["ID"])
    until = resets.shift(-1).groupby(doses["ID"]).bfill().fillna(np.inf)
    rate = doses["RATE"].fillna(0)
    duration = (doses["AMT"] / rate.where(rate > 0)).fillna(doses["TINF"]).fillna(0)
    needed = ((last - doses["TIME"]) / doses["II"]).where(doses["ADDL"] > 0, 0.0).clip(lower=0) + 1
    again = doses["ADDL"].fillna(0).clip(upper=needed).astype(int) + 1
    _check_few(again.groupby(doses["ID"], sort=False).sum())
    rows = doses.assign(duration=duration, until=until).loc[doses.index.repeat(again)]
    number = rows.groupby(level=0).cumcount()
    rows["TIME"] += number * rows["II"].fillna(0)
    rows["interval"] = rows["II"].where((number == 0) & rows["SS"].gt(0), 0.0)
    rows = rows[rows["TIME"] < rows["until"]].sort_values(["ID", "TIME"], kind="stable")
    return rows[["ID", "TIME", "AMT", "duration", "interval", "until"]]


def _check_few(counts: pd.Series) -> None:
    """Raise DataError where ADDL makes more doses of an individual than can be superposed one by one."""
    if counts.max() > MOST_DOSES:
        raise DataError(
            f"Individual '{counts.idxmax()}' has {counts.max():,} doses by ADDL and II until the last "
            f"observation; at most {MOST_DOSES:,} are superposed. Give the last of them as a dose at steady "
            "state, SS 1."
        )


def _censored(seen: pd.DataFrame) -> tuple[str | None, str | None]:
    """Have CENS, LIMIT and DV say how observations are censored in the manner of `from_frame`, if any is."""
    side = seen["CENS"].fillna(0)
    if not (side != 0).any():
        return None, None
    bounded = side.ne(0) & seen["LIMIT"].notna() & seen["DV"].notna()
    wrong = np.flatnonzero(bounded & ~(side * (seen["DV"] - seen["LIMIT"]) > 0))
    if len(wrong):
        where = "below" if side.iloc[wrong[0]] == 1 else "above"
        raise DataError(
            f"Column 'LIMIT' must be {where} column 'DV' in {place(seen, wrong[0])}, which is censored "
            f"(CENS {side.iloc[wrong[0]]:g}): the value lies between them."
        )
    seen["CENS"] = np.select([bounded, side == 1, side == -1], ["interval", "left", "right"], "")
    ends = seen[["DV", "LIMIT"]]
    seen["LIMIT"] = ends["DV"].where(~bounded, ends.max(axis=1))
    seen["DV"] = ends["DV"].where(~bounded, ends.min(axis=1))
    return "CENS", "LIMIT"
