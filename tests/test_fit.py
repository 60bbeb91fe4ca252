"""nlmeflow.fitting.model, .fit, .tables, .comparison: fits, what they tell, what is refused by name."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import senescence_frame

import nlmeflow as nf


@pytest.mark.slow
def test_same_seed_same_numbers(model, senescence, gaussian_fit, flow_fit):
    again = model.fit(senescence, seed=1, progress=False)
    assert torch.equal(again.law.mean, gaussian_fit.law.mean)
    assert again.log_likelihood() == gaussian_fit.log_likelihood()
    flow = model.fit(senescence, law=flow_fit.specification, seed=1, progress=False)
    phi = flow.law.sample(50, 1)
    assert torch.equal(flow.law.log_prob(phi), flow_fit.law.log_prob(phi))


@pytest.mark.slow
def test_fits_of_one_task_are_those_of_single_fits(model, senescence, gaussian_fit, mixture_fit):
    both = model.fit_laws(senescence, {"g": nf.Gaussian(), "m": nf.Mixture(2)}, seed=1, progress=False)
    assert torch.equal(both["g"].law.mean, gaussian_fit.law.mean)
    assert torch.equal(both["m"].law.means, mixture_fit.law.means)


def test_the_simulation_is_recovered(gaussian_fit, mixture_fit):
    assert gaussian_fit.converged
    assert gaussian_fit.fixed["A"] == pytest.approx(1.0, abs=0.02)
    assert gaussian_fit.residual["sigma"] == pytest.approx(0.04, rel=0.15)
    means = mixture_fit.law.means[mixture_fit.law.means[:, 0].argsort()]
    assert torch.allclose(means[:, 0], torch.tensor([46.0, 55.0]).double(), atol=1.5)
    assert mixture_fit.log_likelihood().value > gaussian_fit.log_likelihood().value


def test_rescaling_changes_nothing_but_the_units(gaussian_fit):
    frame = senescence_frame()
    frame["day"] *= 1e-3
    frame["greenness"] *= 1e4
    data = nf.LongitudinalData.from_frame(frame, "plant", "day", "greenness")
    fit = nf.Model(nf.curves.logistic_senescence(), fixed=("A",)).fit(data, seed=1, progress=False)
    assert fit.fixed["A"] == pytest.approx(1e4 * gaussian_fit.fixed["A"], rel=1e-3)
    assert float(fit.law.mean[0]) == pytest.approx(1e-3 * float(gaussian_fit.law.mean[0]), rel=1e-3)
    assert float(fit.law.sd[0]) == pytest.approx(1e-3 * float(gaussian_fit.law.sd[0]), rel=1e-2)
    shift = -np.log(1e4) * data.n_observations
    expected = gaussian_fit.log_likelihood().value + shift
    assert fit.log_likelihood().value == pytest.approx(expected, abs=0.1)


def test_order_of_rows_does_not_matter(gaussian_fit, model):
    frame = senescence_frame().sample(frac=1, random_state=1)
    frame["plant"] = pd.Categorical(frame["plant"], categories=[f"p{i}" for i in range(100)])
    data = nf.LongitudinalData.from_frame(frame.sort_values("plant"), "plant", "day", "greenness")
    fit = model.fit(data, seed=1, progress=False)
    assert fit.log_likelihood().value == pytest.approx(gaussian_fit.log_likelihood().value, abs=1e-6)


def test_individuals_are_posterior_summaries(gaussian_fit):
    """For two parameters the conditional mean and sd agree with quadrature on a fine grid."""
    frame = gaussian_fit.individuals()
    problem = gaussian_fit.model.problem(gaussian_fit.data.subset([3]))
    row = frame.iloc[3]
    axes = [
        torch.linspace(row[f"{k}_mean"] - 8 * row[f"{k}_sd"], row[f"{k}_mean"] + 8 * row[f"{k}_sd"], 401)
        for k in ("tau", "s")
    ]
    phi = torch.cartesian_prod(*axes).double()
    log_joint = problem.log_likelihood(phi[None], gaussian_fit.beta, gaussian_fit.sigma)[0]
    log_joint = log_joint + gaussian_fit.law.log_prob(phi)
    weights = log_joint.softmax(0)
    mean = weights @ phi
    sd = (weights @ (phi - mean).square()).sqrt()
    assert row["tau_mean"] == pytest.approx(float(mean[0]), abs=0.02 * float(sd[0]))
    assert row["s_sd"] == pytest.approx(float(sd[1]), rel=0.02)
    best = phi[log_joint.argmax()]
    assert row["tau_mode"] == pytest.approx(float(best[0]), abs=0.05 * float(sd[0]))
    assert row["s_mode"] == pytest.approx(float(best[1]), abs=0.05 * float(sd[1]))
    natural = gaussian_fit.individuals("natural").iloc[3]
    assert natural["s_mean"] == pytest.approx(float(weights @ phi[:, 1].exp()), rel=0.01)
    assert natural["s_mode"] == pytest.approx(np.exp(row["s_mode"]))


def test_modes_are_at_least_as_likely_as_any_particle(mixture_fit):
    problem = mixture_fit.model.problem(mixture_fit.data)
    frame = mixture_fit.individuals()
    mode = torch.tensor(frame[["tau_mode", "s_mode"]].to_numpy())[:, None]

    def value(phi):
        return problem.log_likelihood(phi, mixture_fit.beta, mixture_fit.sigma) + mixture_fit.law.log_prob(
            phi
        )

    particles, _ = mixture_fit.conditional
    assert bool((value(mode)[:, 0] >= value(particles).max(1).values - 1e-6).all())


def test_scores_of_the_fitted_data_are_its_log_likelihood(gaussian_fit, senescence):
    scores = gaussian_fit.scores(senescence)
    estimate = gaussian_fit.log_likelihood()
    assert scores.total == pytest.approx(estimate.value, abs=5 * (scores.error + estimate.error))
    assert gaussian_fit.log_likelihood(senescence.subset(range(5))).value == pytest.approx(
        float(scores.values[:5].sum()), abs=0.05
    )


def test_summary_says_what_is_asked_first(gaussian_fit):
    text = str(gaussian_fit.summary())
    for word in ("tau", "days", "sigma", "log-likelihood", "±", "AIC", "BIC", "effective particles"):
        assert word in text
    assert "converged" in gaussian_fit.summary()._repr_html_()


@pytest.mark.slow
def test_weights_of_a_network_are_not_counted(flow_fit):
    assert "BIC" not in str(flow_fit.summary())
    with pytest.raises(nf.ModelError, match="compare"):
        flow_fit.criteria()


def test_residual_parameters_may_be_given(senescence, gaussian_fit):
    """A sigma above the one simulated is kept, and explains part of the spread between individuals."""
    model = nf.Model(nf.curves.logistic_senescence(), nf.Additive(sigma=0.05), fixed=("A",))
    given = model.fit(senescence, seed=1, progress=False)
    assert given.residual["sigma"] == pytest.approx(0.05, rel=1e-12)
    assert gaussian_fit.residual["sigma"] == pytest.approx(0.04, rel=0.15)
    assert given.n_parameters == gaussian_fit.n_parameters - 1
    assert bool((given.law.sd < gaussian_fit.law.sd).all())
    assert given.log_likelihood().value < gaussian_fit.log_likelihood().value - 20


@pytest.mark.parametrize(
    "residual",
    [nf.Proportional(), nf.LogAdditive(), pytest.param(nf.Combined(), marks=pytest.mark.slow)],
)
def test_other_error_models_recover_their_parameters(residual):
    law = nf.laws.GaussianLaw(torch.tensor([0.5, 1.0, 3.4]).double(), torch.eye(3).double() * 0.2)
    sigma = [0.2, 0.1] if isinstance(residual, nf.Combined) else 0.1
    model = nf.Model(nf.curves.oral(100.0), residual)
    data, _ = model.simulate(law, [0.25, 0.5, 1, 2, 4, 6, 9, 12, 18, 24], 60, 3, sigma)
    fit = model.fit(data, law=nf.Gaussian("diagonal"), seed=1, progress=False)
    assert list(fit.residual.values()) == pytest.approx(np.atleast_1d(sigma).tolist(), rel=0.25)
    assert torch.allclose(fit.law.mean, law.mean, atol=0.12)


def test_a_hidden_start_is_found_without_help():
    """First values come from the data alone, for every curve of the library that has no covariate."""
    random = np.random.default_rng(2)
    times = np.linspace(0.2, 9, 12)
    y = np.exp(-np.exp((4.0 + 0.3 * random.standard_normal(30)[:, None] - times) / 1.5)) * 7
    frame = pd.DataFrame({"i": np.repeat(range(30), 12), "t": np.tile(times, 30), "y": y.ravel()})
    frame["y"] += 0.1 * random.standard_normal(len(frame))
    data = nf.LongitudinalData.from_frame(frame, "i", "t", "y")
    fit = nf.Model(nf.curves.gompertz(), fixed=("A", "s")).fit(data, progress=False)
    assert float(fit.law.mean[0]) == pytest.approx(4.0, abs=0.2)
    assert fit.fixed["s"] == pytest.approx(1.5, rel=0.05)


def bad(function, parameters=None, **options):
    parameters = parameters or [nf.Parameter("a", "log"), nf.Parameter("b")]
    return nf.Model(nf.Curve(function, parameters), **options)


def test_bad_requests_are_refused_by_name(senescence, model):
    def fails(error, words, call):
        with pytest.raises(error) as caught:
            call()
        for word in words:
            assert word in str(caught.value)

    one_each = senescence_frame().groupby("plant").head(1)
    single = nf.LongitudinalData.from_frame(one_each, "plant", "day", "greenness")
    fails(nf.ModelError, ["at most 1 observation", "tau, s", "Additive(sigma="], lambda: model.fit(single))
    fails(nf.ModelError, ["No parameter 'B'", "A, tau, s"], lambda: nf.Model(model.curve, fixed=("B",)))
    fails(nf.ModelError, ["'taw'", "A, tau, s"], lambda: model.fit(senescence, start={"taw": 1.0}))
    fails(nf.ModelError, ["s = -2", "(0, inf)"], lambda: model.fit(senescence, start={"s": -2.0}))
    fails(nf.ModelError, ["not the specification"], lambda: model.fit(senescence, law="flow"))
    fails(ValueError, ["seed", "-1"], lambda: model.fit(senescence, seed=-1))
    fails(nf.ModelError, ["particles is a whole number from 64"], lambda: model.fit(senescence, particles=3))
    fails(
        nf.ModelError,
        ["Every parameter is fixed"],
        lambda: nf.Model(model.curve, fixed=["A", "tau", "s"]).fit(senescence),
    )
    fails(nf.ModelError, ["two individuals"], lambda: model.fit(senescence.subset([0])))
    fails(nf.ModelError, ["residual"], lambda: nf.Model(model.curve, residual="additive"))
    fails(nf.ModelError, ["nf.Curve"], lambda: nf.Model("logistic"))
    nan = bad(lambda t, psi: t * psi["a"] * torch.nan + psi["b"])
    fails(nf.EstimationError, ["no finite prediction", "a = ", "b = "], lambda: nan.fit(senescence))
    flat = bad(lambda t, psi: psi["a"] * t + 0 * psi["b"])
    fails(nf.EstimationError, ["'b' does not move the curve"], lambda: flat.fit(senescence, progress=False))
    fails(nf.ModelError, ["float, not a torch tensor"], lambda: bad(lambda t, psi: 1.0))
    dose = nf.Model(nf.curves.oral("dose"))
    fails(nf.ModelError, ["covariate 'dose'", "covariates=['dose']"], lambda: dose.fit(senescence))


@pytest.mark.slow
def test_comparison_is_paired_and_grouped(model):
    frame = senescence_frame(60, seed=3)
    frame["line"] = "l" + (frame["plant"].str[1:].astype(int) % 12).astype(str)
    data = nf.LongitudinalData.from_frame(frame, "plant", "day", "greenness", covariates=["line"])
    result = nf.compare(
        model, data, [nf.Gaussian(), nf.Mixture(2)], folds=3, seed=1, groups="line", progress=False
    )
    table = result.table()
    assert table.loc["gaussian", "gain"] == 0
    assert table.loc["mixture", "gain"] > table.loc["mixture", "standard error"] > 0
    gain = result.scores["mixture"] - result.scores["gaussian"]
    assert table.loc["mixture", "gain"] == pytest.approx(gain.mean())
    assert sum(result.weights.values()) == pytest.approx(1.0)
    assert result.weights["mixture"] > 0.7
    assert set(result.fits) == {"gaussian", "mixture"}
    assert np.isfinite(float(result.stacked.log_prob(result.stacked.sample(5, 1)).sum()))
    with pytest.raises(nf.ModelError, match="No covariate 'lines'"):
        nf.compare(model, data, [nf.Gaussian()], groups="lines")
    with pytest.raises(nf.ModelError, match="called 'gaussian'; give them names"):
        nf.compare(model, data, [nf.Gaussian(), nf.Gaussian("diagonal")])
    with pytest.raises(nf.ModelError, match="is a whole number from 2 to 60, got 99"):
        nf.compare(model, data, [nf.Gaussian()], folds=99)
    with pytest.raises(nf.ModelError, match="at least one law with a density"):
        nf.compare(model, data, [nf.NPML()])


@pytest.mark.slow
def test_laws_of_one_kind_are_compared_by_name(model):
    data = nf.LongitudinalData.from_frame(senescence_frame(12, seed=3), "plant", "day", "greenness")
    laws = {"diagonal": nf.Gaussian("diagonal"), "full": nf.Gaussian}
    result = nf.compare(model, data, laws, folds=2, seed=1, progress=False)
    assert list(result.scores) == list(result.table().index) == ["diagonal", "full"]
    assert result.table().loc["diagonal", "gain"] == 0  # the first, where none is called "gaussian"
    assert result.fits["diagonal"].specification.covariance == "diagonal"


def test_specifications_check_themselves():
    for make, word in [
        (lambda: nf.Gaussian("diag"), "'diag'"),
        (lambda: nf.Mixture(0), "components"),
        (lambda: nf.Mixture(floor=2.0), "floor"),
        (lambda: nf.Flow(kind="realvnp"), "'realvnp'"),
        (lambda: nf.Flow(base="student"), "'student'"),
        (lambda: nf.Flow(folds=1), "folds"),
        (lambda: nf.Flow(kind=[]), "got none"),
        (lambda: nf.Flow(stiffness=0.0), "stiffness"),
        (lambda: nf.Flow(prior=-1.0), "prior"),
        (lambda: nf.Flow(layers=0), "layers"),
    ]:
        with pytest.raises(nf.ModelError, match=word):
            make()
    assert dataclasses.asdict(nf.Flow())["base"] is None


@pytest.mark.slow
def test_estimates_and_their_errors_stay_those_of_the_individuals_fitted(gaussian_fit, tmp_path):
    few = gaussian_fit.on(gaussian_fit.data.subset(range(12)))
    again = few.on(gaussian_fit.data.subset(range(50)))
    expected = gaussian_fit.standard_errors()
    for other in (few, again):
        pd.testing.assert_frame_equal(other.standard_errors(), expected)
        ours, theirs = other.summary().parameters, gaussian_fit.summary().parameters
        pd.testing.assert_frame_equal(ours[["mean", "s.e.", "sd"]], theirs[["mean", "s.e.", "sd"]])
        assert "AIC" not in other.summary().numbers
    replicates = [one.bootstrap(replicates=10).parameters() for one in (few, gaussian_fit)]
    pd.testing.assert_frame_equal(*replicates)
    for refused in (few.criteria, few.check, lambda: few.save(tmp_path / "fit")):
        with pytest.raises(nf.ModelError, match=r"data"):
            refused()


@pytest.mark.slow
@pytest.mark.parametrize(("n", "correlation", "seed"), [(15, 0.5, 1), (15, 0.9, 3), (30, 0.9, 1)])
def test_few_individuals_of_whom_little_is_known_are_predicted_as_well_by_one_gaussian_as_by_another(
    n, correlation, seed
):
    """On 64 draws of each the likeliest Gaussian was a line with one draw of everybody near it.

    Those held out had none there: a mixture of one component was better by 43 to 342 nats for each, or no law
    but the Gaussian could be fitted.
    """
    random, rows = np.random.default_rng(seed), []
    covariance = np.array([[1, 0.4 * correlation], [0.4 * correlation, 0.16]])
    for who in range(n):
        day = np.sort(random.choice(np.arange(8.0), 3, replace=False))
        intercept, slope = random.multivariate_normal([3, 1], covariance)
        y = intercept + slope * day + random.normal(size=3)
        rows.append(pd.DataFrame({"plant": who, "day": day, "y": y}))
    data = nf.LongitudinalData.from_frame(pd.concat(rows), "plant", "day", "y")
    model = nf.Model(nf.curves.linear())
    for start in (1, 2, 3):
        comparison = nf.compare(
            model, data, [nf.Gaussian(), nf.Mixture(components=1)], seed=start, progress=False
        )
        assert abs(comparison.table()["gain"]).max() < 0.6


def test_new_data_of_a_size_that_no_fit_takes_are_refused_too(gaussian_fit):
    frame = senescence_frame(n=2)
    new = nf.LongitudinalData.from_frame(frame.assign(greenness=1e160), "plant", "day", "greenness")
    for ask in (gaussian_fit.on, gaussian_fit.log_likelihood):
        with pytest.raises(nf.ModelError, match="give greenness in a unit in which its largest size"):
            ask(new)
