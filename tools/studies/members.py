"""Who carries the average? Its members one by one, other averages, and flows as others train them.

    python -m nlmeflow.studies run tools/studies/members.yml [--out data/studies/members]

One data set of each random population (`nf.scenarios.random`, d = 2). The members are those of `nf.Flow()`
and, beside them, every other network on both bases. Rows, each with the KL divergence from the truth:

gaussian, mixture : the fits; the lower of the two is B, what everything is compared with.
member: ... : one law alone, a flow as the average of its folds.
average: ... : averages of several, weighed as `nf.Flow` weighs.
weights: ... : the average of all with its weights set in another way.
tutorial: ... : one network trained on all individuals to convergence (600 steps), without folds.
two-stage flow : a spline flow learned from posterior draws under the Gaussian fit, as if they were
    individuals (Contento and Tarek, PAGE 2024, abstract 11038).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nlmeflow.estimation.engine import Task, careful_gaussian, draws_around, training_set
from nlmeflow.laws import Flow, Gaussian, Law, Mixture, SmoothNPMLE
from nlmeflow.laws.averaging import STRENGTH, TEMPERATURE, stacking_weights
from nlmeflow.laws.draws import Folds, PosteriorDraws, TrainingSet, cross_scores, resample
from nlmeflow.laws.flow.ensemble import Base, Candidate, Table
from nlmeflow.laws.flow.network import Kind, Network
from nlmeflow.laws.flow.training import Course
from nlmeflow.laws.gaussian import population
from nlmeflow.numerics import TINY
from nlmeflow.running import estimating
from nlmeflow.seeds import Stream, derive, generator
from nlmeflow.studies.core import Look, task_of
from nlmeflow.studies.populations import described, divergences, headline
from nlmeflow.studies.random_populations import random
from nlmeflow.studies.run import Row

KINDS: tuple[Kind, ...] = get_args(Kind)
STREAM = 302
TUTORIAL: tuple[Kind, ...] = ("realnvp", "spline")
TUTORIAL_STEPS = 600
PSEUDO = 5  # posterior draws of each individual that the two-stage flow takes for individuals
WIDTHS = (0.3, 0.4, 0.55)  # of the smooth NPMLE, as shares of the standard deviations


@dataclass(frozen=True)
class EveryNetwork(Flow):
    """The average with all networks on both bases; those of `nf.Flow()` come first and are its own."""

    def networks(self, base: Base) -> tuple[Network, ...]:
        usual = Flow.networks(self, base)
        return usual + tuple(Network(kind) for kind in KINDS if kind not in {one.kind for one in usual})


def measure(seed: int, d: int, n: int = 200) -> list[Row]:
    """Fit one data set of a random population; return the rows of the page above."""
    known = random(seed, d, n)
    task = task_of(known, seed)
    fits = {law.name: known.model.fit_task(task, law, progress=False) for law in (Gaussian(), Mixture())}
    about = described(known)
    with estimating():
        look = Look.at(known.law)
        kl = {name: look.kl(fit.law) for name, fit in fits.items()} | dict(carried(task, look))
    return [about | {"law": name, "kl": value} for name, value in kl.items()]


def carried(task: Task, look: Look) -> list[tuple[str, float]]:
    """Return the KL divergence of each member and average, of tutorials' flows, and of the two-stage flow."""
    training, folds = training_set(task), task.folds
    assert folds is not None
    laws = dict(averages(look, training, folds))
    laws |= {f"tutorial: {name}": look.log_prob(law) for name, law in tutorials(training, task.seed)}
    gaussian = careful_gaussian(task)
    around = draws_around(task, gaussian, Stream.ROUGH_DRAWS)
    laws["two-stage flow"] = look.log_prob(two_stage(around, gaussian.state.law, folds, task.seed))
    return [(name, float((look.log_truth - log_law).mean())) for name, log_law in laws.items()]


def averages(look: Look, training: TrainingSet, folds: Folds) -> Iterator[tuple[str, Tensor]]:
    """Yield the log-densities of members and averages at the truth's draws."""
    found = EveryNetwork().candidates(training, folds)
    smooth = [_smooth(width, training, folds) for width in WIDTHS]
    flow = Flow()
    its_own = {f"{one.kind} on {base}" for base in flow.bases() for one in flow.networks(base)}
    flows = {candidate.name for candidate in found if candidate.penalty}
    everyone = [*found, *smooth]
    at = {candidate.name: look.log_prob(candidate.law) for candidate in everyone}
    for name, log_law in at.items():
        yield f"member: {name}", log_law

    def average(
        members: list[Candidate], strength: float = STRENGTH, temperature: float = TEMPERATURE
    ) -> Tensor:
        table = Table.of(members)
        weights = stacking_weights(*table, strength, temperature)
        return (torch.stack([at[one.name] for one in members], 1) + weights.log()).logsumexp(1)

    kinds = {kind: [one for one in found if one.name.startswith(f"{kind} on")] for kind in KINDS}
    yield (
        "average: nf.Flow()",
        average([one for one in found if one.name in its_own or one.name not in flows]),
    )
    yield "average: every network", average(found)
    yield "average: every network and smooth npmle", average(everyone)
    yield "average: flows only", average([one for one in found if one.name in flows])
    yield "average: no flow", average([one for one in found if one.name not in flows])
    for kind, members in kinds.items():
        yield f"average: {kind} on both bases", average(members)
    for temperature in (1.0, 4.0):
        yield f"weights: temperature {temperature:g}", average(found, temperature=temperature)
    yield "weights: no penalty", average([replace(one, penalty=0.0) for one in found])
    yield "weights: stacking", average(found, strength=1e-3)
    table = torch.stack([at[one.name] for one in found], 1)
    best = stacking_weights(table, strength=TINY)
    yield "weights: best in hindsight", (table + best.log()).logsumexp(1)


def _smooth(width: float, training: TrainingSet, folds: Folds) -> Candidate:
    law = SmoothNPMLE(bandwidth=width)
    parts, whole = law.learn_without(training, folds), law.learn(training)
    scores = cross_scores(training.draws, parts, folds)
    return Candidate(f"smooth npmle {width:g}", whole, parts, scores, lambda _: [])


def tutorials(training: TrainingSet, seed: int) -> Iterator[tuple[str, Law]]:
    """Yield each network on the Gaussian base, trained on all individuals for so many steps."""
    flow, draws = Flow(), training.draws
    gaussian = population(draws, Gaussian(prior=flow.prior))
    everyone = torch.ones(1, len(draws), dtype=torch.float64)
    for k, kind in enumerate(TUTORIAL):
        network = Network(kind)
        course = Course(network, flow.settings(network), draws, gaussian)
        (law,) = course.retrain([gaussian], everyone, TUTORIAL_STEPS, derive(seed, STREAM, k))
        yield f"{kind} on gaussian", law


def two_stage(around: PosteriorDraws, gaussian: Law, folds: Folds, seed: int) -> Law:
    """Return the flow learned from posterior draws under a Gaussian law, taken for individuals."""
    random = generator(derive(seed, STREAM))
    drawn = resample(around.phi, around.weigh(gaussian).weights, PSEUDO, random).flatten(0, 1)
    draws = PosteriorDraws(drawn[:, None], torch.zeros(len(drawn), 1, dtype=drawn.dtype))
    flow = Flow(kind="spline", base="gaussian", with_relatives=False)
    return flow.learn(TrainingSet(draws, seed, Folds(folds.of.repeat_interleave(PSEUDO))))


def report(rows: pd.DataFrame) -> None:
    """Print every law against the better of Gaussian and mixture, by reliability as well."""
    kl = divergences(rows)
    laws = [str(law) for law in kl.columns if law != "better"]
    print("KL over that of the better of Gaussian and mixture in hindsight, geometric mean over populations")
    print(pd.DataFrame({law: headline(kl, law) for law in laws}).T.round(3).to_string())
    classes = np.array(["under .8", "over .8"])[(kl.index.get_level_values("reliability") > 0.8).astype(int)]
    chosen = ["average: nf.Flow()", "average: every network", "weights: best in hindsight"]
    parts = {(law, str(value)): headline(part, law) for law in chosen for value, part in kl.groupby(classes)}
    print("\nBy the lowest reliability of a parameter\n", pd.DataFrame(parts).T.round(3).to_string())
