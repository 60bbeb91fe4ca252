"""Random population laws: a base of one of seven kinds, bent by random invertible maps; densities are exact.

phi = place(T_K(... T_1(x))), x ~ base, K from 0 to 3
log p(phi) = log p_base(x) - log |d phi / dx|

A base is a finite mixture of standardised parts, each moved by an affine map. Before each map, and before the
law is put at its place, coordinates are standardised by the means and sds of 65,536 Sobol points.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import AffineTransform, Transform
from zuko.transforms import (
    ComposedTransform,
    CouplingTransform,
    DependentTransform,
    MonotonicAffineTransform,
    MonotonicRQSTransform,
    RotationTransform,
)

from nlmeflow.laws.affine import Affine
from nlmeflow.numerics import LOG_2PI
from nlmeflow.seeds import sobol
from nlmeflow.studies.scenario import Truth

PARTS = ("gaussian", "student", "box", "ball", "laplace")
BASES = {"mixture": 0.25, "closed curve": 0.125, "open curve": 0.125} | dict.fromkeys(PARTS, 0.1)
OF_ONE = ("sinh-arcsinh", "spline")  # maps that one coordinate can have
MOST_MAPS = 3
CURVE_POINTS = 200
SOBOL_POINTS = 2**16
LINEAR = 2.0  # beyond which a polynomial goes on as its tangent
Random = np.random.Generator


@dataclass(frozen=True)
class Part:
    """A standardised law of mean 0 and covariance I (d, d), moved by an affine map.

    kind : "gaussian"; "student", elliptical with so many degrees of freedom; "box" and "ball", uniform;
    "laplace", independent coordinates.
    """

    kind: str
    frame: Affine
    freedom: float = 8.0

    def from_noise(self, v: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Return draws (n, d) made of uniform v (n,) and standard normal z (n, d)."""
        moved: np.ndarray = self.frame.mean.numpy() + self._standard(v, z) @ self.frame.factor.numpy().T
        return moved

    def _standard(self, v: np.ndarray, z: np.ndarray) -> np.ndarray:
        dim, found = z.shape[1], z
        match self.kind:
            case "student":
                found = z * np.sqrt((self.freedom - 2) / stats.chi2.ppf(v, self.freedom))[:, None]
            case "box":
                found = math.sqrt(12) * (stats.norm.cdf(z) - 0.5)
            case "ball":
                found = math.sqrt(dim + 2) * v[:, None] ** (1 / dim) * z / np.linalg.norm(z, axis=1)[:, None]
            case "laplace":
                found = -np.sign(z) * (math.log(2) + stats.norm.logsf(np.abs(z))) / math.sqrt(2)
        return found

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density at x: (n, d) -> (n,)."""
        return self._log_standard(self.frame.standardise(x)) - self.frame.log_volume

    def _log_standard(self, x: Tensor) -> Tensor:
        dim, square = x.shape[1], x.square().sum(1)
        outside = torch.tensor(-math.inf, dtype=x.dtype)
        match self.kind:
            case "student":
                nu = self.freedom
                constant = math.lgamma((nu + dim) / 2) - math.lgamma(nu / 2)
                constant -= 0.5 * dim * math.log(math.pi * (nu - 2))
                return constant - 0.5 * (nu + dim) * torch.log1p(square / (nu - 2))
            case "box":
                inside = x.abs().amax(1) < math.sqrt(3)
                return torch.where(inside, -0.5 * dim * math.log(12), outside)
            case "ball":
                log_volume = 0.5 * dim * math.log(math.pi * (dim + 2)) - math.lgamma(dim / 2 + 1)
                return torch.where(square < dim + 2, -log_volume, outside)
            case "laplace":
                return -math.sqrt(2) * x.abs().sum(1) - 0.5 * dim * math.log(2)
        return -0.5 * (square + dim * LOG_2PI)


@dataclass(frozen=True)
class Base:
    """A mixture of parts with weights (K,)."""

    weights: np.ndarray
    parts: tuple[Part, ...]

    def from_noise(self, u: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Return draws (n, d): u (n,) says the part, and what is left of it is uniform again."""
        ends = np.cumsum(self.weights)
        of = np.searchsorted(ends[:-1], u)
        left = ((u - ends[of]) / self.weights[of] + 1).clip(1e-12, 1 - 1e-12)
        x = np.empty_like(z)
        for k in np.unique(of):
            x[of == k] = self.parts[k].from_noise(left[of == k], z[of == k])
        return x

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density at x: (n, d) -> (n,)."""
        log_parts = torch.stack([part.log_prob(x) for part in self.parts])
        return (log_parts + torch.from_numpy(self.weights).log()[:, None]).logsumexp(0)


class SinhArcsinh(Transform):
    """y = sinh((asinh(x) + skewness) / tail), skewness and tail (d,); Jones and Pewsey, Biometrika 2009."""

    domain = constraints.real
    codomain = constraints.real
    bijective = True
    sign = +1

    def __init__(self, skewness: Tensor, tail: Tensor) -> None:
        super().__init__()
        self.skewness, self.tail = skewness, tail

    def _call(self, x: Tensor) -> Tensor:
        return ((x.asinh() + self.skewness) / self.tail).sinh()

    def _inverse(self, y: Tensor) -> Tensor:
        return (self.tail * y.asinh() - self.skewness).sinh()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * torch.log1p(y.square()) - 0.5 * torch.log1p(x.square()) - self.tail.log()


@dataclass(frozen=True)
class RandomLaw:
    """The law, and what it was made of: "mixture of 3", ("sine shear", "rotation")."""

    law: Truth
    base: str
    maps: tuple[str, ...]


def random_law(random: Random, mean: np.ndarray, sd: np.ndarray) -> RandomLaw:
    """Draw a law of d coordinates with these means and sds, (d,)."""
    dim = len(mean)
    bases = {kind: share for kind, share in BASES.items() if dim > 1 or kind != "ball"}  # a box, in one
    name = str(random.choice(list(bases), p=np.array(list(bases.values())) / sum(bases.values())))
    base = _base(name, dim, random)
    possible = tuple(MAPS) if dim > 1 else OF_ONE
    count = int(random.integers(min(MOST_MAPS, len(possible)) + 1))
    maps = tuple(str(one) for one in random.choice(possible, count, replace=False))
    u, z = _sobol(dim)
    x = torch.from_numpy(base.from_noise(u, z))
    steps: list[Transform] = []
    for one in maps:
        pair = (_standardised(x, np.zeros(dim), np.ones(dim)), MAPS[one](dim, random))
        steps += pair
        x = pair[1](pair[0](x))
    place = ComposedTransform(*steps, _standardised(x, mean, sd))
    label = f"mixture of {len(base.parts)}" if name == "mixture" else name
    return RandomLaw(_truth(base, place, dim), label, maps)


def _truth(base: Base, place: ComposedTransform, dim: int) -> Truth:
    def from_noise(u: np.ndarray, z: np.ndarray) -> np.ndarray:
        phi: np.ndarray = place(torch.from_numpy(base.from_noise(u, z))).numpy()
        return phi

    def log_density(phi: Tensor) -> Tensor:
        x, log_slope = place.inv.call_and_ladj(phi)
        value: Tensor = base.log_prob(x) + log_slope
        return value

    return Truth(dim, log_density, from_noise)


def _sobol(dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Return uniform u (n,) and standard normal z (n, d) of Sobol points, each in the middle of its cell."""
    points = sobol(SOBOL_POINTS, dim + 1, None).numpy() + 0.5 / SOBOL_POINTS
    return points[:, 0], stats.norm.ppf(points[:, 1:])


def _standardised(x: Tensor, mean: np.ndarray, sd: np.ndarray) -> Transform:
    """Return the map that gives points x (n, d) these means and sds."""
    scale = torch.from_numpy(sd) / x.std(0, correction=0)
    return AffineTransform(torch.from_numpy(mean) - scale * x.mean(0), scale, event_dim=1)


def _base(name: str, dim: int, random: Random) -> Base:
    if name.endswith("curve"):
        return _curve(name == "closed curve", dim, random)
    if name != "mixture":
        return Base(np.ones(1), (_part(name, np.zeros(dim), 1.0, random),))
    count = int(random.integers(2, 7))
    weights = 0.05 + (1 - 0.05 * count) * random.dirichlet(np.full(count, 2.0))
    centres = 1.8 * random.standard_normal((count, dim))
    sizes = random.uniform(0.35, 0.9, count)
    kinds = random.choice(PARTS, count)
    parts = [_part(str(kinds[k]), centres[k], sizes[k], random) for k in range(count)]
    return Base(weights, tuple(parts))


def _part(kind: str, centre: np.ndarray, size: float, random: Random) -> Part:
    """Return a part with random sds around a size, and random correlations."""
    dim = len(centre)
    matrix = np.eye(dim) + np.tril(random.uniform(-0.7, 0.7, (dim, dim)), -1)
    sds = size * np.exp(random.uniform(-0.3, 0.3, dim))
    rows = matrix / np.linalg.norm(matrix, axis=1)[:, None] * sds[:, None]
    frame = Affine(torch.from_numpy(centre), torch.from_numpy(rows))
    return Part(kind, frame, random.uniform(6.0, 12.0))


def _curve(closed: bool, dim: int, random: Random) -> Base:
    """Return Gaussians of one size at 200 points along a trigonometric curve, which are the law itself.

    Closed: x(s) = sum_h a_h cos(2 pi h s) + b_h sin(2 pi h s), h to 3; open: sum_h a_h cos(pi h s), h to 4;
    s evenly spaced, coefficients N(0, 1 / h^2); coordinates of the points have sd one.
    """
    s = (np.arange(CURVE_POINTS) + 0.5) / CURVE_POINTS
    orders = np.arange(1, 4) if closed else np.arange(1, 5)
    angle = (2 if closed else 1) * np.pi * orders * s[:, None]
    waves = np.concatenate([np.cos(angle), np.sin(angle)], 1) if closed else np.cos(angle)
    sds = 1 / np.tile(orders, 2 if closed else 1)
    points = waves @ (sds[:, None] * random.standard_normal((len(sds), dim)))
    points = (points - points.mean(0)) / points.std(0)
    thickness = random.uniform(0.12, 0.35) if dim < 3 else random.uniform(0.2, 0.4)
    factor = thickness * torch.eye(dim, dtype=torch.float64)
    parts = tuple(Part("gaussian", Affine(torch.from_numpy(point), factor)) for point in points)
    return Base(np.full(CURVE_POINTS, 1 / CURVE_POINTS), parts)


def _signed(random: Random, low: float, high: float, *shape: int) -> Tensor:
    """Draw sizes between two bounds, with random signs."""
    sign = random.choice([-1.0, 1.0], shape)
    return torch.from_numpy(sign * random.uniform(low, high, shape))


def _rotation(dim: int, random: Random) -> Transform:
    turn: Transform = RotationTransform(torch.from_numpy(random.standard_normal((dim, dim))))
    return turn


def _sinh_arcsinh(dim: int, random: Random) -> Transform:
    return SinhArcsinh(
        _signed(random, 0.2, 0.8, dim), torch.from_numpy(np.exp(random.uniform(-0.3, 0.3, dim)))
    )


def _spline(dim: int, random: Random) -> Transform:
    """Return monotone rational-quadratic splines of 5 bins on (-3, 3), the identity outside."""
    widths, heights, slopes = (
        torch.from_numpy(0.45 * random.standard_normal((dim, bins))) for bins in (5, 5, 4)
    )
    splines: Transform = MonotonicRQSTransform(widths, heights, slopes, bound=3.0)
    return splines


def _coupling(dim: int, random: Random, step: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Transform:
    """Return y_b = exp(log_scale(x_a)) x_b + shift(x_a), x_a one random coordinate, which stays."""
    mask = torch.arange(dim) == int(random.integers(dim))
    found: Transform = CouplingTransform(
        lambda x: DependentTransform(MonotonicAffineTransform(*step(x)), 1), mask
    )
    return found


def _sine_shear(dim: int, random: Random) -> Transform:
    """Return y_b = x_b + c sin(w x_a + p)."""
    size = _signed(random, 0.6, 1.3, dim - 1)
    frequency, phase = random.uniform(1.0, 2.5), random.uniform(0, 2 * math.pi)
    return _coupling(dim, random, lambda x: (size * (frequency * x + phase).sin(), torch.zeros_like(size)))


def _polynomial_shear(dim: int, random: Random) -> Transform:
    """Return y_b = x_b + c x_a^2 + e x_a^3, the polynomial going on as its tangent where |x_a| > 2."""
    square, cube = _signed(random, 0.3, 0.7, dim - 1), _signed(random, 0.0, 0.15, dim - 1)

    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        near = x.clamp(-LINEAR, LINEAR)
        slope = 2 * square * near + 3 * cube * near.square()
        return square * near.square() + cube * near.pow(3) + slope * (x - near), torch.zeros_like(square)

    return _coupling(dim, random, step)


def _scale(dim: int, random: Random) -> Transform:
    """Return y_b = exp(c tanh(x_a)) x_b."""
    size = _signed(random, 0.5, 1.0, dim - 1)
    return _coupling(dim, random, lambda x: (torch.zeros_like(size), size * x.tanh()))


MAPS: dict[str, Callable[[int, Random], Transform]] = {
    "sinh-arcsinh": _sinh_arcsinh,
    "spline": _spline,
    "rotation": _rotation,
    "sine shear": _sine_shear,
    "polynomial shear": _polynomial_shear,
    "scale": _scale,
}
