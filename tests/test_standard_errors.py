"""nlmeflow.estimation.information: published values, a linear mixed model, finite differences."""

import numpy as np
import pytest
import statsmodels.api as sm
import torch

import nlmeflow as nf
from nlmeflow.estimation.information import Chart, observed_information


def test_theophylline_as_r_has_it(theophylline_fit):
    table = theophylline_fit.standard_errors()
    errors = table.loc["mean", "standard error"]
    assert errors.to_dict() == pytest.approx({"ka": 0.1988, "V": 0.0459, "CL": 0.0842}, abs=1e-4)
    row = table.loc[("mean", "ka")]
    assert row["natural error"] == pytest.approx(row["natural"] * row["standard error"])
    assert row["upper"] - row["value"] == pytest.approx(1.96 * row["standard error"], rel=1e-4)
    assert "0.1988" in str(theophylline_fit.summary())


def test_a_linear_model_agrees_with_statsmodels():
    random, n = np.random.default_rng(0), 60
    effects = random.multivariate_normal([1, 2], [[1, 0.2], [0.2, 0.3]], n)
    time = np.tile(np.arange(5.0), (n, 1))
    response = effects[:, :1] + effects[:, 1:] * time + 0.4 * random.standard_normal((n, 5))
    data = nf.LongitudinalData.regular(torch.from_numpy(time), torch.from_numpy(response))
    fit = nf.Model(nf.curves.linear()).fit(data, seed=1, progress=False)
    design = sm.add_constant(time.ravel())
    exact = sm.MixedLM(response.ravel(), design, np.repeat(np.arange(n), 5), exog_re=design).fit(reml=False)
    table = fit.standard_errors()
    assert table.loc["mean", "standard error"].to_numpy() == pytest.approx(exact.bse_fe, rel=0.01)
    one = nf.Model(nf.curves.linear(), fixed=("slope",)).fit(data, seed=1, progress=False)
    exact = sm.MixedLM(response.ravel(), design, np.repeat(np.arange(n), 5)).fit(reml=False)
    table = one.standard_errors()
    assert table.loc[("fixed", "slope"), "standard error"] == pytest.approx(exact.bse_fe[1], rel=0.01)


def test_the_information_is_minus_the_hessian():
    scenario = nf.scenarios.load("L1", "S", 30, 0)
    fit = scenario.model.fit(scenario.data, seed=1, progress=False, particles=256)
    chart, particles = Chart(fit.problem(), fit.state), fit.drawn()
    information = observed_information(chart, particles, held=10_000)
    step = 1e-3 * torch.eye(chart.size, dtype=torch.float64)

    def value(vector):
        return float(chart.log_likelihood(vector, particles, slice(None)))

    zero = torch.zeros(chart.size, dtype=torch.float64)
    found = [(value(e) - 2 * value(zero) + value(-e)) / 1e-6 for e in step]
    assert (-information.diagonal()).numpy() == pytest.approx(found, rel=1e-3)


def test_other_laws_say_where_their_uncertainty_is():
    scenario = nf.scenarios.load("L2", "R", 40, 0)
    fit = scenario.model.fit(scenario.data, nf.Mixture(components=2), seed=1, progress=False)
    with pytest.raises(nf.ModelError, match=r"fit\.bands"):
        fit.standard_errors()
