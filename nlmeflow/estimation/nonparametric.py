"""Nonparametric maximum likelihood: where the points of a discrete law lie, and how it is certified.

The log-likelihood L(G) = sum_i log sum_k w_k p(y_i | phi_k) is concave in G. Its directional derivative
towards a point mass at phi is D(phi; G) = sum_i p(y_i | phi) / p_G(y_i) - N; G is the maximum if and
only if D <= 0 everywhere, and L* - L(G) <= sup D (Lindsay 1983).
"""

from dataclasses import replace
from functools import singledispatch

import numpy as np
import torch
from scipy.linalg import qr
from torch import Tensor

from nlmeflow.errors import EstimationError, ModelError
from nlmeflow.estimation.anderson import Anderson
from nlmeflow.estimation.certificate import log_gradient, peaks
from nlmeflow.estimation.cloud import Cloud, Seen
from nlmeflow.estimation.em import Record, Result, Schedule, State, maximise
from nlmeflow.estimation.estimators import Task, estimate, lesson, rough_mixture
from nlmeflow.estimation.laplace import alone, around
from nlmeflow.estimation.learning import Lesson, learn, population
from nlmeflow.estimation.likelihood import on_points
from nlmeflow.estimation.particles import Proposal
from nlmeflow.estimation.problem import Problem
from nlmeflow.estimation.relatives import empirical_bayes
from nlmeflow.estimation.weights import em_weights, solve_weights
from nlmeflow.laws.discrete import NPAG, NPEM, NPML, Discrete, DiscreteLaw, NPonEBE, ParticleNPML
from nlmeflow.laws.gaussian import median_sd, moments
from nlmeflow.laws.law import Law, safe_cholesky
from nlmeflow.seeds import derive

ROUNDS = 60  # of new points, at most
REST = 30  # rounds of places and residual parameters, at most
EM_STEPS = 30  # of the residual parameters in each
DROPPED = 1e-5  # weight, as a share of the largest, under which a point is left out
INDEPENDENT = 1e-8  # share of the largest pivot under which a point says nothing new
FARTHEST = 8.0  # standard deviations from the population's mean to which the box may reach


@learn.register
def _(law: Discrete, lesson: Lesson) -> Law:
    return certified(law, lesson)


@estimate.register
def _(law: Discrete, task: Task) -> Result:
    """Place points, then sigma and beta by EM with the points as particles, and again until both rest."""
    return task.kept.once(law, lambda: _settled(law, task))


def _settled(law: Discrete, task: Task) -> Result:
    """Maximise over points and x = (log sigma, beta) in turn, x by Anderson steps.

    The likelihood of the best points is a function of x whose ascent by plain EM is slow: points
    follow the residual error and the residual error the points.
    """
    problem, base = task.problem, lesson(task)
    state = rough_mixture(task).state
    accelerator, trace, converged = Anderson(), [], False
    found: DiscreteLaw | None = None
    best, plain = -torch.inf, state
    for _ in range(REST):
        seen = replace(base.cloud.points, beta=state.beta, sigma=state.sigma)
        cloud = replace(base.cloud, seen=seen)
        tried = certified(law, Lesson(cloud, base.seed, task.report), found)
        before, moved, gain = _residuals(problem, replace(state, law=tried))
        if before < best - 1e-3 and state is not plain:
            accelerator.forget()
            state = plain
            continue
        found, best, plain = tried, max(best, before), moved
        trace.append(Record(len(found.weights), before, 0.0, gain, 1.0, EM_STEPS))
        converged = gain < 1e-3
        if converged:
            state = moved
            break
        log_sigma, beta = accelerator.step(_vector(state), _vector(moved)).split(
            [len(state.sigma), len(state.beta)]
        )
        state = replace(moved, sigma=log_sigma.exp(), beta=beta)
    assert found is not None
    state = replace(state, law=found)
    particles, step = on_points(problem, state)
    centre, covariance = moments(particles.phi, step.weights)
    proposal = Proposal(centre, safe_cholesky(covariance), found, found.moments)
    return Result(state, particles, step, proposal, converged, trace)


def _vector(state: State) -> Tensor:
    return torch.cat([state.sigma.log(), state.beta])


def _residuals(problem: Problem, state: State) -> tuple[float, State, float]:
    """Return the log-likelihood, the state after EM of all but the points' places, and the gain."""
    particles, step = on_points(problem, state)
    before = float(step.log_likelihood.sum())
    for _ in range(EM_STEPS):
        state = maximise(problem, state, particles, step, Schedule())
        particles, step = on_points(problem, state)
    return before, state, float(step.log_likelihood.sum()) - before


def certified(law: Discrete, lesson: Lesson, start: DiscreteLaw | None = None) -> DiscreteLaw:
    """Run an algorithm, and again from its points and those where D is highest, until sup D is small.

    start : an earlier law to go on from. With `tolerance` None the algorithm runs once.
    """
    cloud, seen = lesson.cloud, lesson.cloud.points
    scale = scale_of(cloud)
    found = place(law, lesson, start)
    tolerance = getattr(law, "tolerance", None)
    if tolerance is None:
        return found
    everywhere = candidates(lesson)
    for _ in range(ROUNDS):
        points, gains = peaks(seen.log_psi, seen.score(found), torch.cat([found.support, everywhere]), scale)
        bound = float(gains.max())
        lesson.report(f"{law.name}: {len(found.weights)} points, bound {bound:.3g}")
        if bound < tolerance:
            break
        more = points[gains > 0.1 * tolerance]
        weights = torch.cat([found.weights, found.weights.new_full((len(more),), 1 / len(cloud))])
        found = place(law, lesson, DiscreteLaw(torch.cat([found.support, more]), weights / weights.sum()))
    return merged(seen, found, scale)


def candidates(lesson: Lesson) -> Tensor:
    """Return where points may be: posterior draws, points around each individual's own data, a Sobol set."""
    cloud, seen = lesson.cloud, lesson.cloud.points
    each = max(2, 4000 // len(cloud))
    own = around(seen.problem, population(cloud), seen.beta, seen.sigma, each, derive(lesson.seed, 300))
    return torch.cat([cloud.thinned(each).phi.flatten(0, 1), own, _sobol(lesson, 2048, 305)])


@singledispatch
def place(law: object, lesson: Lesson, start: DiscreteLaw | None = None) -> DiscreteLaw:
    """Return the discrete law of a specification; `start` is an earlier one to go on from."""
    raise ModelError(f"{law!r} does not specify a discrete law.")


def weighed(seen: Seen, support: Tensor, dropped: float = DROPPED) -> DiscreteLaw:
    """Return the law of highest likelihood on given points, those without weight left out.

    Points that lie close together share their weight in the solution, more of them than individuals;
    then as many are kept as are linearly independent in what they say of the data (pivoted QR).
    """
    log_psi = seen.log_psi(support)
    law = pruned(DiscreteLaw(support, solve_weights(log_psi)), dropped)
    if len(law.weights) <= len(log_psi):
        return law
    log_psi = seen.log_psi(law.support)
    psi = (log_psi - log_psi.amax(1, keepdim=True)).exp() * law.weights
    _, triangle, order = qr(psi.numpy(), mode="economic", pivoting=True)
    size = np.abs(np.diag(triangle))
    kept = torch.from_numpy(order[: len(size)][size > INDEPENDENT * size[0]])
    weights = solve_weights(log_psi[:, kept])
    return pruned(DiscreteLaw(law.support[kept], weights), dropped)


def pruned(law: DiscreteLaw, dropped: float) -> DiscreteLaw:
    """Return the law without the points whose weight is below a share of the largest."""
    kept = law.weights > dropped * law.weights.max()
    if not bool(kept.any()):
        raise EstimationError("No point has any likelihood: an observation is impossible under all of them.")
    weights = law.weights[kept]
    return DiscreteLaw(law.support[kept], weights / weights.sum())


def scale_of(cloud: Cloud) -> Tensor:
    """Return a length in each coordinate: the median conditional standard deviation."""
    return median_sd(cloud.phi, cloud.weigh(population(cloud)).weights)


@place.register
def _(law: NPML, lesson: Lesson, start: DiscreteLaw | None = None) -> DiscreteLaw:
    return weighed(lesson.cloud.points, candidates(lesson) if start is None else start.support)


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


def box_of(lesson: Lesson) -> tuple[Tensor, Tensor]:
    """Return the corners of a box that holds the draws and what each individual says alone.

    The latter up to FARTHEST standard deviations: an individual that leaves a parameter free says nothing.
    """
    cloud = lesson.cloud
    gaussian = population(cloud)
    own = alone(cloud.points.problem, gaussian, cloud.points.beta, cloud.points.sigma).mode
    own = torch.minimum(
        torch.maximum(own, gaussian.mean - FARTHEST * gaussian.sd), gaussian.mean + FARTHEST * gaussian.sd
    )
    held = torch.cat([own, cloud.phi.flatten(0, 1)])
    low, high = held.amin(0), held.amax(0)
    return low - 0.05 * (high - low), high + 0.05 * (high - low)


def _sobol(lesson: Lesson, n: int, stream: int) -> Tensor:
    low, high = lesson.kept.once("box", lambda: box_of(lesson))
    engine = torch.quasirandom.SobolEngine(len(low), scramble=True, seed=derive(lesson.seed, stream))
    return low + (high - low) * engine.draw(n, dtype=low.dtype)


@place.register
def _(law: NPEM, lesson: Lesson, start: DiscreteLaw | None = None) -> DiscreteLaw:
    grid = _sobol(lesson, law.grid, 301) if start is None else start.support
    weights = grid.new_full((len(grid),), 1 / len(grid)) if start is None else start.weights
    weights = em_weights(lesson.cloud.points.log_psi(grid), weights, law.iterations, tolerance=1e-7)
    return pruned(DiscreteLaw(grid, weights), DROPPED)


@place.register
def _(law: NPAG, lesson: Lesson, start: DiscreteLaw | None = None) -> DiscreteLaw:
    seen = lesson.cloud.points
    low, high = lesson.kept.once("box", lambda: box_of(lesson))
    grid, reach = (_sobol(lesson, law.grid, 302), 0.2) if start is None else (start.support, 0.01)
    value, rounds = -torch.inf, 0
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
    return found


@place.register
def _(law: ParticleNPML, lesson: Lesson, start: DiscreteLaw | None = None) -> DiscreteLaw:
    cloud, seen = lesson.cloud, lesson.cloud.points
    scale = scale_of(cloud)
    if start is None:
        half = law.particles // 2
        drawn = cloud.thinned(-(-half // len(cloud))).phi.flatten(0, 1)[:half]
        support = torch.cat([drawn, _sobol(lesson, law.particles - half, 304)])
        weights = support.new_full((len(support),), 1 / len(support))
    else:
        support, weights = start.support, start.weights
    rate = support.new_full((len(support), 1), 0.5)
    for _ in range(law.steps if start is None else law.steps // 4):
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
    return weighed(seen, support)


@place.register
def _(law: NPonEBE, lesson: Lesson, start: DiscreteLaw | None = None) -> DiscreteLaw:
    cloud, seen = lesson.cloud, lesson.cloud.points
    ebes = empirical_bayes(cloud)
    drawn = population(cloud).inflated(1.5).sample(law.extended * len(cloud), derive(lesson.seed, 303))
    return weighed(seen, torch.cat([ebes, drawn]))
