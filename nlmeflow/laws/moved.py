"""A law of any kind moved by an affine map: another location and scale, the shape as it is."""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from nlmeflow.laws.affine import Affine
from nlmeflow.laws.law import Components, Law
from nlmeflow.seeds import Seed


@dataclass(frozen=True, eq=False)
class MovedLaw(Law):
    """The law of phi = after(before^-1(x)) when x follows `law`.

    p(phi) = p_x(x) |before| / |after|,   x = before(after^-1(phi)).
    """

    title: ClassVar[str] = "moved law"
    law: Law
    before: Affine
    after: Affine

    @property
    def dim(self) -> int:
        return self.law.dim

    @property
    def n_parameters(self) -> int:
        return self.law.n_parameters

    @property
    def normal(self) -> Affine | None:
        """Of a moved Gaussian the map that makes it of standard normal noise."""
        normal = self.law.normal
        return None if normal is None else Affine(self._moved(normal.mean), self._turn @ normal.factor)

    @property
    def averaged(self) -> tuple[tuple[Law, ...], Tensor] | None:
        """Of a moved average its laws, each moved, and their weights."""
        inside = self.law.averaged
        return None if inside is None else (tuple(replace(self, law=one) for one in inside[0]), inside[1])

    @property
    def components(self) -> Components | None:
        """Of a moved Gaussian mixture the moved components."""
        if (inside := self.law.components) is None:
            return None
        weights, means, factors = inside
        return weights, self._moved(means), self._turn @ factors

    @property
    def _turn(self) -> Tensor:
        return self.after.factor @ self.before.inverse

    def _moved(self, phi: Tensor) -> Tensor:
        return self.after(self.before.standardise(phi))

    def log_prob(self, phi: Tensor) -> Tensor:
        place = self.before(self.after.standardise(phi))
        return self.law.log_prob(place) + self.before.log_volume - self.after.log_volume

    def sample(self, n: int, seed: Seed) -> Tensor:
        return self._moved(self.law.sample(n, seed))

    def mean_and_covariance(self) -> tuple[Tensor, Tensor]:
        """Return the moments of the law, moved."""
        mean, covariance = self.law.two_moments
        return self._moved(mean), self._turn @ covariance @ self._turn.mT
