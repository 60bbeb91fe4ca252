"""Discrete laws: the population as a few points with weights, assumed to have no shape at all.

The nonparametric maximum-likelihood estimate of a mixing law is discrete, with at most N points
(Lindsay, Annals of Statistics 1983).
"""

from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import torch
from torch import Tensor

from nlmeflow.arguments import column, names_of
from nlmeflow.errors import ModelError, number
from nlmeflow.laws.affine import check_weights
from nlmeflow.laws.gaussian import GaussianLaw
from nlmeflow.laws.kernels import KernelLaw
from nlmeflow.laws.law import Law
from nlmeflow.numerics import moments
from nlmeflow.seeds import Seed, generator


@dataclass(frozen=True, eq=False)
class DiscreteLaw(Law):
    """sum_k w_k delta(phi_k): support (K, d), weights (K,). It has no density."""

    title: ClassVar[str] = "points, a discrete law"
    has_density: ClassVar[bool] = False
    counted: ClassVar[bool] = False
    support: Tensor
    weights: Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weights(self.weights, len(self.support))

    @property
    def dim(self) -> int:
        return self.support.shape[-1]

    @property
    def n_parameters(self) -> int:
        """Return K (d + 1) - 1: places and weights."""
        return len(self.weights) * (self.dim + 1) - 1

    def log_prob(self, phi: Tensor) -> Tensor:
        """Raise ModelError: points have no density."""
        raise ModelError(
            "A discrete law has no density. Look at law.support and law.weights, or take "
            "law.smoothed(), a mixture of Gaussian kernels at its points."
        )

    def sample(self, n: int, seed: Seed) -> Tensor:
        index = torch.multinomial(self.weights, n, replacement=True, generator=generator(seed))
        return self.support[index]

    def update(self, phi: Tensor, weights: Tensor) -> "DiscreteLaw":
        """Return one EM step of the weights; phi (N, K, d) are the support points for each individual."""
        return DiscreteLaw(self.support, weights.sum(0) / weights.sum())

    def mean_and_covariance(self) -> tuple[Tensor, Tensor]:
        return moments(self.support, self.weights)

    @property
    def moments(self) -> GaussianLaw:
        """The Gaussian law of the same mean and covariance."""
        return GaussianLaw.like(self)

    def density(self) -> KernelLaw:
        return self.smoothed()

    def frame(self, names: tuple[str, ...]) -> pd.DataFrame:
        """Return points and weights, the heaviest first; names of the coordinates.

        The weights are in a column "weight", or "weight of the point" where a coordinate has that name.

        Raises
        ------
        ModelError : not as many names as coordinates.

        """
        if len(names := names_of("names", names)) != self.dim:
            raise ModelError(f"The law has {self.dim} coordinates; names are {len(names)}.")
        order = self.weights.argsort(descending=True)
        columns = {name: self.support[order, k].numpy() for k, name in enumerate(names)}
        key = column("weight", "weight of the point", names)
        return pd.DataFrame({**columns, key: self.weights[order].numpy()})

    def smoothed(self, bandwidth: float | None = None) -> KernelLaw:
        """Return Gaussian kernels at the points, with `bandwidth` times the law's own covariance factor.

        None: Scott's rule for as many points as the weights are worth, (1 / sum w^2)^(-1/(d+4)). For
        pictures and distances only: it is wider than the law by construction.

        Raises
        ------
        ModelError : a bandwidth that is not positive.

        """
        if bandwidth is not None:
            bandwidth = number("bandwidth", bandwidth, 0)
        else:
            bandwidth = float(self.weights.square().sum()) ** (1 / (self.dim + 4))
        return KernelLaw(self.weights, self.support, bandwidth * self.moments.factor)
