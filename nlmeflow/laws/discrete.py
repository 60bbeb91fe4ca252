"""Discrete laws: the population as a few points with weights, assumed to have no shape at all.

The nonparametric maximum-likelihood estimate of a mixing law is discrete, with at most N points
(Lindsay, Annals of Statistics 1983). NPML: Mallet, Biometrika 1986; NPEM: Schumitzky, Applied
Mathematics and Computation 1991; NPAG: Leary, Jelliffe, Schumitzky, Van Guilder 2001, Yamada,
Neely, Bartroff, Bayard, Burke, van Guilder, Jelliffe, Kryshchenko, Leary, Tatarinova, Schumitzky
2021; nonparametric on EBEs: Savic, Kjellsson, Karlsson, European Journal of Pharmaceutical Sciences
2009.
"""

import math
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from nlmeflow.errors import ModelError, check_whole
from nlmeflow.laws.gaussian import GaussianLaw
from nlmeflow.laws.mixture import MixtureLaw
from nlmeflow.seeds import Seed, generator


def _check_tolerance(tolerance: float | None) -> None:
    if tolerance is not None and not 0 < tolerance < math.inf:
        raise ModelError(f"tolerance is positive, in nats; got {tolerance!r}.")


@dataclass(frozen=True)
class NPML:
    """Specification: nonparametric maximum likelihood to a certified optimum.

    Points are added where the gradient function D(phi; G) is highest, weights are solved exactly,
    points without weight are dropped, until sup D is under `tolerance` (nats of log-likelihood that
    any law could still add).
    """

    tolerance: float = 0.01

    def __post_init__(self) -> None:
        _check_tolerance(self.tolerance)

    @property
    def name(self) -> str:
        """The key of this law in tables."""
        return "npml"


@dataclass(frozen=True)
class NPEM:
    """Specification: EM of the weights of a fixed grid (Sobol points of a box).

    grid : number of points; iterations : of EM, at most. The box is that of NPAG.
    tolerance : the grid gains points where D(phi; G) is highest, and EM goes on, until sup D is under
        it; None for the grid alone, as published.
    """

    grid: int = 4096
    iterations: int = 2000
    tolerance: float | None = 0.01

    def __post_init__(self) -> None:
        _check_tolerance(self.tolerance)
        check_whole("grid", self.grid, 1)
        check_whole("iterations", self.iterations, 1)

    @property
    def name(self) -> str:
        """The key of this law in tables."""
        return "npem"


@dataclass(frozen=True)
class NPAG:
    """Specification: the adaptive grid.

    From `grid` Sobol points in a box: solve the weights, drop points below a thousandth of the
    highest, let each of the others spawn two neighbours per coordinate at +-eps of the box's width;
    eps is halved from .2 to 1e-4 whenever the likelihood stands still.

    tolerance : points where D(phi; G) is highest are added, and the grid adapts again, until sup D is
        under it; None runs once, as published, and may end in a local optimum.
    """

    grid: int = 1024
    tolerance: float | None = 0.01

    def __post_init__(self) -> None:
        _check_tolerance(self.tolerance)
        check_whole("grid", self.grid, 1)

    @property
    def name(self) -> str:
        """The key of this law in tables."""
        return "npag"


@dataclass(frozen=True)
class ParticleNPML:
    """Specification: nonparametric maximum likelihood by particles whose weights and places move in turn.

    Wasserstein-Fisher-Rao gradient flow (Yan, Wang, Rigollet, Annals of Statistics 2024): weights by
    EM steps, places along the gradient of D, scaled for each by the curvature of its individuals.

    tolerance : particles are added where D(phi; G) is highest, and all move on, until sup D is under it;
        None runs once.
    """

    particles: int = 400
    steps: int = 200
    tolerance: float | None = 0.01

    def __post_init__(self) -> None:
        _check_tolerance(self.tolerance)
        check_whole("particles", self.particles, 2)
        check_whole("steps", self.steps, 1)

    @property
    def name(self) -> str:
        """The key of this law in tables."""
        return "particles"


@dataclass(frozen=True)
class NPonEBE:
    """Specification: weights on the empirical Bayes estimates (conditional modes) of the Gaussian fit.

    extended : points that are drawn besides from the Gaussian fit made 1.5 times wider, for each EBE;
        0 takes the EBEs alone, which are shrunk.
    """

    extended: int = 3

    def __post_init__(self) -> None:
        check_whole("extended", self.extended, 0)

    @property
    def name(self) -> str:
        """The key of this law in tables."""
        return "np on ebes"


Discrete = NPML | NPEM | NPAG | ParticleNPML | NPonEBE


@dataclass(frozen=True)
class DiscreteLaw:
    """sum_k w_k delta(phi_k): support (K, d), weights (K,). It has no density."""

    support: Tensor
    weights: Tensor

    @property
    def dim(self) -> int:
        return self.support.shape[-1]

    @property
    def n_parameters(self) -> int:
        """K (d + 1) - 1: places and weights."""
        return len(self.weights) * (self.dim + 1) - 1

    def log_prob(self, phi: Tensor) -> Tensor:
        """Raise ModelError: points have no density."""
        raise ModelError(
            "A discrete law has no density. Look at law.support and law.weights, or take "
            "law.smoothed(), a mixture of Gaussian kernels at its points."
        )

    def sample(self, n: int, seed: Seed) -> Tensor:
        """Draw (n, d)."""
        index = torch.multinomial(self.weights, n, replacement=True, generator=generator(seed))
        return self.support[index]

    def update(self, phi: Tensor, weights: Tensor) -> "DiscreteLaw":
        """Return one EM step of the weights; phi (N, K, d) are the support points for each individual."""
        return DiscreteLaw(self.support, weights.sum(0) / weights.sum())

    @property
    def moments(self) -> GaussianLaw:
        """The Gaussian law of the same mean and covariance."""
        return GaussianLaw.of(self.support, self.weights)

    def frame(self, names: tuple[str, ...]) -> pd.DataFrame:
        """Return points and weights, the heaviest first; names of the coordinates."""
        order = self.weights.argsort(descending=True)
        columns = {name: self.support[order, k].numpy() for k, name in enumerate(names)}
        return pd.DataFrame({**columns, "weight": self.weights[order].numpy()})

    def smoothed(self, bandwidth: float | None = None) -> MixtureLaw:
        """Return Gaussian kernels at the points, with `bandwidth` times the law's own covariance factor.

        None: Scott's rule for as many points as the weights are worth, (1 / sum w^2)^(-1/(d+4)). For
        pictures and distances only: it is wider than the law by construction.
        """
        if bandwidth is None:
            bandwidth = float(self.weights.square().sum()) ** (1 / (self.dim + 4))
        factor = bandwidth * self.moments.factor
        factors = factor.expand(len(self.weights), -1, -1)
        return MixtureLaw(self.weights, self.support, factors, 1e-3 * factor)
