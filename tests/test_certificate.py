"""nlmeflow.laws.points.certificate: against nonparametric maxima that are solved on a fine grid."""

import numpy as np
import pytest
import torch

import nlmeflow as nf
from nlmeflow.estimation.em import State
from nlmeflow.estimation.likelihood import DataLikelihood
from nlmeflow.laws import GaussianLaw
from nlmeflow.laws.points.certificate import certify, log_gradient


def straight_lines(n=40, seed=0):
    """Random slopes from two groups, one random parameter, known noise."""
    random = np.random.default_rng(seed)
    slope = np.where(random.random(n) < 0.5, 1.0, 3.0) + 0.2 * random.standard_normal(n)
    time = torch.linspace(0, 1, 6).double().expand(n, -1)
    noise = 0.4 * torch.from_numpy(random.standard_normal((n, 6)))
    return nf.LongitudinalData.regular(time, torch.from_numpy(slope)[:, None] * time + noise)


def solved(problem, state, points=1500, steps=6000):
    """NPML on a grid by EM: log-likelihood and log-marginals."""
    grid = torch.linspace(-2, 6, points).double()[:, None]
    log_psi = problem.log_likelihood(grid.expand(len(problem), -1, -1), state.beta, state.sigma)
    psi = (log_psi - log_psi.max(1, keepdim=True).values).exp()
    weights = torch.full((points,), 1 / points).double()
    for _ in range(steps):
        weights = weights * (psi / (psi @ weights)[:, None]).mean(0)
    log_marginal = (psi @ weights).log() + log_psi.max(1).values
    return grid, log_marginal


@pytest.fixture(scope="module")
def setting():
    data = straight_lines()
    curve = nf.Curve(lambda t, psi: psi["b"] * t, [nf.Parameter("b")])
    model = nf.Model(curve, nf.Additive(sigma=0.4))
    return data, model


@pytest.fixture(scope="module")
def fits(setting):
    data, model = setting
    laws = {"gaussian": nf.Gaussian(), "mixture": nf.Mixture(2)}
    return model.fit_laws(data, laws, seed=1, progress=False)


@pytest.mark.parametrize("name", ["gaussian", "mixture"])
def test_the_bound_holds_and_is_not_idle(fits, name):
    fit = fits[name]
    _, log_marginal = solved(fit.problem(), fit.state)
    gap = float(log_marginal.sum()) - fit.log_likelihood().value
    bound = fit.certificate().bound
    assert 0 < gap < bound
    assert bound < 60 * gap


def test_a_bound_from_some_individuals_is_that_from_all(setting, monkeypatch):
    """One individual far from the others is among those least expected."""
    data = straight_lines(n=400, seed=1)
    data.response[123] += 8 * data.time[123]
    fit = setting[1].fit(data, nf.Gaussian(), seed=1)
    monkeypatch.setattr("nlmeflow.fitting.fit.STARTS", 40)
    some = fit.certificate()
    monkeypatch.setattr("nlmeflow.fitting.fit.STARTS", 400)
    assert some.bound == pytest.approx(fit.certificate().bound, rel=1e-3)
    assert float(some.phi) > 6


def seen(problem, state):
    return DataLikelihood(problem, state.beta, state.sigma, torch.zeros(len(problem)).double())


def test_the_bound_vanishes_at_the_maximum(fits):
    fit = fits["gaussian"]
    problem = fit.problem()
    grid, log_marginal = solved(problem, fit.state)
    at_maximum = certify(seen(problem, fit.state).log_psi, log_marginal, grid[::10], torch.ones(1).double())
    assert at_maximum.bound < 0.05
    assert fit.certificate().bound > 1


def test_the_gradient_function_is_the_directional_derivative(setting):
    """L((1 - e) G + e delta_phi) = L(G) + e D(phi; G) + O(e^2)."""
    data, model = setting
    problem = model.problem(data)
    law = GaussianLaw(torch.tensor([2.0]).double(), torch.tensor([[1.0]]).double())
    state = State(law, torch.zeros(0).double(), torch.tensor([0.4]).double())
    nodes = torch.linspace(-6, 10, 4001).double()[:, None]
    log_psi = problem.log_likelihood(nodes.expand(len(problem), -1, -1), state.beta, state.sigma)
    log_marginal = (log_psi + law.log_prob(nodes) + np.log(16 / 4000)).logsumexp(1)
    phi = torch.tensor([[1.1]]).double()
    atom = problem.log_likelihood(phi.expand(len(problem), 1, 1), state.beta, state.sigma)[:, 0]
    step = 1e-6
    mixed = torch.logaddexp(log_marginal + np.log1p(-step), atom + np.log(step))
    derivative = float((mixed - log_marginal).sum()) / step
    value = float(log_gradient(seen(problem, state).log_psi, log_marginal, phi).exp()) - len(problem)
    assert value == pytest.approx(derivative, rel=1e-3)
