"""Do bands cover the density of the population? Simulated data of known laws.

    python tools/band_coverage.py [--replicates 40] [--scenarios L2 L3] [--out data/coverage/bands.csv]

Each replicate: 100 individuals, rich design; Gaussian, mixture and flow are fitted, and 90 % bands made from
40 refits with random weights of the individuals. Printed: the share of points, between the 5 % and the 95 %
quantile of the onset tau, at which the band holds the truth's marginal density, with its standard error
over replicates; for the Gaussian also the share at which it holds the closest Gaussian, which is all that it
can promise: bands know nothing of the bias of a law that is too simple.
"""

import argparse
import os
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import nlmeflow as nf
from nlmeflow.laws.marginals import marginal_density
from nlmeflow.studies.core import KEY, Job, run

N, REFITS, LEVEL = 100, 40, 0.9
LAWS: tuple[Any, ...] = (nf.Gaussian(), nf.Mixture(), nf.Flow())


def replicate(job: Job) -> list[dict[str, Any]]:
    """Fit one data set; return the coverage of each law's band."""
    name, design, n, seed = job
    scenario = nf.scenarios.load(name, design, n, seed)
    onset = scenario.law.sample(20_000, 1)[:, 0].numpy()
    low, high = np.quantile(onset, [0.05, 0.95])
    grid = np.linspace(low, high, 25)
    best = nf.scenarios.best_gaussian(scenario.law)
    truth = marginal_density(scenario.law, [0], [grid])
    fits = scenario.model.fit_laws(scenario.data, {law.name: law for law in LAWS}, seed=seed, progress=False)
    rows = []
    for law, fit in fits.items():
        table = fit.bands(REFITS, LEVEL, seed=seed, progress=False).table("tau", grid)
        row = {**dict(zip(KEY, job, strict=True)), "law": law, "truth": table_covers(table, truth)}
        row["width"] = float(((table["upper"] - table["lower"]) / truth).mean())
        if law == "gaussian":
            row["best of its kind"] = table_covers(table, marginal_density(best, [0], [grid]))
        rows.append(row)
    return rows


def table_covers(table: pd.DataFrame, density: np.ndarray) -> float:
    """Return the share of points at which the band holds a density."""
    return float(((table["lower"] <= density) & (density <= table["upper"])).mean())


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--replicates", type=int, default=40)
    parser.add_argument("--scenarios", nargs="+", default=["L1", "L2", "L3"])
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("build/coverage/bands.csv"))
    options = parser.parse_args()
    jobs = [(name, "R", N, seed) for seed, name in product(range(options.replicates), options.scenarios)]
    grouped = run(jobs, options.out, options.processes, replicate).groupby(["scenario", "law"])
    table = grouped[["truth", "best of its kind", "width"]].mean()
    table = table.assign(error=grouped["truth"].sem(), replicates=grouped.size())
    print(f"nominal {LEVEL}\n{table.round(3).to_string()}")


if __name__ == "__main__":
    main()
