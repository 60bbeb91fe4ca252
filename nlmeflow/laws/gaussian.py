"""The Gaussian law, what everybody assumes: phi ~ N(mu, Omega)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nlmeflow.errors import ModelError
from nlmeflow.laws.law import check_phi, normal_log_prob, safe_cholesky
from nlmeflow.seeds import Seed, generator

Covariance = Literal["full", "diagonal"]


@dataclass(frozen=True)
class Gaussian:
    """Specification: a Gaussian law with `covariance` "full" (default) or "diagonal".

    On the log scale of a parameter this is the log-normal law, on the logit scale the logit-normal.
    """

    covariance: Covariance = "full"

    def __post_init__(self) -> None:
        if self.covariance not in ("full", "diagonal"):
            raise ModelError(f"covariance is 'full' or 'diagonal', got {self.covariance!r}.")

    @property
    def name(self) -> str:
        """The key of this law in tables."""
        return "gaussian"


@dataclass(frozen=True)
class GaussianLaw:
    """N(mean, L L'), mean (d,), lower factor L (d, d)."""

    mean: Tensor
    factor: Tensor
    structure: Covariance = "full"

    @property
    def dim(self) -> int:
        return self.mean.shape[-1]

    @property
    def n_parameters(self) -> int:
        """D means and d (d + 1) / 2 covariances (d when diagonal)."""
        return self.dim + (self.dim if self.structure == "diagonal" else self.dim * (self.dim + 1) // 2)

    @property
    def covariance(self) -> Tensor:
        """Omega, (d, d)."""
        return self.factor @ self.factor.mT

    @property
    def sd(self) -> Tensor:
        """Standard deviations, (d,)."""
        return self.covariance.diagonal().sqrt()

    @property
    def correlation(self) -> Tensor:
        """Correlations, (d, d)."""
        return self.covariance / (self.sd[:, None] * self.sd)

    def log_prob(self, phi: Tensor) -> Tensor:
        """Return log N(phi; mu, Omega): (..., d) -> (...)."""
        check_phi(phi, self.dim)
        return normal_log_prob(phi.reshape(-1, self.dim), self.mean, self.factor).reshape(phi.shape[:-1])

    def sample(self, n: int, seed: Seed) -> Tensor:
        """Draw (n, d)."""
        noise = torch.randn(n, self.dim, generator=generator(seed), dtype=self.mean.dtype)
        return self.mean + noise @ self.factor.mT

    def update(self, phi: Tensor, weights: Tensor) -> "GaussianLaw":
        """Return the exact maximiser: weighted mean and covariance."""
        flat, weight = phi.reshape(-1, self.dim), weights.reshape(-1)
        weight = weight / weight.sum()
        mean = weight @ flat
        centred = flat - mean
        covariance = (weight[:, None] * centred).mT @ centred
        if self.structure == "diagonal":
            return GaussianLaw(mean, covariance.diagonal().sqrt().diag(), "diagonal")
        return GaussianLaw(mean, safe_cholesky(covariance), "full")

    def inflated(self, factor: float) -> "GaussianLaw":
        """Return the law with standard deviations multiplied by `factor`."""
        return GaussianLaw(self.mean, self.factor * factor, self.structure)


def moments(phi: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return each individual's weighted mean (N, d) and covariance (N, d, d)."""
    mean = (weights[..., None] * phi).sum(-2)
    centred = phi - mean[..., None, :]
    return mean, (weights[..., None] * centred).mT @ centred
