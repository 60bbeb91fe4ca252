"""nlmeflow.studies.scenarios, nlmeflow.laws.metrics: the benchmark as described, measures as known."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import integrate, stats

import nlmeflow as nf
from nlmeflow.laws import GaussianLaw, MixtureLaw
from nlmeflow.laws.modes import basins
from nlmeflow.studies import core
from nlmeflow.studies.scenario import Scenario, Truth
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


def normal(mean, sd):
    return GaussianLaw(torch.tensor([mean]).double(), torch.tensor([[sd]]).double())


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


@pytest.mark.parametrize(("share", "place"), [(0.48, 1.3), (0.3, 1.6)])
def test_the_mass_of_a_mode_is_that_on_its_side_of_the_pass(share, place):
    weights = torch.tensor([1 - share, share]).double()
    law = mixture([[-place], [place]], [[1.0], [1.0]], weights)
    found = basins(law)
    phi = torch.linspace(-9, 9, 20_001, dtype=torch.float64)[:, None]
    density = law.log_prob(phi).exp()
    valley = (phi[:, 0] > -place) & (phi[:, 0] < place)
    split = phi[valley][density[valley].argmin()]
    right = float(density[phi[:, 0] > split].sum() / density.sum())
    assert [mode.mass for mode in found.modes] == pytest.approx([1 - right, right], abs=0.006)
    assert found.shares(law.sample(100_000, 1))[1] == pytest.approx(right, abs=0.01)


def test_a_highest_peak_of_little_mass_is_no_mode():
    """Its cells go to the nearest mode."""
    weights, means = torch.tensor([0.42, 0.43, 0.15]).double(), torch.tensor([[-2.0], [2.0], [4.0]]).double()
    factors = torch.tensor([[[0.5]], [[0.5]], [[0.1]]]).double()
    found = basins(MixtureLaw(weights, means, factors, 0.01 * factors[0]), mass=0.2)
    assert [round(float(mode.place)) for mode in found.modes] == [2, -2]
    assert [mode.mass for mode in found.modes] == pytest.approx([0.43 + 0.15, 0.42], abs=0.005)
    phi = torch.tensor([[-2.0], [2.0], [4.0]]).double()
    assert found.of(phi).tolist() == [1, 0, 0]
    assert found.shares(phi).tolist() == pytest.approx([2 / 3, 1 / 3])
    only = basins(MixtureLaw(weights, means, factors, 0.01 * factors[0]), mass=0.5)
    assert [round(float(mode.place)) for mode in only.modes] == [2]
    assert only.shares(phi).tolist() == [1]


def test_metrics_have_their_known_values():
    a, b = normal(0.0, 1.0), normal(1.0, 2.0)
    assert nf.metrics.kl(a, b, 200_000) == pytest.approx(np.log(2) + (1 + 1) / 8 - 0.5, abs=0.01)
    c = normal(1.0, 1.0)
    assert nf.metrics.total_variation(a, c, 200_000) == pytest.approx(2 * 0.691462 - 1, abs=0.005)
    squared = 1 - np.sqrt(2 * 2 / (1 + 4)) * np.exp(-1 / (4 * (1 + 4)))  # of N(0, 1) and N(1, 2^2)
    assert nf.metrics.squared_hellinger(a, b, 200_000) == pytest.approx(squared, abs=0.003)
    assert nf.metrics.hellinger(a, b, 200_000) == pytest.approx(np.sqrt(squared), abs=0.005)
    for measure in (nf.metrics.kl, nf.metrics.total_variation, nf.metrics.squared_hellinger):
        assert measure(a, a) == pytest.approx(0, abs=1e-12)
    early = stats.norm.cdf(0.5, 1, 2) - stats.norm.cdf(0.5)
    assert nf.metrics.error_of_share(a, b, 0, 0.5, 200_000) == pytest.approx(early, abs=0.005)
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
    assert nf.metrics.mass_outside(two, normal(0.0, 1.0)) > 0.7
    assert nf.metrics.mass_outside(two, two) < 0.01
    with pytest.warns(DeprecationWarning, match="is now metrics.mass_outside"):
        assert nf.metrics.bridge_mass(two, a) == nf.metrics.mass_outside(two, a)


def mixture(means, sds, weights=None):
    """Gaussians (K, d) with diagonal covariances."""
    means, factors = torch.tensor(means).double(), torch.diag_embed(torch.tensor(sds).double())
    count, dim = means.shape
    weights = torch.full((count,), 1 / count).double() if weights is None else torch.tensor(weights).double()
    return MixtureLaw(weights, means, factors, 0.01 * torch.eye(dim).double())


def test_mass_between_two_groups_on_a_line_is_that_of_an_interval():
    groups, n = mixture([[-5.0], [5.0]], [[1.0], [0.5]]), 200_000
    estimate = GaussianLaw(torch.tensor([1.0]).double(), torch.tensor([[3.0]]).double())
    reach = stats.norm.ppf(0.995)
    interval = np.diff(stats.norm.cdf([-5 + reach, 5 - 0.5 * reach], 1, 3))[0]
    assert nf.metrics.mass_between_groups(groups, estimate, n) == pytest.approx(interval, abs=0.004)
    narrow = np.diff(stats.norm.cdf([-5 + stats.norm.ppf(0.95), 5 - 0.5 * stats.norm.ppf(0.95)], 1, 3))[0]
    assert nf.metrics.mass_between_groups(groups, estimate, n, level=0.9) == pytest.approx(narrow, abs=0.004)
    assert nf.metrics.mass_between_groups(mixture([[0.0]], [[1.0]]), estimate) == 0
    with pytest.raises(nf.ModelError, match="level is a number between 0 and 1"):
        nf.metrics.mass_between_groups(groups, estimate, level=1.0)


def test_mass_between_groups_in_the_plane_is_a_strip_without_its_discs_whatever_the_units():
    groups = mixture([[-6.0, 0.0], [6.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]])
    estimate = mixture([[0.0, 1.0]], [[4.0, 2.0]])
    radius = np.sqrt(stats.chi2.ppf(0.99, 2))

    def across(x):
        half = np.array([np.sqrt(max(radius**2 - (6 - abs(x)) ** 2, 0)), radius])
        parts = np.diff(stats.norm.cdf([half, -half[::-1]], 1, 2))  # above and below the disc
        return stats.norm.pdf(x, 0, 4) * parts.sum()

    exact = integrate.quad(across, -6, 6, points=[-6 + radius, 6 - radius])[0]
    n = 200_000
    found = nf.metrics.mass_between_groups(groups, estimate, n)
    assert found == pytest.approx(exact, abs=0.004)
    turn = torch.tensor([[3.0, 0.0], [-2.0, 0.1]]).double()
    moved = [
        MixtureLaw(
            law.weights,
            law.means @ turn.mT + 7,
            torch.linalg.cholesky(turn @ law.factors @ law.factors.mT @ turn.mT),
            law.floor,
        )
        for law in (groups, estimate)
    ]
    assert nf.metrics.mass_between_groups(*moved, n) == pytest.approx(exact, abs=0.004)


def test_the_regret_of_a_selection_is_the_worth_of_those_chosen_otherwise():
    best, estimated = torch.tensor([0.0, 0.5, 1.2, 3.0]).double(), torch.tensor([0.9, 1.5, 0.8, 2.0]).double()
    assert nf.metrics.selection_regret(best, estimated, 1.0) == pytest.approx((0.5 + 0.2) / 4)
    assert nf.metrics.selection_regret(best, best, 1.0) == 0
    with pytest.raises(nf.ModelError, match=r"of the same individuals; got \(4,\) and \(1,\)"):
        nf.metrics.selection_regret(best, estimated[:1], 1.0)


def test_a_third_group_on_the_way_is_not_between_the_others():
    ends, middle = [[-6.0], [6.0]], mixture([[0.0]], [[0.5]])
    assert nf.metrics.mass_between_groups(mixture(ends, [[1.0], [1.0]]), middle) > 0.99
    three = mixture([*ends, [0.0]], [[1.0], [1.0], [0.5]])
    assert nf.metrics.mass_between_groups(three, middle) == pytest.approx(0.01, abs=0.004)


def test_a_high_peak_of_little_mass_is_no_mode():
    peak = mixture([[0.0], [9.0]], [[2.0], [0.05]], [0.972, 0.028])
    (found,) = nf.metrics.modes(peak)
    assert float(found.place) == pytest.approx(0, abs=0.05)
    assert found.height < 1
    assert len(nf.metrics.modes(peak, mass=0.02)) == 2
    assert basins(peak).of(torch.tensor([[0.0], [9.0]]).double()).tolist() == [0, 0]
    assert len(nf.metrics.modes(peak, mass=0.99)) == 1  # no mode holds so much: the one of largest mass
    flat = replace(peak, factors=torch.zeros_like(peak.factors))
    with pytest.raises(nf.ModelError, match="no density, or none that is a number"):
        nf.metrics.modes(flat)


@pytest.mark.slow
def test_regret_of_selection_is_that_of_normal_laws_and_lines():
    """tau ~ N(m, w^2), y = tau + e: conditional means are linear in y, the regret an integral over them."""
    n, sigma, slope = 20_000, 0.8, 1.0
    truth = Truth(1, normal(2.0, 0.5).log_prob, lambda u, z: 2 + 0.5 * z)
    wrong = normal(2.6, 0.6)
    about = {"name": "line", "design": "3 times", "seed": 0, "trait": "intercept"}
    model = nf.Model(nf.curves.linear(), fixed=("slope",))
    known = Scenario.simulate(truth, model, np.arange(3.0), sigma, {"slope": slope}, 2, (1, 0), **about)
    found = core.predictive(known, core.Look.at(truth), {"wrong": wrong, "right": normal(2.0, 0.5)}, n)
    error, threshold = sigma**2 / 3, 2 + 0.5 * stats.norm.ppf(0.2)
    share, other = 0.25 / (0.25 + error), 0.36 / (0.36 + error)
    y = 2.6 + (threshold - 2.6) / other  # where the wrong rule changes
    last, spread = 2 + share * (y - 2), 0.5 * np.sqrt(share)
    a, b = (threshold - 2) / spread, (last - 2) / spread
    lost = (2 - threshold) * (stats.norm.cdf(b) - stats.norm.cdf(a)) - spread * (
        stats.norm.pdf(b) - stats.norm.pdf(a)
    )
    assert abs(lost) > 0.003
    assert 0.5 * found["wrong"]["regret of selection"] == pytest.approx(abs(lost), rel=0.1)
    assert found["right"]["regret of selection"] < 1e-3
    early = stats.norm.cdf(threshold, 2.6, 0.6) - 0.2
    assert found["wrong"]["error of the early share"] == pytest.approx(early, abs=0.01)


@pytest.mark.parametrize("name", ["L1", "L3", "P1", "random"])
def test_a_scenario_is_sent_to_another_process(name):
    known = nf.scenarios.random(3, 2, 20) if name == "random" else nf.scenarios.load(name, "S", 20, 1)
    again = pickle.loads(pickle.dumps(known))
    assert torch.equal(again.phi, known.phi)
    assert torch.equal(again.law.log_prob(known.phi), known.law.log_prob(known.phi))
    assert torch.equal(again.others(5).phi, known.others(5).phi)
    assert torch.equal(again.reliability, known.reliability)


def test_unknown_scenarios_are_refused():
    with pytest.raises(nf.ModelError, match=r"No scenario 'L9'; there are L1, .* P2"):
        nf.scenarios.load("L9")
    with pytest.raises(nf.ModelError, match="P2 has designs R, S"):
        nf.scenarios.load("P2", design="M")
    with pytest.raises(nf.ModelError, match="whole number from 2"):
        nf.scenarios.load("L1", n=1)
