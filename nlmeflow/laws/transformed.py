"""Transformed Gaussian laws: one more parameter for each coordinate, for its skewness or its tails.

phi_k = mu_k + omega_k T(z_k; lambda_k),   z ~ N(0, C), C a correlation matrix

Petersson, Hanze, Savic, Karlsson, Semiparametric distributions with estimated shape parameters,
Pharmaceutical Research 2009: a flow of one parameter in each coordinate. z is standardised here, so that
lambda has no unit.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from nlmeflow.errors import ModelError
from nlmeflow.laws.frame import Frame, climbed
from nlmeflow.laws.gaussian import check_prior
from nlmeflow.laws.law import check_phi
from nlmeflow.seeds import Seed, generator

Kind = Literal["box-cox", "heavy tails"]
KINDS: tuple[Kind, ...] = ("box-cox", "heavy tails")
BOUND = 1.5  # of a shape: lambda of Box-Cox, log lambda of heavy tails
INNER = 0.999  # of the bound, at most
LINEAR = 3.0  # Box-Cox goes on linearly where lambda z is below minus this


@dataclass(frozen=True)
class Transformed:
    """Specification: a transformed Gaussian law.

    kind : "box-cox" (default), T(z) = (exp(lambda z) - 1) / lambda, skewed, the Gaussian at lambda = 0;
        where lambda z < -3 it goes on linearly, so that the law lives on the whole line.
        "heavy tails", T(z) = sign(z) [(1 + |z|)^lambda - 1] / lambda (John and Draper 1980), the
        Gaussian at lambda = 1.
    prior : 0 (default) is maximum likelihood; c > 0 keeps Omega off its boundary (see `Gaussian`).
    """

    kind: Kind = "box-cox"
    prior: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ModelError(f"kind is one of {', '.join(map(repr, KINDS))}; got {self.kind!r}.")
        check_prior(self.prior)

    @property
    def name(self) -> str:
        """The key of this law in tables."""
        return self.kind


@dataclass(frozen=True)
class TransformedLaw:
    """Frame (mu, L) with L L' = Omega, shapes (d,): lambda of Box-Cox, log lambda of heavy tails."""

    frame: Frame
    shape: Tensor
    kind: Kind
    prior: float = 0.0

    @property
    def dim(self) -> int:
        return self.frame.dim

    @property
    def n_parameters(self) -> int:
        """Those of a Gaussian and d shapes."""
        return self.frame.n_parameters + self.dim

    @property
    def _sd(self) -> Tensor:
        return self.frame.factor.square().sum(1).sqrt()

    def transform(self, z: Tensor) -> Tensor:
        """Return T(z; lambda), (n, d)."""
        if self.kind == "heavy tails":
            power = self.shape.exp()
            return z.sign() * ((1 + z.abs()) ** power - 1) / power
        shape = _away_from_zero(self.shape)
        inner = (shape * z).clamp_min(-LINEAR)
        return (inner.expm1() + (shape * z - inner) * inner.exp()) / shape

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return z with T(z) = x and log T'(z), both (n, d)."""
        if self.kind == "heavy tails":
            power = self.shape.exp()
            size = torch.log1p(power * x.abs()) / power
            return x.sign() * size.expm1(), (power - 1) * size
        shape = _away_from_zero(self.shape)
        least = torch.tensor(-LINEAR, dtype=x.dtype)
        inside = (shape * x).clamp_min(float(least.expm1()))
        inner = torch.log1p(inside)
        return (inner + (shape * x - inside) * (-inner).exp()) / shape, inner

    def log_prob(self, phi: Tensor) -> Tensor:
        """Return the log-density: (..., d) -> (...). Differentiable."""
        check_phi(phi, self.dim)
        sd = self._sd
        z, log_slope = self.inverse((phi.reshape(-1, self.dim) - self.frame.mean) / sd)
        u = self.frame.standardise(self.frame.mean + sd * z)
        normal = -0.5 * u.square().sum(-1) - 0.9189385332046727 * self.dim
        return (normal - self.frame.log_volume - log_slope.sum(-1)).reshape(phi.shape[:-1])

    def sample(self, n: int, seed: Seed) -> Tensor:
        """Draw (n, d)."""
        noise = torch.randn(n, self.dim, generator=generator(seed), dtype=self.shape.dtype)
        z = noise @ self.frame.factor.mT / self._sd
        return self.frame.mean + self._sd * self.transform(z)

    @property
    def n_free(self) -> int:
        """Length of the vector that `moved` takes."""
        return self.n_parameters

    def moved(self, vector: Tensor) -> "TransformedLaw":
        """Return the law moved by a vector (n_free,); zero leaves it as it is."""
        place, change = vector.split([self.frame.n_parameters, self.dim])
        unbounded = torch.atanh(self.shape / BOUND) + change
        shape = BOUND * torch.tanh(unbounded).clamp(-INNER, INNER)  # at the bound itself atanh is infinite
        return replace(self, frame=self.frame.moved(place), shape=shape)

    def update(self, phi: Tensor, weights: Tensor) -> "TransformedLaw":
        """Return the law after L-BFGS steps on the weighted log-density."""
        return climbed(self, phi, weights)


def _away_from_zero(shape: Tensor) -> Tensor:
    """Return the shape, 1e-6 at least in size: at zero the formulae are 0 / 0, the law is the Gaussian."""
    return torch.where(shape.abs() < 1e-6, torch.full_like(shape, 1e-6), shape)
