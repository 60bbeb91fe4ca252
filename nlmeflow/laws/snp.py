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
from typing import ClassVar

import torch
from torch import Tensor

from nlmeflow.arguments import check_fields
from nlmeflow.errors import ModelError, check_whole
from nlmeflow.laws.affine import Affine, independent_log_prob
from nlmeflow.laws.draws import Folds, PosteriorDraws, TrainingSet
from nlmeflow.laws.em import CARE, SmoothLaw, best_climb
from nlmeflow.laws.gaussian import Gaussian, check_prior, population
from nlmeflow.laws.law import Law
from nlmeflow.laws.mixture import Mixture
from nlmeflow.laws.specification import Specification, lowest_bic
from nlmeflow.numerics import LOG_2PI
from nlmeflow.seeds import Seed, Stream, derive, generator, sobol

HIGHEST = 4  # order: beyond it an SNP density oscillates
REACH = 12.0  # standard deviations within which draws lie
HALVINGS = 48  # of that interval
WIDTHS = (0.75, 0.9)  # of the frames in which fits start: in wider ones they miss groups


@dataclass(frozen=True, eq=False)
class SNPLaw(SmoothLaw):
    """P(z)^2 N(z; 0, I) at z = R^-1 (phi - mu): frame (mu, R), coefficients c (p,), |c| = 1, order K."""

    title: ClassVar[str] = "SNP, a squared polynomial times a Gaussian"
    has_roots: ClassVar[bool] = True
    frame: Affine
    coefficients: Tensor
    order: int
    prior: float = 0.0

    @classmethod
    def gaussian(cls, frame: Affine, order: int, prior: float = 0.0) -> "SNPLaw":
        """Return the Gaussian N(mu, R R') as a law of this order."""
        coefficients = frame.mean.new_zeros(len(exponents(frame.dim, order)))
        coefficients[0] = 1
        return cls(frame, coefficients, order, prior)

    @property
    def n_parameters(self) -> int:
        """Return d means, d (d + 1) / 2 scales, and the coefficients but one (they have length one)."""
        return self.frame.n_parameters + len(self.coefficients) - 1

    def polynomial(self, z: Tensor) -> Tensor:
        """Return P(z): (n, d) -> (n,)."""
        values = hermite(z, self.order)
        product = torch.ones(len(z), len(self.coefficients), dtype=z.dtype)
        for k, powers in enumerate(exponents(self.dim, self.order).mT):
            product = product * values[:, k, powers]
        return product @ self.coefficients

    def log_prob(self, phi: Tensor) -> Tensor:
        z = self.frame.standardise(self._rows(phi))
        squared = self.polynomial(z).square().clamp(1e-300, 1e300)  # far off the normal density decides
        normal = -0.5 * z.square().sum(-1) - 0.5 * LOG_2PI * self.dim
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
        return self.frame(torch.stack(columns, 1))

    @property
    def n_free(self) -> int:
        return self.frame.n_parameters + len(self.coefficients)

    def moved(self, vector: Tensor) -> "SNPLaw":
        place, change = vector.split([self.frame.n_parameters, len(self.coefficients)])
        coefficients = self.coefficients + change
        return replace(self, frame=self.frame.moved(place), coefficients=coefficients / coefficients.norm())

    def careful(self) -> "SNPLaw":
        return replace(self, prior=CARE)


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


@dataclass(frozen=True)
class SNP(Specification):
    """Specification: an SNP law.

    order : degree K of the polynomial; chosen by BIC from 0 to `max_order` when None.
    prior : 0 (default) is maximum likelihood; c > 0 keeps R off its boundary (see `Gaussian`).

    Raises
    ------
    ModelError : an option is outside its range.

    """

    name: ClassVar[str] = "snp"
    order: int | None = None
    max_order: int = 3
    prior: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_whole(self, 0, "order", "max_order")
        for name in ("order", "max_order"):
            if (getattr(self, name) or 0) > HIGHEST:
                raise ModelError(f"{name} is at most {HIGHEST}, got {getattr(self, name)}.")
        check_prior(self.prior)

    @property
    def orders(self) -> range:
        """The orders to try."""
        return range(self.max_order + 1) if self.order is None else range(self.order, self.order + 1)

    def fitted(self, training: TrainingSet) -> list[SNPLaw]:
        """Return the law of each order to try."""

        def make() -> list[SNPLaw]:
            found, draws = [], training.draws
            gaussians = population(draws).normal, Gaussian(prior=self.prior).learn(training).normal
            mixture = Mixture().learn(training)
            for order in self.orders:
                training.report(f"snp of order {order}")
                starts = self._starts(order, draws, mixture, training.seed)
                plain, best = (SNPLaw.gaussian(normal, order, self.prior) for normal in gaussians)
                found.append(best_climb([plain, *starts], draws, also=[best]))
            return found

        return training.memory.once(self, make)

    def learn(self, training: TrainingSet) -> SNPLaw:
        """Return the SNP law of lowest BIC."""
        found = self.fitted(training)
        return found[lowest_bic(found, training)]

    def learn_without(self, training: TrainingSet, folds: Folds) -> list[SNPLaw]:
        """Fit again without each fold: the order that all individuals gave and the one below.

        Starts are of the fold's own: from the law of all individuals a fit may stay at an optimum that is
        there because of the individuals who were left out.
        """
        best = lowest_bic(self.fitted(training), training)
        near = self.orders[max(0, best - 1) : best + 1]
        laws = []
        mixtures = Mixture().learn_without(training, folds)
        for mixture, part in zip(mixtures, training.without(folds), strict=True):
            starts = [self._starts(order, part.draws, mixture, training.seed) for order in near]
            again = [best_climb(some, part.draws, 1) for some in starts]
            laws.append(again[lowest_bic(again, part)])
        return laws

    def _starts(self, order: int, draws: PosteriorDraws, mixture: Law, seed: int) -> list[SNPLaw]:
        """Return projections of a mixture, in frames of several widths of the draws' Gaussian.

        c_alpha = E h_alpha(z) sqrt(p(z) / N(z; 0, I)), z standard normal: the polynomial whose square is
        closest to the mixture p in Hellinger distance.
        """
        gaussian = population(draws)
        starts = []
        index = exponents(gaussian.dim, order)
        points = sobol(4096, gaussian.dim, derive(seed, Stream.SNP_START))
        z = torch.special.ndtri(points.clamp(1e-9, 1 - 1e-9))
        normal = independent_log_prob(z, torch.ones_like(z[0]))
        basis = hermite(z, order)[:, torch.arange(gaussian.dim), index].prod(-1)
        for width in WIDTHS:
            frame = gaussian.inflated(width).normal
            log_mixture = mixture.log_prob(frame(z)) + frame.log_volume
            projected = (basis * (0.5 * (log_mixture - normal)).exp()[:, None]).mean(0)
            starts.append(SNPLaw(frame, projected / projected.norm(), order, self.prior))
        return starts
