"""nlmeflow.fitting.conditional, nlmeflow.laws.flow.conditional: what follows a covariate is found."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import nlmeflow as nf
from nlmeflow.laws.draws import Folds, PosteriorDraws, TrainingSet
from nlmeflow.laws.flow.conditional import shift_only


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


def test_flows_of_two_folds_start_with_weights_of_their_own():
    phi, x = (torch.from_numpy(np.random.default_rng(1).standard_normal((30, d))) for d in (2, 1))
    training = TrainingSet(PosteriorDraws(phi[:, None], torch.zeros(30, 1).double()), 1)
    first, second = shift_only(training, x, Folds.random(30, 2, 1)).flows
    weights = zip(first.network.layer.parameters(), second.network.layer.parameters(), strict=True)
    assert not all(torch.equal(one, other) for one, other in weights)


@pytest.mark.slow
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


def test_a_covariate_that_is_constant_or_in_the_model_already_is_refused():
    model, data = plants(0.5, n=10)
    same = replace(data, covariates=data.covariates.assign(k=0.1))  # whose computed variance is not zero
    with pytest.raises(nf.ModelError, match="Covariate 'k' is constant"):
        nf.conditional_flow(model, same, on="k")
    moved = replace(model, covariates={"tau": "nitrogen"})
    with pytest.raises(nf.ModelError, match="'nitrogen' moves 'tau' in the model already"):
        nf.conditional_flow(moved, data, on="nitrogen")


@pytest.mark.slow
def test_a_covariate_without_effect_costs_little():
    model, data = plants(0.5, n=100, seed=3)
    found = nf.conditional_flow(model, data, on="nitrogen", seed=1, progress=False)
    assert found.table().loc["conditional", "gain"] > -0.02
    high, low = found.law(nitrogen="high"), found.law(nitrogen="low")
    assert abs(share_early(high) - share_early(low)) < 0.1
