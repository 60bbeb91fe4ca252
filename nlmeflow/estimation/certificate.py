"""The certificate: how much log-likelihood any law whatever could still add.

The marginal log-likelihood is concave in the law. Mixing a law G with a point mass at phi changes it
at the rate

    D(phi; G) = sum_i p(y_i | phi) / p_G(y_i) - N,

so that for the nonparametric maximum L* (Lindsay, Annals of Statistics 1983)

    L* - L(G) <= sup_phi D(phi; G),

with equality to zero exactly at the maximum. The bound is on the likelihood of these data: a law for
which it is near zero has begun to copy the sample.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nlmeflow.estimation.em import State
from nlmeflow.estimation.problem import CHUNK, Problem

POLISHED = 24  # candidates refined by L-BFGS


@dataclass(frozen=True)
class Certificate:
    """`bound` on the log-likelihood still to be gained, in nats, and the phi (d,) where it is found."""

    bound: float
    phi: Tensor


def gradient_function(problem: Problem, state: State, log_marginal: Tensor, phi: Tensor) -> Tensor:
    """Return log of sum_i p(y_i | phi) / p_G(y_i) at phi (C, d): (C,). D is its exponential minus N."""
    size = max(1, CHUNK // (len(problem) * problem.data.time.shape[1]))
    parts = []
    for start in range(0, len(phi), size):
        points = phi[start : start + size].expand(len(problem), -1, -1)
        log_likelihood = problem.log_likelihood(points, state.beta, state.sigma)
        parts.append((log_likelihood - log_marginal[:, None]).logsumexp(0))
    return torch.cat(parts)


def certify(
    problem: Problem, state: State, log_marginal: Tensor, candidates: Tensor, scale: Tensor, steps: int = 40
) -> Certificate:
    """Return the highest D(phi; G) found from candidates (C, d), the best of them polished.

    log_marginal (N,) are the log p_G(y_i); scale (d,) is a length in each coordinate, for the
    optimiser. The supremum is sought numerically: the candidates must cover the data, as the
    individuals' conditional modes and draws do.
    """
    with torch.no_grad():
        values = gradient_function(problem, state, log_marginal, candidates)
        first = candidates[values.argsort(descending=True)[:POLISHED]]
    offset = torch.zeros_like(first).requires_grad_(True)
    optimiser = torch.optim.LBFGS([offset], max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = -gradient_function(problem, state, log_marginal, first + scale * offset).sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimiser.step(closure)
    with torch.no_grad():
        polished = torch.cat([first, first + scale * offset])
        values = gradient_function(problem, state, log_marginal, polished)
        values = torch.where(torch.isfinite(values), values, -torch.inf)
        best = int(values.argmax())
    bound = math.exp(min(float(values[best]), 700.0)) - len(problem)
    return Certificate(max(bound, 0.0), polished[best])
