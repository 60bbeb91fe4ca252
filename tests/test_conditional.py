"""Laws whose shape follows a covariate: they integrate to one, and find what was simulated."""

import numpy as np
import pandas as pd
import pytest
import torch

import nlmeflow as nf
from nlmeflow.laws.flow.conditional import ConditionalFlow, GivenLaw
from nlmeflow.laws.gaussian import GaussianLaw
from nlmeflow.laws.mixture import MixtureLaw
from nlmeflow.seeds import generator


def some_law(dim, seed=0):
    """A conditional flow with weights far from the identity."""
    random = generator(seed)
    identity = torch.eye(dim, dtype=torch.float64)
    means = torch.randn(2, dim, generator=random, dtype=torch.float64)
    base = MixtureLaw(torch.tensor([0.3, 0.7]).double(), means, 0.6 * identity.expand(2, -1, -1), identity)
    gaussian = GaussianLaw(torch.ones(dim).double(), 1.5 * identity)
    flow = ConditionalFlow(gaussian, torch.full((dim, 2), 0.4).double(), base, (8,), random)
    with torch.no_grad():
        for weight in flow.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=random, dtype=torch.float64))
    flow.requires_grad_(False)
    return GivenLaw(flow, torch.tensor([0.5, -1.0], dtype=torch.float64))


def test_it_integrates_to_one_at_a_value_of_the_covariates():
    grid = torch.linspace(-14, 16, 400, dtype=torch.float64)
    cell = float(grid[1] - grid[0])
    assert float(some_law(1).log_prob(grid[:, None]).exp().sum()) * cell == pytest.approx(1, abs=2e-3)
    points = torch.cartesian_prod(grid, grid)
    assert float(some_law(2).log_prob(points).exp().sum()) * cell**2 == pytest.approx(1, abs=2e-3)


def test_it_samples_what_it_scores():
    law, grid = some_law(1), torch.linspace(-14, 16, 3000, dtype=torch.float64)
    cumulated = law.log_prob(grid[:, None]).exp().cumsum(0) * float(grid[1] - grid[0])
    drawn = law.sample(20_000, 1)[:, 0]
    for level in (0.1, 0.5, 0.9):
        place = grid[int((cumulated < level).sum())]
        assert float((drawn < place).double().mean()) == pytest.approx(level, abs=0.012)


def plants(share_high, n=150, seed=0):
    """Two groups of onset, 46 and 55; the early one has share_high under "high" and 1/2 under "low"."""
    random = np.random.default_rng(seed)
    high = random.random(n) < 0.5
    early = random.random(n) < np.where(high, share_high, 1 - share_high)
    tau = np.where(early, 46 + 1.5 * random.standard_normal(n), 55 + 2 * random.standard_normal(n))
    phi = torch.from_numpy(np.column_stack([tau, 1.1 + 0.2 * random.standard_normal(n)]))
    model = nf.Model(
        nf.Curve(
            lambda t, psi: 1 / (1 + torch.exp((t - psi["tau"]) / psi["s"])),
            [nf.Parameter("tau"), nf.Parameter("s", transform="log")],
        )
    )
    time = torch.arange(30.0, 75.0, 5.0, dtype=torch.float64).expand(n, -1)
    noise = torch.from_numpy(0.04 * random.standard_normal(time.shape))
    about = pd.DataFrame({"nitrogen": np.where(high, "high", "low")})
    return model, nf.LongitudinalData.regular(time, model.mean_response(phi, time) + noise, about)


def share_early(law):
    return float((law.sample(4000, 0)[:, 0] < 50.5).double().mean())


def test_shares_of_two_strategies_that_follow_a_treatment_are_found():
    model, data = plants(0.85)
    found = nf.conditional_flow(model, data, on="nitrogen", seed=1, progress=False)
    high, low = found.law(nitrogen="high"), found.law(nitrogen="low")
    assert share_early(high) == pytest.approx(0.85, abs=0.1)
    assert share_early(low) == pytest.approx(0.15, abs=0.1)
    gain = found.table().loc["conditional"]
    assert gain["gain"] > 2 * gain["standard error"]
    middle = torch.tensor([[46.0, 1.1], [50.5, 1.1], [55.0, 1.1]], dtype=torch.float64)
    assert high.log_prob(middle)[1] < high.log_prob(middle)[0] - 1  # the valley stays
    with pytest.raises(nf.ModelError, match="'nitrogen' is one of high, low; got 'none'"):
        found.law(nitrogen="none")
    with pytest.raises(nf.ModelError, match="Give a value of nitrogen; got age"):
        found.law(age=3)


def test_a_covariate_without_effect_costs_little():
    model, data = plants(0.5, n=100, seed=3)
    found = nf.conditional_flow(model, data, on="nitrogen", seed=1, progress=False)
    assert found.table().loc["conditional", "gain"] > -0.02
    high, low = found.law(nitrogen="high"), found.law(nitrogen="low")
    assert abs(share_early(high) - share_early(low)) < 0.1
