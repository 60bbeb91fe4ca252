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

LOOKED_AT = 4000  # candidates, the best ones, among which those to be refined are chosen
POLISHED = 60  # of them refined by L-BFGS
APART = 0.5  # scales between any two of these


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
    log_psi: LogPsi, log_marginal: Tensor, candidates: Tensor, scale: Tensor, steps: int = 40
) -> tuple[Tensor, Tensor]:
    """Return the best of candidates (C, d), as they are and polished by L-BFGS, and their D.

    scale (d,) is a length in each coordinate, for the optimiser. The supremum is sought numerically:
    the candidates must cover the data, as the individuals' conditional modes and draws do.
    """
    with torch.no_grad():
        values = log_gradient(log_psi, log_marginal, candidates)
        first = _apart(candidates[values.argsort(descending=True)[:LOOKED_AT]], scale)

    def loss(offset: Tensor) -> Tensor:
        return -log_gradient(log_psi, log_marginal, first + scale * offset).sum()

    polished = first + scale * lbfgs(loss, torch.zeros_like(first), steps)
    with torch.no_grad():
        points = torch.cat([first, polished])
        values = log_gradient(log_psi, log_marginal, points)
        values = torch.where(torch.isfinite(values), values, -torch.inf)
        return points, values.clamp_max(700.0).exp() - len(log_marginal)


def _apart(candidates: Tensor, scale: Tensor) -> Tensor:
    """Return the best of candidates (C, d), the best first, no two of them closer than half a scale."""
    near = torch.cdist(candidates / scale, candidates / scale) < APART
    open_ = torch.ones(len(candidates), dtype=torch.bool)
    kept: list[int] = []
    while len(kept) < POLISHED and bool(open_.any()):
        kept.append(int(open_.double().argmax()))
        open_ &= ~near[kept[-1]]
    return candidates[kept]


def certify(log_psi: LogPsi, log_marginal: Tensor, candidates: Tensor, scale: Tensor) -> Certificate:
    """Return the highest D(phi; G) found from candidates (C, d)."""
    points, gains = peaks(log_psi, log_marginal, candidates, scale)
    best = int(gains.argmax())
    return Certificate(max(float(gains[best]), 0.0), points[best])
