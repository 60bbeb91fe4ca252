"""Does the fitted model produce data like the data? From the fitted law, never a Gaussian in its place.

Visual predictive check: Holford 2005. Normalised prediction distribution errors: Brendel, Comets, Laffont,
Laveille, Mentre, Pharmaceutical Research 2006.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from nlmeflow.arguments import checked
from nlmeflow.data import LongitudinalData
from nlmeflow.data.checks import check_finite, numbers
from nlmeflow.data.files import check_columns
from nlmeflow.errors import ModelError, check_memory, number, whole
from nlmeflow.fitting.fit import Fit
from nlmeflow.laws.affine import safe_cholesky
from nlmeflow.laws.draws import heaviest
from nlmeflow.running import estimating
from nlmeflow.seeds import Stream, derive, generator

MOST_TIMES = 15  # distinct times that are not binned
HELD = 4_000_000  # simulated observations held at a time
DRAWN = 2_000_000  # predictions behind the population's mean: at 2,000 draws, or fewer, 50 at least


@checked
def simulate(fit: Fit, replicates: int = 200, seed: int = 0) -> Tensor:
    """Simulate the data set again: new individuals from the fitted law at the data's times and covariates.

    Returns responses (replicates, N, n), in the places where the data have observations; censored data are
    simulated before they are censored.

    Raises
    ------
    ModelError : replicates is not a whole number from 1.

    """
    replicates = whole("replicates", replicates, 1)
    problem = fit.problem()
    size, times = problem.data.time.shape
    check_memory("replicates", replicates, size * times, "responses")
    parts = []
    with estimating():
        each = max(1, HELD // (size * times))
        for k, start in enumerate(range(0, replicates, each)):
            count = min(each, replicates - start)
            eta = problem.simulated(fit.law, fit.sigma, count, derive(seed, Stream.REPLICATED_LAW, k))
            mean = problem.predict(eta, fit.beta)
            random, people = generator(derive(seed, Stream.REPLICATED_NOISE, k)), problem.individuals
            drawn = people.residual.sample(mean, problem.own_sigma(fit.sigma), random)
            parts.append(drawn.movedim(1, 0))
    return torch.cat(parts)


def _as_recorded(data: LongitudinalData, drawn: np.ndarray) -> np.ndarray:
    """Return simulated responses as the data would have recorded them, the scale being that of the data.

    Beyond the limit of the censored observations, that limit; within an interval of theirs, its middle.

    Raises
    ------
    ModelError : limits differ between observations, or intervals overlap, so that there is no such scale.

    """
    if data.bounds is None:
        return drawn
    low, high = (side[data.mask].numpy() for side in data.bounds)
    ends = [np.unique(high[np.isinf(low)]), np.unique(low[np.isinf(high)])]
    floor, ceiling = (end[np.isfinite(end)] for end in ends)
    both = np.isfinite(low) & np.isfinite(high)
    intervals = np.unique(np.stack([low[both], high[both]], 1), axis=0)
    rounding = 1e-9 * np.diff(intervals, axis=1).min(initial=np.inf)
    overlap = intervals[:-1, 1] - intervals[1:, 0]
    if len(floor) > 1 or len(ceiling) > 1 or (overlap > rounding).any():
        raise ModelError(
            "There is no predictive check of observations that are censored at different limits, or known to "
            "lie in intervals that overlap; draw with fit.population."
        )
    if len(intervals):
        place = np.searchsorted(intervals[:, 0], drawn, side="right") - 1
        inside = (place >= 0) & (drawn < intervals[place, 1])
        drawn = np.where(inside, intervals[place].mean(-1), drawn)
    lowest, highest = (end[0] if len(end) else None for end in (floor, ceiling))
    return drawn if lowest is None and highest is None else np.clip(drawn, lowest, highest)


def _check_seen(data: LongitudinalData) -> None:
    """Raise ModelError where there is nothing to compare simulated responses with."""
    if data.n_observations == 0:
        raise ModelError("Nobody in these data has an observation; there is nothing to check the fit with.")


@checked
def vpc(
    fit: Fit,
    replicates: int = 200,
    quantiles: Sequence[float] = (0.1, 0.5, 0.9),
    level: float = 0.9,
    bins: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Return a visual predictive check: observed quantiles of the response beside simulated ones.

    One row per bin of time and quantile: time (mean of the bin), quantile, observed, predicted (median of
    the replicates) and the interval of the replicates' quantiles. bins : of equal numbers of observations;
    every distinct time is a bin when there are at most 15 and `bins` is None. Simulated responses are
    censored where the data's would have been.

    Raises
    ------
    ModelError : quantiles or level not between 0 and 1, fewer than 2 / (1 - level) replicates, bins not a
        whole number from 1; nobody has an observation; data censored at different limits; as in `simulate`.

    """
    if not len(quantiles) or not all(0 < q < 1 for q in quantiles):
        raise ModelError(f"quantiles lie between 0 and 1, got {tuple(quantiles)}.")
    number("level", level, 0, 1)
    whole("replicates", replicates, max(2, int(2 / (1 - level))))  # one beyond each limit
    _check_seen(fit.data)
    mask = fit.data.mask.numpy()
    time, observed = fit.data.time.numpy()[mask], fit.data.response.numpy()[mask]
    simulated = _as_recorded(fit.data, simulate(fit, replicates, seed).numpy()[:, mask])
    where = time_bins(time, bins)
    tail = (1 - level) / 2
    rows = []
    for k in range(where.max() + 1):
        inside = where == k
        for q in quantiles:
            each = np.quantile(simulated[:, inside], q, axis=1)
            low, middle, high = np.quantile(each, [tail, 0.5, 1 - tail])
            seen = np.quantile(observed[inside], q)
            rows.append([time[inside].mean(), q, seen, middle, low, high, int(inside.sum())])
    columns = ["time", "quantile", "observed", "predicted", "lower", "upper", "observations"]
    return pd.DataFrame(rows, columns=columns)


def time_bins(time: np.ndarray, bins: int | None) -> np.ndarray:
    """Return the bin of each observation, numbered from 0 in the order of time."""
    distinct, code = np.unique(time, return_inverse=True)
    if bins is None and len(distinct) <= MOST_TIMES:
        return code
    count = MOST_TIMES if bins is None else whole("bins", bins, 1)
    edges = np.unique(np.quantile(time, np.linspace(0, 1, count + 1)))
    found = np.clip(np.searchsorted(edges, time, side="right") - 1, 0, max(len(edges) - 2, 0))
    return np.unique(found, return_inverse=True)[1]


def who_column(fit: Fit, *ours: str) -> str:
    """Return the user's name of the column of individuals; "label" where it would be one of ours."""
    name = fit.data.names[0]
    return "label" if name in ours else name


@checked
def npde(fit: Fit, replicates: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Return normalised prediction distribution errors, one row per observation.

    Individuals are in a column of the user's name, or "label" where that name is one of the others.
    Replicates are raised to eight times the observations of an individual, for the sake of their covariance.

    Observations of an individual are decorrelated by the Cholesky factor of their simulated covariance;
    pde is the share of simulated values below, npde its normal score. Under the true model they are
    uncorrelated, uniform and standard normal. One half of the replicates gives the covariance, the other
    half the shares: with the same for both, observations look more spread out than simulations, because
    the covariance was made for the latter.

    Raises
    ------
    ModelError : nobody has an observation; the data are censored; replicates is not a whole number from 100;
        as in `simulate`.

    """
    _check_seen(fit.data)
    if fit.data.bounds is not None:
        raise ModelError("There are no prediction errors of censored data; diagnostics.vpc takes them.")
    replicates = max(whole("replicates", replicates, 100), 8 * int(fit.data.counts.max()))
    who = who_column(fit, "time", "predicted", "pde", "npde")
    simulated = simulate(fit, replicates, seed).numpy()
    rows = []
    for i, label in enumerate(fit.data.labels):
        mask = fit.data.mask[i].numpy()
        if not mask.any():
            continue
        draws, seen = simulated[:, i, mask], fit.data.response[i].numpy()[mask]
        first, second = draws[: replicates // 2], draws[replicates // 2 :]
        mean = first.mean(0)
        factor = safe_cholesky(torch.from_numpy(np.atleast_2d(np.cov(first.T)))).numpy()
        white = np.linalg.solve(factor, (second - mean).T)
        below = (white < np.linalg.solve(factor, seen - mean)[:, None]).sum(1)
        pde = (below + 0.5) / (len(second) + 1)
        rows.append(
            pd.DataFrame(
                {
                    who: label,
                    "time": fit.data.time[i].numpy()[mask],
                    "predicted": mean,
                    "pde": pde,
                    "npde": stats.norm.ppf(pde),
                }
            )
        )
    return pd.concat(rows, ignore_index=True)


@checked
def npde_tests(errors: pd.DataFrame) -> pd.Series:
    """Return p-values of `npde`: mean zero (t), variance one (chi-squared), normal (Kolmogorov).

    Raises
    ------
    ModelError : fewer than two errors. DataError : one that is not a finite number.

    """
    check_columns(errors, ["npde"])
    values = numbers(errors, "npde")
    check_finite(errors, "npde", values, missing_allowed=False)
    if len(values) < 2:
        raise ModelError(f"Tests of prediction errors need at least two, got {len(values)}.")
    chi = (len(values) - 1) * values.var(ddof=1)
    share = stats.chi2.cdf(chi, len(values) - 1)
    return pd.Series(
        {
            "mean": float(stats.ttest_1samp(values, 0.0).pvalue),
            "variance": float(2 * min(share, 1 - share)),
            "distribution": float(stats.kstest(values, "norm").pvalue),
        },
        name="p-value",
    )


@checked
def predictions(fit: Fit) -> pd.DataFrame:
    """Return observations beside predictions, one row per observation.

    population: mean prediction under the population law (with the individual's covariates), by 2,000 draws
    that are the same for all individuals (fewer if there are more than 1,000); individual: the curve's
    conditional mean given the individual's data; residual: the standardised residual of the latter.
    Individuals are in a column of the user's name, or "label" where that name is one of these.
    """
    with estimating():
        problem = fit.problem()
        people, sigma = problem.individuals, problem.own_sigma(fit.sigma)
        count = max(50, min(2000, DRAWN // len(people)))
        first = problem.subset(torch.tensor([0]))
        draws = first.simulated(fit.law, fit.sigma, count, derive(fit.seed, Stream.PREDICTIONS))[:1]
        phi, weights = fit.conditional
        phi = phi - fit.shift[:, None]
        chosen, weight = heaviest(phi, weights, 256)
        share = (weight / weight.sum(1, keepdim=True))[..., None]
        population, individual = torch.zeros(2, *problem.data.time.shape, dtype=phi.dtype)
        for rows in people.chunks(max(count, 256)):
            some = chosen[rows]
            same = draws.expand(len(some), -1, -1)
            population[rows] = problem.predict(same, fit.beta, rows).mean(1)
            individual[rows] = (share[rows] * problem.predict(some, fit.beta, rows)).sum(1)
        residual, _ = people.residual.working(people.data.response, individual, sigma, people.bounds())
    row, column = torch.nonzero(fit.data.mask, as_tuple=True)
    who = who_column(fit, "time", "observed", "population", "individual", "residual")
    return pd.DataFrame(
        {
            who: [fit.data.labels[i] for i in row.tolist()],
            "time": fit.data.time[row, column].numpy(),
            "observed": fit.data.response[row, column].numpy(),
            "population": population[row, column].numpy(),
            "individual": individual[row, column].numpy(),
            "residual": residual[row, column].numpy(),
        }
    )
