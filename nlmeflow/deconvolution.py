"""Deconvolution in the linear mixed model: the density of intercepts or slopes without assuming its form.

    Y_kj = alpha_k + beta_k t_j + e_kj,   Z_k = estimate of beta_k = beta_k + eta_k

eta_k is an error whose characteristic function is known or can be estimated, so that the density is found
in the Fourier domain (Comte and Samson, Journal of Nonparametric Statistics 2012):

    f_m(x) = 1 / (2 pi) integral over |u| <= pi m of exp(-i u x) [mean_k exp(i u Z_k)] / eta*(u) du

The cut-off m minimises the penalised contrast -|f_m|^2 + pen(m). Nothing Gaussian is assumed of the effects;
only this model is linear. The penalty is

    pen(m) = [1 + (s pi m)^2] V(m) + 0.75 m / n
    V(m) = 1 / (2 pi n) integral over |u| <= pi m of 1 / |eta*(u)|^2 du

V is the variance of f_m without its term in |f*|^2, s the standard deviation of eta: Gaussian noise needs
the first factor because V grows like exp((s pi m)^2); the last term, three quarters of what V would be
without noise, counts where there is little of it. The penalty has the unit of the contrast whatever the
unit of time. Cut-offs from the first one at which V exceeds 8 % of |f_m|^2 are not considered: once in some
sixty samples the contrast falls there faster than any penalty that suits the others.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from scipy.integrate import cumulative_trapezoid
from scipy.stats import chi2

from nlmeflow.arguments import checked
from nlmeflow.data import LongitudinalData
from nlmeflow.errors import DataError, ModelError, check_memory, number, whole

Effect = Literal["slope", "intercept"]
Noise = Literal["gaussian", "unknown"]
LARGEST = 9.0  # cut-off tried, in units of 1 / sd(Z)
NODES = 541  # of the integral over u
EVERY = 6  # a cut-off is tried at every so many nodes
MOST_NOISE = 0.08  # of |f_m|^2 that may be variance
FLOOR = 0.75  # of the penalty, times the variance that there would be without noise
CHANCE = 1e-4  # that errors of a given sigma alone differ as little as the estimates do: it is refused
LEAST = 1e-100  # characteristic function of an error: the square of its inverse is still a number
ROUNDING = 1e-14  # share of the largest response that is no error but that of arithmetic
FEWEST = 16  # points of the grid
MARGIN = 1.0  # of the grid beyond the estimates, in units of sd(Z)


@dataclass(frozen=True)
class Deconvolution:
    """An estimated density of one random effect.

    grid, density : values of the density, its positive part renormalised to one.
    cutoff : pi m, in 1 / unit of the effect; criterion : a frame of every cut-off tried.
    estimates : Z_k; error_sd : standard deviation of eta (root mean square over individuals).
    sigma : residual standard deviation, given or estimated.
    """

    grid: np.ndarray
    density: np.ndarray
    cutoff: float
    criterion: pd.DataFrame
    estimates: np.ndarray
    error_sd: float
    sigma: float

    def pdf(self, x: np.ndarray) -> np.ndarray:
        """Return the density at x, zero outside the grid."""
        density: np.ndarray = np.interp(x, self.grid, self.density, left=0.0, right=0.0)
        return density


@dataclass(frozen=True)
class Observed:
    """Estimates Z (n,), their empirical characteristic function over eta's at u (nodes,), the sd of eta."""

    z: np.ndarray
    u: np.ndarray
    numerator: np.ndarray
    denominator: np.ndarray
    error_sd: float
    sigma: float


@checked
def deconvolve(
    data: LongitudinalData,
    effect: Effect = "slope",
    sigma: float | None = None,
    noise: Noise = "gaussian",
    cutoff: float | None = None,
    points: int = 512,
) -> Deconvolution:
    """Estimate the density of intercepts or slopes of a linear mixed model.

    effect : "slope" or "intercept" (at time zero).
    sigma : residual standard deviation; estimated when None, from second differences when all
        individuals share equally spaced times, from the residuals of each individual's line otherwise.
    noise : "gaussian" errors of known form, or "unknown" (symmetric): then slopes are means of pair slopes,
        and the characteristic function of their error is estimated from differences of pairs. This needs
        at least four equally spaced times shared by all; slopes only.
    cutoff : pi m; chosen by the penalised contrast when None.

    Raises
    ------
    DataError : fewer than three observations of an individual, times that the noise model cannot use, or
        responses without error.
    ModelError : an option is none of those accepted, or outside its range; a sigma that the estimates of the
        effects, which differ by too little, rule out, or of unknown noise.

    """
    if sigma is not None:
        number("sigma", sigma, 0)
    seen = observe(data, effect, sigma, noise)
    points = whole("points", points, FEWEST)
    check_memory("points", points, len(seen.u), "complex numbers")
    if cutoff is not None and not seen.u[1] <= cutoff <= seen.u[-1]:
        raise ModelError(
            f"cutoff lies between {seen.u[1]:.4g} and {LARGEST:g} / sd = {seen.u[-1]:.4g}, got {cutoff!r}."
        )
    criterion = contrast(seen, cutoff)
    chosen = criterion["criterion"].to_numpy().argmin()
    margin = MARGIN * seen.z.std()
    grid = np.linspace(seen.z.min() - margin, seen.z.max() + margin, points)
    density = densities(seen, grid, criterion["cutoff"].to_numpy()[[chosen]])[0]
    cut = float(criterion["cutoff"].iloc[chosen])
    return Deconvolution(grid, density, cut, criterion, seen.z, seen.error_sd, seen.sigma)


def observe(
    data: LongitudinalData, effect: Effect = "slope", sigma: float | None = None, noise: Noise = "gaussian"
) -> Observed:
    """Return what `deconvolve` works on: estimates of the effects and the law of their errors.

    Raises
    ------
    DataError, ModelError : as in `deconvolve`.

    """
    if data.bounds is not None:
        raise ModelError("Deconvolution does not take censored responses; nf.Model(nf.curves.linear()) does.")
    if len(data) < 2:
        raise DataError(
            "A density of individuals' effects needs at least two individuals, better fifty; got one."
        )
    if noise == "unknown" and effect == "intercept":
        raise ModelError("With unknown noise only the density of slopes is estimated.")
    if noise == "unknown" and sigma is not None:
        raise ModelError("sigma is that of Gaussian noise; leave it out, or leave out noise='unknown'.")
    seen = _lines(data, effect, sigma) if noise == "gaussian" else _pairs(data)
    size = float(torch.where(data.mask, data.response, 0.0).abs().max())
    if not (seen.z.std() > 0 and seen.sigma > ROUNDING * size):
        raise DataError(
            "The responses lie exactly on lines, or are all the same: there is no error to take away. "
            "Give measured responses, or sigma=... with Gaussian noise."
        )
    return seen


def _lines(data: LongitudinalData, effect: Effect, sigma: float | None) -> Observed:
    """Least-squares line of each individual; Gaussian errors."""
    mask, time, response = (x.numpy() for x in (data.mask, data.time, data.response))
    counts = mask.sum(1)
    if counts.min() < 3:
        raise DataError(
            f"Individual {data.labels[int(counts.argmin())]} has {counts.min()} observations; a line and its "
            "error need at least three."
        )
    t, y = np.where(mask, time, 0.0), np.where(mask, response, 0.0)
    centre = t.sum(1) / counts
    spread = (np.where(mask, time - centre[:, None], 0.0) ** 2).sum(1)
    if spread.min() <= 0:
        raise DataError(f"All times of individual {data.labels[int(spread.argmin())]} are the same.")
    slope = (np.where(mask, time - centre[:, None], 0.0) * y).sum(1) / spread
    intercept = y.sum(1) / counts - slope * centre
    residual = np.where(mask, response - intercept[:, None] - slope[:, None] * time, 0.0)
    scatter = _second_differences(data) or float(np.sqrt((residual**2).sum() / (counts - 2).sum()))
    unit = 1 / spread if effect == "slope" else 1 / counts + centre**2 / spread
    z = slope if effect == "slope" else intercept
    if sigma is not None:
        _check_spread(z, unit, sigma, scatter, effect)
    sigma = scatter if sigma is None else sigma
    variance, u = sigma**2 * unit, _nodes(z)
    values, count = np.unique(variance, return_counts=True)
    denominator = (np.exp(-0.5 * u[:, None] ** 2 * values) @ (count / count.sum())).clip(min=LEAST)
    return Observed(z, u, _empirical(z, u), denominator, float(np.sqrt(variance.mean())), sigma)


def _check_spread(z: np.ndarray, unit: np.ndarray, sigma: float, scatter: float, effect: Effect) -> None:
    """Raise ModelError when estimates z of error variance sigma^2 unit differ less than errors alone would.

    sum_k (z_k - mean)^2 / (sigma^2 unit_k), the mean weighted by 1 / unit, follows the chi-square law of
    n - 1 degrees of freedom where all effects are the same, and is larger otherwise.
    """
    distance = (z - np.average(z, weights=1 / unit)) ** 2 / unit
    if 0 < distance.sum() < sigma**2 * chi2.ppf(CHANCE, len(z) - 1):
        raise ModelError(
            f"With sigma = {sigma:g} the estimated {effect}s have errors of standard deviation "
            f"{sigma * np.sqrt(unit.mean()):.3g}, but their own standard deviation is {z.std():.3g}: so "
            f"little, even if every {effect} were the same, in fewer than one of {1 / CHANCE:,.0f} samples. "
            f"Around their lines the responses have sigma = {scatter:.3g}; give sigma in the unit of the "
            "response, or leave it out."
        )


def _second_differences(data: LongitudinalData) -> float | None:
    """Return sigma from Y_(j+1) - 2 Y_j + Y_(j-1), variance 6 sigma^2, at equally spaced times; else None."""
    if not _equally_spaced(data):
        return None
    second = np.diff(data.response.numpy(), n=2, axis=1)
    return float(np.sqrt((second**2).mean() / 6))


def _equally_spaced(data: LongitudinalData) -> bool:
    time = data.time.numpy()
    steps = np.diff(time, axis=1)
    near = 1e-5 * abs(steps[0, 0])  # in the unit of time, whatever it is
    shared = bool(data.mask.all()) and near > 0 and np.allclose(time, time[0], rtol=0, atol=near)
    return shared and bool(np.allclose(steps, steps[0, 0], rtol=0, atol=near))


def _pairs(data: LongitudinalData) -> Observed:
    """Mean of pair slopes (Y_(j+P) - Y_j) / (P step), j = 1..P; the noise's law from pairs of pairs.

    With g the characteristic function of the difference of two errors, that of the difference of two pairs
    is g^2, and that of the error of the mean of the P pair slopes is g(u / (P^2 step))^P. The members of a
    pair lie P times apart, so that little is lost against least squares.
    """
    pairs = data.response.shape[1] // 2
    if pairs < 2 or not _equally_spaced(data):
        raise DataError(
            "Unknown noise needs at least four equally spaced times, the same for all individuals and "
            "without missing values; use noise='gaussian'."
        )
    step = float(data.time[0, 1] - data.time[0, 0])
    response = data.response.numpy()[:, : 2 * pairs]
    difference = response[:, pairs:] - response[:, :pairs]
    apart = pairs * step
    z = difference.mean(1) / apart
    u = _nodes(z)
    between = (difference[:, 1::2] - difference[:, : 2 * (pairs // 2) : 2]).ravel()  # disjoint: independent
    squared = _empirical(between, u / (pairs * apart)).real
    floor = len(between) ** -0.5
    denominator = np.where(squared > floor, squared.clip(min=floor) ** (pairs / 2), np.inf)
    variance = between.var() / 2 / pairs / apart**2
    sigma = float(np.sqrt(between.var() / 4))
    return Observed(z, u, _empirical(z, u), denominator, float(np.sqrt(variance)), sigma)


def _nodes(z: np.ndarray) -> np.ndarray:
    return np.linspace(0, LARGEST / z.std(), NODES)


def _empirical(z: np.ndarray, u: np.ndarray) -> np.ndarray:
    transform: np.ndarray = np.exp(1j * u[:, None] * z).mean(1)
    return transform


def contrast(seen: Observed, cutoff: float | None = None) -> pd.DataFrame:
    """Return -|f_m|^2, the penalty and their sum (infinite when too far) for each cut-off tried, or for one.

    |f_m|^2 = 1 / pi times the integral of |Z* / eta*|^2 over (0, pi m).
    """
    cutoffs = seen.u[EVERY::EVERY] if cutoff is None else np.array([cutoff])

    def integral(values: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.interp(cutoffs, seen.u, cumulative_trapezoid(values, seen.u, initial=0))
        return found

    value = -integral(np.abs(seen.numerator / seen.denominator) ** 2) / np.pi
    variance = integral(1 / seen.denominator**2) / (np.pi * len(seen.z))
    penalty = variance * (1 + (seen.error_sd * cutoffs) ** 2) + FLOOR * cutoffs / (np.pi * len(seen.z))
    too_far = np.logical_or.accumulate(variance > -MOST_NOISE * value)
    too_far[0] = False
    criterion = np.where(too_far, np.inf, value + penalty)
    return pd.DataFrame({"cutoff": cutoffs, "contrast": value, "penalty": penalty, "criterion": criterion})


def densities(seen: Observed, grid: np.ndarray, cutoffs: np.ndarray) -> np.ndarray:
    """Return the positive part of f_m on a grid, renormalised, for each cut-off: (cut-offs, grid).

    The integral over |u| <= pi m is twice the real part of that over (0, pi m).
    """
    waves = np.exp(-1j * seen.u[:, None] * grid) * (seen.numerator / seen.denominator)[:, None]
    cumulated = cumulative_trapezoid(waves.real, seen.u, axis=0, initial=0) / np.pi
    nearest = np.abs(seen.u[:, None] - cutoffs).argmin(0)
    positive = cumulated[nearest].clip(min=0)
    density: np.ndarray = positive / np.trapezoid(positive, grid, axis=1)[:, None]
    return density
