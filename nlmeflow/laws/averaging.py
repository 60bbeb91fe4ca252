"""Averaging laws by how well they predict individuals that they have not seen.

Two classical rules fail at opposite ends. Stacking (Wolpert 1992) takes the weights that are best
for the held-out individuals; with few of them, or with sparse data, it follows their noise. The
plain average ignores them. Pseudo-BMA with the Bayesian bootstrap (Yao, Vehtari, Simpson, Gelman,
Bayesian Analysis 2018) lies between: each law gets the probability that it is the best, and laws
that cannot be told apart share. Here it is the prior of stacking: with N far above the prior's
strength the weights are those of stacking.

Held-out scores of many laws are noisy, and the more a law can bend, the more often it is ahead by
chance. A penalty, in nats, is what it has to be ahead by before it is believed as much as the others.
"""

import torch
from torch import Tensor

from nlmeflow.laws.draws import Folds
from nlmeflow.numerics import dirichlet_weights

STRENGTH = 100.0  # individuals' worth of belief in the prior weights
TEMPERATURE = 2.0  # by which differences of held-out log-likelihood are divided
BOOTSTRAPS = 500


def prior_weights(
    scores: Tensor,
    penalty: Tensor | None = None,
    temperature: float = TEMPERATURE,
    sizes: Tensor | None = None,
) -> Tensor:
    """Return pseudo-BMA weights (K,) of held-out scores (N, K).

    E softmax[(sum_i e_i s_ik - c_k) / T + log m_k]: the expectation is over Dirichlet weights e of the
    individuals (summing to N); c (K,) is the penalty, T the temperature, m (K,) the sizes, how many laws
    each of the laws averages itself (one when None).
    """
    cost = scores.new_zeros(scores.shape[1]) if penalty is None else penalty
    prior = scores.new_zeros(scores.shape[1]) if sizes is None else sizes.log()
    share = dirichlet_weights(BOOTSTRAPS, len(scores), 0)
    return ((share @ scores - cost) / temperature + prior).softmax(1).mean(0)


def stacking_weights(
    scores: Tensor,
    penalty: Tensor | None = None,
    strength: float = STRENGTH,
    temperature: float = TEMPERATURE,
    sizes: Tensor | None = None,
    iterations: int = 300,
) -> Tensor:
    """Return w (K,) that maximise sum_i log sum_k w_k exp(s_ik) + strength sum_k a_k log w_k.

    scores (N, K): held-out log-likelihood of each individual under each law; a: `prior_weights`.
    Concave, solved by EM.
    """
    prior = strength * prior_weights(scores, penalty, temperature, sizes)
    weights = scores.new_full((scores.shape[1],), 1 / scores.shape[1])
    for _ in range(iterations):
        member = (scores + weights.log()).softmax(1)
        new = (member.sum(0) + prior) / (len(scores) + prior.sum())
        moved = float((new - weights).abs().max())
        weights = new
        if moved < 1e-8:
            break
    return weights


def held_out_average(scores: Tensor, penalty: Tensor, folds: Folds) -> Tensor:
    """Return held-out scores (N,) of the average of laws with scores (N, K), weighed without each fold."""
    found = torch.zeros(len(scores), dtype=torch.float64)
    for inside, outside in folds.parts():
        weights = stacking_weights(scores[inside], penalty)
        found[outside] = (scores[outside] + weights.log()).logsumexp(1)
    return found
