"""Marginal densities of a law of any kind: exact where there is a formula, else by quadrature or draws."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from nlmeflow.arguments import checked
from nlmeflow.errors import ModelError, number, whole
from nlmeflow.laws.affine import normal_log_prob, safe_cholesky
from nlmeflow.laws.gaussian import GaussianLaw
from nlmeflow.laws.law import Components, Law
from nlmeflow.running import estimating

CLOSELY = 0.2  # share of their standard deviation that is left when other coordinates are known
SLACK = 0.05  # mass by which a density on a grid may err


@checked
def marginal_density(law: Law, axes: Sequence[int], grids: Sequence[np.ndarray]) -> np.ndarray:
    """Return the density of some coordinates of phi on a grid, others integrated out.

    Exact for Gaussians, mixtures and kernels; of an average, the average of its laws' densities. Otherwise by
    Gauss-Legendre quadrature where at most two coordinates are left out, and, where more are or what it found
    cannot be a density, by a histogram of 200,000 draws smoothed over one cell.

    Raises
    ------
    ModelError : not one rising grid for each of some coordinates of the law; a single point where a
        histogram is needed.

    """
    _check_axes(law, axes)
    if len(grids) != len(axes):
        raise ModelError(f"A grid is needed for each of {len(axes)} coordinates, got {len(grids)}.")
    if not all(np.ndim(grid) == 1 and len(grid) and (np.diff(grid) > 0).all() for grid in grids):
        raise ModelError("A grid has one axis, and each of its points is above the one before it.")
    with estimating():
        return _density(law, list(axes), grids)


def _density(law: Law, axes: list[int], grids: Sequence[np.ndarray]) -> np.ndarray:
    if (averaged := law.averaged) is not None:
        laws, weights = averaged
        total = np.zeros([len(grid) for grid in grids])
        for one, weight in zip(laws, weights.tolist(), strict=True):
            total += weight * _density(one, axes, grids) if weight else 0.0
        return total
    mesh = torch.from_numpy(np.stack(np.meshgrid(*grids, indexing="ij"), -1))
    if (components := law.components) is not None:
        return _of_components(components, axes, mesh).numpy()
    rest = [k for k in range(law.dim) if k not in axes]
    if len(rest) > 2:
        return _histogram(law, axes, grids)
    density = _by_quadrature(law, axes, rest, mesh).numpy()
    return density if _is_possible(density, law, axes, grids) else _histogram(law, axes, grids)


def _of_components(components: Components, axes: list[int], mesh: Tensor) -> Tensor:
    """Return the marginal density of a Gaussian mixture at points (..., number of axes)."""
    weights, means, factors = components
    rows = factors[:, axes]
    points = mesh.reshape(-1, len(axes)).expand(len(weights), -1, -1)
    each = normal_log_prob(points, means[:, axes], safe_cholesky(rows @ rows.mT))
    return (weights.log()[:, None] + each).logsumexp(0).exp().reshape(mesh.shape[:-1])


def _by_quadrature(law: Law, axes: list[int], rest: list[int], mesh: Tensor) -> Tensor:
    """Return the marginal density at points (..., number of axes), the other coordinates integrated out.

    Over 4.5 standard deviations; where the others follow these closely, over 8 around what a Gaussian of the
    same moments expects of them.
    """
    if not rest:
        return law.log_prob(mesh).exp()
    node, weight = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss({1: 64, 2: 40}[len(rest)]))
    nodes = torch.cartesian_prod(*[node] * len(rest)).reshape(-1, len(rest))
    weights = torch.cartesian_prod(*[weight] * len(rest)).reshape(-1, len(rest)).prod(1)
    spread = GaussianLaw.like(law)
    covariance, mean, sd = spread.covariance, spread.mean, spread.sd[rest]
    slope = torch.linalg.solve(covariance[axes][:, axes], covariance[axes][:, rest])
    left = (covariance[rest][:, rest] - covariance[rest][:, axes] @ slope).diagonal().clamp_min(0.0).sqrt()
    centre, reach = mean[rest].expand(*mesh.shape[:-1], -1), 4.5 * sd
    if bool((left < CLOSELY * sd).any()):
        centre, reach = centre + (mesh - mean[axes]) @ slope, 8 * left
    phi = torch.zeros(*mesh.shape[:-1], len(nodes), law.dim, dtype=torch.float64)
    phi[..., rest] = centre[..., None, :] + reach * nodes
    phi[..., axes] = mesh[..., None, :]
    return law.log_prob(phi).exp() @ (weights * reach.prod())


def _is_possible(density: np.ndarray, law: Law, axes: list[int], grids: Sequence[np.ndarray]) -> bool:
    """Return whether a density has no more mass on a grid than one, and what Chebyshev's inequality asks."""
    if min(map(len, grids)) < 2:
        return True
    mass, spread = density, GaussianLaw.like(law)
    for grid in reversed(grids):
        mass = np.trapezoid(mass, grid)
    least = 1.0
    for k, grid in zip(axes, grids, strict=True):
        mean, sd = float(spread.mean[k]), float(spread.sd[k])
        within = min(mean - grid[0], grid[-1] - mean) / sd
        least -= 1 / max(within, 1.0) ** 2
    return bool(least - SLACK < mass < 1 + SLACK)


def _histogram(law: Law, axes: list[int], grids: Sequence[np.ndarray]) -> np.ndarray:
    if min(map(len, grids)) < 2:
        raise ModelError("The density is counted in cells between points of the grid; give at least two.")
    drawn = law.sample(200_000, 0)[:, axes].numpy()
    middles = [(grid[1:] + grid[:-1]) / 2 for grid in grids]
    edges = [
        np.concatenate([[2 * grid[0] - middle[0]], middle, [2 * grid[-1] - middle[-1]]])
        for grid, middle in zip(grids, middles, strict=True)
    ]
    counts, _ = np.histogramdd(drawn, bins=edges)
    volume = np.ones(())
    for edge in edges:
        volume = np.multiply.outer(volume, np.diff(edge))
    density: np.ndarray = gaussian_filter(counts, 1.0) / (len(drawn) * volume)
    return density


@checked
def span(law: Law, axis: int, reach: float = 3.5, points: int = 120) -> np.ndarray:
    """Return a grid of one coordinate: the population's mean, `reach` standard deviations around."""
    _check_axes(law, [axis])
    number("reach", reach, 0)
    gaussian = GaussianLaw.like(law)
    mean, sd = float(gaussian.mean[axis]), float(gaussian.sd[axis])
    return np.linspace(mean - reach * sd, mean + reach * sd, whole("points", points, 2))


def _check_axes(law: Law, axes: Sequence[int]) -> None:
    """Raise ModelError unless the axes are numbers of different coordinates of the law."""
    for axis in axes:
        whole("The number of a coordinate", axis, 0, law.dim - 1)
    if len(set(axes)) < len(axes):
        raise ModelError(f"Coordinates are different from each other, got {tuple(axes)}.")
