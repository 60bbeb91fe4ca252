"""How many components: mixtures of growing size on a cloud, the best by BIC."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nlmeflow.estimation.cloud import Cloud, climb
from nlmeflow.estimation.learning import Lesson, learn, population, rows, without_folds
from nlmeflow.laws.gaussian import GaussianLaw
from nlmeflow.laws.law import Law
from nlmeflow.laws.mixture import Mixture, MixtureLaw
from nlmeflow.seeds import derive

STARTS = 4  # by k-means, for each number of components
GREEDY = 6  # by adding a component to the smaller mixture
MOST_POINTS = 2000  # individuals among which its place is sought
RACE = ((8, 10, 6), (12, 40, 2), (32, 100, 1))  # draws, iterations, survivors: most starts are dropped early


@dataclass(frozen=True)
class Sizes:
    """Mixtures of 1, 2, ... components and the position of the best by BIC."""

    laws: tuple[MixtureLaw, ...]
    best: int

    @property
    def near(self) -> tuple[MixtureLaw, ...]:
        """The best and those of one component less and more."""
        return self.laws[max(0, self.best - 1) : self.best + 2]


def bic(law: Law, value: float, n: int) -> float:
    """Return p log N - 2 L; the lower the better."""
    return law.n_parameters * math.log(n) - 2 * value


@learn.register
def _(law: Mixture, lesson: Lesson) -> Law:
    """Return the mixture of highest BIC."""
    found = sizes(law, lesson)
    return found.laws[found.best]


@without_folds.register
def _(law: Mixture, lesson: Lesson, fold: Tensor) -> list[Law]:
    """Choose again and fit again without each fold, from the mixtures that all individuals gave."""

    def make() -> list[Law]:
        found = sizes(law, lesson)
        firsts = found.near if law.components is None else (found.laws[found.best],)
        return [_again(firsts, lesson.cloud.subset(inside)) for inside, _ in rows(fold)]

    return lesson.kept.once((law, tuple(fold.tolist())), make)


def _again(firsts: tuple[MixtureLaw, ...], cloud: Cloud) -> Law:
    climbed = [climb(first, cloud.thinned(32), 40, 0.02) for first in firsts]
    best, _ = min(climbed, key=lambda pair: bic(pair[0], pair[1], len(cloud)))
    refined, _ = climb(best, cloud, 10, 0.02)
    return refined


def redrawn(law: Law, cloud: Cloud, stiffness: float, prior: float) -> Law:
    """Return a mixture refitted with `stiffness` times its shrinkage and with a prior."""
    assert isinstance(law, MixtureLaw)
    stiff = replace(law, shrinkage=stiffness * law.shrinkage, prior=prior)
    refitted, _ = climb(stiff, cloud, 40, 0.01)
    return refitted


def sizes(law: Mixture, lesson: Lesson) -> Sizes:
    """Fit 1, 2, ... components until BIC has risen twice; made once for each lesson."""
    return lesson.kept.once(law, lambda: _sizes(law, lesson))


def _sizes(law: Mixture, lesson: Lesson) -> Sizes:
    cloud = lesson.cloud
    most = law.max_components if law.components is None else law.components
    laws: list[MixtureLaw] = []
    values: list[float] = []
    for size in range(1, most + 1):
        lesson.report(f"mixture of {size}")
        fitted, value = _best_start(law, size, lesson, laws[-1] if laws else None)
        laws.append(fitted)
        values.append(bic(fitted, value, len(cloud)))
        if law.components is None and size >= values.index(min(values)) + 3:
            break
    best = values.index(min(values)) if law.components is None else most - 1
    refined, _ = climb(laws[best], cloud, 100, tolerance=1e-2)
    assert isinstance(refined, MixtureLaw)
    laws[best] = refined
    return Sizes(tuple(laws), best)


def _best_start(
    law: Mixture, size: int, lesson: Lesson, smaller: MixtureLaw | None
) -> tuple[MixtureLaw, float]:
    """Return the best of several starts: short climbs on thinned clouds, long ones for the best.

    Starts are k-means of conditional means and of draws, and the mixture with one component less
    to which one is added where individuals are denser than it says (greedy EM).
    """
    cloud = lesson.cloud
    gaussian = population(cloud)
    weights = cloud.weigh(gaussian.inflated(1.5)).weights
    means = (weights[..., None] * cloud.phi).sum(1)
    seed, draws = derive(lesson.seed, size), cloud.phi.shape[1]
    firsts: list[Law] = [
        MixtureLaw.start(
            means if k % 2 == 0 else cloud.phi[:, k % draws], gaussian, law, size, derive(seed, k)
        )
        for k in range(STARTS if size > 1 else 1)
    ]
    if smaller is not None:
        firsts += [smaller.with_component(place) for place in _unexplained(means, smaller, gaussian)]
    for draws, iterations, survivors in RACE:
        thin = cloud.thinned(draws)
        climbed = sorted(
            (climb(first, thin, iterations, 0.02) for first in firsts), key=lambda pair: -pair[1]
        )
        firsts = [law for law, _ in climbed[:survivors]]
    best, value = climbed[0]
    assert isinstance(best, MixtureLaw)
    return best, value


def _unexplained(means: Tensor, law: Law, gaussian: GaussianLaw, width: float = 0.3) -> list[Tensor]:
    """Return places where there are more individuals than the law expects, the most striking first.

    Excess: log of the leave-one-out kernel density of the conditional means minus log p(phi); places
    closer than two kernel widths to a better one are passed over.
    """
    points = means[:MOST_POINTS]
    identity = torch.eye(means.shape[1], dtype=means.dtype)
    z = (points - gaussian.mean) @ torch.linalg.solve_triangular(gaussian.factor, identity, upper=False).mT
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
