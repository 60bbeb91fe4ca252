"""nlmeflow.residuals: densities, updates that maximise, slopes, and what is refused."""

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import minimize

import nlmeflow as nf
from nlmeflow.residuals.residual import Residual

F = torch.tensor([[1.0, 2.0, 4.0, 3.0]], dtype=torch.float64)
Y = torch.tensor([[1.2, 1.7, 4.4, 99.0]], dtype=torch.float64)
MASK = torch.tensor([[True, True, True, False]])
MODELS = {
    "additive": (nf.Additive(), [0.3], lambda y, f: stats.norm.logpdf(y, f, 0.3)),
    "proportional": (nf.Proportional(), [0.1], lambda y, f: stats.norm.logpdf(y, f, 0.1 * f)),
    "log-additive": (nf.LogAdditive(), [0.2], lambda y, f: stats.lognorm.logpdf(y, 0.2, scale=f)),
    "combined": (
        nf.Combined(),
        [0.2, 0.1],
        lambda y, f: stats.norm.logpdf(y, f, (0.04 + 0.01 * f**2) ** 0.5),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_log_likelihood_is_the_density_of_the_observed(name):
    residual, sigma, reference = MODELS[name]
    summary = residual.summary(Y, F, MASK)
    value = residual.log_likelihood(summary, torch.tensor(sigma, dtype=torch.float64))
    assert float(value) == pytest.approx(reference(Y[MASK].numpy(), F[MASK].numpy()).sum())


@pytest.mark.parametrize("name", MODELS)
def test_update_maximises_the_weighted_likelihood(name):
    residual, sigma, _ = MODELS[name]
    random = torch.Generator().manual_seed(3)
    prediction = 1 + 4 * torch.rand(6, 5, 8, generator=random, dtype=torch.float64)
    scale = torch.tensor(sigma, dtype=torch.float64)
    response = residual.sample(prediction[:, :1], 2 * scale, random).abs()
    mask = torch.rand(6, 1, 8, generator=random) < 0.8
    weights = torch.rand(6, 5, generator=random, dtype=torch.float64)
    summary = residual.summary(response, prediction, mask)
    best = scale
    for _ in range(20):  # one step is enough for one scale; two scales go on from M-step to M-step
        best = residual.update(summary, weights, best)

    def value(at):
        return float((weights * residual.log_likelihood(summary, at)).sum())

    for k in range(len(best)):
        for factor in (0.99, 1.01):
            other = best.clone()
            other[k] *= factor
            assert value(other) < value(best)


@pytest.mark.parametrize("name", MODELS)
def test_working_slope_is_minus_the_derivative_of_the_residual(name):
    residual, sigma, _ = MODELS[name]
    scale = torch.tensor(sigma, dtype=torch.float64)
    at = Y[:, :3].clone()  # at y = f the derivative of the scale does not matter
    value, slope = residual.working(at, at, scale)
    moved, _ = residual.working(at, at + 1e-7, scale)
    assert torch.allclose(slope, -(moved - value) / 1e-7, rtol=1e-4)


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("model", [nf.Additive(), nf.Proportional(), nf.LogAdditive(), nf.Combined()])
def test_the_score_is_the_derivative_of_the_log_likelihood(model, limited):
    """Automatic differentiation; also of censored observations, and where the curve is below zero."""
    if limited and not model.takes_bounds:
        return
    random = torch.Generator().manual_seed(0)
    prediction = 1 + torch.rand(6, 5, generator=random, dtype=torch.float64)
    response = prediction * torch.exp(0.3 * torch.randn(6, 5, generator=random, dtype=torch.float64))
    if not model.logarithmic:
        prediction[3:], response[3:] = -prediction[3:], -response[3:]
    sigma = torch.tensor([0.4, 0.3][: len(model.names)], dtype=torch.float64)
    mask, bounds = torch.ones_like(response, dtype=torch.bool), None
    mask[0, 0] = False
    if limited:
        left, between = (response.new_full(response.shape, end) for end in (-torch.inf, torch.inf))
        between[:, 2], left[:, 3] = response[:, 2], response[:, 3]
        left[:, 4], between[:, 4] = response[:, 4] - 0.1, response[:, 4] + 0.2
        bounds = (left, between)
    residual, slope = model.score(response, prediction, sigma, mask, bounds)
    expected, same = Residual.score(model, response, prediction, sigma, mask, bounds)
    found = (residual * slope)[mask]
    torch.testing.assert_close(found, (expected * same)[mask], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("model", [nf.Proportional(), nf.Combined()])
def test_a_fixed_parameter_is_at_the_maximum_where_the_error_grows_with_the_curve(model):
    """A line with one slope for all: no higher likelihood beside it, by quadrature over intercepts."""
    random, t, rows = np.random.default_rng(5), np.arange(5.0), []
    for _ in range(15):
        level = 5 + random.normal()
        rows.append([level - 0.5 * time + 0.4 * random.normal() for time in t])
    y = np.array(rows)
    data = nf.LongitudinalData.regular(torch.tensor(t).expand(15, -1), torch.tensor(y))
    line = nf.Model(nf.curves.linear(), model, fixed=("slope",))
    fit = line.fit(data, seed=1, particles=2048, progress=False)
    grid = np.linspace(1e-3, 10, 4001)

    def log_likelihood(mean, sd, slope, *scale):
        curve = grid[:, None] + slope * t
        error = scale[0] * abs(curve) if len(scale) == 1 else np.hypot(scale[0], scale[1] * curve)
        log_data = stats.norm.logpdf(y[:, None], curve, error).sum(-1)
        return np.log(np.trapezoid(np.exp(log_data + stats.norm.logpdf(grid, mean, sd)), grid)).sum()

    place = [float(fit.law.mean[0]), float(fit.law.sd[0]), fit.fixed["slope"], *fit.sigma.tolist()]
    reached = log_likelihood(*place)
    found = minimize(lambda at: -log_likelihood(*at), place, method="Nelder-Mead")
    assert -found.fun == pytest.approx(reached, abs=0.02)


def test_bad_residuals_are_refused():
    with pytest.raises(nf.ModelError, match="sigma must be positive"):
        nf.Additive(sigma=-1)
    with pytest.raises(nf.ModelError, match="both a and b"):
        nf.Combined(a=1.0)
    data = nf.LongitudinalData.regular(torch.ones(2, 3).cumsum(1), torch.tensor([[1.0, 2, 3], [1, -1, 2]]))
    with pytest.raises(
        nf.ModelError, match=r"positive responses; individual '1' has response = -1 at time = 2"
    ):
        nf.Model(nf.curves.linear(), nf.LogAdditive()).problem(data)


@pytest.mark.parametrize(("power", "falls"), [(1.5, 0), (-1.0, 1)])
def test_where_one_part_of_a_combined_error_falls_to_nothing_the_other_is_at_its_maximum(power, falls):
    """It is the mean of squares then, of errors over f or of errors; joint steps stop before."""
    random = torch.Generator().manual_seed(5)
    prediction = 1 + 4 * torch.rand(6, 5, 8, generator=random, dtype=torch.float64)
    noise = torch.randn(6, 5, 8, generator=random, dtype=torch.float64)
    response, residual = prediction + 0.1 * prediction**power * noise, nf.Combined()
    summary = residual.summary(response, prediction, torch.ones(6, 1, 8, dtype=torch.bool))
    sigma, weights = torch.tensor([0.1, 0.1], dtype=torch.float64), torch.ones(6, 5, dtype=torch.float64)
    for _ in range(20):
        sigma = residual.update(summary, weights, sigma)
    errors = (response - prediction) / (prediction if falls == 0 else 1.0)
    assert float(sigma[falls]) < 1e-4
    assert float(sigma[1 - falls]) == pytest.approx(float(errors.square().mean().sqrt()), rel=1e-5)


class Averaged(nf.Additive):
    def error(self, response, prediction):
        return (response - prediction).mean(-1, keepdim=True)


class Short(nf.Additive):
    def slope(self, response, prediction):
        return torch.ones(3)


class OfNumpy(nf.Additive):
    def error(self, response, prediction):
        return (response - prediction).numpy()


class Shared(nf.Additive):
    def error(self, response, prediction):
        return (response - prediction) / response.max()


@pytest.mark.parametrize(
    ("residual", "words"),
    [
        (Averaged, "'Averaged' cannot be used: its start fails"),
        (Short, "its working fails, or what it returns is of another shape"),
        (OfNumpy, "Use torch functions"),
        (Shared, "'Shared' mixes individuals"),
    ],
)
def test_an_error_model_that_cannot_be_called_is_refused_when_the_model_is_built(residual, words):
    with pytest.raises(nf.ModelError, match=words):
        nf.Model(nf.curves.linear(), residual)
