"""From a specification of a law to a fit: Gaussian first, then what it makes possible."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import singledispatch
from typing import Any

import torch

from nlmeflow.errors import ModelError
from nlmeflow.estimation.cloud import Cloud, broad_reference, climb, make_cloud
from nlmeflow.estimation.em import Result, Schedule, State, em, silent
from nlmeflow.estimation.laplace import gaussian_start
from nlmeflow.estimation.particles import Proposal, draw
from nlmeflow.estimation.problem import Problem
from nlmeflow.estimation.stacking import stacking_weights
from nlmeflow.estimation.start import pooled_start
from nlmeflow.estimation.training import Candidate, fold_bases, held_out, split, train
from nlmeflow.laws.flow import Flow
from nlmeflow.laws.gaussian import Covariance, Gaussian, GaussianLaw
from nlmeflow.laws.law import Law
from nlmeflow.laws.mixture import Mixture, MixtureLaw
from nlmeflow.laws.stacked import StackedLaw
from nlmeflow.seeds import derive, generator

CLOUD_DRAWS = 64


@dataclass
class Task:
    """One fitting task: the problem, first values, the seed, and what was already computed.

    Gaussian and mixture fits are kept, so that several laws of one task share them.
    """

    problem: Problem
    start: dict[str, float]
    seed: int
    particles: int
    report: Callable[[str], None] = silent
    kept: dict[Any, Any] = field(default_factory=dict)

    @property
    def schedule(self) -> Schedule:
        """Return the engine's configuration for this task."""
        return Schedule(particles=self.particles, first=min(256, self.particles))

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return what `make` made the first time it was asked for under this key."""
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]


def default_particles(n_individuals: int) -> int:
    """Return the particles per individual: 200,000 in all, between 512 and 16,384."""
    return min(16384, max(512, 2 ** round(math.log2(200_000 / n_individuals))))


@singledispatch
def estimate(law: object, task: Task) -> Result:
    """Fit a law to a task's data."""
    raise ModelError(
        f"{law!r} is not the specification of a law; try nf.Gaussian(), nf.Mixture() or nf.Flow()."
    )


@estimate.register
def _(law: Gaussian, task: Task) -> Result:
    return task.once(law, lambda: _gaussian(law.covariance, task))


def _gaussian(structure: Covariance, task: Task) -> Result:
    problem = task.problem
    task.report("first values")
    first = pooled_start(problem, task.start, derive(task.seed, 0))
    task.report("Laplace")
    start = gaussian_start(problem, first, structure)
    proposal = Proposal(start.laplace.mode, start.laplace.factor, start.law, start.law.inflated(2.0))
    state = State(start.law, start.beta, start.sigma)
    return em(problem, state, proposal, task.schedule, generator(derive(task.seed, 1)), task.report)


@estimate.register
def _(law: Mixture, task: Task) -> Result:
    return task.once(law, lambda: _mixture(law, task))


def _mixture(law: Mixture, task: Task) -> Result:
    """Choose on the Gaussian's cloud, refit on a cloud of its own, then sigma and beta."""
    gaussian = estimate(Gaussian(), task)
    chosen = choose_mixture(law, task)
    cloud = reference_cloud(task, chosen, gaussian, stream=2)
    refitted, _ = climb(chosen, cloud, 100, tolerance=1e-2)
    state = State(refitted, gaussian.state.beta, gaussian.state.sigma)
    return _finish(task, state, gaussian, stream=3)


def choose_mixture(law: Mixture, task: Task) -> MixtureLaw:
    """Return the mixture of highest BIC on a cloud; several k-means starts for each size."""
    gaussian = estimate(Gaussian(), task)
    population = _gaussian_law(gaussian)
    cloud = gaussian_cloud(task)
    sizes = range(1, law.max_components + 1) if law.components is None else [law.components]
    best, best_bic, worse = None, math.inf, 0
    for size in sizes:
        task.report(f"mixture of {size}")
        fitted, value = _best_start(law, size, cloud, population, task)
        bic = fitted.n_parameters * math.log(len(cloud)) - 2 * value
        if bic < best_bic:
            best, best_bic, worse = fitted, bic, 0
        else:
            worse += 1
        if worse == 2:
            break
    assert best is not None
    return best


def _best_start(
    law: Mixture, size: int, cloud: Cloud, population: GaussianLaw, task: Task, starts: int = 6
) -> tuple[MixtureLaw, float]:
    """Return the best of several starts: short climbs on a thinned cloud, one long climb."""
    thin = cloud.thinned(12)
    points = _individual_means(cloud, population)
    tried = []
    for k in range(starts if size > 1 else 1):
        spread = points if k % 2 == 0 else cloud.phi[:, k]
        first = MixtureLaw.start(spread, population, size, law.floor, derive(task.seed, 3, size, k))
        tried.append(climb(first, thin, 20))
    first_law = max(tried, key=lambda pair: pair[1])[0]
    best, value = climb(first_law, cloud.thinned(32), 100, tolerance=0.02)
    assert isinstance(best, MixtureLaw)
    return best, value


def _individual_means(cloud: Cloud, population: GaussianLaw) -> torch.Tensor:
    weights = cloud.weigh(population.inflated(1.5)).weights
    return (weights[..., None] * cloud.phi).sum(1)


def gaussian_cloud(task: Task) -> Cloud:
    """Return the cloud under a reference wider than the Gaussian fit."""

    def make() -> Cloud:
        fit = estimate(Gaussian(), task)
        return reference_cloud(task, fit.state.law, fit, stream=4)

    return task.once("gaussian cloud", make)


def mixture_cloud(task: Task) -> Cloud:
    """Return the cloud under a reference of the mixture fit and a wider Gaussian."""

    def make() -> Cloud:
        fit = estimate(Mixture(), task)
        return reference_cloud(task, fit.state.law, fit, stream=5)

    return task.once("mixture cloud", make)


def reference_cloud(task: Task, law: Law, fit: Result, stream: int) -> Cloud:
    """Return posterior draws under 60 % of a law and 40 % of the Gaussian fit made wider."""
    gaussian = _gaussian_law(estimate(Gaussian(), task))
    random = generator(derive(task.seed, stream))
    reference = broad_reference(law, gaussian)
    proposal = replace(fit.proposal, law=reference)
    particles = draw(task.problem, proposal, fit.state.beta, task.particles, random)
    return make_cloud(task.problem, particles, fit.state.sigma, reference, CLOUD_DRAWS, random)


@estimate.register
def _(law: Flow, task: Task) -> Result:
    return task.once(law, lambda: _flow(law, task))


def _flow(law: Flow, task: Task) -> Result:
    mixture = estimate(Mixture(), task)
    candidates = flow_candidates(law, task)
    weights = stacking_weights(torch.stack([c.scores for c in candidates], 1))
    parts = [part for c in candidates for part in c.laws]
    shares = [w / len(c.laws) for c, w in zip(candidates, weights, strict=True) for _ in c.laws]
    kept = [k for k, share in enumerate(shares) if share > 1e-3]
    share = torch.stack([shares[k] for k in kept])
    stack = StackedLaw(tuple(parts[k] for k in kept), share / share.sum())
    state = State(stack, mixture.state.beta, mixture.state.sigma)
    return _finish(task, state, mixture, stream=8)


def flow_candidates(law: Flow, task: Task) -> list[Candidate]:
    """Return the bases and the flows trained on them, each with its held-out scores."""
    gaussian = _gaussian_law(estimate(Gaussian(), task))
    base_laws: dict[str, Law] = {"gaussian": gaussian, "mixture": estimate(Mixture(), task).state.law}
    cloud = mixture_cloud(task)
    fold = split(len(cloud), law.folds, derive(task.seed, 6))
    candidates = []
    for b, name in enumerate(law.bases()):
        base = base_laws[name]
        bases = fold_bases(cloud, base, fold)
        candidates.append(Candidate((base,), held_out(cloud, bases, fold)))
        for k, network in enumerate(law.networks()):
            task.report(f"{network.kind} flow on the {name}")
            seed = derive(task.seed, 7, b, k)
            candidates.append(train(network, law, cloud, gaussian, bases, fold, seed))
    return candidates


def _finish(task: Task, state: State, previous: Result, stream: int) -> Result:
    """Run the engine on fresh particles for sigma and beta, the law as found on its cloud."""
    schedule = replace(task.schedule, update_law=False, refreshes=6)
    proposal = replace(previous.proposal, law=state.law)
    random = generator(derive(task.seed, stream))
    return em(task.problem, state, proposal, schedule, random, task.report)


def _gaussian_law(result: Result) -> GaussianLaw:
    assert isinstance(result.state.law, GaussianLaw)
    return result.state.law
