"""nlmeflow.studies.scenarios, nlmeflow.laws.metrics: the benchmark as described, measures as known."""

import numpy as np
import pytest
import torch

import nlmeflow as nf
from nlmeflow.laws import GaussianLaw, MixtureLaw
from nlmeflow.laws.modes import basins
from nlmeflow.studies.scenarios import LAWS, MODES, best_gaussian

# KL and total variation from the truth to the best Gaussian, as the benchmark states them
BEST_GAUSSIAN = {
    "L1": (0, 0),
    "L2": (0.41, 0.38),
    "L3": (0.28, 0.25),
    "L4": (1.10, 0.57),
    "L5": (1.03, 0.62),
    "L6": (0.42, 0.36),
    "L7": (0.87, 0.54),
    "L8": (0.61, 0.46),
    "P1": (0.45, 0.40),
    "P2": (0.51, 0.41),
}


@pytest.mark.parametrize("name", LAWS)
def test_the_benchmark_is_the_one_described(name):
    law = LAWS[name]
    gaussian = best_gaussian(law, 50_000)
    kl, tv = BEST_GAUSSIAN[name]
    assert nf.metrics.kl(law, gaussian) == pytest.approx(kl, abs=0.02)
    assert nf.metrics.total_variation(law, gaussian) == pytest.approx(tv, abs=0.02)


@pytest.mark.parametrize("name", ["L3", "L4", "L5"])
def test_laws_that_are_not_mixtures_integrate_to_one_and_sample_what_they_score(name):
    law = LAWS[name]
    tau, log_s = torch.linspace(10, 90, 900).double(), torch.linspace(-1.5, 5, 900).double()
    grid = torch.cartesian_prod(tau, log_s)
    cell = float((tau[1] - tau[0]) * (log_s[1] - log_s[0]))
    density = law.log_prob(grid).exp()
    assert float(density.sum() * cell) == pytest.approx(1.0, abs=2e-3)
    mean = (density[:, None] * grid).sum(0) * cell
    second = (density[:, None] * grid.square()).sum(0) * cell
    drawn = law.sample(40_000, 1)
    assert torch.allclose(drawn.mean(0), mean, rtol=0.01)
    assert torch.allclose(drawn.square().mean(0), second, rtol=0.02)


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("design", ["R", "S"])
def test_a_larger_sample_contains_the_smaller(name, design):
    small, large = (nf.scenarios.load(name, design, n, seed=3) for n in (7, 19))
    assert torch.equal(small.phi, large.phi[:7])
    assert torch.equal(small.data.response, large.data.response[:7])
    other = nf.scenarios.load(name, design, 7, seed=4)
    assert not torch.equal(other.phi, small.phi)
    assert small.phi.shape[1] == small.law.dim == len(small.model.random)


def test_responses_scatter_around_their_curves_as_said():
    scenario = nf.scenarios.load("L2", "S", 4000, 1)
    mean = scenario.model.mean_response(scenario.phi, scenario.data.time, A=1.0)
    assert float((scenario.data.response - mean).std()) == pytest.approx(0.08, rel=0.02)
    scenario = nf.scenarios.load("P1", "R", 4000, 1)
    mean = scenario.model.mean_response(scenario.phi, scenario.data.time)
    assert float((scenario.data.response / mean).log().std()) == pytest.approx(0.15, rel=0.02)


@pytest.mark.parametrize("name", MODES)
def test_modes_of_the_truth_are_counted(name):
    found = nf.metrics.modes(LAWS[name])
    assert len(found) == MODES[name]
    assert sum(mode.mass for mode in found) == pytest.approx(1.0, abs=0.03)


def test_a_gaussian_has_one_mode_though_four_cells_of_the_grid_are_as_high():
    (mode,) = nf.metrics.modes(GaussianLaw(torch.zeros(2).double(), torch.eye(2).double()))
    assert mode.mass == pytest.approx(1.0, abs=0.001)
    assert mode.height == pytest.approx(1.0)


def test_a_highest_peak_of_little_mass_is_no_mode():
    """Its cells go to the nearest mode."""
    weights, means = torch.tensor([0.42, 0.43, 0.15]).double(), torch.tensor([[-2.0], [2.0], [4.0]]).double()
    factors = torch.tensor([[[0.5]], [[0.5]], [[0.1]]]).double()
    found = basins(MixtureLaw(weights, means, factors, 0.01 * factors[0]), mass=0.2)
    assert [round(float(mode.place)) for mode in found.modes] == [2, -2]
    assert [mode.mass for mode in found.modes] == pytest.approx([0.43, 0.42], abs=0.005)
    phi = torch.tensor([[-2.0], [2.0], [4.0]]).double()
    assert found.of(phi).tolist() == [1, 0, 0]
    assert found.shares(phi).tolist() == pytest.approx([2 / 3, 1 / 3])
    none = basins(MixtureLaw(weights, means, factors, 0.01 * factors[0]), mass=0.5)
    assert none.modes == ()
    assert none.shares(phi).tolist() == []


def test_metrics_have_their_known_values():
    def normal(mean, sd):
        return GaussianLaw(torch.tensor([mean]).double(), torch.tensor([[sd]]).double())

    a, b = normal(0.0, 1.0), normal(1.0, 2.0)
    assert nf.metrics.kl(a, b, 200_000) == pytest.approx(np.log(2) + (1 + 1) / 8 - 0.5, abs=0.01)
    c = normal(1.0, 1.0)
    assert nf.metrics.total_variation(a, c, 200_000) == pytest.approx(2 * 0.691462 - 1, abs=0.005)
    assert nf.metrics.hellinger(a, c, 200_000) == pytest.approx(1 - np.exp(-1 / 8), abs=0.003)
    for measure in (nf.metrics.kl, nf.metrics.total_variation, nf.metrics.hellinger):
        assert measure(a, a) == pytest.approx(0, abs=1e-12)
    two = MixtureLaw(
        torch.tensor([0.5, 0.5]).double(),
        torch.tensor([[-5.0], [5.0]]).double(),
        torch.ones(2, 1, 1).double(),
        torch.ones(1, 1).double() * 0.01,
    )
    exact = (1 - np.exp(-1 / 4)) / np.sqrt(np.pi)  # integral of the squared difference of two normals
    assert float(nf.metrics.marginal_ise(a, c)[0]) == pytest.approx(exact, abs=1e-6)
    assert float(nf.metrics.marginal_ise(b, normal(3.0, 2.0))[0]) == pytest.approx(exact, abs=1e-6)
    assert nf.metrics.group_mass(two, two).tolist() == pytest.approx([0.5, 0.5], abs=0.01)
    assert nf.metrics.group_mass(two, normal(5.0, 1.0))[1] > 0.999
    assert nf.metrics.bridge_mass(two, normal(0.0, 1.0)) > 0.7
    assert nf.metrics.bridge_mass(two, two) < 0.01


def test_unknown_scenarios_are_refused():
    with pytest.raises(nf.ModelError, match=r"No scenario 'L9'; there are L1, .* P2"):
        nf.scenarios.load("L9")
    with pytest.raises(nf.ModelError, match="P2 has designs R, S"):
        nf.scenarios.load("P2", design="M")
    with pytest.raises(nf.ModelError, match="whole number from 2"):
        nf.scenarios.load("L1", n=1)
