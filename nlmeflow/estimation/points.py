"""Laws made of points in a fit: points and residual parameters move in turn until both rest."""

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from nlmeflow.estimation.em import SHORTER, Record, Result, Schedule, State, beta_step, maximise
from nlmeflow.estimation.likelihood import DataLikelihood, on_points, weighed_points
from nlmeflow.estimation.particles import Proposal
from nlmeflow.estimation.problem import Problem
from nlmeflow.laws.affine import safe_cholesky
from nlmeflow.laws.draws import TrainingSet
from nlmeflow.laws.em import Anderson
from nlmeflow.laws.gaussian import GaussianLaw
from nlmeflow.laws.points.law import DiscreteLaw
from nlmeflow.numerics import moments

REST = 30  # rounds of places and residual parameters, at most
EM_STEPS = 30  # of the residual parameters in each
FALL = 1e-6  # nats by which a step may lose likelihood; the change of beta is shortened after one that does
RESTED = 1e-3  # nats of log-likelihood that the residual parameters still gain, at the end
COARSE = 0.1  # in a model with two levels, whose likelihood has a Monte-Carlo error far above this


class Placing(Protocol):
    """A specification that places points, from an earlier law when there is one."""

    tolerance: float | None

    def bound(self, training: TrainingSet, law: DiscreteLaw) -> float:
        """Return the log-likelihood that any law could still add, at most."""

    def learn(self, training: TrainingSet, start: DiscreteLaw | None = None) -> DiscreteLaw:
        """Return the law."""


def settle_points(law: Placing, problem: Problem, state: State, training: TrainingSet) -> Result:
    """Maximise over points and x = (log sigma, beta) in turn, x by Anderson steps.

    The likelihood of the best points is a function of x whose ascent by plain EM is slow: points
    follow the residual error and the residual error the points. It has converged when both rest and the
    bound on what any law could still add, at the final sigma, is under the specification's tolerance.
    """
    problem = problem.near(GaussianLaw.like(state.law), state.beta, state.sigma)
    accelerator, trace, converged = Anderson(), [], False
    rested = RESTED if problem.individuals is problem else COARSE
    found: DiscreteLaw | None = None
    best, plain = -torch.inf, state
    log_marginal = training.draws.data.log_marginal  # type: ignore[attr-defined]

    def at(state: State) -> TrainingSet:
        data = DataLikelihood(problem, state.beta, state.sigma, log_marginal)
        return TrainingSet(replace(training.draws, points=data), training.seed, report=training.report)

    for _ in range(REST):
        tried = law.learn(at(state), found)
        before, moved, gain = _residuals(problem, replace(state, law=tried))
        if before < best - 1e-3 and state is not plain:
            accelerator.forget()
            state = plain
            continue
        found, best, plain = tried, max(best, before), moved
        trace.append(Record(len(tried.weights), before, 0.0, gain, 1.0, EM_STEPS))
        converged = gain < rested
        if converged:
            state = moved
            break
        log_sigma, beta = accelerator.step(_vector(state), _vector(moved)).split(
            [len(state.sigma), len(state.beta)]
        )
        state = replace(moved, sigma=log_sigma.exp(), beta=beta)
    assert found is not None
    if converged and law.tolerance is not None:
        last = at(state)
        if law.bound(last, found) > law.tolerance:  # sigma moved a little after the points were placed
            found = law.learn(last, found)
            converged = law.bound(last, found) <= law.tolerance
    state = replace(state, law=found)
    particles, step = on_points(problem, state)
    centre, covariance = moments(particles.phi, step.weights)
    proposal = Proposal(centre, safe_cholesky(covariance), found, GaussianLaw.like(found))
    return Result(state, proposal, converged, trace)


def _vector(state: State) -> Tensor:
    return torch.cat([state.sigma.log(), state.beta])


def _residuals(problem: Problem, state: State) -> tuple[float, State, float]:
    """Return the log-likelihood, the state after EM of all but the points' places, and the gain."""
    particles, step = on_points(problem, state)
    before = value = float(step.log_likelihood.sum())
    for _ in range(EM_STEPS):
        if not len(state.beta):  # predictions at the points are the same
            state = maximise(problem, state, particles, step, Schedule())
            step = weighed_points(problem, state, particles)
            value = float(step.log_likelihood.sum())
            continue
        change = beta_step(problem, state, particles, step)
        for share in (1.0, *SHORTER):
            moved = maximise(problem, state, particles, step, Schedule(), share * change)
            moved_particles, moved_step = on_points(problem, moved)
            if (new := float(moved_step.log_likelihood.sum())) >= value - FALL:
                break
        state, particles, step, value = moved, moved_particles, moved_step, new
    return before, state, value - before
