"""Bands: how far the density of the population could be another, with other individuals seen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nlmeflow.arguments import taken
from nlmeflow.errors import ModelError, number
from nlmeflow.laws.law import Law
from nlmeflow.laws.marginals import marginal_density, span
from nlmeflow.numerics import students


@dataclass(frozen=True)
class Bands:
    """Laws refitted with random weights of the individuals, and pointwise bands from them.

    law : what they are bands of; laws : the replicates; labels : of the parameters with their units, by name;
    level : the bands' coverage, pointwise; scale : standard errors over standard deviations of replicates.

    Raises
    ------
    ModelError : the level is not between 0 and 1.

    """

    law: Law
    laws: tuple[Law, ...]
    labels: Mapping[str, str]
    level: float
    scale: float = 1.0

    def __post_init__(self) -> None:
        number("level", self.level, 0, 1)

    def table(self, parameter: str, grid: np.ndarray | None = None) -> pd.DataFrame:
        """Return density, lower and upper of a parameter's marginal density at points of phi's scale.

        Lower is the lower of two limits at each point, upper the higher: the quantile of the replicates'
        densities, beyond which one more of them would lie so often, and the law's own density less or plus
        as many standard errors as Student's distribution has there. With few replicates, or where they lean
        to one side, either alone is narrow.

        Raises
        ------
        ModelError : no random parameter of this name; a grid that is no list of rising numbers.

        """
        if parameter not in self.labels:
            raise ModelError(f"'{parameter}' is not among {', '.join(self.labels)}.")
        axis = list(self.labels).index(parameter)
        points = (
            span(self.law, axis) if grid is None else np.array(taken("grid", grid, Sequence[float]), float)
        )
        densities = np.stack([marginal_density(law, [axis], [points]) for law in self.laws])
        tail = (1 - self.level) / 2
        low, high = np.quantile(densities, [tail, 1 - tail], axis=0, method="weibull")
        density = marginal_density(self.law, [axis], [points])
        half = students(self.level, len(densities)) * self.scale * densities.std(0, ddof=1)
        low, high = np.minimum(low, density - half).clip(0), np.maximum(high, density + half)
        columns = {"density": density, "lower": low, "upper": high}
        return pd.DataFrame(columns, index=pd.Index(points, name=parameter))
