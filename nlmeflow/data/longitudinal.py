"""Longitudinal data: repeated measures of many individuals, ragged, padded with a mask."""

from collections.abc import Hashable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nlmeflow.arguments import checked
from nlmeflow.arguments import column as free_name
from nlmeflow.data.checks import (
    censoring_bounds,
    check_finite,
    check_names,
    check_nested,
    check_present,
    check_roles,
    check_unique,
    constant_covariates,
    listed,
    numbers,
    positions,
    table_of,
)
from nlmeflow.data.files import check_columns, numbered
from nlmeflow.errors import DataError


@dataclass(frozen=True, eq=False)
class Doses:
    """Doses of each individual, (N, D) each.

    amount : 0 where there is none. duration : of an infusion, 0 of a bolus.
    interval : between the earlier doses, without end, that led to a steady state; 0 of a single dose.
    until : the time from which a dose counts no more, because a later one resets to its steady state.
    """

    time: Tensor
    amount: Tensor
    duration: Tensor
    interval: Tensor
    until: Tensor

    @classmethod
    def of(cls, table: pd.DataFrame, labels: tuple[Hashable, ...]) -> "Doses":
        """Return doses from columns ID, TIME, AMT and the other fields, in the order of the labels."""
        place = {label: k for k, label in enumerate(labels)}
        code, number = table["ID"].map(place).to_numpy(), table.groupby("ID").cumcount().to_numpy()
        columns = []
        for column in ("TIME", "AMT", "duration", "interval", "until"):
            values = np.zeros((len(labels), number.max() + 1))
            values[code, number] = table[column]
            columns.append(torch.from_numpy(values))
        return cls(*columns)

    def __getitem__(self, rows: Tensor | slice) -> "Doses":
        return Doses(**{name: part[rows] for name, part in vars(self).items()})


@dataclass(frozen=True, eq=False, repr=False)
class LongitudinalData:
    """Observations y_ij at times t_ij of individuals i = 1..N, j = 1..n_i.

    Attributes
    ----------
    time, response : Tensor, shape (N, n), n = max n_i, padded.
    mask : bool Tensor, shape (N, n), true where there is an observation.
    labels : the individuals' names, in order of first appearance.
    covariates : one row per individual, indexed by `labels`.
    names : the user's column names for individual, time and response.
    n_missing : rows of the table whose response was missing; they carry no information.
    bounds : None where every observation is known, or (low, high), each (N, n): where one is only known to
        lie between two values, infinite where it is known, or on the open side.
    group : None, or the column of `covariates` that says which group an individual belongs to.
    doses : None, or several doses, infusions or steady states of individuals, which the curve superposes.

    """

    time: Tensor
    response: Tensor
    mask: Tensor
    labels: tuple[Hashable, ...]
    covariates: pd.DataFrame
    names: tuple[str, str, str] = ("individual", "time", "response")
    n_missing: int = 0
    bounds: tuple[Tensor, Tensor] | None = None
    group: str | None = None
    doses: Doses | None = None

    def __post_init__(self) -> None:
        for name in ("time", "response", "mask"):
            if not isinstance(value := getattr(self, name), Tensor):
                raise DataError(
                    f"{name} is a tensor (N, n), got {type(value).__name__}. A table becomes data by "
                    "nf.LongitudinalData.from_frame, an array by nf.LongitudinalData.regular."
                )
        if not self.censored.any():
            object.__setattr__(self, "bounds", None)

    @classmethod
    def from_frame(
        cls,
        frame: pd.DataFrame | str | Path,
        individual: str,
        time: str,
        response: str,
        covariates: Sequence[str] | None = (),
        censoring: str | None = None,
        limit: str | None = None,
        group: str | None = None,
        replicates: Literal["refuse", "keep"] = "refuse",
    ) -> "LongitudinalData":
        """Read a long table, or the CSV file at a path: one row per observation.

        A column may be a level of the table's index. Names of individuals and groups in a file are kept as
        they are written: 1.1 and 1.10 are two; names that differ in capitals only are warned of.

        Missing responses (NaN) are left out and counted; individuals keep their place even when
        none of their responses was observed. Covariates are constant within an individual.

        censoring : column with "left" where the true value is at most the response (a score that
            saturates at 0, a concentration below the limit of quantification), "right" where it is at
            least the response (a score of 100, a variety still green), "interval" where it lies between
            the response and the value in the column `limit`; empty where it was observed. The response that
            is kept, and drawn in figures, is then the middle.

        group : column of what individuals belong to (the genotype of a plant, the subject of an occasion),
            for models with two levels, nf.Model(..., within=...). Names of individuals are not used again in
            another group.

        replicates : several rows of an individual at one time are refused, because they are mostly mistakes;
            "keep" takes them for measurements of their own (technical replicates).

        Raises
        ------
        DataError : a column is absent, stands twice or has two roles, `limit` without `censoring`, a value is
            not a finite number, two names look the same and are not, an (individual, time) pair stands twice,
            or a covariate changes within an individual.

        """
        covariates = listed(covariates)
        roles: dict[str, str | None] = {"individual": individual, "time": time, "response": response}
        check_roles(roles | {"censoring": censoring, "limit": limit})
        check_roles(roles | {f"covariate {name}": name for name in covariates})
        check_roles({"time": time, "response": response, "group": group})
        covariates = list(dict.fromkeys(covariates))
        frame = numbered(table_of(frame, individual, group))
        if limit is not None and censoring is None:
            raise DataError(
                f"limit='{limit}' holds the upper ends of intervals; name the column that says which rows "
                "are intervals, censoring=."
            )
        if replicates not in ("refuse", "keep"):
            raise DataError(f"replicates is 'refuse' or 'keep', got {replicates!r}.")
        if group is not None:
            check_columns(frame, [group, individual])
            check_nested(frame, individual, group)
            covariates += [] if group in covariates else [group]
        extra = [column for column in (censoring, limit) if column is not None]
        check_columns(frame, [individual, time, response, *covariates, *extra])
        if len(frame) == 0:
            raise DataError("The table has no rows; at least two individuals are needed.")
        for column in (individual, *([] if group is None else [group])):
            check_present(frame, column)
            check_names(frame, column)
        for column in covariates:
            if not pd.api.types.is_numeric_dtype(frame[column]):
                check_names(frame, column)
        if pd.api.types.is_bool_dtype(frame[response]):
            raise DataError(
                f"Column '{response}' holds True and False; a response is a measurement, for which numbers "
                "are accepted."
            )
        times = numbers(frame, time)
        values = numbers(frame, response)
        check_finite(frame, time, times, missing_allowed=False)
        check_finite(frame, response, values, missing_allowed=True)
        if replicates == "refuse":
            check_unique(frame, individual, time, times)

        code, labels = pd.factorize(frame[individual])
        table = constant_covariates(frame, individual, list(labels), covariates)
        keep = ~np.isnan(values)
        bounds = None
        if censoring is not None:
            sides = censoring_bounds(frame, response, values, censoring, limit)
            both = np.isfinite(sides).all(0)
            values = np.where(both, np.mean(np.where(both, sides, 0.0), 0), values)
        padded = _pad(code[keep], times[keep], values[keep], len(labels))
        if censoring is not None:
            low, high = (_pad(code[keep], times[keep], side[keep], len(labels))[1] for side in sides)
            bounds = (low.masked_fill(~padded[2], -torch.inf), high.masked_fill(~padded[2], torch.inf))
        return cls(
            *padded,
            labels=tuple(labels),
            covariates=table,
            names=(individual, time, response),
            n_missing=int((~keep).sum()),
            bounds=bounds,
            group=group,
        )

    @classmethod
    @checked
    def regular(
        cls, time: Tensor, response: Tensor, covariates: pd.DataFrame | None = None
    ) -> "LongitudinalData":
        """Return data of individuals 0..N-1 all observed, time and response (N, n), covariates (N rows).

        Whole numbers are accepted; copies of both are held, in double precision.

        Raises
        ------
        DataError : other shapes, another number of covariates' rows, complex numbers, or a value that is not
            finite; a covariate with an empty cell.

        """
        if time.shape != response.shape or time.ndim != 2:
            raise DataError(
                f"time and response are both of shape (N, n); got {tuple(time.shape)} and "
                f"{tuple(response.shape)}."
            )
        for name, values in (("time", time), ("response", response)):
            if values.is_complex():
                raise DataError(f"{name} holds complex numbers; real numbers are accepted, {name}.real.")
            if len(wrong := torch.nonzero(~torch.isfinite(values))):
                row, column = wrong[0].tolist()
                raise DataError(
                    f"{name}[{row}, {column}] is {float(values[row, column])}; it must be finite. "
                    "Where responses are missing, read a table with nf.LongitudinalData.from_frame."
                )
        n = len(time)
        if covariates is not None and len(covariates) != n:
            raise DataError(f"covariates has {len(covariates)} rows for {n} individuals; one for each.")
        time, response = (deepcopy(values.detach()).double() for values in (time, response))
        mask = torch.ones_like(time, dtype=torch.bool)
        table = pd.DataFrame(index=range(n))
        if covariates is not None:
            table = table_of(covariates).set_axis(range(n), axis=0)
        for column in table:
            check_present(table, column)
        return cls(time, response, mask, tuple(range(n)), table)

    def __len__(self) -> int:
        """Return the number of individuals N."""
        return len(self.labels)

    @property
    def counts(self) -> Tensor:
        """Observations per individual n_i, shape (N,)."""
        return self.mask.sum(1)

    @property
    def n_observations(self) -> int:
        """Return the total number of observations, the sum of n_i."""
        return int(self.mask.sum())

    def subset(self, index: object) -> "LongitudinalData":
        """Return some individuals.

        index : a mask, True or False for each individual; or positions from 0 (negative ones count from
            the end); or names, where names are not whole numbers. Whole numbers, 1.0 too, are positions
            (unless names have fractions, 1.5 and 2.0). A pandas Series of True and False whose index
            holds the individuals' names is taken by name. An individual chosen twice stands there twice,
            as in a bootstrap.

        Raises
        ------
        DataError : a mask of another length, or written as 0 and 1; a position out of range, an unknown name,
            nobody chosen.

        """
        rows = torch.from_numpy(positions(index, self.labels))
        width = max(int(self.mask[rows].sum(1).max()), 1)
        bounds = None if self.bounds is None else tuple(side[rows, :width] for side in self.bounds)
        return LongitudinalData(
            self.time[rows, :width],
            self.response[rows, :width],
            self.mask[rows, :width],
            labels=tuple(self.labels[i] for i in rows.tolist()),
            covariates=self.covariates.iloc[rows.numpy()],
            names=self.names,
            bounds=bounds,  # type: ignore[arg-type]
            group=self.group,
            doses=None if self.doses is None else self.doses[rows],
        )

    def with_doses(self, doses: Doses) -> "LongitudinalData":
        """Return the data with doses of each individual."""
        return replace(self, doses=doses)

    def about(self, row: int, column: int) -> str:
        """Return an observation in the user's words: individual, time and response."""
        who, when, what = self.names
        time, response = float(self.time[row, column]), float(self.response[row, column])
        return f"{who} '{self.labels[row]}' has {what} = {response:g} at {when} = {time:g}"

    @property
    def observed(self) -> "LongitudinalData":
        """The individuals with at least one observation."""
        seen = self.counts > 0
        return self if bool(seen.all()) else self.subset(seen)

    def __repr__(self) -> str:
        columns = ", ".join(map(str, self.names))
        return f"LongitudinalData({len(self)} individuals, {self.n_observations} observations: {columns})"

    def __eq__(self, other: object) -> bool:
        """Whether two data sets hold the same individuals, observations, covariates and doses."""
        if not isinstance(other, LongitudinalData):
            return NotImplemented
        (known, parts), (others, its_parts) = self._held, other._held
        same = known == others and self.covariates.equals(other.covariates)
        return same and all(map(torch.equal, parts, its_parts))

    @property
    def _held(self) -> tuple[tuple[object, ...], list[Tensor]]:
        doses = () if self.doses is None else vars(self.doses).values()
        about = (self.labels, self.names, self.group, self.bounds is None, self.doses is None)
        return about, [self.time, self.response, self.mask, *(self.bounds or ()), *doses]

    __hash__ = object.__hash__

    def grouped(self) -> tuple[np.ndarray, pd.Index]:
        """Return the number of each individual's group (N,), and the groups' names.

        Raises
        ------
        DataError : the data have no groups.

        """
        if self.group is None:
            raise DataError("The data have no groups; name their column with from_frame(..., group=).")
        return pd.factorize(self.covariates[self.group])

    @property
    def censored(self) -> Tensor:
        """Where an observation is only known to lie between bounds, (N, n)."""
        if self.bounds is None:
            return torch.zeros_like(self.mask)
        return torch.isfinite(self.bounds[0]) | torch.isfinite(self.bounds[1])

    def to_frame(self) -> pd.DataFrame:
        """Return the observed rows as a long table with the user's column names, as `from_frame` reads it.

        Censored observations have columns "censoring" and "limit", or "censoring of RESPONSE" and "limit of
        RESPONSE" where the user has columns called so. Doses are not in the table.
        """
        row, column = torch.nonzero(self.mask, as_tuple=True)
        individual, time, response = self.names
        frame = pd.DataFrame(
            {
                individual: [self.labels[i] for i in row.tolist()],
                time: self.time[row, column].numpy(),
                response: self.response[row, column].numpy(),
            }
        )
        if self.bounds is not None:
            low, high = (side[row, column].numpy() for side in self.bounds)
            below, above = np.isfinite(high), np.isfinite(low)
            sides = [below & above, below, above]
            seen = frame[response].to_numpy()
            frame[response] = np.select(sides, [low, high, low], seen)
            theirs = {*self.names, *self.covariates.columns}
            censoring, limit = (free_name(n, f"{n} of {response}", theirs) for n in ("censoring", "limit"))
            frame[censoring] = np.select(sides, ["interval", "left", "right"], "")
            frame[limit] = np.where(sides[0], high, np.nan)
        covariates = self.covariates.iloc[row.numpy()].set_axis(frame.index)  # names may stand twice
        return pd.concat([frame, covariates], axis=1)


def _pad(
    code: np.ndarray, times: np.ndarray, values: np.ndarray, n_individuals: int
) -> tuple[Tensor, Tensor, Tensor]:
    order = np.lexsort((times, code))
    code, times, values = code[order], times[order], values[order]
    counts = np.bincount(code, minlength=n_individuals)
    width = max(int(counts.max(initial=0)), 1)
    rank = np.arange(len(code)) - np.repeat(np.cumsum(counts) - counts, counts)
    fill = times[0] if len(times) else 0.0
    time = np.full((n_individuals, width), fill)
    response = np.zeros((n_individuals, width))
    mask = np.zeros((n_individuals, width), dtype=bool)
    time[code, rank], response[code, rank], mask[code, rank] = times, values, True
    return torch.from_numpy(time), torch.from_numpy(response), torch.from_numpy(mask)
