"""Distances between a population law and its estimate, and what can be said of its structure."""

import math

import torch
from torch import Tensor

from nlmeflow.arguments import checked
from nlmeflow.errors import ModelError, whole
from nlmeflow.laws.gaussian import GaussianLaw
from nlmeflow.laws.law import Law
from nlmeflow.laws.marginals import marginal_density, span
from nlmeflow.laws.mixture import MixtureLaw
from nlmeflow.laws.modes import Mode as Mode
from nlmeflow.laws.modes import modes as modes
from nlmeflow.running import estimating
from nlmeflow.seeds import derive

DRAWS = 20_000


@checked
def kl(truth: Law, estimate: Law, n: int = DRAWS, seed: int = 0) -> float:
    """Return KL(truth, estimate) = E_truth[log p_truth - log p_estimate], in nats."""
    with estimating():
        phi = truth.sample(n, seed)
        return float((truth.log_prob(phi) - estimate.log_prob(phi)).mean())


def _check_dimensions(truth: Law, estimate: Law) -> None:
    """Raise ModelError unless two laws have the same dimension."""
    if truth.dim != estimate.dim:
        raise ModelError(f"Laws of {truth.dim} and of {estimate.dim} dimensions cannot be compared.")


def _balanced(truth: Law, estimate: Law, n: int, seed: int) -> Tensor:
    """Return log p_truth - log p_estimate at draws taken half from each law."""
    _check_dimensions(truth, estimate)
    n = whole("n", n, 2)
    with estimating():
        phi = torch.cat([truth.sample(n // 2, derive(seed, 0)), estimate.sample(n - n // 2, derive(seed, 1))])
        return truth.log_prob(phi) - estimate.log_prob(phi)


@checked
def total_variation(truth: Law, estimate: Law, n: int = DRAWS, seed: int = 0) -> float:
    """Return the total variation, half the integral of |f - g|, between 0 and 1.

    The mean of |f - g| / (f + g) over draws taken half from each law: draws from one alone miss
    the places where only the other is.
    """
    return variation(_balanced(truth, estimate, n, seed))


def variation(difference: Tensor) -> float:
    """Return the total variation from log f - log g at draws taken half from each law."""
    return float((0.5 * difference).tanh().abs().mean())


@checked
def hellinger(truth: Law, estimate: Law, n: int = DRAWS, seed: int = 0) -> float:
    """Return the squared Hellinger distance, 1 - integral of sqrt(f g), between 0 and 1."""
    return squared_hellinger(_balanced(truth, estimate, n, seed))


def squared_hellinger(difference: Tensor) -> float:
    """Return the squared Hellinger distance from log f - log g at draws taken half from each law."""
    return float(1 - (1 / (0.5 * difference).cosh()).mean())


def group_mass(groups: MixtureLaw, estimate: Law, n: int = DRAWS, seed: int = 0) -> Tensor:
    """Return the mass (K,) that an estimate gives to each group of a mixture.

    Each of n draws counts for the groups by its probabilities of belonging to them under the true mixture, so
    that the mixture itself returns its own weights.
    """
    with estimating():
        return group_shares(groups, estimate.sample(n, seed))


def group_shares(groups: MixtureLaw, phi: Tensor) -> Tensor:
    """Return the mean probability (K,) that draws phi (n, d) belong to each group of a mixture."""
    return groups.log_joint(phi).softmax(0).mean(1)


@checked
def marginal_ise(truth: Law, estimate: Law, points: int = 481) -> Tensor:
    """Return the integrated squared error of each marginal density (d,), phi in units of the truth's sd.

    By the trapezium rule at so many points over six standard deviations on either side.
    """
    _check_dimensions(truth, estimate)
    spread = GaussianLaw.like(truth)
    found = []
    for k in range(truth.dim):
        grid = span(truth, k, reach=6.0, points=points)
        step = float(grid[1] - grid[0])
        difference = marginal_density(truth, [k], [grid]) - marginal_density(estimate, [k], [grid])
        found.append(float(spread.sd[k]) * step * float((difference**2).sum()))
    return torch.tensor(found, dtype=torch.float64)


@checked
def bridge_mass(truth: Law, estimate: Law, n: int = DRAWS, seed: int = 0) -> float:
    """Return the estimate's mass where the truth is under a thousandth of its maximum."""
    with estimating():
        highest = truth.log_prob(truth.sample(n, derive(seed, 0))).max()
        return share_outside(truth.log_prob(estimate.sample(n, derive(seed, 1))), highest)


def share_outside(log_truth: Tensor, highest: Tensor) -> float:
    """Return the share of draws at which the truth is under a thousandth of its maximum."""
    return float((log_truth < highest - math.log(1000)).double().mean())
