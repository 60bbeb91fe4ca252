"""The weighted-likelihood bootstrap: what would be estimated had other individuals been seen.

Each replicate has weights w_i of the individuals, N times a Dirichlet(1, ..., 1) draw (Rubin 1981; Newton and
Raftery, JRSS B 1994), and maximises sum_i w_i log p(y_i). From posterior draws of the fit that needs no
search in the data: beta and sigma, with location and scale of the law, take one Newton step,

    step = I^-1 sum_i (w_i - 1) s_i,   s_i the score of individual i, I the observed information,

and the law is learned again on the draws with these weights. The draws have the fit's beta and sigma; what
the replicate's own would change is again an affine map of the law, that step less the same with beta and
sigma held.
"""

import torch
from torch import Tensor

from nlmeflow.errors import EstimationError
from nlmeflow.estimation.em import State
from nlmeflow.estimation.information import observed
from nlmeflow.estimation.particles import Particles
from nlmeflow.estimation.problem import Problem
from nlmeflow.laws.draws import PosteriorDraws, TrainingSet
from nlmeflow.laws.moved import MovedLaw
from nlmeflow.laws.specification import Specification


def estimated_again(
    law: Specification,
    problem: Problem,
    state: State,
    training: TrainingSet,
    drawn: Particles,
    weights: Tensor,
) -> tuple[tuple[State, ...], list[tuple[str, str]]]:
    """Return law, beta and sigma for each row of individual weights (R, N), and what is at a boundary.

    law : what the fit was asked for; training : draws from the posteriors of the fit's state; drawn : the
    fit's particles, from which the information is computed where the draws are too few for it.

    Raises
    ------
    EstimationError : the likelihood has no peak in beta and sigma.

    """
    try:
        found = observed(problem, state, as_particles(problem, state, training.draws))
    except EstimationError:
        found = observed(problem, state, drawn)
    chart, scores, information, kept = found[:4]
    surplus = (weights - 1) @ scores
    steps = _steps(surplus, information, kept)
    alone = _steps(surplus, information, kept[kept < chart.sizes[0]])
    states = []
    for again, step, own in zip(law.refit(training, weights), steps, alone, strict=True):
        _, beta, sigma = chart.at(step)
        frame = chart.moved((step - own)[: chart.sizes[0]])
        states.append(State(MovedLaw(again, chart.frame, frame), beta, sigma))
    return tuple(states), found.boundary


def _steps(surplus: Tensor, information: Tensor, kept: Tensor) -> Tensor:
    """Return Newton steps (R, size) in the coordinates kept, the others held."""
    steps = torch.zeros_like(surplus)
    steps[:, kept] = torch.linalg.solve(information[kept][:, kept], surplus[:, kept].mT).mT
    return steps


def as_particles(problem: Problem, state: State, draws: PosteriorDraws) -> Particles:
    """Return posterior draws as particles: their density, up to a constant, is p(y_i | phi) R(phi)."""
    summary = problem.summary(draws.phi, state.beta)
    density = problem.residual.log_likelihood(summary, state.sigma) + draws.log_reference
    return Particles(draws.phi, density, summary)
