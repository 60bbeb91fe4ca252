"""nlmeflow.laws: snp, transformed, kernels, dirichlet: known limits, fits, options."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

import nlmeflow as nf
from nlmeflow.laws import GaussianLaw, KernelLaw, SNPLaw, TransformedLaw, dirichlet
from nlmeflow.laws.affine import Affine
from nlmeflow.laws.draws import PosteriorDraws, TrainingSet
from nlmeflow.laws.gaussian import population
from nlmeflow.laws.kernels import widest
from nlmeflow.studies.scenarios import LAWS

FRAME = Affine(torch.tensor([0.5, -1.0]).double(), torch.tensor([[1.2, 0.0], [0.4, 0.7]]).double())


SHAPES = {"box-cox": torch.tensor([0.4, -0.7]).double(), "heavy tails": torch.tensor([0.25, -0.2]).double()}


def known(name, n, seed=0):
    phi = LAWS[name].sample(n, seed)
    return PosteriorDraws(phi[:, None], torch.zeros(n, 1, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["box-cox", "heavy tails"])
def test_the_transformation_and_its_inverse_agree(kind):
    law = TransformedLaw(FRAME, SHAPES[kind], kind)
    z = torch.linspace(-9, 9, 301, dtype=torch.float64)[:, None].expand(-1, 2)
    x = law.transform(z)
    back, log_slope = law.inverse(x)
    assert torch.allclose(back, z, atol=1e-9)
    step = 1e-6
    slope = (law.transform(z + step) - law.transform(z - step)) / (2 * step)
    apart = (z.abs() > 1e-3) & ((law.shape * z + 3).abs() > 1e-3)
    assert torch.allclose(slope[apart].log(), log_slope[apart], atol=1e-6)


@pytest.mark.parametrize("kind", ["box-cox", "heavy tails"])
def test_moments_of_a_transformed_law_are_those_of_its_draws(kind):
    law = TransformedLaw(FRAME, SHAPES[kind], kind)
    mean, covariance = law.mean_and_covariance()
    drawn = law.sample(1_000_000, 1)
    spread = drawn.std(0)
    assert ((mean - drawn.mean(0)).abs() < 0.005 * spread).all()
    assert ((covariance - torch.cov(drawn.T)).abs() < 0.02 * spread * spread[:, None]).all()
    if kind == "box-cox":  # of one coordinate a lognormal, but for z < -6
        plain = Affine(torch.zeros(1).double(), torch.eye(1).double())
        one = TransformedLaw(plain, torch.tensor([0.5]).double(), kind)
        mean, variance = (float(part.squeeze()) for part in one.mean_and_covariance())
        assert mean == pytest.approx((math.exp(0.125) - 1) / 0.5, rel=1e-6)
        assert variance == pytest.approx(math.exp(0.25) * (math.exp(0.25) - 1) / 0.25, rel=1e-6)


def test_without_shape_the_laws_are_the_gaussian():
    gaussian = GaussianLaw(FRAME.mean, FRAME.factor)
    phi = gaussian.sample(100, 1)
    for law in (
        SNPLaw.gaussian(FRAME, 3),
        TransformedLaw(FRAME, torch.zeros(2).double(), "box-cox"),
        TransformedLaw(FRAME, torch.zeros(2).double(), "heavy tails"),
    ):
        assert torch.allclose(law.log_prob(phi), gaussian.log_prob(phi), atol=1e-4)
        assert torch.equal(law.moved(torch.zeros(law.n_free).double()).log_prob(phi), law.log_prob(phi))


def test_snp_of_order_zero_is_the_gaussian_fit():
    training = TrainingSet(known("L1", 200), 1)
    phi = LAWS["L1"].sample(200, 5)
    with torch.no_grad():
        zero, gaussian = nf.SNP(order=0).learn(training), nf.Gaussian().learn(training)
    assert torch.allclose(zero.log_prob(phi), gaussian.log_prob(phi), atol=2e-3)
    assert zero.n_parameters == gaussian.n_parameters


@pytest.mark.slow
@pytest.mark.parametrize("law", [nf.SNP(0), nf.Transformed("box-cox"), nf.Transformed("heavy tails")])
def test_near_a_boundary_no_relative_is_below_the_gaussian_that_it_contains(law):
    """The time-scale does not vary: thin laws fitted the noise of draws, few of which are in them."""
    random, days = np.random.default_rng(1), torch.arange(30.0, 75, 5, dtype=torch.float64).expand(24, -1)
    half = torch.from_numpy(random.normal(50, 4, (24, 1)))
    green = torch.sigmoid((half - days) / 3) + torch.from_numpy(random.normal(0, 0.04, days.shape))
    model = nf.Model(nf.curves.logistic_senescence(), fixed=("A",))
    data = nf.LongitudinalData.regular(days, green)
    gaussian, other = (
        model.fit(data, one, seed=1, progress=False).log_likelihood() for one in (nf.Gaussian(), law)
    )
    assert other.value > gaussian.value - 0.3
    assert other.error < 0.03


@pytest.mark.slow
def test_on_two_strategies_bic_prefers_order_two():
    scenario = nf.scenarios.load("L2", "R", 200, 0)
    laws = {"zero": nf.SNP(order=0), "two": nf.SNP(order=2), "chosen": nf.SNP(max_order=2)}
    fits = scenario.model.fit_laws(scenario.data, laws, seed=1, progress=False)
    values = {
        name: fit.n_parameters * math.log(200) - 2 * fit.log_likelihood().value for name, fit in fits.items()
    }
    assert values["two"] < values["zero"] - 50
    assert fits["chosen"].law.order == 2
    assert len(nf.metrics.modes(fits["two"].law)) == 2


def test_box_cox_finds_its_own_shape():
    truth = TransformedLaw(FRAME, torch.tensor([0.5, -0.4]).double(), "box-cox")
    phi = truth.sample(3000, 7)
    draws = PosteriorDraws(phi[:, None], torch.zeros(3000, 1, dtype=torch.float64))
    with torch.no_grad():
        found = nf.Transformed().learn(TrainingSet(draws, 1))
    assert torch.allclose(found.shape, truth.shape, atol=0.06)
    assert nf.metrics.kl(truth, found) < 0.01


def test_a_shape_at_its_bound_can_be_moved_again():
    law = TransformedLaw(FRAME, SHAPES["box-cox"], "box-cox")
    law = law.moved(torch.tensor([0, 0, 0, 0, 0, 50, -50]).double())
    again = law.moved(torch.zeros(7).double())
    assert torch.isfinite(again.log_prob(FRAME.mean[None])).all()
    assert torch.allclose(again.shape, law.shape)


def test_smooth_npmle_solves_its_convex_problem():
    """D(kernel) = sum_i p_k(y_i) / p(y_i) - N is never positive, also at kernels that were left out."""
    draws = known("L5", 150)
    with torch.no_grad():
        law = nf.SmoothNPMLE(bandwidth=0.3).learn(TrainingSet(draws, 1))
        assert isinstance(law, KernelLaw)
        marginal = draws.score(law)
        each = KernelLaw.at(draws.phi[:, 0], law.factor).log_joint(draws.phi[:, 0]) + math.log(150)
        gradient = (each - marginal).exp().sum(1) - 150
    assert float(gradient.max()) < 0.05
    assert float(law.weights.sum()) == pytest.approx(1)


def test_the_widest_kernels_within_one_standard_error():
    """100 differences from the best of mean m and standard deviation 1: totals 100 m against 10."""
    noise = torch.linspace(-1, 1, 100, dtype=torch.float64)
    noise = noise / noise.std()
    scores = torch.stack([noise * 0 - 5, noise * 0, noise - 0.09, noise - 0.11])
    assert widest(scores) == 2
    assert widest(scores[:2]) == 1
    assert widest(scores[[1, 3]]) == 0


@pytest.mark.slow
def test_kernels_of_a_gaussian_population_are_wide():
    """The smooth NPMLE of a Gaussian is the Gaussian: one kernel of the population's own width."""
    with torch.no_grad():
        law = nf.SmoothNPMLE().learn(TrainingSet(known("L1", 400), 1))
    share = law.factor.diagonal() / torch.linalg.cholesky(law.mean_and_covariance()[1]).diagonal()
    assert float(share.min()) > 0.7


@pytest.mark.slow
def test_two_stage_is_too_wide_and_ebes_are_too_narrow():
    """The warning examples, in a sparse design: variances of the rate against the truth's, .25^2."""
    scenario = nf.scenarios.load("L1", "S", 200, 0)
    laws = {"two-stage": nf.TwoStage(), "ebe": nf.EBEDensity()}
    fits = scenario.model.fit_laws(scenario.data, laws, seed=1, progress=False)
    spread = {name: float(fit.law.sample(20_000, 1)[:, 1].var()) for name, fit in fits.items()}
    points = fits["ebe"].law.points[:, 1].var()
    assert float(points) < 0.8 * 0.25**2
    assert spread["two-stage"] > 1.5 * 0.25**2


QUICK = [nf.DirichletProcess(sweeps=60, kept=5), nf.Transformed(), nf.TwoStage(), nf.EBEDensity()]
SLOW = [nf.SNP(max_order=1), nf.SmoothNPMLE(), nf.SAEM()]


@pytest.mark.slow
def test_a_dirichlet_process_of_one_component_predicts_a_student_t():
    """With one component and parameters known, the posterior mean of the density has a closed form."""
    draws = known("L1", 12)
    law = nf.DirichletProcess(components=1, sweeps=4500, kept=3000).learn(TrainingSet(draws, 1))
    gaussian = population(draws)
    z = Affine(gaussian.mean, gaussian.factor).standardise(draws.phi[:, 0]).numpy()
    n, dim = z.shape
    precision, freedom = dirichlet.PRECISION + n, dim + dirichlet.FREEDOM + n
    centre = z.sum(0) / precision
    prior = dirichlet.SHARE * (dirichlet.FREEDOM - 1) * np.eye(dim)
    scatter = prior + z.T @ z - precision * np.outer(centre, centre)
    df = freedom - dim + 1
    exact = stats.multivariate_t(centre, scatter * (precision + 1) / (precision * df), df)
    at = np.array([[0.0, 0.0], [1.0, -0.5], [-1.5, 1.0], [0.3, 1.2]])
    phi = gaussian.mean + torch.from_numpy(at) @ gaussian.factor.mT
    found = law.log_prob(phi) + gaussian.factor.diagonal().log().sum()
    assert np.allclose(found.numpy(), exact.logpdf(at), atol=0.05)


def test_sticks_are_broken_by_how_many_individuals_they_have():
    random = np.random.default_rng(0)
    weights = np.stack([dirichlet.broken(np.array([30, 10, 0]), 2.0, random)[0] for _ in range(4000)])
    assert np.allclose(weights.sum(1), 1)
    first, second = 31 / (31 + 12), 11 / (11 + 2)  # means of Beta(1 + n_k, a + later ones)
    expected = [first, (1 - first) * second, (1 - first) * (1 - second)]
    assert np.allclose(weights.mean(0), expected, atol=0.01)


def test_a_dirichlet_process_finds_two_groups():
    law = nf.DirichletProcess(sweeps=150, kept=10).learn(TrainingSet(known("L2", 150), 2))
    assert abs(float((law.sample(4000, 0)[:, 0] < 50.5).double().mean()) - 0.6) < 0.1
    assert len(nf.metrics.modes(law)) == 2


@pytest.mark.parametrize(
    "law", [*QUICK, *[pytest.param(law, marks=pytest.mark.slow) for law in SLOW]], ids=lambda law: law.name
)
def test_every_relative_is_compared_saved_and_read(law, tmp_path):
    scenario = nf.scenarios.load("P2", "R", 40, 0)
    table = nf.compare(scenario.model, scenario.data, [nf.Gaussian(), law], folds=3, seed=1, progress=False)
    fit = table.fits[law.name]
    assert table.scores[law.name].notna().all()
    assert fit.converged
    fit.save(tmp_path / "fit")
    again = nf.load(tmp_path / "fit")
    assert again.specification == law
    phi = fit.law.sample(20, 1)
    assert torch.equal(again.law.log_prob(phi), fit.law.log_prob(phi))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nf.SNP(order=-1), "order is a whole number from 0, got -1"),
        (lambda: nf.SNP(order=9), "order is at most 4, got 9"),
        (lambda: nf.Transformed("skewed"), "'box-cox' or 'heavy tails', got 'skewed'"),
        (lambda: nf.SmoothNPMLE(bandwidth=0), "between 0 and 10"),
        (lambda: nf.TwoStage(bandwidth=-1), "between 0 and 10"),
        (lambda: nf.EBEDensity(bandwidth="wide"), "between 0 and 10, got 'wide'"),
        (lambda: nf.DirichletProcess(sweeps=30, kept=50), "kept is a number between 0 and 21"),
        (lambda: nf.ParticleNPML(particles=1), "particles is a whole number from 2"),
    ],
)
def test_bad_specifications_are_refused(make, message):
    with pytest.raises(nf.ModelError, match=message):
        make()


def test_far_from_a_narrow_snp_law_its_density_is_zero_not_infinite():
    frame = Affine(
        torch.zeros(2, dtype=torch.float64), torch.tensor([[2e-4, 0], [18.0, 1e-88]], dtype=torch.float64)
    )
    law = SNPLaw(frame, torch.full((6,), 6**-0.5, dtype=torch.float64), 2, 0.0)
    assert (law.log_prob(torch.tensor([[47.5, 0.8], [1.0, 1.0]], dtype=torch.float64)) < -1e100).all()


def test_a_dirichlet_process_has_a_summary_and_says_why_it_has_no_standard_errors():
    scenario = nf.scenarios.load("P2", "R", 20, 0)
    law = nf.DirichletProcess(sweeps=30, kept=5)
    fit = scenario.model.fit(scenario.data, law, seed=1, particles=256, progress=False)
    assert "none: A Dirichlet-process mixture is a mean" in str(fit.summary())
    for refused in (fit.standard_errors, fit.bootstrap, fit.bands):
        with pytest.raises(nf.EstimationError, match="not a maximum that could be found again"):
            refused()
