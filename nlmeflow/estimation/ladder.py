"""The ladder: Gaussian, mixtures, flows on both, Box-Cox, SNP, scored on held-out individuals, averaged."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from nlmeflow.estimation.cloud import Cloud, climb
from nlmeflow.estimation.components import redrawn
from nlmeflow.estimation.learning import (
    Lesson,
    held_out,
    learn,
    population,
    rows,
    score_held_out,
    without_folds,
)
from nlmeflow.estimation.relatives import refitted
from nlmeflow.estimation.stacking import stacking_weights
from nlmeflow.estimation.training import retrain, train
from nlmeflow.laws.flow import Flow, Kind, Network
from nlmeflow.laws.gaussian import Gaussian, GaussianLaw
from nlmeflow.laws.law import Law
from nlmeflow.laws.mixture import Mixture
from nlmeflow.laws.snp import SNP
from nlmeflow.laws.stacked import StackedLaw
from nlmeflow.laws.transformed import Transformed
from nlmeflow.seeds import derive

Refit = Callable[[Tensor], Sequence[Law]]
LOST = -1e6  # score of an individual under a law that gives it no density
NEGLIGIBLE = 1e-3  # weight under which a law is left out
PENALTIES: dict[Kind, float] = {"quadratic": 2.0, "spline": 4.0, "autoregressive": 4.0, "realnvp": 4.0}


@dataclass(frozen=True)
class Candidate:
    """A law of the ladder, the held-out scores (N,) of its fits without each fold, how to refit it.

    `parts`: these fits, one for each fold. refit(share) returns one law for each row of individual weights
    (R, N). `penalty`: see `stacking`.
    """

    name: str
    law: Law
    parts: Sequence[Law]
    scores: Tensor
    refit: Refit
    penalty: float = 0.0


class Table(NamedTuple):
    """Held-out scores (N, K) and penalties (K,) of several candidates."""

    scores: Tensor
    penalty: Tensor

    @classmethod
    def of(cls, found: Sequence[Candidate]) -> "Table":
        """Return the table of these candidates."""
        scores = torch.stack([c.scores for c in found], 1).nan_to_num(nan=LOST, neginf=LOST)
        return cls(scores, scores.new_tensor([c.penalty for c in found]))


def candidates(law: Flow, lesson: Lesson) -> list[Candidate]:
    """Return the bases and the flows trained on them; made once for each lesson."""
    return lesson.kept.once(law, lambda: _candidates(law, lesson))


def _candidates(law: Flow, lesson: Lesson) -> list[Candidate]:
    cloud, fold = lesson.cloud, lesson.folds(law.folds)
    gaussian = population(cloud, Gaussian(prior=law.prior))
    found = []
    for b, base in enumerate(law.bases()):
        if base == "gaussian":
            first: Law = gaussian
            refits = without_folds(Gaussian(prior=law.prior), lesson, fold)
        else:
            plain, plain_refits = _redrawn(lesson, fold, 1.0, law.prior)
            scores = score_held_out(cloud, plain_refits, fold)
            found.append(Candidate("mixture", plain, plain_refits, scores, partial(_climbed, plain, cloud)))
            first, refits = _redrawn(lesson, fold, law.stiffness, law.prior)
        again = partial(_climbed, first, cloud)
        scores = score_held_out(cloud, refits, fold)
        found.append(Candidate(f"{base} base", first, refits, scores, again))
        for k, network in enumerate(law.networks(base)):
            name = f"{network.kind} on {base}"
            lesson.report(f"flow: {name}")
            seed = derive(lesson.seed, 101, b, k)
            trained = train(network, law, cloud, gaussian, refits, fold, seed)
            retrained = partial(_retrained, network, law, cloud, gaussian, again, trained.steps, seed)
            whole, penalty = StackedLaw.average(trained.laws), PENALTIES[network.kind]
            found.append(Candidate(name, whole, trained.laws, trained.scores, retrained, penalty))
    return found + [_relative(spec, lesson, fold) for spec in law.relatives()]


def _relative(law: SNP | Transformed, lesson: Lesson, fold: Tensor) -> Candidate:
    """Return a law of few parameters; an SNP law, whose density has roots, as the average over the folds."""
    lesson.report(f"flow: {law.name}")
    whole = learn(law, lesson)
    refits = without_folds(law, lesson, fold)
    scores = score_held_out(lesson.cloud, refits, fold)
    shown = StackedLaw.average(refits) if isinstance(law, SNP) else whole
    return Candidate(law.name, shown, refits, scores, partial(refitted, whole, lesson.cloud))


def _redrawn(lesson: Lesson, fold: Tensor, stiffness: float, prior: float) -> tuple[Law, list[Law]]:
    """Return the mixture by BIC under another shrinkage and a prior, and the same without each fold."""
    cloud, law = lesson.cloud, Mixture()
    refits = [
        redrawn(refit, cloud.subset(inside), stiffness, prior)
        for refit, (inside, _) in zip(without_folds(law, lesson, fold), rows(fold), strict=True)
    ]
    return redrawn(learn(law, lesson), cloud, stiffness, prior), refits


def _climbed(law: Law, cloud: Cloud, share: Tensor) -> list[Law]:
    return [climb(law, cloud, 40, 0.02, row)[0] for row in share]


def _retrained(
    network: Network,
    law: Flow,
    cloud: Cloud,
    gaussian: GaussianLaw,
    bases: Refit,
    steps: int,
    seed: int,
    share: Tensor,
) -> Sequence[Law]:
    return retrain(network, law, cloud, gaussian, bases(share), share, steps, derive(seed, 1))


@learn.register
def _(law: Flow, lesson: Lesson) -> Law:
    """Return the average of the ladder."""
    found = candidates(law, lesson)
    return average([c.law for c in found], stacking_weights(*Table.of(found)))


@without_folds.register
def _(law: Flow, lesson: Lesson, fold: Tensor) -> list[Law]:
    """Return for each fold the average of the laws fitted without it, with weights that the other folds gave.

    The folds are those of the ladder.
    """
    found = candidates(law, lesson)
    scores, penalty = Table.of(found)
    return [
        average([c.parts[k] for c in found], stacking_weights(scores[inside], penalty))
        for k, (inside, _) in enumerate(rows(fold))
    ]


@held_out.register
def _(law: Flow, lesson: Lesson, fold: Tensor) -> Tensor:
    """Score each fold under the average whose weights the other folds gave.

    Every law of the ladder was fitted, and its stopping step chosen, without the fold.
    """
    return held_out_average(*Table.of(candidates(law, lesson)), fold)


def held_out_average(table: Tensor, penalty: Tensor, fold: Tensor) -> Tensor:
    """Return held-out scores (N,) of the average of laws with scores (N, K), weighed without each fold."""
    scores = torch.zeros(len(table), dtype=torch.float64)
    for inside, outside in rows(fold):
        weights = stacking_weights(table[inside], penalty)
        scores[outside] = (table[outside] + weights.log()).logsumexp(1)
    return scores


def average(laws: list[Law], weights: Tensor) -> StackedLaw:
    """Return the stack of the laws whose weight counts."""
    kept = [k for k in range(len(laws)) if weights[k] > NEGLIGIBLE]
    share = weights[kept]
    return StackedLaw(tuple(laws[k] for k in kept), share / share.sum())
