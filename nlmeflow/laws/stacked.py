"""A weighted mixture of laws: the average of flows trained on folds, and the stacked law."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nlmeflow.errors import ModelError
from nlmeflow.laws.law import Law, check_phi
from nlmeflow.seeds import Seed, derive, generator, integer


@dataclass(frozen=True)
class StackedLaw:
    """sum_k w_k p_k(phi): laws p_k of the same dimension with weights w (K,) on the simplex."""

    laws: tuple[Law, ...]
    weights: Tensor

    def __post_init__(self) -> None:
        if len(self.laws) != len(self.weights) or not self.laws:
            raise ModelError(f"{len(self.laws)} laws and {len(self.weights)} weights were given.")
        if len({law.dim for law in self.laws}) > 1:
            raise ModelError("The laws of a stack have the same dimension.")

    @classmethod
    def average(cls, laws: Sequence[Law]) -> "StackedLaw":
        """Return the mixture with equal weights."""
        size = len(laws)
        return cls(tuple(laws), torch.full((size,), 1 / size, dtype=torch.float64))

    @property
    def dim(self) -> int:
        return self.laws[0].dim

    @property
    def n_parameters(self) -> int:
        """Free parameters of all laws and K - 1 weights."""
        return sum(law.n_parameters for law in self.laws) + len(self.laws) - 1

    def log_prob(self, phi: Tensor) -> Tensor:
        """Return the log-density: (..., d) -> (...)."""
        check_phi(phi, self.dim)
        parts = [
            law.log_prob(phi) + weight.log()
            for law, weight in zip(self.laws, self.weights, strict=True)
            if weight > 0
        ]
        return torch.stack(parts).logsumexp(0)

    def sample(self, n: int, seed: Seed) -> Tensor:
        """Draw (n, d)."""
        random = generator(seed)
        which = torch.multinomial(self.weights, n, replacement=True, generator=random)
        drawn = torch.zeros(n, self.dim, dtype=self.weights.dtype)
        inner = integer(random)
        for k, law in enumerate(self.laws):
            place = which == k
            if bool(place.any()):
                drawn[place] = law.sample(int(place.sum()), derive(inner, k))
        return drawn

    def update(self, phi: Tensor, weights: Tensor) -> "StackedLaw":
        """Return one EM step of the weights; the laws stay as they are."""
        log_parts = torch.stack([law.log_prob(phi) for law in self.laws], -1) + self.weights.log()
        member = log_parts.softmax(-1)
        mass = (weights[..., None] * member).flatten(0, -2).sum(0)
        return StackedLaw(self.laws, mass / mass.sum())
