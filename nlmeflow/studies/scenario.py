"""A population whose law is known, and data simulated from it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from nlmeflow.data import LongitudinalData
from nlmeflow.estimation.laplace import linearise
from nlmeflow.fitting.model import Model
from nlmeflow.laws.law import Law
from nlmeflow.laws.mixture import MixtureLaw
from nlmeflow.residuals import Additive
from nlmeflow.running import estimating
from nlmeflow.seeds import Seed, generator, integer

FromNoise = Callable[[np.ndarray, np.ndarray], np.ndarray]
OTHERS = 1000  # what the last number of a key is raised by for other individuals
RELIABILITY_DRAWS = 4000


@dataclass(frozen=True, eq=False)
class Truth(Law):
    """A population law that is known: phi = map(u, z), u uniform (n,), z standard normal (n, d).

    groups : the Gaussian mixture that it is, or None. made : a function and its arguments that give this law,
        as which it is pickled.
    """

    d: int
    log_density: Callable[[Tensor], Tensor]
    from_noise: FromNoise
    free: int = 0
    groups: MixtureLaw | None = None
    made: tuple[Callable[..., "Truth"], tuple[Any, ...]] | None = None

    def __reduce__(self) -> tuple[Callable[..., "Truth"], tuple[Any, ...]]:
        return self.made or (Truth, (self.d, self.log_density, self.from_noise, self.free, self.groups))

    @property
    def dim(self) -> int:
        return self.d

    @property
    def n_parameters(self) -> int:
        return self.free

    def log_prob(self, phi: Tensor) -> Tensor:
        return self.log_density(self._rows(phi)).reshape(phi.shape[:-1])

    def sample(self, n: int, seed: Seed) -> Tensor:
        return self.draw(n, integer(generator(seed)))

    def draw(self, n: int, *key: int) -> Tensor:
        """Draw (n, d) from the stream of a key; a larger n contains the smaller."""
        u = np.random.default_rng([*key, 0]).random(n)
        z = np.random.default_rng([*key, 1]).standard_normal((n, self.dim))
        return torch.from_numpy(self.from_noise(u, z))


@dataclass(frozen=True)
class Scenario:
    """Simulated data and the truth behind them.

    times : at which every individual is measured. trait : the parameter by which individuals would be
    chosen. key : of the random streams of individuals and errors.
    """

    name: str
    design: str
    seed: int
    data: LongitudinalData
    model: Model
    phi: Tensor
    law: Truth
    sigma: float
    fixed: dict[str, float]
    times: np.ndarray
    trait: str
    key: tuple[int, ...]

    @classmethod
    def simulate(
        cls,
        law: Truth,
        model: Model,
        times: np.ndarray,
        sigma: float,
        fixed: dict[str, float],
        n: int,
        key: tuple[int, ...],
        **about: Any,
    ) -> Self:
        """Draw n individuals, then their errors; a larger n contains the smaller."""
        phi = law.draw(n, *key)
        time = torch.from_numpy(times).expand(n, -1)
        mean = model.mean_response(phi, time, **fixed)
        noise = sigma * torch.from_numpy(np.random.default_rng([*key, 2]).standard_normal((n, len(times))))
        response = mean + noise if isinstance(model.residual, Additive) else mean * noise.exp()
        data = LongitudinalData.regular(time, response)
        return cls(
            data=data, model=model, phi=phi, law=law, sigma=sigma, fixed=fixed, times=times, key=key, **about
        )

    def others(self, n: int) -> "Scenario":
        """Return n other individuals of the same population, seen through the same design."""
        key = (*self.key[:-1], self.key[-1] + OTHERS)
        about = {"name": self.name, "design": self.design, "seed": self.seed, "trait": self.trait}
        return Scenario.simulate(self.law, self.model, self.times, self.sigma, self.fixed, n, key, **about)

    @property
    def beta(self) -> Tensor:
        """The true fixed effects on the unconstrained scale, (p,)."""
        values = [
            self.model.curve[name].scale.unconstrained(torch.tensor(value, dtype=torch.float64))
            for name, value in self.fixed.items()
        ]
        return torch.stack(values) if values else torch.zeros(0, dtype=torch.float64)

    @cached_property
    def reliability(self) -> Tensor:
        """The share of each parameter's variance that an individual's data resolve, (d,), from 0 to 1.

        1 - E[((J' J / sigma^2 + Omega^-1)^-1)_kk] / Omega_kk, by 4,000 draws of the law: J the derivatives of
        the curve in phi at the individual (of its logarithm under log-additive errors), Omega the covariance
        of the law. Exact for a Gaussian law and a linear curve, fixed effects and sigma known.
        """
        n = RELIABILITY_DRAWS
        phi = self.law.draw(n, *self.key)
        time = torch.from_numpy(self.times).expand(n, -1)
        problem = self.model.problem(LongitudinalData.regular(time, torch.ones_like(time)))
        with estimating():
            sigma = torch.tensor([self.sigma], dtype=torch.float64)
            slope = linearise(problem, phi, self.beta, sigma).slope[..., : problem.dim]
            covariance = phi.mT.cov().reshape(problem.dim, problem.dim)
            left = torch.linalg.inv(slope.mT @ slope + torch.linalg.inv(covariance))
            resolved: Tensor = 1 - (left.diagonal(dim1=-2, dim2=-1) / covariance.diagonal()).mean(0)
            return resolved
