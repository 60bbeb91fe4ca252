"""nlmeflow.estimation.groups: against linear mixed models with two levels, and a simulation."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
import torch

import nlmeflow as nf
from nlmeflow.reports.diagnostics import npde, npde_tests

BETWEEN = np.array([[1.0, 0.3], [0.3, 0.25]])


def lines(within=(0.6, 0.3), effect=0.0, groups=25, size=4, seed=0):
    """Lines of plants in genotypes: y = (2 + a + b) + (.5 + ...) t + effect treated + N(0, .4^2)."""
    random = np.random.default_rng(seed)
    middle = np.repeat(random.multivariate_normal([2.0, 0.5], BETWEEN, groups), size, axis=0)
    own = middle + random.standard_normal(middle.shape) * within
    treated = random.integers(0, 2, len(own))
    time = np.arange(6) * 0.7
    response = own[:, :1] + effect * treated[:, None] + own[:, 1:] * time
    response = response + 0.4 * random.standard_normal(response.shape)
    plant = np.repeat(np.arange(len(own)), len(time))
    return pd.DataFrame(
        {
            "genotype": [f"g{p // size}" for p in plant],
            "plant": [f"p{p}" for p in plant],
            "treated": treated[plant].astype(float),
            "t": np.tile(time, len(own)),
            "y": response.ravel(),
        }
    )


def read(frame):
    return nf.LongitudinalData.from_frame(frame, "plant", "t", "y", ["treated"], group="genotype")


def two_levels(frame, within=("intercept", "slope"), **more):
    return nf.Model(nf.curves.linear(), within=within, **more).fit(read(frame), seed=1, progress=False)


@pytest.fixture(scope="module")
def fit():
    return two_levels(lines())


@pytest.mark.parametrize("name", ["genotype", "country"])
def test_a_covariate_with_a_level_for_each_group_is_refused(name):
    frame = lines(groups=5).assign(country=lambda f: "in " + f["genotype"])
    data = nf.LongitudinalData.from_frame(frame, "plant", "t", "y", [name], group="genotype")
    model = nf.Model(nf.curves.linear(), within=["slope"], covariates={"slope": name})
    with pytest.raises(
        nf.ModelError, match=f"'{name}' has a level for each group of 'genotype'.* of 'slope'"
    ):
        model.fit(data, seed=1, progress=False)
    fixed = nf.Model(nf.curves.linear(), fixed=["slope"], within=["intercept"], covariates={"slope": name})
    assert len(fixed.problem(data).individuals.effects) == 4


def test_a_linear_model_agrees_with_statsmodels(fit):
    parts = {"a": "0 + C(plant)", "b": "0 + C(plant):t"}
    exact = smf.mixedlm("y ~ t", lines(), groups="genotype", re_formula="~t", vc_formula=parts)
    exact = exact.fit(reml=False)
    value = fit.log_likelihood()
    assert abs(value.value - exact.llf) < max(4 * value.error, 0.1)
    assert np.allclose(fit.law.mean, exact.fe_params, atol=0.01)
    assert np.allclose(fit.law.covariance, exact.cov_re, atol=0.02)
    assert np.allclose(list(fit.within.values()), np.sqrt(exact.vcomp), rtol=0.02)
    assert fit.residual["sigma"] == pytest.approx(np.sqrt(exact.scale), rel=0.01)
    errors = fit.standard_errors()["standard error"]
    assert errors[("mean", "intercept")] == pytest.approx(exact.bse["Intercept"], rel=0.03)
    assert errors[("mean", "slope")] == pytest.approx(exact.bse["t"], rel=0.03)


@pytest.mark.slow
def test_one_parameter_may_vary_within_groups_and_a_covariate_between_individuals():
    frame = lines(within=(0.6, 0.0), effect=0.8, seed=5)
    found = two_levels(frame, within="intercept", covariates={"intercept": "treated"})
    model = smf.mixedlm(
        "y ~ t + treated", frame, groups="genotype", re_formula="~t", vc_formula={"a": "0 + C(plant)"}
    )
    exact = model.fit(reml=False)
    assert abs(found.log_likelihood().value - exact.llf) < 0.25
    assert found.covariate_effects["intercept: treated"] == pytest.approx(
        exact.fe_params["treated"], abs=0.02
    )
    assert found.within["intercept"] == pytest.approx(float(np.sqrt(exact.vcomp[0])), rel=0.03)
    assert float(found.law.sd[1]) == pytest.approx(float(np.sqrt(exact.cov_re.iloc[1, 1])), rel=0.03)


def test_conditional_means_are_those_of_the_linear_model(fit):
    frame, law = lines(), fit.law
    group = frame[frame["genotype"] == "g3"]
    plants = pd.factorize(group["plant"])[0]
    design = np.column_stack([np.ones(len(group)), group["t"]])
    own = np.kron(np.eye(plants.max() + 1), np.ones((2, 1)))
    own = np.stack([design[:, k] * (plants == p) for p in range(plants.max() + 1) for k in range(2)], 1)
    inside = np.tile(list(fit.within.values()), plants.max() + 1) ** 2
    between = law.covariance.numpy()
    total = design @ between @ design.T + own * inside @ own.T
    total += fit.residual["sigma"] ** 2 * np.eye(len(group))
    left = np.linalg.solve(total, group["y"].to_numpy() - design @ law.mean.numpy())
    expected = law.mean.numpy() + between @ design.T @ left
    row = fit.groups().loc["g3"]
    assert np.allclose(row[["intercept_mean", "slope_mean"]].astype(float), expected, atol=0.03)
    deviations = (own * inside).T @ left
    first = fit.individuals().loc[group["plant"].iloc[0], ["intercept_mean", "slope_mean"]]
    assert np.allclose(first.astype(float), expected + deviations[:2], atol=0.03)


def test_new_groups_are_scored_with_their_individuals(fit):
    some = read(lines()).subset(range(8))
    assert fit.scores(some).total == pytest.approx(float(fit.marginal.values[:2].sum()), abs=0.1)


def test_errors_of_prediction_are_standard_normal(fit):
    assert (npde_tests(npde(fit, 400)) > 0.01).all()


def test_saved_and_read(fit, tmp_path):
    fit.save(tmp_path / "fit")
    again = nf.load(tmp_path / "fit")
    assert again.within == fit.within
    assert again.log_likelihood().value == fit.log_likelihood().value
    assert "intercept within" in str(again.summary())


@pytest.mark.slow
def test_a_mixture_of_groups_is_found_behind_variation_within():
    random = np.random.default_rng(3)
    late = random.random(40) < 0.5
    tau = np.repeat(np.where(late, 56.0, 46.0) + 1.5 * random.standard_normal(40), 4)
    tau += 2.0 * random.standard_normal(160)
    days = np.arange(30.0, 76.0, 6.0)
    seen = 1 / (1 + np.exp((days - tau[:, None]) / 3)) + 0.05 * random.standard_normal((160, len(days)))
    plant = np.repeat(np.arange(160), len(days))
    frame = pd.DataFrame({"plant": plant, "genotype": plant // 4, "day": np.tile(days, 160)})
    data = nf.LongitudinalData.from_frame(frame.assign(y=seen.ravel()), "plant", "day", "y", group="genotype")
    curve = nf.Curve(
        lambda t, psi: 1 / (1 + torch.exp((t - psi["tau"]) / psi["s"])),
        [nf.Parameter("tau"), nf.Parameter("s", transform="log")],
    )
    model = nf.Model(curve, fixed="s", within="tau")
    table = nf.compare(model, data, [nf.Gaussian(), nf.Mixture()], seed=1, progress=False)
    assert len(table.scores) == 40
    assert table.table().loc["mixture", "gain"] > 0
    found = table.fits["mixture"]
    assert found.within["tau"] == pytest.approx(2.0, rel=0.15)
    density = found.law.log_prob(torch.tensor([[46.0], [51.0], [56.0]], dtype=torch.float64))
    assert min(density[0], density[2]) > density[1] + 1


@pytest.mark.slow
def test_a_flow_of_groups_agrees_with_the_gaussian_on_gaussian_groups(fit):
    flow = fit.model.fit(fit.data, nf.Flow(steps=30, hidden=(8,), folds=3), seed=1, progress=False)
    assert flow.converged
    assert flow.residual["sigma"] == pytest.approx(fit.residual["sigma"], rel=0.01)
    assert list(flow.within.values()) == pytest.approx(list(fit.within.values()), rel=0.1)
    assert flow.log_likelihood().value == pytest.approx(fit.log_likelihood().value, abs=3)


@pytest.mark.slow
def test_covariates_of_plants_and_of_genotypes_do_not_call_the_curve():
    frame = lines(effect=0.8, seed=5)
    frame["site"] = (frame["genotype"].str[1:].astype(int) % 2).astype(float)
    frame["y"] += 0.5 * frame["site"]
    data = nf.LongitudinalData.from_frame(frame, "plant", "t", "y", ["treated", "site"], group="genotype")
    calls = []

    def line(t, psi):
        calls.append(1)
        return psi["intercept"] + psi["slope"] * t

    curve = nf.Curve(line, [nf.Parameter("intercept"), nf.Parameter("slope")])
    effects = {"intercept": "treated + site", "slope": "treated"}
    model = nf.Model(curve, within=("intercept", "slope"), covariates=effects)
    problem = model.problem(data)
    assert problem.through == 0
    assert problem.between.tolist() == [effect.variable == "site" for effect in problem.effects]
    found = model.fit(data, seed=1, progress=False)
    assert found.converged
    assert len(calls) < 400  # a fit that calls it at every step of an ascent makes some thousands
    parts = {"a": "0 + C(plant)", "b": "0 + C(plant):t"}
    exact = smf.mixedlm(
        "y ~ t + treated + site + t:treated", frame, groups="genotype", re_formula="~t", vc_formula=parts
    ).fit(reml=False)
    value = found.log_likelihood()
    assert abs(value.value - exact.llf) < max(4 * value.error, 0.2)
    names = {"intercept: treated": "treated", "intercept: site": "site", "slope: treated": "t:treated"}
    tables = {
        "information": found.standard_errors(),
        "bootstrap": found.bootstrap(200, progress=False).parameters(),
    }
    for mine, theirs in names.items():
        own = found.covariate_effects[mine]
        assert own == pytest.approx(exact.fe_params[theirs], abs=0.15 * exact.bse[theirs]), mine
        error = {key: table.loc[("effect", mine), "standard error"] for key, table in tables.items()}
        assert error["information"] == pytest.approx(exact.bse[theirs], rel=0.05), mine
        assert error["bootstrap"] == pytest.approx(exact.bse[theirs], rel=0.3), mine


@pytest.mark.slow
def test_points_may_be_the_law_of_groups(fit):
    law = nf.NPML(tolerance=None, points=50)
    table = nf.compare(fit.model, fit.data, [nf.Gaussian(), law], folds=5, seed=1, progress=False)
    points = table.fits["npml"]
    assert points.converged
    assert len(points.law.weights) <= 25
    assert points.marginal.total > table.fits["gaussian"].marginal.total
    assert np.isfinite(table.scores.to_numpy()).all()
    assert table.table().loc["npml", "gain"] < 0  # groups held out lie between the points
    assert 0 < points.certificate().bound < 100
    with pytest.raises(nf.ModelError, match="no certificate of a law with a density"):
        fit.certificate()


def test_what_cannot_be_fitted_is_refused():
    frame = lines(groups=4)
    plain = nf.LongitudinalData.from_frame(frame, "plant", "t", "y")
    model = nf.Model(nf.curves.linear(), within="slope")
    with pytest.raises(nf.ModelError, match="the data have none: name the column of groups"):
        model.fit(plain)
    alone = nf.LongitudinalData.from_frame(frame, "plant", "t", "y", group="plant")
    with pytest.raises(nf.ModelError, match="No group of 'plant' has two individuals"):
        model.fit(alone)
    with pytest.raises(nf.ModelError, match="A model with two levels is fitted with"):
        model.fit(read(frame), nf.NPML())
    with pytest.raises(nf.ModelError, match="'slope', which is fixed"):
        nf.Model(nf.curves.linear(), fixed="slope", within="slope")
    frame.loc[0, "genotype"] = "g1"
    with pytest.raises(nf.DataError, match="Individual 'p0' stands in groups 'g1' and 'g0'"):
        read(frame)
