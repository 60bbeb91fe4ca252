"""Anderson acceleration of a fixed-point iteration x -> G(x) (Walker and Ni, SIAM J. Numer. Anal. 2011)."""

import torch
from torch import Tensor

from nlmeflow.laws.gaussian import GaussianLaw
from nlmeflow.laws.law import Law


class Anderson:
    """Keeps the last few steps and extrapolates to where their differences vanish.

    The caller judges each proposal by the log-likelihood and calls `forget` when it fell.
    """

    def __init__(self, depth: int = 5) -> None:
        self.depth = depth
        self._points: list[Tensor] = []
        self._images: list[Tensor] = []
        self._reference: GaussianLaw | None = None

    def reference(self, law: Law) -> GaussianLaw:
        """Return the first law seen: the units in which steps are compared."""
        if self._reference is None:
            assert isinstance(law, GaussianLaw)
            self._reference = law
        return self._reference

    def forget(self) -> None:
        """Drop the history."""
        self._points.clear()
        self._images.clear()

    def next(self, point: Tensor, image: Tensor) -> Tensor:
        """Return the extrapolated point after x = `point` and G(x) = `image`."""
        self._points = [*self._points[-self.depth :], point]
        self._images = [*self._images[-self.depth :], image]
        if len(self._points) < 2:
            return image
        images = torch.stack(self._images)
        residuals = images - torch.stack(self._points)
        differences = residuals.diff(dim=0)
        gamma = torch.linalg.lstsq(differences.mT, residuals[-1], driver="gelsd").solution
        return images[-1] - gamma @ images.diff(dim=0)
