"""The Gaussian mixture, the strongest parametric rival on multimodal populations.

Verbeke and Lesaffre, A linear mixed-effects model with heterogeneity in the random-effects
population, JASA 1996; in nonlinear models Lavielle and Mbogning, Statistics and Computing 2014.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

from nlmeflow.arguments import check_fields
from nlmeflow.errors import ModelError, check_whole, number
from nlmeflow.laws.affine import check_factors, check_weights, lower_inverse
from nlmeflow.laws.draws import Folds, PosteriorDraws, TrainingSet
from nlmeflow.laws.em import climb
from nlmeflow.laws.gaussian import GaussianLaw, population
from nlmeflow.laws.law import Components, Law, sample_components
from nlmeflow.laws.specification import Specification, bic
from nlmeflow.numerics import LOG_2PI, moments
from nlmeflow.seeds import Seed, derive, generator, integer

STARTS = 4  # by k-means, for each number of components
GREEDY = 6  # by adding a component to the smaller mixture
COST = 2.0  # nats that a single component may lose by being drawn to its variances
FEW = 40  # as many individuals for each of those of the shrinkage, at most, in that comparison
MOST_POINTS = 2000  # individuals among which its place is sought
RACE = ((8, 10, 6), (12, 40, 2), (32, 100, 1))  # draws, iterations, survivors: most starts are dropped early


@dataclass(frozen=True, eq=False)
class MixtureLaw(Law):
    """sum_k w_k N(m_k, L_k L_k'): weights (K,), means (K, d), lower factors (K, d, d).

    `floor` (d, d) is the lower factor of the smallest covariance that a component may have;
    `shrinkage` counts the pseudo-individuals by which covariances are drawn to their mean variances, or,
    where `pooled`, to their mean with its correlations;
    `prior` is the c of a factor |Omega_k|^c of each component (see `Gaussian`).
    """

    title: ClassVar[str] = "Gaussian mixture"
    weights: Tensor
    means: Tensor
    factors: Tensor
    floor: Tensor
    shrinkage: float = 0.0
    prior: float = 0.0
    pooled: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_factors(self.means, self.factors)
        check_weights(self.weights, len(self.means))
        if self.floor.shape != self.factors.shape[1:] or bool((self.floor.diagonal() == 0).any()):
            raise ModelError(
                f"The floor is the lower factor (d, d), d = {self.dim}, of the smallest covariance that a "
                f"component may have, without a zero on its diagonal; got {self.floor.tolist()}."
            )

    @property
    def dim(self) -> int:
        return self.means.shape[-1]

    @property
    def n_components(self) -> int:
        """K."""
        return len(self.weights)

    @property
    def n_parameters(self) -> int:
        """Return K - 1 weights, K d means and K d (d + 1) / 2 covariances."""
        return self.n_components * (1 + self.dim + self.dim * (self.dim + 1) // 2) - 1

    def inflated(self, factor: float) -> "MixtureLaw":
        """Return the law with standard deviations of the components multiplied by `factor`."""
        return replace(self, factors=self.factors * factor)

    @classmethod
    def of_one(cls, law: Law) -> "MixtureLaw":
        """Return a law with Gaussian components as a mixture: a Gaussian law is one of a single component."""
        if isinstance(law, MixtureLaw):
            return law
        assert law.components is not None
        return cls(*law.components, law.components[2][0])

    @property
    def components(self) -> Components:
        return self.weights, self.means, self.factors

    def with_components(self, weights: Tensor, means: Tensor, factors: Tensor) -> Self:
        return replace(self, weights=weights, means=means, factors=factors)

    def mean_and_covariance(self) -> tuple[Tensor, Tensor]:
        """Return the moments of the mixture: those between components, and the mean of those within."""
        mean, between = moments(self.means, self.weights)
        within = (self.weights[:, None, None] * (self.factors @ self.factors.mT)).sum(0)
        return mean, between + within

    def log_joint(self, phi: Tensor) -> Tensor:
        """Return log w_k + log N(phi; m_k, Omega_k): (..., d) -> (K, ...)."""
        rows = self._rows(phi)
        return (self._coefficients() @ self._features(rows)).reshape(self.n_components, *phi.shape[:-1])

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
        whitener = lower_inverse(self.floor)
        inverse = lower_inverse(whitener @ self.factors)
        precision = inverse.mT @ inverse
        mean = (self.means - self._centre()) @ whitener.mT
        linear = (precision @ mean[..., None]).squeeze(-1)
        row, column = torch.triu_indices(self.dim, self.dim)
        quadratic = -torch.where(row == column, 0.5, 1.0) * precision[:, row, column]
        log_scale = self.factors.diagonal(dim1=-2, dim2=-1).log().sum(-1) + 0.5 * LOG_2PI * self.dim
        constant = self.weights.log() - log_scale - 0.5 * (linear * mean).sum(-1)
        return torch.cat([constant[:, None], linear, quadratic], 1)

    def log_prob(self, phi: Tensor) -> Tensor:
        return self.log_joint(phi).logsumexp(0)

    def memberships(self, phi: Tensor) -> Tensor:
        """Return the probability of each component given phi: (..., d) -> (..., K)."""
        return self.log_joint(phi).softmax(0).movedim(0, -1)

    def sample(self, n: int, seed: Seed) -> Tensor:
        return sample_components(self.components, n, seed)

    def update(self, phi: Tensor, weights: Tensor) -> Self:
        """Return one EM step: exact maximiser given the memberships, under the floor."""
        features = self._features(phi)
        log_joint = self._coefficients() @ features
        member = (log_joint - log_joint.logsumexp(0)).exp_() * (weights.reshape(-1) / weights.sum())
        sums = member @ features.mT
        mass = sums[:, 0]
        alive = (mass > 1e-10)[:, None]
        means = sums[:, 1:] / mass.clamp_min(torch.finfo(mass.dtype).tiny)[:, None]
        mean, second = means.split([self.dim, means.shape[1] - self.dim], 1)
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
        shrinkage, c the prior, D the diagonal of their mean, or their mean.
        """
        pooled = self._pooled(individuals / individuals.sum(), covariance)
        total = individuals + self.shrinkage
        known = torch.maximum(total - 2 * self.prior, 0.5 * total)
        return (individuals[:, None, None] * covariance + self.shrinkage * pooled) / known[:, None, None]

    def _pooled(self, shares: Tensor, covariance: Tensor) -> Tensor:
        mean = (shares[:, None, None] * covariance).sum(0)
        return mean if self.pooled else mean.diagonal().diag()

    @property
    def log_prior(self) -> float:
        """What the prior adds to the log-likelihood, its mean variances taken as they are.

        sum_k c log|Omega_k| - (s / 2) (log|Omega_k| + tr Omega_k^-1 D): c, s and D as in `_shrunk`.
        """
        log_scale = 2 * self.factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        pooled = self._pooled(self.weights, self.factors @ self.factors.mT)
        inverse = lower_inverse(self.factors)
        trace = ((inverse @ pooled) * inverse).sum((-2, -1))
        return float((self.prior * log_scale - 0.5 * self.shrinkage * (log_scale + trace)).sum())

    @classmethod
    def start(
        cls,
        points: Tensor,
        population: GaussianLaw,
        law: "Mixture",
        components: int,
        seed: Seed,
        pooled: bool = False,
    ) -> "MixtureLaw":
        """Return a first mixture by k-means (k-means++) on points (n, d) whitened by the Gaussian."""
        z = population.normal.standardise(points)
        random = np.random.default_rng(integer(generator(seed)))
        with warnings.catch_warnings():  # of an empty cluster, which has little weight then
            warnings.simplefilter("ignore", UserWarning)
            _, label = kmeans2(z.numpy(), components, minit="++", rng=random, missing="warn")
        member = torch.from_numpy(np.eye(components)[label]) + 0.5 / len(points)
        member = (member / member.sum(1, keepdim=True)).mT
        means, spread = moments(z, member / member.sum(1, keepdim=True))
        root = population.factor
        lowest = law.floor * root
        factors = floored(root @ spread @ root.mT, lowest)
        mass = member.sum(1) / len(points)
        shrinkage = law.shrinkage_of(len(points))
        return cls(mass, population.normal(means), factors, lowest, shrinkage, pooled=pooled)

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
    inverse = lower_inverse(floor)
    values, vectors = torch.linalg.eigh(inverse @ covariance @ inverse.mT)
    half = floor @ (vectors * values.clamp_min(1.0).sqrt()[..., None, :])
    factors: Tensor = torch.linalg.cholesky(half @ half.mT)
    return factors


@dataclass(frozen=True)
class Mixture(Specification):
    """Specification: a mixture of Gaussian laws with full covariances.

    components : their number; chosen by BIC from 1 to `max_components` when None.
    floor : smallest standard deviation of a component in any direction, as a fraction of the
        population's in that direction. Without it the likelihood is unbounded: a component may
        shrink onto one individual.
    shrinkage : covariances are drawn to the diagonal matrix of the components' mean variances, as
        if so many individuals had been seen with it (regularised discriminant analysis, Friedman,
        JASA 1989); to their mean, correlations included, where the data speak against parameters
        without correlation by more than 2 nats (see `_correlated`). With 0, sparse data are
        explained by thin components that are not there. None (default): 5 up to 200 individuals,
        1,000 / N beyond.

    Raises
    ------
    ModelError : an option is outside its range; a fit of it, to fewer individuals than components.

    """

    name: ClassVar[str] = "mixture"
    components: int | None = None
    max_components: int = 6
    floor: float = 0.05
    shrinkage: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_whole(self, 1, "components", "max_components")
        number("floor", self.floor, 0, 1)
        if self.shrinkage is not None and not 0 <= self.shrinkage < float("inf"):
            raise ModelError(f"shrinkage is finite and not negative, got {self.shrinkage!r}.")

    def shrinkage_of(self, n: int) -> float:
        """Return the shrinkage for n individuals."""
        return min(5.0, 1000 / n) if self.shrinkage is None else self.shrinkage

    def sizes(self, training: TrainingSet) -> tuple[list[MixtureLaw], int]:
        """Return the mixtures of 1, 2, ... components and the position of the best by BIC."""
        return training.memory.once(self, lambda: _sizes(self, training))

    def learn(self, training: TrainingSet) -> MixtureLaw:
        """Return the mixture of lowest BIC."""
        laws, best = self.sizes(training)
        return laws[best]

    def nearby(self, training: TrainingSet) -> list[MixtureLaw]:
        """Return the mixture of lowest BIC and those of a component less and more; else the one asked for."""
        laws, best = self.sizes(training)
        return laws[max(0, best - 1) : best + 2] if self.components is None else [laws[best]]

    def refit(self, training: TrainingSet, weights: Tensor) -> list[MixtureLaw]:
        """Choose the number of components again for each row, among those nearby, and fit it again."""
        firsts, draws = self.nearby(training), training.draws
        return [_lowest([climb(first, draws, 100, 1e-3, row) for first in firsts], draws) for row in weights]

    def learn_without(self, training: TrainingSet, folds: Folds) -> list[MixtureLaw]:
        """Choose again and fit again without each fold, from the mixtures that all individuals gave."""

        def make() -> list[MixtureLaw]:
            firsts = self.nearby(training)
            return [_again(firsts, training.draws.subset(inside)) for inside, _ in folds.parts()]

        return training.memory.once((self, folds), make)


def _again(firsts: Sequence[MixtureLaw], draws: PosteriorDraws) -> MixtureLaw:
    best = _lowest([climb(first, draws.thinned(32), 40, 0.02) for first in firsts], draws)
    return climb(best, draws, 10, 0.02)[0]


def _lowest(climbed: Sequence[tuple[MixtureLaw, float]], draws: PosteriorDraws) -> MixtureLaw:
    """Return the mixture of lowest BIC, from mixtures with their log-likelihoods."""
    return min(climbed, key=lambda pair: bic(pair[0], pair[1], len(draws)))[0]


def redrawn(law: MixtureLaw, draws: PosteriorDraws, stiffness: float, prior: float) -> MixtureLaw:
    """Return a mixture fitted again with `stiffness` times its shrinkage and with a prior."""
    stiff = replace(law, shrinkage=stiffness * law.shrinkage, prior=prior)
    return climb(stiff, draws, 40, 0.01)[0]


def _sizes(law: Mixture, training: TrainingSet) -> tuple[list[MixtureLaw], int]:
    """Fit 1, 2, ... components until BIC has risen twice."""
    draws = training.draws
    gaussian = population(draws)
    pooled = _correlated(gaussian, law.shrinkage_of(len(draws)), draws)
    most = min(law.max_components, len(draws)) if law.components is None else law.components
    if most > len(draws):
        raise ModelError(f"A mixture of {most} components needs as many individuals, got {len(draws)}.")
    laws: list[MixtureLaw] = []
    values: list[float] = []
    for size in range(1, most + 1):
        training.report(f"mixture of {size}")
        fitted, value = _best_start(law, size, training, laws[-1] if laws else None, gaussian, pooled)
        laws.append(fitted)
        values.append(bic(fitted, value, len(draws)))
        if law.components is None and size >= values.index(min(values)) + 3:
            break
    best = values.index(min(values)) if law.components is None else most - 1
    laws[best] = climb(laws[best], draws, 100, tolerance=1e-2)[0]
    return laws, best


def _best_start(
    law: Mixture,
    size: int,
    training: TrainingSet,
    smaller: MixtureLaw | None,
    gaussian: GaussianLaw,
    pooled: bool,
) -> tuple[MixtureLaw, float]:
    """Return the best of several starts: short climbs on few draws, long ones for the best.

    Starts are k-means of conditional means and of draws, and the mixture with one component less
    to which one is added where individuals are denser than it says (greedy EM).
    """
    draws = training.draws
    means, _ = moments(draws.phi, draws.weigh(gaussian.inflated(1.5)).weights)
    seed = derive(training.seed, size)  # a stream without a name: stored results rest on it
    n_draws = draws.phi.shape[1]
    firsts = [
        MixtureLaw.start(
            means if k % 2 == 0 else draws.phi[:, k % n_draws], gaussian, law, size, derive(seed, k), pooled
        )
        for k in range(STARTS if size > 1 else 1)
    ]
    if smaller is not None:
        firsts += [smaller.with_component(place) for place in _unexplained(means, smaller, gaussian)]
    for some, iterations, survivors in RACE:
        thin = draws.thinned(some)
        climbed = sorted(
            (climb(first, thin, iterations, 0.02) for first in firsts), key=lambda pair: -pair[1]
        )
        firsts = [law for law, _ in climbed[:survivors]]
    return climbed[0]


def _correlated(gaussian: GaussianLaw, shrinkage: float, draws: PosteriorDraws) -> bool:
    """Return whether a single component must not be drawn to its variances alone.

    Where the correlation of two parameters is a matter of how the curve is written, as that of intercept and
    slope where time zero is far away, it costs more than `COST` nats; few individuals correlate by chance,
    and the shrinkage is counted as that of many.
    """
    shrinkage = min(shrinkage, len(draws) / FEW)
    variances = gaussian.covariance.diagonal().diag()
    shrunk = (len(draws) * gaussian.covariance + shrinkage * variances) / (len(draws) + shrinkage)
    drawn = replace(gaussian, factor=torch.linalg.cholesky(shrunk))
    cost = draws.weigh(gaussian).log_likelihood.sum() - draws.weigh(drawn).log_likelihood.sum()
    return float(cost) > COST


def _unexplained(means: Tensor, law: Law, gaussian: GaussianLaw, width: float = 0.3) -> list[Tensor]:
    """Return places where there are more individuals than the law expects, the most striking first.

    Excess: log of the leave-one-out kernel density of the conditional means minus log p(phi); places
    closer than two kernel widths to a better one are passed over.
    """
    points = means[:MOST_POINTS]
    z = gaussian.normal.standardise(points)
    distance = torch.cdist(z, z)
    log_kernel = (-0.5 * (distance / width).square()).fill_diagonal_(-torch.inf)
    excess = log_kernel.logsumexp(1) - law.log_prob(points)
    places: list[Tensor] = []
    for _ in range(GREEDY):
        best = int(excess.argmax())
        if not torch.isfinite(excess[best]):
            break
        places.append(points[best])
        excess[distance[best] < 2 * width] = -torch.inf
    return places
