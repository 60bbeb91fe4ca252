"""Do 95 % intervals cover the truth? Simulated data sets of one Gaussian population.

    python tools/coverage.py [--replicates 500] [--out data/coverage/standard_errors.csv]

Sixty individuals, one-compartment oral curve, nine samples with 15 % error, means (log 1.2, log 2.5, log 30),
standard deviations (.35, .25, .15), effect .75 of log(weight / 70) on log clearance. Printed: the share of
intervals value +- 1.96 standard errors that hold the truth, with its own standard error, and the mean
standard error beside the spread of the estimates.
"""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

import nlmeflow as nf

MEANS = {"ka": np.log(1.2), "CL": np.log(2.5), "V": np.log(30.0)}
SDS = {"ka": 0.35, "CL": 0.25, "V": 0.15}
EFFECT, SIGMA, N = 0.75, 0.15, 60
TIMES = [0.25, 0.5, 1, 2, 4, 6, 8, 12, 24]


def truth() -> dict[tuple[str, str], float]:
    """Return the true values by kind and name."""
    values = {("mean", k): float(v) for k, v in MEANS.items()} | {("sd", k): v for k, v in SDS.items()}
    return values | {("effect", "CL: log(weight / 70)"): EFFECT, ("residual", "sigma"): SIGMA}


def replicate(seed: int) -> pd.DataFrame:
    """Simulate, fit, and return the table of standard errors with the truth."""
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
    found = fit.standard_errors().loc[list(truth())]
    return found.assign(truth=list(truth().values()), seed=seed).reset_index()


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--replicates", type=int, default=500)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, help="also write the table here")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
        seeds = range(options.replicates)
        rows = pd.concat(tqdm(pool.map(replicate, seeds), total=len(seeds), unit="fit"))
    rows["covered"] = rows["truth"].between(rows["lower"], rows["upper"])
    grouped = rows.groupby(["kind", "parameter"], sort=False)
    table = pd.DataFrame(
        {
            "truth": grouped["truth"].first(),
            "mean estimate": grouped["value"].mean(),
            "spread of estimates": grouped["value"].std(),
            "mean standard error": grouped["standard error"].mean(),
            "coverage": grouped["covered"].mean(),
        }
    )
    table["error of coverage"] = np.sqrt(table["coverage"] * (1 - table["coverage"]) / options.replicates)
    print(f"{options.replicates} data sets of {N} individuals\n{table.round(4).to_string()}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        table.assign(replicates=options.replicates).to_csv(options.out, float_format="%.6g")


if __name__ == "__main__":
    main()
