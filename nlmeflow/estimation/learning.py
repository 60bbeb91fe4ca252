"""Learning a law on a cloud: no likelihood, no curve, no data, only posterior draws."""

import math
from dataclasses import dataclass, field
from functools import singledispatch

import torch
from torch import Tensor

from nlmeflow.errors import ModelError
from nlmeflow.estimation.cloud import Cloud, climb
from nlmeflow.estimation.em import Report, silent
from nlmeflow.estimation.memory import Memory
from nlmeflow.estimation.stacking import stacking_weights
from nlmeflow.estimation.training import Candidate, fold_bases, held_out, split, train
from nlmeflow.laws.flow import Flow
from nlmeflow.laws.gaussian import Gaussian, GaussianLaw
from nlmeflow.laws.law import Law
from nlmeflow.laws.mixture import Mixture, MixtureLaw
from nlmeflow.laws.stacked import StackedLaw
from nlmeflow.seeds import derive

STARTS = 4  # by k-means, for each number of components
GREEDY = 6  # by adding a component to the smaller mixture
MOST_POINTS = 2000  # individuals among which its place is sought
RACE = ((8, 10, 6), (12, 40, 2), (32, 100, 1))  # draws, iterations, survivors: most starts are dropped early


@dataclass
class Lesson:
    """A cloud, the seed, where to say what runs now, and what was already learned."""

    cloud: Cloud
    seed: int
    report: Report = silent
    kept: Memory = field(default_factory=Memory)


@singledispatch
def learn(law: object, lesson: Lesson) -> Law:
    """Return the fitted law of a specification."""
    raise ModelError(
        f"{law!r} is not the specification of a law; try nf.Gaussian(), nf.Mixture() or nf.Flow()."
    )


@learn.register
def _(law: Gaussian, lesson: Lesson) -> Law:
    return population(lesson.cloud, law)


def population(cloud: Cloud, law: Gaussian | None = None) -> GaussianLaw:
    """Return the Gaussian law of a cloud by EM."""
    phi = cloud.phi
    equal = phi.new_full(phi.shape[:2], 1 / phi.shape[1])
    identity = torch.eye(cloud.dim, dtype=phi.dtype)
    structure = "full" if law is None else law.covariance
    first = GaussianLaw(phi[0, 0], identity, structure).update(phi, equal)
    fitted, _ = climb(first, cloud, 200, tolerance=1e-4)
    assert isinstance(fitted, GaussianLaw)
    return fitted


@learn.register
def _(law: Mixture, lesson: Lesson) -> Law:
    """Return the mixture of highest BIC."""
    return lesson.kept.once(law, lambda: _mixture(law, lesson))


def _mixture(law: Mixture, lesson: Lesson) -> MixtureLaw:
    cloud = lesson.cloud
    sizes = range(1, law.max_components + 1) if law.components is None else range(1, law.components + 1)
    best, best_bic, worse = None, math.inf, 0
    fitted: MixtureLaw | None = None
    for size in sizes:
        lesson.report(f"mixture of {size}")
        fitted, value = _best_start(law, size, lesson, fitted)
        bic = fitted.n_parameters * math.log(len(cloud)) - 2 * value
        if bic < best_bic or law.components is not None:
            best, best_bic, worse = fitted, bic, 0
        else:
            worse += 1
        if worse == 2:
            break
    assert best is not None
    refined, _ = climb(best, cloud, 100, tolerance=1e-2)
    assert isinstance(refined, MixtureLaw)
    return refined


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
    seed = derive(lesson.seed, size)
    firsts: list[Law] = [
        MixtureLaw.start(means if k % 2 == 0 else cloud.phi[:, k], gaussian, size, law.floor, derive(seed, k))
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


@learn.register
def _(law: Flow, lesson: Lesson) -> Law:
    """Return the flows and their bases, stacked by held-out log-likelihood."""
    mixture = learn(Mixture(), lesson) if "mixture" in law.bases() else None
    candidates = flow_candidates(law, lesson, population(lesson.cloud), mixture)
    return stack(candidates)


def flow_candidates(law: Flow, lesson: Lesson, gaussian: GaussianLaw, mixture: Law | None) -> list[Candidate]:
    """Return the bases and the flows trained on them, each with its held-out scores."""
    cloud = lesson.cloud
    fold = split(len(cloud), law.folds, derive(lesson.seed, 100))
    base_laws = {"gaussian": gaussian, "mixture": mixture}
    candidates = []
    for b, name in enumerate(law.bases()):
        base = base_laws[name]
        assert base is not None
        bases = fold_bases(cloud, base, fold)
        candidates.append(Candidate((base,), held_out(cloud, bases, fold)))
        for k, network in enumerate(law.networks()):
            lesson.report(f"{network.kind} flow on the {name}")
            seed = derive(lesson.seed, 101, b, k)
            candidates.append(train(network, law, cloud, gaussian, bases, fold, seed))
    return candidates


def stack(candidates: list[Candidate], negligible: float = 1e-3) -> StackedLaw:
    """Return the mixture of all parts of all candidates, weighted by held-out scores."""
    weights = stacking_weights(torch.stack([c.scores for c in candidates], 1))
    parts: list[Law] = []
    shares: list[Tensor] = []
    for candidate, weight in zip(candidates, weights, strict=True):
        if weight > negligible:
            parts += candidate.laws
            shares += [weight / len(candidate.laws)] * len(candidate.laws)
    share = torch.stack(shares)
    return StackedLaw(tuple(parts), share / share.sum())
