"""Bands: how far the density of the population could be another, with other individuals seen."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nlmeflow.errors import ModelError
from nlmeflow.laws.law import Law
from nlmeflow.laws.marginals import marginal_density, span


@dataclass(frozen=True)
class Bands:
    """Laws refitted with random weights of the individuals, and pointwise bands from them.

    law : what they are bands of; laws : the replicates; labels : of the parameters with their units, by name;
    level : the bands' coverage, pointwise.

    Raises
    ------
    ModelError : the level is not between 0 and 1.

    """

    law: Law
    laws: tuple[Law, ...]
    labels: Mapping[str, str]
    level: float

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise ModelError(f"level lies between 0 and 1, got {self.level!r}.")

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
