import math

import numpy as np
import pytest
import torch

import nlmeflow as nf
from nlmeflow.laws import FlowLaw, GaussianLaw, MixtureLaw, Network, StackedLaw
from nlmeflow.laws.mixture import floored


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def gaussian(structure="full"):
    factor = tensor([[1.5, 0.0], [0.6, 0.5]]) if structure == "full" else tensor([[1.5, 0.0], [0.0, 0.5]])
    return GaussianLaw(tensor([1.0, -2.0]), factor, structure)


def mixture():
    return MixtureLaw(
        tensor([0.3, 0.7]),
        tensor([[-1.0, -2.5], [2.0, -1.0]]),
        torch.stack([tensor([[0.5, 0.0], [0.2, 0.4]]), tensor([[0.8, 0.0], [-0.3, 0.3]])]),
        0.05 * gaussian().factor,
    )


def flow(kind, base=None):
    law = FlowLaw.start(Network(kind, 2, (8,)), gaussian(), base, 5)
    for weight in law.transport.parameters():  # away from the identity
        random = torch.Generator().manual_seed(weight.numel())
        weight.data += 0.3 * torch.randn(weight.shape, generator=random, dtype=weight.dtype)
    return law


LAWS = {
    "gaussian": gaussian,
    "diagonal": lambda: gaussian("diagonal"),
    "mixture": mixture,
    "realnvp": lambda: flow("realnvp"),
    "quadratic": lambda: flow("quadratic"),
    "autoregressive": lambda: flow("autoregressive"),
    "spline": lambda: flow("spline"),
    "mixture base": lambda: flow("autoregressive", mixture()),
    "stacked": lambda: StackedLaw((gaussian(), mixture()), tensor([0.4, 0.6])),
}
pytestmark = pytest.mark.parametrize("name", LAWS)


def grid(law, reach=12.0, points=700):
    drawn = law.sample(4000, 3)
    centre, scale = drawn.mean(0), drawn.std(0)
    axes = [torch.linspace(-reach, reach, points, dtype=torch.float64) * scale[k] + centre[k] for k in (0, 1)]
    cell = float((axes[0][1] - axes[0][0]) * (axes[1][1] - axes[1][0]))
    return torch.cartesian_prod(*axes), cell


def test_integrates_to_one(name):
    law = LAWS[name]()
    points, cell = grid(law)
    assert float(law.log_prob(points).exp().sum() * cell) == pytest.approx(1.0, abs=2e-3)


def test_samples_what_it_scores(name):
    law = LAWS[name]()
    points, cell = grid(law)
    density = law.log_prob(points).exp()
    entropy = -float((density * density.clamp_min(1e-300).log()).sum() * cell)
    scores = -law.log_prob(law.sample(20_000, 7))
    assert float(scores.mean()) == pytest.approx(entropy, abs=5 * float(scores.std()) / math.sqrt(20_000))
    mean = (density[:, None] * points).sum(0) * cell
    drawn = law.sample(20_000, 8)
    error = drawn.std(0) / math.sqrt(20_000)
    assert bool(((drawn.mean(0) - mean).abs() < 5 * error + 2e-3).all())


def test_same_seed_same_draws(name):
    law = LAWS[name]()
    assert torch.equal(law.sample(10, 1), law.sample(10, 1))
    assert not torch.equal(law.sample(10, 1), law.sample(10, 2))


def test_any_leading_shape(name):
    law = LAWS[name]()
    phi = law.sample(12, 1)
    flat = law.log_prob(phi)
    assert torch.allclose(law.log_prob(phi.reshape(3, 2, 2, 2)).reshape(-1), flat)
    assert law.log_prob(phi[0]).shape == ()
    with pytest.raises(nf.ModelError, match="d = 2"):
        law.log_prob(torch.zeros(4, 3, dtype=torch.float64))


def test_update_never_lowers_the_expected_log_density(name):
    law = LAWS[name]()
    random = torch.Generator().manual_seed(1)
    phi = torch.randn(30, 40, 2, generator=random, dtype=torch.float64).exp()
    weights = torch.rand(30, 40, generator=random, dtype=torch.float64)
    weights = weights / weights.sum(1, keepdim=True)

    def value(p):
        return float((weights * p.log_prob(phi)).sum())

    if law.components is None:
        with pytest.raises(nf.ModelError, match="has no M-step"):
            law.update(phi, weights)
        return
    updated = law.update(phi, weights)
    assert value(updated) > value(law)
    assert type(updated) is type(law)


def test_density_follows_affine_changes(name):
    """Fitted to transformed points, a Gaussian or a mixture is the transformed law."""
    if name not in ("gaussian", "mixture"):
        pytest.skip("an exact update is needed")
    law = LAWS[name]()
    phi = law.sample(400, 2)[:, None]
    weights = torch.ones(400, 1, dtype=torch.float64)
    linear, shift = tensor([[1000.0, 0.0], [3.0, 1e-3]]), tensor([5.0, -7.0])
    here = law.update(phi, weights)
    moved_start = law if name == "gaussian" else moved(law, linear, shift)
    there = moved_start.update(phi @ linear.mT + shift, weights)
    expected = here.log_prob(phi) - torch.linalg.slogdet(linear)[1]
    assert torch.allclose(there.log_prob(phi @ linear.mT + shift), expected, atol=1e-6)


def moved(law, linear, shift):
    covariance = linear @ law.factors @ law.factors.mT @ linear.mT
    floor = linear @ law.floor @ law.floor.mT @ linear.mT
    return MixtureLaw(
        law.weights,
        law.means @ linear.mT + shift,
        torch.linalg.cholesky(covariance),
        torch.linalg.cholesky(floor),
    )


def test_transport_is_invertible_with_the_right_jacobian(name):
    law = LAWS[name]()
    if not isinstance(law, FlowLaw):
        pytest.skip("has no transport")
    z = torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    u, change = law.transport(z)
    assert torch.allclose(law.transport.inverse(u), z, atol=1e-6)
    for k in range(20):
        jacobian = torch.autograd.functional.jacobian(lambda x: law.transport(x)[0], z[k])
        assert float(change[k]) == pytest.approx(float(torch.linalg.slogdet(jacobian)[1]), abs=1e-8)


def test_a_new_flow_is_its_base(name):
    if name not in ("realnvp", "autoregressive", "spline", "quadratic"):
        pytest.skip("not a kind of flow")
    phi = gaussian().sample(200, 1)
    for base in (gaussian(), mixture()):
        law = FlowLaw.start(Network(name, 3, (16, 16)), gaussian(), base, 1)
        assert torch.allclose(law.log_prob(phi), base.log_prob(phi), atol=1e-9)


def test_mixture_components_cannot_collapse(name):
    if name != "mixture":
        pytest.skip("about mixtures")
    floor = tensor([[2.0, 0.0], [1.0, 0.1]])
    factor = floored(tensor([[[1e-9, 0.0], [0.0, 1e-9]], [[50.0, 1.0], [1.0, 9.0]]]), floor)
    covariance = factor @ factor.mT
    assert torch.allclose(covariance[0], floor @ floor.mT)
    assert torch.allclose(covariance[1], tensor([[50.0, 1.0], [1.0, 9.0]]))
    phi = torch.zeros(50, 1, 2, dtype=torch.float64)
    law = mixture().update(phi, torch.ones(50, 1, dtype=torch.float64))
    assert np.isfinite(float(law.log_prob(phi).sum()))
