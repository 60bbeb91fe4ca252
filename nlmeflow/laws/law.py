"""What every population law answers: density, draws, moments; and what only some of them can do.

A law is a frozen dataclass of tensors, numbers, words and other laws. By being defined it can be saved and
read again, fitted, compared, summarised and drawn; what is special about it is asked for by name here, and
never by its type.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property, wraps
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from nlmeflow.arguments import check_fields
from nlmeflow.errors import ModelError, check_memory, whole
from nlmeflow.laws.affine import Affine
from nlmeflow.numerics import moments
from nlmeflow.records import Saved
from nlmeflow.seeds import Seed, generator

MOMENT_DRAWS = 20_000
ROWS = (
    16_384  # points at which a costly density is computed at a time, so that what it needs stays in the cache
)
Components = tuple[Tensor, Tensor, Tensor]


def sample_components(components: Components, n: int, seed: Seed) -> Tensor:
    """Draw (n, d) from a finite Gaussian mixture."""
    (weights, means, factors), random = components, generator(seed)
    which = torch.multinomial(weights, n, replacement=True, generator=random)
    noise = torch.randn(n, means.shape[-1], 1, generator=random, dtype=means.dtype)
    return means[which] + (factors[which] @ noise).squeeze(-1)


def _counted(sample: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a law's `sample` that refuses a number of draws which is none; no draws are rows (0, d)."""

    @wraps(sample)
    def counted(law: "Law", n: object, *args: Any, **kwargs: Any) -> Tensor:
        n = whole("n", n, 0)
        check_memory("n", n, law.dim, "values")
        return sample(law, n, *args, **kwargs) if n else torch.zeros(0, law.dim, dtype=torch.float64)

    return counted


class Law(Saved, ABC):
    """A fitted distribution of the individual parameters phi in R^d, on the unconstrained scale.

    title : what `summary()` calls it.
    has_density : false for a law made of points, which answers `support` and `weights` instead.
    counted : whether the number of its parameters may enter AIC and BIC: not where they are averaged, or so
        many that they are held by other means.
    has_roots : whether the density may be zero somewhere; an average of such laws seldom is.
    """

    title: ClassVar[str] = ""
    has_density: ClassVar[bool] = True
    counted: ClassVar[bool] = True
    has_roots: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "sample" in vars(cls):
            cls.sample = _counted(cls.sample)  # type: ignore[method-assign]

    def __post_init__(self) -> None:
        check_fields(self)
        for name, value in list(vars(self).items()):
            if isinstance(value, Tensor) and value.dtype != torch.float64:
                object.__setattr__(self, name, value.to(torch.float64))

    @property
    @abstractmethod
    def dim(self) -> int:
        """Return the dimension d."""

    @property
    @abstractmethod
    def n_parameters(self) -> int:
        """Return the number of free parameters, for information criteria."""

    @abstractmethod
    def log_prob(self, phi: Tensor) -> Tensor:
        """Return log p(phi): (..., d) -> (...). Differentiable in phi.

        Raises
        ------
        ModelError : the last axis of phi is not d, or the law is made of points.

        """

    @abstractmethod
    def sample(self, n: int, seed: Seed) -> Tensor:
        """Draw n parameters, (n, d)."""

    def mean_and_covariance(self) -> tuple[Tensor, Tensor]:
        """Return E phi (d,) and Cov phi (d, d): by 20,000 draws unless the law knows better."""
        drawn = self.sample(MOMENT_DRAWS, 0)
        return moments(drawn, drawn.new_full((len(drawn),), 1 / len(drawn)))

    @cached_property
    def two_moments(self) -> tuple[Tensor, Tensor]:
        """The mean and the covariance, computed once."""
        return self.mean_and_covariance()

    def density(self) -> "Law":
        """Return the law itself, or the smooth one that stands for points."""
        return self

    @property
    def log_prior(self) -> float:
        """What a prior on the law's parameters adds to the log-likelihood that is climbed; 0 without one."""
        return 0.0

    @property
    def averaged(self) -> "tuple[tuple[Law, ...], Tensor] | None":
        """Of an average the laws and their weights; None of other laws."""
        return None

    @property
    def normal(self) -> Affine | None:
        """Of a Gaussian law the map that makes it of standard normal noise; None of other laws."""
        return None

    @property
    def components(self) -> Components | None:
        """Of a finite Gaussian mixture weights (K,), means (K, d), lower factors (K, d, d); else None."""
        return None

    def with_components(self, weights: Tensor, means: Tensor, factors: Tensor) -> Self:
        """Return the law with other components; only for laws that have them.

        Raises
        ------
        ModelError : it has none.

        """
        raise ModelError(f"A {type(self).__name__} has no Gaussian components.")

    def update(self, phi: Tensor, weights: Tensor) -> Self:
        """Return a law of the same family of higher expected log-density: the M-step of EM.

        phi (N, M, d) individual parameters, weights (N, M) what each counts for. Only laws with an M-step in
        closed form have one; others learn by other means.

        Raises
        ------
        ModelError : it has none.

        """
        raise ModelError(f"A {type(self).__name__} has no M-step.")

    def shift_step(self, phi: Tensor, weights: Tensor, design: Tensor) -> Tensor:
        """Return the step of gamma (q,) that raises sum_i E[log p(phi_i - X_i gamma) | y_i].

        phi (N, M, d) with posterior weights (N, M), design X (N, d, q). Here one scoring step with the outer
        products of the gradients; exact where a law overrides it.
        """
        with torch.enable_grad():
            place = phi.detach().clone().requires_grad_(True)
            slope = torch.autograd.grad(self.log_prob(place).sum(), place)[0]
        score = -torch.einsum("nmc,ncq->nmq", slope, design)
        gradient = torch.einsum("nm,nmq->q", weights, score)
        step: Tensor = torch.linalg.solve(torch.einsum("nm,nmq,nmr->qr", weights, score, score), gradient)
        return step

    def _in_blocks(self, phi: Tensor, log_density: Callable[[Tensor], Tensor]) -> Tensor:
        """Return log_density, (n, d) -> (n,), at phi (..., d), some of its rows at a time: (...)."""
        blocks = self._rows(phi).split(ROWS)
        return torch.cat([log_density(rows) for rows in blocks]).reshape(phi.shape[:-1])

    def _rows(self, phi: Tensor) -> Tensor:
        """Return phi (..., d) as rows (n, d), or raise ModelError when its last axis is not d."""
        if not isinstance(phi, Tensor):
            raise ModelError(f"phi is a torch tensor (..., {self.dim}), got {type(phi).__name__}.")
        if phi.ndim == 0 or phi.shape[-1] != self.dim:
            raise ModelError(
                f"phi has shape {tuple(phi.shape)}; its last axis must be d = {self.dim}, in the order of "
                "the curve's random parameters."
            )
        return phi.reshape(-1, self.dim).to(torch.float64)
