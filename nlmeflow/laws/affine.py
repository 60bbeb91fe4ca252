"""Affine maps phi = mean + factor z: the one place where parameters are standardised."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nlmeflow.errors import ModelError
from nlmeflow.numerics import LOG_2PI
from nlmeflow.records import Saved


def lower_inverse(factor: Tensor) -> Tensor:
    """Return L^-1 of lower factors L (..., d, d)."""
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype).expand_as(factor)
    inverse: Tensor = torch.linalg.solve_triangular(factor, identity, upper=False)
    return inverse


def safe_cholesky(covariance: Tensor) -> Tensor:
    """Return the lower factor of (..., d, d), lifting eigenvalues that are not positive.

    Eigenvalues of the correlation matrix are lifted to 1e-10 at least, so that units do not matter.
    """
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(covariance)
    if not bool((info != 0).any()):
        return factor
    scale = covariance.diagonal(dim1=-2, dim2=-1).clamp_min(torch.finfo(covariance.dtype).tiny).sqrt()
    correlation = covariance / (scale[..., :, None] * scale[..., None, :])
    values, vectors = torch.linalg.eigh(correlation)
    lifted = vectors * values.clamp_min(1e-10)[..., None, :] @ vectors.mT
    factor = scale[..., :, None] * torch.linalg.cholesky(lifted)
    return factor


def normal_log_prob(phi: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    """Return log N(phi; mean, L L') for phi (..., M, d), mean (..., d), L lower (..., d, d).

    Leading axes broadcast.
    """
    dim = mean.shape[-1]
    z = (phi - mean[..., None, :]) @ lower_inverse(factor).mT
    constant = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) + 0.5 * LOG_2PI * dim
    ones = torch.ones(dim, dtype=z.dtype)  # a product is faster than a sum over a short axis
    return -0.5 * (z.square_() @ ones) - constant[..., None]


def independent_log_prob(deviation: Tensor, sd: Tensor) -> Tensor:
    """Return log N(b; 0, diag(sd^2)) for b (..., d), sd (d,)."""
    dim = len(sd)
    ones = torch.ones(dim, dtype=deviation.dtype)
    z = deviation * sd.reciprocal()
    return -0.5 * (z.square_() @ ones) - (sd.log().sum() + 0.5 * LOG_2PI * dim)


def check_factors(means: Tensor, factors: Tensor) -> None:
    """Raise ModelError unless means (..., d) and lower factors (..., d, d) belong together."""
    if means.ndim == 0 or factors.shape != (*means.shape, means.shape[-1]):
        raise ModelError(
            f"A mean of d parameters has a factor (d, d); got shapes {tuple(means.shape)} and "
            f"{tuple(factors.shape)}."
        )
    if bool(factors.triu(1).abs().gt(0).any()):  # NaN is an end that fits themselves put into words
        raise ModelError(
            "A factor is lower triangular, L of a covariance L L': torch.linalg.cholesky(covariance)."
        )
    if bool((factors.diagonal(dim1=-2, dim2=-1) < 0).any()):
        raise ModelError("The diagonal of a factor is not negative; see torch.linalg.cholesky(covariance).")


def check_weights(weights: Tensor, count: int) -> None:
    """Raise ModelError unless so many weights are given, none is negative and their sum is one."""
    if weights.shape != (count,):
        raise ModelError(f"A weight is needed for each of {count}; got shape {tuple(weights.shape)}.")
    total = float(weights.sum())
    if bool((weights < 0).any()) or not abs(total - 1) <= 1e-6:
        raise ModelError(
            f"Weights are 0 or more and sum to 1; the least is {weights.min():g}, the sum {total:g}."
        )


@dataclass(frozen=True, eq=False)
class Affine(Saved):
    """The map phi = mean + factor z: mean (d,), lower factor (d, d)."""

    mean: Tensor
    factor: Tensor

    @property
    def dim(self) -> int:
        """Return d."""
        return len(self.mean)

    @property
    def n_parameters(self) -> int:
        """Return d + d (d + 1) / 2: the mean and the entries of the factor."""
        return self.dim + self.dim * (self.dim + 1) // 2

    @property
    def log_volume(self) -> Tensor:
        """Return log |factor|."""
        return self.factor.diagonal().log().sum()

    @property
    def inverse(self) -> Tensor:
        """Return factor^-1, (d, d)."""
        return lower_inverse(self.factor)

    def __call__(self, z: Tensor) -> Tensor:
        """Return phi of z (..., d)."""
        return self.mean + z @ self.factor.mT

    def standardise(self, phi: Tensor) -> Tensor:
        """Return z = factor^-1 (phi - mean) of phi (..., d)."""
        return (phi - self.mean) @ self.inverse.mT

    def moved(self, vector: Tensor) -> "Affine":
        """Return the map moved by a vector (n_parameters,) in its own units; zero leaves it as it is."""
        dim = self.dim
        shift, log_scale, below = vector.split([dim, dim, dim * (dim - 1) // 2])
        row, column = torch.tril_indices(dim, dim, -1)
        change = torch.diag_embed(log_scale.exp()).index_put((row, column), below)
        return Affine(self.mean + self.factor @ shift, self.factor @ change)
