"""EM on particles: weigh them, maximise over law, residual parameters and fixed effects, draw new ones.

Particles are refreshed when an ascent on the old ones has ended, and convergence is judged on fresh
ones: the gain in log-likelihood that an ascent on old particles still brings on new ones. A Gaussian law is
estimated here from end to end; with other laws that have a density this is where sigma and beta settle.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nlmeflow.errors import EstimationError
from nlmeflow.estimation.particles import Particles, Proposal, adapted, draw
from nlmeflow.estimation.problem import Problem
from nlmeflow.laws.draws import Expectation, expectation
from nlmeflow.laws.em import Anderson
from nlmeflow.laws.gaussian import GaussianLaw
from nlmeflow.laws.law import Law
from nlmeflow.running import Report, silent

PATIENCE = 14  # refreshes before a log-likelihood that rises no more is taken for the end
CREEPING = 0.9  # share of the gain before: gains of an ascent that comes to its end fall faster
SLOW = 5  # small gains in a row that do not fall so, after which an ascent near a boundary is left
SPELL = 3  # refreshes whose mean log-likelihood is compared with that of as many before
SHORTER = (0.3, 0.1, 0.01, 0.0)  # of the step of beta, tried in turn where the whole step loses likelihood


@dataclass(frozen=True)
class State:
    """What is estimated: the law, fixed parameters and effects beta (p + q,), residual parameters (r,)."""

    law: Law
    beta: Tensor
    sigma: Tensor


@dataclass(frozen=True)
class Schedule:
    """Configuration of the engine.

    first, particles : per individual, at first and at the end; four times as many at each change of size.
    refreshes : of the particles, at most.
    iterations : steps of one ascent on frozen particles, at most.
    tolerance : the ascent on frozen particles ends when two iterations in a row gain less than
        this in log-likelihood (a hundred times this before the last size), or when it creeps: gains hardly
        fall any more, and are so small that `iterations` of them would add less than `settled`.
    settled : the fit ends when an ascent on fresh particles gains less than this.
    update_law : whether the law is estimated; False holds it, while sigma and beta move.
    """

    particles: int = 512
    first: int = 256
    refreshes: int = 30
    iterations: int = 60
    tolerance: float = 1e-6
    settled: float = 5e-3
    update_law: bool = True


@dataclass(frozen=True)
class Record:
    """One refresh of the particles and the ascent on them.

    particles : per individual. log_likelihood, error : on the fresh particles, and its Monte-Carlo error.
    gain : of the ascent, in log-likelihood with the law's prior. least_ess : the smallest effective sample
    size of an individual. iterations : steps of the ascent.
    """

    particles: int
    log_likelihood: float
    error: float
    gain: float
    least_ess: float
    iterations: int


@dataclass
class Result:
    """Where the engine ended: state, proposal, and how it got there."""

    state: State
    proposal: Proposal
    converged: bool
    trace: Sequence[Record | dict[str, Any]] = ()


def _ran_off(problem: Problem, before: Law, after: Law) -> str:
    """Return in words which parameter an ascent moved most until the log-likelihood became NaN."""
    old, new = GaussianLaw.like(before), GaussianLaw.like(after)
    moved = ((new.mean - old.mean) / old.sd).abs() + (new.sd / old.sd).log().abs()
    k = int(moved.nan_to_num(torch.inf).argmax())
    return (
        f"Parameter '{problem.random[k]}' ran off until the log-likelihood became NaN (mean "
        f"{float(new.mean[k]):.3g}, sd {float(new.sd[k]):.3g} on the unconstrained scale)."
    )


def ascend(
    problem: Problem, state: State, particles: Particles, schedule: Schedule, tolerance: float
) -> tuple[State, Particles, Expectation, int]:
    """Climb the likelihood of frozen particles; return where it ended and how many steps it took.

    Raises
    ------
    EstimationError : the log-likelihood became NaN.

    """
    particles = replace(particles, summary=problem.residual.prepared(particles.summary))
    log_law = particles.log_prob(state.law)
    step = expectation(particles.log_ratio(problem, state.sigma), log_law)
    kept = None if schedule.update_law else log_law
    trust = 1.5 * step.error
    value = float(step.log_likelihood.sum()) + state.law.log_prior
    accelerator = Anderson() if schedule.update_law else None
    begun = state.law
    count, small, slow, last = 0, 0, 0, torch.inf
    while count < schedule.iterations and small < 2 and slow < SLOW and step.error <= trust:
        count += 1
        plain = maximise(problem, state, particles, step, schedule)
        candidate = plain if accelerator is None else _accelerated(accelerator, state, plain)
        moved, trial_particles, trial, new_value = _move(problem, state, candidate, particles, kept)
        if accelerator is not None and not (new_value >= value and trial.error <= trust):
            accelerator.forget()
            moved, trial_particles, trial, new_value = _move(problem, state, plain, particles, kept)
        if new_value < value - tolerance:
            for share in SHORTER:
                change = share * (plain.beta - state.beta)
                shorter = maximise(problem, state, particles, step, schedule, change)
                moved, trial_particles, trial, new_value = _move(problem, state, shorter, particles, kept)
                if new_value >= value:
                    break
        gain = new_value - value
        if gain != gain:
            raise EstimationError(_ran_off(problem, begun, state.law))
        if gain < 0:
            break
        state, particles, step, value = moved, trial_particles, trial, new_value
        creeps = gain > CREEPING * last and gain * schedule.iterations < schedule.settled
        small, slow, last = small + 1 if gain < tolerance else 0, slow + 1 if creeps else 0, gain
    return state, particles, step, count


def evaluate(problem: Problem, state: State, particles: Particles) -> Expectation:
    """Weigh particles under a state whose beta is the one they were drawn with."""
    return expectation(particles.log_ratio(problem, state.sigma), particles.log_prob(state.law))


def maximise(
    problem: Problem,
    state: State,
    particles: Particles,
    step: Expectation,
    schedule: Schedule,
    change: Tensor | None = None,
) -> State:
    """Return one M-step: the law and the residual parameters after a change of beta, that of `beta_step`.

    After no change of beta, zero, the likelihood cannot fall.
    """
    if change is None:
        change = beta_step(problem, state, particles, step)
    phi, summary, through = particles.phi, particles.summary, _through(problem, state)
    if through < len(change):
        phi, summary = problem.carried(phi, summary, change[through:])
    law = state.law.update(phi, step.weights) if schedule.update_law else state.law
    sigma = problem.residual.update(summary, step.weights, state.sigma)
    return State(law, state.beta + change, sigma)


def beta_step(problem: Problem, state: State, particles: Particles, step: Expectation) -> Tensor:
    """Return the change of beta: Fisher scoring through the curve, and regressions of the particles.

    Effects on random parameters are regressions; under a law made of points, which is the same for all, they
    are moved through the curve as the fixed parameters are.
    """
    change, through = torch.zeros_like(state.beta), _through(problem, state)
    if through:
        problem.check_ends(state.beta)
        left, right = fixed_effects_system(problem, state, particles, step, through)
        change[:through] = torch.linalg.solve(left, right)
    if through < len(change):
        phi, summary = particles.phi, particles.summary
        change[through:] = problem.effects_step(state.law, state.sigma, phi, summary, step.weights)
    return change


def _through(problem: Problem, state: State) -> int:
    """Return how many entries of beta, the first of them, move through the curve."""
    return problem.through if state.law.has_density else len(state.beta)


def _move(
    problem: Problem, before: State, state: State, particles: Particles, log_law: Tensor | None
) -> tuple[State, Particles, Expectation, float]:
    """Weigh particles under a new state; the last is the log-likelihood with the law's prior.

    Predictions follow beta, `log_law` is kept when given. When effects of covariates move, each individual's
    parameters stay and eta = phi - X gamma moves.
    """
    if problem.through < len(state.beta):
        change = (state.beta - before.beta)[problem.through :]
        phi, summary = problem.carried(particles.phi, particles.summary, change)
        particles, log_law = replace(particles, phi=phi, summary=summary, law=None, log_law=None), None
    if problem.through:
        summary = problem.predicted_again(particles.phi, particles.summary, state.beta)
        particles = replace(particles, summary=summary)
    if log_law is None:
        log_law = state.law.log_prob(particles.phi)
    step = expectation(particles.log_ratio(problem, state.sigma), log_law)
    return state, particles, step, float(step.log_likelihood.sum()) + state.law.log_prior


def fixed_effects_system(
    problem: Problem, state: State, particles: Particles, step: Expectation, size: int
) -> tuple[Tensor, Tensor]:
    """Return curvature and gradient of the weighted log-likelihood in the first entries of beta.

    Fisher scoring, (size, size) and (size,): the gradient is exact, by `Residual.score`.
    """
    left, right = state.beta.new_zeros(size, size), state.beta.new_zeros(size)
    phi, weights = problem.of_individuals(particles.phi, particles.summary, step.weights, state.sigma)
    sigma, whole = problem.own_sigma(state.sigma), problem.individuals
    for index, people in whole.by_length or [(torch.arange(len(whole)), whole)]:
        for rows in people.chunks(phi.shape[1] * (len(state.beta) + 1)):
            some = index[rows]
            prediction, slopes = people.jacobian(phi[some], state.beta, rows, only_beta=True)
            residual, slope = people.standardised(prediction, slopes[..., :size], sigma, rows, exact=True)
            weighted = (slope * weights[some, :, None, None]).flatten(0, 2)
            left += weighted.mT @ slope.flatten(0, 2)
            right += weighted.mT @ residual.flatten()
    return left, right


def _accelerated(accelerator: Anderson, state: State, plain: State) -> State:
    scales = (state.sigma.log(), plain.sigma.log())
    law, (beta, log_sigma) = accelerator.law(state.law, plain.law, (state.beta, plain.beta), scales)
    return State(law, beta, log_sigma.exp())


def em(
    problem: Problem,
    state: State,
    proposal: Proposal,
    schedule: Schedule,
    random: torch.Generator,
    report: Report = silent,
) -> Result:
    """Run the engine from a state and a proposal until fresh particles bring no more.

    Raises
    ------
    EstimationError : the log-likelihood became NaN, or an individual has no likelihood at any particle.

    """
    trace: list[Record] = []
    size, rounds, converged = schedule.first, 0, False
    for refresh in range(schedule.refreshes):
        problem = problem.near(proposal.broad.inflated(0.5), state.beta, state.sigma)
        particles = draw(problem, proposal, state.beta, size, random)
        fresh = evaluate(problem, state, particles)
        if refresh >= SPELL:
            _check_possible(problem, fresh)
        value = float(fresh.log_likelihood.sum())
        before = value + state.law.log_prior
        final = size == schedule.particles
        tolerance = schedule.tolerance * (1 if final else 100)
        state, particles, step, count = ascend(problem, state, particles, schedule, tolerance)
        gain = float(step.log_likelihood.sum()) + state.law.log_prior - before
        trace.append(Record(size, value, fresh.error, gain, float(fresh.ess.min()), count))
        report(f"log-likelihood {value:.2f} ± {fresh.error:.2f}")
        proposal = adapted(proposal, particles, step, state.law)
        rounds += 1
        settled = gain < max(schedule.settled, 0.1 * fresh.error**2)
        converged = final and (settled or (refresh >= PATIENCE and flat(trace)))
        if converged or refresh == schedule.refreshes - 1:
            break
        if settled or rounds == 3:
            size, rounds = min(4 * size, schedule.particles), 0
    return Result(state, proposal, converged, trace)


def _check_possible(problem: Problem, step: Expectation) -> None:
    lost = torch.nonzero(~torch.isfinite(step.log_likelihood))[:, 0]
    if len(lost):
        who = problem.labels[int(lost[0])]
        raise EstimationError(
            f"The observations of '{who}' have no likelihood at any parameters tried ({len(lost)} of "
            f"{len(problem)} are so): the fit ran off, or they are impossible under the curve and the error "
            "model. Give first values with fit(..., start={...}), or look at them."
        )


def flat(trace: Sequence[Record]) -> bool:
    """Whether the log-likelihood on fresh particles has stopped rising, as far as their error can tell.

    Where the data leave a direction free, every ascent gains a little by fitting the error of its particles,
    and loses it on fresh ones: the last three values of the final size are compared with the three before.
    """
    last = [record for record in trace if record.particles == trace[-1].particles][-2 * SPELL :]
    if len(last) < 2 * SPELL:
        return False
    values = [record.log_likelihood for record in last]
    rise = sum(values[SPELL:]) / SPELL - sum(values[:SPELL]) / SPELL
    return bool(rise < 2 * last[-1].error * (2 / SPELL) ** 0.5)
