"""nlmeflow.deconvolution: against a closed form, in other units, under noise of unknown law."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import nlmeflow as nf
from nlmeflow.deconvolution import densities, observe
from nlmeflow.studies.linear_scenarios import LAWS, load

GRID = np.linspace(-6, 7, 300)


def error(scenario, **options):
    found = nf.deconvolve(scenario.data, **options)
    return float(np.trapezoid((found.pdf(GRID) - scenario.truth.pdf(GRID)) ** 2, GRID))


def lines(slopes, noise, times):
    time = np.tile(times, (len(slopes), 1))
    return nf.LongitudinalData.regular(
        torch.from_numpy(time), torch.from_numpy(2.0 + slopes[:, None] * time + noise)
    )


def test_without_noise_it_is_the_sinc_kernel_density():
    """Z* / 1 cut off at l is the mean of sin(l (x - Z)) / (pi (x - Z)), positive part renormalised."""
    scenario = load("bimodal", 80, 6, 1e-9, 1)
    seen = observe(scenario.data, sigma=1e-9)
    cut = seen.u[180]
    distance = GRID[:, None] - scenario.slopes
    kernel = np.sinc(cut * distance / np.pi).mean(1) * cut / np.pi
    positive = kernel.clip(min=0)
    expected = positive / np.trapezoid(positive, GRID)
    assert np.allclose(densities(seen, GRID, np.array([cut]))[0], expected, atol=2e-3)


def test_other_units_change_nothing_but_the_units():
    scenario = load("gamma", 200, 6, 0.3, 2)
    data = scenario.data
    slower = nf.LongitudinalData.regular(data.time * 24, data.response * 1000)
    one, other = nf.deconvolve(data), nf.deconvolve(slower)
    assert np.allclose(other.grid, one.grid * 1000 / 24)
    assert np.allclose(other.density, one.density * 24 / 1000, rtol=1e-6)
    assert other.sigma == pytest.approx(1000 * one.sigma)


def test_sigma_from_second_differences_and_from_lines():
    scenario = load("gaussian", 2000, 6, 0.4, 3)
    assert nf.deconvolve(scenario.data).sigma == pytest.approx(0.4, rel=0.03)
    uneven = lines(scenario.slopes, 0.4 * np.random.default_rng(1).standard_normal((2000, 4)), [0, 1, 2, 5])
    found = nf.deconvolve(uneven)
    assert found.sigma == pytest.approx(0.4, rel=0.03)
    spread = np.square(np.array([0, 1, 2, 5]) - 2).sum()
    assert found.error_sd == pytest.approx(found.sigma / np.sqrt(spread))
    intercept = nf.deconvolve(uneven, "intercept")
    assert intercept.error_sd == pytest.approx(found.sigma * np.sqrt(1 / 4 + 4 / spread))


def test_unknown_noise_is_estimated():
    """Laplace errors, characteristic function 1 / (1 + b^2 u^2): that of the mean pair slope's error."""
    random, n = np.random.default_rng(4), 4000
    slopes = LAWS["bimodal"].sample(n, random)
    data = lines(slopes, random.laplace(scale=0.5, size=(n, 6)), np.arange(6.0))
    seen = observe(data, noise="unknown")
    low = seen.u < 2.5
    expected = (1 + (0.5 * seen.u[low] / 9) ** 2) ** -6.0
    assert np.allclose(seen.denominator[low], expected, atol=0.02)
    found = nf.deconvolve(data, noise="unknown")
    assert np.trapezoid((found.pdf(GRID) - LAWS["bimodal"].pdf(GRID)) ** 2, GRID) < 0.01


def test_error_falls_with_individuals_and_rises_with_noise():
    def mean(n, sigma):
        return np.mean([error(load("gaussian", n, 6, sigma, seed)) for seed in range(12)])

    assert mean(800, 0.3) < mean(100, 0.3) < mean(100, 0.9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"effect": "rate"}, "effect is 'slope' or 'intercept', got 'rate'"),
        ({"noise": "laplace"}, "noise is 'gaussian' or 'unknown', got 'laplace'"),
        ({"noise": "unknown", "effect": "intercept"}, "only the density of slopes"),
        ({"sigma": -1}, "sigma is a number above 0"),
        ({"cutoff": 1e6}, "cutoff lies between .* and"),
        ({"cutoff": 1e-3}, "cutoff lies between"),
        ({"points": 10**7}, "complex numbers in memory"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(nf.ModelError, match=message):
        nf.deconvolve(load("gaussian", 20).data, **options)


@pytest.mark.parametrize("effect", ["slope", "intercept"])
@pytest.mark.parametrize("sigma", [3.0, 30.0, 1000.0])
def test_a_sigma_above_what_the_estimates_can_hold_is_refused(effect, sigma):
    data = load("gamma", 30, 5, 0.05, 0).data
    data = replace(data, response=data.response - data.response[:, :1] * 0.9)
    with pytest.raises(nf.ModelError, match=f"sigma = {sigma:g} the estimated {effect}s have errors .* 0.0"):
        nf.deconvolve(data, effect, sigma=sigma)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n", [2, 5, 200])
def test_a_true_sigma_is_taken_where_effects_do_not_differ(n):
    time, random = np.arange(4.0), np.random.default_rng(0)
    for _ in range(40):
        found = nf.deconvolve(lines(np.ones(n), random.normal(0, 0.3, (n, 4)), time), sigma=0.3)
        assert np.isfinite(found.density).all()


def test_designs_that_say_too_little_are_refused():
    two = lines(np.ones(5), np.zeros((5, 2)), [0.0, 1.0])
    with pytest.raises(nf.DataError, match="has 2 observations; a line and its error need at least three"):
        nf.deconvolve(two)
    uneven = lines(np.ones(5), np.zeros((5, 4)), [0.0, 1.0, 2.0, 5.0])
    with pytest.raises(nf.DataError, match="four equally spaced times"):
        nf.deconvolve(uneven, noise="unknown")
    with pytest.raises(nf.ModelError, match="No scenario 'cauchy'"):
        load("cauchy")


def test_censored_and_constant_responses_are_refused():
    lines = load("gaussian", 20, seed=1).data
    censored = replace(lines, bounds=(torch.full_like(lines.time, -torch.inf), lines.response))
    with pytest.raises(nf.ModelError, match="does not take censored responses"):
        nf.deconvolve(censored)
    with pytest.raises(nf.DataError, match="exactly on lines, or are all the same"):
        nf.deconvolve(replace(lines, response=torch.ones_like(lines.response)))


@pytest.mark.parametrize("noise", ["gaussian", "unknown"])
@pytest.mark.parametrize("time", [np.arange(6.0), np.array([0.0, 1, 2, 4, 8, 16])])
def test_lines_without_error_are_refused_whatever_arithmetic_leaves_of_it(noise, time):
    exact = lines(np.random.default_rng(1).normal(0.5, 0.3, 30), 0.0, time)
    with pytest.raises(nf.DataError, match=r"exactly on lines|equally spaced"):
        nf.deconvolve(exact, noise=noise)


def test_unknown_noise_needs_times_that_differ():
    noise = np.random.default_rng(1).normal(0, 0.3, (30, 4))
    for times in (np.zeros(4), np.zeros(1)):
        with pytest.raises(nf.DataError, match="four equally spaced times"):
            nf.deconvolve(lines(np.ones(30), noise[:, : len(times)], times), noise="unknown")


def test_a_sigma_of_unknown_noise_is_refused():
    with pytest.raises(nf.ModelError, match="sigma is that of Gaussian noise"):
        nf.deconvolve(load("gaussian", 20, seed=1).data, sigma=0.4, noise="unknown")


def test_the_unit_of_time_does_not_make_times_equally_spaced():
    random, time = np.random.default_rng(0), np.array([0.0, 1, 2, 4, 8, 16])
    y = random.normal(2, 0.5, (60, 1)) + random.gamma(3, 0.3, (60, 1)) * time + random.normal(0, 0.3, (60, 6))
    found = []
    for unit in (1.0, 1e-9):
        frame = pd.DataFrame(
            {"plant": np.repeat(range(60), 6), "day": np.tile(unit * time, 60), "y": y.ravel()}
        )
        data = nf.LongitudinalData.from_frame(frame, "plant", "day", "y")
        found.append(nf.deconvolve(data).sigma)
        with pytest.raises(nf.DataError, match="equally spaced"):
            nf.deconvolve(data, noise="unknown")
    assert found[1] == pytest.approx(found[0])
