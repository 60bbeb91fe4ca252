"""nlmeflow.residuals.censoring: against quadrature and a truncated normal law; where ignoring it misleads."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import integrate, stats

import nlmeflow as nf
from nlmeflow.residuals.censoring import Interpolated, log_between, truncated


def test_moments_of_a_truncated_normal_law():
    low = torch.tensor([-torch.inf, -1.0, 2.0, 8.0, -torch.inf, -12.0, -0.3]).double()
    high = torch.tensor([0.5, torch.inf, torch.inf, torch.inf, -9.0, -10.0, 0.2]).double()
    mean, square = truncated(low, high)
    for k in range(len(low)):
        exact = stats.truncnorm(float(low[k]), float(high[k]))
        assert float(mean[k]) == pytest.approx(exact.mean(), rel=1e-4)
        assert float(square[k]) == pytest.approx(exact.moment(2), rel=1e-3)
    mass = stats.norm.logcdf(-8.0)
    assert float(log_between(low, high)[3]) == pytest.approx(mass, rel=1e-9)
    nothing = torch.tensor([-torch.inf]).double()
    assert float(log_between(nothing, -nothing)) == 0
    assert [float(x) for x in truncated(nothing, -nothing)] == [0, 1]


def test_interpolation_in_sigma_is_that_of_the_exact_sum_and_its_derivative():
    random = np.random.default_rng(4)
    low = torch.from_numpy(random.normal(0, 20, (3, 50, 6)))
    high = low + torch.from_numpy(random.exponential(10, low.shape))
    low[..., 0], high[..., 1] = -torch.inf, torch.inf
    found = Interpolated(low, high)
    assert found.at(6.0) is None  # exact is cheaper for one value
    for sigma in (6.02, 6.3, 5.6):
        value, slope = found.at(sigma)
        exact = log_between(low / sigma, high / sigma).sum(-1)
        torch.testing.assert_close(value, exact, rtol=1e-6, atol=1e-6)
        expected = (truncated(low / sigma, high / sigma)[1] - 1).sum(-1)
        torch.testing.assert_close(slope, expected, rtol=1e-4, atol=1e-4)
    assert found.at(9.0) is None  # sigma has moved far


def scores(n=60, seed=1):
    """Levels N(70, 20^2), error 8, four scores each that saturate at 0 and 100; some known to an interval."""
    random = np.random.default_rng(seed)
    true = random.normal(70, 20, n)[:, None] + 8 * random.standard_normal((n, 4))
    frame = pd.DataFrame({"plant": np.repeat(np.arange(n), 4), "day": np.tile(np.arange(4.0), n)})
    frame["score"] = true.clip(0, 100).ravel()
    frame["kind"] = np.where(true.ravel() >= 100, "right", np.where(true.ravel() <= 0, "left", ""))
    coarse = (frame.index % 11 == 0) & (frame["kind"] == "")
    frame.loc[coarse, "kind"] = "interval"
    frame["end"] = np.nan
    frame.loc[coarse, "end"] = np.ceil(frame.loc[coarse, "score"] / 10 + 1e-9) * 10
    frame.loc[coarse, "score"] = frame.loc[coarse, "end"] - 10
    return frame


def level():
    """A curve that is a constant: the intercept of a line whose slope is left out."""
    return nf.Curve(lambda t, psi: psi["level"] + 0 * t, parameters=[nf.Parameter("level")])


def read(frame, **options):
    return nf.LongitudinalData.from_frame(frame, "plant", "day", "score", **options)


@pytest.fixture(scope="module")
def fit():
    data = read(scores(), censoring="kind", limit="end")
    assert int(data.censored.sum()) == int((scores()["kind"] != "").sum())
    return nf.Model(level()).fit(data, seed=1, progress=False)


def test_the_likelihood_is_that_of_quadrature(fit):
    mean, sd, sigma = float(fit.law.mean), float(fit.law.sd), fit.residual["sigma"]
    low, high = (side.numpy() for side in fit.data.bounds)
    response, hidden = fit.data.response.numpy(), fit.data.censored.numpy()
    total = 0.0
    for i in range(len(fit.data)):

        def joint(x, i=i):
            seen = stats.norm.pdf(response[i][~hidden[i]], x, sigma).prod()
            ends = stats.norm.cdf(high[i][hidden[i]], x, sigma) - stats.norm.cdf(low[i][hidden[i]], x, sigma)
            return seen * ends.prod() * stats.norm.pdf(x, mean, sd)

        centre = float(fit.latent[0][i].mean())
        total += np.log(integrate.quad(joint, centre - 60, centre + 80, points=[centre], limit=200)[0])
    assert fit.log_likelihood().value == pytest.approx(total, abs=0.02)


def test_the_fit_is_a_maximum(fit):
    """Moving any parameter by a twentieth of its standard error of the whole changes the value down."""
    from dataclasses import replace

    best = fit.log_likelihood().value
    for scale in (0.9, 1.1):
        worse = replace(fit, sigma=scale * fit.sigma)
        assert worse.log_likelihood().value < best
        assert replace(fit, law=fit.law.inflated(scale)).log_likelihood().value < best


@pytest.mark.slow
def test_saturation_ignored_misleads():
    """Averages over simulated data: truth 70, 20 and 8."""
    taken, ignored = [], []
    for seed in range(6):
        frame = scores(150, seed + 10)
        model = nf.Model(level())
        for data, found in (
            (read(frame, censoring="kind", limit="end"), taken),
            (read(frame[frame["kind"] != "interval"]), ignored),
        ):
            fit = model.fit(data, seed=1, particles=256, progress=False)
            found.append([float(fit.law.mean), float(fit.law.sd), fit.residual["sigma"]])
    taken, ignored = np.mean(taken, 0), np.mean(ignored, 0)
    assert taken == pytest.approx([70, 20, 8], abs=2.0)
    assert ignored[1] < taken[1] - 1
    assert ignored[2] < taken[2] - 0.4


@pytest.mark.slow
def test_concentrations_below_the_limit():
    """Log-additive errors, one sample in five below the limit of quantification."""
    random = np.random.default_rng(5)
    model = nf.Model(nf.curves.oral(100.0), nf.LogAdditive())
    phi = torch.from_numpy(random.standard_normal((80, 3)) * [0.3, 0.3, 0.15] + np.log([1.2, 3.5, 30]))
    time = torch.tensor([0.5, 1, 2, 4, 8, 12, 24, 36]).double().expand(80, -1)
    mean = model.mean_response(phi, time)
    response = (mean * torch.from_numpy(np.exp(0.2 * random.standard_normal(mean.shape)))).numpy()
    frame = pd.DataFrame({"id": np.repeat(np.arange(80), 8), "t": np.tile(time[0].numpy(), 80)})
    frame["y"] = response.clip(min=0.3).ravel()
    frame["below"] = np.where(response.ravel() < 0.3, "left", "")
    assert 0.1 < (frame["below"] != "").mean() < 0.35
    data = nf.LongitudinalData.from_frame(frame, "id", "t", "y", censoring="below")
    fit = model.fit(data, nf.Gaussian("diagonal"), seed=1, progress=False)
    assert fit.law.mean.numpy() == pytest.approx(np.log([1.2, 3.5, 30]), abs=0.12)
    assert fit.law.sd.numpy() == pytest.approx([0.3, 0.3, 0.15], abs=0.07)
    assert fit.residual["sigma"] == pytest.approx(0.2, rel=0.1)


def test_censored_data_are_saved_and_read(fit, tmp_path):
    curve = level()
    model = nf.Model(curve)
    own = model.fit(fit.data, seed=1, particles=64, progress=False)
    own.save(tmp_path / "fit")
    again = nf.load(tmp_path / "fit", curve=curve)
    assert torch.equal(again.data.bounds[0], own.data.bounds[0])
    assert again.log_likelihood() == own.log_likelihood()


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda f: f.assign(kind="above"), {"limit": "end"}, "accepted are 'left', 'right', 'interval'"),
        (lambda f: f, {}, "name its column with limit="),
        (lambda f: f.assign(end=-5.0), {"limit": "end"}, "'end' must be above column 'score' in row 0"),
    ],
)
def test_bad_censoring_is_named(change, options, message):
    with pytest.raises(nf.DataError, match=message):
        read(change(scores()), censoring="kind", **options)


def test_combined_errors_are_refused():
    with pytest.raises(nf.ModelError, match=r"not with nf\.Combined"):
        nf.Model(level(), nf.Combined()).fit(read(scores(), censoring="kind", limit="end"), progress=False)


def test_advice_for_shares_of_a_curve_is_of_errors_that_take_censored_data():
    """Codes of -1 for what was not quantified, taken for limits: no positive curve comes near them."""
    random, t = np.random.default_rng(0), np.array([0.5, 1, 2, 4, 8, 12, 24])
    mean = 10 * np.exp(-0.1 * t + random.normal(0, 0.2, (16, 1)))
    y = mean * (1 + 0.1 * random.standard_normal(mean.shape))
    seen = np.where(y < 2, "left", "").ravel()
    frame = pd.DataFrame({"plant": np.repeat(range(16), 7), "day": np.tile(t, 16), "k": seen})
    coded, limited = (
        nf.LongitudinalData.from_frame(
            frame.assign(y=np.where(y < 2, code, y).ravel()), "plant", "day", "y", censoring="k"
        )
        for code in (-1.0, 2.0)
    )
    decay = nf.Curve(
        lambda t, p: p["A"] * torch.exp(-p["k"] * t), [nf.Parameter("A", "log"), nf.Parameter("k", "log")]
    )
    model = nf.Model(decay, nf.Proportional(), fixed=("k",))
    with pytest.raises(nf.EstimationError, match=r"Take nf.Additive\(\), or .* from -1 to -1, are those"):
        model.fit(coded, seed=1, particles=64, progress=False)
    assert model.fit(limited, seed=1, particles=64, progress=False).law.mean[0] == pytest.approx(2.3, abs=0.1)
    nf.Model(decay, nf.Additive(), fixed=("k",)).fit(coded, seed=1, particles=64, progress=False)


@pytest.mark.slow
def test_first_values_know_what_is_censored():
    """A growth of which more than half is below the limit: the fit reaches what was simulated."""
    random, time = np.random.default_rng(5), np.sort(np.random.default_rng(6).uniform(0, 12, (20, 10)), 1)
    size = random.normal(10, 0.8, (20, 1))
    response = size / (1 + np.exp((5 - time) / 1.5)) + 0.2 * random.standard_normal((20, 10))
    limit = 7.0
    frame = pd.DataFrame({"who": np.repeat(np.arange(20), 10), "t": time.ravel(), "y": response.ravel()})
    frame["kind"] = np.where(frame["y"] < limit, "left", "")
    frame["y"] = frame["y"].clip(lower=limit)
    data = nf.LongitudinalData.from_frame(frame, "who", "t", "y", censoring="kind")
    model = nf.Model(nf.curves.logistic_growth(), fixed=("xmid", "scal"))
    fit = model.fit(data, seed=0, progress=False)
    assert fit.residual["sigma"] == pytest.approx(0.2, rel=0.3)
    assert fit.fixed["xmid"] == pytest.approx(5, abs=0.6)
    first = model.problem(data)
    below, above = torch.full_like(first.data.response, -50.0), torch.full_like(first.data.response, 50.0)
    hidden = first.data.bounds[1].isfinite()
    assert torch.equal(first.nearest(below)[hidden], below[hidden])
    assert first.nearest(above)[hidden].unique().tolist() == [limit]
    assert torch.equal(first.nearest(above)[~hidden], first.data.response[~hidden])


def test_a_limit_far_beyond_all_responses_says_nothing():
    """The residual error is measured by what was observed, not by the size of limits."""
    observed = scores(20)
    observed = observed[observed["kind"] == ""].assign(end=np.nan)
    model = nf.Model(level(), nf.Additive())
    limits = pd.DataFrame({"plant": range(20), "day": 9.0, "score": 1e9, "kind": "left"})
    data = read(pd.concat([observed, limits]), censoring="kind")
    plain, found = (model.fit(one, seed=1).log_likelihood() for one in (read(observed), data))
    assert found.value == pytest.approx(plain.value, abs=0.02)


def test_no_warning_where_nothing_is_known_to_either_side():
    frame = pd.DataFrame({"plant": [1, 1, 2, 2], "day": [0, 1, 0, 1], "green": [1.0, 0.1, 0.9, 0.2]})
    kinds = frame.assign(kind=["", "left", "", "interval"], limit=[np.nan, np.nan, np.nan, 0.4])
    with np.errstate(invalid="raise"):
        data = nf.LongitudinalData.from_frame(kinds, "plant", "day", "green", censoring="kind", limit="limit")
    assert data.response.tolist() == [[1.0, 0.1], [0.9, pytest.approx(0.3)]]
