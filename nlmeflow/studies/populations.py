"""The study of random populations: laws fitted to one data set of each, measured against the truth.

Which seeds may be looked at, and how often, says `nlmeflow.studies.random_populations`.
"""

import numpy as np
import pandas as pd

from nlmeflow.studies.core import Look, compared, oracle_row
from nlmeflow.studies.random_populations import RandomPopulation, random
from nlmeflow.studies.run import Row
from nlmeflow.studies.scenarios import best_gaussian

SMALLEST = 1e-3  # KL divergences below count as this: their Monte-Carlo error is as large
BOOTSTRAP = 2000
RELIABILITY = [0, 0.5, 0.8, 0.95, 1]  # limits of classes


def measure(seed: int, d: int, n: int = 200) -> list[Row]:
    """Fit and compare laws on one population; return the rows of `core.measure` and two reference lines.

    "oracle" is the flow learned from the true phi, "best gaussian" the Gaussian of the true moments. Each row
    has the population's kind, base, number of maps and lowest reliability of a parameter.
    """
    known = random(seed, d, n)
    closest = {"law": "best gaussian", **Look.at(known.law).measures(best_gaussian(known.law))}
    rows = [*compared(known, seed), oracle_row(known, seed), closest]
    about = described(known)
    return [about | row for row in rows]


def described(known: RandomPopulation) -> Row:
    """Return what rows say of a population: kind, base, number of maps, lowest reliability of a parameter."""
    about = {"kind": known.kind, "base": known.base.partition(" of ")[0], "maps": len(known.maps)}
    return about | {"reliability": float(known.reliability.min())}


def divergences(rows: pd.DataFrame) -> pd.DataFrame:
    """Return KL of each law, one row per population, and "better", B: the lower of Gaussian and mixture."""
    about = ["seed", "d", "kind", "base", "maps", "reliability"]
    kl = rows.pivot(index=about, columns="law", values="kl").clip(lower=SMALLEST)
    return kl.assign(better=kl[["gaussian", "mixture"]].min(axis=1))


def headline(kl: pd.DataFrame, law: str = "stacked", against: str = "better") -> pd.Series:
    """Return how a law does against another column of `divergences`, over populations.

    "ratio": geometric mean of the KL of the law over that of the other; "low" and "high": its 95 % interval,
    2,000 bootstrap samples of populations; "worse": the share of populations in which the KL of the law is
    above 1.2 times that of the other + .02; "populations": how many there are.
    """
    kl = kl[[law, against]].dropna()
    logs, n = np.log((kl[law] / kl[against]).to_numpy()), len(kl)
    again = logs[np.random.default_rng(0).integers(n, size=(BOOTSTRAP, n))].mean(1)
    low, high = np.exp(np.quantile(again, [0.025, 0.975]))
    worse = (kl[law] > 1.2 * kl[against] + 0.02).mean()
    return pd.Series(
        {"ratio": np.exp(logs.mean()), "low": low, "high": high, "worse": worse, "populations": n}
    )


def closer(kl: pd.DataFrame, law: str, other: str) -> tuple[float, float]:
    """Return the mean over populations of log KL of a law over that of another, and its standard error."""
    logs = np.log((kl[law] / kl[other]).dropna())
    return float(logs.mean()), float(logs.std() / len(logs) ** 0.5)


def report(rows: pd.DataFrame) -> None:
    """Print every law against the better of Gaussian and mixture, and the average by kind of population."""
    kl = divergences(rows)
    laws = [str(law) for law in kl.columns if law != "better"]
    print("KL over that of the better of Gaussian and mixture in hindsight, geometric mean over populations")
    print(pd.DataFrame({law: headline(kl, law) for law in laws}).T.round(3).to_string())
    print("\nThe average over the oracle\n", headline(kl, against="oracle").round(3).to_string())
    about = kl.index.to_frame()
    about["lowest reliability"] = pd.cut(about["reliability"], RELIABILITY)
    for name in ("d", "maps", "base", "lowest reliability"):
        parts = {str(value): headline(part) for value, part in kl.groupby(about[name], observed=True)}
        print(f"\nThe average by {name}\n", pd.DataFrame(parts).T.round(3).to_string())
    main = kl[["best gaussian", "gaussian", "mixture", "flow", "stacked", "oracle"]]
    print("\nKL from the truth, quartiles over populations")
    print(main.quantile([0.25, 0.5, 0.75]).T.round(3).to_string())
