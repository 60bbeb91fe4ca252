"""Bands: how far the density of the population could be another, with other individuals seen.

The weighted-likelihood bootstrap: weights are N times a Dirichlet(1, ..., 1) draw (Rubin 1981; Newton and
Raftery, JRSS B 1994), and each replicate maximises sum_i w_i log p(y_i). From posterior draws that needs no
call of the curve. sigma and the fixed effects are kept at their estimates.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nlmeflow.errors import ModelError
from nlmeflow.estimation.engine import broad_reference
from nlmeflow.fitting.fitted import Fitted
from nlmeflow.laws.draws import PosteriorDraws, TrainingSet, resample
from nlmeflow.laws.law import Law
from nlmeflow.laws.marginals import marginal_density, span
from nlmeflow.numerics import TINY, dirichlet_weights
from nlmeflow.running import estimating, show_progress
from nlmeflow.seeds import Stream, derive, generator

DRAWS = 64


@dataclass(frozen=True)
class Bands:
    """Laws refitted with random weights of the individuals, and pointwise bands from them.

    law : what they are bands of; laws : the replicates; labels : of the parameters with their units, by name;
    level : the bands' coverage, pointwise.
    """

    law: Law
    laws: tuple[Law, ...]
    labels: Mapping[str, str]
    level: float

    def table(self, parameter: str, grid: np.ndarray | None = None) -> pd.DataFrame:
        """Return density, lower and upper of a parameter's marginal density at points of phi's scale.

        Lower and upper are quantiles of the replicates' densities at each point.
        """
        if parameter not in self.labels:
            raise ModelError(f"'{parameter}' is not among {', '.join(self.labels)}.")
        axis = list(self.labels).index(parameter)
        points = span(self.law, axis) if grid is None else np.asarray(grid, dtype=float)
        densities = np.stack([marginal_density(law, [axis], [points]) for law in self.laws])
        tail = (1 - self.level) / 2
        low, high = np.quantile(densities, [tail, 1 - tail], axis=0)
        columns = {"density": marginal_density(self.law, [axis], [points]), "lower": low, "upper": high}
        return pd.DataFrame(columns, index=pd.Index(points, name=parameter))

    @classmethod
    def of(
        cls, fit: Fitted, replicates: int, level: float, seed: int, progress: bool | None = None
    ) -> "Bands":
        """Refit the law of a fit from its posterior draws; see `Fit.bands`."""
        if replicates < 10:
            raise ModelError(f"replicates is at least 10, got {replicates}.")
        if not 0 < level < 1:
            raise ModelError(f"level lies between 0 and 1, got {level!r}.")
        labels = {name: fit.model.curve[name].label for name in fit.names}
        with estimating(), show_progress(fit.specification, progress) as report:
            training = TrainingSet(_draws(fit, seed), derive(seed, Stream.BAND_LAWS), report=report)
            weights = dirichlet_weights(replicates, len(fit.latent[0]), derive(seed, Stream.BAND_WEIGHTS))
            return cls(fit.law, tuple(fit.specification.refit(training, weights)), labels, level)


def _draws(fit: Fitted, seed: int) -> PosteriorDraws:
    """Return posterior draws under a broad reference law, from the particles that the fit has.

    Raises
    ------
    ModelError : the law is made of points, and has no density.

    """
    phi, weights = fit.latent
    reference = broad_reference(fit.law, fit.gaussian)
    log_reference = reference.log_prob(phi)
    moved = (weights.clamp_min(TINY).log() + log_reference - fit.law.log_prob(phi)).softmax(1)
    drawn = resample(phi, moved, DRAWS, generator(derive(seed, Stream.BAND_DRAWS)))
    return PosteriorDraws(drawn, reference.log_prob(drawn))
