"""The Gaussian mixture, the strongest parametric rival on multimodal populations.

Verbeke and Lesaffre, A linear mixed-effects model with heterogeneity in the random-effects
population, JASA 1996; in nonlinear models Lavielle and Mbogning, Statistics and Computing 2014.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

from nlmeflow.errors import ModelError, check_whole
from nlmeflow.laws.gaussian import GaussianLaw
from nlmeflow.laws.law import check_phi
from nlmeflow.seeds import Seed, generator, integer


@dataclass(frozen=True)
class Mixture:
    """Specification: a mixture of Gaussian laws with full covariances.

    components : their number; chosen by BIC from 1 to `max_components` when None.
    floor : smallest standard deviation of a component in any direction, as a fraction of the
        population's in that direction. Without it the likelihood is unbounded: a component may
        shrink onto one individual.
    shrinkage : covariances are drawn to the diagonal matrix of the components' mean variances, as
        if so many individuals had been seen with it (regularised discriminant analysis, Friedman,
        JASA 1989). With 0, sparse data are explained by thin components that are not there. None
        (default): 5 up to 200 individuals, 1,000 / N beyond.
    """

    components: int | None = None
    max_components: int = 6
    floor: float = 0.05
    shrinkage: float | None = None

    def __post_init__(self) -> None:
        if self.components is not None:
            check_whole("components", self.components, 1)
        check_whole("max_components", self.max_components, 1)
        if not 0 < self.floor < 1:
            raise ModelError(f"floor lies between 0 and 1, got {self.floor!r}.")
        if self.shrinkage is not None and not 0 <= self.shrinkage < float("inf"):
            raise ModelError(f"shrinkage is finite and not negative, got {self.shrinkage!r}.")

    @property
    def name(self) -> str:
        """The key of this law in tables."""
        return "mixture"

    def shrinkage_of(self, n: int) -> float:
        """Return the shrinkage for n individuals."""
        return min(5.0, 1000 / n) if self.shrinkage is None else self.shrinkage


@dataclass(frozen=True)
class MixtureLaw:
    """sum_k w_k N(m_k, L_k L_k'): weights (K,), means (K, d), lower factors (K, d, d).

    `floor` (d, d) is the lower factor of the smallest covariance that a component may have;
    `shrinkage` counts the pseudo-individuals by which covariances are drawn to their mean variances;
    `prior` is the c of a factor |Omega_k|^c of each component (see `Gaussian`).
    """

    weights: Tensor
    means: Tensor
    factors: Tensor
    floor: Tensor
    shrinkage: float = 0.0
    prior: float = 0.0

    @property
    def dim(self) -> int:
        return self.means.shape[-1]

    @property
    def n_components(self) -> int:
        """K."""
        return len(self.weights)

    @property
    def n_parameters(self) -> int:
        """K - 1 weights, K d means, K d (d + 1) / 2 covariances."""
        return self.n_components * (1 + self.dim + self.dim * (self.dim + 1) // 2) - 1

    def log_joint(self, phi: Tensor) -> Tensor:
        """Return log w_k + log N(phi; m_k, Omega_k): (..., d) -> (K, ...)."""
        check_phi(phi, self.dim)
        return (self._coefficients() @ self._features(phi)).reshape(self.n_components, *phi.shape[:-1])

    def _features(self, phi: Tensor) -> Tensor:
        """Return 1, x and the products x_a x_b (a <= b) of x = F^-1 (phi - c): (p, number of phi).

        F is the floor's factor, c the mixture's mean. A Gaussian log-density is linear in them, so
        that both steps of EM are one matrix product each.
        """
        flat = phi.reshape(-1, self.dim)
        x = (flat - self._centre()).mT.contiguous()
        x = torch.linalg.solve_triangular(self.floor, x, upper=False)
        row, column = torch.triu_indices(self.dim, self.dim)
        return torch.cat([torch.ones_like(x[:1]), x, x[row] * x[column]])

    def _centre(self) -> Tensor:
        return self.weights @ self.means

    def _coefficients(self) -> Tensor:
        """Return the coefficients of the log joint density in the features, (K, p)."""
        identity = torch.eye(self.dim, dtype=self.floor.dtype)
        whitener = torch.linalg.solve_triangular(self.floor, identity, upper=False)
        inverse = torch.linalg.solve_triangular(
            whitener @ self.factors, identity.expand_as(self.factors), upper=False
        )
        precision = inverse.mT @ inverse
        mean = (self.means - self._centre()) @ whitener.mT
        linear = (precision @ mean[..., None]).squeeze(-1)
        row, column = torch.triu_indices(self.dim, self.dim)
        quadratic = -torch.where(row == column, 0.5, 1.0) * precision[:, row, column]
        log_scale = self.factors.diagonal(dim1=-2, dim2=-1).log().sum(-1) + 0.9189385332046727 * self.dim
        constant = self.weights.log() - log_scale - 0.5 * (linear * mean).sum(-1)
        return torch.cat([constant[:, None], linear, quadratic], 1)

    def log_prob(self, phi: Tensor) -> Tensor:
        """Return the log-density: (..., d) -> (...)."""
        return self.log_joint(phi).logsumexp(0)

    def memberships(self, phi: Tensor) -> Tensor:
        """Return the probability of each component given phi: (..., d) -> (..., K)."""
        return self.log_joint(phi).softmax(0).movedim(0, -1)

    def sample(self, n: int, seed: Seed) -> Tensor:
        """Draw (n, d)."""
        random = generator(seed)
        component = torch.multinomial(self.weights, n, replacement=True, generator=random)
        noise = torch.randn(n, self.dim, 1, generator=random, dtype=self.means.dtype)
        return self.means[component] + (self.factors[component] @ noise).squeeze(-1)

    def update(self, phi: Tensor, weights: Tensor) -> "MixtureLaw":
        """Return one EM step: exact maximiser given the memberships, under the floor."""
        features = self._features(phi)
        log_joint = self._coefficients() @ features
        member = (log_joint - log_joint.logsumexp(0)).exp_() * (weights.reshape(-1) / weights.sum())
        sums = member @ features.mT
        mass = sums[:, 0]
        alive = (mass > 1e-10)[:, None]
        moments = sums[:, 1:] / mass.clamp_min(torch.finfo(mass.dtype).tiny)[:, None]
        mean, second = moments.split([self.dim, moments.shape[1] - self.dim], 1)
        covariance = second.new_zeros(len(mass), self.dim, self.dim)
        row, column = torch.triu_indices(self.dim, self.dim)
        covariance[:, row, column] = second
        covariance[:, column, row] = second
        covariance = covariance - mean[:, :, None] * mean[:, None, :]
        means = torch.where(alive, self._centre() + mean @ self.floor.mT, self.means)
        covariance = self._shrunk(self.floor @ covariance @ self.floor.mT, weights.sum() * mass)
        factors = torch.where(alive[..., None], floored(covariance, self.floor), self.factors)
        total = mass.clamp_min(1e-12)
        return replace(self, weights=total / total.sum(), means=means, factors=factors)

    def _shrunk(self, covariance: Tensor, individuals: Tensor) -> Tensor:
        """Return the covariances (K, d, d) of highest posterior density.

        (n_k C_k + s D) / (n_k + s - 2 c): C_k the covariances of n_k = individuals (K,), s the
        shrinkage, c the prior, D the diagonal of their mean.
        """
        pooled = self._pooled(individuals / individuals.sum(), covariance)
        total = individuals + self.shrinkage
        known = torch.maximum(total - 2 * self.prior, 0.5 * total)
        return (individuals[:, None, None] * covariance + self.shrinkage * pooled) / known[:, None, None]

    @staticmethod
    def _pooled(shares: Tensor, covariance: Tensor) -> Tensor:
        return (shares[:, None, None] * covariance).sum(0).diagonal().diag()

    @property
    def log_prior(self) -> float:
        """What the prior adds to the log-likelihood, its mean variances taken as they are."""
        log_scale = 2 * self.factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        covariance = self.factors @ self.factors.mT
        pooled = self._pooled(self.weights, covariance)
        trace = torch.linalg.solve(covariance, pooled).diagonal(dim1=-2, dim2=-1).sum(-1)
        return float((self.prior * log_scale - 0.5 * self.shrinkage * (log_scale + trace)).sum())

    @classmethod
    def start(
        cls, points: Tensor, population: GaussianLaw, law: Mixture, components: int, seed: Seed
    ) -> "MixtureLaw":
        """Return a first mixture by k-means (k-means++) on points (n, d) whitened by the Gaussian."""
        white = torch.linalg.solve_triangular(
            population.factor, (points - population.mean).mT, upper=False
        ).mT.numpy()
        random = np.random.default_rng(integer(generator(seed)))
        _, label = kmeans2(white, components, minit="++", rng=random, missing="warn")
        member = torch.from_numpy(np.eye(components)[label]) + 0.5 / len(points)
        member = (member / member.sum(1, keepdim=True)).mT
        mass = member.sum(1) / len(points)
        z = torch.from_numpy(white)
        means = member @ z / member.sum(1, keepdim=True)
        centred = z - means[:, None, :]
        spread = (member[..., None] * centred).mT @ centred / member.sum(1)[:, None, None]
        root = population.factor
        lowest = law.floor * root
        factors = floored(root @ spread @ root.mT, lowest)
        return cls(mass, population.mean + means @ root.mT, factors, lowest, law.shrinkage_of(len(points)))

    def padded(self, size: int) -> "MixtureLaw":
        """Return the same law with components of no weight up to `size` of them."""
        more = [0] * (size - self.n_components)
        return replace(
            self,
            weights=torch.cat([self.weights, self.weights.new_zeros(len(more))]),
            means=torch.cat([self.means, self.means[more]]),
            factors=torch.cat([self.factors, self.factors[more]]),
        )

    def with_component(self, mean: Tensor, weight: float = 0.05, scale: float = 6.0) -> "MixtureLaw":
        """Return the mixture with one more component, `scale` times as wide as the floor."""
        return replace(
            self,
            weights=torch.cat([self.weights * (1 - weight), self.weights.new_tensor([weight])]),
            means=torch.cat([self.means, mean[None]]),
            factors=torch.cat([self.factors, scale * self.floor[None]]),
        )


def floored(covariance: Tensor, floor: Tensor) -> Tensor:
    """Return lower factors of covariances (K, d, d) lifted to at least F F' (F lower, (d, d)).

    Eigenvalues below one in the coordinates where F F' is the identity are set to one: the
    maximum-likelihood covariance under the constraint Omega >= F F'.
    """
    inverse = torch.linalg.solve_triangular(floor, torch.eye(len(floor), dtype=floor.dtype), upper=False)
    values, vectors = torch.linalg.eigh(inverse @ covariance @ inverse.mT)
    half = floor @ (vectors * values.clamp_min(1.0).sqrt()[..., None, :])
    return torch.linalg.cholesky(half @ half.mT)
