"""nlmeflow.reports.diagnostics, .diagnostic_plots: right on the truth, wrong where the model is wrong."""

from dataclasses import replace

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import nlmeflow as nf
from nlmeflow.reports import diagnostics


@pytest.fixture(scope="module")
def gaussian():
    scenario = nf.scenarios.load("L2", "R", 200, 5)
    return scenario, scenario.model.fit(scenario.data, seed=1, progress=False)


@pytest.fixture(scope="module")
def true(gaussian):
    """The fit with the truth in the place of what was estimated."""
    scenario, fit = gaussian
    sigma = torch.tensor([scenario.sigma], dtype=torch.float64)
    return replace(fit, law=scenario.law, beta=scenario.beta, sigma=sigma)


def test_npde_are_uniform_on_the_truth(true):
    table = diagnostics.npde(true, replicates=500, seed=2)
    assert len(table) == true.data.n_observations
    assert (diagnostics.npde_tests(table) > 0.01).all()
    assert stats.kstest(table["pde"], "uniform").pvalue > 0.01
    lag = table.groupby("individual")["npde"].apply(lambda x: np.corrcoef(x[:-1], x[1:])[0, 1])
    assert abs(lag.mean()) < 0.1


def test_npde_reject_a_wrong_error(true):
    wrong = replace(true, sigma=2 * true.sigma)
    assert diagnostics.npde_tests(diagnostics.npde(wrong, replicates=300, seed=2))["variance"] < 1e-6


def test_vpc_holds_the_data_on_the_truth_and_shows_the_gaussian_s_valley(gaussian, true):
    """Half-way quantiles in the middle of the season: two strategies leave a valley that a Gaussian fills."""
    _, fit = gaussian
    inside = {}
    for name, each in {"truth": true, "gaussian": fit}.items():
        table = diagnostics.vpc(each, replicates=150, quantiles=(0.1, 0.3, 0.5, 0.7, 0.9), seed=3)
        assert len(table) == 5 * 15
        inside[name] = table["observed"].between(table["lower"], table["upper"]).mean()
    assert inside["truth"] > 0.8
    assert inside["gaussian"] < inside["truth"] - 0.05


def test_simulated_data_have_the_moments_of_the_law(true):
    simulated = diagnostics.simulate(true, 400, seed=1)
    assert simulated.shape == (400, 200, 15)
    phi = true.law.sample(100_000, 9)
    expected = torch.sigmoid((phi[:, :1] - true.data.time[0]) / phi[:, 1:].exp())
    assert torch.allclose(simulated.mean((0, 1)), expected.mean(0), atol=0.01)
    spread = (expected.var(0) + 0.04**2).sqrt()
    assert torch.allclose(simulated.std((0, 1)), spread, atol=0.01)


def test_predictions_stand_beside_observations(gaussian):
    _, fit = gaussian
    table = diagnostics.predictions(fit)
    assert len(table) == fit.data.n_observations
    error = table["observed"] - table["individual"]
    assert error.std() == pytest.approx(0.04, rel=0.15)
    assert (table["observed"] - table["population"]).std() > 3 * error.std()
    assert (table.groupby("time")["population"].nunique() == 1).all()  # nothing tells individuals apart
    time = float(table["time"].iloc[3])
    exact = fit.predict(fit.law.sample(200_000, 1), [time]).mean()
    assert table.groupby("time")["population"].first()[time] == pytest.approx(float(exact), abs=0.02)
    assert table["residual"].std() == pytest.approx(1, abs=0.15)


def test_bins_when_times_are_many():
    random = np.random.default_rng(0)
    found = diagnostics.time_bins(random.uniform(0, 10, 600), 6)
    assert np.bincount(found).tolist() == [100] * 6


def test_covariates_are_part_of_the_simulation():
    random = np.random.default_rng(1)
    about = pd.DataFrame({"dose": np.repeat([0.0, 5.0], 40)})
    time = np.tile(np.arange(4.0), (80, 1))
    response = (1 + about["dose"].to_numpy() + random.standard_normal(80))[:, None] + 0 * time
    response += 0.2 * random.standard_normal(time.shape)
    data = nf.LongitudinalData.regular(torch.from_numpy(time), torch.from_numpy(response), about)
    model = nf.Model(nf.curves.linear(), fixed=("slope",), covariates={"intercept": "dose"})
    fit = model.fit(data, seed=1, progress=False)
    simulated = diagnostics.simulate(fit, 100, seed=1).mean((0, 2))
    assert float(simulated[40:].mean() - simulated[:40].mean()) == pytest.approx(5, abs=0.6)


@pytest.mark.parametrize(
    "draw", [nf.plots.vpc, nf.plots.npde, nf.plots.observed_predicted, nf.plots.residuals]
)
def test_every_diagnostic_has_a_figure(gaussian, draw):
    _, fit = gaussian
    options = {"replicates": 100} if draw in (nf.plots.vpc, nf.plots.npde) else {}
    _, ax = plt.subplots()
    assert draw(fit, ax=ax, **options) is ax
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    plt.close("all")


def test_bad_options_are_refused(gaussian):
    _, fit = gaussian
    with pytest.raises(nf.ModelError, match="quantiles lie between 0 and 1"):
        diagnostics.vpc(fit, quantiles=(10, 50))
    with pytest.raises(nf.ModelError, match="replicates is a whole number from 20, got 10"):
        diagnostics.vpc(fit, replicates=10)
    with pytest.raises(nf.ModelError, match="replicates is a whole number from 100, got 5"):
        diagnostics.npde(fit, replicates=5)
