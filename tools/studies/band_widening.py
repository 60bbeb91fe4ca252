"""By how much would bands of a mixture have to be widened? Skewed populations, which it does not fit exactly.

    python -m nlmeflow.studies run tools/studies/band_widening.yml

Each replicate: 100 individuals of a scenario, rich design; a mixture and 40 replicates of its bootstrap, as
in band_coverage. The limits of the 90 % band are moved away from the estimate by a factor; the share of
points between the 5 % and the 95 % quantile of the onset tau at which it then holds the truth.
"""

import numpy as np
import pandas as pd
from band_coverage import LEVEL, REFITS, table_covers, widened

import nlmeflow as nf
from nlmeflow.laws.marginals import marginal_density
from nlmeflow.studies.run import Row

FACTORS = (1.0, 1.1, 1.2, 1.3, 1.5, 1.75, 2.0)


def measure(scenario: str, replicate: int) -> list[Row]:
    """Fit one data set; return for each factor the share of points that the widened band holds."""
    known = nf.scenarios.load(scenario, "R", 100, replicate)
    onset = known.law.sample(20_000, 1)[:, 0].numpy()
    first, last = np.quantile(onset, [0.05, 0.95])
    grid = np.linspace(first, last, 25)
    truth = marginal_density(known.law, [0], [grid])
    fit = known.model.fit(known.data, nf.Mixture(), seed=replicate, progress=False)
    band = fit.bootstrap(REFITS, seed=replicate, progress=False).bands(LEVEL).table("tau", grid)
    rows: list[Row] = []
    for factor in FACTORS:
        held = table_covers(widened(band, factor), truth)
        rows.append({"factor": factor, "held": held, "components": fit.law.n_components})
    return rows


def report(rows: pd.DataFrame) -> None:
    """Print the share of points held for each factor, by the number of components."""
    grouped = rows.groupby(["scenario", "factor"])["held"]
    table = grouped.mean().to_frame("held").assign(error=grouped.sem(), replicates=grouped.size())
    print(table.round(3).to_string())
    print(rows.groupby(["scenario", "components", "factor"])["held"].mean().unstack().round(3).to_string())
