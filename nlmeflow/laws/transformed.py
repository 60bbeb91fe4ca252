"""Transformed Gaussian laws: one more parameter for each coordinate, for its skewness or its tails.

phi_k = mu_k + omega_k T(z_k; lambda_k),   z ~ N(0, C), C a correlation matrix

Petersson, Hanze, Savic, Karlsson, Semiparametric distributions with estimated shape parameters,
Pharmaceutical Research 2009: a flow of one parameter in each coordinate. z is standardised here, so that
lambda has no unit.
"""

from dataclasses import dataclass, replace
from itertools import combinations
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nlmeflow.arguments import check_fields
from nlmeflow.laws.affine import Affine
from nlmeflow.laws.draws import Folds, TrainingSet
from nlmeflow.laws.em import AGAIN, CARE, SmoothLaw, best_climb, climb_smooth, few
from nlmeflow.laws.gaussian import Gaussian, check_prior, population
from nlmeflow.laws.specification import Specification
from nlmeflow.numerics import LOG_2PI
from nlmeflow.seeds import Seed, generator

Kind = Literal["box-cox", "heavy tails"]
BOUND = 1.5  # of a shape: lambda of Box-Cox, log lambda of heavy tails
INNER = 0.999  # of the bound, at most
SPAN, NODES = 12.0, 241  # of quadrature over a standard normal coordinate
LINEAR = 3.0  # Box-Cox goes on linearly where lambda z is below minus this


@dataclass(frozen=True, eq=False)
class TransformedLaw(SmoothLaw):
    """Affine (mu, L) with L L' = Omega, shapes (d,): lambda of Box-Cox, log lambda of heavy tails."""

    title: ClassVar[str] = "transformed Gaussian"
    frame: Affine
    shape: Tensor
    kind: Kind
    prior: float = 0.0

    @property
    def n_parameters(self) -> int:
        """Return those of a Gaussian and d shapes."""
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
        sd = self._sd
        z, log_slope = self.inverse((self._rows(phi) - self.frame.mean) / sd)
        u = self.frame.standardise(self.frame.mean + sd * z)
        normal = -0.5 * u.square().sum(-1) - 0.5 * LOG_2PI * self.dim
        return (normal - self.frame.log_volume - log_slope.sum(-1)).reshape(phi.shape[:-1])

    def mean_and_covariance(self) -> tuple[Tensor, Tensor]:
        """Return E phi and Cov phi, by quadrature over each pair of coordinates of z."""
        z = torch.linspace(-SPAN, SPAN, NODES, dtype=self.shape.dtype)
        weight = (-0.5 * z.square()).softmax(0)
        every = self.transform(z[:, None].expand(-1, self.dim))
        mean = weight @ every
        centred = every - mean
        second = (weight @ centred.square()).diag()
        correlation = self.frame.factor @ self.frame.factor.mT / (self._sd[:, None] * self._sd)
        for j, i in combinations(range(self.dim), 2):
            rho = correlation[i, j].clamp(-1.0, 1.0)
            given = rho * z + (1 - rho.square()).sqrt() * z[:, None]  # z_i for each z_j, a column
            moved = self.transform(given.reshape(-1, 1).expand(-1, self.dim))[:, i].reshape_as(given)
            second[i, j] = second[j, i] = (weight @ moved - mean[i]) * centred[:, j] @ weight
        return self.frame.mean + self._sd * mean, second * (self._sd[:, None] * self._sd)

    def sample(self, n: int, seed: Seed) -> Tensor:
        noise = torch.randn(n, self.dim, generator=generator(seed), dtype=self.shape.dtype)
        z = noise @ self.frame.factor.mT / self._sd
        return self.frame.mean + self._sd * self.transform(z)

    @property
    def n_free(self) -> int:
        return self.n_parameters

    def moved(self, vector: Tensor) -> "TransformedLaw":
        place, change = vector.split([self.frame.n_parameters, self.dim])
        unbounded = torch.atanh(self.shape / BOUND) + change
        shape = BOUND * torch.tanh(unbounded).clamp(-INNER, INNER)  # at the bound itself atanh is infinite
        return replace(self, frame=self.frame.moved(place), shape=shape)

    def careful(self) -> "TransformedLaw":
        return replace(self, prior=CARE)


def _away_from_zero(shape: Tensor) -> Tensor:
    """Return the shape, 1e-6 at least in size: at zero the formulae are 0 / 0, the law is the Gaussian."""
    return torch.where(shape.abs() < 1e-6, torch.full_like(shape, 1e-6), shape)


@dataclass(frozen=True)
class Transformed(Specification):
    """Specification: a transformed Gaussian law.

    kind : "box-cox" (default), T(z) = (exp(lambda z) - 1) / lambda, skewed, the Gaussian at lambda = 0;
        where lambda z < -3 it goes on linearly, so that the law lives on the whole line.
        "heavy tails", T(z) = sign(z) [(1 + |z|)^lambda - 1] / lambda (John and Draper 1980), the
        Gaussian at lambda = 1.
    prior : 0 (default) is maximum likelihood; c > 0 keeps Omega off its boundary (see `Gaussian`).

    Raises
    ------
    ModelError : an option is none of those accepted, or outside its range.

    """

    kind: Kind = "box-cox"
    prior: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_prior(self.prior)

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.kind

    def learn(self, training: TrainingSet) -> TransformedLaw:
        def make() -> TransformedLaw:
            frame = population(training.draws).normal
            shapes = (-0.4, 1e-3, 0.4) if self.kind == "box-cox" else (-0.3, 1e-3, 0.5)
            starts = [
                TransformedLaw(frame, torch.full_like(frame.mean, shape), self.kind, self.prior)
                for shape in shapes
            ]
            gaussian = Gaussian(prior=self.prior).learn(training).normal
            same = replace(starts[0], frame=gaussian, shape=torch.zeros_like(frame.mean))
            return best_climb(starts, training.draws, also=[same])

        return training.memory.once(self, make)

    def learn_without(self, training: TrainingSet, folds: Folds) -> list[TransformedLaw]:
        """Fit again without each fold, from where all individuals ended."""
        first = self.learn(training)
        return [climb_smooth(first, few(part.draws), AGAIN) for part in training.without(folds)]
