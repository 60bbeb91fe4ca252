"""Nonparametric maximum likelihood: where the points of a discrete law lie, and how it is certified.

The log-likelihood L(G) = sum_i log sum_k w_k p(y_i | phi_k) is concave in G. Its directional derivative
towards a point mass at phi is D(phi; G) = sum_i p(y_i | phi) / p_G(y_i) - N; G is the maximum if and
only if D <= 0 everywhere, and L* - L(G) <= sup D (Lindsay 1983).
"""

from dataclasses import replace
from functools import singledispatch

import torch
from torch import Tensor

from nlmeflow.errors import ModelError
from nlmeflow.estimation.certificate import log_gradient, peaks
from nlmeflow.estimation.cloud import Cloud, Seen
from nlmeflow.estimation.em import Record, Result, Schedule, State, maximise
from nlmeflow.estimation.estimators import Task, estimate, lesson, rough_mixture
from nlmeflow.estimation.laplace import modes
from nlmeflow.estimation.learning import Lesson, learn, population
from nlmeflow.estimation.likelihood import on_points
from nlmeflow.estimation.particles import Proposal
from nlmeflow.estimation.problem import Problem
from nlmeflow.estimation.weights import em_weights, solve_weights
from nlmeflow.laws.discrete import NPAG, NPEM, NPML, Discrete, DiscreteLaw, NPonEBE, ParticleNPML
from nlmeflow.laws.gaussian import median_sd, moments
from nlmeflow.laws.law import Law, safe_cholesky
from nlmeflow.seeds import derive

ROUNDS = 60  # of new points, at most
REST = 15  # rounds of places and residual parameters, at most
EM_STEPS = 30  # of the residual parameters in each
DROPPED = 1e-5  # weight, as a share of the largest, under which a point is left out


@learn.register
def _(law: Discrete, lesson: Lesson) -> Law:
    return place(law, lesson)


@estimate.register
def _(law: Discrete, task: Task) -> Result:
    """Place points, then sigma and beta by EM with the points as particles, and again until both rest."""
    return task.kept.once(law, lambda: _settled(law, task))


def _settled(law: Discrete, task: Task) -> Result:
    problem, base = task.problem, lesson(task)
    cloud, found = base.cloud, place(law, base)
    state = rough_mixture(task).state
    trace: list[Record] = []
    for _ in range(REST):
        before, state, gain = _residuals(problem, replace(state, law=found))
        trace.append(Record(len(found.weights), before, 0.0, gain, 1.0, EM_STEPS))
        seen = replace(cloud.points, beta=state.beta, sigma=state.sigma)
        moved = Lesson(replace(cloud, seen=seen), base.seed, task.report)
        found = place(law, moved, found)
        if gain < 1e-3:
            break
    state = replace(state, law=found)
    particles, step = on_points(problem, state)
    centre, covariance = moments(particles.phi, step.weights)
    proposal = Proposal(centre, safe_cholesky(covariance), found, found.moments)
    return Result(state, particles, step, proposal, gain < 1e-3, trace)


def _residuals(problem: Problem, state: State) -> tuple[float, State, float]:
    """Return the log-likelihood, the state after EM of all but the points' places, and the gain."""
    particles, step = on_points(problem, state)
    before = float(step.log_likelihood.sum())
    for _ in range(EM_STEPS):
        state = maximise(problem, state, particles, step, Schedule())
        particles, step = on_points(problem, state)
    return before, state, float(step.log_likelihood.sum()) - before


@singledispatch
def place(law: object, lesson: Lesson, start: DiscreteLaw | None = None) -> DiscreteLaw:
    """Return the discrete law of a specification; `start` is an earlier one to go on from."""
    raise ModelError(f"{law!r} does not specify a discrete law.")


def weighed(seen: Seen, support: Tensor, dropped: float = DROPPED) -> DiscreteLaw:
    """Return the law of highest likelihood on given points, those without weight left out."""
    weights = solve_weights(seen.log_psi(support))
    return pruned(DiscreteLaw(support, weights), dropped)


def pruned(law: DiscreteLaw, dropped: float) -> DiscreteLaw:
    """Return the law without the points whose weight is below a share of the largest."""
    kept = law.weights > dropped * law.weights.max()
    weights = law.weights[kept]
    return DiscreteLaw(law.support[kept], weights / weights.sum())


def scale_of(cloud: Cloud) -> Tensor:
    """Return a length in each coordinate: the median conditional standard deviation."""
    return median_sd(cloud.phi, cloud.weigh(population(cloud)).weights)


@place.register
def _(law: NPML, lesson: Lesson, start: DiscreteLaw | None = None) -> DiscreteLaw:
    cloud, seen = lesson.cloud, lesson.cloud.points
    scale = scale_of(cloud)
    draws = cloud.thinned(max(2, min(16, 4000 // len(cloud)))).phi.flatten(0, 1)
    draws = torch.cat([draws, _sobol(cloud, 2048, derive(lesson.seed, 300))])
    first = draws if start is None else torch.cat([start.support, draws])
    found = weighed(seen, first)
    for _ in range(ROUNDS):
        log_marginal = seen.score(found)
        candidates = torch.cat([found.support, draws])
        points, gains = peaks(seen.log_psi, log_marginal, candidates, scale)
        bound = float(gains.max())
        lesson.report(f"npml: {len(found.weights)} points, bound {bound:.3g}")
        if bound < law.tolerance:
            break
        found = weighed(seen, torch.cat([found.support, points[gains > 0.1 * law.tolerance]]))
    return merged(seen, found, scale)


def merged(seen: Seen, law: DiscreteLaw, scale: Tensor, distance: float = 0.02) -> DiscreteLaw:
    """Return the law with points closer than `distance` scales merged, when that costs no likelihood."""
    order = law.weights.argsort(descending=True).tolist()
    apart = torch.cdist(law.support / scale, law.support / scale)
    owner: dict[int, list[int]] = {}
    for k in order:
        near = next((j for j in owner if apart[j, k] < distance), None)
        owner.setdefault(k if near is None else near, []).append(k)
    rows = [(law.weights[group], law.support[group]) for group in owner.values()]
    support = torch.stack([w @ x / w.sum() for w, x in rows])
    lighter = weighed(seen, support)
    before, after = seen.score(law).sum(), seen.score(lighter).sum()
    return lighter if after > before - 1e-4 else law


def box_of(cloud: Cloud) -> tuple[Tensor, Tensor]:
    """Return the corners of a box around all draws, a tenth wider on each side."""
    low, high = cloud.phi.flatten(0, 1).amin(0), cloud.phi.flatten(0, 1).amax(0)
    return low - 0.1 * (high - low), high + 0.1 * (high - low)


def _sobol(cloud: Cloud, n: int, seed: int) -> Tensor:
    low, high = box_of(cloud)
    engine = torch.quasirandom.SobolEngine(cloud.dim, scramble=True, seed=seed)
    return low + (high - low) * engine.draw(n, dtype=low.dtype)


@place.register
def _(law: NPEM, lesson: Lesson, start: DiscreteLaw | None = None) -> DiscreteLaw:
    seen = lesson.cloud.points
    grid = _sobol(lesson.cloud, law.grid, derive(lesson.seed, 301))
    weights = grid.new_full((len(grid),), 1 / len(grid))
    weights = em_weights(seen.log_psi(grid), weights, law.iterations, tolerance=1e-7)
    return pruned(DiscreteLaw(grid, weights), DROPPED)


@place.register
def _(law: NPAG, lesson: Lesson, start: DiscreteLaw | None = None) -> DiscreteLaw:
    seen = lesson.cloud.points
    low, high = box_of(lesson.cloud)
    grid = _sobol(lesson.cloud, law.grid, derive(lesson.seed, 302)) if start is None else start.support
    reach, value, rounds = 0.2, -torch.inf, 0
    found = weighed(seen, grid, dropped=1e-3)
    while reach > 1e-4 and rounds < 400:
        rounds += 1
        steps = reach * torch.diag(high - low)
        moved = found.support[:, None, None] + torch.stack([steps, -steps])
        moved = torch.minimum(torch.maximum(moved.flatten(0, 2), low), high)
        found = weighed(seen, torch.cat([found.support, moved]), dropped=1e-3)
        new = float(seen.score(found).sum())
        lesson.report(f"npag: {len(found.weights)} points, reach {reach:.1g}")
        if new - value < 1e-2:
            reach /= 2
        value = new
    return merged(seen, found, scale_of(lesson.cloud))


@place.register
def _(law: ParticleNPML, lesson: Lesson, start: DiscreteLaw | None = None) -> DiscreteLaw:
    cloud, seen = lesson.cloud, lesson.cloud.points
    scale = scale_of(cloud)
    half = law.particles // 2
    drawn = cloud.thinned(-(-half // len(cloud))).phi.flatten(0, 1)[:half]
    support = torch.cat([drawn, _sobol(cloud, law.particles - half, derive(lesson.seed, 304))])
    weights = support.new_full((len(support),), 1 / len(support))
    rate = support.new_full((len(support), 1), 0.5)
    for _ in range(law.steps):
        weights = em_weights(seen.log_psi(support), weights, 5)
        keep = weights > DROPPED * weights.max()
        support, weights, rate = support[keep], weights[keep], rate[keep]
        log_marginal = seen.score(DiscreteLaw(support, weights))
        with torch.enable_grad():
            x = support.clone().requires_grad_(True)
            value = log_gradient(seen.log_psi, log_marginal, x)
            slope = torch.autograd.grad(value.sum(), x)[0]
        step = rate * slope * scale.square()
        step = step * (0.5 / (step / scale).norm(dim=1, keepdim=True).clamp_min(0.5))
        tried = support + step
        better = (log_gradient(seen.log_psi, log_marginal, tried) >= value)[:, None]
        rate = torch.where(better, rate * 1.3, rate * 0.3)
        support = torch.where(better, tried, support)
    return merged(seen, weighed(seen, support), scale)


@place.register
def _(law: NPonEBE, lesson: Lesson, start: DiscreteLaw | None = None) -> DiscreteLaw:
    cloud, seen = lesson.cloud, lesson.cloud.points
    gaussian = population(cloud)
    means = (cloud.weigh(gaussian).weights[..., None] * cloud.phi).sum(1)
    ebes = modes(seen.problem, gaussian, seen.beta, seen.sigma, means).mode
    drawn = gaussian.inflated(1.5).sample(law.extended * len(cloud), derive(lesson.seed, 303))
    return weighed(seen, torch.cat([ebes, drawn]))
