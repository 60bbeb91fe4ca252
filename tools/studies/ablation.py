"""What does each remedy against overfitting do? Flows and mixtures with one remedy at a time taken away.

    python -m nlmeflow.studies run tools/studies/ablation.yml [--out data/studies/ablation]

Each replicate: 200 individuals, rich and sparse design; every network of the average, and RealNVP, trained
as `nf.Flow()` trains it, then without one of its remedies; mixtures with their number of components chosen
by BIC, then without shrinkage, prior and floor. Replicates start at 4: the remedies' constants were chosen
on 0 to 3. Printed: the KL divergence over that of the law as it is, geometric mean over the scenarios.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import torch

import nlmeflow as nf
from nlmeflow.estimation.engine import training_set
from nlmeflow.laws import Law, MixtureLaw, StackedLaw
from nlmeflow.laws.draws import Folds, PosteriorDraws
from nlmeflow.laws.em import climb
from nlmeflow.laws.flow import network as networks
from nlmeflow.laws.flow.training import DRAWS, Course, Trained
from nlmeflow.laws.gaussian import population
from nlmeflow.laws.mixture import redrawn
from nlmeflow.running import one_thread
from nlmeflow.seeds import derive
from nlmeflow.studies.core import relative_to
from nlmeflow.studies.run import Row

SEED = 301
AS_IT_IS = "as it is"
NETWORKS = {
    "quadratic on gaussian": ("gaussian base", nf.Network("quadratic")),
    "spline on gaussian": ("gaussian base", nf.Network("spline")),
    "realnvp on gaussian": ("gaussian base", nf.Network("realnvp")),
    "quadratic on mixture": ("mixture base", nf.Network("quadratic", layers=1)),
}
Named = Iterator[tuple[str, list[Law]]]


def measure(scenario: str, design: str, n: int, replicate: int) -> list[Row]:
    """Train all variants on one data set; return their KL, the mean where a variant is several laws."""
    truth = nf.scenarios.load(scenario, design, n, replicate)
    known = training_set(truth.model.task(truth.data, seed=replicate))
    folds = known.split(nf.Flow().folds)
    bases = {candidate.name: candidate for candidate in nf.Flow().candidates(known, folds)}
    rows: list[Row] = []
    with one_thread():
        parts: list[tuple[str, Named]] = [("mixture", mixtures(nf.Mixture().learn(known), known.draws))]
        for network_name, (base, network) in NETWORKS.items():
            found = variants(
                network, known.draws, bases[base].parts, bases[base].law, folds, derive(replicate, SEED)
            )
            parts.append((network_name, found))
        for law, named in parts:
            for remedy, laws in named:
                kl = float(np.mean([nf.metrics.kl(truth.law, one) for one in laws]))
                rows.append({"law": law, "variant": remedy, "kl": kl})
    return rows


def variants(
    network: nf.Network, draws: PosteriorDraws, bases: Any, base: Law, folds: Folds, seed: int
) -> Named:
    """Yield the flows of one network, as they are and without each remedy."""
    flow = nf.Flow()
    gaussian = population(draws, nf.Gaussian(prior=flow.prior))

    def course(flow: nf.Flow = flow, draws: PosteriorDraws = draws) -> Course:
        return Course(network, flow.settings(network), draws, gaussian)

    def trained(flow: nf.Flow = flow, draws: PosteriorDraws = draws) -> Trained:
        return course(flow, draws).train(bases, folds, seed)

    def unstopped(steps: int) -> list[Law]:
        shares = torch.stack([folds.of != k for k in range(flow.folds)]).double()
        return [StackedLaw.average(course().retrain(bases, shares, steps, seed))]

    usual = trained()
    everyone = torch.ones(1, len(draws), dtype=torch.float64)
    frozen = PosteriorDraws(draws.phi[:, :DRAWS], draws.log_reference[:, :DRAWS])
    yield AS_IT_IS, [StackedLaw.average(usual.laws)]
    yield "flow of one fold", list(usual.laws)
    yield (
        "one flow of all individuals",
        list(course().retrain([base], everyone, usual.steps, seed)),
    )
    yield "not stopped, 150 steps", unstopped(150)
    yield "not stopped, 600 steps", unstopped(600)
    yield "no noise", [StackedLaw.average(trained(replace(flow, noise=0.0)).laws)]
    yield "twice the noise", [StackedLaw.average(trained(replace(flow, noise=2 * flow.noise)).laws)]
    yield f"{DRAWS} frozen draws", [StackedLaw.average(trained(draws=frozen).laws)]
    if network.kind == "realnvp":
        with mock.patch.object(networks, "LOG_SCALE_BOUND", 20.0):
            yield "scales not bounded", [StackedLaw.average(trained().laws)]


def mixtures(plain: Law, draws: PosteriorDraws) -> Named:
    """Yield the mixture as the average has it, and without what keeps it smooth."""
    assert isinstance(plain, MixtureLaw)
    yield AS_IT_IS, [redrawn(plain, draws, 1.0, 1.0)]
    yield "twice the shrinkage", [redrawn(plain, draws, 2.0, 1.0)]
    yield "no prior", [redrawn(plain, draws, 1.0, 0.0)]
    yield "no shrinkage", [redrawn(plain, draws, 0.0, 1.0)]
    bare = replace(plain, shrinkage=0.0, prior=0.0, floor=1e-3 * plain.floor)
    yield "no shrinkage, prior, floor", [climb(bare, draws, 200, 1e-3)[0]]


def report(rows: pd.DataFrame) -> None:
    """Print the KL of each variant over that of the law as it is."""
    print(relative_to(rows, AS_IT_IS).round(2).to_string())
