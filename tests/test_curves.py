"""nlmeflow.curves: derivatives, closed forms, transforms, twins, and what is refused by name."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch

import nlmeflow as nf
from nlmeflow.estimation.problem import Problem
from nlmeflow.laws.gaussian import GaussianLaw

CURVES = {
    "logistic_senescence": (nf.curves.logistic_senescence(), {"A": 1.0, "tau": 50.0, "s": 3.0}),
    "logistic_growth": (nf.curves.logistic_growth(), {"Asym": 190.0, "xmid": 40.0, "scal": 8.0}),
    "gompertz": (nf.curves.gompertz(), {"A": 3.0, "tau": 30.0, "s": 9.0}),
    "gompertz_senescence": (nf.curves.gompertz_senescence(), {"A": 2.0, "tau": 40.0, "s": 6.0}),
    "double_logistic": (
        nf.curves.double_logistic(),
        {"A": 2.0, "rise": 10.0, "duration": 40.0, "s_rise": 2.0, "s_fall": 4.0},
    ),
    "change_point": (nf.curves.change_point(2.0), {"A": 5.0, "tau": 30.0, "b": 0.2}),
    "exponential_recovery": (nf.curves.exponential_recovery(), {"A": 0.7, "y0": 0.3, "k": 0.05}),
    "oral": (nf.curves.oral(100.0), {"ka": 1.2, "CL": 2.0, "V": 30.0}),
    "infusion": (nf.curves.infusion(500.0, 0.5), {"ke": 0.1, "V": 100.0}),
    "biexponential": (nf.curves.biexponential(), {"A1": 3.0, "k1": 0.8, "A2": 0.5, "k2": 0.02}),
    "emax": (nf.curves.emax(), {"E0": 1.0, "Emax": 4.0, "EC50": 20.0}),
    "linear": (nf.curves.linear(), {"intercept": 1.0, "slope": 0.1}),
}
TIMES = torch.tensor([0.25, 1.0, 5.0, 20.0, 40.0, 70.0], dtype=torch.float64)


def at(curve, psi, t):
    psi = {name: torch.tensor(value, dtype=torch.float64) for name, value in psi.items()}
    return curve(torch.as_tensor(t, dtype=torch.float64), psi)


def test_the_whole_library_is_tested():
    assert set(CURVES) == set(nf.curves.LIBRARY)


@pytest.mark.parametrize("name", CURVES)
def test_derivatives_agree_with_finite_differences(name):
    curve, psi = CURVES[name]
    data = nf.LongitudinalData(TIMES[None], TIMES[None] * 0, TIMES[None] > 0, (0,), None)
    problem = Problem(data, curve, nf.Additive(), curve.names, (), {})
    phi = torch.stack([curve[k].scale.unconstrained(torch.tensor(v).double()) for k, v in psi.items()])[None]
    value, slopes = problem.jacobian(phi, phi.new_zeros(0))
    assert torch.allclose(value[0], at(curve, psi, TIMES))
    for k in range(len(psi)):
        step = torch.zeros_like(phi)
        step[0, k] = 1e-6 * max(1.0, abs(float(phi[0, k])))
        up, down = problem.predict(phi + step, phi[0, :0]), problem.predict(phi - step, phi[0, :0])
        numeric = (up - down)[0] / (2 * step[0, k])
        assert torch.allclose(slopes[0, :, k], numeric, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", CURVES)
def test_transforms_return(name):
    curve, psi = CURVES[name]
    for key, value in psi.items():
        scale = curve[key].scale
        assert float(scale.natural(scale.unconstrained(torch.tensor(value).double()))) == pytest.approx(value)


def test_closed_forms():
    assert float(at(*CURVES["logistic_senescence"], [50.0])) == pytest.approx(0.5)
    a, s = 1.0, 3.0
    loss = at(*CURVES["logistic_senescence"], [50 - s, 50 + s])
    assert loss.tolist() == pytest.approx([a / (1 + np.exp(-1)), a / (1 + np.exp(1))])
    recovery = at(*CURVES["exponential_recovery"], [0.0, 1e4])
    assert recovery.tolist() == pytest.approx([0.3, 0.7])
    broken = at(*CURVES["change_point"], [0.0, 70.0])
    assert broken.tolist() == pytest.approx([5.0, 5 - 0.2 * 40], abs=1e-5)
    dose, curve = 100.0, CURVES["oral"][0]
    area = np.trapezoid(at(*CURVES["oral"], np.linspace(0, 400, 400001)).numpy(), dx=0.001)
    assert area == pytest.approx(dose / 2.0, rel=1e-5)  # dose / CL
    assert float(at(curve, {"ka": 0.1, "CL": 3.0, "V": 30.0}, [5.0])) == pytest.approx(
        dose * 0.1 / 30 * 5 * np.exp(-0.5)
    )


@pytest.mark.parametrize(
    ("tail", "fastest", "left"), [("late", -1, 1 - np.exp(-1)), ("early", 1, np.exp(-1))]
)
def test_gompertz_senescence_is_half_lost_at_tau_and_fastest_where_it_says(tail, fastest, left):
    psi, curve = {"A": 2.0, "tau": 40.0, "s": 6.0}, nf.curves.gompertz_senescence(tail)
    ends = at(curve, psi, [-1e3, 40.0, 1e3]).tolist()
    assert ends == pytest.approx([2.0, 1.0, 0.0], abs=1e-12)
    days = np.linspace(20, 60, 4001)
    green = at(curve, psi, days).numpy()
    loss = -np.gradient(green, days)
    assert (loss > 0).all()
    place = loss.argmax()
    assert days[place] == pytest.approx(40 - fastest * 6 * np.log(np.log(2)), abs=0.02)
    assert green[place] == pytest.approx(2 * left, rel=0.01)
    assert loss[place] == pytest.approx(2 / (np.e * 6), rel=1e-4)
    (before, after) = 2 - green[days <= 40 - 15][-1], green[days >= 40 + 15][0]
    assert (after > 2 * before) if tail == "late" else (before > 2 * after)


def test_the_two_tails_of_gompertz_senescence_are_mirror_images():
    late, early = (nf.curves.gompertz_senescence(tail) for tail in ("late", "early"))
    psi, away = {"A": 2.0, "tau": 40.0, "s": 6.0}, np.linspace(-30, 30, 13)
    assert torch.allclose(at(late, psi, 40 + away), 2 - at(early, psi, 40 - away))
    with pytest.raises(nf.ModelError, match="tail"):
        nf.curves.gompertz_senescence("middle")


def test_the_double_logistic_rises_stays_and_falls():
    curve, psi = CURVES["double_logistic"]
    level = at(curve, psi, [-1e3, 10.0, 26.0, 50.0, 1e3]).tolist()
    assert level == pytest.approx([0.0, 1.0, 2.0, 1.0, 0.0], abs=0.01)
    alone = at(nf.curves.logistic_senescence(), {"A": 2.0, "tau": 50.0, "s": 4.0}, [60.0])
    assert float(at(curve, psi, [60.0])) == pytest.approx(float(alone), rel=1e-8)
    short = psi | {"duration": 1.0}
    assert float(at(curve, short, np.linspace(0, 30, 301)).max()) < 1  # the peak stays under A


@pytest.mark.slow
@pytest.mark.parametrize("unit", [1.0, 1e-9, 1e9])
@pytest.mark.parametrize(
    ("curve", "fixed"),
    [
        (nf.curves.gompertz_senescence("late"), ("A", "s")),
        (nf.curves.gompertz_senescence("early"), ("A", "s")),
        (nf.curves.double_logistic(), ("A", "s_rise", "s_fall")),
    ],
    ids=["late", "early", "season"],
)
def test_fits_of_senescence_find_their_own_first_values_in_any_unit(curve, fixed, unit):
    random = torch.Generator().manual_seed(1)
    days = torch.tensor([29, 36, 42, 56, 76, 92, 100, 108], dtype=torch.float64)
    psi = {"A": 0.4, "tau": 95.0, "s": 9.0, "rise": 55.0, "duration": 48.0, "s_rise": 6.0, "s_fall": 9.0}
    moved = {name: 0.04 * torch.randn(40, 1, generator=random, dtype=torch.float64) for name in curve.names}
    own = {name: psi[name] * (1 + (name not in fixed) * moved[name]) for name in curve.names}
    green = curve(days.expand(40, -1), own)
    green = green + 0.015 * torch.randn(green.shape, generator=random, dtype=torch.float64)
    data = nf.LongitudinalData.regular(days.expand(40, -1) * unit, green)
    fit = nf.Model(curve, fixed=fixed).fit(data, seed=1, progress=False)
    assert fit.converged
    found = {k: float(v) for k, v in curve.natural(fit.law.mean, fit.names).items()} | fit.fixed
    for name, value in found.items():
        assert value / (1.0 if name == "A" else unit) == pytest.approx(psi[name], rel=0.06), name
    assert fit.residual["sigma"] == pytest.approx(0.015, rel=0.1)


def test_absorption_near_elimination_is_smooth():
    curve = CURVES["oral"][0]
    near = [float(at(curve, {"ka": 0.1 + gap, "CL": 3.0, "V": 30.0}, [5.0])) for gap in (-1e-9, 1e-9, 1e-5)]
    assert near[0] == pytest.approx(near[1], rel=1e-7)
    assert near[1] == pytest.approx(near[2], rel=1e-3)


@pytest.mark.parametrize("name", ["oral", "infusion"])
def test_before_its_dose_nobody_has_a_concentration(name):
    assert at(*CURVES[name], [-24.0, -0.5, 0.0]).tolist() == [0.0, 0.0, 0.0]
    curve = {"oral": nf.curves.oral("AMT"), "infusion": nf.curves.infusion("AMT", "TINF")}[name]
    given = {"AMT": torch.tensor(100.0).double(), "TINF": torch.tensor(0.5).double()}
    psi = {key: torch.tensor(value).double() for key, value in CURVES[name][1].items()}
    before, after = curve(torch.tensor([-3.0, 1.0]).double(), psi, given).tolist()
    assert before == 0 < after


def test_conventional_twin_gives_the_same_curve():
    for name, psi in {
        "oral": {"ka": 0.05, "CL": 2.0, "V": 10.0},
        "biexponential": {"A1": 1.0, "k1": 0.01, "A2": 3.0, "k2": 0.5},
    }.items():
        curve = CURVES[name][0]
        twin = curve.conventional(psi)
        assert twin != psi
        assert torch.allclose(at(curve, psi, TIMES), at(curve, twin, TIMES), rtol=1e-10)
        assert curve.conventional(twin) == twin


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nf.Parameter("tau", "lgo"), ["'tau'", "'lgo'", "'log'"]),
        (lambda: nf.Parameter("leaf age"), ["'leaf age'"]),
        (lambda: nf.Parameter("tau", kind="day"), ["'tau'", "'day'", "'time', 'level'"]),
        (lambda: nf.Parameter("A", "log", start=-1.0), ["A = -1", "(0, inf)"]),
        (lambda: nf.bounded(1, 1), ["lower < upper"]),
        (lambda: nf.Curve(lambda t, psi: t, []), ["at least one parameter"]),
        (lambda: nf.Curve(lambda t, psi: t, [nf.Parameter("a"), nf.Parameter("a")]), ["own name"]),
        (lambda: nf.curves.infusion("AMT", "AMT"), ["another column, got AMT, AMT"]),
        (lambda: nf.curves.linear()["slop"], ["'slop'", "intercept, slope"]),
        (lambda: nf.curves.linear().with_transforms(slop="log"), ["'slop'"]),
    ],
)
def test_bad_curves_are_refused_by_name(make, words):
    with pytest.raises(nf.ModelError) as error:
        make()
    for word in words:
        assert word in str(error.value)


def falls(t, p):
    return torch.sigmoid((p["tau"] - t) / p["s"])


def by_clamp(t, p):
    p["s"].clamp_(min=1e-9)  # which leaves every value as it is
    return falls(t, p)


def by_shift(t, p):
    t -= 1
    return falls(t, p)


def without_gradients(t, p):
    with torch.no_grad():
        rate = 1 / p["s"]
    return torch.sigmoid((p["tau"] - t) * rate)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda t, p: falls(t, p | {"s": p["s"].mean()}), "mixes individuals"),
        (lambda t, p: falls(t, p | {"s": p["s"].flatten()[0]}), "mixes individuals"),
        (lambda t, p: falls(t, p | {"s": p["s"].amax(0, keepdim=True)}), "mixes individuals"),
        (lambda t, p: falls(t, p | {"s": p["s"].mean(-2, keepdim=True)}), "mixes particles"),
        (lambda t, p: falls(t, p).cumsum(-1), "mixes times"),
        (lambda t, p: falls(t - t[..., :1], p), "mixes times"),
        (lambda t, p: falls(t, p) + 0.02 * torch.randn((), dtype=t.dtype), "other values when it is called"),
        (lambda t, p: torch.nn.functional.dropout(falls(t, p), 0.1), "other values when it is called"),
        (lambda t, p: p["r"] * t, "asks for 'r', which is not among its parameters and inputs"),
        (lambda t, p: falls(t, p | {"s": p["s"].detach()}), "changes with 's' otherwise than its derivative"),
        (
            lambda t, p: falls(t, p) * (1 + p["tau"].detach().square()),
            "changes with 'tau' otherwise than its",
        ),
        (without_gradients, "'without_gradients' changes with 's' otherwise than its derivative says: leave"),
        (by_clamp, r"'by_clamp' changes psi\['s'\] in place"),
        (by_shift, "'by_shift' changes t in place"),
    ],
)
def test_a_curve_depends_on_its_own_arguments_only_and_leaves_them(function, words):
    with pytest.raises(nf.ModelError, match=words):
        nf.Model(nf.Curve(function, [nf.Parameter("tau"), nf.Parameter("s", "log")]))


@pytest.mark.parametrize(
    ("late", "words"),
    [
        (lambda t, p: torch.randn(t.shape, dtype=t.dtype), "other values when it is called"),
        (lambda t, p: t - t.mean(), "mixes individuals"),
        (lambda t, p: p["a"] - p["a"].mean(), "mixes individuals"),
    ],
)
def test_a_curve_is_called_at_the_datas_times_too(late, words):
    """What it does wrong after t = 2 alone is seen in data that go on, in a fit and in new individuals."""

    def curve(t, p):
        return p["a"] + p["b"] * t + torch.where(t > 2, late(t, p), 0.0)

    model = nf.Model(nf.Curve(curve, [nf.Parameter("a"), nf.Parameter("b")]), fixed=("b",))
    days = np.linspace(0, 2, 5)
    early, _ = model.simulate(
        GaussianLaw(torch.zeros(1).double(), torch.eye(1).double()), days, 9, 1, 0.1, b=1
    )
    fit = model.fit(early, seed=1, particles=128, progress=False)
    long = early.to_frame()
    long[early.names[1]] *= 10
    data = nf.LongitudinalData.from_frame(long, *early.names)
    for ask in (model.fit, fit.on):
        with pytest.raises(nf.ModelError, match=words):
            ask(data)


def test_a_curve_is_linear_in_its_dose_which_is_one_of_its_inputs():
    parameters = [nf.Parameter("k", "log")]
    with pytest.raises(nf.ModelError, match="does not double when its dose 'D' does"):
        nf.Model(
            nf.Curve(lambda t, p, x: torch.exp(-p["k"] * t * x["D"]), parameters, inputs=["D"], dose="D")
        )
    for what in ("dose", "duration"):
        with pytest.raises(nf.ModelError, match=f"{what} is 'D', which is not one of its inputs \\(none\\)"):
            nf.Curve(lambda t, p: torch.exp(-p["k"] * t), parameters, **{what: "D"})


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("AMT", -100.0, "The dose 'AMT' is -100 for '1'; accepted are numbers from 0"),
        ("TINF", 0.0, "The duration 'TINF' is 0 for '1'; accepted are numbers above 0"),
        ("TINF", -1.0, "The duration 'TINF' is -1 for '1'; accepted are numbers above 0"),
    ],
)
def test_amounts_and_durations_in_columns_are_those_of_doses(column, value, words):
    frame = pd.DataFrame(
        {"i": [0, 0, 1, 1], "t": [1.0, 2, 1, 2], "y": [4.0, 3, 4, 2], "AMT": 9.0, "TINF": 0.5}
    )
    model = nf.Model(nf.curves.infusion("AMT", "TINF"))
    frame.loc[frame["i"] == 1, column] = value
    with pytest.raises(nf.ModelError, match=words):
        model.problem(nf.LongitudinalData.from_frame(frame, "i", "t", "y", covariates=["AMT", "TINF"]))


def test_inputs_and_the_interval_of_doses_are_not_mixed_nor_changed():
    def bolus(t, p, x):
        return x["D"] * torch.exp(-p["k"] * t)

    def model(function, steady=None):
        nf.Model(nf.Curve(function, [nf.Parameter("k", "log")], inputs="D", dose="D", steady=steady))

    def mean(t, p, x, interval):
        return bolus(t, p, x) / -torch.expm1(-p["k"] * interval.mean())

    with pytest.raises(nf.ModelError, match="mixes individuals"):
        model(lambda t, p, x: bolus(t, p, {"D": x["D"].mean()}))
    with pytest.raises(nf.ModelError, match=r"changes x\['D'\] in place"):
        model(lambda t, p, x: bolus(t, p, {"D": x["D"].mul_(2)}))
    with pytest.raises(nf.ModelError, match="'mean' mixes individuals"):
        model(bolus, mean)


def test_curves_without_finite_values_and_new_entries_of_psi_are_taken():
    def ends(t, p):
        p["end"] = p["tau"] + p["s"]
        return torch.where(t > 1.5, torch.nan, falls(t, p) / (p["end"] > 1))

    def corners(t, p):
        return (
            torch.where(t < p["tau"], 1.0, p["s"] * (t - p["tau"]).round().clamp(max=1.5)) - t.relu() * p["s"]
        )

    for curve, _ in CURVES.values():
        nf.Model(curve)
    nf.Model(nf.curves.oral("dose"))
    nf.Model(nf.curves.infusion("dose", "length"))
    nf.Model(nf.Curve(corners, [nf.Parameter("tau"), nf.Parameter("s", "log")]))
    curve = nf.Curve(ends, [nf.Parameter("tau"), nf.Parameter("s", "log")])
    psi = {"tau": torch.tensor(1.0), "s": torch.tensor(2.0)}
    nf.Model(curve)
    curve(TIMES, psi)
    assert list(psi) == ["tau", "s"]


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64, int, float])
def test_bounds_of_any_kind_of_number_have_the_name_of_floats(kind):
    scale = nf.bounded(kind(-1), kind(3))
    assert scale.name == "logit(-1.0, 3.0)"
    assert nf.bounded(kind(0), kind(1)).name == "logit"
    copy = pickle.loads(pickle.dumps(scale))
    assert (copy.name, copy.lower, copy.upper) == (scale.name, -1.0, 3.0)


temperature = torch.linspace(10, 25, 50, dtype=torch.float64)


@pytest.mark.parametrize(
    ("late", "words"),
    [
        (lambda t, p: temperature[t.long() + 40], "cannot be called on tensors"),
        (lambda t, p: p["rate"], "asks for 'rate'"),
        (lambda t, p: np.log(t), "cannot be called on tensors"),
        (lambda t, p: torch.linalg.cholesky(-torch.ones_like(t)), "cannot be called on tensors"),
        (lambda t, p: (p["a"] - p["b"] * t).float(), "single precision"),
    ],
)
def test_a_curve_that_fails_at_the_times_of_the_data_alone_is_told_in_words(late, words):
    """The first call of a curve, on times near one, cannot see what it does elsewhere."""

    def curve(t, p):
        return late(t, p) if bool((t > 25).any()) else p["a"] - p["b"] * t

    frame = pd.DataFrame({"who": np.repeat(range(8), 5), "t": np.tile([30.0, 37, 44, 51, 58], 8)})
    frame["y"] = 5 + 0.1 * frame["t"] + np.random.default_rng(0).normal(0, 0.3, len(frame))
    model = nf.Model(nf.Curve(curve, [nf.Parameter("a"), nf.Parameter("b")]), fixed=("b",))
    with pytest.raises(nf.ModelError, match=words):
        model.fit(nf.LongitudinalData.from_frame(frame, "who", "t", "y"), seed=1, progress=False)


def test_a_parameter_named_as_one_of_the_error_may_have_a_first_value():
    frame = pd.DataFrame({"who": np.repeat(range(8), 5), "t": np.tile(np.arange(5.0), 8)})
    frame["y"] = 5 + 0.5 * frame["t"] + np.random.default_rng(0).normal(0, 0.3, len(frame))
    line = nf.Curve(lambda t, p: p["a"] + p["b"] * t, [nf.Parameter("a"), nf.Parameter("b")])
    model = nf.Model(line, nf.Combined(0.3, 0.01), fixed=("b",))
    data = nf.LongitudinalData.from_frame(frame, "who", "t", "y")
    fit = model.fit(data, seed=1, start={"a": 4.0, "b": 0.4}, progress=False)
    assert fit.fixed["b"] == pytest.approx(0.5, abs=0.1)
