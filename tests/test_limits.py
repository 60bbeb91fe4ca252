"""nlmeflow.data.limits: scales that end and scores in steps; and how reports.diagnostics sees them."""

import numpy as np
import pandas as pd
import pytest
import torch

import nlmeflow as nf


def recorded(n=60, seed=1, step=None):
    """Senescence scores of n plants on a scale from 0 to 100: half-loss N(20, 3^2), error 6."""
    random = np.random.default_rng(seed)
    day = np.tile(np.arange(8.0, 36, 4), n)
    level, tau, s = (
        np.repeat(x, 7)
        for x in (random.normal(90, 8, n), random.normal(20, 3, n), np.exp(random.normal(1, 0.3, n)))
    )
    value = level / (1 + np.exp((day - tau) / s)) + 6 * random.standard_normal(len(day))
    value = value.clip(0, 100) if step is None else (step * np.round(value / step)).clip(0, 100)
    return pd.DataFrame({"plant": np.repeat(np.arange(n), 7), "day": day, "green": value})


def read(frame, **limits):
    marked = nf.mark_limits(frame, "green", **limits)
    return nf.LongitudinalData.from_frame(
        marked, "plant", "day", "green", censoring="censoring", limit="limit"
    )


def test_what_a_score_says_of_the_value_behind_it():
    frame = pd.DataFrame({"plant": list("abcd"), "green": [0.0, 10.0, 100.0, np.nan]})
    marked = nf.mark_limits(frame, "green", 0, 100, step=10)
    assert list(marked["censoring"]) == ["left", "interval", "right", ""]
    np.testing.assert_array_equal(marked["green"], [5, 5, 95, np.nan])
    np.testing.assert_array_equal(marked["limit"], [np.nan, 15, np.nan, np.nan])
    ends = nf.mark_limits(frame, "green", 0, 100)
    np.testing.assert_array_equal(ends["green"], frame["green"])
    assert list(ends["censoring"]) == ["left", "", "right", ""]


@pytest.mark.parametrize(
    ("values", "limits", "words"),
    [
        ([101.0], {"upper": 100}, "101 in row 0, above upper = 100"),
        ([5.0, -1.0], {"lower": 0}, "-1 in row 1, below lower = 0"),
        ([10.0, 15.0], {"step": 10}, "15 in row 1, which is no multiple of step = 10"),
        ([10.0], {}, "lower= or upper=, or the step="),
        ([10.0], {"lower": 1, "upper": 1}, "upper is a number above"),
        ([10.0], {"step": 0}, "step is a number above 0"),
    ],
)
def test_scores_that_the_scale_does_not_have_are_refused(values, limits, words):
    with pytest.raises(ValueError, match=words):
        nf.mark_limits(pd.DataFrame({"green": values}), "green", **limits)
    with pytest.raises(nf.DataError, match="column 'limit' already"):
        nf.mark_limits(pd.DataFrame({"green": values, "limit": 1}), "green", lower=0)


@pytest.fixture(scope="module")
def fits():
    """The same scores in steps of 20, taken for what they are, and as if they had been measured."""
    model = nf.Model(nf.curves.logistic_senescence())
    frame = recorded(step=20, seed=3)
    plain = nf.LongitudinalData.from_frame(frame, "plant", "day", "green")
    return model.fit(read(frame, lower=0, upper=100, step=20)), model.fit(plain)


def test_scores_in_steps_give_back_the_error(fits):
    known, ignored = fits
    assert abs(known.residual["sigma"] - 6) < 0.7  # a standard error of .35
    assert ignored.residual["sigma"] > 7


def test_a_predictive_check_of_scores_holds_under_the_model_that_made_them(fits):
    known, ignored = fits
    table = nf.diagnostics.vpc(known, level=0.9)
    held = table["observed"].between(table["lower"], table["upper"]).mean()
    assert held > 0.8
    beyond = nf.diagnostics.vpc(ignored, level=0.9)
    assert beyond["observed"].between(beyond["lower"], beyond["upper"]).mean() < held
    with pytest.raises(nf.ModelError, match="no prediction errors of censored data"):
        nf.diagnostics.npde(known)


def test_a_predictive_check_refuses_limits_that_are_no_scale():
    frame = recorded(20).assign(censoring="")
    frame.loc[frame["green"] < 10, "censoring"] = "left"
    data = nf.LongitudinalData.from_frame(frame, "plant", "day", "green", censoring="censoring")
    fit = nf.Model(nf.curves.logistic_senescence()).fit(data)
    with pytest.raises(nf.ModelError, match="different limits"):
        nf.diagnostics.vpc(fit)


def test_where_nothing_is_censored_data_are_as_without_the_column():
    frame = recorded(20)
    plain = nf.LongitudinalData.from_frame(frame, "plant", "day", "green")
    assert nf.LongitudinalData.from_frame(frame.assign(k=""), "plant", "day", "green", censoring="k") == plain
    marked = read(recorded(20).assign(green=lambda f: f["green"].clip(1, 99)), lower=0, upper=100)
    assert marked.bounds is None
    some = read(frame, lower=0, upper=100)
    assert some.bounds is not None
    assert some.subset(~(some.censored & some.mask).any(1)).bounds is None


def test_the_response_of_an_interval_is_its_middle():
    data = read(recorded(20, step=20), lower=0, upper=100, step=20)
    low, high = data.bounds
    both = torch.isfinite(low) & torch.isfinite(high)
    torch.testing.assert_close(data.response[both], (low + high)[both] / 2)


@pytest.mark.slow
def test_scores_coarser_than_the_error_have_a_start():
    """A curve within every interval exists for each plant; sigma is not zero for that.

    Two errors in a step of ten: the start followed the curves to sigma = .02, and fits ended 9 (Gaussian) and
    60 nats (mixture) below the maximum.
    """
    random, n = np.random.default_rng(5), 30
    day = np.linspace(8, 75, 8).round()
    early = random.random(n) < 0.4
    tau = np.where(early, 34, 48) + random.normal(0, 3, n)
    s, level = np.exp(random.normal(1.0, 0.25, n)), np.exp(random.normal(np.log(80), 0.08, n))
    value = level[:, None] / (1 + np.exp((day - tau[:, None]) / s[:, None])) + 2 * random.standard_normal(
        (n, 8)
    )
    scores = pd.DataFrame(
        {
            "plant": np.repeat(np.arange(n), 8),
            "day": np.tile(day, n),
            "green": (10 * np.round(value / 10)).clip(0, 100).ravel(),
        }
    )
    data = read(scores, lower=0, upper=100, step=10)
    model = nf.Model(nf.curves.logistic_senescence())
    gaussian, mixture = (
        model.fit(data, law, seed=1, particles=2048, progress=False)
        for law in (nf.Gaussian(), nf.Mixture(max_components=2))
    )
    for fit in (gaussian, mixture):
        assert 1.2 < fit.residual["sigma"] < 2.8
        assert float((1 / fit.conditional[1].square().sum(1)).min()) > 125  # of 2,048 particles
    assert mixture.log_likelihood().value > gaussian.log_likelihood().value - 1
    exact = by_plain_monte_carlo(gaussian)
    assert exact == pytest.approx(gaussian.log_likelihood().value, abs=0.5)


def by_plain_monte_carlo(fit):
    """Return the log-likelihood at the estimates from draws of the population, without a proposal."""
    phi, problem = fit.law.sample(200_000, 3), fit.problem()
    sigma = torch.tensor([fit.residual["sigma"]]).double()
    total = torch.full((len(problem),), -torch.inf, dtype=torch.float64)
    for part in phi.split(20_000):
        each = problem.log_likelihood(part.expand(len(problem), -1, -1), torch.zeros(0).double(), sigma)
        total = torch.logaddexp(total, each.logsumexp(1))
    return float((total - np.log(len(phi))).sum())


def test_scores_in_decimal_steps_have_a_predictive_check():
    """Neighbouring intervals end at one number, up to rounding."""
    random, day = np.random.default_rng(1), np.arange(30.0, 75, 5)
    y = 1 / (1 + np.exp((day - random.normal(50, 4, (30, 1))) / 3)) + random.normal(0, 0.04, (30, 9))
    scores = pd.DataFrame(
        {
            "plant": np.repeat(range(30), 9),
            "day": np.tile(day, 30),
            "y": (y.clip(0).ravel() * 10).round() * 0.1,
        }
    )
    table = nf.mark_limits(scores, "y", lower=0.0, step=0.1)
    data = nf.LongitudinalData.from_frame(table, "plant", "day", "y", censoring="censoring", limit="limit")
    fit = nf.Model(nf.curves.logistic_senescence(), fixed=("A", "s")).fit(
        data, seed=1, particles=256, progress=False
    )
    assert len(nf.diagnostics.vpc(fit, replicates=20))


def test_scores_of_single_precision_are_those_of_double():
    scores = pd.DataFrame({"y": [0.0, 0.1, 0.3, 0.7, 1.0]})
    marked = nf.mark_limits(scores, "y", 0, 1, 0.1)
    pd.testing.assert_frame_equal(nf.mark_limits(scores.astype(np.float32), "y", 0, 1, 0.1), marked)
    ends = nf.mark_limits(pd.DataFrame({"y": np.arange(11) / 10}), "y", 0, 1, 0.1)
    assert (ends["limit"].iloc[1:9].to_numpy() == ends["y"].iloc[2:10].to_numpy()).all()
