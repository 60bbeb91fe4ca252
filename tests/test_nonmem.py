"""nlmeflow.data.nonmem: events, several doses, infusions, censoring, and what is refused by name."""

import numpy as np
import pandas as pd
import pytest
import torch

import nlmeflow as nf

KA, CL, V = 1.2, 2.5, 30.0


def oral(t, dose):
    """One compartment, first-order absorption; zero before the dose."""
    k = CL / V
    t = np.clip(t, 0, None)
    return dose * KA / (V * (KA - k)) * (np.exp(-k * t) - np.exp(-KA * t))


def table(doses, times, n=3, **columns):
    """Return n subjects with the same doses, dicts of columns, and observations 1, 2, ..."""
    rows = [{"TIME": 0.0, "DV": ".", "EVID": 1, **dose} for dose in doses]
    rows += [{"TIME": t, "DV": 1.0 + k, "AMT": 0, "EVID": 0, **columns} for k, t in enumerate(times)]
    frame = pd.concat([pd.DataFrame(rows).assign(ID=f"s{i}") for i in range(n)])
    return frame.sort_values(["ID", "TIME"], kind="stable").reset_index(drop=True)


def predicted(data, curve, **psi):
    """Return the curve at the data's times for one vector of natural parameters."""
    model = nf.Model(curve)
    phi = torch.tensor([[np.log(psi[name]) for name in curve.names]] * len(data), dtype=torch.float64)
    return model.problem(data).predict(phi, torch.zeros(0, dtype=torch.float64))[0].numpy()


def test_several_doses_are_superposed():
    times = np.array([0.0, 1, 5, 9, 13, 30])
    data = nf.read_nonmem(table([{"AMT": 100}, {"AMT": 50, "TIME": 8.0}], times))
    found = predicted(data, nf.curves.oral("AMT"), ka=KA, CL=CL, V=V)
    assert found == pytest.approx(oral(times, 100) + oral(times - 8, 50))


def test_additional_doses_follow_at_their_interval():
    times = np.arange(1.0, 40, 3)
    data = nf.read_nonmem(table([{"AMT": 100, "ADDL": 3, "II": 6}], times))
    expected = sum(oral(times - 6 * k, 100) for k in range(4))
    assert predicted(data, nf.curves.oral("AMT"), ka=KA, CL=CL, V=V) == pytest.approx(expected)


@pytest.mark.parametrize("how", [{"RATE": 50.0}, {"TINF": 2.0}])
def test_infusions_by_rate_or_duration(how):
    times = np.array([0.5, 1, 2, 4, 10])
    data = nf.read_nonmem(table([{"AMT": 100, **how}], times))
    found = predicted(data, nf.curves.infusion("AMT", "TINF"), ke=0.1, V=V)
    during = 1 - np.exp(-0.1 * np.minimum(times, 2))
    expected = 100 / (2 * 0.1 * V) * during * np.exp(-0.1 * np.clip(times - 2, 0, None))
    assert found == pytest.approx(expected)


def test_a_curve_that_cannot_take_the_doses_is_refused():
    data = nf.read_nonmem(table([{"AMT": 100, "RATE": 50.0}], [1.0, 2, 3]))
    with pytest.raises(nf.ModelError, match="have infusions; take"):
        nf.Model(nf.curves.oral("AMT")).problem(data)
    several = nf.read_nonmem(table([{"AMT": 100, "ADDL": 1, "II": 6}], [1.0, 2, 3]))
    with pytest.raises(nf.ModelError, match="take a curve that superposes them"):
        nf.Model(nf.curves.logistic_growth()).problem(several)
    with pytest.raises(nf.ModelError, match="a dose of the data has no RATE or TINF"):
        nf.Model(nf.curves.infusion("AMT", "TINF")).problem(several)


def test_rows_that_are_no_observations_are_left_out():
    plain = table([{"AMT": 100}], [1.0, 2, 3])
    grid = plain[plain["EVID"] == 0].assign(TIME=lambda x: x["TIME"] + 0.5, EVID=2, DV=0.0)
    missing = plain[plain["EVID"] == 0].assign(TIME=lambda x: x["TIME"] + 0.25, MDV=1)
    data = nf.read_nonmem(pd.concat([plain, grid, missing]))
    assert data.n_observations == 9
    assert data.time[0].tolist() == [1, 2, 3]


def test_censoring_columns_give_bounds():
    frame = table([{"AMT": 100}], [1.0, 2, 3, 4])
    seen = frame["EVID"] == 0
    frame["CENS"] = np.where(seen, frame["TIME"].map({1: 1, 2: 1, 3: -1}).fillna(0), 0)
    frame["LIMIT"] = np.where(frame["TIME"] == 2, 0.5, np.nan)
    data = nf.read_nonmem(frame)
    low, high = (side[0].tolist() for side in data.bounds)
    assert low == [-np.inf, 0.5, 3.0, -np.inf]
    assert high == [1.0, 2.0, np.inf, np.inf]


@pytest.mark.slow
def test_fits_of_several_doses_find_the_truth():
    random = np.random.default_rng(1)
    times = np.array([0.5, 2, 5, 7, 8.5, 10, 13, 20, 30])
    frame = table([{"AMT": 100, "ADDL": 1, "II": 8}], times, n=30)
    scale = np.exp(0.3 * random.standard_normal(30))
    rows = frame["EVID"] == 0
    who = frame["ID"].str[1:].astype(int)[rows]
    k = CL * scale[who] / V
    t = frame["TIME"][rows]
    mean = sum(
        100 * KA / (V * (KA - k)) * (np.exp(-k * s.clip(0)) - np.exp(-KA * s.clip(0))) for s in (t, t - 8)
    )
    frame.loc[rows, "DV"] = mean + 0.1 * random.standard_normal(rows.sum())
    model = nf.Model(nf.curves.oral("AMT"), fixed=("ka", "V"))
    fit = model.fit(nf.read_nonmem(frame), seed=1, progress=False)
    assert fit.fixed["V"] == pytest.approx(V, rel=0.05)
    assert float(fit.law.mean[0].exp()) == pytest.approx(CL, rel=0.15)
    assert fit.residual["sigma"] == pytest.approx(0.1, rel=0.2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.assign(SS=(t["AMT"] > 0) * 1, II=12), "steady state"),
        (lambda t: t.assign(RATE=np.where(t["AMT"] > 0, -2, 0)), "modelled rate"),
        (lambda t: t.assign(ADDL=np.where(t["AMT"] > 0, 2, 0)), "ADDL without II"),
        (lambda t: t.assign(EVID=np.where(t["AMT"] > 0, 4, 0)), "'EVID' is 4 in row 0"),
        (lambda t: t.assign(EVID=0), "has AMT above zero and is no dose by EVID"),
        (lambda t: t.assign(DVID=np.where(t["TIME"] > 1, 2, 1)), "several kinds of response"),
        (lambda t: t.assign(CMT=np.where(t["TIME"] > 1, 2, 1)), "several compartments"),
        (lambda t: t.assign(CENS=np.where(t["TIME"] > 1, 2, 0)), "'CENS' is 2"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(change, message):
    with pytest.raises(nf.DataError, match=message):
        nf.read_nonmem(change(table([{"AMT": 100}], [1.0, 2, 3])))


def test_a_path_is_read_and_a_wrong_one_named(tmp_path):
    path = tmp_path / "pk.csv"
    table([{"AMT": 100}], [1.0, 2, 3]).to_csv(path, index=False)
    assert nf.read_nonmem(path).n_observations == 9
    with pytest.raises(nf.DataError, match="No file"):
        nf.read_nonmem("x.csv")
