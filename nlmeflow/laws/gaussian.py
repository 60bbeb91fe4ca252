"""The Gaussian law, what everybody assumes: phi ~ N(mu, Omega)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nlmeflow.errors import ModelError
from nlmeflow.laws.law import check_phi, normal_log_prob, safe_cholesky
from nlmeflow.seeds import Seed, generator

Covariance = Literal["full", "diagonal"]


def check_prior(prior: float) -> None:
    """Raise ModelError unless the exponent of a prior is usable."""
    if not 0 <= prior < 100:
        raise ModelError(f"prior lies between 0 and 100, got {prior!r}.")


@dataclass(frozen=True)
class Gaussian:
    """Specification: a Gaussian law with `covariance` "full" (default) or "diagonal".

    On the log scale of a parameter this is the log-normal law, on the logit scale the logit-normal.

    prior : 0 (default) is maximum likelihood. With c > 0 the likelihood is multiplied by |Omega|^c,
        which keeps the covariance off its boundary (a variance of zero, a correlation of one), where
        maximum likelihood ends in one replicate of many when data are sparse (Chung, Gelman,
        Rabe-Hesketh, Liu, Dorie, J. Educ. Behav. Stat. 2015).
    """

    covariance: Covariance = "full"
    prior: float = 0.0

    def __post_init__(self) -> None:
        check_prior(self.prior)
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
    prior: float = 0.0

    @classmethod
    def of(
        cls, phi: Tensor, weights: Tensor, structure: Covariance = "full", prior: float = 0.0
    ) -> "GaussianLaw":
        """Return the Gaussian of highest weighted log-density: phi (..., d), weights (...)."""
        flat, weight = phi.reshape(-1, phi.shape[-1]), weights.reshape(-1)
        total = float(weight.sum())
        weight = weight / total
        mean = weight @ flat
        centred = flat - mean
        return cls.of_moments(mean, (weight[:, None] * centred).mT @ centred, total, structure, prior)

    @classmethod
    def of_moments(
        cls, mean: Tensor, covariance: Tensor, n: float, structure: Covariance, prior: float
    ) -> "GaussianLaw":
        """Return the law of the mean and covariance of n individuals; n / (n - 2 c) times with a prior c."""
        covariance = covariance / max(1 - 2 * prior / n, 0.5)
        diagonal = structure == "diagonal"
        factor = covariance.diagonal().sqrt().diag() if diagonal else safe_cholesky(covariance)
        return cls(mean, factor, structure, prior)

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
        """Return the exact maximiser."""
        return GaussianLaw.of(phi, weights, self.structure, self.prior)

    def inflated(self, factor: float) -> "GaussianLaw":
        """Return the law with standard deviations multiplied by `factor`."""
        return GaussianLaw(self.mean, self.factor * factor, self.structure, self.prior)

    @property
    def log_prior(self) -> float:
        """What the prior adds to the log-likelihood, c log |Omega|."""
        return 2 * self.prior * float(self.factor.diagonal().log().sum()) if self.prior else 0.0


def moments(phi: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return each individual's weighted mean (N, d) and covariance (N, d, d)."""
    mean = (weights[..., None] * phi).sum(-2)
    centred = phi - mean[..., None, :]
    return mean, (weights[..., None] * centred).mT @ centred


def median_sd(phi: Tensor, weights: Tensor) -> Tensor:
    """Return the median over individuals of their weighted standard deviations, (d,)."""
    return moments(phi, weights)[1].diagonal(dim1=-2, dim2=-1).sqrt().median(0).values
