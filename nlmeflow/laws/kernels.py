"""Gaussian kernels of one covariance at given points: smooth NPMLE, and densities of estimates.

Smooth NPMLE: Kim and Sen 2026, the nonparametric maximum-likelihood estimate among laws that are
a discrete law convolved with a fixed Gaussian. Two-stage and EBE density treat estimates of the
individual parameters as if they were the parameters.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nlmeflow.errors import ModelError, check_whole
from nlmeflow.laws.gaussian import GaussianLaw
from nlmeflow.laws.mixture import MixtureLaw

BANDWIDTHS = (0.1, 0.15, 0.2, 0.3, 0.4, 0.55)


@dataclass(frozen=True)
class SmoothNPMLE:
    """Specification: the law of highest likelihood among Gaussian kernels at many points.

    bandwidth : of the kernels, as a share of the population's standard deviations; chosen by held-out
        log-likelihood in `folds` folds when None.
    points : how many, spread over posterior draws of all individuals.

    The weights are the solution of a convex problem, solved exactly.
    """

    bandwidth: float | None = None
    points: int = 600
    folds: int = 5

    def __post_init__(self) -> None:
        if self.bandwidth is not None and not 0 < self.bandwidth < 10:
            raise ModelError(f"bandwidth lies between 0 and 10 standard deviations, got {self.bandwidth!r}.")
        check_whole("points", self.points, 1)
        check_whole("folds", self.folds, 2)

    @property
    def name(self) -> str:
        """The key of this law in tables."""
        return "smooth npmle"


@dataclass(frozen=True)
class TwoStage:
    """Specification: least squares for each individual alone, then a kernel density of the estimates.

    The estimates' errors are taken for spread of the population: the law is too wide, the more so
    the fewer and noisier the observations. bandwidth : as a share of the estimates' standard
    deviations; Scott's rule when None.
    """

    bandwidth: float | None = None

    @property
    def name(self) -> str:
        """The key of this law in tables."""
        return "two-stage"


@dataclass(frozen=True)
class EBEDensity:
    """Specification: a kernel density of the empirical Bayes estimates (conditional modes).

    Shown as what not to do: estimates of individuals with little information are drawn to the
    Gaussian's mean, so that the law is too narrow and groups merge. bandwidth : as for `TwoStage`.
    """

    bandwidth: float | None = None

    @property
    def name(self) -> str:
        """The key of this law in tables."""
        return "ebe density"


@dataclass(frozen=True)
class KernelLaw(MixtureLaw):
    """sum_k w_k N(m_k, H H'), points and H given: the weights alone are free."""

    @classmethod
    def at(cls, points: Tensor, factor: Tensor, weights: Tensor | None = None) -> "KernelLaw":
        """Return kernels with lower factor H (d, d) at points (K, d), of equal weights by default."""
        size = len(points)
        equal = points.new_full((size,), 1 / size) if weights is None else weights
        return cls(equal, points, factor.expand(size, -1, -1), 1e-3 * factor)

    @classmethod
    def density(cls, points: Tensor, bandwidth: float | None) -> "KernelLaw":
        """Return the kernel density of points (N, d); Scott's bandwidth N^(-1/(d+4)) by default."""
        size, dim = points.shape
        share = size ** (-1 / (dim + 4)) if bandwidth is None else bandwidth
        spread = GaussianLaw.of(points, points.new_full((size,), 1 / size))
        return cls.at(points, share * spread.factor)

    @property
    def n_parameters(self) -> int:
        """K - 1 weights."""
        return self.n_components - 1

    def update(self, phi: Tensor, weights: Tensor) -> "KernelLaw":
        """Return one EM step of the weights."""
        member = self.log_joint(phi).softmax(0)
        mass = (member * weights).flatten(1).sum(1)
        return replace(self, weights=(mass / mass.sum()).clamp_min(torch.finfo(mass.dtype).tiny))
