"""Conditional modes under any law: the phi of highest p(y_i | phi) p(phi)."""

import torch
from torch import Tensor

from nlmeflow.estimation.em import State
from nlmeflow.estimation.problem import Problem
from nlmeflow.laws.gaussian import moments
from nlmeflow.laws.law import safe_cholesky


def conditional_modes(
    problem: Problem, state: State, phi: Tensor, weights: Tensor, steps: int = 60
) -> Tensor:
    """Return modes (N, d): the best of the heaviest particles, polished by L-BFGS.

    Individuals are independent, so that one optimisation in coordinates scaled by each one's
    conditional covariance serves all of them; a mode that got worse is not taken.
    """
    heavy = weights.topk(min(256, weights.shape[1]), dim=1).indices
    candidates = phi.gather(1, heavy[..., None].expand(-1, -1, phi.shape[-1]))
    first = _best(problem, state, candidates)
    scale = safe_cholesky(moments(phi, weights)[1])
    offset = torch.zeros_like(first).requires_grad_(True)
    optimiser = torch.optim.LBFGS(
        [offset], max_iter=steps, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = -_log_joint(problem, state, _moved(first, scale, offset)).sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimiser.step(closure)
    with torch.no_grad():
        polished = _moved(first, scale, offset)
        better = _log_joint(problem, state, polished) > _log_joint(problem, state, first)
        return torch.where(better[:, None], polished, first)


def _moved(first: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    return first + (scale @ offset[..., None]).squeeze(-1)


def _best(problem: Problem, state: State, candidates: Tensor) -> Tensor:
    with torch.no_grad():
        value = problem.log_likelihood(candidates, state.beta, state.sigma)
        value = value + state.law.log_prob(candidates)
        best = value.argmax(1)
    return candidates[torch.arange(len(candidates)), best]


def _log_joint(problem: Problem, state: State, phi: Tensor) -> Tensor:
    log_likelihood = problem.log_likelihood(phi[:, None], state.beta, state.sigma)[:, 0]
    return log_likelihood + state.law.log_prob(phi)
