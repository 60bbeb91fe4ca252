"""nlmeflow.estimation.likelihood, .particles, .engine: the likelihood against quadrature, honest errors."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from quadrature import adaptive, brute_force

import nlmeflow as nf
from nlmeflow.estimation import likelihood
from nlmeflow.estimation.em import State, evaluate
from nlmeflow.estimation.laplace import _inverse, gaussian_starts
from nlmeflow.estimation.likelihood import averaged, locate, marginal
from nlmeflow.estimation.particles import Proposal, _calibration, draw
from nlmeflow.estimation.posterior import resampled
from nlmeflow.estimation.start import pooled_starts
from nlmeflow.laws import FlowLaw, GaussianLaw, MixtureLaw, Network, StackedLaw
from nlmeflow.laws.draws import resample
from nlmeflow.laws.law import ROWS
from nlmeflow.seeds import generator


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def laws(dim):
    factor = tensor([[4.0]]) if dim == 1 else tensor([[4.0, 0.0], [-0.1, 0.25]])
    mean = tensor([50.0, 1.1][:dim])
    gaussian = GaussianLaw(mean, factor)
    offset = tensor([6.0, 0.4][:dim])
    mixture = MixtureLaw(
        tensor([0.6, 0.4]),
        torch.stack([mean - offset, mean + offset]),
        torch.stack([0.5 * factor] * 2),
        factor,
    )
    flow = FlowLaw.start(Network("spline", 2, (8,)), gaussian, mixture, 5)
    for weight in flow.transport.parameters():
        random = torch.Generator().manual_seed(weight.numel())
        weight.data += 0.1 * torch.randn(weight.shape, generator=random, dtype=weight.dtype)
    return {
        "gaussian": gaussian,
        "mixture": mixture,
        "flow": flow,
        "stacked": StackedLaw((gaussian, flow), tensor([0.5, 0.5])),
    }


def state_and_problem(senescence, law, dim):
    fixed = ("A", "s") if dim == 1 else ("A",)
    model = nf.Model(nf.curves.logistic_senescence(), fixed=fixed)
    beta = tensor([0.0, 1.1]) if dim == 1 else tensor([0.0])
    few = senescence.subset(range(4))
    return State(law, beta, tensor([0.05])), model.problem(few)


NAMES = ["gaussian", "mixture", "flow", "stacked"]
SLOW = [pytest.param(name, 2, marks=pytest.mark.slow) for name in ("flow", "stacked")]


@pytest.mark.parametrize(
    ("name", "dim"), [*[(name, 1) for name in NAMES], ("gaussian", 2), ("mixture", 2), *SLOW]
)
def test_likelihood_agrees_with_brute_force(senescence, name, dim):
    state, problem = state_and_problem(senescence, laws(dim)[name], dim)
    proposal = locate(problem, state, 2048, generator(1))
    result = marginal(problem, state, proposal, 4096, generator(2), tolerance=1e-3)
    reference = brute_force(problem, state.law, state.beta, state.sigma, 20_000 if dim == 1 else 500)
    assert bool(((result.values - reference).abs() < 4 * result.errors + 2e-3).all())
    assert float(result.errors.max()) < 0.02
    assert abs(result.total - float(reference.sum())) < 4 * result.error + 2e-3


@pytest.mark.parametrize("dim", [1, 2])
def test_gaussian_likelihood_agrees_with_adaptive_gauss_hermite(senescence, dim):
    state, problem = state_and_problem(senescence, laws(dim)["gaussian"], dim)
    proposal = locate(problem, state, 2048, generator(1))
    result = marginal(problem, state, proposal, 4096, generator(2), tolerance=1e-3)
    reference = adaptive(problem, state.law, state.beta, state.sigma, nodes=25)
    assert float((result.values - reference).abs().max()) < 0.005


def test_monte_carlo_error_is_honest(senescence):
    """The spread of the estimate over seeds is what one run says it is."""
    state, problem = state_and_problem(senescence, laws(2)["mixture"], 2)
    proposal = locate(problem, state, 512, generator(1))
    runs = [marginal(problem, state, proposal, 128, generator(k), tolerance=10.0) for k in range(40)]
    spread = float(tensor([run.total for run in runs]).std())
    said = sum(run.error for run in runs) / len(runs)
    assert 0.6 < spread / said < 1.6


def test_the_error_of_many_individuals_is_honest_and_grows_as_the_root_of_their_number(senescence):
    """A bias of each individual's estimate, small for one, would add up over many; copies make them many."""
    state, few = state_and_problem(senescence, laws(2)["gaussian"], 2)
    proposal = locate(few, state, 512, generator(1))
    reference = float(adaptive(few, state.law, state.beta, state.sigma, nodes=25).sum())
    for copies in (100, 400):
        index = torch.arange(4).repeat(copies)
        runs = [
            marginal(few.subset(index), state, proposal.subset(index), 64, generator(seed))
            for seed in range(4)
        ]
        assert all(run.error < 0.1 * (4 * copies / 200) ** 0.5 for run in runs)
        error = sum(run.error**2 for run in runs) ** 0.5 / 4
        assert abs(sum(run.total for run in runs) / 4 - copies * reference) < 3 * error


def test_the_logarithm_of_a_mean_of_estimates_has_no_bias_that_counts():
    """Each individual's log-likelihood is zero, estimated from eight batches with an error of 0.1."""
    random = torch.Generator().manual_seed(1)
    logs = (1 + 0.28 * torch.randn(8, 40_000, generator=random, dtype=torch.float64)).clamp_min(0.01).log()
    found = averaged(logs, torch.full((40_000,), 8.0, dtype=torch.float64))
    assert found.error == pytest.approx(0.1 * 40_000**0.5, rel=0.02)
    assert abs(found.total) < 3 * found.error


def test_more_batches_go_to_those_who_need_them(senescence, monkeypatch):
    state, few = state_and_problem(senescence, laws(2)["gaussian"], 2)
    proposal = locate(few, state, 512, generator(1))
    centre = proposal.centre.clone()
    centre[3] += 4 * proposal.factor[3].sum(1)  # most particles of the last one miss its data
    asked = []

    def counted(some, *arguments, **options):
        asked.append(len(some))
        return draw(some, *arguments, **options)

    monkeypatch.setattr(likelihood, "draw", counted)
    marginal(few, state, replace(proposal, centre=centre), 64, generator(2), tolerance=0.05)
    assert asked[:9] == [4] * 9
    assert len(asked) > 15
    assert sum(asked[9:]) < 2 * len(asked[9:])


def test_every_component_of_the_proposal_integrates_to_one(senescence):
    """Control variates make each component's own integral exact, not only in expectation."""
    law = laws(2)["gaussian"]
    proposal = Proposal(tensor([[48.0, 1.0]]), tensor([[[1.0, 0.0], [0.0, 0.1]]]), law, law.inflated(2))
    phi, log_proposal, log_law = proposal.draw(512, generator(3))
    assert torch.allclose(log_law, law.log_prob(phi))
    for component in (law, GaussianLaw(tensor([48.0, 1.0]), tensor([[1.15, 0.0], [0.0, 0.115]]))):
        integral = (component.log_prob(phi) - log_proposal).exp().mean()
        assert float(integral) == pytest.approx(1.0, abs=1e-3)
    ratios = torch.rand(3, 50, 4, generator=generator(1), dtype=torch.float64) + 0.5
    assert torch.allclose(_calibration(ratios).mean(1), tensor([1.0, 1.0, 1.0]), atol=1e-6)


def test_an_average_is_evaluated_some_points_at_a_time(monkeypatch):
    """Memory does not grow with points times laws."""
    law, density, sizes = laws(2)["mixture"], MixtureLaw.log_prob, []

    def recorded(mixture, phi):
        sizes.append(len(phi))
        return density(mixture, phi)

    monkeypatch.setattr(MixtureLaw, "log_prob", recorded)
    phi = law.sample(2 * ROWS + 6, 1).reshape(2, -1, 2)
    assert torch.allclose(StackedLaw.average([law] * 3).log_prob(phi), density(law, phi))
    assert sizes == [ROWS] * 6 + [6] * 3


def test_laws_left_out_of_an_average_move_no_more_than_their_weight():
    known = laws(2)
    weights = tensor([0.6, 0.391, 0.009])
    parts = [known["mixture"], known["gaussian"], known["gaussian"].inflated(3.0)]
    whole, kept = StackedLaw(tuple(parts), weights), StackedLaw.weighted(parts, weights, least=0.01)
    phi = whole.sample(50_000, 1)
    variation = 0.5 * (kept.log_prob(phi) - whole.log_prob(phi)).expm1().abs().mean()
    assert 0.001 < float(variation) < 0.009


def test_the_law_is_evaluated_once_at_particles(senescence, monkeypatch):
    state, problem = state_and_problem(senescence, laws(2)["mixture"], 2)
    proposal, density, places = locate(problem, state, 256, generator(1)), MixtureLaw.log_prob, []
    monkeypatch.setattr(MixtureLaw, "log_prob", lambda law, phi: places.append(phi) or density(law, phi))
    particles = draw(problem, proposal, state.beta, 64, generator(2))
    found = evaluate(problem, state, particles)
    assert len(places) == 1
    again = evaluate(problem, state, replace(particles, law=None, log_law=None))
    assert len(places) == 2
    assert torch.equal(found.weights, again.weights)


def test_modes_sought_some_at_a_time_are_those_of_all(senescence, monkeypatch):
    state, problem = state_and_problem(senescence, laws(2)["mixture"], 2)
    particles = draw(problem, locate(problem, state, 256, generator(1)), state.beta, 256, generator(2))
    weights = evaluate(problem, state, particles).weights
    together = likelihood.conditional_modes(problem, state, particles, weights)
    monkeypatch.setattr(likelihood, "AT_A_TIME", 3)
    apart = likelihood.conditional_modes(problem, state, particles, weights)
    assert torch.allclose(together, apart, atol=1e-4)


def test_resampling_keeps_the_weights():
    phi = torch.arange(6, dtype=torch.float64).reshape(1, 6, 1)
    weights = tensor([[0.1, 0.0, 0.4, 0.2, 0.0, 0.3]])
    drawn = resample(phi, weights, 1000, generator(0))[0, :, 0]
    counts = torch.bincount(drawn.long(), minlength=6) / 1000
    assert torch.allclose(counts, weights[0].float(), atol=2e-3)


def test_posterior_draws_compare_laws_without_the_likelihood(senescence):
    known = laws(2)
    state, problem = state_and_problem(senescence, known["mixture"], 2)
    reference = StackedLaw((known["mixture"], known["gaussian"].inflated(1.5)), tensor([0.6, 0.4]))
    proposal = locate(problem, State(reference, state.beta, state.sigma), 4096, generator(1))
    particles = draw(problem, proposal, state.beta, 8192, generator(2))
    drawn = resampled(problem, particles, state, reference, 4096, generator(3))
    exact = {
        name: brute_force(problem, law, state.beta, state.sigma, 500)
        for name, law in (("reference", reference), ("gaussian", known["gaussian"]))
    }
    expected = exact["gaussian"] - exact["reference"]
    assert float((drawn.score(known["gaussian"]) - expected).abs().max()) < 0.05


@pytest.mark.slow
def test_an_ascent_that_creeps_along_the_boundary_is_left(senescence):
    """sigma twice its size leaves a correlation near one; 329 iterations without this, and 948.692."""
    model = nf.Model(nf.curves.logistic_senescence(), nf.Additive(sigma=0.08), fixed=("A",))
    fit = model.fit(senescence, seed=1, progress=False)
    assert fit.converged
    assert fit.log_likelihood().value == pytest.approx(948.692, abs=0.01)
    assert fit.law.correlation[0, 1] > 0.999
    assert fit.trace["iterations"].sum() < 200


def test_first_values_of_a_logarithmic_error_see_the_tail():
    """Over a dozen decades the peak alone leaves the rate free; on the scale of the logarithm it is seen."""
    random, time = np.random.default_rng(6), torch.linspace(0.5, 12, 7, dtype=torch.float64).expand(30, -1)
    rate = 2.5 * np.exp(0.1 * random.standard_normal((30, 1)))
    response = 10 * np.exp(-rate * time.numpy() + 0.5 * random.standard_normal((30, 7)))
    data = nf.LongitudinalData.regular(time, torch.from_numpy(response))
    first = pooled_starts(nf.Model(nf.curves.oral(100.0), nf.LogAdditive()).problem(data), {}, 0)[0]
    assert first["CL"] - first["V"] == pytest.approx(np.log(2.5), abs=0.15)


def test_the_start_takes_the_more_likely_of_two_maxima():
    """Hardly any decline is seen whole: from an error that explains all, sigma stays twice too large."""
    random = np.random.default_rng(1)
    time = np.sort(random.uniform(30, 72, (20, 6)), 1)
    onset = random.normal(74, 9, (20, 1))
    rate = 0.022 * np.exp(0.15 * random.standard_normal((20, 1)))
    plateau = 1.1 + 0.15 * random.standard_normal((20, 1))
    response = plateau - rate * np.logaddexp(0, time - onset) + 0.01 * random.standard_normal((20, 6))
    data = nf.LongitudinalData.regular(torch.from_numpy(time), torch.from_numpy(response))
    problem = nf.Model(nf.curves.change_point(1.0)).problem(data)
    best = gaussian_starts(problem, pooled_starts(problem, {}, 0), nf.Gaussian())[0]
    assert float(best.sigma[0]) == pytest.approx(0.01, rel=0.15)


@pytest.mark.parametrize("size", [1.0, 1e3, 1e6, 1e9, 1e12])
def test_a_steep_curve_leaves_the_population_s_part_of_an_inverse(size):
    """One observation of slope j = c (1, 3): Omega - Omega j j' Omega / (1 + j' Omega j)."""
    factor = torch.tensor([[2.0, 0.0], [0.5, 0.25]], dtype=torch.float64)
    law, slope = GaussianLaw(torch.zeros(2).double(), factor), size * torch.tensor([[[1.0, 3.0]]]).double()
    found = _inverse(slope, law)[0]
    along = torch.tensor([3.0, -1.0]).double()  # what the observation does not see
    omega, seen = factor @ factor.mT, slope[0, 0]
    direct = Fraction(float(seen @ omega @ seen))
    exact = Fraction(float(along @ omega @ along)) - Fraction(float(along @ omega @ seen)) ** 2 / (1 + direct)
    assert float(along @ found @ along) == pytest.approx(float(exact), rel=1e-6)
