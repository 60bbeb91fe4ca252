"""How much data does it take to see the shape of a population? Numbers of individuals, and designs.

    python -m nlmeflow.studies run tools/studies/how_much.yml [--out data/studies/how_much]

Each replicate: Gaussian, mixture and flow fitted to one data set and compared by five-fold held-out
prediction. Rows, one a law: KL divergence from the truth; modes and their error; on a true mixture the error
of its groups' masses and the mass between them. The row of the flow has the test of the Gaussian beside it
(`Comparison.check`): the gain, its standard error, and whether a Gaussian is "enough" or "undecided". In the
design of two times sigma is given, and the row of the Gaussian says of which parameters no variation is seen
(`Fit.unseen`).
"""

from dataclasses import replace

import pandas as pd

import nlmeflow as nf
from nlmeflow.errors import EstimationError
from nlmeflow.laws import Law, metrics
from nlmeflow.running import estimating
from nlmeflow.studies.core import LAWS, Look, masses, table
from nlmeflow.studies.run import Row
from nlmeflow.studies.scenarios import MODES

HOPELESS = "H"
JOB = ["scenario", "design", "n"]


def measure(scenario: str, design: str, n: int, replicate: int) -> list[Row]:
    """Fit and compare the three laws on one data set; return a row for each."""
    known = nf.scenarios.load(scenario, design, n, replicate)
    model = known.model
    if (
        design == HOPELESS
    ):  # sigma could not be told from the population: without it only a Gaussian is fitted
        model = replace(model, residual=nf.LogAdditive(sigma=known.sigma))
    comparison = nf.compare(model, known.data, LAWS, seed=replicate, progress=False)
    with estimating():
        look = Look.at(known.law)
        rows = {name: shape(look, fit.law.density()) for name, fit in comparison.fits.items()}
    if scenario in MODES:
        for row in rows.values():
            row["right number of modes"] = int(row["modes"] == MODES[scenario])
    test = comparison.check()
    rows["flow"] |= {"gain": test.gain, "gain error": test.error}
    rows["flow"] |= {"enough": int(test.enough), "undecided": int(test.undecided)}
    if design == HOPELESS:
        rows["gaussian"]["unseen"] = ", ".join(unseen(comparison.fits["gaussian"]))
    reliability = float(known.reliability.min())
    return [{"law": name, "reliability": reliability, **row} for name, row in rows.items()]


def shape(look: Look, law: Law) -> Row:
    """Return KL, number of modes and the groups' masses of one law."""
    row: Row = {"kl": look.kl(law), "modes": len(metrics.modes(law))}
    if (groups := look.truth.groups) is not None and len(groups.weights) > 1:
        row |= masses(groups, law.sample(10_000, 0))
    return row


def unseen(fit: nf.Fit) -> tuple[str, ...]:
    """Return the parameters of which no variation is seen; all where no smaller model can be fitted."""
    try:
        return fit.unseen()
    except EstimationError:
        return tuple(fit.names)


def power(rows: pd.DataFrame) -> pd.DataFrame:
    """Return how often the test calls a Gaussian not enough, undecided, and the mean gain, by job."""
    tested = rows[rows["law"] == "flow"].assign(found=lambda table: 1 - table["enough"])
    grouped = tested.groupby(JOB)
    means = grouped[["found", "undecided", "gain", "reliability"]].mean()
    return means.assign(error=grouped["gain"].sem(), replicates=grouped.size())


def report(rows: pd.DataFrame) -> None:
    """Print the tables of the study."""
    for name in ("kl", "right number of modes", "error of a mass", "mass between groups"):
        print(f"\n{name}, mean (standard error)\n{table(rows, name, by=JOB).to_string()}")
    print(f"\nThe test of the Gaussian\n{power(rows).round(3).to_string()}")
    hopeless = rows[(rows["design"] == HOPELESS) & (rows["law"] == "gaussian")]
    if len(hopeless):
        print(f"\nVariation not seen with two times\n{hopeless['unseen'].value_counts().to_string()}")
