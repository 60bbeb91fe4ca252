"""The study of the ten populations: laws fitted to replicated simulations, measured against the truth.

Each job is one replicate of one scenario in one design, run by `nlmeflow.studies.run`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from time import process_time

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nlmeflow.estimation.em import State
from nlmeflow.estimation.engine import Task, training_set
from nlmeflow.estimation.likelihood import locate
from nlmeflow.estimation.particles import draw
from nlmeflow.fitting.comparison import compare_task
from nlmeflow.fitting.fit import Fit
from nlmeflow.laws import (
    Flow,
    Gaussian,
    Law,
    Mixture,
    MixtureLaw,
    Specification,
    metrics,
)
from nlmeflow.laws.averaging import prior_weights, stacking_weights
from nlmeflow.laws.draws import Folds, PosteriorDraws, TrainingSet, expectation
from nlmeflow.laws.flow.ensemble import Candidate, Table
from nlmeflow.numerics import TINY, moments
from nlmeflow.running import Memory, estimating
from nlmeflow.seeds import Stream, derive, generator
from nlmeflow.studies import scenarios
from nlmeflow.studies.run import Row
from nlmeflow.studies.scenario import Scenario, Truth
from nlmeflow.studies.table import rows as stored_rows

FOLDS = 5
EARLY = 0.2  # share of the individuals of a truth that count as early
FIT_SEEDS = 1000  # apart are the seeds of fits with other random numbers
LAWS: tuple[Specification, ...] = (Gaussian(), Mixture(), Flow())


def measure(scenario: str, design: str, n: int, replicate: int, fit_seed: int = 0) -> list[Row]:
    """Fit and compare laws on one replicate; return one row per law, candidate and rule.

    The data depend on the job alone; another `fit_seed` fits the same data with other random numbers.

    gaussian, mixture, flow: the fits. stacked: their average, by `nf.compare`. "flow: ..." are the
    candidates of the average alone, "without ..." the average without one of them, "rule: ..." the average
    with its weights set in another way.
    """
    known = scenarios.load(scenario, design, n, replicate)
    return compared(known, replicate + FIT_SEEDS * fit_seed)


def compared(known: Scenario, seed: int) -> list[Row]:
    """Fit and compare Gaussian, mixture and flow on the data of a scenario, as `measure` does."""
    task = task_of(known, seed)
    begun = process_time()
    comparison = compare_task(known.model, task, LAWS, known.data.labels, progress=False)
    seconds = process_time() - begun
    found: dict[str, Law] = {name: fit.law for name, fit in comparison.fits.items()}
    found["stacked"] = comparison.stacked
    with estimating():
        look = Look.at(known.law)
        news = predictive(known, look, found)
        measured = {name: {"law": name, **look.measures(law), **news[name]} for name, law in found.items()}
        measured["stacked"]["seconds"] = seconds
        for name, fit in comparison.fits.items():
            measured[name] |= {**errors_of(known, fit), "converged": fit.converged}
        training = training_set(task)
        return [*measured.values(), *ablation(look, Flow().candidates(training, training.split(FOLDS)))]


def task_of(known: Scenario, seed: int) -> Task:
    """Return the fitting task of the study for the data of a scenario, with the folds of its comparison."""
    folds = Folds.random(len(known.phi), FOLDS, derive(seed, Stream.COMPARISON_FOLDS))
    return known.model.task(known.data, seed=seed, folds=folds)


def measure_oracle(scenario: str, design: str, n: int, replicate: int, fit_seed: int = 0) -> list[Row]:
    """Return the row of the oracle, the flow learned from the true phi, on one replicate."""
    return [oracle_row(scenarios.load(scenario, design, n, replicate), replicate + FIT_SEEDS * fit_seed)]


def oracle_row(known: Scenario, seed: int) -> Row:
    """Return the row of the flow learned from the true phi of a scenario."""
    law, look = oracle(known.phi, seed), Look.at(known.law)
    with estimating():
        return {"law": "oracle", **look.measures(law), **predictive(known, look, {"oracle": law})["oracle"]}


def oracle(phi: Tensor, seed: int) -> Law:
    """Return the flow learned from individual parameters (N, d) known without error."""
    with estimating():
        draws = PosteriorDraws(phi[:, None], torch.zeros(len(phi), 1, dtype=phi.dtype))
        return Flow().learn(TrainingSet(draws, seed))


def ablation(look: "Look", found: list[Candidate]) -> list[Row]:
    """Return KL and weight of each candidate alone, of the average without it, and of other weights."""
    log_truth = look.log_truth
    log_laws = torch.stack([look.log_prob(candidate.law) for candidate in found], 1)
    scores, penalty = Table.of(found)

    def divergence(weights: Tensor, kept: list[int]) -> float:
        log_stack = (log_laws[:, kept] + weights.log()).logsumexp(1)
        return float((log_truth - log_stack).mean())

    everyone = list(range(len(found)))
    weights = stacking_weights(scores, penalty)
    rows: list[Row] = []
    for k, candidate in enumerate(found):
        alone = {"kl": float((log_truth - log_laws[:, k]).mean()), "weight": float(weights[k])}
        rows.append({"law": f"flow: {candidate.name}", **alone})
        others = [j for j in everyone if j != k]
        rest = divergence(stacking_weights(scores[:, others], penalty[others]), others)
        rows.append({"law": f"without {candidate.name}", "kl": rest})
    size = len(found)
    best = torch.nn.functional.one_hot(scores.sum(0).argmax(), size).double()
    rules = {
        "equal weights": torch.full((size,), 1 / size, dtype=torch.float64),
        "the best alone": best.clamp_min(TINY),
        "stacking": stacking_weights(scores, penalty, strength=1e-3),
        "no penalty": stacking_weights(scores),
        "pseudo-BMA": prior_weights(scores, penalty),
        "pseudo-BMA, temperature 1": prior_weights(scores, penalty, temperature=1.0),
        "pseudo-BMA, temperature 4": prior_weights(scores, penalty, temperature=4.0),
    }
    return rows + [{"law": f"rule: {rule}", "kl": divergence(w, everyone)} for rule, w in rules.items()]


def predictive(scenario: Scenario, look: "Look", laws: dict[str, Law], n: int = 200) -> dict[str, Row]:
    """Return what each law costs on n new individuals of the same design, curve and sigma known.

    "loss": mean of log p_truth(y) - log p_law(y), in nats per individual. "regret": how much larger the mean
    squared error of conditional means is than under the truth, as a share of it (coordinates in units of the
    true sds). Early are the 20 % of the true law with the lowest value of the scenario's trait: "error of the
    early share" is that of their share, "regret of selection" the yield lost where early individuals are
    chosen by their conditional means under the law, in sds of the trait (see `metrics.selection_regret`).
    """
    new, spread = scenario.others(n), look.phi.std(0)
    k = scenario.model.random.index(scenario.trait)
    threshold = look.phi[:, k].quantile(EARLY)
    problem = scenario.model.problem(new.data)
    with estimating():
        random = generator(derive(scenario.seed, Stream.NEW_DATA))
        state = State(new.law, new.beta, torch.tensor([new.sigma], dtype=torch.float64))
        drawn = draw(problem, locate(problem, state, 128, random), state.beta, 128, random)
        ratio = drawn.log_ratio(problem, state.sigma)

        def seen(law: Law) -> tuple[Tensor, Tensor]:
            step = expectation(ratio, law.log_prob(drawn.phi))
            return step.log_likelihood.mean(), moments(drawn.phi, step.weights)[0]

        def error(mean: Tensor) -> Tensor:
            return ((mean - new.phi) / spread).square().mean()

        best, right = seen(new.law)
        rows = {}
        for name, law in laws.items():
            value, mean = seen(law)
            early = law.sample(metrics.DRAWS, 0)[:, k] < threshold
            rows[name] = {
                "loss": float(best - value),
                "regret": float(error(mean) / error(right) - 1),
                "error of the early share": float(early.double().mean()) - EARLY,
                "regret of selection": metrics.selection_regret(right[:, k], mean[:, k], float(threshold))
                / float(spread[k]),
            }
    return rows


@dataclass
class Look:
    """Draws of a truth (n, d) with their log-densities, at which all laws are looked at.

    Log-densities of laws that several averages have in common are kept.
    """

    truth: Truth
    phi: Tensor
    log_truth: Tensor
    kept: Memory = field(default_factory=Memory)

    @classmethod
    def at(cls, truth: Truth) -> "Look":
        """Look at a truth."""
        phi = truth.sample(metrics.DRAWS, 0)
        return cls(truth, phi, truth.log_prob(phi))

    @cached_property
    def modes(self) -> int:
        """The number of modes of the truth."""
        return len(metrics.modes(self.truth))

    def log_prob(self, law: Law) -> Tensor:
        """Return log p_law at the truth's draws, (n,)."""
        if law.averaged is not None:
            laws, weights = law.averaged
            return (torch.stack([self.log_prob(part) for part in laws], 1) + weights.log()).logsumexp(1)
        return self.kept.once(id(law), lambda: (law, law.log_prob(self.phi)))[1]

    def kl(self, law: Law) -> float:
        """Return the KL divergence of a law from the truth."""
        return float((self.log_truth - self.log_prob(law)).mean())

    def measures(self, law: Law, n: int = 10_000) -> Row:
        """Return the headline measures, the number of modes, errors of masses, marginals, three moments.

        Total variation and Hellinger distance by n draws, half from each law (see `nlmeflow.laws.metrics`).
        "modes" and how many too many, up to three dimensions. Of a true mixture "error of a mass", the
        largest over its groups, and "mass between groups"; "mass outside" is `metrics.mass_outside`.
        "marginal ise" is the mean over the coordinates, in two dimensions only (in three the quadrature takes
        longer than the fits). Errors of moments are root mean squares over the coordinates, in units of the
        true sds.
        """
        log_law = self.log_prob(law)
        drawn, half = law.sample(n, 0), n // 2
        log_drawn = self.truth.log_prob(drawn)
        difference = torch.cat(
            [(self.log_truth - log_law)[:half], log_drawn[:half] - law.log_prob(drawn[:half])]
        )
        centre, spread = self.phi.mean(0), self.phi.std(0)
        z, t = (drawn - centre) / spread, (self.phi - centre) / spread

        def skewness(x: Tensor) -> Tensor:
            return ((x - x.mean(0)) / x.std(0)).pow(3).mean(0)

        def size(x: Tensor) -> float:
            return float(x.square().mean().sqrt())

        structure: Row = {}
        if (groups := self.truth.groups) is not None:
            structure |= masses(groups, drawn)
        if law.dim <= 3:
            structure["modes"] = len(metrics.modes(law))
            structure["error of modes"] = structure["modes"] - self.modes
        if law.dim == 2:
            structure["marginal ise"] = float(metrics.marginal_ise(self.truth, law, 121).mean())
        return structure | {
            "kl": self.kl(law),
            "tv": metrics.variation(difference),
            "hellinger": math.sqrt(1 - metrics.affinity(difference)),
            "mass outside": metrics.share_outside(log_drawn, self.log_truth.max()),
            "error of the mean": size(z.mean(0)),
            "error of the sd": size(z.std(0) - 1),
            "error of the skewness": size(skewness(z) - skewness(t)),
        }


def masses(groups: MixtureLaw, drawn: Tensor) -> Row:
    """Return the largest error of the masses of a truth's groups, by draws, and the mass between them."""
    error = (metrics.group_shares(groups, drawn) - groups.weights).abs().max()
    return {"error of a mass": float(error), "mass between groups": metrics.share_between(groups, drawn)}


def errors_of(scenario: Scenario, fit: Fit) -> dict[str, float]:
    """Return the errors of sigma, as a share of it, and of the fixed effects."""
    sigma = next(iter(fit.residual.values())) / scenario.sigma - 1
    fixed = {f"error {name}": fit.fixed[name] - value for name, value in scenario.fixed.items()}
    return {"relative error sigma": sigma, **fixed}


def table(
    rows: pd.DataFrame, measure: str = "kl", digits: int = 3, by: Sequence[str] = ("design", "scenario")
) -> pd.DataFrame:
    """Return means with standard errors over replicates, one row per scenario and design, or as `by` says."""
    grouped = rows.groupby([*by, "law"])[measure]
    number = f"{{:.{digits}f}}".format
    text = grouped.mean().map(number) + " (" + grouped.sem().map(number) + ")"
    return text.unstack("law")


def ratios(rows: pd.DataFrame, law: str = "stacked") -> pd.Series:
    """Return mean KL of a law over that of the better of Gaussian and mixture, chosen in hindsight."""
    means = rows.groupby(["design", "scenario", "law"])["kl"].mean().unstack("law")
    return over_better(means)[law]


def over_better(kl: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of KL, one a law, over the lower of Gaussian and mixture."""
    return kl.div(kl[["gaussian", "mixture"]].min(axis=1), axis=0)


def mean_ratios(rows: pd.DataFrame) -> pd.DataFrame:
    """Return geometric means of `ratios` over the scenarios: a row for each law, a column for each design."""
    return _mean_ratios(_divergences(rows)).T


def mean_ratio_errors(rows: pd.DataFrame, resamples: int = 100) -> pd.DataFrame:
    """Return standard errors of `mean_ratios`, by resampling the replicates of each scenario and design."""
    kl = _divergences(rows).groupby(["design", "scenario"])
    found = [_mean_ratios(kl.sample(frac=1, replace=True, random_state=k)) for k in range(resamples)]
    return pd.concat(found).groupby("design").std().T


def _divergences(rows: pd.DataFrame) -> pd.DataFrame:
    """Return KL, a row for each data set, a column for each law."""
    return rows.pivot(index=["design", "scenario", "replicate"], columns="law", values="kl")


def _mean_ratios(kl: pd.DataFrame) -> pd.DataFrame:
    logs = pd.DataFrame(np.log(over_better(kl.groupby(["design", "scenario"]).mean())))
    return pd.DataFrame(np.exp(logs.groupby("design").mean()))


def relative_to(rows: pd.DataFrame, usual: str) -> pd.DataFrame:
    """Return KL of each variant of a law over that of the usual one, one column per design.

    Geometric mean over the scenarios of ratios of means over replicates.
    """
    means = rows.groupby(["law", "design", "scenario", "variant"])["kl"].mean()
    logs = pd.DataFrame(np.log(means.unstack("variant")))
    mean = logs.sub(logs[usual], axis=0).groupby(["law", "design"]).mean()
    return pd.DataFrame(np.exp(mean.stack().unstack("design"))).dropna(how="all")


def stored(name: str = "core") -> pd.DataFrame:
    """Return the rows of a study of the project's own, kept in data/studies: "core", or its check "seed1"."""
    return pd.concat([stored_rows(part) for part in (name, f"{name}-oracle")], ignore_index=True)


def median_replicate(rows: pd.DataFrame, scenario: str, design: str, law: str = "stacked") -> int:
    """Return the replicate whose KL is the median of its scenario and design (the lower of two)."""
    kept = rows.query("scenario == @scenario and design == @design and law == @law").sort_values("kl")
    return int(kept["replicate"].iloc[(len(kept) - 1) // 2])


def report(rows: pd.DataFrame) -> None:
    """Print the tables of a study."""
    detail = rows["law"].str.contains(":|without")
    print("KL from the truth, mean (standard error)\n", table(rows[~detail]).to_string())
    print("\nTotal variation\n", table(rows[~detail], "tv").to_string())
    print("\nLoss on new individuals, nats each\n", table(rows[~detail], "loss", 4).to_string())
    print("\nRegret of conditional means\n", table(rows[~detail], "regret").to_string())
    print("\nKL of the stacked law over the better of Gaussian and mixture (in hindsight)")
    print(ratios(rows).unstack("design").round(2).to_string())
    print("\nThe same ratio for every law and rule, geometric mean over the scenarios")
    print(mean_ratios(rows).round(3).to_string())
    print("\n... its standard error")
    print(mean_ratio_errors(rows).round(3).to_string())
    right = rows[rows["law"] == "stacked"]
    right = right.assign(right=right["modes"] == right["scenario"].map(scenarios.MODES))
    print("\nShare of replicates with the right number of modes (stacked)")
    print(right.groupby(["scenario", "design"])["right"].mean().unstack("design").to_string())
    sigma = rows[rows["law"] == "flow"].groupby(["scenario", "design"])["relative error sigma"]
    print("\nMean relative error of sigma (flow)\n", sigma.mean().unstack("design").round(4).to_string())


def report_oracle(rows: pd.DataFrame) -> None:
    """Print the table of the oracle."""
    print("KL from the truth, mean (standard error)\n", table(rows).to_string())
