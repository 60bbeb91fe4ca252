"""Weights of given points: the convex part of nonparametric maximum likelihood.

maximise sum_i log sum_k psi_ik w_k   over w >= 0, sum_k w_k = 1,   psi_ik = p(y_i | phi_k)
"""

import torch
from torch import Tensor


def solve_weights(log_psi: Tensor, tolerance: float = 1e-9, iterations: int = 100) -> Tensor:
    """Return the weights (K,) of highest likelihood for log psi (N, K), by a primal-dual interior point.

    With lambda = N w, the optimum satisfies Psi' v + y = 1, v_i (Psi lambda)_i = 1 and
    lambda_k y_k = 0. Newton steps on lambda_k y_k = mu, mu falling to zero, each one system of size N:
    H = Psi diag(lambda / y) Psi' + diag(Psi lambda / v) (Burke's method, as in Yamada et al. 2021).
    """
    psi = (log_psi - log_psi.amax(1, keepdim=True)).exp()
    size, points = psi.shape
    weights = psi.new_full((points,), size / points)
    dual = 1 / (psi @ weights)
    scale = (psi.mT @ dual).max()
    weights, dual = weights * scale, dual / scale  # now psi' dual <= 1
    slack = (1 - psi.mT @ dual).clamp_min(1e-3)
    for _ in range(iterations):
        mixed = psi @ weights
        gap = float(weights @ slack) / points
        error = 1 - dual * mixed
        infeasible = 1 - psi.mT @ dual - slack
        worst = max(float(error.abs().max()), float(infeasible.abs().max()))
        if gap * points < tolerance * size and worst < 1e-8:
            break
        target = gap * (0.1 if worst < 1e-2 else 0.5)
        complement = target - weights * slack
        ratio = weights / slack
        system = (psi * ratio) @ psi.mT + (mixed / dual).diag()
        right = error / dual - psi @ ((complement - weights * infeasible) / slack)
        factor, _ = torch.linalg.cholesky_ex(system)
        d_dual = torch.cholesky_solve(right[:, None], factor)[:, 0]
        d_slack = infeasible - psi.mT @ d_dual
        d_weights = (complement - weights * d_slack) / slack
        step = min(_longest(weights, d_weights), 1.0)
        dual_step = min(_longest(slack, d_slack), _longest(dual, d_dual), 1.0)
        if not bool(torch.isfinite(d_weights).all()):
            break
        weights = weights + step * d_weights
        dual, slack = dual + dual_step * d_dual, slack + dual_step * d_slack
    return em_weights(log_psi, weights / weights.sum(), 3)


def _longest(x: Tensor, direction: Tensor) -> float:
    """Return the step that keeps 99.9 % of the distance to zero."""
    falling = direction < 0
    if not bool(falling.any()):
        return 1.0
    return 0.999 * float((-x[falling] / direction[falling]).min())


def em_weights(log_psi: Tensor, weights: Tensor, iterations: int, tolerance: float = 0.0) -> Tensor:
    """Return weights (K,) after EM steps, w_k <- w_k / N sum_i psi_ik / sum_l psi_il w_l.

    They end when a step raises the log-likelihood by less than `tolerance`. Points whose weight has
    become negligible are left out of the next steps.
    """
    value = -torch.inf
    psi = (log_psi - log_psi.amax(1, keepdim=True)).exp()
    alive = torch.arange(len(weights))
    current = weights
    for k in range(iterations):
        mixed = psi @ current
        new = float(mixed.log().sum())
        if new - value < tolerance and k > 0:
            break
        value = new
        current = current * (psi.mT @ (1 / mixed)) / len(psi)
        if k % 50 == 49:
            keep = current > 1e-12
            psi, current, alive = psi[:, keep], current[keep], alive[keep]
    full = torch.zeros_like(weights)
    full[alive] = current
    return full / full.sum()
