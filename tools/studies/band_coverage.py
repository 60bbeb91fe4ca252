"""Do bands and intervals of the bootstrap cover? Simulated data of known laws.

    python -m nlmeflow.studies run tools/studies/band_coverage.yml [--out data/studies/band_coverage]

Each replicate: 100 individuals, rich design; Gaussian, mixture and flow are fitted, and estimated again 40
times with random weights of the individuals. Printed: the share of points, between the 5 % and the 95 %
quantile of the onset tau, at which the 90 % band holds the truth's marginal density, with its standard error
over replicates; for the Gaussian also the share at which it holds the closest Gaussian, which is all that it
can promise: bands know nothing of the bias of a law that is too simple; and the share if the limits were
moved away from the estimate by a factor. Then how often the 95 % limits that are printed hold the true
parameters, quantiles of the onset, and the share of the first group: the truth's mass in the first of the
groups that the fit found, where it found more than one.
"""

import numpy as np
import pandas as pd
import torch

import nlmeflow as nf
from nlmeflow.fitting.bootstrap import Bootstrap
from nlmeflow.laws.marginals import marginal_density
from nlmeflow.laws.modes import basins
from nlmeflow.laws.specification import Specification
from nlmeflow.studies.run import Row

REFITS, LEVEL = 40, 0.9
FACTORS = (1.1, 1.2, 1.3, 1.5, 2.0)
QUANTILES = (0.1, 0.5, 0.9)
LAWS: tuple[Specification, ...] = (nf.Gaussian(), nf.Mixture(), nf.Flow())


def measure(scenario: str, n: int, replicate: int) -> list[Row]:
    """Fit one data set; return the coverage of each law's band."""
    known = nf.scenarios.load(scenario, "R", n, replicate)
    onset = known.law.sample(20_000, 1)[:, 0].numpy()
    low, high = np.quantile(onset, [0.05, 0.95])
    grid = np.linspace(low, high, 25)
    best = nf.scenarios.best_gaussian(known.law)
    truth = marginal_density(known.law, [0], [grid])
    fits = known.model.fit_laws(known.data, {law.name: law for law in LAWS}, seed=replicate, progress=False)
    rows = []
    for law, fit in fits.items():
        found = fit.bootstrap(REFITS, seed=replicate, progress=False)
        table = found.bands(LEVEL).table("tau", grid)
        row: Row = {"law": law, "truth": table_covers(table, truth)}
        row |= {f"wider {factor:g}": table_covers(widened(table, factor), truth) for factor in FACTORS}
        row["width"] = float(((table["upper"] - table["lower"]) / truth).mean())
        if law == "gaussian":
            row["best of its kind"] = table_covers(table, marginal_density(best, [0], [grid]))
        rows.append(row | covered(known, found))
    return rows


def covered(known: nf.scenarios.Scenario, found: Bootstrap) -> Row:
    """Return, by name, whether 95 % intervals hold the true parameters and quantiles, 1 or 0."""
    mean, covariance = known.law.two_moments
    truth = torch.cat([mean, covariance.diagonal().sqrt(), known.beta, torch.tensor([known.sigma])])
    names = [f"{kind} {name}" for kind in ("mean", "sd") for name in known.model.random]
    names += [*known.model.fixed, "sigma"]
    estimates = found.parameters().drop("correlation", level="kind")
    hold = estimates["lower"].lt(truth.numpy()) & estimates["upper"].gt(truth.numpy())
    row: Row = {name: int(holds) for name, holds in zip(names, hold, strict=True)}
    table = found.quantiles(QUANTILES).loc["tau"]
    true = known.law.sample(400_000, 2)[:, 0].numpy()
    for level, low, high in zip(QUANTILES, table["lower"], table["upper"], strict=True):
        row[f"{level:g} quantile of tau"] = int(low < np.quantile(true, level) < high)
    return row | share_covered(known, found)


def share_covered(known: nf.scenarios.Scenario, found: Bootstrap) -> Row:
    """Return whether a 95 % interval holds the truth's mass in the first group, where there are several."""
    table = found.shares()
    share = float(basins(found.fit.law).shares(known.law.sample(400_000, 2))[0])
    holds = int(table["lower"].iloc[0] < share < table["upper"].iloc[0]) if len(table) > 1 else None
    return {"groups": len(table), "share of the first group": holds}


def widened(table: pd.DataFrame, factor: float) -> pd.DataFrame:
    """Return a band whose limits are this factor times as far from the estimate."""
    middle, limits = table["density"], table[["lower", "upper"]]
    return limits.sub(middle, axis=0).mul(factor).add(middle, axis=0)


def table_covers(table: pd.DataFrame, density: np.ndarray) -> float:
    """Return the share of points at which the band holds a density."""
    return float(((table["lower"] <= density) & (density <= table["upper"])).mean())


def report(rows: pd.DataFrame) -> None:
    """Print the coverage of each law's bands and intervals."""
    grouped = rows.groupby(["scenario", "law"])
    wider = [name for name in map(str, rows) if name.startswith("wider ")]
    table = grouped[["truth", *wider, "best of its kind", "width"]].mean()
    table = table.assign(error=grouped["truth"].sem(), replicates=grouped.size())
    print(f"nominal {LEVEL}\n{table.round(3).to_string()}")
    intervals = grouped[list(rows.loc[:, "mean tau":])].mean()
    print(f"intervals, nominal 0.95\n{intervals.round(2).T.to_string()}")
