"""Every estimator of the package on the same data, and the members of the average one by one.

    python -m nlmeflow.studies run tools/studies/relatives.yml [--out data/studies/relatives]

Rows of the estimators have the measures of `nlmeflow.studies.core`, the CPU seconds of the fit (posterior
draws are shared, and are paid by the first of them), and where a fit ended in an error its words; rows of
members and averages (see `members`) have the KL divergence.

Laws made of points or of individual estimates are measured as Gaussian kernels at them, of a width that
held-out individuals choose: the same rule for all, so that laws are compared and not widths. Each is learned
without each of five folds, and the width is the widest whose held-out likelihood is within one standard
error of the highest. NPML is the certified maximum; NPEM and NPAG are the algorithms alone, as they were
published.
"""

from time import process_time

import pandas as pd
import torch
from members import carried
from torch import Tensor

import nlmeflow as nf
from nlmeflow.errors import EstimationError, ModelError
from nlmeflow.estimation.engine import Task, training_set
from nlmeflow.fitting.fit import Fit
from nlmeflow.laws import EBEDensity, KernelLaw, Law, Specification, TwoStage
from nlmeflow.laws.draws import cross_scores
from nlmeflow.laws.kernels import BANDWIDTHS, widest
from nlmeflow.laws.points.law import DiscreteLaw
from nlmeflow.running import estimating
from nlmeflow.studies import core
from nlmeflow.studies.core import Look, errors_of, predictive, task_of
from nlmeflow.studies.populations import described, divergences, headline
from nlmeflow.studies.random_populations import random
from nlmeflow.studies.run import Row
from nlmeflow.studies.scenario import Scenario
from nlmeflow.studies.scenarios import load

ESTIMATORS: tuple[Specification, ...] = (
    *(nf.Gaussian(), nf.SAEM(), nf.Transformed(), nf.Transformed("heavy tails"), nf.SNP(), nf.Mixture()),
    *(nf.DirichletProcess(), nf.SmoothNPMLE(), nf.NPML(), nf.NPEM(tolerance=None)),
    *(nf.NPAG(tolerance=None), nf.NPonEBE(), TwoStage(), EBEDensity(), nf.Flow()),
)


def measure(scenario: str, design: str, n: int, replicate: int) -> list[Row]:
    """Fit every estimator to one replicate of one scenario; return the rows of the page above."""
    return estimated(load(scenario, design, n, replicate), replicate)


def measure_random(seed: int, d: int, n: int = 200) -> list[Row]:
    """Fit every estimator to one data set of a random population."""
    known = random(seed, d, n)
    about = described(known)
    return [about | row for row in estimated(known, seed)]


def estimated(known: Scenario, seed: int) -> list[Row]:
    """Return the rows of one data set."""
    task = task_of(known, seed)
    fits: dict[str, Fit] = {}
    rows: dict[str, Row] = {}
    for law in ESTIMATORS:
        begun = process_time()
        try:
            fits[law.name] = known.model.fit_task(task, law, progress=False)
        except (EstimationError, ModelError) as error:
            rows[law.name] = {"law": law.name, "ended": str(error)}
        else:
            rows[law.name] = {"law": law.name, "seconds": process_time() - begun}
    with estimating():
        look = Look.at(known.law)
        laws, widths = {}, {}
        for law in ESTIMATORS:
            if law.name in fits:
                laws[law.name], widths[law.name] = with_density(fits[law.name].law, law, task)
        news = predictive(known, look, laws)
        for name, found in laws.items():
            fit = fits[name]
            rows[name] |= {"width": widths[name], "converged": fit.converged, **errors_of(known, fit)}
            rows[name] |= look.measures(found) | news[name]
        members = carried(task, look)
    return [*rows.values(), *({"law": name, "kl": kl} for name, kl in members)]


def with_density(law: Law, specification: Specification, task: Task) -> tuple[Law, float | None]:
    """Return a law, as kernels where it is made of points or estimates, and the width of these."""
    made_of_estimates = isinstance(specification, TwoStage | EBEDensity)
    if law.has_density and not made_of_estimates:
        return law, None
    training, folds = training_set(task), task.folds
    assert folds is not None
    parts = specification.learn_without(training, folds)

    def held_out(width: float) -> Tensor:
        return cross_scores(training.draws, [at(part, width) for part in parts], folds)

    width = BANDWIDTHS[widest(torch.stack([held_out(width) for width in BANDWIDTHS]))]
    return at(law, width), width


def at(law: Law, width: float) -> Law:
    """Return the kernels of a width at the points of a law."""
    if isinstance(law, DiscreteLaw):
        return law.smoothed(width)
    assert isinstance(law, KernelLaw)
    return KernelLaw.of_estimates(law.points, width)


def report(rows: pd.DataFrame) -> None:
    """Print KL of the estimators, and every law against the better of Gaussian and mixture."""
    estimators = rows["law"].isin([law.name for law in ESTIMATORS])
    print("KL from the truth, mean (standard error)\n", core.table(rows[estimators]).T.to_string())
    print("\nKL over that of the better of Gaussian and mixture in hindsight, geometric mean over scenarios")
    found = core.mean_ratios(rows).round(3).astype(str)
    print((found + " (" + core.mean_ratio_errors(rows).round(3).astype(str) + ")").to_string())
    seconds = rows[estimators].groupby("law")["seconds"].median()
    print("\nCPU seconds of a fit, median\n", seconds.sort_values().round(2).to_string())


def report_random(rows: pd.DataFrame) -> None:
    """Print every law against the better of Gaussian and mixture, over random populations."""
    kl = divergences(rows)
    laws = [str(law) for law in kl.columns if law != "better"]
    print("KL over that of the better of Gaussian and mixture in hindsight, geometric mean over populations")
    print(pd.DataFrame({law: headline(kl, law) for law in laws}).T.round(3).to_string())
