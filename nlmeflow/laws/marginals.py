"""Marginal densities of a law of any kind, by quadrature over the other coordinates."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from nlmeflow.arguments import checked
from nlmeflow.errors import ModelError, number, whole
from nlmeflow.laws.gaussian import GaussianLaw
from nlmeflow.laws.law import Law
from nlmeflow.running import estimating


@checked
def marginal_density(law: Law, axes: Sequence[int], grids: Sequence[np.ndarray]) -> np.ndarray:
    """Return the density of some coordinates of phi on a grid, others integrated out.

    Gauss-Legendre quadrature over 4.5 standard deviations when at most two coordinates are left
    out, a histogram of 200,000 draws smoothed over one cell when more are.

    Raises
    ------
    ModelError : not one grid for each of some coordinates of the law.

    """
    _check_axes(law, axes)
    if len(grids) != len(axes):
        raise ModelError(f"A grid is needed for each of {len(axes)} coordinates, got {len(grids)}.")
    rest = [k for k in range(law.dim) if k not in axes]
    if len(rest) > 2:
        return _histogram(law, axes, grids)
    nodes, weights = _rule(law, rest)
    mesh = torch.from_numpy(np.stack(np.meshgrid(*grids, indexing="ij"), -1))
    phi = torch.zeros(*mesh.shape[:-1], len(nodes), law.dim, dtype=torch.float64)
    phi[..., rest] = nodes
    phi[..., list(axes)] = mesh[..., None, :]
    with estimating():
        return (law.log_prob(phi).exp() @ weights).numpy()


def _rule(law: Law, rest: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return quadrature nodes (n, number left out) and weights (n,) of the coordinates left out."""
    if not rest:
        return torch.zeros(1, 0, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    node, weight = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss({1: 64, 2: 40}[len(rest)]))
    spread = GaussianLaw.like(law)
    reach = 4.5 * spread.sd[rest]
    nodes = torch.cartesian_prod(*[node] * len(rest)).reshape(-1, len(rest))
    weights = torch.cartesian_prod(*[weight] * len(rest)).reshape(-1, len(rest)).prod(1)
    return spread.mean[rest] + reach * nodes, weights * reach.prod()


def _histogram(law: Law, axes: Sequence[int], grids: Sequence[np.ndarray]) -> np.ndarray:
    with estimating():
        drawn = law.sample(200_000, 0)[:, list(axes)].numpy()
    steps = [grid[1] - grid[0] for grid in grids]
    edges = [np.append(g - s / 2, g[-1] + s / 2) for g, s in zip(grids, steps, strict=True)]
    counts, _ = np.histogramdd(drawn, bins=edges)
    density: np.ndarray = gaussian_filter(counts, 1.0) / (len(drawn) * np.prod(steps))
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
