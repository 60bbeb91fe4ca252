"""The marginal log-likelihood of a fitted state, with an honest Monte-Carlo error.

Batches of fresh particles are independent given the data, so that the spread between batches
measures the error that Sobol points really make; batches are added until it is small enough.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nlmeflow.estimation.em import State, evaluate
from nlmeflow.estimation.laplace import modes
from nlmeflow.estimation.particles import Expectation, Particles, Proposal, adapted, draw, expectation
from nlmeflow.estimation.problem import Problem
from nlmeflow.laws.discrete import DiscreteLaw
from nlmeflow.laws.gaussian import GaussianLaw
from nlmeflow.laws.law import Law

LEAST_BATCHES, MOST_BATCHES = 8, 64


@dataclass(frozen=True)
class Marginal:
    """log p(y_i) of each individual (N,) and its Monte-Carlo standard error (N,)."""

    values: Tensor
    errors: Tensor

    @property
    def total(self) -> float:
        """The log-likelihood of all individuals."""
        return float(self.values.sum())

    @property
    def error(self) -> float:
        """Its standard error: errors of individuals are independent."""
        return float(self.errors.square().sum().sqrt())


def marginal(
    problem: Problem,
    state: State,
    proposal: Proposal,
    particles: int,
    random: torch.Generator,
    tolerance: float = 0.1,
) -> Marginal:
    """Return log p(y_i), adding batches until the total's error is below `tolerance`."""
    batches: list[Tensor] = []
    while True:
        drawn = draw(problem, proposal, state.beta, particles, random)
        batches.append(evaluate(problem, state, drawn).log_likelihood)
        if len(batches) < LEAST_BATCHES:
            continue
        logs = torch.stack(batches)
        mean = logs.logsumexp(0) - math.log(len(logs))
        relative = (logs - mean).exp()
        result = Marginal(mean, relative.std(0) / math.sqrt(len(logs)))
        if result.error < tolerance or len(batches) >= MOST_BATCHES:
            return result


def on_points(problem: Problem, state: State) -> tuple[Particles, Expectation]:
    """Return the points of a discrete law as particles of every individual, and their posterior weights."""
    law = state.law
    assert isinstance(law, DiscreteLaw)
    phi = law.support.expand(len(problem), -1, -1)
    log_count = phi.new_full(phi.shape[:2], -math.log(phi.shape[1]))
    particles = Particles(phi, log_count, problem.summary(phi, state.beta))
    log_weights = law.weights.clamp_min(1e-300).log()
    return particles, expectation(particles.log_ratio(problem, state.sigma), log_weights)


def exact(problem: Problem, state: State) -> Marginal:
    """Return log p(y_i) under a discrete law, a sum over its points."""
    values = on_points(problem, state)[1].log_likelihood
    return Marginal(values, torch.zeros_like(values))


def population_gaussian(law: Law, seed: int = 0) -> GaussianLaw:
    """Return the Gaussian of the same mean and covariance as a law (by 20,000 draws)."""
    if isinstance(law, GaussianLaw):
        return law
    if isinstance(law, DiscreteLaw):
        return law.moments
    drawn = law.sample(20_000, seed)
    return GaussianLaw.of(drawn, drawn.new_full((len(drawn),), 1 / len(drawn)))


def locate(problem: Problem, state: State, particles: int, random: torch.Generator) -> Proposal:
    """Return proposals for individuals that took no part in a fit: Laplace, then their moments."""
    gaussian = population_gaussian(state.law)
    problem = problem.near(gaussian, state.beta, state.sigma)
    start = gaussian.mean.expand(len(problem), -1).clone()
    laplace = modes(problem, gaussian, state.beta, state.sigma, start, steps=20)
    proposal = Proposal(laplace.mode, laplace.factor, state.law, gaussian.inflated(2.0))
    for _ in range(2):
        drawn = draw(problem, proposal, state.beta, particles, random)
        proposal = adapted(proposal, drawn, evaluate(problem, state, drawn), state.law)
    return proposal
