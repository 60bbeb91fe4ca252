"""Anderson acceleration of a fixed-point iteration x -> G(x) (Walker and Ni, SIAM J. Numer. Anal. 2011).

EM is slow where the data say little: near the boundary of sparse data it moves a law by a hundredth of
the way. Steps are compared, and extrapolated, in coordinates of order one: log weights, means and
lower factors (logarithms on the diagonal) in units of the first law seen.
"""

from dataclasses import replace

import torch
from torch import Tensor

from nlmeflow.laws.gaussian import GaussianLaw
from nlmeflow.laws.law import Law
from nlmeflow.laws.mixture import MixtureLaw


class Anderson:
    """Keeps the last few steps and extrapolates to where their differences vanish.

    The caller judges each proposal by the log-likelihood and calls `forget` when it fell. Laws other
    than Gaussians and mixtures are left alone.
    """

    def __init__(self, depth: int = 5) -> None:
        self.depth = depth
        self._points: list[Tensor] = []
        self._images: list[Tensor] = []
        self._unit: tuple[Tensor, Tensor] | None = None

    def forget(self) -> None:
        """Drop the history."""
        self._points.clear()
        self._images.clear()

    def law(self, before: Law, after: Law, *others: tuple[Tensor, Tensor]) -> tuple[Law, list[Tensor]]:
        """Return the law, and other vectors, extrapolated from (before, after) pairs."""
        if not isinstance(before, GaussianLaw | MixtureLaw) or not isinstance(after, type(before)):
            return after, [image for _, image in others]
        point = torch.cat([self._pack(before), *[x for x, _ in others]])
        image = torch.cat([self._pack(after), *[x for _, x in others]])
        moved = self.step(point, image)
        sizes = [len(x) for x, _ in others]
        head, *rest = moved.split([len(moved) - sum(sizes), *sizes])
        return self._unpack(head, after), rest

    def step(self, point: Tensor, image: Tensor) -> Tensor:
        """Return the next point, extrapolated from (point, image) pairs of vectors."""
        self._points = [*self._points[-self.depth :], point]
        self._images = [*self._images[-self.depth :], image]
        if len(self._points) < 2:
            return image
        images = torch.stack(self._images)
        residuals = images - torch.stack(self._points)
        differences = residuals.diff(dim=0)
        if not bool(torch.isfinite(differences).all()):
            self.forget()
            return image
        gamma = torch.linalg.lstsq(differences.mT, residuals[-1], driver="gelsd").solution
        return images[-1] - gamma @ images.diff(dim=0)

    def _pack(self, law: GaussianLaw | MixtureLaw) -> Tensor:
        weights, means, factors = _parts(law)
        if self._unit is None:
            self._unit = (weights @ means, factors[int(weights.argmax())])
        place, unit = self._unit
        inverse = torch.linalg.inv(unit)
        white = inverse @ factors
        log_scale = white.diagonal(dim1=-2, dim2=-1).log()
        below = torch.tril_indices(law.dim, law.dim, -1)
        parts = [weights.log(), (means - place) @ inverse.mT, log_scale, white[:, below[0], below[1]]]
        return torch.cat([part.flatten() for part in parts])

    def _unpack(self, vector: Tensor, like: GaussianLaw | MixtureLaw) -> Law:
        _weights, means, factors = _parts(like)
        assert self._unit is not None
        place, unit = self._unit
        k, dim = means.shape
        log_weights, mean, log_scale, lower = vector.split([k, k * dim, k * dim, k * dim * (dim - 1) // 2])
        white = torch.diag_embed(log_scale.clamp(-30, 30).reshape(k, dim).exp())
        below = torch.tril_indices(dim, dim, -1)
        white[:, below[0], below[1]] = lower.reshape(k, -1)
        means, factors = place + mean.reshape(k, dim) @ unit.mT, unit @ white
        if isinstance(like, GaussianLaw):
            return replace(like, mean=means[0], factor=factors[0])
        return replace(like, weights=log_weights.softmax(0), means=means, factors=factors)


def _parts(law: GaussianLaw | MixtureLaw) -> tuple[Tensor, Tensor, Tensor]:
    if isinstance(law, GaussianLaw):
        return law.mean.new_ones(1), law.mean[None], law.factor[None]
    return law.weights.clamp_min(1e-12), law.means, law.factors
