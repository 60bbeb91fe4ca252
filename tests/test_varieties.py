"""nlmeflow.reports.varieties, nlmeflow.reports.findings, nlmeflow.fitting.check: statements and verdicts."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

import nlmeflow as nf


@pytest.fixture(scope="module")
def known():
    return nf.scenarios.load("L2", "M", 100, 3)


@pytest.fixture(scope="module")
def fit(known):
    return known.model.fit(known.data, nf.Mixture(components=2), seed=1)


def test_statements_about_varieties_are_true_as_often_as_they_say(known, fit):
    found = nf.characterise(fit, threshold=50.0)
    table, truth = found.table, known.phi[:, 0].numpy()
    assert found.parameter == "tau"
    held = (table["tau lower"] < truth) & (truth < table["tau upper"])
    assert 0.82 < held.mean() < 0.97  # 90 % limits, 100 varieties
    below = table["P(tau < 50)"]
    assert abs(below.sum() - (truth < 50).sum()) < 3
    assert ((below > 0.5) == (truth < 50)).mean() > 0.95
    ranks = pd.Series(truth).rank().to_numpy()
    inside = (table["rank of tau lower"] <= ranks) & (ranks <= table["rank of tau upper"])
    assert inside.mean() > 0.82
    columns = table[["P(group 1)", "P(group 2)"]]
    np.testing.assert_allclose(columns.sum(axis=1), 1)
    assert found.groups["share"].sum() == pytest.approx(1)


def test_ranks_of_varieties_about_which_nothing_is_known_are_anything(fit):
    wide = nf.characterise(fit.on(fit.data.subset(range(20))))
    alone = wide.table["rank of tau upper"] - wide.table["rank of tau lower"]
    assert alone.median() < 8  # they are known
    frame = fit.data.to_frame().assign(response=np.nan)
    nobody = nf.LongitudinalData.from_frame(frame[:160], "individual", "time", "response")
    blind = nf.characterise(fit.on(nobody)).table
    width = blind["rank of tau upper"] - blind["rank of tau lower"]
    assert width.median() > 15  # of 20


@pytest.mark.slow
def test_groups_of_a_model_with_two_levels_are_characterised():
    random = np.random.default_rng(2)
    level = np.repeat(np.where(np.arange(30) < 12, 0.0, 6.0), 12) + np.repeat(random.normal(0, 0.5, 90), 4)
    frame = pd.DataFrame({"line": np.repeat(np.arange(30), 12), "plant": np.repeat(np.arange(90), 4)})
    frame["t"] = np.tile(np.arange(4.0), 90)
    frame["y"] = level + 0.3 * random.standard_normal(360)
    data = nf.LongitudinalData.from_frame(frame, "plant", "t", "y", group="line")
    curve = nf.Curve(lambda t, psi: psi["level"] + 0 * t, parameters=[nf.Parameter("level")])
    fit = nf.Model(curve, within=("level",)).fit(data, nf.Mixture(components=2))
    found = nf.characterise(fit)
    assert list(found.table.index) == list(range(30))
    assert (found.table["observations"] == 12).all()
    assert found.table.groupby("group").size().tolist() in ([12, 18], [18, 12])
    check = fit.check(folds=3)
    assert check.unit == "line"
    assert len(check.scores) == 30


@pytest.mark.slow
def test_a_verdict_against_the_gaussian_and_one_for_it(known):
    against = known.model.fit(known.data, seed=1, particles=512).check(folds=3, seed=1)
    assert not against.enough
    assert "not enough" in str(against)
    comparison = nf.compare(known.model, known.data, [nf.Gaussian(), nf.Flow()], folds=3, seed=1)
    assert comparison.check().gain == pytest.approx(against.gain, abs=0.05)
    with pytest.raises(nf.ModelError, match="'flow' is not among"):
        nf.compare(known.model, known.data, [nf.Gaussian(), nf.Mixture()], folds=2, seed=1).check()
    one = nf.scenarios.load("L1", "M", 100, 3)
    check = one.model.fit(one.data, seed=1, particles=512).check(folds=3, seed=1)
    assert check.enough
    assert "enough for these data" in check.verdict
    assert check.constant == ()
    assert replace(check, gain=0.06, error=0.04).undecided
    assert "do not decide" in replace(check, gain=0.06, error=0.04).verdict
    assert not replace(check, gain=0.006, error=0.004).undecided  # less than three nats in all
    few = replace(check, gain=0.5, error=0.04, units=5)  # held out together
    assert (few.enough, few.undecided) == (True, True)
    assert "do not decide whether a Gaussian is enough: 5 are held out" in few.verdict


@pytest.mark.slow
def test_a_parameter_that_does_not_vary_is_found_and_held_constant():
    one = nf.scenarios.load("L1", "M", 100, 3)  # its level is the same for all
    model = nf.Model(nf.curves.logistic_senescence())
    fit = model.fit(one.data, seed=1)
    assert fit.unseen() == ("A",)
    check = fit.check(seed=1)
    assert check.enough
    assert "A held constant" in check.verdict
    assert one.model.fit(one.data, seed=1).unseen() == ()


@pytest.mark.slow
def test_with_two_levels_parameters_without_variation_do_not_tell_against_a_gaussian():
    """Gaussian varieties; A and s are the same for all plants. Singular laws, held out, are noisy."""
    random, days, rows = np.random.default_rng(2), np.arange(30.0, 73, 6), []
    for variety in range(20):
        mean = 50 + 4 * random.standard_normal()
        for plant in range(2):
            onset = mean + 2 * random.standard_normal()
            y = 1 / (1 + np.exp((days - onset) / 3)) + 0.04 * random.standard_normal(len(days))
            rows.append(
                pd.DataFrame({"variety": variety, "plant": f"{variety}.{plant}", "day": days, "y": y})
            )
    data = nf.LongitudinalData.from_frame(pd.concat(rows), "plant", "day", "y", group="variety")
    model = nf.Model(nf.curves.logistic_senescence(), within=("tau",))
    fit = model.fit(data, seed=1, particles=128, progress=False)
    assert fit.unseen() == ("A", "s")
    wide = nf.Model(nf.curves.logistic_senescence(), within=("A", "tau", "s"))
    assert sorted(wide.fit(data, seed=1, particles=128, progress=False).unseen()) == ["A", "s"]
    assert fit.check(folds=2, seed=1, progress=False).enough


@pytest.mark.slow
def test_sentences_follow_their_numbers(known, fit):
    data = known.data
    assert "100 individuals" in nf.findings.about_data(data)
    bootstrap = fit.bootstrap(20)
    said = nf.findings.about_groups(fit, bootstrap)
    assert "2 groups" in said
    counts = bootstrap.number_of_groups()
    assert counts.sum() == pytest.approx(1)
    assert f"in {round(20 * counts[2])} of 20" in said
    gaussian = known.model.fit(data)
    assert "one group by its form" in nf.findings.about_groups(gaussian, gaussian.bootstrap(10))
    check = nf.diagnostics.vpc(fit)
    assert "makes data like these" in nf.findings.about_checks(check)
    worse = check.assign(observed=check["upper"] + (check["time"] == check["time"].max()) + 0.1)
    assert "does not make data like these" in nf.findings.about_checks(worse)
    assert f"time {check['time'].max():.4g}" in nf.findings.about_checks(worse)
    frame = pd.DataFrame(
        {"plant": [1, 2, 3], "day": 1.0, "y": 1.0, "block": [1, 2, 3], "soil": ["clay", "sand", "clay"]}
    )
    sown = nf.LongitudinalData.from_frame(frame, "plant", "day", "y", ["block", "soil"])
    said = nf.findings.about_data(sown)
    assert "block is a number, 1 to 3" in said
    assert "such as B1" in said
    assert "soil has 2 levels, compared with clay: sand" in said
    assert "cannot be placed so" in nf.findings.about_varieties(nf.characterise(fit))
    with pytest.raises(nf.ModelError, match="table that"):
        nf.findings.about_checks(pd.DataFrame())
    with pytest.raises(nf.ModelError, match="the table that"):
        nf.findings.about_checks(check.iloc[:0])


def test_figures_of_observations_and_of_varieties(known, fit):
    axes = nf.plots.varieties(fit)
    assert len(axes.patches) == len(known.data)  # an ellipse each
    one = axes.patches[0]
    phi, weights = fit.latent
    mean = (weights[0, :, None] * phi[0]).sum(0)
    np.testing.assert_allclose(one.center, mean[:2], atol=1e-8)
    spread = (weights[0, :, None, None] * torch.einsum("mi,mj->mij", phi[0] - mean, phi[0] - mean)).sum(0)
    area = 2 * np.log(2) * np.pi * float(torch.linalg.det(spread)) ** 0.5  # chi-squared of 2: -2 log(1 - .5)
    assert one.width * one.height * np.pi / 4 == pytest.approx(area, rel=1e-3)
    plt.close("all")
    axes = nf.plots.observations(known.data)
    assert len(axes.lines) == len(known.data) + 1
    plt.close("all")


@pytest.mark.parametrize("apart", [8.0, 12.0, 40.0])
def test_groups_with_nothing_between_them_are_groups(apart):
    means = torch.tensor([[0.0, 0.0], [apart, 0.0]], dtype=torch.float64)
    factors = torch.eye(2, dtype=torch.float64).expand(2, 2, 2)
    floor = 0.1 * torch.eye(2, dtype=torch.float64)
    law = nf.laws.MixtureLaw(torch.tensor([0.3, 0.7], dtype=torch.float64), means, factors, floor)
    found = nf.metrics.modes(law)
    assert [round(mode.mass, 2) for mode in found] == [0.7, 0.3]
    assert float(found[0].place[0] - found[1].place[0]) == pytest.approx(apart, abs=0.06 * apart)


@pytest.mark.slow
def test_equal_values_share_their_rank_whatever_the_order_of_rows():
    random, days = np.random.default_rng(0), np.arange(30.0, 75, 5)
    tau = np.where(np.arange(20) % 2, 45.0, 55.0)
    y = 1 / (1 + np.exp((days - tau[:, None]) / 3)) + random.normal(0, 0.04, (20, 9))
    frame = pd.DataFrame({"plant": np.repeat(range(20), 9), "day": np.tile(days, 20), "y": y.ravel()})
    model = nf.Model(nf.curves.logistic_senescence(), fixed=("A", "s"))
    for rows in (frame, frame[::-1]):
        data = nf.LongitudinalData.from_frame(rows, "plant", "day", "y")
        table = nf.characterise(model.fit(data, nf.NPAG(), seed=1, progress=False)).table.sort_index()
        for column in ("rank of tau", "rank of tau lower", "rank of tau upper"):
            assert (table[column][::2] == 15.5).all()  # one point, the larger


def test_true_and_false_are_groups_and_nobody_is_told_of():
    frame = pd.DataFrame({"plant": [1, 2, 3], "day": 1.0, "y": 1.0, "wet": [True, False, True]})
    data = nf.LongitudinalData.from_frame(frame, "plant", "day", "y", ["wet"])
    assert "wet has 2 levels, compared with False: True" in nf.findings.about_data(data)
    nobody = nf.LongitudinalData.from_frame(frame.assign(y=np.nan), "plant", "day", "y")
    assert nf.findings.about_data(nobody) == "None of the 3 individuals (plant) has an observation of y."
