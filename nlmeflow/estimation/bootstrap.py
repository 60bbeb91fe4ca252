"""The weighted-likelihood bootstrap: laws refitted with random weights of the individuals.

Weights are N times a Dirichlet(1, ..., 1) draw (Rubin 1981; Newton and Raftery, JRSS B 1994): each
replicate maximises sum_i w_i log p(y_i). From a cloud that needs no call of the curve. The spread of
the refitted laws is the uncertainty that comes from having seen these individuals and not others;
sigma and the fixed effects are kept at their estimates.
"""

from functools import singledispatch

import torch
from torch import Tensor

from nlmeflow.errors import ModelError
from nlmeflow.estimation.cloud import climb
from nlmeflow.estimation.ladder import NEGLIGIBLE, Table, average, candidates
from nlmeflow.estimation.learning import Lesson, learn
from nlmeflow.estimation.relatives import refitted
from nlmeflow.estimation.stacking import prior_weights, stacking_weights
from nlmeflow.laws.flow import Flow
from nlmeflow.laws.gaussian import Gaussian
from nlmeflow.laws.kernels import SmoothNPMLE
from nlmeflow.laws.law import Law
from nlmeflow.laws.mixture import Mixture
from nlmeflow.laws.snp import SNP
from nlmeflow.laws.transformed import Transformed
from nlmeflow.seeds import generator


def shares(n: int, replicates: int, seed: int) -> Tensor:
    """Return weights of n individuals (R, n), each row N times a Dirichlet(1, ..., 1) draw."""
    uniform = torch.rand(replicates, n, generator=generator(seed), dtype=torch.float64)
    exponential = -uniform.clamp_min(1e-300).log()
    return exponential / exponential.mean(1, keepdim=True)


@singledispatch
def refit(law: object, lesson: Lesson, share: Tensor) -> list[Law]:
    """Return one law for each row of individual weights (R, N)."""
    raise ModelError(f"No bands for {type(law).__name__}.")


@refit.register
def _(law: Gaussian, lesson: Lesson, share: Tensor) -> list[Law]:
    return _climbed(learn(law, lesson), lesson, share)


@refit.register
def _(law: Mixture, lesson: Lesson, share: Tensor) -> list[Law]:
    """Refit with the number of components that was chosen."""
    return _climbed(learn(law, lesson), lesson, share)


def _climbed(law: Law, lesson: Lesson, share: Tensor) -> list[Law]:
    return [climb(law, lesson.cloud, 100, 1e-3, row)[0] for row in share]


@refit.register
def _(law: SNP | Transformed, lesson: Lesson, share: Tensor) -> list[Law]:
    """Refit with the order that was chosen."""
    return refitted(learn(law, lesson), lesson.cloud, share)


@refit.register
def _(law: SmoothNPMLE, lesson: Lesson, share: Tensor) -> list[Law]:
    """Refit the weights of the kernels."""
    return _climbed(learn(law, lesson), lesson, share)


@refit.register
def _(law: Flow, lesson: Lesson, share: Tensor) -> list[Law]:
    """Refit every law of the ladder that counts, and weigh them anew by the held-out scores."""
    found = candidates(law, lesson)
    table, penalty = Table.of(found)
    weights = stacking_weights(table, penalty)
    kept = [k for k in range(len(found)) if weights[k] > NEGLIGIBLE]
    refits = []
    for k in kept:
        lesson.report(f"bands: {found[k].name}")
        refits.append(found[k].refit(share))
    return [
        average([laws[r] for laws in refits], prior_weights(row[:, None] * table[:, kept], penalty[kept]))
        for r, row in enumerate(share)
    ]
