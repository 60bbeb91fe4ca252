"""Weighted mixtures of laws: the average over folds or kinds, and one law for each individual's fold."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nlmeflow.errors import ModelError
from nlmeflow.laws.affine import check_weights
from nlmeflow.laws.draws import Folds
from nlmeflow.laws.law import Law
from nlmeflow.seeds import Seed, derive, generator, integer

NEGLIGIBLE = 1e-3  # weight under which a law is left out of an average


@dataclass(frozen=True, eq=False)
class StackedLaw(Law):
    """sum_k w_k p_k(phi): laws p_k of the same dimension with weights w (K,) on the simplex.

    Raises
    ------
    ModelError : not a weight for each law, weights that are negative or do not sum to 1, or laws of different
        dimensions.

    """

    title: ClassVar[str] = "average of laws"
    counted: ClassVar[bool] = False
    laws: tuple[Law, ...]
    weights: Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.laws:
            raise ModelError("An average needs a law.")
        check_weights(self.weights, len(self.laws))
        if len({law.dim for law in self.laws}) > 1:
            raise ModelError("The laws of a stack have the same dimension.")

    @classmethod
    def average(cls, laws: Sequence[Law]) -> "StackedLaw":
        """Return the mixture with equal weights."""
        size = len(laws)
        return cls(tuple(laws), torch.full((size,), 1 / size, dtype=torch.float64))

    @classmethod
    def weighted(cls, laws: Sequence[Law], weights: Tensor, least: float = NEGLIGIBLE) -> "StackedLaw":
        """Return the mixture of the laws whose weight is above `least`, their weights divided by their sum.

        The total variation, the share of the population put elsewhere, is at most the weight left out.
        """
        kept = [k for k in range(len(laws)) if weights[k] > least]
        share = weights[kept]
        return cls(tuple(laws[k] for k in kept), share / share.sum())

    @property
    def averaged(self) -> tuple[tuple[Law, ...], Tensor]:
        return self.laws, self.weights

    @property
    def dim(self) -> int:
        return self.laws[0].dim

    @property
    def n_parameters(self) -> int:
        """Return the free parameters of all laws and K - 1 weights."""
        return sum(law.n_parameters for law in self.laws) + len(self.laws) - 1

    def log_prob(self, phi: Tensor) -> Tensor:
        return self._in_blocks(phi, self._log_density)

    def _log_density(self, rows: Tensor) -> Tensor:
        parts = [
            law.log_prob(rows) + weight.log()
            for law, weight in zip(self.laws, self.weights, strict=True)
            if weight > 0
        ]
        return torch.stack(parts).logsumexp(0)

    def sample(self, n: int, seed: Seed) -> Tensor:
        random = generator(seed)
        which = torch.multinomial(self.weights, n, replacement=True, generator=random)
        drawn = torch.zeros(n, self.dim, dtype=self.weights.dtype)
        inner = integer(random)
        for k, law in enumerate(self.laws):
            place = which == k
            if bool(place.any()):
                drawn[place] = law.sample(int(place.sum()), derive(inner, k))
        return drawn


@dataclass(frozen=True, eq=False)
class CrossFittedLaw(Law):
    """Each individual's law is the one learned without its fold; not a law of new individuals."""

    laws: Sequence[Law]
    folds: Folds

    @property
    def dim(self) -> int:
        return self.laws[0].dim

    @property
    def n_parameters(self) -> int:
        return sum(law.n_parameters for law in self.laws)

    def log_prob(self, phi: Tensor) -> Tensor:
        """Return the log-density of individual i at phi[i], from phi (N, M, d): (N, M)."""
        log_prob = phi.new_zeros(phi.shape[:-1])
        for law, (_, outside) in zip(self.laws, self.folds.parts(), strict=True):
            log_prob[outside] = law.log_prob(phi[outside])
        return log_prob

    def sample(self, n: int, seed: Seed) -> Tensor:
        """Draw (n, d), n / N for each individual in order."""
        random, size = generator(seed), len(self.folds.of)
        drawn = torch.zeros(size, n // size, self.dim, dtype=torch.float64)
        for law, (_, outside) in zip(self.laws, self.folds.parts(), strict=True):
            part = drawn[outside]
            drawn[outside] = law.sample(len(outside) * part.shape[1], random).reshape(part.shape)
        return drawn.flatten(0, 1)
