"""Observations known only to lie between two bounds: probabilities and moments of a standard normal error."""

import numpy as np
import torch
from torch import Tensor

from nlmeflow.numerics import LOG_2PI

LEAST = 1e-290  # probability under which it is computed by its logarithm
FARTHEST = 1e8  # of standard deviations
NODES = 5  # of the interpolation in log sigma
REACH = 0.12  # to either side of its centre
Bounds = tuple[Tensor, Tensor]  # of censored observations, see `LongitudinalData`


def censored(bounds: Bounds) -> Tensor:
    """Return where an observation is only known to lie between bounds."""
    return torch.isfinite(bounds[0]) | torch.isfinite(bounds[1])


def scaled(bound: Tensor, sigma: Tensor) -> Tensor:
    """Return bound / sigma; where the bound is infinite, with a derivative in sigma of zero, not NaN."""
    finite = torch.isfinite(bound)
    return torch.where(finite, torch.where(finite, bound, 0.0) / sigma, bound)


def log_between(low: Tensor, high: Tensor) -> Tensor:
    """Return log P(low < e < high), e standard normal, accurate in the tails; differentiable.

    Both tails are the same by symmetry: the interval is mirrored when it lies above zero. Where the
    probability is below the smallest number, its logarithm comes from those of the normal tail, which take
    seven times as long.
    """
    mirrored = low > 0
    a, b = torch.where(mirrored, -high, low), torch.where(mirrored, -low, high)
    mass = 0.5 * (torch.erfc(b * -(0.5**0.5)) - torch.erfc(a * -(0.5**0.5)))
    far = mass < LEAST
    if not bool(far.any()):
        return mass.log()
    log_mass: Tensor = mass.masked_fill(far, 1.0).log().masked_scatter(far, _log_tail(a[far], b[far]))
    return log_mass


def _log_tail(a: Tensor, b: Tensor) -> Tensor:
    """Return log P(a < e < b) of b <= 0, from the logarithms of the two tails."""
    finite = torch.isfinite(a)
    log_b = torch.special.log_ndtr(b.clamp_max(40.0))
    log_a = torch.special.log_ndtr(torch.where(finite, a, -1.0))
    share = torch.where(finite, (log_a - log_b).clamp_max(-1e-15), -1.0)
    log_mass: Tensor = log_b + torch.where(finite, torch.log(-torch.expm1(share)), 0.0)
    return log_mass


def truncated(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return E[e] and E[e^2] of a standard normal e between low and high; zero and one without bounds."""
    log_mass = log_between(low, high)

    def share(x: Tensor) -> tuple[Tensor, Tensor]:
        inside = x.clamp(-FARTHEST, FARTHEST)  # its density is zero there, as at infinity
        density = torch.exp(-0.5 * inside.square() - (log_mass + 0.5 * LOG_2PI))
        return density, inside * density

    (at_low, low_times), (at_high, high_times) = share(low), share(high)
    mean = at_low - at_high
    square = (1 + low_times - high_times).clamp_min(0.0)
    return mean, torch.maximum(square, mean.square())


class Interpolated:
    """The sum over j of log P(low_j < sigma e < high_j) as a function of log sigma, low and high (..., n).

    A polynomial through Chebyshev nodes around a value that has been asked for twice, for an ascent in which
    sigma moves little from step to step and the errors not at all.
    """

    def __init__(self, low: Tensor, high: Tensor) -> None:
        self.low, self.high = low, high
        self._last = self._centre = np.inf
        self._coefficients = low.new_empty(0)

    def at(self, sigma: float) -> tuple[Tensor, Tensor] | None:
        """Return the sum and its derivative in log sigma, (...); None where sigma has moved far since."""
        place = float(np.log(sigma))
        if not abs(place - self._centre) <= REACH:
            near, self._last = abs(place - self._last) < REACH / 2, place
            if not near:
                return None
            self._prepare(place)
        powers = (place - self._centre) ** np.arange(NODES)
        slopes = np.r_[0.0, np.arange(1, NODES) * powers[:-1]]
        both = torch.from_numpy(np.stack([powers, slopes]))
        value, slope = torch.tensordot(both, self._coefficients, 1)
        return value, slope

    def _prepare(self, centre: float) -> None:
        steps = REACH * np.cos(np.pi * (np.arange(NODES) + 0.5) / NODES)
        sums = [
            log_between(scaled(self.low, sigma), scaled(self.high, sigma)).sum(-1)
            for sigma in self.low.new_tensor(np.exp(centre + steps))
        ]
        inverse = torch.from_numpy(np.linalg.inv(np.vander(steps, increasing=True)))
        self._centre, self._coefficients = centre, torch.tensordot(inverse, torch.stack(sums), 1)
