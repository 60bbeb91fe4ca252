"""Laws with a vector of free parameters: where they stand, and how they climb by L-BFGS."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from nlmeflow.laws.gaussian import GaussianLaw
from nlmeflow.laws.law import Law


@dataclass(frozen=True)
class Frame:
    """The affine map phi = mean + factor z: mean (d,), lower factor (d, d)."""

    mean: Tensor
    factor: Tensor

    @classmethod
    def of(cls, law: GaussianLaw) -> "Frame":
        """Return the frame in which a Gaussian law is standard normal."""
        return cls(law.mean, law.factor)

    @property
    def dim(self) -> int:
        """Return d."""
        return len(self.mean)

    @property
    def n_parameters(self) -> int:
        """D means and d (d + 1) / 2 entries of the factor."""
        return self.dim + self.dim * (self.dim + 1) // 2

    @property
    def log_volume(self) -> Tensor:
        """Return log |factor|."""
        return self.factor.diagonal().log().sum()

    def standardise(self, phi: Tensor) -> Tensor:
        """Return z = factor^-1 (phi - mean), (n, d)."""
        return torch.linalg.solve_triangular(self.factor, (phi - self.mean).mT, upper=False).mT

    def moved(self, vector: Tensor) -> "Frame":
        """Return the frame moved by a vector in its own units; zero leaves it as it is."""
        dim = self.dim
        shift, log_scale, below = vector.split([dim, dim, dim * (dim - 1) // 2])
        row, column = torch.tril_indices(dim, dim, -1)
        change = torch.diag_embed(log_scale.exp()).index_put((row, column), below)
        return Frame(self.mean + self.factor @ shift, self.factor @ change)


Climber = TypeVar("Climber", bound="Movable")


class Movable(Law, Protocol):
    """A law with a vector of free parameters, zero where the law stands.

    prior : the c of a factor |Omega|^c on the likelihood (see `Gaussian`), Omega = factor factor'.
    """

    @property
    def frame(self) -> Frame:
        """Where the law stands."""

    @property
    def prior(self) -> float:
        """Return c."""

    @property
    def n_free(self) -> int:
        """Length of the vector."""

    def moved(self: Climber, vector: Tensor) -> Climber:
        """Return the law moved by a vector."""


def ascend(law: Climber, objective: Callable[[Climber], Tensor], steps: int) -> Climber:
    """Return the law where L-BFGS from its own place finds the objective highest, never lower."""
    vector = torch.zeros(law.n_free, dtype=torch.float64).requires_grad_(True)
    optimiser = torch.optim.LBFGS(
        [vector], max_iter=steps, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )
    lowest, best = float("inf"), vector.detach().clone()

    def closure() -> Tensor:
        nonlocal lowest, best
        optimiser.zero_grad()
        loss = -objective(law.moved(vector))
        loss.backward()
        if float(loss.detach()) < lowest:
            lowest, best = float(loss.detach()), vector.detach().clone()
        return loss

    with torch.enable_grad():
        optimiser.step(closure)
    with torch.no_grad():
        return law.moved(best)


def climbed(law: Climber, phi: Tensor, weights: Tensor, steps: int = 20) -> Climber:
    """Return the law of higher weighted log-density: phi (N, M, d), weights (N, M)."""
    share = weights.reshape(-1) / weights.sum()
    flat = phi.reshape(-1, phi.shape[-1])
    return ascend(law, lambda moved: share @ moved.log_prob(flat), steps)
