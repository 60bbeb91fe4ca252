"""Posterior draws of the individuals, from particles: enough of them for laws to be learned from."""

import torch

from nlmeflow.estimation.em import State
from nlmeflow.estimation.likelihood import DataLikelihood
from nlmeflow.estimation.particles import Particles
from nlmeflow.estimation.problem import Problem
from nlmeflow.laws.draws import Folds, PosteriorDraws, expectation, resample, shuffled
from nlmeflow.laws.gaussian import Gaussian, population
from nlmeflow.laws.law import Law

DRAWS = 64  # of each individual
MANY = 12_800  # of all individuals, where `DRAWS` of each are too few
ENOUGH = 0.25  # effective share of most individuals' draws under a Gaussian
PARTS = 5  # of the individuals, without one of which the draws are enough too


def posterior_draws(
    problem: Problem, particles: Particles, state: State, reference: Law, random: torch.Generator
) -> PosteriorDraws:
    """Return draws of each individual's phi given its data under a reference law, from particles.

    `DRAWS` of each, or, where these are too few, `MANY` in all.

    The likelihood of a law on few draws can be highest where the law is thin and has one draw of everybody
    in it, far from the maximum of the likelihood itself: few individuals of whom little is known. There, or
    without a fifth of the individuals, a Gaussian has few effective draws.
    """
    draws = resampled(problem, particles, state, reference, DRAWS, random)
    if 2 * len(draws) * DRAWS > MANY:
        return draws
    parts = Folds(torch.arange(len(draws)) % PARTS).parts()
    if any(map(_is_thin, [draws, *(draws.subset(inside) for inside, _ in parts if len(inside))])):
        return resampled(problem, particles, state, reference, MANY // len(draws), random)
    return draws


def _is_thin(draws: PosteriorDraws) -> bool:
    """Return whether the Gaussian of highest likelihood on draws leaves most individuals few of them."""
    try:
        return draws.effective_share(population(draws, Gaussian())) < ENOUGH
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return True


def resampled(
    problem: Problem, particles: Particles, state: State, reference: Law, n: int, random: torch.Generator
) -> PosteriorDraws:
    """Return n draws of each individual under a reference law, from particles."""
    step = expectation(particles.log_ratio(problem, state.sigma), particles.log_prob(reference))
    phi = shuffled(resample(particles.phi, step.weights, n, random), random)
    data = DataLikelihood(problem, state.beta, state.sigma, step.log_likelihood)
    return PosteriorDraws(phi, reference.log_prob(phi), data)
