"""Observations known only to lie between two bounds: probabilities and moments of a standard normal error."""

import torch
from torch import Tensor

from nlmeflow.numerics import LOG_2PI

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

    Both tails are the same by symmetry: the interval is mirrored when it lies above zero.
    """
    mirrored = low > 0
    a, b = torch.where(mirrored, -high, low), torch.where(mirrored, -low, high)
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
        finite = torch.isfinite(x)
        inside = torch.where(finite, x, 0.0)
        density = torch.exp(-0.5 * inside.square() - 0.5 * LOG_2PI - log_mass)
        density = torch.where(finite, density, 0.0)
        return density, inside * density

    (at_low, low_times), (at_high, high_times) = share(low), share(high)
    mean = at_low - at_high
    square = (1 + low_times - high_times).clamp_min(0.0)
    return mean, torch.maximum(square, mean.square())
