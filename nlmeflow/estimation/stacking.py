"""Stacking: the mixture of laws that predicts held-out individuals best (Wolpert 1992)."""

from torch import Tensor

PRIOR = 5.0  # individuals' worth of belief that all laws deserve the same weight


def stacking_weights(scores: Tensor, prior: float = PRIOR, iterations: int = 500) -> Tensor:
    """Return weights w (K,) that maximise sum_i log sum_k w_k exp(s_ik) + (prior / K) sum_k log w_k.

    scores (N, K): held-out log-likelihood of each individual under each law. Concave, solved by EM.
    The prior keeps apart laws that the held-out score cannot tell apart from being chosen by luck.
    """
    size = scores.shape[1]
    weights = scores.new_full((size,), 1 / size)
    for _ in range(iterations):
        member = (scores + weights.log()).softmax(1)
        new = (member.sum(0) + prior / size) / (len(scores) + prior)
        moved = float((new - weights).abs().max())
        weights = new
        if moved < 1e-8:
            break
    return weights
