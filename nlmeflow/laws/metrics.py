"""Distances between a population law and its estimate, and what can be said of its structure."""

import math
from itertools import combinations
from warnings import warn

import torch
from scipy.stats import chi2
from torch import Tensor

from nlmeflow.arguments import checked
from nlmeflow.errors import ModelError, number, whole
from nlmeflow.laws.affine import Affine
from nlmeflow.laws.gaussian import GaussianLaw
from nlmeflow.laws.law import Law
from nlmeflow.laws.marginals import marginal_density, span
from nlmeflow.laws.mixture import MixtureLaw
from nlmeflow.laws.modes import Mode as Mode
from nlmeflow.laws.modes import modes as modes
from nlmeflow.running import estimating
from nlmeflow.seeds import derive

DRAWS = 20_000
SEGMENT = 101  # places of an ellipsoid on its way from one group to another


@checked
def kl(truth: Law, estimate: Law, n: int = DRAWS, seed: int = 0) -> float:
    """Return KL(truth, estimate) = E_truth[log p_truth - log p_estimate], in nats.

    Raises
    ------
    ModelError : laws of other dimensions, or with values that are not numbers; n out of range.

    """
    n = _draws(truth, estimate, n)
    with estimating():
        phi = truth.sample(n, seed)
        return float(_difference(truth, estimate, phi).mean())


def _check_dimensions(truth: Law, estimate: Law) -> None:
    """Raise ModelError unless two laws have the same dimension."""
    if truth.dim != estimate.dim:
        raise ModelError(f"Laws of {truth.dim} and of {estimate.dim} dimensions cannot be compared.")


def _draws(truth: Law, estimate: Law, n: int, least: int = 1) -> int:
    """Return the number of draws with which two laws are compared, or raise ModelError."""
    _check_dimensions(truth, estimate)
    return whole("n", n, least)


def _balanced(truth: Law, estimate: Law, n: int, seed: int) -> Tensor:
    """Return log p_truth - log p_estimate at draws taken half from each law."""
    n = _draws(truth, estimate, n, least=2)
    with estimating():
        phi = torch.cat([truth.sample(n // 2, derive(seed, 0)), estimate.sample(n - n // 2, derive(seed, 1))])
        return _difference(truth, estimate, phi)


def _difference(truth: Law, estimate: Law, phi: Tensor) -> Tensor:
    """Return log p_truth - log p_estimate at phi, or raise ModelError where it is not a number."""
    difference = truth.log_prob(phi) - estimate.log_prob(phi)
    if bool(difference.isnan().any()):
        raise ModelError("A density is not a number at draws: a value in one of the two laws is none.")
    return difference


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
def squared_hellinger(truth: Law, estimate: Law, n: int = DRAWS, seed: int = 0) -> float:
    """Return the squared Hellinger distance, 1 - integral of sqrt(f g), between 0 and 1."""
    return 1 - affinity(_balanced(truth, estimate, n, seed))


@checked
def hellinger(truth: Law, estimate: Law, n: int = DRAWS, seed: int = 0) -> float:
    """Return the Hellinger distance, sqrt(1 - integral of sqrt(f g)), between 0 and 1."""
    return math.sqrt(squared_hellinger(truth, estimate, n, seed))


def affinity(difference: Tensor) -> float:
    """Return the integral of sqrt(f g) from log f - log g at draws taken half from each law."""
    return float((1 / (0.5 * difference).cosh()).mean())


@checked
def group_mass(groups: MixtureLaw, estimate: Law, n: int = DRAWS, seed: int = 0) -> Tensor:
    """Return the mass (K,) that an estimate gives to each group of a mixture.

    Each of n draws counts for the groups by its probabilities of belonging to them under the true mixture, so
    that the mixture itself returns its own weights.
    """
    n = _draws(groups, estimate, n)
    with estimating():
        return group_shares(groups, estimate.sample(n, seed))


@checked
def group_shares(groups: MixtureLaw, phi: Tensor) -> Tensor:
    """Return the mean probability (K,) that draws phi (n, d) belong to each group of a mixture."""
    return groups.log_joint(phi).softmax(0).mean(1)


@checked
def marginal_ise(truth: Law, estimate: Law, points: int = 481) -> Tensor:
    """Return the integrated squared error of each marginal density (d,), phi in units of the truth's sd.

    By a sum over so many equidistant points, six standard deviations to either side.
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
def mass_between_groups(
    groups: MixtureLaw, estimate: Law, n: int = DRAWS, seed: int = 0, level: float = 0.99
) -> float:
    """Return the mass of an estimate between the groups of a true mixture, by n draws.

    An individual phi lies between groups a and b if an ellipsoid that moves from the one to the other sweeps
    over it, and it lies between groups if this holds for any two of them and it is in the ellipsoid of none:

    min_t Q(phi; (1 - t) m_a + t m_b, (1 - t) Omega_a + t Omega_b) <= c < min_k Q(phi; m_k, Omega_k)

    t from 0 to 1, Q(phi; m, Omega) = (phi - m)' Omega^-1 (phi - m), c the quantile of chi2(d) at `level`:
    each ellipsoid holds this share of its group. All pairs count, not those of a spanning tree alone, because
    a third group's ellipsoid on the way is left out anyway, and a tree would depend on a distance. An affine
    map of phi, such as other units, leaves the measure as it is. It is 0 with one group, and where ellipsoids
    overlap on the way nothing but their flanks is between them.

    Raises
    ------
    ModelError : laws of other dimensions, or a level not between 0 and 1.

    """
    n = _draws(groups, estimate, n)
    with estimating():
        return share_between(groups, estimate.sample(n, seed), level)


@checked
def share_between(groups: MixtureLaw, phi: Tensor, level: float = 0.99) -> float:
    """Return the share of draws phi (n, d) between the groups of a mixture, as `mass_between_groups` says.

    Raises
    ------
    ModelError : level not between 0 and 1.

    """
    largest = float(chi2.ppf(number("level", level, 0, 1), groups.dim))

    def inside(mean: Tensor, covariance: Tensor) -> Tensor:
        frame = Affine(mean, torch.linalg.cholesky(covariance))
        return frame.standardise(phi).square().sum(-1) <= largest

    own = list(zip(groups.means, groups.factors @ groups.factors.mT, strict=True))
    swept = torch.zeros(len(phi), dtype=torch.bool)
    for (mean, covariance), (other, others) in combinations(own, 2):
        for t in torch.linspace(0, 1, SEGMENT, dtype=phi.dtype):
            swept |= inside(mean.lerp(other, t), covariance.lerp(others, t))
    for mean, covariance in own:
        swept &= ~inside(mean, covariance)
    return float(swept.double().mean())


@checked
def mass_outside(truth: Law, estimate: Law, n: int = DRAWS, seed: int = 0) -> float:
    """Return the estimate's mass where the truth is under a thousandth of its maximum, tails included."""
    n = _draws(truth, estimate, n)
    with estimating():
        highest = truth.log_prob(truth.sample(n, derive(seed, 0))).max()
        return share_outside(truth.log_prob(estimate.sample(n, derive(seed, 1))), highest)


def bridge_mass(truth: Law, estimate: Law, n: int = DRAWS, seed: int = 0) -> float:
    """Return `mass_outside`, whose former name this is."""
    message = "metrics.bridge_mass is now metrics.mass_outside; see also metrics.mass_between_groups."
    warn(message, DeprecationWarning, stacklevel=2)
    return mass_outside(truth, estimate, n, seed)


@checked
def share_outside(log_truth: Tensor, highest: Tensor) -> float:
    """Return the share of draws at which the truth is under a thousandth of its maximum."""
    return float((log_truth < highest - math.log(1000)).double().mean())


@checked
def error_of_share(
    truth: Law, estimate: Law, parameter: int, threshold: float, n: int = DRAWS, seed: int = 0
) -> float:
    """Return by how much the estimate of P(phi_k < threshold) is wrong, k = parameter (from 0), by n draws.

    With tau and a day as threshold it is the error of the share of early varieties.

    Raises
    ------
    ModelError : laws of other dimensions, or no such parameter.

    """
    n = _draws(truth, estimate, n)
    k = whole("parameter", parameter, 0, truth.dim - 1)
    with estimating():
        true, estimated = (law.sample(n, seed)[:, k] < threshold for law in (truth, estimate))
        return float(estimated.double().mean() - true.double().mean())


@checked
def selection_regret(best: Tensor, estimated: Tensor, threshold: float) -> float:
    """Return the yield that is lost where individuals are chosen by an estimated law, per individual.

    An individual whose parameter is phi_k yields threshold - phi_k if it is chosen (days by which a variety
    is earlier than needed, a loss where it is later), nothing if it is not. With the law p known, the rule of
    highest expected yield chooses where E_p[phi_k | y] < threshold; by the law q those are chosen where
    E_q[phi_k | y] < threshold. The difference in yield,

    regret = E_y[ |threshold - E_p[phi_k | y]|  1(the two rules differ at y) ] >= 0,

    is in the unit of phi_k. best, estimated : E_p[phi_k | y_i] and E_q[phi_k | y_i] of individuals drawn from
    the truth, (n,).

    Raises
    ------
    ModelError : the two are not of the same individuals.

    """
    if best.shape != estimated.shape:
        raise ModelError(
            f"best and estimated are of the same individuals; got {tuple(best.shape)} and "
            f"{tuple(estimated.shape)} values."
        )
    differ = (best < threshold) != (estimated < threshold)
    return float(((threshold - best).abs() * differ).mean())
