"""The bootstrap of a fit: estimates, quantiles, shares of groups and densities with their uncertainty."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nlmeflow.arguments import column
from nlmeflow.errors import EstimationError, ModelError, is_number, whole
from nlmeflow.estimation.bootstrap import estimated_again
from nlmeflow.estimation.em import State
from nlmeflow.estimation.engine import broad_reference
from nlmeflow.estimation.information import reported_values
from nlmeflow.estimation.posterior import posterior_draws
from nlmeflow.fitting.bands import Bands
from nlmeflow.fitting.estimates import table_of_estimates, with_limits
from nlmeflow.fitting.fitted import Fitted
from nlmeflow.laws.draws import TrainingSet
from nlmeflow.laws.law import Law
from nlmeflow.laws.modes import Basins, basins, modes
from nlmeflow.numerics import dirichlet_weights, students
from nlmeflow.running import estimating, show_progress
from nlmeflow.seeds import Stream, derive, generator

LEAST = 10  # replicates
SAMPLE = 20_000  # draws of each law, for quantiles and shares
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """A fit and its replicates: law, beta and sigma, estimated with random weights of the individuals.

    Standard errors are standard deviations over R replicates times sqrt((N + 1) / (N - 1)): with Dirichlet
    weights of N individuals a mean varies by s^2 / (N + 1), s^2 with divisor N, and the variance of a mean is
    s^2 / (N - 1). 95 % limits are as many of them away as Student's distribution of R - 1 degrees of freedom
    has, of parameters on the scales of `Fit.standard_errors`. They say what other individuals would have
    changed, and know nothing of the bias of a law that is too simple. `n` is N, the number of groups in a
    model with two levels; `boundary` has kind and name of the parameters at a boundary.
    """

    fit: Fitted
    states: tuple[State, ...]
    boundary: list[tuple[str, str]]
    n: int

    @classmethod
    def of(cls, fit: Fitted, replicates: int, seed: int, progress: bool | None = None) -> "Bootstrap":
        """Estimate again with random weights, that many times; see `Fit.bootstrap`.

        Raises
        ------
        ModelError : fewer than 10 replicates, or a law made of points.
        EstimationError : the likelihood has no peak in the fixed effects and the residual parameters; the law
            is a mean over a posterior distribution.

        """
        fit, replicates = fit.estimated, whole("replicates", replicates, LEAST)
        if not fit.law.has_density:
            raise ModelError("A law made of points has no density to weigh posterior draws with.")
        if not fit.specification.maximised:
            raise EstimationError(
                f"A {fit.law.title} is a mean over a posterior distribution, not a maximum that could be "
                "found again with other weights of the individuals. nf.Mixture() has standard errors."
            )
        with estimating(), show_progress(fit.specification, progress) as report:
            problem, state = fit.problem(), fit.state
            reference = broad_reference(fit.law, fit.gaussian)
            random = generator(derive(seed, Stream.BOOTSTRAP_DRAWS))
            draws = posterior_draws(problem, fit.drawn, state, reference, random)
            training = TrainingSet(draws, derive(seed, Stream.BOOTSTRAP_LAWS), report=report)
            weights = dirichlet_weights(replicates, len(draws), derive(seed, Stream.BOOTSTRAP_WEIGHTS))
            found = estimated_again(fit.specification, problem, state, training, fit.drawn, weights)
            return cls(fit, *found, len(draws))

    @property
    def scale(self) -> float:
        """Standard errors over standard deviations of the replicates, sqrt((N + 1) / (N - 1))."""
        return math.sqrt((self.n + 1) / (self.n - 1))

    @property
    def laws(self) -> tuple[Law, ...]:
        """The replicates' laws."""
        return tuple(state.law for state in self.states)

    def parameters(self) -> pd.DataFrame:
        """Return estimates with standard errors from these replicates, as `Fit.standard_errors` has them."""
        with estimating():
            values = torch.stack([reported_values(self.fit.problem(), state) for state in self.states])
            own = reported_values(self.fit.problem(), self.fit.state)
            errors = self.scale * values.std(0)
            return table_of_estimates(self.fit, own, errors, self.boundary, students(0.95, len(values)))

    def quantiles(self, levels: float | Sequence[float] = LEVELS) -> pd.DataFrame:
        """Return quantiles of each parameter in the population on its natural scale, with limits.

        One row for each parameter and level: value, standard error, lower, upper. With covariates the
        population is that of `Fit.population`, where their effects add nothing.

        Raises
        ------
        ModelError : a level is not between 0 and 1.

        """
        given = np.ravel(levels).tolist()
        if not all(is_number(level) and 0 < level < 1 for level in given):
            raise ModelError(f"levels lie between 0 and 1, got {tuple(given)}.")
        names = self.fit.names

        def found(phi: Tensor) -> Tensor:
            natural = self.fit.model.curve.natural(phi, names)
            at = torch.tensor(given, dtype=phi.dtype)
            return torch.stack([natural[name].quantile(at) for name in names]).flatten()

        index = pd.MultiIndex.from_product([names, given], names=["parameter", "level"])
        return self._table(found, index)

    def shares(self) -> pd.DataFrame:
        """Return the groups, one around each mode of the fit's density, and the share of individuals in each.

        A group is where the density rises towards its mode; its places are those of the fit, on the natural
        scale, and the shares are masses of the laws in it: share, standard error, lower, upper. Where a
        parameter is called so, ours are "share of the group", "lower limit", "upper limit".

        Raises
        ------
        ModelError : more than three random parameters.

        """
        with estimating():
            groups = basins(self.fit.law)
            where = located(self.fit, groups)
        names = share_columns(self.fit.names)
        table = self._table(groups.shares, where.index).rename(columns={"value": "share"})
        return where.join(table.rename(columns=names))

    def number_of_groups(self) -> pd.Series:
        """Return in which share of the replicates the density has one mode, two, ...: indexed by the number.

        Raises
        ------
        ModelError : more than three random parameters.

        """
        with estimating():
            found = pd.Series([len(modes(law)) for law in self.laws])
        counts: pd.Series = found.value_counts(normalize=True).sort_index()
        return counts.rename_axis("groups").rename("share of replicates")

    def bands(self, level: float = 0.9) -> Bands:
        """Return pointwise bands for marginal densities.

        Raises
        ------
        ModelError : the level is not between 0 and 1.

        """
        labels = {name: self.fit.model.curve[name].label for name in self.fit.names}
        return Bands(self.fit.law, self.laws, labels, level, self.scale)

    def _table(self, found: Callable[[Tensor], Tensor], index: pd.Index) -> pd.DataFrame:
        """Return a number of the population, found from draws of its law, with its uncertainty."""
        with estimating():
            value = found(self.fit.law.sample(SAMPLE, 0)).numpy()
            errors = self.scale * np.stack([found(phi).numpy() for phi in self._samples]).std(0, ddof=1)
        frame = pd.DataFrame({"value": value, "standard error": errors}, index)
        return with_limits(frame, students(0.95, len(self.states)))

    @cached_property
    def _samples(self) -> list[Tensor]:
        return [law.sample(SAMPLE, 0) for law in self.laws]


def share_columns(names: Sequence[str]) -> dict[str, str]:
    """Return what share, lower and upper of a group are called beside parameters of these names."""
    longer = {"share": "share of the group", "lower": "lower limit", "upper": "upper limit"}
    return {ours: column(ours, long, names) for ours, long in longer.items()}


def located(fit: Fitted, groups: Basins) -> pd.DataFrame:
    """Return the mode of each group of a fit's law on the natural scale, one row each, numbered from 1."""
    places = torch.stack([mode.place for mode in groups.modes])
    natural = fit.model.curve.natural(places, fit.names)
    index = pd.RangeIndex(1, len(places) + 1, name="group")
    return pd.DataFrame({name: natural[name].numpy() for name in fit.names}, index)
