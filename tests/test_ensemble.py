"""nlmeflow.laws.flow.ensemble, .averaging, .draws: laws on known parameters, weighed, held out, refitted."""

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pandas as pd
import pytest
import torch
from quadrature import brute_force

import nlmeflow as nf
from nlmeflow.estimation.engine import training_set
from nlmeflow.fitting.comparison import compare_task
from nlmeflow.laws import GaussianLaw, MixtureLaw, TransformedLaw
from nlmeflow.laws.averaging import prior_weights, stacking_weights
from nlmeflow.laws.draws import Folds, PosteriorDraws, TrainingSet
from nlmeflow.laws.flow.law import FlowLaw
from nlmeflow.laws.flow.network import Network
from nlmeflow.laws.flow.training import Course, Trained
from nlmeflow.laws.stacked import CrossFittedLaw
from nlmeflow.numerics import dirichlet_weights
from nlmeflow.seeds import generator
from nlmeflow.studies.scenarios import LAWS

SMALL = nf.Flow(steps=30, hidden=(8,), folds=3)


def known(name, n, seed=1):
    """Return the draws of individual parameters known without error."""
    phi = LAWS[name].sample(n, seed)
    return PosteriorDraws(phi[:, None], torch.zeros(n, 1, dtype=torch.float64))


def candidates_of(flow, training):
    return flow.candidates(training, training.split(flow.folds))


@pytest.fixture(scope="module", autouse=True)
def _one_thread_without_gradients():
    with torch.no_grad():
        yield


def test_weights_follow_clear_evidence_and_share_what_cannot_be_told_apart():
    random = np.random.default_rng(0)
    base = torch.from_numpy(random.normal(size=(200, 1)))
    alike = base + 0.01 * torch.from_numpy(random.normal(size=(200, 2)))
    worse = base - 0.5
    scores = torch.cat([alike, worse], 1)
    for weights in (prior_weights(scores), stacking_weights(scores)):
        assert float(weights.sum()) == pytest.approx(1)
        assert float(weights[2]) < 1e-3
        assert 0.3 < float(weights[0]) < 0.7


def test_stacking_finds_the_share_of_two_groups_when_there_are_many():
    group = torch.arange(20_000) < 14_000
    first = torch.where(group, 0.0, -3.0).double()
    second = torch.where(group, -3.0, 0.0).double()
    weights = stacking_weights(torch.stack([first, second], 1))
    assert float(weights[0]) == pytest.approx(0.73, abs=0.02)  # beyond .7: each law also explains a little


def test_an_average_has_as_many_shares_of_the_prior_as_it_has_parts():
    alike = torch.zeros(50, 2, dtype=torch.float64)
    weights = prior_weights(alike, sizes=torch.tensor([1.0, 3.0]).double())
    assert weights.tolist() == pytest.approx([0.25, 0.75])
    assert stacking_weights(alike, sizes=torch.tensor([1.0, 3.0]).double())[1] > 0.7
    for flow in (SMALL, nf.Flow(base="gaussian", kind="quadratic", steps=5, folds=2, with_relatives=False)):
        assert flow.n_laws == len(candidates_of(flow, TrainingSet(known("L2", 60), 1)))


def test_a_law_whose_density_has_roots_takes_part_as_the_average_over_the_folds():
    flow = nf.Flow(base="gaussian", kind="quadratic", steps=5, folds=2)
    by_name = {c.name: c for c in candidates_of(flow, TrainingSet(known("L2", 60), 1))}
    assert by_name["snp"].law.laws == tuple(by_name["snp"].parts)
    assert isinstance(by_name["box-cox"].law, TransformedLaw)


def test_a_prior_keeps_a_singular_covariance_away():
    """S / (N - 2 c) is the maximum of N log-densities plus c log |Omega|, checked by finite differences."""
    phi = LAWS["L8"].sample(60, 1)[:, None]
    weights = torch.ones(60, 1, dtype=torch.float64)
    start = GaussianLaw(phi[0, 0], torch.eye(3, dtype=torch.float64), prior=1.5)
    best = start.update(phi, weights)

    def penalised(law):
        return float(law.log_prob(phi).sum()) + law.log_prior

    for scale in (0.99, 1.01):
        assert penalised(best.inflated(scale)) < penalised(best)
    ratio = best.covariance / GaussianLaw(best.mean, best.factor).update(phi, weights).covariance
    assert torch.allclose(ratio, torch.full_like(ratio, 60 / 57))


def test_shrunken_covariances_lie_between_their_own_and_the_pooled_variances():
    truth = LAWS["L7"]
    phi = truth.sample(300, 3)[:, None]
    weights = torch.full(phi.shape[:2], 1.0, dtype=torch.float64)
    start = nf.Mixture(components=3, shrinkage=0.0).learn(TrainingSet(known("L7", 300, 3), 1))
    assert isinstance(start, MixtureLaw)
    free = start.update(phi, weights)
    tied = MixtureLaw(start.weights, start.means, start.factors, start.floor, 1e12).update(phi, weights)
    covariance = tied.factors @ tied.factors.mT
    assert float((covariance - covariance[0]).abs().max()) < 1e-8
    off_diagonal = covariance[0] - covariance[0].diagonal().diag()
    assert float(off_diagonal.abs().max()) < 1e-8
    own = (free.factors @ free.factors.mT).diagonal(dim1=-2, dim2=-1)
    pooled = (free.weights[:, None] * own).sum(0)
    assert torch.allclose(covariance[0].diagonal(), pooled)


@pytest.mark.parametrize(
    "law",
    [nf.Gaussian(), nf.Mixture(), nf.SNP(), pytest.param(SMALL, marks=pytest.mark.slow)],
    ids=["gaussian", "mixture", "snp", "flow"],
)
def test_held_out_scores_are_those_of_laws_that_have_not_seen_the_fold(law):
    """Far outliers, a fold of their own: a law that had seen them would predict them."""
    draws = known("L2", 90)
    phi = draws.phi.clone()
    fold = Folds.random(90, 3, 1)
    outside = fold.of == 0
    phi[outside] = phi[outside] + torch.tensor([60.0, 0.0]).double()
    moved = PosteriorDraws(phi, draws.log_reference)
    training = TrainingSet(moved, 1, fold)
    honest = law.held_out(training, fold)
    seen = moved.score(law.learn(training))
    assert float(honest[outside].mean()) < float(seen[outside].mean()) - 10


@pytest.mark.parametrize("law", [nf.SNP(), pytest.param(SMALL, marks=pytest.mark.slow)], ids=["snp", "flow"])
def test_the_scores_are_those_of_the_laws_without_each_fold(law):
    """A flow's own scores stop its training where the other folds say: nearly the same."""
    folds = Folds.random(90, 3, 1)
    training = TrainingSet(known("L2", 90), 1, folds)
    crossed = CrossFittedLaw(law.learn_without(training, folds), folds)
    scores = training.draws.score(crossed)
    assert torch.allclose(scores, law.held_out(training, folds), atol=0.05)
    drawn = crossed.sample(90 * 400, 3).reshape(90, 400, 2)
    for k, part in enumerate(crossed.laws):
        own = drawn[folds.of == k].flatten(0, 1)
        for other in crossed.laws:
            assert float(part.log_prob(own).mean()) >= float(other.log_prob(own).mean())


@pytest.mark.slow
def test_sigma_of_a_flow_is_the_most_likely_one_under_laws_that_have_not_seen_the_individual():
    """Against the midpoint rule; under its own law a smaller sigma would be more likely."""
    scenario = nf.scenarios.load("L2", design="S", n=60, seed=1)
    task = scenario.model.task(scenario.data, seed=1)
    fit = scenario.model.fit_task(task, SMALL, progress=False)
    taught = training_set(task)
    folds = taught.split(SMALL.folds)
    parts = SMALL.learn_without(taught, folds)

    def likelihood(law, problem, times):
        return float(brute_force(problem, law, fit.beta, times * fit.sigma, 140).sum())

    crossed, seen = [], []
    for times in (0.97, 1.0, 1.03):
        each = zip(parts, folds.parts(), strict=True)
        crossed.append(
            sum(likelihood(law, task.problem.subset(outside), times) for law, (_, outside) in each)
        )
        seen.append(likelihood(fit.law, task.problem, times))
    assert crossed[1] > max(crossed[0], crossed[2])
    assert seen[0] > seen[2]


@pytest.mark.slow
def test_a_flow_fitted_without_folds_does_not_tell_a_comparison_with_folds():
    """What a task remembers of its own folds is nothing to a comparison on others."""
    scenario = nf.scenarios.load("L2", "R", 30, 1)
    flow = nf.Flow(kind="quadratic", base="mixture", steps=15, folds=3)
    laws, labels = [nf.Gaussian(), flow], scenario.data.labels
    folds, others = Folds.random(30, 3, 9), Folds.random(30, 3, 10)
    used, fresh = (scenario.model.task(scenario.data, seed=1) for _ in range(2))
    scenario.model.fit_task(used, flow, progress=False)
    after, alone, differently = (
        compare_task(scenario.model, replace(task, folds=held), laws, labels, False)
        for task, held in ((used, folds), (fresh, folds), (used, others))
    )
    pd.testing.assert_frame_equal(after.scores, alone.scores, check_exact=True)
    assert after.weights == alone.weights
    assert (differently.scores - after.scores).abs().max().min() > 0.01


def test_a_flow_whose_own_draws_go_astray_takes_no_part(monkeypatch):
    """Two layers in four coordinates make powers of a draw up to the 64th: no individual was ever there."""
    phi = torch.randn(60, 1, 4, generator=generator(1), dtype=torch.float64)
    training = TrainingSet(PosteriorDraws(phi, torch.zeros(60, 1, dtype=torch.float64)), 1)
    standard = GaussianLaw(torch.zeros(4).double(), torch.eye(4).double())
    flow = FlowLaw.start(Network("quadratic"), standard, None, 1)
    for layer in flow.transport.layers:
        layer.shift[:, 5:] = 0.3
    assert float(flow.sample(4096, 0).std(0).max()) > 1e6
    flat = FlowLaw.start(Network("quadratic"), standard, None, 1)
    laws = {"quadratic": (flow, flow), "spline": (flow, flat)}
    scores = torch.zeros(60, dtype=torch.float64)
    monkeypatch.setattr(Course, "train", lambda self, *_: Trained(laws[self.network.kind], scores, 5))
    average = nf.Flow(base="gaussian", folds=2, with_relatives=False)
    base, spline = candidates_of(average, training)
    assert (base.name, spline.name) == ("gaussian base", "spline on gaussian")
    assert spline.law.laws == (flat,)
    assert float(average.learn(training).sample(4096, 0).std(0).max()) < 2
    monkeypatch.setattr(Course, "retrain", lambda *_: (flow, flat))
    again = spline.refit(torch.ones(2, 60, dtype=torch.float64))
    assert again[0].normal is not None  # the Gaussian of its base in its place
    assert again[1] is flat


@pytest.mark.slow
def test_a_relative_with_a_tail_that_nobody_informs_takes_no_part(monkeypatch):
    """Nor do such replicates of the bootstrap: the Gaussian is in their place."""
    training = TrainingSet(known("L2", 60), 1)
    gaussian = GaussianLaw.like(nf.Gaussian().learn(training))
    wide = GaussianLaw(gaussian.mean, 4 * gaussian.factor)
    average = nf.Flow(base="gaussian", kind="quadratic", steps=5, folds=2)
    again = {c.name: c.refit for c in candidates_of(average, training)}["box-cox"]
    monkeypatch.setattr(nf.Transformed, "learn", lambda *_: wide)
    monkeypatch.setattr(nf.Transformed, "learn_without", lambda *_: [wide, wide])
    monkeypatch.setattr(nf.Transformed, "refit", lambda *_: [wide, gaussian])
    names = [c.name for c in candidates_of(average, TrainingSet(known("L2", 60), 1))]
    assert names == ["gaussian base", "quadratic on gaussian", "snp"]
    first, second = again(torch.ones(2, 60, dtype=torch.float64))
    assert float(first.sd[0]) < 2 * float(gaussian.sd[0])
    assert second is gaussian


@pytest.mark.slow
@pytest.mark.parametrize("n", [3, 5])
def test_an_average_of_few_individuals_is_not_far_wider_than_they_are(n):
    random, day = np.random.default_rng(1), np.linspace(30, 70, 7)
    onset = 50 + random.normal(0, 4, n)
    green = 1 / (1 + np.exp((day - onset[:, None]) / 3)) + random.normal(0, 0.05, (n, 7))
    frame = {"plant": np.repeat(np.arange(n), 7), "day": np.tile(day, n), "green": green.ravel()}
    data = nf.LongitudinalData.from_frame(pd.DataFrame(frame), "plant", "day", "green")
    model = nf.Model(nf.curves.logistic_senescence(), nf.Additive(), fixed=("A", "s"))
    fits = model.fit_laws(data, {"gaussian": nf.Gaussian(), "flow": nf.Flow()}, seed=1, particles=128)
    assert float(fits["flow"].gaussian.sd) < 3 * float(fits["gaussian"].gaussian.sd)
    assert fits["flow"].population(2000)["tau"].between(20, 80).all()


def test_tasks_and_training_sets_cannot_be_changed():
    scenario = nf.scenarios.load("L2", "R", 10, 1)
    task = scenario.model.task(scenario.data, seed=1)
    for held in (task, TrainingSet(known("L2", 10), 1)):
        with pytest.raises(FrozenInstanceError):
            held.folds = Folds.random(10, 2, 1)
        with pytest.raises(FrozenInstanceError):
            held.seed = 2


def test_folds_cannot_be_changed():
    with pytest.raises(AttributeError):
        Folds.random(10, 2, 1).of = torch.zeros(10).long()


def test_equal_folds_are_one_key():
    folds, same, other = (Folds.random(30, 3, seed) for seed in (1, 1, 2))
    assert folds == same
    assert hash(folds) == hash(same)
    assert folds != other
    assert len(folds) == 3
    for inside, outside in folds.parts():
        assert sorted([*inside.tolist(), *outside.tolist()]) == list(range(30))
        assert len(outside) == 10


@pytest.mark.slow
def test_the_flow_is_no_worse_than_its_bases_on_a_bend():
    draws = known("L4", 200)
    training = TrainingSet(draws, 1)
    law = nf.Flow().learn(training)
    alone = {c.name: nf.metrics.kl(LAWS["L4"], c.law) for c in candidates_of(nf.Flow(), training)}
    assert nf.metrics.kl(LAWS["L4"], law) < 0.5 * alone["mixture"] < 0.5 * alone["gaussian base"]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_flow():
    phi = LAWS["L3"].sample(50, 9)
    laws = [SMALL.learn(TrainingSet(known("L3", 80), 4)) for _ in range(2)]
    assert torch.equal(laws[0].log_prob(phi), laws[1].log_prob(phi))


@pytest.mark.slow
def test_bands_of_a_gaussian_cover_its_density():
    """90 % bands at five points of the density of a normal law, over simulated samples."""
    points = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).double()[:, None]
    truth = GaussianLaw(torch.zeros(1).double(), torch.ones(1, 1).double())
    inside = []
    for seed in range(120):
        draws = PosteriorDraws(truth.sample(100, seed)[:, None], torch.zeros(100, 1, dtype=torch.float64))
        laws = nf.Gaussian().refit(TrainingSet(draws, seed), dirichlet_weights(80, 100, seed))
        densities = torch.stack([law.log_prob(points) for law in laws])
        low, high = densities.quantile(0.05, 0), densities.quantile(0.95, 0)
        value = truth.log_prob(points)
        inside.append(((low <= value) & (value <= high)).double().mean())
    assert 0.83 < float(torch.stack(inside).mean()) < 0.95


@pytest.mark.slow
def test_bands_of_mixture_and_flow_hold_their_estimate():
    draws = known("L2", 150)
    for law in (nf.Mixture(), SMALL):
        training = TrainingSet(draws, 1)
        fitted = law.learn(training)
        laws = law.refit(training, dirichlet_weights(20, 150, 1))
        assert len(laws) == 20
        at = LAWS["L2"].sample(40, 5)
        values = torch.stack([each.log_prob(at) for each in laws])
        middle = values.quantile(0.1, 0) <= fitted.log_prob(at)
        assert float((middle & (fitted.log_prob(at) <= values.quantile(0.9, 0))).double().mean()) > 0.7
        assert float(values.std(0).mean()) > 0.02


def test_bands_from_a_fit():
    scenario = nf.scenarios.load("L2", "R", 60, 1)
    fit = scenario.model.fit(scenario.data, nf.Gaussian(), seed=1, progress=False)
    bands = fit.bands(replicates=20, seed=2, progress=False)
    table = bands.table("tau")
    assert list(table.columns) == ["density", "lower", "upper"]
    assert bool((table["lower"] <= table["upper"]).all())
    step = table.index[1] - table.index[0]
    assert float(table["density"].sum() * step) == pytest.approx(1, abs=0.01)
    with pytest.raises(nf.ModelError, match="'speed' is not among tau, s"):
        bands.table("speed")
    with pytest.raises(nf.ModelError, match="replicates"):
        fit.bands(replicates=3)
