"""Gaussian kernels of one covariance at given points: smooth NPMLE, and densities of estimates.

Smooth NPMLE: the nonparametric maximum-likelihood estimate among laws that are a discrete law convolved with
a fixed Gaussian (Magder and Zeger, A smooth nonparametric estimate of a mixing distribution using mixtures of
Gaussians, Journal of the American Statistical Association 1996). Two-stage and EBE density treat estimates
of the individual parameters as if they were the parameters.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from nlmeflow.errors import check_whole, number
from nlmeflow.laws.affine import check_factors, check_weights, lower_inverse
from nlmeflow.laws.draws import Folds, PosteriorDraws, TrainingSet
from nlmeflow.laws.gaussian import GaussianLaw, population
from nlmeflow.laws.law import Components, Law, sample_components
from nlmeflow.laws.mixing import solve_weights
from nlmeflow.laws.specification import Specification
from nlmeflow.numerics import LOG_2PI, TINY, log_mean, moments
from nlmeflow.seeds import Seed, Stream, derive, generator

BANDWIDTHS = (0.1, 0.15, 0.2, 0.3, 0.4, 0.55, 0.75, 1.0)
NEGLIGIBLE = 1e-6  # weight under which a kernel is left out


@dataclass(frozen=True, eq=False)
class KernelLaw(Law):
    """sum_k w_k N(m_k, H H'): weights (K,), points m (K, d), lower factor H (d, d); the weights are free."""

    title: ClassVar[str] = "Gaussian kernels"
    counted: ClassVar[bool] = False
    weights: Tensor
    points: Tensor
    factor: Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        check_factors(self.points[0], self.factor)
        check_weights(self.weights, len(self.points))

    @classmethod
    def at(cls, points: Tensor, factor: Tensor) -> "KernelLaw":
        """Return kernels of equal weights at points (K, d)."""
        return cls(points.new_full((len(points),), 1 / len(points)), points, factor)

    @classmethod
    def of_estimates(cls, points: Tensor, bandwidth: float | None) -> "KernelLaw":
        """Return the kernel density of points (N, d); Scott's bandwidth N^(-1/(d+4)) by default."""
        size, dim = points.shape
        share = size ** (-1 / (dim + 4)) if bandwidth is None else bandwidth
        spread = GaussianLaw.of(points, points.new_full((size,), 1 / size))
        return cls.at(points, share * spread.factor)

    @property
    def dim(self) -> int:
        return self.points.shape[-1]

    @property
    def n_parameters(self) -> int:
        """Return K - 1 weights."""
        return len(self.weights) - 1

    @property
    def components(self) -> Components:
        return self.weights, self.points, self.factor.expand(len(self.weights), -1, -1)

    def with_components(self, weights: Tensor, means: Tensor, factors: Tensor) -> Self:
        """Return the kernels with other weights; points and factor stay."""
        return replace(self, weights=weights)

    def mean_and_covariance(self) -> tuple[Tensor, Tensor]:
        mean, between = moments(self.points, self.weights)
        return mean, between + self.factor @ self.factor.mT

    def log_joint(self, phi: Tensor) -> Tensor:
        """Return log w_k + log N(phi; m_k, H H'): (..., d) -> (K, ...); one product of matrices."""
        inverse, centre = lower_inverse(self.factor), self.points.mean(0)
        z, place = ((x - centre) @ inverse.mT for x in (self._rows(phi), self.points))
        scale = self.factor.diagonal().log().sum() + 0.5 * LOG_2PI * self.dim
        constant = self.weights.log() - scale - 0.5 * place.square().sum(1)
        coefficients = torch.cat([constant[:, None], place, torch.ones_like(constant)[:, None]], 1)
        features = torch.cat([torch.ones_like(z[:, :1]), z, -0.5 * z.square().sum(1, keepdim=True)], 1)
        return (coefficients @ features.mT).reshape(len(coefficients), *phi.shape[:-1])

    def log_prob(self, phi: Tensor) -> Tensor:
        return self.log_joint(phi).logsumexp(0)

    def sample(self, n: int, seed: Seed) -> Tensor:
        return sample_components(self.components, n, seed)

    def update(self, phi: Tensor, weights: Tensor) -> Self:
        """Return one EM step of the weights."""
        mass = (self.log_joint(phi).softmax(0) * weights).flatten(1).sum(1)
        return replace(self, weights=(mass / mass.sum()).clamp_min(torch.finfo(mass.dtype).tiny))


@dataclass(frozen=True)
class SmoothNPMLE(Specification):
    """Specification: the law of highest likelihood among Gaussian kernels at many points.

    bandwidth : of the kernels, as a share of the population's standard deviations; when None, the widest
        whose log-likelihood, held out in `folds` folds, is within one standard error of the highest.
    points : how many, spread over posterior draws of all individuals.

    The weights are the solution of a convex problem, solved exactly.

    Raises
    ------
    ModelError : an option is outside its range.

    """

    name: ClassVar[str] = "smooth npmle"
    levels: ClassVar[bool] = False
    bandwidth: float | None = None
    points: int = 600
    folds: int = 5

    def __post_init__(self) -> None:
        _check_bandwidth(self.bandwidth)
        check_whole(self, 1, "points")
        check_whole(self, 2, "folds")

    def learn(self, training: TrainingSet) -> KernelLaw:
        """Return the weights of highest likelihood of kernels whose width held-out individuals choose."""
        draws, random = training.draws, generator(derive(training.seed, Stream.KERNEL_POINTS))
        flat = draws.phi.flatten(0, 1)
        points = flat[torch.randperm(len(flat), generator=random)[: self.points]]
        factor = population(draws).factor
        widths = BANDWIDTHS if self.bandwidth is None else (self.bandwidth,)
        tables = [_kernel_table(draws, points, width * factor) for width in widths]
        chosen = 0
        if len(widths) > 1:
            training.report("smooth npmle: bandwidth")
            folds = training.split(self.folds)
            chosen = widest(torch.stack([_held_out(table, folds) for table in tables]))
        weights = solve_weights(tables[chosen])
        kept = weights > NEGLIGIBLE
        return KernelLaw(weights[kept] / weights[kept].sum(), points[kept], widths[chosen] * factor)


def _kernel_table(draws: PosteriorDraws, points: Tensor, factor: Tensor) -> Tensor:
    """Return log of each individual's marginal density under each kernel, relative to R, (N, K)."""
    parts = []
    for some in points.split(64):
        joint = KernelLaw.at(some, factor).log_joint(draws.phi) + math.log(len(some))
        parts.append(log_mean(joint - draws.log_reference).mT)
    return torch.cat(parts, 1)


def _held_out(table: Tensor, folds: Folds) -> Tensor:
    """Return the log-likelihood of each individual under the weights that the other folds give, (N,)."""
    scores = table.new_empty(len(table))
    for inside, outside in folds.parts():
        weights = solve_weights(table[inside]).clamp_min(TINY)
        scores[outside] = (table[outside] + weights.log()).logsumexp(1)
    return scores


def widest(scores: Tensor) -> int:
    """Return the widest of kernels that individuals cannot tell from the best.

    scores : held-out log-likelihoods (K, N), from the narrowest width to the widest. The answer is the last
        whose total is below the highest by no more than the standard error of the difference, sqrt(N) times
        the standard deviation of the individuals' differences: the one-standard-error rule of Breiman,
        Friedman, Olshen and Stone 1984. Held-out likelihood is flat about its maximum, while the divergence
        of kernels that are too narrow is not.
    """
    lost = scores[int(scores.sum(1).argmax())] - scores
    near = lost.sum(1) <= lost.std(1) * math.sqrt(scores.shape[1])
    return int(near.nonzero().max())


@dataclass(frozen=True)
class TwoStage(Specification):
    """Specification: least squares for each individual alone, then a kernel density of the estimates.

    The estimates' errors are taken for spread of the population: the law is too wide, the more so
    the fewer and noisier the observations. bandwidth : as a share of the estimates' standard
    deviations; Scott's rule when None.
    """

    name: ClassVar[str] = "two-stage"
    levels: ClassVar[bool] = False
    bandwidth: float | None = None

    def __post_init__(self) -> None:
        _check_bandwidth(self.bandwidth)

    def learn(self, training: TrainingSet) -> Law:
        draws = training.draws
        return KernelLaw.of_estimates(draws.data.alone(population(draws)), self.bandwidth)


@dataclass(frozen=True)
class EBEDensity(Specification):
    """Specification: a kernel density of the empirical Bayes estimates (conditional modes).

    Shown as what not to do: estimates of individuals with little information are drawn to the
    Gaussian's mean, so that the law is too narrow and groups merge. bandwidth : as for `TwoStage`.
    """

    name: ClassVar[str] = "ebe density"
    levels: ClassVar[bool] = False
    bandwidth: float | None = None

    def __post_init__(self) -> None:
        _check_bandwidth(self.bandwidth)

    def learn(self, training: TrainingSet) -> Law:
        return KernelLaw.of_estimates(empirical_bayes(training.draws), self.bandwidth)


def _check_bandwidth(bandwidth: float | None) -> None:
    if bandwidth is not None:
        number("bandwidth", bandwidth, 0, 10)


def empirical_bayes(draws: PosteriorDraws) -> Tensor:
    """Return the conditional modes under the Gaussian law of the draws, (N, d)."""
    gaussian = population(draws)
    means, _ = moments(draws.phi, draws.weigh(gaussian).weights)
    return draws.data.modes(gaussian, means)
