"""Do 95 % intervals cover the truth? Simulated data sets of one Gaussian population, in several designs.

    python -m nlmeflow.studies run tools/studies/interval_coverage.yml

plain : sixty individuals, one-compartment oral curve, nine samples with 15 % error, means (log 1.2, log 2.5,
    log 30), standard deviations (.35, .25, .15), effect .75 of log(weight / 70) on log clearance.
two-levels : thirty groups of five individuals, a logistic decline seen at ten times, sds (4, .25) of day and
    log duration between groups and (1.5, .15) within.
censored : sixty individuals, the same curve as a score that saturates: values under .1 are censored on the
    left, those over .9 on the right, every fifth of the others is only known to a tenth.
as-observed : the same data, bounds and middles of intervals taken for observations.

Printed: the share of intervals (`Fit.standard_errors`: of standard deviations and sigma on the scale of
logarithms) that hold the truth, with its own standard error, and the mean standard error beside the spread of
the estimates; "refused" counts the data sets without an interval: the likelihood had no peak, or the
parameter is at a boundary.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
import torch

import nlmeflow as nf
from nlmeflow.studies.run import Row

Truth = dict[tuple[str, str], float]
MEANS = {"ka": np.log(1.2), "CL": np.log(2.5), "V": np.log(30.0)}
SDS = {"ka": 0.35, "CL": 0.25, "V": 0.15}
EFFECT, SIGMA, N = 0.75, 0.15, 60
TIMES = [0.25, 0.5, 1, 2, 4, 6, 8, 12, 24]
DAYS = np.arange(30.0, 76.0, 5.0)
DECLINE = {("mean", "tau"): 50.0, ("mean", "s"): 1.1, ("sd", "tau"): 4.0, ("sd", "s"): 0.25}
WITHIN = {("residual", "within tau"): 1.5, ("residual", "within s"): 0.15}
ERROR = 0.05


def plain(seed: int) -> tuple[nf.Fit, Truth]:
    """Return the fit of one simulated data set, and the truth."""
    random = np.random.default_rng(seed)
    about = pd.DataFrame({"weight": random.uniform(45, 100, N)})
    phi = random.standard_normal((N, 3)) * list(SDS.values()) + list(MEANS.values())
    phi[:, 1] += EFFECT * np.log(about["weight"] / 70)
    model = nf.Model(nf.curves.oral(100.0), nf.LogAdditive(), covariates={"CL": "log(weight / 70)"})
    time = torch.tensor(TIMES, dtype=torch.float64).expand(N, -1)
    mean = model.mean_response(torch.from_numpy(phi), time)
    response = mean * torch.from_numpy(np.exp(SIGMA * random.standard_normal(mean.shape)))
    data = nf.LongitudinalData.regular(time, response, about)
    fit = model.fit(data, nf.Gaussian("diagonal"), seed=seed, particles=512, progress=False)
    truth: Truth = {("mean", k): float(v) for k, v in MEANS.items()} | {("sd", k): v for k, v in SDS.items()}
    return fit, truth | {("effect", "CL: log(weight / 70)"): EFFECT, ("residual", "sigma"): SIGMA}


def decline(within: tuple[str, ...] = ()) -> nf.Model:
    """Return the logistic decline from one to zero."""
    parameters = [nf.Parameter("tau"), nf.Parameter("s", transform="log")]
    curve = nf.Curve(lambda t, psi: 1 / (1 + torch.exp((t - psi["tau"]) / psi["s"])), parameters)
    return nf.Model(curve, within=within)


def declines(random: np.random.Generator, tau: np.ndarray, log_s: np.ndarray) -> pd.DataFrame:
    """Return a long table of noisy declines."""
    mean = 1 / (1 + np.exp((DAYS - tau[:, None]) / np.exp(log_s)[:, None]))
    response = mean + ERROR * random.standard_normal(mean.shape)
    plant = np.repeat(np.arange(len(tau)), len(DAYS))
    return pd.DataFrame({"plant": plant, "day": np.tile(DAYS, len(tau)), "y": response.ravel()})


def two_levels(seed: int, groups: int = 30, size: int = 5) -> tuple[nf.Fit, Truth]:
    """Return the fit of individuals within groups, and the truth."""
    random = np.random.default_rng(seed)
    (tau, log_s, sd_tau, sd_s), (in_tau, in_s) = DECLINE.values(), WITHIN.values()
    middle = np.repeat(random.standard_normal((groups, 2)) * [sd_tau, sd_s] + [tau, log_s], size, axis=0)
    phi = middle + random.standard_normal(middle.shape) * [in_tau, in_s]
    frame = declines(random, phi[:, 0], phi[:, 1])
    frame["genotype"] = frame["plant"] // size
    data = nf.LongitudinalData.from_frame(frame, "plant", "day", "y", group="genotype")
    fit = decline(("tau", "s")).fit(data, nf.Gaussian("diagonal"), seed=seed, progress=False)
    return fit, DECLINE | WITHIN | {("residual", "sigma"): ERROR}


def scores(seed: int, censored: bool) -> tuple[nf.Fit, Truth]:
    """Return the fit of a score that saturates at .1 and .9, and the truth."""
    random = np.random.default_rng(seed)
    tau, log_s, sd_tau, sd_s = DECLINE.values()
    phi = random.standard_normal((N, 2)) * [sd_tau, sd_s] + [tau, log_s]
    frame = declines(random, phi[:, 0], phi[:, 1])
    low, high = np.floor(frame["y"] * 10) / 10, np.ceil(frame["y"] * 10) / 10
    coarse = (np.arange(len(frame)) % 5 == 0) & (high > low)
    kinds = [frame["y"] < 0.1, frame["y"] > 0.9, coarse]
    frame["kind"] = np.select(kinds, ["left", "right", "interval"], "")
    frame["end"] = high
    frame["y"] = np.select(kinds, [0.1, 0.9, low if censored else (low + high) / 2], frame["y"])
    kind, end = ("kind", "end") if censored else (None, None)
    data = nf.LongitudinalData.from_frame(frame, "plant", "day", "y", censoring=kind, limit=end)
    fit = decline().fit(data, nf.Gaussian("diagonal"), seed=seed, particles=512, progress=False)
    return fit, DECLINE | {("residual", "sigma"): ERROR}


DESIGNS: dict[str, Callable[[int], tuple[nf.Fit, Truth]]] = {
    "plain": plain,
    "two-levels": two_levels,
    "censored": partial(scores, censored=True),
    "as-observed": partial(scores, censored=False),
}


def measure(design: str, replicate: int) -> list[Row]:
    """Simulate, fit, and return the table of standard errors with the truth."""
    fit, truth = DESIGNS[design](replicate)
    try:
        found = fit.standard_errors().loc[list(truth)]
    except nf.EstimationError:  # the likelihood has no peak: no intervals, and said so
        index = pd.MultiIndex.from_tuples(truth, names=["kind", "parameter"])
        found = pd.DataFrame(np.nan, index, ["value", "standard error", "lower", "upper"])
    table = found.assign(truth=list(truth.values())).reset_index()
    return [{str(k): v for k, v in row.items()} for row in table.to_dict("records")]


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return coverage by parameter."""
    refused = rows["lower"].isna().groupby([rows["kind"], rows["parameter"]], sort=False).sum()
    rows = rows.dropna(subset=["lower"])
    rows["covered"] = rows["truth"].between(rows["lower"], rows["upper"])
    grouped = rows.groupby(["kind", "parameter"], sort=False)
    coverage, replicates = grouped["covered"].mean(), grouped.size()
    return pd.DataFrame(
        {
            "truth": grouped["truth"].first(),
            "mean estimate": grouped["value"].mean(),
            "spread of estimates": grouped["value"].std(),
            "mean standard error": grouped["standard error"].mean(),
            "coverage": coverage,
            "error of coverage": np.sqrt(coverage * (1 - coverage) / replicates),
            "intervals": replicates,
            "refused": refused,
        }
    )


def report(rows: pd.DataFrame) -> None:
    """Print the coverage of each design."""
    for design, part in rows.groupby("design", sort=False):
        print(f"{design}: {part['replicate'].nunique()} data sets\n{table(part).round(4).to_string()}\n")
