"""nlmeflow.laws: what every fitted law obeys, in one, two and three dimensions."""

import itertools
import json
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from scipy import stats

import nlmeflow as nf
from nlmeflow.laws import (
    DirichletLaw,
    DiscreteLaw,
    FlowLaw,
    GaussianLaw,
    GivenLaw,
    KernelLaw,
    Law,
    MixtureLaw,
    Network,
    SNPLaw,
    StackedLaw,
    TransformedLaw,
)
from nlmeflow.laws.affine import Affine
from nlmeflow.laws.draws import PosteriorDraws, TrainingSet
from nlmeflow.laws.em import SmoothLaw, climb, climb_smooth
from nlmeflow.laws.flow.conditional import ConditionalFlow
from nlmeflow.laws.mixture import floored
from nlmeflow.laws.snp import exponents
from nlmeflow.numerics import moments
from nlmeflow.records import decode, encode
from nlmeflow.seeds import generator

DRAWS = 20_000
SIZES = {"quadratic": 2, "autoregressive": 2, "spline": 1, "realnvp": 3}  # layers of the flows in the table


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def frame(dim):
    factor = tensor([[1.2, 0.0, 0.0], [0.4, 0.7, 0.0], [-0.3, 0.2, 0.9]])
    return Affine(tensor([0.5, -1.0, 0.3])[:dim], factor[:dim, :dim])


def gaussian(dim):
    return GaussianLaw(frame(dim).mean, frame(dim).factor)


def diagonal(dim):
    return GaussianLaw(frame(dim).mean, frame(dim).factor.diagonal().diag(), "diagonal")


def mixture(dim):
    """Two components apart, of different covariances."""
    apart, place = tensor([1.3, -0.9, 1.1])[:dim], frame(dim)
    other = tensor([[0.5, 0.0, 0.0], [-0.2, 0.6, 0.0], [0.3, 0.1, 0.4]])[:dim, :dim]
    means = torch.stack([place.mean - apart, place.mean + apart])
    factors = torch.stack([0.6 * place.factor, other])
    return MixtureLaw(tensor([0.3, 0.7]), means, factors, 0.05 * place.factor)


def snp(dim, order):
    coefficients = torch.randn(len(exponents(dim, order)), generator=generator(order), dtype=torch.float64)
    return SNPLaw(frame(dim), coefficients / coefficients.norm(), order)


def transformed(dim, kind):
    shape = [0.4, -0.5, 1e-3] if kind == "box-cox" else [0.25, -0.2, 0.1]
    return TransformedLaw(frame(dim), tensor(shape)[:dim], kind)


def kernels(dim):
    points = gaussian(dim).sample(6, 1)
    return KernelLaw(tensor([0.3, 0.1, 0.2, 0.1, 0.1, 0.2]), points, 0.5 * frame(dim).factor)


def shaken(module, size):
    """Move the weights of a network away from the identity."""
    for k, weight in enumerate(module.parameters()):
        weight.data += size * torch.randn(weight.shape, generator=generator(k), dtype=weight.dtype)


def flow(dim, kind, base=None):
    law = FlowLaw.start(Network(kind, SIZES[kind], (8,)), gaussian(dim), base, 5)
    shaken(law.transport, 0.1 if kind == "quadratic" else 0.3)
    return law


def given(dim):
    """A flow that follows two covariates, at one value of them."""
    base = MixtureLaw.of_one(mixture(dim))
    inside = ConditionalFlow.start(gaussian(dim), torch.full((dim, 2), 0.4).double(), base, (8,), 2)
    shaken(inside.network, 0.3)
    return GivenLaw(inside, tensor([0.5, -1.0]))


def stacked(dim):
    return StackedLaw((gaussian(dim), mixture(dim), snp(dim, 2)), tensor([0.2, 0.5, 0.3]))


def discrete(dim):
    return DiscreteLaw(gaussian(dim).sample(7, 3), tensor([0.3, 0.05, 0.2, 0.1, 0.1, 0.15, 0.1]))


def dirichlet(dim):
    """The components of two sweeps."""
    one, other = mixture(dim), MixtureLaw.of_one(gaussian(dim))
    parts = [torch.cat(pair) for pair in zip(one.components, other.components, strict=True)]
    return DirichletLaw(parts[0] / 2, parts[1], parts[2], one.floor)


MAKERS = {
    "gaussian": gaussian,
    "diagonal": diagonal,
    "mixture": mixture,
    "snp 1": lambda dim: snp(dim, 1),
    "snp 2": lambda dim: snp(dim, 2),
    "snp 3": lambda dim: snp(dim, 3),
    "box-cox": lambda dim: transformed(dim, "box-cox"),
    "heavy tails": lambda dim: transformed(dim, "heavy tails"),
    "kernels": kernels,
    "dirichlet": dirichlet,
    "quadratic": lambda dim: flow(dim, "quadratic"),
    "autoregressive": lambda dim: flow(dim, "autoregressive"),
    "spline": lambda dim: flow(dim, "spline"),
    "realnvp": lambda dim: flow(dim, "realnvp"),
    "spline on a mixture": lambda dim: flow(dim, "spline", mixture(dim)),
    "given covariates": given,
    "stacked": stacked,
    "discrete": discrete,
}
PAIRS = [(name, dim) for name in MAKERS for dim in (1, 2, 3) if (name, dim) != ("realnvp", 1)]
LAWS = {pair: MAKERS[pair[0]](pair[1]) for pair in PAIRS}
DENSITIES = [pair for pair in PAIRS if LAWS[pair].has_density]
WITH_M_STEP = [pair for pair in DENSITIES if LAWS[pair].components is not None]
WITHOUT_M_STEP = [pair for pair in DENSITIES if LAWS[pair].components is None]
SMOOTH = [pair for pair in PAIRS if isinstance(LAWS[pair], SmoothLaw)]
FLOWS = [pair for pair in PAIRS if isinstance(LAWS[pair], FlowLaw)]
POINTS = [pair for pair in PAIRS if not LAWS[pair].has_density]
KNOWN_MOMENTS = [pair for pair in DENSITIES if "mean_and_covariance" in vars(type(LAWS[pair]))]


def each(pairs):
    return pytest.mark.parametrize("pair", pairs, ids=lambda pair: f"{pair[0]} {pair[1]}")


@cache
def quadrature(pair):
    """Points (n, d) and what each of them weighs under the law's density, by a wide Sobol sample."""
    law, (_, dim) = LAWS[pair], pair
    mean, covariance = law.two_moments
    wide = Affine(mean, 1.2 * torch.linalg.cholesky(covariance))
    uniform = torch.quasirandom.SobolEngine(dim, scramble=True, seed=1).draw(2**16, dtype=torch.float64)
    tails = stats.t(4)
    z = torch.from_numpy(tails.ppf(uniform.clamp(1e-12, 1 - 1e-12).numpy()))
    log_proposal = torch.from_numpy(tails.logpdf(z.numpy())).sum(1) - wide.log_volume
    points = wide(z)
    return points, (law.log_prob(points) - log_proposal).exp() / len(points)


@cache
def drawn(pair):
    return LAWS[pair].sample(DRAWS, 7)


def test_the_table_holds_every_law_of_the_package():
    public = {getattr(nf.laws, name) for name in nf.laws.__all__}
    assert {law for law in public if issubclass(law, Law)} - {Law} == {type(law) for law in LAWS.values()}


@each(PAIRS)
def test_the_dimension_is_known(pair):
    assert LAWS[pair].dim == pair[1]
    assert LAWS[pair].sample(3, 1).shape == (3, pair[1])


@each(DENSITIES)
def test_a_density_integrates_to_one(pair):
    _, weights = quadrature(pair)
    assert float(weights.sum()) == pytest.approx(1, abs=5e-3)


@each(DENSITIES)
def test_draws_follow_the_density(pair):
    """Means of many functions over the draws are their integrals, within five standard errors."""
    law, (points, weights) = LAWS[pair], quadrature(pair)
    mean, covariance = moments(points, weights / weights.sum())
    sd = covariance.diagonal().sqrt()

    def functions(phi):
        z = (phi - mean) / sd
        several = [z.tanh(), (z > 0.8).double(), (z < -0.8).double(), (2 * z).sin()]
        joint = [(2 * z.sum(1)).cos(), z.prod(1).tanh(), 0.1 * law.log_prob(phi)]
        return torch.cat([*several, torch.stack(joint, 1)], 1)

    found = functions(drawn(pair))
    error = found.std(0) / math.sqrt(DRAWS)
    assert bool(((found.mean(0) - weights @ functions(points)).abs() < 5 * error + 3e-3).all())


@each(POINTS)
def test_points_are_drawn_as_often_as_they_weigh(pair):
    law = LAWS[pair]
    same = (drawn(pair)[:, None] == law.support).all(-1).double()
    assert torch.equal(same.sum(1), torch.ones(DRAWS).double())
    assert torch.allclose(same.mean(0), law.weights, atol=5 * 0.5 / math.sqrt(DRAWS))


@each(POINTS)
def test_points_have_no_density(pair):
    with pytest.raises(nf.ModelError, match="no density"):
        LAWS[pair].log_prob(drawn(pair)[:2])
    assert LAWS[pair].density().has_density


@each(PAIRS)
def test_the_same_seed_gives_the_same_draws(pair):
    law = LAWS[pair]
    assert torch.equal(law.sample(50, 1), law.sample(50, 1))
    assert torch.equal(law.sample(50, 1), law.sample(50, generator(1)))
    assert not torch.equal(law.sample(50, 1), law.sample(50, 2))
    if law.has_density:
        assert not (law.sample(50, 1)[:, None] == law.sample(50, 2)).all(-1).any()


@each(PAIRS)
def test_the_two_moments_are_those_of_many_draws(pair):
    mean, covariance = LAWS[pair].two_moments
    phi, sd = drawn(pair), covariance.diagonal().sqrt()
    z = (phi - mean) / sd
    products = z[:, :, None] * z[:, None]
    error = math.sqrt(2 / DRAWS)  # both may come from as many draws
    assert bool((z.mean(0).abs() < 5 * error).all())
    wanted = covariance / (sd[:, None] * sd)
    assert bool(((products.mean(0) - wanted).abs() < 5 * error * products.std(0)).all())


@each(KNOWN_MOMENTS)
def test_moments_that_are_known_are_integrals(pair):
    points, weights = quadrature(pair)
    mean, covariance = moments(points, weights)
    found, sd = LAWS[pair].two_moments, covariance.diagonal().sqrt()
    assert bool(((found[0] - mean).abs() < 5e-3 * sd).all())
    assert bool(((found[1] - covariance).abs() < 5e-3 * sd[:, None] * sd).all())


@each(DENSITIES)
def test_phi_may_have_any_leading_shape(pair):
    law, dim = LAWS[pair], pair[1]
    phi = law.sample(12, 1)
    flat = law.log_prob(phi)
    assert flat.shape == (12,)
    assert torch.allclose(law.log_prob(phi.reshape(3, 2, 2, dim)), flat.reshape(3, 2, 2))
    assert law.log_prob(phi[0]).shape == ()
    assert float(law.log_prob(phi[0])) == pytest.approx(float(flat[0]))
    for wrong in (torch.zeros(4, dim + 1).double(), torch.zeros(()).double()):
        with pytest.raises(nf.ModelError, match=rf"last axis must be d = {dim}"):
            law.log_prob(wrong)


@each(DENSITIES)
def test_of_no_points_there_is_no_density(pair):
    law, dim = LAWS[pair], pair[1]
    for shape in ((0,), (3, 0), (0, 4)):
        value = law.log_prob(torch.zeros(*shape, dim).double())
        assert value.shape == shape
        assert value.dtype == torch.float64


@each(DENSITIES)
def test_gradients_are_finite_differences_and_finite_far_away(pair):
    law, dim = LAWS[pair], pair[1]
    phi = drawn(pair)[:20].clone().requires_grad_(True)
    slope = torch.autograd.grad(law.log_prob(phi).sum(), phi)[0]
    with torch.no_grad():
        for k in range(dim):
            step = 1e-5 * torch.eye(dim, dtype=torch.float64)[k]
            numeric = (law.log_prob(phi + step) - law.log_prob(phi - step)) / 2e-5
            assert torch.allclose(slope[:, k], numeric, rtol=1e-4, atol=1e-4)
    far = (40 * torch.tensor([[1.0], [-1.0]]).double()).expand(2, dim).clone().requires_grad_(True)
    value = law.log_prob(far)
    assert torch.isfinite(value).all()
    assert torch.isfinite(torch.autograd.grad(value.sum(), far)[0]).all()


def written_and_read(law):
    tensors = {}
    text = json.dumps(encode(law, "law", tensors))
    return decode(json.loads(text), tensors)


@each(PAIRS)
def test_a_law_is_written_and_read_to_the_bit(pair):
    law = LAWS[pair]
    again = written_and_read(law)
    assert type(again) is type(law)
    phi = drawn(pair)[:100]
    assert torch.equal(again.sample(100, 7), law.sample(100, 7))
    if law.has_density:
        assert torch.equal(again.log_prob(phi), law.log_prob(phi))
    else:
        assert torch.equal(again.support, law.support)
        assert torch.equal(again.weights, law.weights)


def affine(dim):
    """Parameters of a mean and a lower factor."""
    return dim + dim * (dim + 1) // 2


def network(kind, dim):
    """Weights of a flow's network: one hidden layer of eight, and the answers for each coordinate."""
    if kind == "quadratic":
        return SIZES[kind] * (2 * dim + dim**2 + dim * (1 + dim + dim * (dim + 1) // 2))
    if kind == "realnvp":  # of the coordinates of one layer two at most are seen
        seen = [(dim + 1) // 2, dim // 2, (dim + 1) // 2]
        return sum(8 * s + 8 + 9 * 2 * (dim - s) for s in seen)
    answers = 2 if kind == "autoregressive" else 8 + 8 + 7
    return SIZES[kind] * (answers if dim == 1 else 8 * dim + 8 + 9 * answers * dim)


COUNTS = {
    "gaussian": affine,
    "diagonal": lambda dim: 2 * dim,
    "mixture": lambda dim: 2 * affine(dim) + 1,
    "snp 1": lambda dim: affine(dim) + math.comb(dim + 1, 1) - 1,
    "snp 2": lambda dim: affine(dim) + math.comb(dim + 2, 2) - 1,
    "snp 3": lambda dim: affine(dim) + math.comb(dim + 3, 3) - 1,
    "box-cox": lambda dim: affine(dim) + dim,
    "heavy tails": lambda dim: affine(dim) + dim,
    "kernels": lambda dim: 5,
    "dirichlet": lambda dim: 3 * affine(dim) + 2,
    "quadratic": lambda dim: network("quadratic", dim) + affine(dim),
    "autoregressive": lambda dim: network("autoregressive", dim) + affine(dim),
    "spline": lambda dim: network("spline", dim) + affine(dim),
    "realnvp": lambda dim: network("realnvp", dim) + affine(dim),
    "spline on a mixture": lambda dim: network("spline", dim) + 2 * affine(dim) + 1,
    "given covariates": lambda dim: 8 * (dim * (dim > 1) + 3) + 9 * 23 * dim + 4 + 2 * affine(dim) + 1,
    "stacked": lambda dim: COUNTS["gaussian"](dim) + COUNTS["mixture"](dim) + COUNTS["snp 2"](dim) + 2,
    "discrete": lambda dim: 7 * dim + 6,
}


@each(PAIRS)
def test_parameters_are_counted(pair):
    name, dim = pair
    assert LAWS[pair].n_parameters == COUNTS[name](dim)


def individuals(dim, n=40, size=3, seed=1):
    """Draws of individuals, far from every law of the table, under a reference that is not constant."""
    phi = torch.randn(n, size, dim, generator=generator(seed), dtype=torch.float64).exp()
    return PosteriorDraws(phi, -0.3 * phi.abs().sum(-1))


@each(WITH_M_STEP)
def test_an_m_step_raises_the_expected_log_density(pair):
    law, draws = LAWS[pair], individuals(pair[1], 30, 40)
    weights = torch.rand(30, 40, generator=generator(2), dtype=torch.float64)
    weights = weights / weights.sum(1, keepdim=True)

    def value(some):
        return float((weights * some.log_prob(draws.phi)).sum())

    moved = law.update(draws.phi, weights)
    assert type(moved) is type(law)
    assert value(moved) > value(law)


@each(WITH_M_STEP)
def test_em_never_lowers_the_likelihood(pair):
    law, draws = LAWS[pair], individuals(pair[1])
    values = []
    for _ in range(8):
        values.append(float(draws.score(law).sum()))
        law = law.update(draws.phi, draws.weigh(law).weights)
    assert all(after >= before - 1e-9 for before, after in itertools.pairwise(values))
    assert values[-1] > values[0]


@each(WITHOUT_M_STEP)
def test_a_law_without_m_step_says_so(pair):
    law, draws = LAWS[pair], individuals(pair[1])
    with pytest.raises(nf.ModelError, match=f"A {type(law).__name__} has no M-step"):
        law.update(draws.phi, draws.equal)
    with pytest.raises(nf.ModelError, match=f"A {type(law).__name__} has no Gaussian components"):
        law.with_components(*mixture(pair[1]).components)


@each(POINTS)
def test_an_em_step_of_points_raises_the_likelihood(pair):
    law = LAWS[pair]
    psi = torch.rand(20, 7, generator=generator(1), dtype=torch.float64)
    posterior = psi * law.weights / (psi @ law.weights)[:, None]
    moved = law.update(law.support.expand(20, -1, -1), posterior)
    assert torch.allclose(moved.weights, law.weights * (psi / (psi @ law.weights)[:, None]).mean(0))
    assert float((psi @ moved.weights).log().sum()) > float((psi @ law.weights).log().sum())


def counted(draws):
    """How often each individual counts, and the same individuals as often as that."""
    times = torch.arange(len(draws)) % 4
    return times.double(), draws.subset(torch.arange(len(draws)).repeat_interleave(times))


@each(WITH_M_STEP)
def test_em_with_weights_is_em_with_repeated_individuals(pair):
    law, draws = LAWS[pair], individuals(pair[1])
    share, repeated = counted(draws)
    weighted, value = climb(law, draws, 12, share=share)
    other, other_value = climb(law, repeated, 12)
    assert value == pytest.approx(other_value, abs=1e-6)
    assert torch.allclose(weighted.log_prob(draws.phi), other.log_prob(draws.phi), atol=1e-6)
    assert abs(climb(law, draws, 12)[1] - value) > 1


@each(SMOOTH)
def test_a_climb_with_weights_is_one_with_repeated_individuals(pair):
    law, draws = LAWS[pair], individuals(pair[1])
    share, repeated = counted(draws)
    weighted, other = climb_smooth(law, draws, 12, share), climb_smooth(law, repeated, 12)
    assert torch.allclose(weighted.log_prob(draws.phi), other.log_prob(draws.phi), atol=1e-6)
    assert float(share @ draws.score(weighted)) > float(share @ draws.score(law)) + 1
    plain = climb_smooth(law, draws, 12)
    assert (plain.log_prob(draws.phi) - weighted.log_prob(draws.phi)).abs().max() > 1e-2


@each(SMOOTH)
def test_a_smooth_law_stands_where_its_free_vector_is_zero(pair):
    law, phi = LAWS[pair], drawn(pair)[:50]
    zero = torch.zeros(law.n_free).double()
    assert torch.allclose(law.moved(zero).log_prob(phi), law.log_prob(phi), atol=1e-12)
    for k in range(law.n_free):
        step = zero.clone()
        step[k] = 0.1
        assert (law.moved(step).log_prob(phi) - law.log_prob(phi)).abs().max() > 1e-4


def scaled(dim):
    """A change of units and a shift."""
    linear = tensor([[1000.0, 0.0, 0.0], [3.0, 1e-3, 0.0], [-5.0, 0.2, 7.0]])[:dim, :dim]
    return Affine(tensor([5.0, -7.0, 0.0])[:dim], linear)


def moved_mixture(law, change):
    def factor(old):
        return torch.linalg.cholesky(change.factor @ old @ old.mT @ change.factor.mT)

    return replace(law, means=change(law.means), factors=factor(law.factors), floor=factor(law.floor))


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("name", ["gaussian", "mixture"])
def test_an_exact_step_follows_affine_changes(name, dim):
    """Fitted to transformed points, a Gaussian or a mixture is the transformed law."""
    law, change = LAWS[name, dim], scaled(dim)
    phi, weights = law.sample(400, 2)[:, None], torch.ones(400, 1, dtype=torch.float64)
    first = law if name == "gaussian" else moved_mixture(law, change)
    here, there = law.update(phi, weights), first.update(change(phi), weights)
    expected = here.log_prob(phi) - change.log_volume
    assert torch.allclose(there.log_prob(change(phi)), expected, atol=1e-6)


SMOOTH_SPECIFICATIONS = [nf.SNP(order=2), nf.Transformed(), nf.Transformed("heavy tails")]


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("law", SMOOTH_SPECIFICATIONS, ids=lambda law: law.name)
def test_a_smooth_law_that_is_learned_follows_changes_of_units(law, dim):
    change = Affine(scaled(dim).mean, scaled(dim).factor.diagonal().diag())
    phi = mixture(dim).sample(100, 3)[:, None]
    here, there = (
        law.learn(TrainingSet(PosteriorDraws(place, torch.zeros(100, 1).double()), 1))
        for place in (phi, change(phi))
    )
    expected = here.log_prob(phi) - change.log_volume
    assert torch.allclose(there.log_prob(change(phi)), expected, atol=1e-3)


@each(FLOWS)
def test_a_transport_is_invertible_with_the_right_jacobian(pair):
    transport, dim = LAWS[pair].transport, pair[1]
    z = torch.randn(20, dim, dtype=torch.float64, generator=generator(4))
    u, change = transport(z)
    assert torch.allclose(transport.inverse(u), z, atol=1e-6)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda x: transport(x)[0]))(z)
    assert torch.allclose(change, torch.linalg.slogdet(jacobian)[1], atol=1e-8)
    assert (u - z).abs().max() > 0.05


@pytest.mark.parametrize("pair", [(kind, dim) for kind, dim in PAIRS if kind in SIZES], ids=str)
def test_a_new_flow_is_its_base(pair):
    kind, dim = pair
    phi = gaussian(dim).sample(200, 1)
    for base in (gaussian(dim), mixture(dim)):
        law = FlowLaw.start(Network(kind, 3, (16, 16)), gaussian(dim), base, 1)
        assert torch.allclose(law.log_prob(phi), base.log_prob(phi), atol=1e-9)
    alone = FlowLaw.start(Network(kind), gaussian(dim), None, 1)
    assert torch.allclose(alone.log_prob(phi), gaussian(dim).log_prob(phi), atol=1e-9)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("dim", [1, 2, 3])  # two components: as many as parameters, fewer, more
def test_the_prior_of_a_mixture_is_that_of_its_covariances_one_by_one(dim, pooled):
    law = replace(mixture(dim), shrinkage=5.0, prior=0.25, pooled=pooled)
    covariances = (law.factors @ law.factors.mT).numpy()
    mean = 0.3 * covariances[0] + 0.7 * covariances[1]
    target = mean if pooled else np.diag(np.diag(mean))
    by_hand = 0.0
    for covariance in covariances:
        log_volume = np.linalg.slogdet(covariance)[1]
        by_hand += 0.25 * log_volume - 2.5 * (log_volume + np.trace(np.linalg.inv(covariance) @ target))
    assert law.log_prior == pytest.approx(by_hand, rel=1e-12)


def test_components_of_a_mixture_cannot_collapse():
    floor = tensor([[2.0, 0.0], [1.0, 0.1]])
    factor = floored(tensor([[[1e-9, 0.0], [0.0, 1e-9]], [[50.0, 1.0], [1.0, 9.0]]]), floor)
    covariance = factor @ factor.mT
    assert torch.allclose(covariance[0], floor @ floor.mT)
    assert torch.allclose(covariance[1], tensor([[50.0, 1.0], [1.0, 9.0]]))
    phi = torch.zeros(50, 1, 2, dtype=torch.float64)
    law = mixture(2).update(phi, torch.ones(50, 1, dtype=torch.float64))
    assert math.isfinite(float(law.log_prob(phi).sum()))


def test_laws_of_single_precision_are_held_in_double():
    single = GaussianLaw(torch.tensor([0.5, 1.0]), torch.tensor([[2.0, 0.0], [0.5, 1.0]]))
    double = GaussianLaw(single.mean.double(), single.factor.double())
    assert single.mean.dtype == single.factor.dtype == torch.float64
    assert nf.metrics.kl(single, double, n=100) == 0
    phi = torch.tensor([[0.25, 0.5]])
    assert torch.equal(single.log_prob(phi), double.log_prob(phi.double()))
