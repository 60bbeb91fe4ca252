"""The certificate: how much log-likelihood any law whatever could still add.

The marginal log-likelihood is concave in the law. Mixing a law G with a point mass at phi changes it
at the rate

    D(phi; G) = sum_i p(y_i | phi) / p_G(y_i) - N,

so that for the nonparametric maximum L* (Lindsay, Annals of Statistics 1983)

    L* - L(G) <= sup_phi D(phi; G),

with equality to zero exactly at the maximum. The bound is on the likelihood of these data: a law for
which it is near zero has begun to copy the sample.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nlmeflow.numerics import lbfgs

POLISHED = (20, 120)  # candidates refined by L-BFGS, at least and at most: 36,000 / N, and the law's points
APART = 0.25  # scales between any two of these
STEPS = 40  # of L-BFGS, at most
HELD = 4_000_000  # likelihoods of individuals at points held at a time


@dataclass(frozen=True)
class Certificate:
    """`bound` on the log-likelihood still to be gained, in nats, and the phi (d,) where it is found."""

    bound: float
    phi: Tensor


LogPsi = Callable[[Tensor], Tensor]


def log_gradient(log_psi: LogPsi, log_marginal: Tensor, phi: Tensor) -> Tensor:
    """Return log of sum_i p(y_i | phi) / p_G(y_i) at phi (C, d): (C,). D is its exponential minus N.

    log_psi gives log p(y_i | phi) (N, C); log_marginal (N,) is log p_G(y_i); both may be up to the
    same constant of the individual.
    """
    return (log_psi(phi) - log_marginal[:, None]).logsumexp(0)


def peaks(
    log_psi: LogPsi,
    log_marginal: Tensor,
    candidates: Tensor,
    values: Tensor,
    scale: Tensor,
    n_points: int,
    polished: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the best of candidates (C, d), as they are and polished by L-BFGS, and their D.

    values (C,) is `log_gradient` at the candidates; scale (d,) a length in each coordinate, for the
    optimiser. The supremum is sought numerically: the candidates must cover the data, as conditional modes
    and draws of individuals do.
    """
    if polished is None:
        least, most = POLISHED
        polished = max(least, min(most, 36_000 // len(log_marginal)))
    first = _apart(candidates[values.argsort(descending=True)], scale, n_points + polished)

    def loss(offset: Tensor) -> Tensor:
        return -log_gradient(log_psi, log_marginal, first + scale * offset).sum()

    moved = first + scale * lbfgs(loss, torch.zeros_like(first), STEPS)
    with torch.no_grad():
        points = torch.cat([first, moved])
        values = log_gradient(log_psi, log_marginal, points)
        values = torch.where(torch.isfinite(values), values, -torch.inf)
        return points, values.clamp_max(700.0).exp() - len(log_marginal)


def _apart(candidates: Tensor, scale: Tensor, n: int) -> Tensor:
    """Return the first n of candidates (C, d), at most, that are APART scales from all those before."""
    rest, kept = candidates, list[Tensor]()
    while len(kept) < n and len(rest):
        kept.append(rest[0])
        rest = rest[((rest - rest[0]) / scale).norm(dim=1) >= APART]
    return torch.stack(kept)


def certify(
    log_psi: LogPsi,
    log_marginal: Tensor,
    candidates: Tensor,
    scale: Tensor,
    n_points: int = 0,
    polished: int | None = None,
) -> Certificate:
    """Return the highest D(phi; G) found from candidates (C, d); n_points is how many points G has.

    polished : candidates refined by L-BFGS besides as many as these; None for as many as N allows.
    """
    parts = candidates.split(max(1, HELD // len(log_marginal)))
    values = torch.cat([log_gradient(log_psi, log_marginal, some) for some in parts])
    points, gains = peaks(log_psi, log_marginal, candidates, values, scale, n_points, polished)
    best = int(gains.argmax())
    return Certificate(max(float(gains[best]), 0.0), points[best])
