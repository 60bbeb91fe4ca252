"""nlmeflow.estimation, from data to fit: what holds for every model, design and unit, on random ones."""

import math
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

import nlmeflow as nf

FEW = settings(max_examples=6, deadline=None, derandomize=True)


def polynomial(dim):
    """y = phi_0 + phi_1 t + ... : linear in its parameters, so that its likelihood is known."""
    names = [f"c{k}" for k in range(dim)]
    return nf.Curve(
        lambda t, psi: sum(psi[n] * t**k for k, n in enumerate(names)), [*map(nf.Parameter, names)]
    )


def curves(dim, n, times, seed, missing=0.0):
    """A long table of n noisy polynomials of random coefficients, some responses missing."""
    random = np.random.default_rng(seed)
    time = np.sort(random.uniform(-1, 1, (n, times)), 1)
    coefficients = random.normal(random.normal(0, 2, dim), random.uniform(0.3, 1.5, dim), (n, dim))
    mean = sum(coefficients[:, [k]] * time**k for k in range(dim))
    response = mean + 0.2 * random.standard_normal(mean.shape)
    response[random.random(response.shape) < missing] = np.nan
    who = np.repeat([f"i{k}" for k in range(n)], times)
    return pd.DataFrame({"who": who, "t": time.ravel(), "y": response.ravel()})


def read(frame):
    return nf.LongitudinalData.from_frame(frame, "who", "t", "y")


def fitted(frame, dim, **more):
    return nf.Model(polynomial(dim), **more).fit(read(frame), seed=1, particles=512, progress=False)


def exact(fit, frame):
    """Sum of log N(y_i; X_i mu, X_i Omega X_i' + sigma^2 I)."""
    mean, covariance = fit.law.mean.numpy(), fit.law.covariance.numpy()
    total = 0.0
    for _, rows in frame.dropna().groupby("who"):
        design = rows["t"].to_numpy()[:, None] ** np.arange(len(mean))
        spread = design @ covariance @ design.T + fit.residual["sigma"] ** 2 * np.eye(len(rows))
        total += multivariate_normal.logpdf(rows["y"], design @ mean, spread)
    return total


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 5])
def test_from_one_to_five_dimensions_the_likelihood_is_the_exact_one(dim):
    frame = curves(dim, 25, dim + 4, seed=dim, missing=0.1)
    fit = fitted(frame, dim)
    value = fit.log_likelihood()
    assert fit.converged
    assert abs(value.value - exact(fit, frame)) < max(4 * value.error, 0.05)


@FEW
@given(
    dim=st.integers(1, 3),
    n=st.integers(4, 20),
    times=st.integers(5, 9),
    missing=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 10**6),
)
def test_on_random_designs_the_likelihood_is_the_exact_one(dim, n, times, missing, seed):
    frame = curves(dim, n, times, seed, missing)
    fit = nf.Model(polynomial(dim)).fit(read(frame), nf.Gaussian(prior=1), seed=1, particles=512)
    value = fit.log_likelihood()
    assert abs(value.value - exact(fit, frame)) < max(4 * value.error, 0.05)


@FEW
@given(time=st.floats(-6, 6), size=st.floats(-6, 6))
def test_units_of_time_and_response_change_nothing_but_the_units(time, size):
    frame, (tau, s) = declines(), (10.0**time, 10.0**size)
    fit = in_days()
    other = senescence(frame.assign(t=frame["t"] * tau, y=frame["y"] * s))
    assert float(other.law.mean[0]) == pytest.approx(float(fit.law.mean[0]) * tau, rel=1e-4)
    assert float(other.law.mean[1]) == pytest.approx(float(fit.law.mean[1]) + math.log(tau), abs=1e-3)
    assert float(other.law.sd[0]) == pytest.approx(float(fit.law.sd[0]) * tau, rel=0.01)
    assert other.residual["sigma"] == pytest.approx(fit.residual["sigma"] * s, rel=1e-3)
    assert other.fixed["A"] == pytest.approx(fit.fixed["A"] * s, rel=1e-3)
    moved = fit.log_likelihood().value - math.log(s) * len(frame)
    assert other.log_likelihood().value == pytest.approx(moved, abs=0.3)


def declines():
    random = np.random.default_rng(5)
    day = np.arange(30.0, 76.0, 6.0)
    tau, s = random.normal(50, 4, 20), np.exp(random.normal(1.1, 0.2, 20))
    y = 1 / (1 + np.exp((day - tau[:, None]) / s[:, None])) + 0.03 * random.standard_normal((20, len(day)))
    return pd.DataFrame({"who": np.repeat(np.arange(20), len(day)), "t": np.tile(day, 20), "y": y.ravel()})


def senescence(frame):
    model = nf.Model(nf.curves.logistic_senescence(), fixed="A")
    return model.fit(read(frame), seed=1, particles=512, progress=False)


@cache
def in_days():
    return senescence(declines())


@cache
def in_order():
    return fitted(curves(2, 12, 6, seed=3), 2)


@FEW
@given(seed=st.integers(0, 10**6))
def test_order_of_rows_and_individuals_does_not_matter(seed):
    fit, other = in_order(), fitted(curves(2, 12, 6, seed=3).sample(frac=1, random_state=seed), 2)
    assert torch.allclose(other.law.mean, fit.law.mean, atol=2e-3)
    assert torch.allclose(other.law.sd, fit.law.sd, rtol=5e-3)
    error = math.hypot(fit.log_likelihood().error, other.log_likelihood().error)
    assert abs(other.log_likelihood().value - fit.log_likelihood().value) < max(4 * error, 0.02)
    means = fit.individuals()["c0_mean"]
    assert np.allclose(other.individuals()["c0_mean"].reindex(means.index), means, atol=0.02)


@pytest.mark.slow
@FEW
@given(seed=st.integers(0, 10**6))
def test_a_missing_response_is_as_a_missing_row(seed):
    frame = curves(2, 10, 8, seed, missing=0.3)
    fit, other = fitted(frame, 2), fitted(frame.dropna(), 2)
    assert len(frame.dropna()["who"].unique()) < 10 or torch.equal(fit.law.mean, other.law.mean)
    assert other.log_likelihood().value == pytest.approx(fit.log_likelihood().value, abs=0.05)


def test_an_individual_without_information_has_the_population_as_its_law():
    frame = curves(2, 12, 6, seed=7)
    empty = pd.DataFrame({"who": ["nobody"] * 2, "t": [0.0, 1.0], "y": [np.nan] * 2})
    fit, other = fitted(frame, 2), fitted(pd.concat([frame, empty]), 2)
    assert torch.allclose(other.law.mean, fit.law.mean, atol=5e-3)
    row = other.individuals().loc["nobody"]
    assert row["log_likelihood"] == 0
    assert row["c0_mean"] == pytest.approx(float(other.law.mean[0]), abs=0.1 * float(other.law.sd[0]))
    assert row["c0_sd"] == pytest.approx(float(other.law.sd[0]), rel=0.1)


def test_two_identical_individuals_have_the_same_law():
    frame = curves(2, 12, 6, seed=8)
    twin = frame[frame["who"] == "i3"].assign(who="twin")
    fit = fitted(pd.concat([frame, twin]), 2)
    table = fit.individuals()[["c0_mean", "c1_mean", "log_likelihood"]]
    assert np.allclose(table.loc["i3"], table.loc["twin"], atol=0.02)


def test_single_precision_is_read_and_answered_in_double():
    frame = curves(2, 12, 6, seed=9)
    fit, other = fitted(frame, 2), fitted(frame.astype({"t": np.float32, "y": np.float32}), 2)
    assert torch.allclose(other.law.mean, fit.law.mean, atol=1e-4)
    single = nf.LongitudinalData.regular(read(frame).time.float(), read(frame).response.float())
    again = nf.Model(polynomial(2)).fit(single, seed=1, particles=512, progress=False)
    assert torch.allclose(again.law.mean, fit.law.mean, atol=1e-3)
    assert again.law.mean.dtype == torch.float64
    phi = fit.law.sample(3, 1)
    assert torch.allclose(fit.law.log_prob(phi.float()).double(), fit.law.log_prob(phi), atol=1e-4)


def test_an_interrupted_fit_leaves_nothing_behind():
    frame, calls, threads = curves(2, 8, 6, seed=4), [], torch.get_num_threads()
    plain = polynomial(2)

    def impatient(t, psi):
        calls.append(1)
        if len(calls) == 60:
            raise KeyboardInterrupt
        return psi["c0"] + psi["c1"] * t

    model = nf.Model(nf.Curve(impatient, plain.parameters))
    with pytest.raises(KeyboardInterrupt):
        model.fit(read(frame), seed=1, particles=512, progress=False)
    assert torch.get_num_threads() == threads
    calls.extend([1] * 1000)
    assert torch.equal(model.fit(read(frame), seed=1, particles=512).law.mean, fitted(frame, 2).law.mean)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_fewer_observations_than_parameters_are_refused(times):
    rows = curves(3, 10, times, seed=1)
    with pytest.raises(nf.ModelError, match=f"at most {times} observation.*3 parameters vary"):
        nf.Model(polynomial(3)).fit(read(rows), nf.Mixture(), seed=1)
    if times == 1:
        with pytest.raises(nf.ModelError, match="at most 1 observation"):
            fitted(rows, 3)
    fitted(rows, 3, residual=nf.Additive(sigma=0.2))


def test_a_response_that_never_varies_is_refused():
    with pytest.raises(nf.ModelError, match="The response is 3 in all 40 rows"):
        fitted(curves(2, 8, 5, seed=1).assign(y=3.0), 2)
    with pytest.raises(nf.ModelError, match="every one is missing"):
        fitted(curves(2, 8, 5, seed=1).assign(y=np.nan), 2)


def test_a_parameter_that_runs_off_is_named():
    rows = curves(1, 12, 6, seed=2)
    curve = nf.Curve(
        lambda t, psi: psi["a"] + torch.exp(-psi["k"] * (t + 1.5)),
        [nf.Parameter("a"), nf.Parameter("k", "log")],
    )
    with pytest.raises(nf.EstimationError, match="Parameter 'k'"):
        nf.Model(curve).fit(read(rows), seed=1, particles=512, start={"k": 1e90}, progress=False)


def test_curves_through_all_observations_leave_no_residual_error():
    frame, random = curves(2, 20, 3, seed=6), np.random.default_rng(0)
    a, b = (np.repeat(random.normal(2, 1, 20), 3) for _ in range(2))
    with pytest.raises(nf.EstimationError, match=r"shrinks without end|broke down"):
        fitted(frame.assign(y=a + b * frame["t"]), 2)


@pytest.mark.slow
def test_a_linearisation_that_runs_away_is_repeated_in_short_steps():
    hopeless = nf.scenarios.load("P1", "H", 60, 1)  # two observations with 30 % error
    model = nf.Model(hopeless.model.curve, nf.LogAdditive(sigma=0.3))
    fit = model.fit(hopeless.data, seed=1, particles=256, progress=False)
    assert float(fit.law.mean[1]) == pytest.approx(math.log(2.6), abs=0.7)  # the clearance, at least
