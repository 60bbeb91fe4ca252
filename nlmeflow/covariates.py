"""Covariates: how what is known of an individual moves the location of its parameters.

phi_i = X_i gamma + eta_i, eta_i drawn from the population law: on the unconstrained scale, so that on the log
scale of a clearance `log(weight / 70)` is a power of weight, and `sex` a ratio.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nlmeflow.arguments import names_of
from nlmeflow.errors import DataError, ModelError
from nlmeflow.records import Saved

TERM = re.compile(
    r"(?P<log>log\()?\s*(?P<name>[^\W\d](?:[\w. ]*\w)?)\s*"
    r"(?:(?P<sign>[-/])\s*(?P<number>([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?))?\s*(?P<end>\))?"
)
Terms = str | Sequence[str]

MANY_LEVELS = 10  # of a category, that fewer than two individuals each may have
FAR = 300.0  # standard deviations of a covariate between its mean and zero


@dataclass(frozen=True)
class Effect(Saved):
    """One coefficient gamma: phi of `parameter` moves by gamma x, x from the covariate `variable`.

    x is the covariate, less or over `reference` (sign "-" or "/"), its logarithm when `log`; or, with a
    `level`, one where the covariate has this level and zero elsewhere; `levels` are all that the model was
    fitted with, the first of them the reference.
    """

    parameter: str
    variable: str
    log: bool = False
    sign: str = "-"
    reference: float = 0.0
    level: str | None = None
    levels: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """How the effect is called in tables, such as "CL: log(weight / 70)" or "CL: sex = F"."""
        if self.level is not None:
            return f"{self.parameter}: {self.variable} = {self.level}"
        plain = self.reference == (1.0 if self.sign == "/" else 0.0)
        inner = self.variable if plain else f"{self.variable} {self.sign} {self.reference:g}"
        return f"{self.parameter}: {f'log({inner})' if self.log else inner}"

    @property
    def zero(self) -> float:
        """The value of the covariate at which the effect adds nothing."""
        if self.sign == "/":
            return self.reference if self.log else 0.0
        return self.reference + self.log

    def centred(self, centre: float) -> str:
        """Return the term of the same covariate that is zero at a centre, such as "weight - 70"."""
        number = np.format_float_positional(centre, trim="-")
        return f"log({self.variable} / {number})" if self.log else f"{self.variable} - {number}"

    def values(self, covariates: pd.DataFrame) -> Tensor:
        """Return x of each individual, (N,).

        Raises
        ------
        DataError : a value is not a number, not finite, not positive under a logarithm, or a level that no
            fitted individual had.
        ModelError : the covariate is absent.

        """
        _check_known(self.variable, covariates)
        column = covariates[self.variable]
        if self.level is not None:
            self._check_levels(column)
            return torch.tensor((column.astype(str) == self.level).to_numpy(dtype=np.float64))
        try:
            x = plain_numbers(column)
        except (TypeError, ValueError):
            raise DataError(
                f"Covariate '{self.variable}' was a number when the model was fitted, and is "
                f"{column.iloc[0]!r} here; give a number in the same unit, of dates for example days "
                "since the first: (dates - dates.min()).dt.total_seconds() / 86400."
            ) from None
        x = x / self.reference if self.sign == "/" else x - self.reference
        if self.log:
            wrong = np.flatnonzero(~(x > 0))
            if len(wrong):
                raise DataError(
                    f"log of covariate '{self.variable}' needs positive values; individual "
                    f"'{covariates.index[wrong[0]]}' has {column.iloc[wrong[0]]}."
                )
            x = np.log(x)
        if not np.isfinite(x).all():
            row = int(np.flatnonzero(~np.isfinite(x))[0])
            raise DataError(f"Covariate '{self.variable}' is not finite for '{covariates.index[row]}'.")
        return torch.from_numpy(x.copy())

    def _check_levels(self, column: pd.Series) -> None:
        known = column.astype(str).isin(self.levels) if self.levels else column.notna()
        wrong = np.flatnonzero(~known)
        if len(wrong):
            value = column.tolist()[wrong[0]]
            raise DataError(
                f"Covariate '{self.variable}' is {value!r} for '{column.index[wrong[0]]}'; "
                f"the model was fitted with {', '.join(map(repr, self.levels))}."
            )


def plain_numbers(column: pd.Series) -> np.ndarray:
    """Return a column as numbers.

    Raises
    ------
    TypeError, ValueError : it holds dates, durations, or words that are no numbers.

    """
    return column.astype(object).astype(float).to_numpy()  # objects: pyarrow would count nanoseconds


def read_terms(terms: Terms) -> tuple[str, ...]:
    """Return the terms of a formula such as "log(weight / 70) + sex", or of a list of terms.

    Raises
    ------
    ModelError : neither a formula nor names.

    """
    parts = terms.split("+") if isinstance(terms, str) else names_of("a formula", terms)
    return tuple(part.strip() for part in parts)


def effects_of(terms: Mapping[str, Sequence[str]], covariates: pd.DataFrame) -> tuple[Effect, ...]:
    """Return the effects that terms by parameter stand for; the levels of categories come from the data.

    Raises
    ------
    ModelError : a term cannot be read, its covariate is absent or holds durations, or a category has one
        level.

    """
    return tuple(
        effect
        for parameter, some in terms.items()
        for term in some
        for effect in _read(parameter, term, covariates)
    )


def check_term(term: str) -> re.Match[str]:
    """Return the parts of a term, or raise ModelError."""
    found = TERM.fullmatch(term)
    if found is None or bool(found["log"]) != bool(found["end"]) or found["name"] == "log":
        raise ModelError(
            f"'{term}' is not a term; accepted are a covariate's name, or with a number such as "
            "'age - 40' or 'weight / 70', and log(...) of these. Names are of letters, digits, points and "
            "blanks; rename other columns."
        )
    return found


def _read(parameter: str, term: str, covariates: pd.DataFrame) -> list[Effect]:
    found = check_term(term)
    name, column = found["name"], _check_known(found["name"], covariates)
    if pd.api.types.is_timedelta64_dtype(column) or str(column.dtype).startswith("duration"):
        raise ModelError(
            f"Covariate '{name}' holds durations; give a number in a unit of your choice, for example days: "
            f"frame['{name}'].dt.total_seconds() / 86400."
        )
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        if found["log"] or found["sign"]:
            raise ModelError(f"'{term}': covariate '{name}' is not a number; its name alone is accepted.")
        levels = sorted(column.astype(str).unique())
        if len(levels) < 2:
            raise ModelError(f"Covariate '{name}' has one level, '{levels[0]}'; it cannot have an effect.")
        if len(levels) == len(column) or len(levels) > max(MANY_LEVELS, len(column) / 2):
            raise ModelError(_too_many(name, levels, column))
        return [Effect(parameter, name, level=level, levels=tuple(levels)) for level in levels[1:]]
    sign = found["sign"] or "-"
    reference = float(found["number"]) if found["number"] else 0.0
    if sign == "/" and reference == 0:
        raise ModelError(f"'{term}' divides by zero.")
    return [Effect(parameter, name, bool(found["log"]), sign, reference)]


def _too_many(name: str, levels: Sequence[str], column: pd.Series) -> str:
    """Return in words what is wrong with a category of about as many levels as individuals."""
    said = f"Covariate '{name}' is a category with {len(levels)} levels for {len(column)} individuals"
    if pd.api.types.is_datetime64_any_dtype(column):
        return f"{said}: it holds dates. Give the days since one of them, as numbers."
    if pd.to_numeric(pd.Series(levels), errors="coerce").notna().all():
        return f"{said}: it holds numbers as text, such as '{levels[0]}'. Read them with pd.to_numeric."
    return (
        f"{said}, such as '{levels[0]}' and '{levels[1]}'; effects need levels that several individuals have."
    )


def _check_known(name: str, covariates: pd.DataFrame) -> pd.Series:
    if name not in covariates.columns:
        raise ModelError(
            f"The model needs the covariate '{name}': name it when reading the table, covariates=['{name}']."
        )
    return covariates[name]


def design(effects: Sequence[Effect], names: Sequence[str], covariates: pd.DataFrame) -> Tensor:
    """Return X (N, number of parameters, number of effects): what each effect adds to each parameter."""
    matrix = torch.zeros(len(covariates), len(names), len(effects), dtype=torch.float64)
    for k, effect in enumerate(effects):
        matrix[:, list(names).index(effect.parameter), k] = effect.values(covariates)
    return matrix


def check_design(matrix: Tensor, effects: Sequence[Effect], names: Sequence[str]) -> None:
    """Raise ModelError when effects that are to be estimated cannot be told apart."""
    for j, name in enumerate(names):
        columns = matrix[:, j][:, matrix[:, j].abs().sum(0) > 0]
        wanted = sum(effect.parameter == name for effect in effects)
        both = torch.cat([torch.ones(len(matrix), 1, dtype=torch.float64), columns], 1)
        scaled = both / both.norm(dim=0).clamp_min(1e-300)
        if int(torch.linalg.matrix_rank(scaled, rtol=1e-9)) < 1 + wanted:
            terms = ", ".join(effect.name for effect in effects if effect.parameter == name)
            raise ModelError(
                f"The effects {terms} cannot be told apart from each other or from the mean of {name}: "
                "one of the covariates is constant, or a combination of the others."
            )
    for k, effect in enumerate(effects):
        x = matrix[:, list(names).index(effect.parameter), k]
        if effect.level is None and float(x.mean().abs()) > FAR * float(x.std()):
            centre = effect.reference + float(x.mean())
            number = f"{centre:.0f}" if centre > 1000 else f"{centre:.4g}"
            how = f", such as '{effect.variable} - {number}'" if centre > 0 and effect.sign == "-" else ""
            seen = f"{float(x.min()):.7g} to {float(x.max()):.7g}"
            raise ModelError(
                f"{effect.name}: the covariate lies far from zero, {seen}, and the mean of "
                f"{effect.parameter} would be that at zero. Subtract a reference{how}."
            )
