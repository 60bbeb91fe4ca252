"""Deconvolution on simulated lines, replicated: tools/studies/linear.yml.

For each law of the slopes, number of individuals, noise and number of times, the integrated squared error of
deconvolution with its own cut-off, of the best fixed cut-off (the one whose mean error over the
replicates is lowest, which nobody can know), of a kernel density of the individual least-squares slopes
(two-stage), and of the Gaussian of a linear mixed model (statsmodels; where it is quick).
"""

import warnings

import numpy as np
import pandas as pd
from scipy import stats

from nlmeflow.deconvolution import EVERY, contrast, densities, observe
from nlmeflow.studies import linear_scenarios
from nlmeflow.studies.linear_scenarios import LinearScenario
from nlmeflow.studies.run import Row
from nlmeflow.studies.table import rows as stored_rows

CELL = ["law", "times", "sigma", "n"]
GRID = np.linspace(-7.0, 8.0, 400)
MIXED = (100, 10)  # at most so many individuals, in so many replicates, for the linear mixed model


def error(density: np.ndarray, truth: np.ndarray) -> float:
    """Return the integrated squared error on GRID."""
    return float(np.trapezoid((density - truth) ** 2, GRID))


def measure(law: str, n: int, sigma: float, times: int, replicate: int) -> list[Row]:
    """Return the errors on one data set; "fixed cut-offs" are those of every cut-off."""
    scenario = linear_scenarios.load(law, n, times, sigma, replicate)
    truth = scenario.truth.pdf(GRID)
    seen = observe(scenario.data)
    criterion = contrast(seen)
    every = densities(seen, GRID, seen.u[EVERY::EVERY])
    errors = np.trapezoid((every - truth) ** 2, GRID, axis=1)
    row: Row = {"deconvolution": errors[int(criterion["criterion"].to_numpy().argmin())]}
    pairs = observe(scenario.data, noise="unknown") if times >= 4 else None
    if pairs is not None:
        best = contrast(pairs)["criterion"].to_numpy().argmin()
        row["unknown noise"] = error(densities(pairs, GRID, pairs.u[[EVERY * (best + 1)]])[0], truth)
    row["two-stage"] = error(stats.gaussian_kde(seen.z)(GRID), truth)
    if n <= MIXED[0] and replicate < MIXED[1]:
        row["Gaussian mixed model"] = error(_mixed(scenario), truth)
    return [row | {"fixed cut-offs": errors.astype(np.float32)}]


def with_best_cutoff(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows with the error of the best fixed cut-off of their cell in place of those of all cut-offs.

    Cut-offs are in units of 1 / sd(Z), the same in all replicates.
    """

    def best(errors: pd.Series) -> pd.Series:
        table = np.stack(errors.to_list())
        return pd.Series(table[:, table.mean(0).argmin()].astype(float), errors.index)

    chosen = rows.groupby(CELL)["fixed cut-offs"].transform(best)
    return rows.assign(**{"best fixed cut-off": chosen.astype(float)}).drop(columns="fixed cut-offs")


def _mixed(scenario: LinearScenario) -> np.ndarray:
    """Return the Gaussian density of slopes of a linear mixed model by maximum likelihood."""
    import statsmodels.api as sm  # an extra of the package, for this comparison alone

    n, times = scenario.data.response.shape
    time = scenario.data.time.numpy().ravel()
    design = sm.add_constant(time)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = sm.MixedLM(
            scenario.data.response.numpy().ravel(), design, np.repeat(np.arange(n), times), exog_re=design
        )
        fit = model.fit(reml=False)
    density: np.ndarray = stats.norm(fit.fe_params[1], np.sqrt(fit.cov_re[1, 1])).pdf(GRID)
    return density


def stored() -> pd.DataFrame:
    """Return the project's own study, kept in data/studies."""
    return stored_rows("linear")


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return mean errors over the replicates, one row per cell."""
    return rows.groupby(CELL).mean(numeric_only=True).drop(columns="replicate")


def report(rows: pd.DataFrame) -> None:
    """Print the table of a study."""
    print(table(with_best_cutoff(rows)).round(4).to_string())
