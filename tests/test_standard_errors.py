"""nlmeflow.estimation.information: published values, a linear mixed model, finite differences."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import torch

import nlmeflow as nf
from nlmeflow.estimation import information
from nlmeflow.estimation.information import Chart, in_order, reported_slopes, scores_and_information
from nlmeflow.fitting import tables
from nlmeflow.fitting.bootstrap import Bootstrap
from nlmeflow.laws.affine import Affine
from nlmeflow.numerics import dirichlet_weights, students


def test_theophylline_as_r_has_it(theophylline_fit):
    table = theophylline_fit.standard_errors()
    errors = table.loc["mean", "standard error"]
    assert errors.to_dict() == pytest.approx({"ka": 0.1988, "V": 0.0459, "CL": 0.0842}, abs=1e-4)
    row = table.loc[("mean", "ka")]
    assert row["natural error"] == pytest.approx(row["natural"] * row["standard error"])
    assert row["upper"] - row["value"] == pytest.approx(1.96 * row["standard error"], rel=1e-4)
    assert "0.1988" in str(theophylline_fit.summary())
    sd = table.loc[("sd", "ka")]  # on the scale of logarithms: as many times below as above
    assert sd["upper"] / sd["value"] == pytest.approx(
        np.exp(1.96 * sd["standard error"] / sd["value"]), rel=1e-4
    )
    assert sd["upper"] * sd["lower"] == pytest.approx(sd["value"] ** 2)


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
    chart, particles = Chart(fit.problem(), fit.state), fit.drawn
    scores, information = scores_and_information(chart, particles, held=10_000)
    step = 1e-3 * torch.eye(chart.size, dtype=torch.float64)

    def value(vector):
        return chart.log_likelihood(vector, particles, slice(None))

    found = [float((value(e) - 2 * value(chart.zero) + value(-e)).sum()) / 1e-6 for e in step]
    assert (-information.diagonal()).numpy() == pytest.approx(found, rel=1e-3)
    slopes = torch.stack([(value(e) - value(-e)) / 2e-3 for e in step], 1)
    assert torch.allclose(scores, slopes, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("residual", [nf.LogAdditive(), nf.Proportional(), nf.Combined()])
def test_particles_that_the_data_exclude_leave_derivatives_finite(residual):
    random, time = np.random.default_rng(3), torch.linspace(0, 4, 5, dtype=torch.float64).expand(8, -1)
    mean = random.normal(1.5, 1.0, (8, 1)) ** 2 + random.uniform(0.2, 1.0, (8, 1)) * time.numpy()
    data = nf.LongitudinalData.regular(
        time, torch.from_numpy(mean * np.exp(0.4 * random.standard_normal((8, 5))))
    )
    fit = nf.Model(nf.curves.linear(), residual).fit(data, nf.Gaussian(prior=1.0), seed=1, progress=False)
    particles = fit.drawn
    squares = particles.summary.squares.index_fill(1, torch.tensor([0]), torch.inf)
    spoilt = replace(particles.summary, squares=squares)
    kept = replace(particles, log_proposal=particles.log_proposal.index_fill(1, torch.tensor([0]), torch.inf))
    chart = Chart(fit.problem(), fit.state)
    for found, expected in zip(
        scores_and_information(chart, replace(particles, summary=spoilt)),
        scores_and_information(chart, kept),
        strict=True,
    ):
        assert torch.isfinite(found).all()
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.fixture(scope="module")
def sparse():
    scenario = nf.scenarios.load("L1", "S", 200, 0)
    return scenario.model.fit(scenario.data, seed=1, progress=False)


@pytest.fixture(scope="module")
def mixed():
    scenario = nf.scenarios.load("L2", "R", 60, 0)
    return scenario.model.fit(scenario.data, nf.Mixture(components=2), seed=1, progress=False)


@pytest.mark.slow
def test_the_bootstrap_agrees_with_the_sandwich(sparse):
    """Of a Gaussian fit the bootstrap's covariance is I^-1 (sum_i s_i s_i') I^-1 but for its own error."""
    chart = Chart(sparse.problem(), sparse.state)
    scores, information = scores_and_information(chart, sparse.drawn)
    covariance = torch.linalg.solve(information, torch.linalg.solve(information, scores.mT @ scores).mT)
    slopes = reported_slopes(chart)[1]
    exact = (slopes @ covariance @ slopes.mT).diagonal().sqrt()
    errors = sparse.bootstrap(400, progress=False).parameters()["standard error"]
    assert errors.to_numpy() == pytest.approx(exact.numpy(), rel=0.12)


def test_other_laws_have_standard_errors_from_the_bootstrap(mixed, monkeypatch):
    monkeypatch.setattr(tables, "REPLICATES", 100)
    fit = mixed
    table = fit.standard_errors()
    kinds = ["mean", "mean", "sd", "sd", "correlation", "fixed", "residual"]
    assert table.index.get_level_values("kind").tolist() == kinds
    assert (table["standard error"] > 0).all()
    sd = table.loc[("sd", "tau"), "value"]
    assert table.loc[("mean", "tau"), "standard error"] == pytest.approx(sd / 60**0.5, rel=0.2)
    assert table.loc["sd", "value"].to_numpy() == pytest.approx(fit.gaussian.sd.numpy())
    printed = fit.summary().parameters
    assert printed.loc["tau", "s.e."] == table.loc[("mean", "tau"), "standard error"]


def test_the_bootstrap_of_a_mean_has_the_variance_of_a_mean():
    """s^2 / (N - 1), s^2 with divisor N: nine numbers, whose mean is weighed at random."""
    values = torch.tensor([3.0, -1.0, 0.5, 2.0, 7.0, 1.0, 0.0, -2.0, 4.0], dtype=torch.float64)
    weights = dirichlet_weights(200_000, 9, 1)
    found = Bootstrap(None, (), [], 9).scale * (weights * values).mean(1).std()
    assert float(found) == pytest.approx(float(values.std() / 3), rel=0.01)


def test_limits_from_few_replicates_hold_as_often_as_they_say():
    random = np.random.default_rng(0)
    errors = random.standard_normal((100_000, 12)).std(1, ddof=1)
    off = np.abs(random.standard_normal(100_000))
    assert np.mean(off < students(0.95, 12) * errors) == pytest.approx(0.95, abs=0.003)
    assert np.mean(off < 1.96 * errors) < 0.93
    of_tables = 1.984  # 97.5 % quantile of the t distribution, 99 degrees of freedom
    assert students(0.95, 100) == pytest.approx(of_tables, abs=5e-4)


def test_quantiles_and_shares_have_limits(mixed):
    fit = mixed
    found = fit.bootstrap(40, progress=False)
    quantiles = found.quantiles([0.5])
    median = fit.population(40_000, seed=3)["tau"].median()
    row = quantiles.loc[("tau", 0.5)]
    assert row["value"] == pytest.approx(median, rel=0.02)
    assert row["lower"] < median < row["upper"]
    shares = found.shares()
    assert len(shares) == 2
    assert shares["share"].sum() == pytest.approx(1)
    assert sorted(shares["share"]) == pytest.approx(sorted(fit.law.weights.tolist()), abs=0.03)
    share = shares.loc[1, "share"]
    assert shares.loc[1, "standard error"] == pytest.approx((share * (1 - share) / 60) ** 0.5, rel=0.35)
    with pytest.raises(nf.ModelError, match="between 0 and 1"):
        found.quantiles([1.5])
    with pytest.raises(nf.ModelError, match=r"between 0 and 1, got .'a'"):
        found.quantiles(["a"])
    pd.testing.assert_frame_equal(found.quantiles(0.5), quantiles)
    with pytest.raises(nf.ModelError, match="replicates"):
        fit.bootstrap(3)


@pytest.mark.slow
def test_a_parameter_that_does_not_vary_leaves_the_errors_of_the_others():
    """As if it were fixed; what is named at the boundary is its standard deviation and its correlation."""
    random, time = np.random.default_rng(10), np.tile(np.arange(5.0), (60, 1))
    response = random.normal(1, 2, (60, 1)) + 0.5 * time + 0.5 * random.standard_normal((60, 5))
    about = pd.DataFrame({"x": random.standard_normal(60)})
    data = nf.LongitudinalData.regular(torch.from_numpy(time), torch.from_numpy(response), about)
    parameters = [nf.Parameter("slope"), nf.Parameter("level")]
    curve = nf.Curve(lambda t, psi: psi["level"] + psi["slope"] * t, parameters)
    effects = {"slope": "x", "level": "x"}
    free, held = (
        nf.Model(curve, fixed=fixed, covariates=effects).fit(data, seed=1, progress=False)
        for fixed in ((), ("slope",))
    )
    for table in (free.standard_errors(), free.bootstrap(100, progress=False).parameters()):
        assert table.attrs["boundary"] == ["sd slope", "correlation slope, level"]
        assert table.loc[table["standard error"].isna(), "lower"].isna().all()
    table, other = free.standard_errors()["standard error"], held.standard_errors()["standard error"]
    for name in (
        ("mean", "level"),
        ("sd", "level"),
        ("residual", "sigma"),
        ("effect", "slope: x"),
        ("effect", "level: x"),
    ):
        assert table[name] == pytest.approx(other[name], rel=0.03), name
    assert table["mean", "slope"] == pytest.approx(other["fixed", "slope"], rel=0.03)


@pytest.mark.slow
def test_derivatives_under_an_average_are_held_for_few_individuals_at_a_time(monkeypatch):
    """Otherwise forty laws at every particle take gigabytes."""
    scenario = nf.scenarios.load("L2", "S", 20, 0)
    fit = scenario.model.fit(scenario.data, nf.Flow(steps=5), seed=0, particles=512, progress=False)
    whole = Chart(fit.problem(), fit.state)
    seen = []
    usual = Chart.log_likelihood

    def noted(self, vector, particles, rows):
        seen.append(len(range(len(self.problem))[rows]) * particles.phi.shape[1])
        return usual(self, vector, particles, rows)

    with torch.no_grad():
        expected = scores_and_information(whole, fit.drawn, held=10**12)
        monkeypatch.setattr(Chart, "log_likelihood", noted)
        found = scores_and_information(whole, fit.drawn)
    assert len(seen) > 1
    assert max(seen) <= 2_000_000 / (40 * 8)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_censored_observations_leave_standard_errors_under_every_error_model():
    """An infinite bound has no derivative; where it was not taken it had made all others NaN."""
    random, days = np.random.default_rng(0), np.arange(1.0, 7)
    mean = np.exp(random.normal(1, 0.3, 30))[:, None] * np.exp(-0.2 * days)
    y = (mean * (1 + 0.1 * random.standard_normal(mean.shape))).ravel()
    frame = pd.DataFrame({"plant": np.repeat(range(30), 6), "day": np.tile(days, 30), "y": y.clip(0.9)})
    data = nf.LongitudinalData.from_frame(
        frame.assign(k=np.where(y < 0.9, "left", "")), "plant", "day", "y", censoring="k"
    )
    decay = nf.Curve(
        lambda t, p: p["A"] * torch.exp(-p["k"] * t), [nf.Parameter("A", "log"), nf.Parameter("k", "log")]
    )
    by_log, by_share = (
        nf.Model(decay, error, fixed=("k",))
        .fit(data, seed=1, particles=512, progress=False)
        .standard_errors()
        for error in (nf.LogAdditive(), nf.Proportional())
    )
    np.testing.assert_allclose(by_share["standard error"], by_log["standard error"], rtol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("fixed", [(), ("h",)])
def test_a_sigmoid_curve_is_seen_at_dose_zero(fixed):
    def sigmoid(dose, p):  # 0**h is 0, its second derivative in h 0 times infinity
        return p["A"] * dose ** p["h"] / (p["m"] ** p["h"] + dose ** p["h"])

    def careful(dose, p):
        return torch.where(dose > 0, sigmoid(torch.where(dose > 0, dose, 1.0), p), 0.0)

    random, n = np.random.default_rng(1), 40
    dose = torch.tensor([0, 1, 3, 5, 8, 12, 20]).double()
    top, middle = (torch.from_numpy(np.exp(s * random.standard_normal((n, 1)))) for s in (0.2, 0.3))
    noise = 0.4 * torch.from_numpy(random.standard_normal((n, len(dose))))
    response = sigmoid(dose, {"A": 10 * top, "h": 2.0, "m": 5 * middle}) + noise
    data = nf.LongitudinalData.regular(dose.expand(n, -1), response)
    parameters = [nf.Parameter(name, "log") for name in ("A", "h", "m")]
    there, safe = (
        nf.Model(nf.Curve(function, parameters), fixed=fixed).fit(data, seed=1, progress=False)
        for function in (sigmoid, careful)
    )
    found, exact = (fit.standard_errors()["standard error"].dropna() for fit in (there, safe))
    assert found.to_dict() == pytest.approx(exact.to_dict(), rel=1e-5)


def test_a_covariance_that_is_all_but_singular_has_a_factor_in_any_order():
    """Formed in double precision, its second pivot is 1 - 1 = 0."""
    factor = torch.tensor([[1.0, 0.0], [1.0, 1e-9]], dtype=torch.float64)
    order = torch.tensor([1, 0])
    turned = in_order(Affine(torch.zeros(2, dtype=torch.float64), factor), order).factor
    omega = (factor @ factor.mT)[order][:, order]
    assert torch.linalg.cholesky_ex(omega).info > 0
    assert torch.allclose(turned @ turned.mT, omega)
    assert float(turned[0, 1]) == 0
    assert float(turned.diagonal().min()) == pytest.approx(1e-9)


def test_a_fit_that_ends_at_no_peak_says_so(gaussian_fit, monkeypatch):
    monkeypatch.setattr(information, "FLAT", 2.0)  # no eigenvalue of a scaled matrix's least is above one
    with pytest.raises(nf.EstimationError, match=r"no peak here.* most along (the mean of )?'(A|tau|s)'"):
        gaussian_fit.standard_errors()
    assert gaussian_fit.summary().numbers["converged"] == "to no peak of the likelihood: see standard errors"


def test_particles_where_the_curve_has_no_logarithm_leave_the_standard_errors_of_the_others():
    """A line under an error of the logarithm: differences of the likelihood by quadrature."""
    random, days, n = np.random.default_rng(0), np.arange(5.0), 20
    level = np.exp(random.normal(1.5, 0.25, n))
    y = (level[:, None] - 0.5 * days).clip(0.05) * np.exp(random.normal(0, 0.15, (n, 5)))
    data = nf.LongitudinalData.regular(torch.tensor(days).expand(n, -1), torch.tensor(y))
    model = nf.Model(nf.curves.linear(), nf.LogAdditive(), fixed=("slope",))
    fit = model.fit(data, seed=1, particles=2048, progress=False)
    found = fit.standard_errors()
    grid = np.linspace(0.5, 12, 20_001)

    def deviance(point):
        mean, sd, sigma, slope = point
        curve = grid[:, None] + slope * days
        known = (curve > 0).all(1)
        error = (np.log(y)[:, None] - np.log(np.where(known[:, None], curve, 1.0))) / sigma
        log_data = -0.5 * (error**2).sum(-1) - 5 * np.log(sigma)
        log_law = -0.5 * ((grid - mean) / sd) ** 2 - np.log(sd)
        return -np.log((np.exp(log_data + log_law) * known).sum(1)).sum()

    point, step = found["value"].to_numpy()[[0, 1, 3, 2]], 1e-3
    moves = step * np.eye(4)
    hessian = [
        [sum(s * r * deviance(point + s * a + r * b) for s in (1, -1) for r in (1, -1)) for a in moves]
        for b in moves
    ]
    expected = np.sqrt(np.diag(np.linalg.inv(np.array(hessian) / (4 * step**2))))
    assert found["standard error"].to_numpy()[[0, 1, 3, 2]] == pytest.approx(expected, rel=0.05)
