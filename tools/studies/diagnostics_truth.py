"""Do the diagnostics stay quiet under the truth, and speak when the law is wrong? Simulated data sets.

    python -m nlmeflow.studies run tools/studies/diagnostics_truth.yml

Each replicate: 60 plants of scenario L2 (two strategies), rich and sparse. "truth" checks the simulation with
the law, sigma and fixed effects that made it: p-values of npde (mean, variance, distribution) are then
uniform, so that 5 % lie under .05, and nine tenths of the observed quantiles lie in the 90 % intervals of the
VPC. "gaussian" is fitted to the data, which are not Gaussian: how often it is found out shows what the checks
can see, less what the fit gained by having seen the data.
"""

import dataclasses

import numpy as np
import pandas as pd
import torch

import nlmeflow as nf
from nlmeflow.studies.run import Row

N, SIMULATED = 60, 400
TESTS = ("mean", "variance", "distribution")


def measure(design: str, replicate: int) -> list[Row]:
    """Simulate one data set; return p-values and VPC coverage under the truth and under a Gaussian."""
    seed = replicate
    scenario = nf.scenarios.load("L2", design, N, seed)
    fitted = scenario.model.fit(scenario.data, nf.Gaussian(), seed=seed, particles=256, progress=False)
    sigma = torch.tensor([scenario.sigma], dtype=torch.float64)
    truth = dataclasses.replace(fitted, law=scenario.law, sigma=sigma, beta=torch.zeros_like(fitted.beta))
    rows: list[Row] = []
    for name, fit in {"truth": truth, "gaussian": fitted}.items():
        p = nf.diagnostics.npde_tests(nf.diagnostics.npde(fit, SIMULATED, seed))
        check = nf.diagnostics.vpc(fit, SIMULATED, seed=seed)
        inside = check["observed"].between(check["lower"], check["upper"])
        rows.append({"law": name, "vpc": inside.mean()} | dict(p))
    return rows


def report(rows: pd.DataFrame) -> None:
    """Print how often each test finds something, and what the intervals hold."""
    size = rows["replicate"].nunique()
    grouped = rows.groupby(["design", "law"], sort=False)
    table = pd.DataFrame(
        {f"p < .05, {test}": grouped[test].apply(lambda p: (p < 0.05).mean()) for test in TESTS}
    )
    table["inside the VPC's 90 % interval"] = grouped["vpc"].mean()
    error = np.sqrt(0.05 * 0.95 / size)
    print(f"{size} data sets of {N} plants in each design\n{table.round(3).to_string()}")
    print(f"Under the truth the first three are .05; the standard error of such a share is {error:.3f}.")
