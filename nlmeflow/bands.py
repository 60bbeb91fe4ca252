"""Bands: how far the density of the population could be another, with other individuals seen."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from nlmeflow.errors import ModelError
from nlmeflow.estimation.bootstrap import refit, shares
from nlmeflow.estimation.cloud import Cloud, broad_reference
from nlmeflow.estimation.learning import Lesson
from nlmeflow.estimation.likelihood import population_gaussian
from nlmeflow.estimation.particles import posterior_draws
from nlmeflow.laws import Law
from nlmeflow.marginals import marginal_density, span
from nlmeflow.running import one_thread, show_progress
from nlmeflow.seeds import derive, generator

if TYPE_CHECKING:
    from nlmeflow.fit import Fit

DRAWS = 64


@dataclass(frozen=True)
class Bands:
    """Laws refitted with random weights of the individuals, and pointwise bands from them.

    fit : what they are bands of; laws : the replicates; level : the bands' coverage, pointwise.
    """

    fit: "Fit"
    laws: tuple[Law, ...]
    level: float

    def table(self, parameter: str, grid: np.ndarray | None = None) -> pd.DataFrame:
        """Return density, lower and upper of a parameter's marginal density at points of phi's scale.

        Lower and upper are quantiles of the replicates' densities at each point.
        """
        if parameter not in self.fit.names:
            raise ModelError(f"'{parameter}' is not among {', '.join(self.fit.names)}.")
        axis = self.fit.names.index(parameter)
        points = span(self.fit.law, axis) if grid is None else np.asarray(grid, dtype=float)
        densities = np.stack([marginal_density(law, [axis], [points]) for law in self.laws])
        tail = (1 - self.level) / 2
        low, high = np.quantile(densities, [tail, 1 - tail], axis=0)
        columns = {"density": marginal_density(self.fit.law, [axis], [points]), "lower": low, "upper": high}
        return pd.DataFrame(columns, index=pd.Index(points, name=parameter))

    @classmethod
    def of(
        cls, fit: "Fit", replicates: int, level: float, seed: int, progress: bool | None = None
    ) -> "Bands":
        """Refit the law of a fit from its posterior draws; see `Fit.bands`."""
        if replicates < 10:
            raise ModelError(f"replicates is at least 10, got {replicates}.")
        if not 0 < level < 1:
            raise ModelError(f"level lies between 0 and 1, got {level!r}.")
        with one_thread(), torch.no_grad(), show_progress(fit.specification, progress) as report:
            lesson = Lesson(_cloud(fit, seed), derive(seed, 96), report)
            share = shares(len(fit.latent[0]), replicates, derive(seed, 97))
            return cls(fit, tuple(refit(fit.specification, lesson, share)), level)


def _cloud(fit: "Fit", seed: int) -> Cloud:
    """Return posterior draws under a broad reference law, from the particles that the fit has."""
    phi, weights = fit.latent
    reference = broad_reference(fit.law, population_gaussian(fit.law, derive(fit.seed, 93)))
    log_reference = reference.log_prob(phi)
    moved = (weights.clamp_min(1e-300).log() + log_reference - fit.law.log_prob(phi)).softmax(1)
    drawn = posterior_draws(phi, moved, DRAWS, generator(derive(seed, 95)))
    return Cloud(drawn, reference.log_prob(drawn))
