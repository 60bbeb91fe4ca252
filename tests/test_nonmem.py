"""nlmeflow.data.nonmem: events, several doses, infusions, censoring, and what is refused by name."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import nlmeflow as nf
from nlmeflow.fitting.fit import Fit
from nlmeflow.laws.gaussian import GaussianLaw

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


def infused(t, dose, length, ke=0.1):
    """One compartment, an infusion of some length; zero before it."""
    during = -np.expm1(-ke * np.clip(t, 0, length))
    return dose / (length * ke * V) * during * np.exp(-ke * np.clip(t - length, 0, None))


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


@pytest.mark.parametrize("rows", [[320.0], [160.0, 160.0]])
@pytest.mark.parametrize("later", [False, True])
def test_an_observation_at_the_time_of_the_first_dose_comes_after_it(rows, later):
    """A bolus, D / V exp(-k t): in one row or two, with a later dose that nothing follows or without."""
    curve = nf.Curve(
        lambda t, p, x: x["AMT"] / p["V"] * torch.exp(-p["k"] * t),
        [nf.Parameter("V", "log"), nf.Parameter("k", "log")],
        inputs=("AMT",),
        dose="AMT",
    )
    times = [0.0, 1.0, 8.0]
    frame = table([{"AMT": amount} for amount in rows], times)
    if later:
        frame = pd.concat([frame, frame.iloc[:1].assign(TIME=50.0, AMT=320.0)])
    found = predicted(nf.read_nonmem(frame), curve, V=V, k=0.1)[:3]
    assert found == pytest.approx(320 / V * np.exp(-0.1 * np.array(times)))


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
    assert found == pytest.approx(infused(times, 100, 2.0))


PAST = np.arange(500)  # doses before: those still earlier have left nothing


@pytest.mark.parametrize("ka", [KA, CL / V, CL / V * (1 + 1e-9), 0.02])
@pytest.mark.parametrize("unit", [1.0, 1e-6])
def test_absorption_at_steady_state_is_the_sum_over_all_past_doses(ka, unit):
    times = np.array([0.0, 0.5, 3, 5.9, 6, 20])
    data = nf.read_nonmem(table([{"AMT": 100, "SS": 1, "II": 6 * unit}], unit * times))
    found = predicted(data, nf.curves.oral("AMT"), ka=ka / unit, CL=CL / unit, V=V)
    curve = nf.curves.oral(100.0)
    psi = dict(zip(("ka", "CL", "V"), torch.tensor([ka, CL, V], dtype=torch.float64), strict=True))
    every = torch.from_numpy(times[:, None] + 6 * PAST)
    assert found == pytest.approx(curve(every, psi).sum(1).numpy(), rel=1e-10)


@pytest.mark.parametrize("length", [1e-3, 2.0, 6.0, 15.0])
def test_infusions_at_steady_state_are_the_sum_over_all_past_ones(length):
    times = np.array([0.0, 0.5, 1.9, 2, 3, 5.9, 6, 14, 20])
    data = nf.read_nonmem(table([{"AMT": 100, "SS": 1, "II": 6, "RATE": 100 / length}], times))
    found = predicted(data, nf.curves.infusion("AMT", "TINF"), ke=0.1, V=V)
    expected = infused(times[:, None] + 6 * PAST, 100, length).sum(1)
    assert found == pytest.approx(expected, rel=1e-10)


def bolus(t, psi, x):
    return x["AMT"] / psi["V"] * torch.exp(-psi["ke"] * t)


def test_a_curve_of_ones_own_says_what_it_is_at_steady_state():
    def steady(t, psi, x, interval):
        return bolus(t, psi, x) / -torch.expm1(-psi["ke"] * interval)

    times = np.array([0.0, 3, 6, 20])
    data = nf.read_nonmem(table([{"AMT": 100, "SS": 1, "II": 6}], times))
    parameters = [nf.Parameter("ke", "log"), nf.Parameter("V", "log")]
    curve = nf.Curve(bolus, parameters, inputs=("AMT",), dose="AMT", steady=steady)
    expected = 100 / V * np.exp(-0.1 * (times[:, None] + 6 * PAST)).sum(1)
    assert predicted(data, curve, ke=0.1, V=V) == pytest.approx(expected, rel=1e-10)
    with pytest.raises(nf.ModelError, match=r"steady state \(SS\), and the curve 'bolus' does not say"):
        nf.Model(nf.Curve(bolus, parameters, inputs=("AMT",), dose="AMT")).problem(data)
    with pytest.raises(nf.ModelError, match="'logistic_growth' knows nothing"):
        nf.Model(nf.curves.logistic_growth()).problem(data)
    with pytest.raises(nf.ModelError, match="'<lambda>' cannot be called on tensors"):
        nf.Model(nf.Curve(bolus, parameters, inputs=("AMT",), dose="AMT", steady=lambda t, psi: t))


@pytest.mark.parametrize(("kind", "kept"), [(1, 0), (2, 1)])
def test_a_steady_state_takes_the_place_of_earlier_doses_or_adds_to_them(kind, kept):
    """SS 1 also cancels the additional doses at 24 and 32 of the first row; its own, at 26, is given."""
    times = np.array([1.0, 9, 19, 20, 21, 25, 27, 33, 50])
    doses = [{"AMT": 50, "ADDL": 4, "II": 8}, {"AMT": 100, "TIME": 20.0, "SS": kind, "II": 6, "ADDL": 1}]
    data = nf.read_nonmem(table(doses, times))
    earlier = sum(oral(times - 8 * k, 50) for k in range(5))
    steady = np.where(times >= 20, oral((times - 20)[:, None] + 6 * PAST, 100).sum(1), 0) + oral(
        times - 26, 100
    )
    expected = np.where(times < 20, earlier, kept * earlier + steady)
    assert predicted(data, nf.curves.oral("AMT"), ka=KA, CL=CL, V=V) == pytest.approx(expected, rel=1e-10)


def test_derivatives_at_steady_state_agree_with_finite_differences():
    for how, curve in (({}, nf.curves.oral("AMT")), ({"RATE": 10.0}, nf.curves.infusion("AMT", "TINF"))):
        data = nf.read_nonmem(table([{"AMT": 100, "SS": 1, "II": 6, **how}], [0.0, 1, 3, 8], n=2))
        problem = nf.Model(curve).problem(data)
        phi = (
            torch.tensor([[-2.0, 1.0, 3.0], [0.5, 1.0, 3.0]]).double()[:, : problem.dim].requires_grad_(True)
        )
        value, slopes = problem.jacobian(phi, phi.new_zeros(0))
        assert torch.allclose(torch.autograd.grad(value.sum(), phi)[0], slopes.sum(1))
        for k, step in enumerate(1e-6 * torch.eye(problem.dim).double()):
            up, down = (problem.predict(phi + side * step, phi[0, :0]) for side in (1, -1))
            assert torch.allclose(slopes[..., k], (up - down) / 2e-6, rtol=1e-5, atol=1e-8)


def test_doses_without_end_are_as_many_as_the_observations_need():
    times = np.arange(1.0, 40, 3)
    data = nf.read_nonmem(table([{"AMT": 100, "ADDL": 10**9, "II": 6}], times))
    expected = sum(oral(times - 6 * k, 100) for k in range(8))
    assert predicted(data, nf.curves.oral("AMT"), ka=KA, CL=CL, V=V) == pytest.approx(expected)
    assert data.doses.amount.shape == (3, 8)


def test_limits_of_quantification_that_nothing_lies_below_or_that_censoring_says_are_read():
    frame = table([{"AMT": 100}], [1.0, 2, 3])
    for more in ({"LLOQ": 0.5}, {"BLQ": 0}, {"BLQ": np.nan, "LLOQ": np.nan}, {"LLOQ": 1.0, "CENS": 0}):
        assert nf.read_nonmem(frame.assign(**more)).n_observations == 9
    assert nf.read_nonmem(frame.assign(BLQ=1), ["BLQ"]).covariates["BLQ"].tolist() == [1, 1, 1]


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


@pytest.mark.parametrize("doses", [[{"AMT": 100}], [{"AMT": 100}, {"AMT": 50, "TIME": 2.5}]])
def test_an_individual_without_observations_keeps_its_place(doses):
    frame = table(doses, [1.0, 2, 3]).assign(CENS=lambda t: (t["TIME"] == 3) * 1, w=5)
    frame["MDV"] = ((frame["ID"] == "s1") | (frame["EVID"] == 1)) * 1
    data = nf.read_nonmem(frame, ["w"])
    assert data.labels == ("s0", "s1", "s2")
    assert data.counts.tolist() == [3, 0, 3]
    assert data.n_missing == 0
    assert data.doses is None or data.doses.amount.tolist() == [[100, 50]] * 3
    frame["MDV"] = 1
    assert nf.read_nonmem(frame).n_observations == 0


def test_tables_of_two_files_are_one_after_the_other(tmp_path):
    """Lines, and so the index, stand twice in the table: no dose does."""
    frame = table([{"AMT": 100}], [1.0, 2, 3], n=4)
    for name, some in (("a", ["s0", "s1"]), ("b", ["s2", "s3"])):
        frame[frame["ID"].isin(some)].to_csv(tmp_path / name, index=False)
    both = pd.concat([nf.read_table(tmp_path / name).frame for name in "ab"])
    data = nf.read_nonmem(both)
    assert data.doses is None
    assert data == nf.read_nonmem(frame)
    both["DV"] = both["DV"].where(both["ID"] != "s2", np.inf)
    with pytest.raises(nf.DataError, match="'DV' is infinite in row 9"):
        nf.read_nonmem(both)


def test_censoring_columns_give_bounds():
    frame = table([{"AMT": 100}], [1.0, 2, 3, 4])
    seen = frame["EVID"] == 0
    frame["CENS"] = np.where(seen, frame["TIME"].map({1: 1, 2: 1, 3: -1}).fillna(0), 0)
    frame["LIMIT"] = np.where(frame["TIME"] == 2, 0.5, np.nan)
    data = nf.read_nonmem(frame)
    low, high = (side[0].tolist() for side in data.bounds)
    assert low == [-np.inf, 0.5, 3.0, -np.inf]
    assert high == [1.0, 2.0, np.inf, np.inf]
    named = nf.read_nonmem(frame.assign(upper=frame["ID"], censored="no"), ["upper", "censored"])
    assert named.covariates["upper"].tolist() == ["s0", "s1", "s2"]
    assert torch.equal(named.bounds[1], data.bounds[1])
    with pytest.raises(nf.DataError, match="'LIMIT' must be below column 'DV' in row 1, which is censored"):
        nf.read_nonmem(frame.assign(LIMIT=2 * frame["LIMIT"].fillna(0) + 1))
    between = nf.read_nonmem(frame.assign(LIMIT=frame["LIMIT"].where(frame["TIME"] != 3, 3.5)))
    assert [side[0, 2].item() for side in between.bounds] == [3.0, 3.5]
    with pytest.raises(nf.DataError, match="'LIMIT' must be above column 'DV' in row 3"):
        nf.read_nonmem(frame.assign(LIMIT=frame["LIMIT"].where(frame["TIME"] != 3, 2.5)))


def test_replicates_are_kept_where_it_is_said():
    frame = table([{"AMT": 100}], [1.0, 2, 3])
    twice = pd.concat([frame, frame.iloc[[1]]])
    with pytest.raises(nf.DataError, match="replicates='keep'"):
        nf.read_nonmem(twice)
    assert nf.read_nonmem(twice, replicates="keep").n_observations == 10


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


def test_doses_are_saved_and_those_of_older_files_are_of_no_steady_state(tmp_path):
    steady = [{"AMT": 50}, {"AMT": 100, "TIME": 6.0, "SS": 1, "II": 8}]
    for doses in (steady, [{"AMT": 50, "ADDL": 1, "II": 6}]):
        data = nf.read_nonmem(table(doses, [1.0, 2, 4, 7, 9], n=20))
        law = GaussianLaw(torch.zeros(1).double(), torch.eye(1).double())
        one, none = torch.ones(1).double(), torch.zeros(20, 1).double()
        model = nf.Model(nf.curves.oral("AMT"), fixed=("ka", "V"))
        state = (law, one.repeat(2), one, none, none[..., None] + 1)
        fit = Fit(model, data, nf.Gaussian(), *state, 1, 64, True, pd.DataFrame({"gain": [0.0]}))
        fit.save(tmp_path / "fit")
        assert nf.load(tmp_path / "fit").data == data
        assert data != nf.read_nonmem(table([{"AMT": 50, "ADDL": 1, "II": 5}], [1.0, 2, 4, 7, 9], n=20))
    with safe_open(str(tmp_path / "fit"), framework="pt") as file:
        tensors = {
            key: file.get_tensor(key)
            for key in file.keys()  # noqa: SIM118
            if not key.endswith(("interval", "until"))
        }
        header = json.loads(file.metadata()["nlmeflow"])
    del header["sha256"]
    save_file(tensors, tmp_path / "old", metadata={"nlmeflow": json.dumps(header)})
    assert nf.load(tmp_path / "old").data == data


def test_doses_that_ADDL_repeats_have_an_end():  # noqa: N802
    with pytest.raises(
        nf.DataError, match=r"has 10,002 doses by ADDL .* Give the last of them as a dose at st"
    ):
        nf.read_nonmem(table([{"AMT": 50, "ADDL": 10**8, "II": 1e-3}], [1.0, 10.0], n=2))
    with pytest.raises(nf.DataError, match="Column 'TIME' is missing in row 2"):
        nf.read_nonmem(table([{"AMT": 50, "ADDL": 3, "II": 1}], [2.0, np.nan], n=2))


@pytest.mark.slow
def test_fits_at_steady_state_find_the_truth():
    random = np.random.default_rng(1)
    frame = table([{"AMT": 100, "SS": 1, "II": 8}], [0.0, 0.5, 1, 2, 4, 6, 8], n=30)
    rows = frame["EVID"] == 0
    k = (CL * np.exp(0.3 * random.standard_normal(30)) / V)[frame["ID"].str[1:].astype(int)[rows]]
    every = frame["TIME"][rows].to_numpy()[:, None] + 8 * PAST
    one = 100 * KA / (V * (KA - k[:, None])) * (np.exp(-k[:, None] * every) - np.exp(-KA * every))
    frame.loc[rows, "DV"] = one.sum(1) + 0.1 * random.standard_normal(rows.sum())
    model = nf.Model(nf.curves.oral("AMT"), fixed=("ka", "V"))
    fit = model.fit(nf.read_nonmem(frame), seed=1, progress=False)
    assert fit.fixed["V"] == pytest.approx(V, rel=0.05)
    assert float(fit.law.mean[0].exp()) == pytest.approx(CL, rel=0.15)
    assert fit.residual["sigma"] == pytest.approx(0.1, rel=0.2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.assign(SS=(t["AMT"] > 0) * 1), r"Row 0 is at steady state \(SS\) without II"),
        (lambda t: t.assign(SS=(t["AMT"] > 0) * 1, II=0), r"Row 0 is at steady state \(SS\) without II"),
        (lambda t: t.assign(SS=1, II=12), r"Row 1 is at steady state \(SS\) without AMT"),
        (lambda t: t.assign(SS=(t["AMT"] > 0) * 3, II=12), "'SS' is 3 in row 0"),
        (lambda t: t.assign(RATE=np.where(t["AMT"] > 0, -2, 0)), "modelled rate"),
        (lambda t: t.assign(ADDL=np.where(t["AMT"] > 0, 2, 0)), "ADDL without II"),
        (lambda t: t.assign(EVID=np.where(t["AMT"] > 0, 4, 0)), "'EVID' is 4 in row 0"),
        (lambda t: t.assign(EVID=0), "has AMT above zero and is no dose by EVID"),
        (lambda t: t.drop(columns="EVID").assign(AMT=100), "Row 1 has AMT above zero.*and DV too"),
        (lambda t: t.drop(columns="EVID").assign(AMT=100, MDV=0), "Row 1 has AMT above zero.*a row each"),
        (lambda t: t.assign(DVID=np.where(t["TIME"] > 1, 2, 1)), "several kinds of response"),
        (lambda t: t.assign(CMT=np.where(t["TIME"] > 1, 2, 1)), "several compartments"),
        (
            lambda t: t.assign(CMT=np.where((t["AMT"] > 0) & (t["ID"] == "s0"), 1, 2)),
            "doses by several compartments, 1 and 2",
        ),
        (
            lambda t: t.assign(ADM=np.where((t["AMT"] > 0) & (t["ID"] == "s0"), 1, 2)),
            "'ADM' has doses by several routes of administration, 1 and 2",
        ),
        (lambda t: t.assign(DUR=np.where(t["AMT"] > 0, 3, 0)), "Row 0: DUR is not supported .call"),
        (lambda t: t.assign(C=np.where(t["ID"] == "s1", "C", ".")), "Row 4 is a comment"),
        (lambda t: t.assign(TIME=t["TIME"].where(t["AMT"] == 0)), "Row 0 is a dose without TIME"),
        (lambda t: t.assign(TINF=np.where(t["AMT"] > 0, -3, 0)), "Row 0 has TINF below zero"),
        (
            lambda t: t.assign(TINF=np.where(t["AMT"] > 0, 99, 0), RATE=np.where(t["AMT"] > 0, 50, 0)),
            "Row 0 has a duration TINF other than AMT / RATE",
        ),
        (lambda t: t.assign(ADDL=np.where(t["AMT"] > 0, -1, 0), II=6), "Row 0 has ADDL below zero"),
        (lambda t: t.assign(ADDL=np.where(t["AMT"] > 0, 1.5, 0), II=6), "Row 0 has ADDL that is no whole"),
        (lambda t: t.assign(ID=t["ID"].where(t.index != 2)), "Column 'ID' is empty in row 2"),
        (
            lambda t: t.assign(TIME=t["TIME"].where(t.index != 4, 2), ID=t["ID"].str[1:].astype(int)),
            "'1' is obs",
        ),
        (lambda t: t.assign(CENS=np.where(t["TIME"] > 1, 2, 0)), "'CENS' is 2"),
        (
            lambda t: t.assign(BLQ=(t["TIME"] > 1) * 1),
            "By column 'BLQ', DV may lie beyond .* in row 2: say so",
        ),
        (lambda t: t.assign(lloq=2.0), "By column 'lloq', DV may lie beyond .* in row 1: say so with CENS 1"),
        (lambda t: t.assign(DATE="2024-05-31"), r"Row 0: calendar dates \(DATE\)"),
        (
            lambda t: t.assign(DV=t["DV"].replace(2.0, "<LOQ")),
            "is not a number in row 2: '<LOQ'.*CENS 1 or -1",
        ),
        (lambda t: t.assign(AMT=np.where(t["AMT"] > 0, np.inf, 0)), "'AMT' is infinite in row 0"),
        (lambda t: t.assign(RATE=np.where(t["AMT"] > 0, np.inf, 0)), "'RATE' is infinite in row 0"),
        (lambda t: t.assign(SS=(t["AMT"] > 0) * 1, II=np.inf), "'II' is infinite in row 0"),
        (lambda t: t.assign(TIME=np.where(t["AMT"] > 0, np.inf, t["TIME"])), "'TIME' is infinite in row 0"),
        (lambda t: t.assign(CENS=(t["AMT"] == 0) * 1, LIMIT=-np.inf), "'LIMIT' is infinite in row 0"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(change, message):
    with pytest.raises(nf.DataError, match=message):
        nf.read_nonmem(change(table([{"AMT": 100}], [1.0, 2, 3])))


def test_no_covariates_may_be_written_as_none():
    frame = table([{"AMT": 100}], [1.0, 2, 3])
    assert nf.read_nonmem(frame, None) == nf.read_nonmem(frame)
    plain = frame[frame["AMT"] == 0]
    assert nf.LongitudinalData.from_frame(plain, "ID", "TIME", "DV", None).covariates.columns.empty


@pytest.mark.parametrize("response", [".", 0, np.nan])
def test_a_dose_without_an_observation_needs_no_event(response):
    frame = table([{"AMT": 100, "DV": response}], [1.0, 2, 3]).drop(columns="EVID")
    assert nf.read_nonmem(frame).n_observations == 9


@pytest.mark.parametrize("flag", ["EVID", "MDV"])
def test_what_a_flagged_dose_has_for_a_response_is_no_observation(flag):
    frame = table([{"AMT": 100, "DV": 7.0}], [1.0, 2, 3]).drop(columns="EVID")
    assert nf.read_nonmem(frame.assign(**{flag: (frame["AMT"] > 0) * 1})).n_observations == 9


@pytest.mark.parametrize(
    "column", ["cens", "evid", "mdv", "addl", "ii", "rate", "Rate", "ss", "cmt", "limit"]
)
def test_a_column_in_lower_case_is_refused_by_name(column):
    frame = table([{"AMT": 100}], [1.0, 2, 3]).drop(columns="EVID").assign(**{column: 0})
    with pytest.raises(nf.DataError, match=f"'{column}' may be meant for {column.upper()}, which"):
        nf.read_nonmem(frame)
    assert nf.read_nonmem(frame, [column]).covariates[column].tolist() == [0, 0, 0]
    assert nf.read_nonmem(frame.assign(**{column.upper(): np.nan})).n_observations == 9


def test_a_time_between_doses_needs_a_column_that_says_what_is_repeated():
    frame = table([{"AMT": 100, "II": 12}], [1.0, 2, 3])
    with pytest.raises(nf.DataError, match=r"Row 0 has II, .* no column ADDL or SS"):
        nf.read_nonmem(frame)
    assert nf.read_nonmem(frame.assign(ADDL=0)).covariates["AMT"].tolist() == [100, 100, 100]


def test_rows_of_an_individual_that_do_not_stand_together_are_one_individual_and_this_is_said():
    frame = table([{"AMT": 100}], [1.0, 2, 3])
    later = frame.assign(TIME=frame["TIME"] + 24)
    with pytest.warns(UserWarning, match="'s0' do not stand together"):
        data = nf.read_nonmem(pd.concat([frame, later]))
    assert (len(data), data.n_observations) == (3, 18)


def test_a_path_is_read_and_a_wrong_one_named(tmp_path):
    path = tmp_path / "pk.csv"
    table([{"AMT": 100}], [1.0, 2, 3]).to_csv(path, index=False)
    assert nf.read_nonmem(path).n_observations == 9
    with pytest.raises(nf.DataError, match="No file"):
        nf.read_nonmem("x.csv")


@pytest.mark.parametrize(
    ("doses", "name"), [([{"AMT": 100}], "WT"), ([{"AMT": 100}, {"AMT": 50, "TIME": 2.5}], "AMT")]
)
def test_a_covariate_is_the_same_in_all_rows(doses, name):
    frame = table(doses, [1.0, 2, 3]).assign(WT=lambda t: np.where(t["AMT"] > 0, 80, 70))
    with pytest.raises(nf.DataError, match=f"'{name}' changes within individual 's0'"):
        nf.read_nonmem(frame, [name])


def test_a_covariate_that_was_not_named_is_read_as_the_message_says():
    frame = table([{"AMT": 100.0}], [1.0, 2.0, 4.0]).assign(WT=70.0)
    frame["WT"] += 5 * (frame["ID"] == "s1")
    model = nf.Model(nf.curves.oral("AMT"), covariates={"CL": "log(WT / 70)"})
    with pytest.raises(nf.ModelError, match=r"when reading the table, covariates=\['WT'\]"):
        model.problem(nf.read_nonmem(frame))
    assert model.problem(nf.read_nonmem(frame, covariates=["WT"])).effects[0].name == "CL: log(WT / 70)"


def test_a_covariate_with_points_for_empty_cells_holds_numbers():
    frame = table([{"AMT": 100}], [1.0, 2, 3]).assign(
        WT=lambda t: np.where(t["AMT"] > 0, ".", (60 + 10 * t["ID"].str[1:].astype(int)).astype(str)),
        SEX=lambda t: np.where(t["AMT"] > 0, ".", "F"),
    )
    known = nf.read_nonmem(frame, ["WT", "SEX"]).covariates
    assert known["WT"].tolist() == [60.0, 70.0, 80.0]
    assert known["SEX"].tolist() == ["F", "F", "F"]


def test_identifiers_may_be_categories_of_which_some_are_absent():
    rows = [
        (who, *row)
        for who in range(6)
        for row in ((0.0, 100.0, np.nan), (1.0, 0.0, 3.0), (12.0, 100.0, np.nan))
    ]
    table = pd.DataFrame(
        [*rows, *((who, 13.0, 0.0, 4.0 + who) for who in range(6))], columns=["ID", "TIME", "AMT", "DV"]
    )
    table = table.sort_values(["ID", "TIME"])
    plain, category = (
        nf.read_nonmem(one[one["ID"] != 3])
        for one in (table, table.assign(ID=table["ID"].astype("category")))
    )
    assert [str(label) for label in category.labels] == [str(label) for label in plain.labels]
    assert torch.equal(category.doses.amount, plain.doses.amount)
