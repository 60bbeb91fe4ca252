"""Modes of a law and the groups around them, on a grid (persistence of superlevel sets)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nlmeflow.arguments import checked
from nlmeflow.errors import ModelError, number
from nlmeflow.laws.gaussian import GaussianLaw
from nlmeflow.laws.law import Law
from nlmeflow.running import estimating

POINTS = {1: 400, 2: 110, 3: 32}  # of the grid along each axis, by dimension
REACH = 4.5  # standard deviations to either side
PROMINENCE, MASS = 0.05, 0.03  # of a mode that counts


@dataclass(frozen=True)
class Mode:
    """A mode: place (d,), density over the highest one's, prominence, mass of its basin.

    The basins of all modes that count hold the whole population.
    """

    place: Tensor
    height: float
    prominence: float
    mass: float


@dataclass(frozen=True, eq=False)
class Basins:
    """The modes of a law, the highest first, and to which of them each cell of a grid belongs.

    label (points, ..., points): position of the cell's mode, of the nearest where the density is next to
    nothing or its own peak does not count; the grid has coordinates in which `frame` is standard normal.
    """

    modes: tuple[Mode, ...]
    frame: GaussianLaw
    label: Tensor

    def of(self, phi: Tensor) -> Tensor:
        """Return the position of the mode to which each of phi (n, d) belongs, (n,)."""
        last = len(self.label) - 1
        place = (self.frame.normal.standardise(phi) / REACH + 1) * (last / 2)
        return self.label[tuple(place.round().clamp(0, last).long().mT)]

    def shares(self, phi: Tensor) -> Tensor:
        """Return the share of phi (n, d) that belongs to each mode, (K,)."""
        return torch.bincount(self.of(phi) + 1, minlength=len(self.modes) + 1)[1:].to(phi.dtype) / len(phi)


@checked
def modes(
    law: Law, frame: GaussianLaw | None = None, prominence: float = PROMINENCE, mass: float = MASS
) -> list[Mode]:
    """Return the modes of a law of one to three dimensions, the highest first.

    A mode stands at least `prominence` (as a share of the highest mode's density) above the pass
    that leads to a higher one, and around it at least `mass` of the population lies where the density is
    above that pass; where no mode does both, the one with the largest mass there is returned. Found on a grid
    in the coordinates in which `frame` (the law's own mean and covariance when absent) is standard normal,
    by merging superlevel sets from the top (persistence).

    Raises
    ------
    ModelError : the law has more than three dimensions, or no density; prominence or mass not between 0
        and 1.

    """
    return list(basins(law, frame, prominence, mass).modes)


@checked
def basins(
    law: Law, frame: GaussianLaw | None = None, prominence: float = PROMINENCE, mass: float = MASS
) -> Basins:
    """Return the modes, as `modes` does, with the parts of space where the density rises towards each.

    Raises
    ------
    ModelError : the law has more than three dimensions, or no density; prominence or mass not between 0
        and 1.

    """
    if law.dim > 3:
        raise ModelError(f"modes() looks at one to three dimensions; the law has {law.dim}.")
    number("prominence", prominence, 0, 1)
    number("mass", mass, 0, 1)
    frame = GaussianLaw.like(law) if frame is None else frame
    points = POINTS[law.dim]
    axis = torch.linspace(-REACH, REACH, points, dtype=torch.float64)
    mesh = torch.cartesian_prod(*[axis] * law.dim).reshape(-1, law.dim)
    phi = frame.normal(mesh)
    with estimating():
        density = law.log_prob(phi).exp().numpy()
    if not (density > 0).any():
        raise ModelError("The law has no density, or none that is a number, around its mean.")
    grid = _Persistence(density, (points,) * law.dim, prominence)
    total, top = density.sum(), density.max()
    lift = {peak: float(found[0] / top) for peak, found in grid.found.items()}
    held = {peak: float(found[1] / total) for peak, found in grid.found.items()}
    kept = [peak for peak in held if lift[peak] >= prominence and held[peak] >= mass]
    peaks = sorted(kept or [max(held, key=lambda peak: held[peak])], key=lambda peak: -density[peak])
    label = torch.from_numpy(grid.labels(peaks))
    beyond = label < 0  # cells of next to no density, or of a peak that does not count: the nearest mode
    label[beyond] = torch.cdist(mesh[beyond], mesh[peaks]).argmin(1)
    masses = torch.bincount(label, torch.from_numpy(density), len(peaks)) / total
    every = (
        Mode(phi[peak], float(density[peak] / top), lift[peak], float(share))
        for peak, share in zip(peaks, masses, strict=True)
    )
    return Basins(tuple(every), frame, label.reshape((points,) * law.dim))


class _Persistence:
    """Basins of a density on a grid: by peak the prominence and the mass above the pass, and where each ends.

    Cells join from the highest down; a cell belongs to the basin of its highest neighbour. Where two basins
    meet, the lower one ends: its prominence is its peak's height above that pass, its mass what it holds so
    far, and one too low to count leaves that to its neighbour.
    """

    def __init__(self, density: np.ndarray, shape: tuple[int, ...], prominence: float) -> None:
        self.size = len(density)
        self.found: dict[int, tuple[float, float]] = {}
        self.own: dict[int, int] = {}  # peak of each cell
        self.into: dict[int, int] = {}  # peak of the basin in which a basin ended
        order = np.argsort(-density)
        order = order[density[order] > 1e-6 * density[order[0]]]
        strides = np.array([int(np.prod(shape[k + 1 :])) for k in range(len(shape))])
        least = prominence * density[order[0]]
        held: dict[int, float] = {}
        for cell in order.tolist():
            place = np.unravel_index(cell, shape)
            near = []
            for k, stride in enumerate(strides.tolist()):
                near += [cell - stride] if place[k] > 0 else []
                near += [cell + stride] if place[k] < shape[k] - 1 else []
            near = sorted((c for c in near if c in self.own), key=lambda c: -density[c])
            self.own[cell] = self.own[near[0]] if near else cell
            roots = sorted({self._last(self.own[c]) for c in near}, key=lambda c: -density[c])
            owner = roots[0] if near else cell
            held[owner] = held.get(owner, 0.0) + density[cell]
            for lower in roots[1:]:
                lift = density[lower] - density[cell]
                if lift >= least:
                    self.found[lower] = float(lift), held[lower]
                else:
                    held[owner] += held[lower]
                self.into[lower] = owner
        for root in held:  # those that joined no other: the highest, and islands in next to no density
            if root not in self.into:
                self.found[root] = float(density[root]), float(held[root])

    def _last(self, peak: int) -> int:
        while peak in self.into:
            peak = self.into[peak]
        return peak

    def labels(self, peaks: Sequence[int]) -> np.ndarray:
        """Return the position among some peaks of that to which each cell belongs, -1 where none does."""
        position = {peak: k for k, peak in enumerate(peaks)}
        label = np.full(self.size, -1)
        for cell, peak in self.own.items():
            while peak not in position and peak in self.into:
                peak = self.into[peak]
            label[cell] = position.get(peak, -1)  # the highest peak may hold too little to count
        return label
