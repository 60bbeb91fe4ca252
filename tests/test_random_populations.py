"""nf.scenarios.random: densities are exact, draws follow them, designs vary; their study."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import nlmeflow as nf
from nlmeflow.studies import populations
from nlmeflow.studies.random_laws import BASES, MAPS, OF_ONE, SinhArcsinh
from nlmeflow.studies.scenario import Scenario, Truth
from nlmeflow.studies.scenarios import FINAL, TUNING, VALIDATION, best_gaussian

CHOSEN = {  # seeds that have every base and every map, by dimension
    1: (10, 12, 23, 46, 49, 53, 59),
    2: (4, 6, 9, 10, 11, 39, 43, 56),
    3: (5, 17, 22, 24, 28, 31, 36, 58),
    4: (2, 5, 19, 28, 35, 42, 44, 46),
}


def bases(some):
    return {one.base.partition(" of ")[0] for one in some}


def maps(some):
    return {name for one in some for name in one.maps}


@pytest.fixture(scope="module")
def tuning():
    return [nf.scenarios.random(seed, n=2) for seed in TUNING]


def grid(law, count, reach):
    """Points (count^d, d) dense near the middle of a law, and the volume that each stands for."""
    mean, covariance = law.two_moments
    t = (torch.arange(count).double() + 0.5) / count * 2 - 1
    scale = np.arcsinh(reach)
    x, width = torch.sinh(scale * t), scale * torch.cosh(scale * t) * 2 / count
    points = torch.cartesian_prod(*[x] * law.dim).reshape(-1, law.dim)
    volume = torch.cartesian_prod(*[width] * law.dim).reshape(-1, law.dim).prod(1)
    sd = covariance.diagonal().sqrt()
    return mean + sd * points, volume * sd.prod()


def test_the_sets_of_seeds_are_apart():
    assert (len(TUNING), len(VALIDATION), len(FINAL)) == (60, 60, 100)
    assert not set(TUNING) & set(VALIDATION) | set(VALIDATION) & set(FINAL)


@pytest.mark.slow
def test_each_base_and_map_occurs_and_designs_go_from_sparse_to_rich(tuning):
    assert bases(tuning) == set(BASES)
    assert maps(tuning) == set(MAPS)
    for d, seeds in CHOSEN.items():
        chosen = [nf.scenarios.random(seed, d, 2) for seed in seeds]
        assert bases(chosen) == (set(BASES) if d > 1 else set(BASES) - {"ball"})
        assert maps(chosen) == set(MAPS if d > 1 else OF_ONE)
    assert {len(one.maps) for one in tuning} == {0, 1, 2, 3}
    reliability = torch.stack([one.reliability for one in tuning])
    assert float(reliability[:, 1].min()) < 0.3
    assert float(reliability[:, 1].max()) > 0.95
    assert float(reliability[:, 1].quantile(0.25)) < 0.7
    assert {len(one.times) for one in tuning} >= {4, 20}
    assert min(one.sigma for one in tuning) < 0.025
    assert max(one.sigma for one in tuning) > 0.2


@pytest.mark.slow
def test_every_population_for_tuning_is_at_its_place_and_not_far_from_a_gaussian(tuning):
    for one in tuning:
        phi = one.law.draw(20_000, one.seed, 5)
        error = phi.std(0) / 20_000**0.5
        assert float((phi.mean(0)[0] - 50).abs()) < 4.5 * float(error[0]), one.kind
        assert 2.3 < float(phi[:, 0].std()) < 6.2
        assert 0.13 < float(phi[:, 1].std()) < 0.42
        log_ratio = one.law.log_prob(phi) - best_gaussian(one.law, 20_000).log_prob(phi)
        assert -1e-3 < float(log_ratio.mean()) < 3, one.kind
        assert float(log_ratio.std()) / 20_000**0.5 < 0.025, one.kind  # its Monte-Carlo error in the study


@pytest.mark.parametrize("seed", CHOSEN[1])
def test_in_one_dimension_the_density_integrates_to_one_and_draws_follow_it(seed):
    law = nf.scenarios.random(seed, 1, 2).law
    points, volume = grid(law, 40_000, 200.0)
    mass = law.log_prob(points).exp() * volume
    assert float(mass.sum()) == pytest.approx(1, abs=1e-3)
    drawn = law.sample(5000, 1)[:, 0]
    uniform = np.interp(drawn.numpy(), points[:, 0].numpy(), (mass.cumsum(0) - mass / 2).numpy())
    assert stats.kstest(uniform, "uniform").pvalue > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("seed", CHOSEN[2])
def test_in_two_dimensions_the_density_integrates_to_one_and_draws_follow_it(seed):
    law, cells, inside = nf.scenarios.random(seed, 2, 2).law, 12, 60
    points, volume = grid(law, cells * inside, 100.0)
    mass = torch.cat([law.log_prob(some).exp() for some in points.split(50_000)]) * volume
    assert float(mass.sum()) == pytest.approx(1, abs=3e-3)
    mean, covariance = law.two_moments
    n = 20_000
    z = torch.asinh((law.sample(n, 1) - mean) / covariance.diagonal().sqrt()) / np.arcsinh(100.0)
    place = ((z + 1) / 2 * cells).floor().long().clamp(0, cells - 1)
    found = torch.bincount(place[:, 0] * cells + place[:, 1], minlength=cells**2)
    expected = n * mass.reshape(cells, inside, cells, inside).sum((1, 3)).flatten() / mass.sum()
    often = expected > 20
    statistic = float(((found - expected).square() / expected)[often].sum())
    assert stats.chi2.sf(statistic, int(often.sum())) > 1e-3


@pytest.mark.parametrize(("seed", "d"), [(seed, d) for d in (3, 4) for seed in CHOSEN[d]])
def test_in_more_dimensions_importance_sampling_gives_one_and_the_moments_of_draws(seed, d):
    """Against a multivariate t with 4 degrees of freedom, three quarters wider than the law."""
    law, n = nf.scenarios.random(seed, d, 2).law, 100_000
    mean, covariance = (part.numpy() for part in law.two_moments)
    broad = stats.multivariate_t(mean, 1.5 * covariance, df=4, seed=1)
    phi = broad.rvs(n)
    weight = law.log_prob(torch.from_numpy(phi)).exp().numpy() / broad.pdf(phi)
    assert weight.std() / n**0.5 < 0.03
    assert weight.mean() == pytest.approx(1, abs=4.5 * weight.std() / n**0.5)
    drawn = law.sample(n, 2).numpy()
    for k in range(d):
        below, share = phi[:, k] < mean[k], (drawn[:, k] < mean[k]).mean()
        error = np.hypot((weight * below).std(), (drawn[:, k] < mean[k]).std()) / n**0.5
        assert (weight * below).mean() == pytest.approx(share, abs=4.5 * error)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("d", [2, 3])
def test_maps_are_inverted_and_their_determinants_are_those_of_autograd(name, d):
    random = np.random.default_rng(3)
    step = MAPS[name](d, random)
    x = torch.from_numpy(2 * random.standard_normal((50, d)))
    y, log_slope = step.call_and_ladj(x)
    assert torch.allclose(step.inv(y), x, atol=1e-8)
    assert float((y - x).abs().max()) > 0.1
    jacobian = torch.stack([torch.autograd.functional.jacobian(step, one[None])[0, :, 0] for one in x])
    assert torch.allclose(log_slope.reshape(50, -1).sum(1), torch.linalg.slogdet(jacobian)[1], atol=1e-8)


def test_sinh_arcsinh_is_the_published_one():
    step = SinhArcsinh(torch.tensor([0.5]).double(), torch.tensor([2.0]).double())
    x = torch.linspace(-3, 3, 7).double()[:, None]
    assert torch.allclose(step(x), torch.sinh((torch.asinh(x) + 0.5) / 2))


@pytest.mark.parametrize("d", [1, 2, 3, 4])
def test_a_larger_sample_contains_the_smaller_and_a_seed_gives_the_same_data(d):
    small, large = (nf.scenarios.random(10_003, d, n) for n in (7, 19))
    for part, whole in ((small.phi, large.phi), (small.data.response, large.data.response)):
        assert torch.allclose(part, whole[:7], rtol=0, atol=1e-12)  # a row's rounding depends on its place
    again = nf.scenarios.random(10_003, d, 7)
    assert torch.equal(again.data.response, small.data.response)
    assert torch.equal(again.law.log_prob(again.phi), small.law.log_prob(small.phi))
    assert not torch.equal(nf.scenarios.random(10_004, d, 7).phi, small.phi)
    assert small.phi.shape[1] == small.law.dim == len(small.model.random) == d
    assert float((small.others(7).phi[:, None] - large.phi).abs().min()) > 1e-9
    assert torch.equal(small.others(7).data.time[0], small.data.time[0])


def test_random_populations_are_refused_in_words():
    with pytest.raises(nf.ModelError, match="d is a whole number from 1 to 4"):
        nf.scenarios.random(0, 5)
    with pytest.raises(nf.ModelError, match="n is a whole number from 2"):
        nf.scenarios.random(0, n=1)
    with pytest.raises(nf.ModelError, match="seed is a whole number"):
        nf.scenarios.random(-1)


def test_reliability_is_exact_for_lines_and_the_one_of_the_benchmark():
    gaussian = nf.laws.GaussianLaw(torch.tensor([2.0]).double(), torch.tensor([[0.5]]).double())
    law = Truth(1, gaussian.log_prob, lambda u, z: 2 + 0.5 * z)
    model = nf.Model(nf.curves.linear(), fixed=("slope",))
    about = {"name": "line", "design": "4 times", "seed": 0, "trait": "intercept"}
    known = Scenario.simulate(law, model, np.arange(4.0), 0.8, {"slope": 1.0}, 5, (1, 0), **about)
    assert float(known.reliability) == pytest.approx(0.25 / (0.25 + 0.64 / 4), abs=5e-3)
    published = {("L1", "R"): (0.99, 0.89), ("L1", "S"): (0.95, 0.51), ("L2", "S"): (0.97, 0.72)}
    published |= {("L8", "R"): (0.95, 0.99, 0.80), ("P1", "S"): (0.62, 0.96, 0.70)}
    for (name, design), values in published.items():
        assert nf.scenarios.load(name, design, 2).reliability.tolist() == pytest.approx(values, abs=0.015)


def kl_table():
    logs = {"a": 0.5, "b": 2.0}
    rows = []
    for seed, factor in enumerate(logs.values()):
        about = {"seed": seed, "d": 2, "kind": "box", "base": "box", "maps": 0, "reliability": 0.5}
        kl = {"gaussian": 0.4, "mixture": 0.2, "flow": 0.1, "stacked": 0.2 * factor}
        kl |= {"oracle": 0.1, "best gaussian": 0.3}
        rows += [about | {"law": law, "kl": value} for law, value in kl.items()]
    return pd.DataFrame(rows)


def test_the_headline_is_a_geometric_mean_over_populations_with_its_interval():
    kl = populations.divergences(kl_table())
    found = populations.headline(kl)
    assert found["ratio"] == pytest.approx(1.0)
    assert (found["low"], found["high"]) == pytest.approx((0.5, 2.0))
    assert (found["worse"], found["populations"]) == (0.5, 2)
    assert populations.headline(kl, "flow")["ratio"] == pytest.approx(0.5)
    assert populations.headline(kl, against="oracle")["ratio"] == pytest.approx(2.0)


def test_the_report_of_populations_names_every_law(capsys):
    populations.report(kl_table())
    text = capsys.readouterr().out
    assert all(word in text for word in ("stacked", "best gaussian", "by d", "by base", "lowest reliability"))


@pytest.mark.slow
def test_a_population_is_measured_with_its_reference_lines():
    rows = pd.DataFrame(populations.measure(10_001, 1, n=60)).set_index("law")
    kl = rows["kl"]
    assert 0 < kl["oracle"] < kl["gaussian"]
    assert kl["best gaussian"] < kl["gaussian"] + 0.005
    assert rows.loc["stacked", "kind"] == "box, spline, sinh-arcsinh"
    assert (rows.loc[["stacked", "oracle"], "regret of selection"] >= 0).all()
