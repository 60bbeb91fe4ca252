"""Numerical pieces that several rooms share: constants, weighted moments, random weights, one L-BFGS."""

import math
from collections.abc import Callable

import torch
from scipy.stats import t as student
from torch import Tensor

from nlmeflow.seeds import Seed, generator

LOG_2PI = math.log(2 * math.pi)
NORMAL_95 = 1.959963984540054  # 97.5 % quantile of the standard normal distribution
LOST = -1e6  # held-out score of an individual under a law that gives it no density
TINY = 1e-300  # what is added to a weight, or put in its place, before its logarithm is taken


def moments(phi: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return weighted means (..., d) and covariances (..., d, d) of phi (..., M, d), weights (..., M)."""
    mean = (weights[..., None] * phi).sum(-2)
    centred = phi - mean[..., None, :]
    return mean, (weights[..., None] * centred).mT @ centred


def log_mean(values: Tensor, axis: int = -1) -> Tensor:
    """Return log mean exp of values along an axis."""
    return values.logsumexp(axis) - math.log(values.shape[axis])


def median_sd(phi: Tensor, weights: Tensor) -> Tensor:
    """Return the median over individuals of their weighted standard deviations, (d,)."""
    return moments(phi, weights)[1].diagonal(dim1=-2, dim2=-1).sqrt().median(0).values


def students(level: float, replicates: int) -> float:
    """Return how many standard errors, estimated from so many replicates, a limit of this level is away."""
    return float(student.isf((1 - level) / 2, replicates - 1))


def dirichlet_weights(replicates: int, n: int, seed: Seed) -> Tensor:
    """Return random weights of n individuals (R, n), each row n times a Dirichlet(1, ..., 1) draw."""
    uniform = torch.rand(replicates, n, generator=generator(seed), dtype=torch.float64)
    exponential = -uniform.clamp_min(TINY).log()
    return exponential / exponential.mean(1, keepdim=True)


def lbfgs(
    loss: Callable[[Tensor], Tensor], start: Tensor, steps: int, gradient: float = 1e-7, change: float = 1e-9
) -> Tensor:
    """Return the point of lowest loss that L-BFGS (strong Wolfe) finds from a start, never a higher one.

    It ends after so many steps, or when the gradient, or the change of point or loss, is below these sizes.
    """
    x = start.detach().clone().requires_grad_(True)
    optimiser = torch.optim.LBFGS(
        [x], max_iter=steps, tolerance_grad=gradient, tolerance_change=change, line_search_fn="strong_wolfe"
    )
    lowest, best = math.inf, x.detach().clone()

    def closure() -> Tensor:
        nonlocal lowest, best
        optimiser.zero_grad()
        value = loss(x)
        value.backward()
        if float(value.detach()) < lowest:
            lowest, best = float(value.detach()), x.detach().clone()
        return value

    with torch.enable_grad():
        optimiser.step(closure)
    return best
