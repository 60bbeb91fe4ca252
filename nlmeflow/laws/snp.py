"""The SNP law ("seminonparametric"): a squared polynomial times a Gaussian.

phi = mu + R z,   p(z) = P(z)^2 N(z; 0, I),   P(z) = sum over |alpha| <= K of c_alpha h_alpha(z)

Gallant and Nychka, Econometrica 1987; in nonlinear mixed-effects models Davidian and Gallant,
Biometrika 1993. h_alpha are products of Hermite polynomials, orthonormal under the standard normal law,
so that the law integrates to one exactly when |c| = 1 (the condition that Zhang and Davidian,
Biometrics 2001, write in polar angles). Order 0 is the Gaussian.
"""

import itertools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nlmeflow.errors import ModelError, check_whole
from nlmeflow.laws.frame import Frame, climbed
from nlmeflow.laws.gaussian import check_prior
from nlmeflow.laws.law import check_phi
from nlmeflow.seeds import Seed, generator

HIGHEST = 4  # order: beyond it an SNP density oscillates
REACH = 12.0  # standard deviations within which draws lie
HALVINGS = 48  # of that interval


@dataclass(frozen=True)
class SNP:
    """Specification: an SNP law.

    order : degree K of the polynomial; chosen by BIC from 0 to `max_order` when None.
    prior : 0 (default) is maximum likelihood; c > 0 keeps R off its boundary (see `Gaussian`).
    """

    order: int | None = None
    max_order: int = 3
    prior: float = 0.0

    def __post_init__(self) -> None:
        for name in ("order", "max_order"):
            value = getattr(self, name)
            if value is None and name == "order":
                continue
            check_whole(name, value, 0)
            if value > HIGHEST:
                raise ModelError(f"{name} is at most {HIGHEST}, got {value}.")
        check_prior(self.prior)

    @property
    def name(self) -> str:
        """The key of this law in tables."""
        return "snp"

    @property
    def orders(self) -> range:
        """The orders to try."""
        return range(self.max_order + 1) if self.order is None else range(self.order, self.order + 1)


@dataclass(frozen=True)
class SNPLaw:
    """P(z)^2 N(z; 0, I) at z = R^-1 (phi - mu): frame (mu, R), coefficients c (p,), |c| = 1, order K."""

    frame: Frame
    coefficients: Tensor
    order: int
    prior: float = 0.0

    @classmethod
    def gaussian(cls, frame: Frame, order: int, prior: float = 0.0) -> "SNPLaw":
        """Return the Gaussian N(mu, R R') as a law of this order."""
        coefficients = frame.mean.new_zeros(len(exponents(frame.dim, order)))
        coefficients[0] = 1
        return cls(frame, coefficients, order, prior)

    @property
    def dim(self) -> int:
        return self.frame.dim

    @property
    def n_parameters(self) -> int:
        """D means, d (d + 1) / 2 scales, and the coefficients but one (they have length one)."""
        return self.frame.n_parameters + len(self.coefficients) - 1

    def polynomial(self, z: Tensor) -> Tensor:
        """Return P(z): (n, d) -> (n,)."""
        values = hermite(z, self.order)
        product = torch.ones(len(z), len(self.coefficients), dtype=z.dtype)
        for k, powers in enumerate(exponents(self.dim, self.order).mT):
            product = product * values[:, k, powers]
        return product @ self.coefficients

    def log_prob(self, phi: Tensor) -> Tensor:
        """Return the log-density: (..., d) -> (...). Differentiable."""
        check_phi(phi, self.dim)
        z = self.frame.standardise(phi.reshape(-1, self.dim))
        squared = self.polynomial(z).square().clamp_min(1e-300)
        normal = -0.5 * z.square().sum(-1) - 0.9189385332046727 * self.dim
        return (squared.log() + normal - self.frame.log_volume).reshape(phi.shape[:-1])

    def sample(self, n: int, seed: Seed) -> Tensor:
        """Draw (n, d), one coordinate after the other by inversion of its conditional distribution.

        Given z_1, ..., z_(k-1) the density of z_k, the later coordinates integrated out, is the normal
        density times sum over their exponents gamma of q_gamma(z_k)^2, q_gamma polynomials, because the
        h_alpha are orthonormal.
        """
        random = generator(seed)
        size = self.order + 1
        dense = torch.zeros((size,) * self.dim, dtype=self.coefficients.dtype)
        dense[tuple(exponents(self.dim, self.order).mT)] = self.coefficients
        left = dense.expand(n, *dense.shape)
        columns = []
        for _ in range(self.dim):
            q = left.reshape(n, size, -1)
            uniform = torch.rand(n, generator=random, dtype=q.dtype)
            z = _inverted(q @ q.mT, uniform)
            columns.append(z)
            left = (hermite(z[:, None], self.order)[:, 0, :, None] * q).sum(1)
            left = left.reshape(n, *dense.shape[len(columns) :])
        return self.frame.mean + torch.stack(columns, 1) @ self.frame.factor.mT

    @property
    def n_free(self) -> int:
        """Length of the vector that `moved` takes."""
        return self.frame.n_parameters + len(self.coefficients)

    def moved(self, vector: Tensor) -> "SNPLaw":
        """Return the law moved by a vector (n_free,); zero leaves it as it is."""
        place, change = vector.split([self.frame.n_parameters, len(self.coefficients)])
        coefficients = self.coefficients + change
        return replace(self, frame=self.frame.moved(place), coefficients=coefficients / coefficients.norm())

    def update(self, phi: Tensor, weights: Tensor) -> "SNPLaw":
        """Return the law after L-BFGS steps on the weighted log-density."""
        return climbed(self, phi, weights)


def exponents(dim: int, order: int) -> Tensor:
    """Return all alpha with |alpha| <= order, (p, dim), those of the lowest degree first."""
    every = itertools.product(range(order + 1), repeat=dim)
    kept = sorted((alpha for alpha in every if sum(alpha) <= order), key=lambda alpha: (sum(alpha), alpha))
    return torch.tensor(kept)


def hermite(z: Tensor, order: int) -> Tensor:
    """Return h_0, ..., h_order at z: (..., ) -> (..., order + 1), orthonormal under the standard normal."""
    values = [torch.ones_like(z), z]
    for k in range(1, order):
        values.append((z * values[k] - math.sqrt(k) * values[k - 1]) / math.sqrt(k + 1))
    return torch.stack(values[: order + 1], -1)


def _monomials(order: int) -> Tensor:
    """Return the coefficients of h_a in powers of z, (order + 1, order + 1)."""
    rows = torch.zeros(order + 2, order + 1, dtype=torch.float64)
    rows[0, 0] = 1
    for k in range(order):
        shifted = torch.cat([rows.new_zeros(1), rows[k, :-1]])
        before = rows[k - 1] if k else torch.zeros_like(shifted)
        rows[k + 1] = (shifted - math.sqrt(k) * before) / math.sqrt(k + 1)
    return rows[:-1]


def _inverted(products: Tensor, uniform: Tensor) -> Tensor:
    """Return x with F(x) = u F(infinity), F' = sum_ab S_ab h_a h_b times the normal density.

    products S (n, K + 1, K + 1), u (n,). With the h_a in powers of x, F is a sum of
    I_t = integral of x^t N(x), I_t = (t - 1) I_(t-2) - x^(t-1) N(x).
    """
    order = products.shape[-1] - 1
    basis = _monomials(order)
    power = basis.mT @ products @ basis
    weights = uniform.new_zeros(len(uniform), 2 * order + 1)
    for a in range(order + 1):
        for b in range(order + 1):
            weights[:, a + b] += power[:, a, b]

    def cumulated(x: Tensor) -> Tensor:
        normal = torch.exp(-0.5 * x.square()) / math.sqrt(2 * math.pi)
        parts = [torch.special.ndtr(x), -normal]
        for t in range(2, 2 * order + 1):
            parts.append((t - 1) * parts[t - 2] - x ** (t - 1) * normal)
        return (torch.stack(parts[: 2 * order + 1], 1) * weights).sum(1)

    low, high = torch.full_like(uniform, -REACH), torch.full_like(uniform, REACH)
    target = uniform * cumulated(high)
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        below = cumulated(middle) < target
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return 0.5 * (low + high)
