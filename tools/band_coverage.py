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
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

import nlmeflow as nf
from nlmeflow.marginals import marginal_density

N, REFITS, LEVEL = 100, 40, 0.9
LAWS: tuple[Any, ...] = (nf.Gaussian(), nf.Mixture(), nf.Flow())


def replicate(job: tuple[str, int]) -> list[dict[str, Any]]:
    """Fit one data set; return the coverage of each law's band."""
    name, seed = job
    scenario = nf.scenarios.load(name, "R", N, seed)
    onset = scenario.law.sample(20_000, 1)[:, 0].numpy()
    low, high = np.quantile(onset, [0.05, 0.95])
    grid = np.linspace(low, high, 25)
    best = nf.scenarios.best_gaussian(scenario.law)
    truth = marginal_density(scenario.law, [0], [grid])
    fits = scenario.model.fit_laws(scenario.data, {law.name: law for law in LAWS}, seed=seed, progress=False)
    rows = []
    for law, fit in fits.items():
        table = fit.bands(REFITS, LEVEL, seed=seed, progress=False).table("tau", grid)
        row = {"scenario": name, "replicate": seed, "law": law, "truth": table_covers(table, truth)}
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
    parser.add_argument("--out", type=Path, help="also write the table here")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    jobs = list(product(options.scenarios, range(options.replicates)))
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
        found = tqdm(pool.map(replicate, jobs), total=len(jobs), unit="fit")
        rows = pd.DataFrame(list(chain.from_iterable(found)))
    grouped = rows.groupby(["scenario", "law"])
    table = grouped[["truth", "best of its kind"]].mean().assign(error=grouped["truth"].sem())
    print(f"{options.replicates} replicates, nominal {LEVEL}\n{table.round(3).to_string()}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        table.assign(replicates=options.replicates).to_csv(options.out, float_format="%.6g")


if __name__ == "__main__":
    main()
