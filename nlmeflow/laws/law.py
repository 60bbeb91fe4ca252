"""What every population law answers, and what a specification of one must offer."""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from nlmeflow.errors import ModelError
from nlmeflow.seeds import Seed


@runtime_checkable
class Law(Protocol):
    """A fitted distribution of the individual parameters phi in R^d."""

    @property
    def dim(self) -> int:
        """Return the dimension d."""

    @property
    def n_parameters(self) -> int:
        """Return the number of free parameters, for information criteria."""

    def log_prob(self, phi: Tensor) -> Tensor:
        """Return log p(phi): (..., d) -> (...)."""

    def sample(self, n: int, seed: Seed) -> Tensor:
        """Draw n parameters, (n, d)."""

    def update(self, phi: Tensor, weights: Tensor) -> "Law":
        """Return a law of the same family of higher expected log-density.

        phi (N, M, d) individual parameters, weights (N, M) their posterior weights, each row
        summing to one.
        """


def log_prior(law: Law) -> float:
    """Return what a law's prior adds to the log-likelihood that is climbed, 0 without a prior."""
    return float(getattr(law, "log_prior", 0.0))


def check_phi(phi: Tensor, dim: int) -> None:
    """Raise ModelError when the last axis of phi is not the law's dimension."""
    if phi.ndim == 0 or phi.shape[-1] != dim:
        raise ModelError(
            f"phi has shape {tuple(phi.shape)}; its last axis must be d = {dim}, in the order of "
            "the curve's random parameters."
        )


def normal_log_prob(phi: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    """Return log N(phi; mean, L L') for phi (..., M, d), mean (..., d), L lower (..., d, d).

    Leading axes broadcast.
    """
    dim = mean.shape[-1]
    identity = torch.eye(dim, dtype=factor.dtype).expand_as(factor)
    inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
    z = (phi - mean[..., None, :]) @ inverse.mT
    constant = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) + 0.9189385332046727 * dim
    ones = torch.ones(dim, dtype=z.dtype)  # a product is faster than a sum over a short axis
    return -0.5 * (z.square_() @ ones) - constant[..., None]


def safe_cholesky(covariance: Tensor) -> Tensor:
    """Return the lower factor of (..., d, d), lifting eigenvalues that are not positive.

    The lift is relative to the largest eigenvalue (1e-12), so that units do not matter.
    """
    factor, info = torch.linalg.cholesky_ex(covariance)
    if not bool((info != 0).any()):
        return factor
    scale = covariance.diagonal(dim1=-2, dim2=-1).clamp_min(torch.finfo(covariance.dtype).tiny).sqrt()
    correlation = covariance / (scale[..., :, None] * scale[..., None, :])
    values, vectors = torch.linalg.eigh(correlation)
    lifted = vectors * values.clamp_min(1e-10)[..., None, :] @ vectors.mT
    return scale[..., :, None] * torch.linalg.cholesky(lifted)
