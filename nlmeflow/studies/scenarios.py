"""The fixed benchmark: ten populations whose law is known, seen through designs of repeated measures.

    scenario = nf.scenarios.load("L2", design="R", n=200, seed=0)
    scenario.data, scenario.model, scenario.phi, scenario.law

L1 to L8 are logistic senescence, phi = (tau, log s), A = 1 a fixed effect (random in L8); P1 and P2
are pharmacokinetics with log-additive errors. Designs: "R" rich, "S" sparse, "M" in between.
`nf.scenarios.random` draws populations that nobody chose.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy import stats
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from nlmeflow import curves
from nlmeflow.arguments import checked
from nlmeflow.errors import ModelError, whole
from nlmeflow.fitting.model import Model
from nlmeflow.laws.gaussian import GaussianLaw
from nlmeflow.laws.mixture import MixtureLaw
from nlmeflow.residuals import Additive, LogAdditive
from nlmeflow.seeds import check_seed
from nlmeflow.studies.random_populations import FINAL as FINAL
from nlmeflow.studies.random_populations import TUNING as TUNING
from nlmeflow.studies.random_populations import VALIDATION as VALIDATION
from nlmeflow.studies.random_populations import random as random
from nlmeflow.studies.scenario import Scenario, Truth


def _mixture(*groups: tuple[float, list[float], list[float], Any]) -> Truth:
    """Return a Gaussian mixture from (weight, means, sds, correlations) of each group."""
    weights = torch.tensor([group[0] for group in groups], dtype=torch.float64)
    means = torch.tensor([group[1] for group in groups], dtype=torch.float64)
    factors = torch.stack([_factor(sds, correlation) for _, _, sds, correlation in groups])
    law = MixtureLaw(weights, means, factors, 0.01 * factors[0])
    cumulated = np.cumsum(weights.numpy())[:-1]

    def from_noise(u: np.ndarray, z: np.ndarray) -> np.ndarray:
        group = np.searchsorted(cumulated, u)
        phi: np.ndarray = means.numpy()[group] + np.einsum("nab,nb->na", factors.numpy()[group], z)
        return phi

    return Truth(means.shape[1], law.log_prob, from_noise, law.n_parameters, law)


def _factor(sds: list[float], correlation: Any) -> Tensor:
    """Return the lower factor from sds and the correlations {(a, b): r} or one r of a pair."""
    matrix = torch.eye(len(sds), dtype=torch.float64)
    pairs = correlation if isinstance(correlation, dict) else {(0, 1): correlation}
    for (a, b), r in pairs.items():
        matrix[a, b] = matrix[b, a] = r
    scale = torch.tensor(sds, dtype=torch.float64)
    factor: Tensor = torch.linalg.cholesky(matrix * scale[:, None] * scale)
    return factor


def _skewed() -> Truth:
    """Tau = 56 - Gamma(2, scale 3), log s ~ SkewNormal(.80, .35, alpha 5), Gaussian copula -.5."""
    onset, rate, r = stats.gamma(2, scale=3), stats.skewnorm(5, loc=0.80, scale=0.35), -0.5
    grid = np.linspace(0.45, 3.1, 3000)
    score = stats.norm.ppf(rate.cdf(grid))  # the normal score of each value, and back, interpolated
    usable = np.isfinite(score) & (np.diff(score, prepend=-np.inf) > 0) & (np.abs(score) < 7)
    to_rate = PchipInterpolator(score[usable], grid[usable], extrapolate=True)
    to_score = PchipInterpolator(grid[usable], score[usable], extrapolate=True)

    def from_noise(u: np.ndarray, z: np.ndarray) -> np.ndarray:
        second = r * z[:, 0] + math.sqrt(1 - r * r) * z[:, 1]
        tau = 56 - onset.isf(stats.norm.cdf(z[:, 0]))
        return np.stack([tau, to_rate(second)], 1)

    def density(phi: Tensor) -> Tensor:
        x = phi.numpy()
        with np.errstate(divide="ignore"):
            a = stats.norm.ppf(onset.sf(56 - x[:, 0]).clip(1e-300, 1 - 1e-16))
            b = to_score(x[:, 1])
            copula = -0.5 * math.log(1 - r * r) - (r * r * (a * a + b * b) - 2 * r * a * b) / (
                2 * (1 - r * r)
            )
            value = onset.logpdf(56 - x[:, 0]) + rate.logpdf(x[:, 1]) + copula
        return torch.from_numpy(value)

    return Truth(2, density, from_noise)


def _banana() -> Truth:
    """Tau = 50 + 4 u, log s = 1.1 + .20 (u^2 - 1) + .10 v, u and v standard normal."""

    def from_noise(u: np.ndarray, z: np.ndarray) -> np.ndarray:
        return np.stack([50 + 4 * z[:, 0], 1.1 + 0.20 * (z[:, 0] ** 2 - 1) + 0.10 * z[:, 1]], 1)

    def density(phi: Tensor) -> Tensor:
        u = (phi[..., 0] - 50) / 4
        v = (phi[..., 1] - 1.1 - 0.20 * (u.square() - 1)) / 0.10
        return -0.5 * (u.square() + v.square()) - math.log(2 * math.pi * 4 * 0.10)

    return Truth(2, density, from_noise)


def _ring() -> Truth:
    """R ~ N(1, .12^2), angle uniform, tau = 50 + 6 r cos, log s = 1.1 + .35 r sin.

    A negative radius (probability 4e-17) is the same point half a turn away; its density is left out.
    """

    def from_noise(u: np.ndarray, z: np.ndarray) -> np.ndarray:
        radius, angle = 1 + 0.12 * z[:, 0], 2 * math.pi * u
        return np.stack([50 + 6 * radius * np.cos(angle), 1.1 + 0.35 * radius * np.sin(angle)], 1)

    def density(phi: Tensor) -> Tensor:
        x, y = (phi[..., 0] - 50) / 6, (phi[..., 1] - 1.1) / 0.35
        radius = (x.square() + y.square()).sqrt()
        log_radial = -0.5 * ((radius - 1) / 0.12).square() - math.log(0.12 * math.sqrt(2 * math.pi))
        return log_radial - math.log(2 * math.pi * 6 * 0.35) - radius.log()

    return Truth(2, density, from_noise)


def _laws() -> dict[str, Truth]:
    log = math.log
    pk = {(1, 2): 0.4}
    return {
        "L1": _mixture((1.0, [50, 1.10], [4, 0.25], -0.4)),
        "L2": _mixture((0.6, [46, 0.85], [2, 0.15], 0), (0.4, [55, 1.40], [2.4, 0.15], 0)),
        "L3": _skewed(),
        "L4": _banana(),
        "L5": _ring(),
        "L6": _mixture((0.88, [52, 1.15], [2.5, 0.18], -0.3), (0.12, [41, 0.75], [1.6, 0.15], 0)),
        "L7": _mixture(
            (0.35, [44, 0.80], [2.2, 0.20], 0.7),
            (0.40, [52, 1.35], [2.2, 0.20], -0.7),
            (0.25, [59, 0.85], [1.6, 0.15], 0),
        ),
        "L8": _mixture(
            (0.55, [0, 47, 1.0], [0.10, 2.2, 0.18], {(0, 1): 0.5, (1, 2): -0.5}),
            (0.45, [-0.22, 55, 1.35], [0.08, 2.6, 0.15], {(0, 1): -0.4, (1, 2): 0.4}),
        ),
        "P1": _mixture(
            (0.3, [log(1.2), log(1.0), log(30)], [0.35, 0.20, 0.20], pk),
            (0.7, [log(1.2), log(3.5), log(30)], [0.35, 0.25, 0.20], pk),
        ),
        "P2": _mixture(
            (0.6, [log(0.078), log(100)], [0.30, 0.22], 0), (0.4, [log(0.31), log(100)], [0.14, 0.22], 0)
        ),
    }


def _named(name: str) -> Truth:
    return LAWS[name]


LAWS = {name: replace(law, made=(_named, (name,))) for name, law in _laws().items()}
NAMES = {
    "L1": "control",
    "L2": "two strategies",
    "L3": "skewed",
    "L4": "banana",
    "L5": "ring",
    "L6": "rare early type",
    "L7": "three groups",
    "L8": "three dimensions",
    "P1": "slow and fast clearance",
    "P2": "bimodal elimination",
}
TRAITS = {"P1": "CL", "P2": "ke"}  # by which individuals are chosen; tau elsewhere
MODES = {"L1": 1, "L2": 2, "L3": 1, "L4": 1, "L6": 2, "L7": 3, "L8": 2, "P1": 2, "P2": 2}

_SENESCENCE = {
    "R": (np.arange(30.0, 73.0, 3.0), 0.04),
    "M": (np.array([33.0, 39, 44, 48, 52, 56, 62, 69]), 0.04),
    "S": (np.array([36.0, 45, 51, 57, 66]), 0.08),
}
_SENESCENCE |= {  # the same times with other errors
    "R.02": (_SENESCENCE["R"][0], 0.02),
    "R.08": (_SENESCENCE["R"][0], 0.08),
    "M.08": (_SENESCENCE["M"][0], 0.08),
    "S.15": (_SENESCENCE["S"][0], 0.15),
}
_L8 = {"R": _SENESCENCE["M"], "M": _SENESCENCE["M"], "S": (_SENESCENCE["M"][0], 0.12)}
_ORAL = {
    "R": (np.array([0.25, 0.5, 1, 2, 4, 6, 8, 12, 24]), 0.15),
    "S": (np.array([0.5, 2, 8, 24]), 0.15),
    "H": (np.array([2.0, 12]), 0.30),
}
_INFUSION = {
    "R": (np.array([0.5, 1, 2, 3, 4, 6, 8, 12, 18, 24]), 0.15),
    "S": (np.array([1.0, 4, 12]), 0.15),
}
DESIGNS: dict[str, dict[str, tuple[np.ndarray, float]]] = {
    **dict.fromkeys(("L1", "L2", "L3", "L4", "L5", "L6", "L7"), _SENESCENCE),
    "L8": _L8,
    "P1": _ORAL,
    "P2": _INFUSION,
}


@checked
def load(name: str, design: str = "R", n: int = 200, seed: int = 0) -> Scenario:
    """Simulate a scenario of the benchmark; a larger n contains the individuals of the smaller.

    name : "L1" to "L8", "P1", "P2". design : "R" rich or "S" sparse; "M" for L1 to L8; "R.02", "R.08",
        "M.08", "S.15" for L1 to L7, the same times with sigma = .02, .08, .08, .15; "H", two observations of
        P1 in which the parameters cannot be told apart. In L8 "R" is design M, and "S" is M with
        sigma = .12. seed : of the replicate.

    Raises
    ------
    ModelError : no such scenario or design, or n under 2.

    """
    if name not in LAWS:
        raise ModelError(f"No scenario '{name}'; there are {', '.join(LAWS)}.")
    if design not in DESIGNS[name]:
        raise ModelError(f"{name} has designs {', '.join(DESIGNS[name])}; got '{design}'.")
    n = whole("n", n, 2)
    key = (list(LAWS).index(name), list(DESIGNS[name]).index(design), check_seed(seed))
    model, fixed = _model(name)
    times, sigma = DESIGNS[name][design]
    about = {"name": name, "design": design, "seed": seed, "trait": TRAITS.get(name, "tau")}
    return Scenario.simulate(LAWS[name], model, times, sigma, fixed, n, key, **about)


def _model(name: str) -> tuple[Model, dict[str, float]]:
    """Return the model and the true fixed effects."""
    if name == "P1":
        return Model(curves.oral(100.0), LogAdditive()), {}
    if name == "P2":
        return Model(curves.infusion(500.0, 0.5), LogAdditive()), {}
    if name == "L8":
        return Model(curves.logistic_senescence(), Additive()), {}
    return Model(curves.logistic_senescence(), Additive(), fixed=("A",)), {"A": 1.0}


def best_gaussian(law: Truth, n: int = 200_000, seed: int = 0) -> GaussianLaw:
    """Return the Gaussian closest to the truth: that of the same mean and covariance.

    Raises
    ------
    ModelError : n or seed out of range.

    """
    phi = law.draw(whole("n", n, 2), 99, check_seed(seed))
    return GaussianLaw.of(phi, phi.new_ones(len(phi)))
