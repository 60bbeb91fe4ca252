"""Linear mixed models whose random slopes have a known law: the benchmark of deconvolution.

scenario = load("bimodal", n=200, times=6, sigma=0.5, seed=0)
scenario.data, scenario.slopes, scenario.truth
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from scipy.stats.distributions import rv_frozen

from nlmeflow.arguments import checked
from nlmeflow.data import LongitudinalData
from nlmeflow.errors import ModelError, number, whole
from nlmeflow.seeds import check_seed

SPAN = 1.0  # the times divide (0, 1]


@dataclass(frozen=True)
class Truth:
    """A mixture of scipy laws: weights and components."""

    weights: tuple[float, ...]
    parts: tuple[rv_frozen, ...]

    def pdf(self, x: np.ndarray) -> np.ndarray:
        """Return the density at x."""
        density: np.ndarray = sum(w * part.pdf(x) for w, part in zip(self.weights, self.parts, strict=True))
        return density

    def sample(self, n: int, random: np.random.Generator) -> np.ndarray:
        """Draw n."""
        which = random.choice(len(self.parts), size=n, p=self.weights)
        drawn = np.stack([part.rvs(size=n, random_state=random) for part in self.parts])
        return drawn[which, np.arange(n)]


LAWS = {
    "gaussian": Truth((1.0,), (stats.norm(0, 1),)),
    "bimodal": Truth((0.5, 0.5), (stats.norm(-1.5, 0.5), stats.norm(1.5, 0.5))),
    "gamma": Truth((1.0,), (stats.gamma(4, scale=0.5),)),
    "mixed gamma": Truth((0.4, 0.6), (stats.gamma(5, scale=0.15), stats.gamma(30, scale=0.1))),
}


@dataclass(frozen=True)
class LinearScenario:
    """Simulated responses of lines, the slopes (n,) behind them, and the law of the slopes."""

    data: LongitudinalData
    slopes: np.ndarray
    truth: Truth
    sigma: float


@checked
def load(name: str, n: int = 200, times: int = 6, sigma: float = 0.5, seed: int = 0) -> LinearScenario:
    """Simulate Y_kj = alpha_k + beta_k t_j + e_kj, alpha_k ~ N(0, 1), t_j = j / J, e ~ N(0, sigma^2).

    name : law of the slopes: "gaussian", "bimodal", "gamma", "mixed gamma". times : J, from 3.

    Raises
    ------
    ModelError : no such law, n under 2, or fewer than three times.

    """
    if name not in LAWS:
        raise ModelError(f"No scenario '{name}'; there are {', '.join(LAWS)}.")
    n = whole("n", n, 2)
    times = whole("times", times, 3)
    number("sigma", sigma, 0)
    random = np.random.default_rng([list(LAWS).index(name), times, check_seed(seed)])
    slopes = LAWS[name].sample(n, random)
    intercepts = random.standard_normal(n)
    time = np.tile(SPAN * np.arange(1, times + 1) / times, (n, 1))
    noise = sigma * random.standard_normal((n, times))
    response = intercepts[:, None] + slopes[:, None] * time + noise
    data = LongitudinalData.regular(torch.from_numpy(time), torch.from_numpy(response))
    return LinearScenario(data, slopes, LAWS[name], sigma)
