"""Do the diagnostics stay quiet under the truth, and speak when the law is wrong? Simulated data sets.

    python tools/diagnostics_truth.py [--replicates 200] [--out data/coverage/diagnostics.csv]

Each replicate: 60 plants of scenario L2 (two strategies), rich and sparse. "truth" checks the simulation with
the law, sigma and fixed effects that made it: p-values of npde (mean, variance, distribution) are then
uniform, so that 5 % lie under .05, and nine tenths of the observed quantiles lie in the 90 % intervals of the
VPC. "gaussian" is fitted to the data, which are not Gaussian: how often it is found out shows what the checks
can see, less what the fit gained by having seen the data.
"""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import chain, product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

import nlmeflow as nf

N, SIMULATED = 60, 400
TESTS = ("mean", "variance", "distribution")


def replicate(job: tuple[str, int]) -> list[dict[str, Any]]:
    """Simulate one data set; return p-values and VPC coverage under the truth and under a Gaussian."""
    design, seed = job
    scenario = nf.scenarios.load("L2", design, N, seed)
    fitted = scenario.model.fit(scenario.data, nf.Gaussian(), seed=seed, particles=256, progress=False)
    sigma = torch.tensor([scenario.sigma], dtype=torch.float64)
    truth = replace(fitted, law=scenario.law, sigma=sigma, beta=torch.zeros_like(fitted.beta))
    rows = []
    for name, fit in {"truth": truth, "gaussian": fitted}.items():
        p = nf.diagnostics.npde_tests(nf.diagnostics.npde(fit, SIMULATED, seed))
        check = nf.diagnostics.vpc(fit, SIMULATED, seed=seed)
        inside = check["observed"].between(check["lower"], check["upper"])
        rows.append({"design": design, "law": name, "replicate": seed, "vpc": inside.mean()} | dict(p))
    return rows


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--replicates", type=int, default=200)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, help="also write the table here")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    jobs = list(product("RS", range(options.replicates)))
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
        rows = pd.DataFrame(list(chain.from_iterable(tqdm(pool.map(replicate, jobs), total=len(jobs)))))
    grouped = rows.groupby(["design", "law"], sort=False)
    table = pd.DataFrame(
        {f"p < .05, {test}": grouped[test].apply(lambda p: (p < 0.05).mean()) for test in TESTS}
    )
    table["inside the VPC's 90 % interval"] = grouped["vpc"].mean()
    error = np.sqrt(0.05 * 0.95 / options.replicates)
    print(f"{options.replicates} data sets of {N} plants in each design\n{table.round(3).to_string()}")
    print(f"Under the truth the first three are .05; the standard error of such a share is {error:.3f}.")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        table.assign(replicates=options.replicates).to_csv(options.out, float_format="%.4g")


if __name__ == "__main__":
    main()
