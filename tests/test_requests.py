"""nlmeflow.data, nlmeflow.fitting: what people hand in is taken where it is clear, else refused in words."""

import math
import os
import pickle
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from decimal import Decimal
from importlib import import_module
from importlib.metadata import requires

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import minimize

import nlmeflow as nf
from nlmeflow.estimation.em import State, _ran_off
from nlmeflow.estimation.laplace import gaussian_starts
from nlmeflow.estimation.start import pooled_starts, reach
from nlmeflow.fitting.bands import Bands
from nlmeflow.fitting.doubts import n_moments
from nlmeflow.fitting.fitted import check_finite
from nlmeflow.fitting.suspicions import mistakes, suspicions
from nlmeflow.laws.gaussian import GaussianLaw
from nlmeflow.laws.mixture import MixtureLaw
from nlmeflow.laws.specification import Specification
from nlmeflow.laws.stacked import StackedLaw
from nlmeflow.running import estimating

DAYS = np.arange(30.0, 75, 5)
CURVE = nf.curves.logistic_senescence()
MODEL = nf.Model(CURVE, fixed=("A", "s"))


def plants(n=20, days=DAYS, sd=0.04, seed=1):
    random = np.random.default_rng(seed)
    onset = random.normal(50, 4, n)
    y = 1 / (1 + np.exp((days - onset[:, None]) / 3)) + random.normal(0, sd, (n, len(days)))
    return pd.DataFrame({"plant": np.repeat(range(n), len(days)), "day": np.tile(days, n), "y": y.ravel()})


def read(frame, **more):
    return nf.LongitudinalData.from_frame(frame, "plant", "day", "y", **more)


def fitted(frame, model=MODEL, **options):
    return model.fit(read(frame), seed=1, particles=256, progress=False, **options)


@pytest.fixture(scope="module")
def fit():
    return fitted(plants())


# subsets


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ([True, False] * 3, (0, 2, 4)),
        (np.array([False] * 5 + [True]), (5,)),
        (torch.tensor([True, False] * 3), (0, 2, 4)),
        (pd.Series([True, False] * 3), (0, 2, 4)),
        (pd.Series([True] + [False] * 5, index=[5, 4, 3, 2, 1, 0]), (5,)),
        (pd.Series([True, False] * 3, dtype="boolean"), (0, 2, 4)),
        (pd.Series([True, False] * 3, dtype=object), (0, 2, 4)),
        (pd.Series([True] + [False] * 5, index=[5, 4, 3, 2, 1, 0], dtype=object), (5,)),
        (np.array([True, False] * 3, dtype=object), (0, 2, 4)),
        (pd.array([True, False] * 3, dtype="boolean"), (0, 2, 4)),
        ([3, -1], (3, 5)),
        ([3.0, -1.0], (3, 5)),
        (pd.Series([3, None, 1]).dropna(), (3, 1)),
        (pd.array([3, -1], dtype="Int64"), (3, 5)),
        (np.array([3, 1], dtype=object), (3, 1)),
        (slice(1, 3), (1, 2)),
        (2, (2,)),
        (np.int64(2), (2,)),
        (torch.tensor(2), (2,)),
    ],
)
def test_masks_and_positions_select_those_individuals(index, expected):
    data = read(plants(6))
    assert data.subset(index).labels == expected
    assert torch.equal(data.subset(index).response[0], data.response[expected[0]])


def test_zero_and_one_once_each_are_positions_of_two_individuals():
    assert read(plants(2)).subset([1, 0]).labels == (1, 0)


def test_positions_may_be_of_a_type_shorter_than_the_number_of_individuals():
    assert read(plants(200)).subset(np.array([1, -1], dtype=np.int8)).labels == (1, 199)
    assert read(plants(300)).subset(torch.tensor([1, 2], dtype=torch.uint8)).labels == (1, 2)


def test_a_start_may_be_an_array_without_axes():
    data = read(plants(6))
    fit, again = (
        MODEL.fit(data, seed=1, particles=64, start={"tau": kind(50.0)}, progress=False)
        for kind in (float, np.array)
    )
    assert again.log_likelihood() == fit.log_likelihood()


def test_names_select_individuals():
    data = read(plants(3).assign(plant=lambda f: "p" + f["plant"].astype(str)))
    assert data.subset(["p2", "p0"]).labels == ("p2", "p0")
    assert data.subset("p1").labels == ("p1",)
    assert data.subset(pd.Series(["p1"])).labels == ("p1",)


def test_individuals_and_times_may_be_the_index_of_a_table():
    assert read(plants(3).set_index("plant")).labels == (0, 1, 2)
    assert read(plants(3).set_index(["plant", "day"])).n_observations == 3 * len(DAYS)


def test_values_of_numpy_are_written_as_their_numbers_and_words():
    with pytest.raises(nf.DataError, match="Column 'side' is False in row 0"):
        read(plants(3).assign(side=False), censoring="side")
    with pytest.raises(nf.ModelError, match=r"sigma is a number above 0, got 0\.0\."):
        simulated(sigma=np.float64(0))


def test_a_factor_of_a_fit_that_is_no_number_is_not_called_a_covariance():
    factor = torch.full((2, 2), torch.nan, dtype=torch.float64)
    assert GaussianLaw(torch.zeros(2).double(), factor).log_prob(torch.zeros(3, 2).double()).isnan().all()


def test_one_limit_for_all_rows_is_a_column_too():
    with pytest.raises(nf.DataError, match=r"No column '0\.1'.*frame\.assign"):
        read(plants(3).assign(side=""), censoring="side", limit=0.1)


def test_names_that_differ_in_capitals_are_two_and_this_is_said():
    frame = plants(3).assign(plant=lambda f: f["plant"].map({0: "Ler", 1: "ler", 2: "Col"}))
    with pytest.warns(UserWarning, match="'Ler' and 'ler'") as caught:
        assert read(frame).labels == ("Ler", "ler", "Col")
    assert caught[0].filename == __file__


def test_an_argument_that_is_missing_or_unknown_is_named_with_its_function():
    with pytest.raises(TypeError, match=r"compare\(\) missing 1 required positional argument: 'laws'"):
        nf.compare(MODEL, read(plants(3)))
    with pytest.raises(TypeError, match=r"compare\(\) got an unexpected keyword argument 'law'"):
        nf.compare(MODEL, read(plants(3)), law=nf.Gaussian())


@pytest.mark.slow
def test_where_warnings_are_errors_a_first_model_is_built_and_fitted():
    code = "import warnings, nlmeflow as nf; warnings.simplefilter('error'); nf.Model(nf.curves.linear())"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_whole_floats_are_positions_like_whole_numbers_unless_names_have_fractions():
    later = read(plants(4).assign(plant=lambda f: f["plant"] + 1.0))
    assert later.subset([1.0, 2.0]).labels == later.subset([1, 2]).labels == (2.0, 3.0)
    halves = read(plants(4).assign(plant=lambda f: f["plant"] / 2))
    assert halves.subset([1.0]).labels == (1.0,)
    assert halves.subset([1.0, 0.5]).labels == (1.0, 0.5)


MASKS_OF_NUMBERS = [list, np.array, pd.Series, lambda x: pd.Series(x, index=[5, 4, 3, 2, 1, 0]).astype(float)]
MASKS_OF_NUMBERS += [lambda x: torch.tensor(x, dtype=torch.uint8), lambda x: pd.array(x, dtype="Int64")]
MASKS_OF_NUMBERS += [lambda x: np.array(x, dtype=object)]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([True, False], "2 values for 6 individuals"),
        ([6], "Position 6 is out of range: there are 6 individuals"),
        (["x"], "No individual 'x'"),
        ([0.5], "No individual 0.5"),
        *((kind([1, 0, 0, 1, 1, 0]), "may be a mask") for kind in MASKS_OF_NUMBERS),
        ([], "chooses nobody"),
        ([False] * 6, "chooses nobody"),
        ([[0, 1]], "one axis"),
        ([[0], [1, 2]], "An index is a mask"),
        (None, "An index is a mask.*got None"),
        (slice("p0", "p2"), "a slice of them"),
        (1.5, "No individual 1.5"),
        (pd.Series([True, None] * 3, dtype="boolean"), "empty cells"),
        (pd.Series([True] * 6, index=list("abcdef")), "other names"),
        (pd.Series([True, None] * 3, dtype=object), "empty cells"),
        (np.array([[True, False] * 3], dtype=object), "one axis"),
    ],
)
def test_other_indices_are_refused(index, message):
    with pytest.raises(nf.DataError, match=message):
        read(plants(6)).subset(index)


# tables


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: pd.concat([f, f[["y"]]], axis=1), "Column 'y' stands twice"),
        (lambda f: f.assign(day=pd.to_timedelta(f["day"], unit="D")), "holds durations"),
        (lambda f: f.assign(day=pd.to_datetime("2024-01-01") + pd.to_timedelta(f["day"], unit="D")), "dates"),
        (lambda f: f.assign(day=pd.PeriodIndex(["2024-01"] * len(f), freq="M")), "dates"),
        (lambda f: f.assign(plant=[str(p) if k else p for k, p in enumerate(f["plant"])]), "0 and '0'"),
        (lambda f: f.assign(plant="p" + f["plant"].astype(str) + np.where(f["day"] > 50, " ", "")), "'p0 '"),
        (
            lambda f: f.assign(plant=[("b", p) for p in f["plant"]]),
            r"is \('b', 0\) in row 0; a name is one word",
        ),
        (lambda f: f.assign(plant=f["plant"].where(f.index != 5).map(str)), "is 'nan' in row 5, as empty"),
        (
            lambda f: f.assign(plant=f["plant"].astype(str).where(f.index != 5, " ")),
            "is ' ' in row 5, as empty",
        ),
        (lambda f: f.rename(columns={"y": "y\u200b"}), r"No column 'y' .* Is it 'y\\u200b'\?"),
        (lambda f: f.assign(plant=[[1, 2]] * len(f)), r"'plant' is \[1, 2\] in row 0; a name is one word"),
        (
            lambda f: f.groupby(["plant", "day"]).agg({"y": ["mean"]}).reset_index(),
            r"2 levels, such as \('y', 'm",
        ),
        (lambda f: [1, 2], "got list"),
        (lambda f: "nowhere.csv", "No file 'nowhere.csv'"),
    ],
)
def test_tables_that_mislead_are_refused(change, message):
    with pytest.raises(nf.DataError, match=message):
        read(change(plants(3)))


@pytest.mark.parametrize("unseen", ["\u200b", "\u00ad", "\ufeff"])
def test_names_that_differ_in_what_is_not_seen_are_made_one_by_the_advice(unseen):
    frame = plants(3).assign(plant=lambda f: "p" + f["plant"].astype(str))
    frame.loc[4, "plant"] = f"p{unseen}0"
    with pytest.raises(nf.DataError, match="which would be two different names") as error:
        read(frame)
    frame["plant"] = eval(
        str(error.value).partition("frame['plant'] = ")[2].removesuffix("."), {"frame": frame}
    )
    assert read(frame).labels == ("p0", "p1", "p2")


def test_a_level_that_is_an_empty_cell_is_refused():
    words = plants(4).assign(w=lambda f: np.where(f["plant"] == 2, np.nan, f["plant"] % 2))
    with pytest.raises(nf.DataError, match="Column 'w' is 'nan' in row 18"):
        read(words.assign(w=words["w"].map(str)), covariates=["w"])


def test_one_column_has_one_role():
    with pytest.raises(nf.DataError, match="'day' cannot be both time and response"):
        nf.LongitudinalData.from_frame(plants(3), "plant", "day", "day")
    with pytest.raises(nf.DataError, match="'y' cannot be both response and covariate y"):
        read(plants(3), covariates=["y"])


def test_ties_are_counted_and_kept_on_request():
    frame = plants(3).assign(plant=lambda f: f["plant"] + 20240500012345677)
    twice = pd.concat([frame, frame.iloc[[10]]])
    with pytest.raises(nf.DataError, match=r"'20240500012345678' \(plant\) has 2 rows .* rows 10, 27"):
        read(twice)
    data = read(twice, replicates="keep")
    assert data.n_observations == 28
    assert data.time[1].tolist().count(35.0) == 2


def test_categories_may_say_what_is_censored():
    frame = plants(3).assign(k=lambda f: pd.Categorical(np.where(f["y"] < 0.05, "left", None)))
    assert int(read(frame, censoring="k").censored.sum()) == int((frame["y"] < 0.05).sum())
    with pytest.raises(nf.DataError, match="'y' is empty in row 7"):
        read(frame.assign(y=np.nan), censoring="k")


def test_regular_data_are_whole_or_refused():
    time, response = torch.arange(3).repeat(2, 1), torch.ones(2, 3)
    data = nf.LongitudinalData.regular(time, response, pd.DataFrame({"w": [1, 2]}))
    assert data.time.dtype == data.response.dtype == torch.float64
    assert data == nf.LongitudinalData.regular(time.double(), response.double(), data.covariates)
    with pytest.raises(nf.DataError, match="7 rows for 2 individuals"):
        nf.LongitudinalData.regular(time, response, pd.DataFrame({"w": range(7)}))
    response[1, 2] = torch.nan
    with pytest.raises(nf.DataError, match=r"response\[1, 2\] is nan; it must be finite"):
        nf.LongitudinalData.regular(time, response)


def test_an_index_may_have_any_name(tmp_path):
    frame = plants(5).rename(columns={"plant": "line"})
    frame["line"] = "G" + frame["line"].astype(str)
    named = frame.set_index("line", drop=False)
    roles = ("line", "day", "y")
    data = nf.LongitudinalData.from_frame(named.assign(trial="T"), *roles, group="trial")
    assert data.labels == ("G0", "G1", "G2", "G3", "G4")
    frame.to_csv(tmp_path / "my.csv", index=False)
    assert nf.LongitudinalData.from_frame(tmp_path / "my.csv", *roles).labels == data.labels
    with pytest.raises(nf.DataError, match="'y' is infinite in row 3;"):
        nf.LongitudinalData.from_frame(
            named.assign(y=frame["y"].where(frame.index != 3, np.inf).array), *roles
        )


def test_data_are_equal_when_they_hold_the_same():
    assert read(plants()) == read(plants())
    assert read(plants()) != read(plants(seed=2))
    assert read(plants()) != 3


# models and fits


@pytest.mark.parametrize(
    "function",
    [
        lambda t, p: 1 / (1 + np.exp((t - p["tau"]) / p["s"])),
        lambda t, p: t * 0 if p["tau"] > 1 else t,
        lambda t, p: torch.ones(3),
        lambda t, p: (t + p["tau"]).float(),
        lambda t, p: p["missing"] * t,
    ],
)
def test_a_curve_that_is_not_torch_is_found_when_the_model_is_built(function):
    curve = nf.Curve(function, [nf.Parameter("tau"), nf.Parameter("s", "log")])
    with pytest.raises(nf.ModelError, match="use torch functions of t and psi"):
        nf.Model(curve)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MODEL.fit(plants()), "LongitudinalData.from_frame"),
        (lambda: fitted(plants(), start=[1, 2]), "start holds first values by parameter"),
        (lambda: fitted(plants(), start={"sigma": 0.1}), r"no first value; Additive\(sigma=...\) holds"),
        (
            lambda: MODEL.simulate(
                nf.laws.GaussianLaw(torch.zeros(1), torch.eye(1)), [1], 3, 1, -1.0, A=1, s=3
            ),
            "sigma",
        ),
        (lambda: nf.Flow(hidden=8), "hidden lists the widths"),
        (lambda: nf.Mixture(2.5), "components is a whole number"),
        (lambda: nf.NPML("low"), "tolerance is positive, in nats; got 'low'"),
    ],
)
def test_what_cannot_be_meant_is_refused(call, message):
    with pytest.raises(nf.ModelError, match=message):
        call()


@pytest.fixture(scope="module")
def two():
    """A fit of two random parameters, tau and s, among 20 plants 0 to 19."""
    return fitted(plants(), nf.Model(CURVE, fixed=("A",)))


LINE = nf.laws.GaussianLaw(torch.zeros(1).double(), torch.eye(1).double())
PLANE = nf.laws.GaussianLaw(torch.tensor([50.0, 1.1]).double(), torch.eye(2).double())
POINTS = nf.laws.DiscreteLaw(torch.eye(2).double(), torch.tensor([0.4, 0.6]).double())
LINES = nf.linear_scenarios.load("bimodal", 20).data
GRID = np.linspace(0, 1, 5)
AN_ARRAY = np.zeros((2, 3))


def simulated(model=None, law=PLANE, times=DAYS, n=5, seed=1, sigma=0.04, **fixed):
    return (model or nf.Model(CURVE, fixed=("A",))).simulate(
        law, times, n, seed, sigma, **({"A": 1.0} | fixed)
    )


def npde_of(*values):
    return nf.diagnostics.npde_tests(pd.DataFrame({"npde": values}))


WRONG = {
    # names that are not there
    "individual": (
        lambda fit: nf.plots.trajectories(fit, ["x"]),
        r"No individual 'x' in the fit.* \[0, 1, 2",
    ),
    "individuals": (lambda fit: nf.plots.trajectories(fit, "x"), "individuals is a list"),
    "mask of individuals": (
        lambda fit: nf.plots.trajectories(fit, np.arange(20) > 16),
        "subset.mask..labels",
    ),
    "mask of numbers": (lambda fit: nf.plots.trajectories(fit, [1, 0, 0]), "subset.mask..labels"),
    "marginal": (lambda fit: nf.plots.marginals({}, fit, "A"), "No parameter 'A' in the law; it has tau, s"),
    "pair": (
        lambda fit: nf.plots.population(fit, ("tau", "x")),
        "No parameter 'x' in the law; it has tau, s",
    ),
    "pair of three": (lambda fit: nf.plots.population(fit, ("tau", "s", "A")), "pair is 2 values"),
    "pair of one": (
        lambda fit: nf.plots.population(fit, ("s", "s")),
        "pair names two parameters among tau, s",
    ),
    "kind of prediction": (
        lambda fit: nf.plots.observed_predicted(fit, "x"),
        "kind is 'individual' or 'population', got 'x'",
    ),
    "convergence": (lambda fit: nf.plots.saem_paths(fit), "not made by nf.SAEM"),
    "against": (lambda fit: nf.Comparison.table(None, ["x"]), "against is a string"),
    "scenario": (lambda fit: nf.scenarios.load(["L1"]), "name is a string"),
    "column": (lambda fit: nf.LongitudinalData.from_frame(plants(3), ["plant"], "day", "y"), "one column"),
    "covariates": (lambda fit: read(plants(3), covariates=3), "No column '3'"),
    "columns of tests": (lambda fit: nf.diagnostics.npde_tests(plants(3)), "No column 'npde'"),
    "columns of light": (lambda fit: nf.datasets.high_light(plants(3)), "No column 'timepoints'"),
    "terms": (lambda fit: nf.Model(CURVE, covariates="tau"), "covariates holds terms by parameter"),
    "term": (lambda fit: nf.Model(CURVE, covariates={"tau": 3}), "a formula is a list, each a string"),
    "fixed": (lambda fit: nf.Model(CURVE, fixed=3), "fixed is a list, each a string"),
    "kind of flow": (lambda fit: nf.Flow(kind=3), "kind is 'realnvp' or"),
    "covariance": (lambda fit: nf.Gaussian("banded"), "covariance is 'full' or 'diagonal', got 'banded'"),
    # things of another kind
    "fit": (lambda fit: nf.plots.vpc(fit.data), "fit is a Fit, got a LongitudinalData"),
    "bands": (lambda fit: nf.plots.bands(fit, "tau"), "bands is a Bands, got a Fit"),
    "data of a fit": (lambda fit: fit.log_likelihood(plants()), "an nf.LongitudinalData, got DataFrame"),
    "data of lines": (lambda fit: nf.deconvolve(plants()), "data is a LongitudinalData, got a DataFrame"),
    "model": (lambda fit: nf.compare(CURVE, fit.data, nf.Gaussian()), "model is a Model, got a Curve"),
    "laws": (lambda fit: nf.compare(MODEL, fit.data, [fit.law]), "laws is a Specification or"),
    "named laws": (lambda fit: MODEL.fit_laws(fit.data, nf.Flow()), "laws are specifications by name"),
    "law": (lambda fit: nf.metrics.kl(fit.law, fit), "estimate is a Law, got a Fit"),
    "laws to draw": (lambda fit: nf.plots.marginals(fit.law, fit, "s"), "laws is a mapping of names"),
    "no laws": (lambda fit: nf.plots.side_by_side({}, ("a", "b")), "at least one law"),
    "path": (lambda fit: fit.save(3), "path is a string or a Path, got 3"),
    "parameters": (lambda fit: nf.Curve(lambda t, p: t, ["tau"]), "parameters is a list, each a Parameter"),
    "parameter": (lambda fit: nf.Parameter(3), "a word such as 'tau', got 3"),
    "phi": (lambda fit: fit.law.log_prob(AN_ARRAY), r"torch tensor \(..., 2\), got ndarray"),
    "mean": (lambda fit: nf.laws.GaussianLaw([0.0], torch.eye(1)), r"mean is a Tensor, got \[0.0\]"),
    "factor": (lambda fit: nf.laws.GaussianLaw(torch.zeros(3), torch.eye(2)), r"\(3,\) and \(2, 2\)"),
    "factors": (
        lambda fit: nf.laws.MixtureLaw(torch.ones(1), torch.zeros(1, 2), torch.eye(2), torch.eye(2)),
        r"\(1, 2\) and \(2, 2\)",
    ),
    "floor of zero": (
        lambda fit: nf.laws.MixtureLaw(
            torch.ones(1), torch.zeros(1, 1), torch.ones(1, 1, 1), torch.zeros(1, 1)
        ),
        r"without a zero on its diagonal; got \[\[0.0\]\]",
    ),
    "covariance as factor": (
        lambda fit: nf.laws.GaussianLaw(torch.zeros(2), torch.tensor([[1, 0.5], [0.5, 1]])),
        "A factor is lower triangular",
    ),
    "sum of weights": (
        lambda fit: nf.laws.MixtureLaw(torch.ones(2), torch.zeros(2, 1), torch.ones(2, 1, 1), torch.eye(1)),
        "Weights are 0 or more and sum to 1; the least is 1, the sum 2",
    ),
    "negative weight": (
        lambda fit: nf.laws.StackedLaw((LINE, LINE), torch.tensor([1.5, -0.5])),
        "the least is -0.5, the sum 1",
    ),
    "weights of points": (
        lambda fit: nf.laws.DiscreteLaw(torch.zeros(3, 1), torch.ones(2) / 2),
        r"each of 3; got shape \(2,\)",
    ),
    "weights of kernels": (
        lambda fit: nf.laws.KernelLaw(torch.ones(2), torch.zeros(2, 1), torch.eye(1)),
        "sum 2",
    ),
    "negative factor": (
        lambda fit: nf.laws.GaussianLaw(torch.zeros(2), -torch.eye(2)),
        "The diagonal of a factor is not negative",
    ),
    "no covariate": (lambda fit: nf.conditional_flow(fit.model, fit.data, []), "on names at least one covar"),
    "shapes": (lambda fit: nf.LongitudinalData.regular(torch.zeros(2, 3), torch.zeros(2, 4)), r"\(2, 4\)"),
    # numbers out of range
    "draws": (lambda fit: fit.law.sample(-1, 1), "n is a whole number from 0, got -1"),
    "draws of points": (lambda fit: LINE.sample(2.5, 1), "n is a whole number from 0, got 2.5"),
    "draws of a distance": (lambda fit: nf.metrics.total_variation(PLANE, PLANE, n=0), "n is a whole number"),
    "dimensions": (lambda fit: nf.metrics.hellinger(PLANE, LINE), "2 and of 1 dimensions"),
    "dimensions of kl": (lambda fit: nf.metrics.kl(PLANE, LINE), "2 and of 1 dimensions"),
    "draws of kl": (lambda fit: nf.metrics.kl(PLANE, PLANE, n=0), "n is a whole number from 1, got 0"),
    "draws outside": (lambda fit: nf.metrics.mass_outside(PLANE, PLANE, n=0), "n is a whole number from 1"),
    "draws of a share": (lambda fit: nf.metrics.error_of_share(PLANE, PLANE, 0, 1.0, n=0), "from 1, got 0"),
    "law of another dimension": (
        lambda fit: nf.plots.marginals({"x": LINE}, fit, "s"),
        "'x' has dimension 1",
    ),
    "axis": (lambda fit: nf.marginals.span(PLANE, 2), "whole number from 0 to 1, got 2"),
    "axes": (
        lambda fit: nf.marginals.marginal_density(PLANE, [0, 1], [GRID]),
        "grid is needed for each of 2",
    ),
    "grid beside the law": (
        lambda fit: nf.plots.density(PLANE, (GRID, GRID + 99)),
        "no density at the points",
    ),
    "points": (lambda fit: nf.plots.trajectories(fit, points=0), "points is a whole number from 2"),
    "prominence": (
        lambda fit: nf.metrics.modes(PLANE, prominence=2),
        "prominence is a number between 0 and 1",
    ),
    "quantiles": (lambda fit: nf.diagnostics.vpc(fit, quantiles=0.5), "quantiles is a list, each a number"),
    "level": (lambda fit: nf.diagnostics.vpc(fit, level="a"), "level is a number, got 'a'"),
    "folds": (lambda fit: nf.compare(MODEL, fit.data, nf.Gaussian(), folds=2.5), "folds is a whole number"),
    "folds of one": (
        lambda fit: nf.compare(
            MODEL, read(plants().assign(g="x"), covariates=["g"]), nf.Gaussian(), groups="g"
        ),
        "Everybody would be held out together",
    ),
    "most folds": (lambda fit: nf.compare(MODEL, fit.data, nf.Gaussian(), folds=21), "from 2 to 20, got 21"),
    "n": (lambda fit: nf.scenarios.load("L1", n=1), "n is a whole number from 2, got 1"),
    "noise": (lambda fit: nf.linear_scenarios.load("gamma", sigma=-1), "sigma is a number above 0, got -1"),
    "grid": (lambda fit: nf.deconvolve(LINES, points=0), "points is a whole number from 16, got 0"),
    "sigma": (lambda fit: nf.Additive([1]), r"sigma must be positive and finite, got \[1\]"),
    "start": (lambda fit: CURVE.with_starts(tau="a"), "tau = 'a' is not a number in"),
    "bound": (lambda fit: nf.bounded(0, None), "upper is a number, got None"),
    "bandwidth": (lambda fit: nf.SmoothNPMLE(bandwidth=0), "bandwidth is a number between 0 and 10"),
    "dose": (lambda fit: nf.curves.oral(-1.0), "dose is a number above 0, got -1.0"),
    "no dose": (lambda fit: nf.curves.oral(None), "dose is a number or a string, got None"),
    "doses at once": (lambda fit: nf.curves.infusion([1, 2], 1.0), "dose is a number or a string, got"),
    "duration": (lambda fit: nf.curves.infusion(1.0, float("nan")), "duration is a number"),
    "corner": (lambda fit: nf.curves.change_point(0), "smoothness is a number above 0, got 0"),
    "points' bandwidth": (lambda fit: POINTS.smoothed(-1), "bandwidth is a number above 0, got -1"),
    "points' names": (lambda fit: POINTS.frame(("tau",)), "The law has 2 coordinates; names are 1"),
    "phi of a curve": (lambda fit: fit.predict(np.ones((3, 1)), [1.0]), r"phi is \(K, 2\): tau, s; got"),
    "times of a curve": (lambda fit: fit.predict(np.ones((3, 2)), 1.0), "times is a list, each a number"),
    "grid of bands": (
        lambda fit: Bands(fit.law, (fit.law,) * 2, {"tau": "tau"}, 0.9).table("tau", ["early"]),
        "grid is a list, each a number, got",
    ),
    "words for errors": (lambda fit: npde_of("low", "high"), "'npde' is not a number in row 0: 'low'"),
    "missing error": (lambda fit: npde_of(0.1, np.nan), "'npde' is missing in row 1"),
    # simulations
    "two scales": (lambda fit: simulated(sigma=[0.1, 0.2]), "sigma holds 1 values, sigma; got"),
    "one scale of two": (
        lambda fit: simulated(nf.Model(CURVE, nf.Combined(), ["A"])),
        "2 values, a, b; got 0.04",
    ),
    "no scale": (lambda fit: simulated(sigma=float("nan")), "sigma is a number or a list, each a number"),
    "fixed value": (lambda fit: simulated(A=-1.0), "A = -1.0 is not a number in"),
    "fixed name": (lambda fit: simulated(B=1.0), "values of the fixed parameters: A"),
    "dimension": (lambda fit: simulated(law=LINE), "dimension 1; tau, s vary"),
    "times": (lambda fit: simulated(times=["a"]), "times is a list, each a number"),
    "missing time": (lambda fit: simulated(times=[1.0, float("nan")]), "times is a list, each a number"),
    "table of times": (lambda fit: simulated(times=AN_ARRAY), "times is a list, each a number"),
    "doses": (lambda fit: simulated(nf.Model(nf.curves.oral())), "without doses and covariates"),
    "levels": (lambda fit: simulated(nf.Model(CURVE, fixed=["A"], within=["s"])), "models with one level"),
    # more than the memory holds
    "particles": (
        lambda fit: fit.model.fit(fit.data, particles=5_000_000),
        "particles=5,000,000 would keep 900,000,000 predictions in memory, 7 GB; at most 2,222,222 are",
    ),
    "a population": (lambda fit: fit.population(10**12), "n is a whole number from 1 to 10000000, got 10000"),
    "replicates of npde": (lambda fit: nf.diagnostics.npde(fit, 4_000_000), "at most 2,222,222 are accepted"),
    "replicates of vpc": (lambda fit: nf.diagnostics.vpc(fit, 4_000_000), "at most 2,222,222 are accepted"),
    "points of a law": (
        lambda fit: nf.NPML(points=10**7),
        "points is a whole number from 1 to 1000000, got 10000000",
    ),
}


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_argument_is_answered_with_what_would_be_accepted(two, call, message):
    with pytest.raises((nf.ModelError, nf.DataError), match=message):
        call(two)


def test_memory_that_does_not_suffice_is_named():
    with pytest.raises(nf.EstimationError, match="memory does not suffice; fewer draws"), estimating():
        torch.zeros(10**13)


NO_NUMBER = torch.full((2,), float("nan")).double()


@pytest.mark.parametrize(
    "use",
    [
        lambda: nf.metrics.kl(PLANE, GaussianLaw(NO_NUMBER, torch.eye(2).double())),
        lambda: nf.metrics.hellinger(PLANE, GaussianLaw(NO_NUMBER, torch.eye(2).double())),
        lambda: simulated(law=GaussianLaw(PLANE.mean, NO_NUMBER.diag())),
    ],
)
def test_a_law_whose_values_are_no_numbers_gives_none(use):
    with pytest.raises(nf.ModelError, match=r"not a number at draws|not finite numbers"):
        use()


def test_weights_that_are_no_numbers_are_refused():
    with pytest.raises(nf.ModelError, match="sum to 1; the least is nan"):
        nf.laws.DiscreteLaw(torch.eye(2).double(), NO_NUMBER)


@dataclass(frozen=True)
class Tailed(Specification):
    """One individual in a hundred may be anywhere: no data are so."""

    name = "tailed"

    def learn(self, training):
        gaussian = nf.Gaussian().learn(training)
        return StackedLaw.weighted([gaussian, gaussian.inflated(60.0)], torch.tensor([0.99, 0.01]).double())

    def refit(self, training, weights):
        return [self.learn(training)] * len(weights)


def test_a_spread_that_is_a_tail_s_is_doubted():
    data = read(plants())
    assert "warning" not in MODEL.fit(data, nf.Gaussian(), seed=1, particles=64).summary().numbers
    warned = MODEL.fit(data, Tailed(), seed=1, particles=64).summary().numbers["warning"]
    assert "standard deviation of 'tau' in the population" in warned
    assert "made by a tail of the law" in warned


@pytest.mark.slow
def test_points_with_fixed_parameters_reach_their_maximum_in_much_noise():
    """Full scoring steps of the fixed parameters led to a curve without slope."""
    random, day = np.random.default_rng(1), np.linspace(30, 70, 4)
    onset = 50 + random.normal(0, 8, 24)
    y = 1 / (1 + np.exp((day - onset[:, None]) / 3)) + random.normal(0, 0.25, (24, 4))
    frame = pd.DataFrame({"plant": np.repeat(range(24), 4), "day": np.tile(day, 24), "y": y.ravel()})
    model = nf.Model(CURVE, nf.Additive(), fixed=("A", "s"))
    fits = model.fit_laws(read(frame), {"npml": nf.NPML(), "npag": nf.NPAG()}, seed=1)
    assert all(fit.converged for fit in fits.values())
    reached = {name: fit.log_likelihood().value for name, fit in fits.items()}
    assert reached["npml"] == pytest.approx(reached["npag"], abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("law", [nf.Gaussian(), nf.Mixture(2), nf.Flow(steps=5, folds=2), nf.NPML()])
def test_torch_set_to_double_precision_changes_no_number(law):
    data = read(plants())

    def drawn():
        return MODEL.fit(data, law, seed=1, particles=64).law.sample(20, 1)

    usual = drawn()
    try:
        torch.set_default_dtype(torch.float64)
        assert torch.equal(drawn(), usual)
    finally:
        torch.set_default_dtype(torch.float32)


def test_torch_set_to_compute_otherwise_is_refused(fit):
    try:
        torch.set_default_dtype(torch.float16)
        with pytest.raises(
            nf.ModelError, match=r"defaults are torch.float16 on cpu. Set torch.set_default_d"
        ):
            fit.summary()
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"), pytest.raises(nf.ModelError, match=r"defaults are torch.float32 on meta"):
        fit.population(10)


USES_OF_SEEDS = {
    "fit": lambda fit, seed: MODEL.fit(fit.data, seed=seed),
    "compare": lambda fit, seed: nf.compare(MODEL, fit.data, nf.Gaussian(), seed=seed),
    "population": lambda fit, seed: fit.population(3, seed),
    "bands": lambda fit, seed: fit.bands(10, seed=seed),
    "sample": lambda fit, seed: fit.law.sample(3, seed),
    "simulate": lambda fit, seed: simulated(seed=seed),
    "vpc": lambda fit, seed: nf.diagnostics.vpc(fit, 20, seed=seed),
    "npde": lambda fit, seed: nf.plots.npde(fit, replicates=100, seed=seed),
    "scenario": lambda fit, seed: nf.scenarios.load("L1", seed=seed),
    "linear scenario": lambda fit, seed: nf.linear_scenarios.load("gamma", seed=seed),
    "distance": lambda fit, seed: nf.metrics.total_variation(PLANE, PLANE, seed=seed),
}


@pytest.mark.parametrize("use", USES_OF_SEEDS.values(), ids=USES_OF_SEEDS)
@pytest.mark.parametrize("seed", [-1, 1.5, "a", None, True, 2**63])
def test_a_seed_is_a_whole_number(two, use, seed):
    with pytest.raises(nf.ModelError, match="seed is a whole number"):
        use(two, seed)


def test_what_is_clear_is_taken():
    assert torch.equal(PLANE.sample(np.float64(3), np.int64(1)), PLANE.sample(3, 1.0))
    assert nf.Curve(lambda t, p, x: t, [nf.Parameter("a")], inputs="dose").inputs == ("dose",)
    assert nf.Flow(hidden=[8], kind=["spline"]) == nf.Flow(hidden=(8,), kind=("spline",))
    model = nf.Model(CURVE, nf.Additive, fixed=("A", "s"))
    one = model.fit(read(plants()), nf.Gaussian, seed=np.int64(1), particles=256.0, progress=False)
    assert one.converged
    assert one.seed == 1
    table = nf.compare(MODEL, read(plants()), nf.Gaussian(), folds=3, progress=False)
    assert list(table.fits) == ["gaussian"]


def test_a_population_has_somebody(fit):
    with pytest.raises(nf.ModelError, match="n is a whole number from 1, got -1"):
        fit.population(-1)


@pytest.mark.parametrize("size", [(1e9, 1e-9), (1e-9, 1e9), (1e9, 1e9), (1e-9, 1e-9)])
def test_units_of_time_and_response_change_nothing_else(fit, size):
    time, response = size
    other = fitted(plants().assign(day=lambda f: f["day"] * time, y=lambda f: f["y"] * response))
    assert float(other.law.mean[0]) / time == pytest.approx(float(fit.law.mean[0]), rel=1e-6)
    assert other.fixed["s"] / time == pytest.approx(fit.fixed["s"], rel=1e-6)
    assert other.residual["sigma"] / response == pytest.approx(fit.residual["sigma"], rel=1e-6)


def broken(**change):
    with pytest.raises(nf.EstimationError) as caught:
        fitted(plants().assign(**change))
    return str(caught.value)


def test_responses_that_no_individual_changes_are_refused_at_once():
    frame = plants(6).assign(y=lambda f: 2.0 * f["plant"])
    with pytest.raises(
        nf.ModelError, match="of every plant is the same at all its times, such as y = 0 of '0'"
    ):
        fitted(frame)
    mostly = frame.assign(y=frame["y"].where(frame.index != 3, 0.5))
    assert nf.Model(nf.curves.linear(), nf.Additive(0.1)).task(read(frame)) is not None
    assert nf.Model(nf.curves.linear()).task(read(mostly)) is not None


@pytest.mark.slow
def test_a_failure_says_what_is_wrong_with_the_data():
    assert "takes two values only (0 and 1)" in broken(y=lambda f: (f["y"] > 0.5) * 1.0)
    assert "plant '2' has y = -999 at day = 35" in broken(y=lambda f: f["y"].where(f.index != 19, -999.0))
    straight = plants(sd=0.0)
    with pytest.raises(nf.EstimationError, match="residual error"):
        fitted(straight)


@pytest.mark.parametrize("starts", [{"tau": 1e6}, {"s": 1e-6, "tau": 50.0}])
def test_first_values_from_which_a_fit_fails_are_named_before_other_causes(starts):
    said = re.escape(", ".join(f"{name} = {value:g}" for name, value in starts.items()))
    with pytest.raises(
        nf.EstimationError, match=f"First values were given, {said}; left out, .* data.( Other|$)"
    ):
        MODEL.fit(read(plants()), seed=1, start=starts)
    with pytest.raises(nf.EstimationError, match="First values were given, "):
        fitted(plants(), nf.Model(CURVE.with_starts(**starts), fixed=("A", "s")))


def test_a_fixed_parameter_that_runs_off_is_named():
    """On a scale without ends a value far beyond the units of time and response is none."""
    random, time = np.random.default_rng(2), torch.linspace(50, 100, 8, dtype=torch.float64).expand(12, -1)
    data = nf.LongitudinalData.regular(time, torch.from_numpy(10 + random.standard_normal((12, 8))))
    state = State(
        GaussianLaw(torch.tensor([10.0, 0.0]).double(), torch.eye(2).double()),
        torch.tensor([-4e31]).double(),
        torch.ones(1).double(),
    )
    model = nf.Model(nf.curves.exponential_recovery(), fixed=("y0",))
    farthest = reach(model.problem(data))
    with pytest.raises(nf.EstimationError, match="Parameter 'y0' ran off"):
        check_finite(model, state, farthest)
    check_finite(model, replace(state, beta=torch.tensor([1e6]).double()), farthest)


@pytest.mark.slow
def test_a_start_does_not_go_to_where_a_parameter_moves_nothing():
    """Two times late after an oral dose, and next to nothing of the absorption in sight."""
    known = nf.scenarios.load("P1", "H", 200, 7)
    fit = known.model.fit(known.data, seed=7, progress=False)
    state = State(nf.scenarios.best_gaussian(known.law), known.beta, torch.tensor([known.sigma]).double())
    assert fit.log_likelihood().value > replace(fit, law=state.law, sigma=state.sigma).log_likelihood().value


def test_a_start_does_not_stay_where_a_fixed_parameter_moves_nothing():
    """Eight times, noise of half the signal: linearised steps lead to s = 1e-14 days, where curves jump."""
    known = nf.scenarios.random(35, 1)
    assert known.model.fixed == ("A", "s")
    fit = known.model.fit(known.data, seed=35, particles=256, progress=False)
    assert fit.converged
    assert 1 < fit.fixed["s"] < 9
    assert abs(float(fit.law.mean) - 50) < 1


def test_a_likelihood_that_is_no_number_names_the_parameter_that_moved(two):
    away = replace(two.law, factor=torch.diag(torch.tensor([1.0, 1e-36]).double()) @ two.law.factor)
    assert "Parameter 's' ran off until the log-likelihood became NaN" in _ran_off(
        two.problem(), two.law, away
    )


def test_a_fit_that_has_not_converged_says_along_what_it_still_rises(two):
    begun = replace(two, converged=False, sigma=0.7 * two.sigma)
    assert "the likelihood still rises, most along 'sigma'" in str(begun.summary())
    law = replace(two.law, mean=two.law.mean + torch.tensor([3.0, 0.0]).double())
    assert "most along the mean of 'tau'" in str(replace(two, converged=False, law=law).summary())


@pytest.mark.parametrize("column", ["day", "y"])
@pytest.mark.parametrize("size", [1e200, 1e-200])
def test_numbers_whose_squares_are_none_are_refused_with_advice_on_their_unit(column, size):
    frame = plants()
    with pytest.raises(nf.ModelError, match=rf"plant '\d+' has y = .*: give {column} in a unit in which"):
        fitted(frame.assign(**{column: frame[column] * size}))


def test_a_given_error_far_too_small_is_not_advised_to_be_given():
    with pytest.raises(nf.EstimationError, match=r"far from what the data show \(Additive\(sigma=1e-09\)\)"):
        fitted(plants(), nf.Model(CURVE, nf.Additive(sigma=1e-9), fixed=("A", "s")))


def test_times_far_from_their_origin_are_explained():
    found = suspicions(read(plants().assign(day=lambda f: f["day"] + 1.7e9)), nf.curves.linear())
    assert "begin at 1.7e+09 and span 40" in " ".join(found)
    assert suspicions(read(plants()), nf.curves.linear()) == []


def test_times_far_from_zero_are_no_cause_where_a_parameter_moves_the_curve_along_time():
    late = read(plants().assign(day=lambda f: f["day"] + 1e4))
    assert suspicions(late, nf.curves.logistic_senescence()) == []
    assert "subtract 10030" in " ".join(suspicions(late, nf.curves.exponential_recovery()))


def test_codes_for_missing_values_are_named_also_where_a_fit_converges():
    rows = plants().index % 10 == 3
    for code in (-9.0, 999.0):
        found = mistakes(read(plants().assign(y=lambda f, code=code: f["y"].where(~rows, code))))
        assert f"{rows.sum()} observations have y = {code:g}, far from all others" in " ".join(found)
    fit = MODEL.fit(read(plants().assign(y=lambda f: f["y"].where(~rows, 99.0))), seed=1, particles=128)
    assert "observations have y = 99, far from all others" in str(fit.summary())
    assert mistakes(read(plants())) == []


@pytest.mark.parametrize(
    ("column", "factor", "said"), [("y", 100, "has y of size"), ("day", 24, "is observed until day = 1680")]
)
def test_one_individual_in_another_unit_is_named(column, factor, said):
    frame = plants()
    frame[column] = frame[column].where(frame["plant"] != 3, frame[column] * factor).astype(float)
    (found,) = mistakes(read(frame))
    assert found.startswith("plant '3' ")
    assert said in found


def test_a_gaussian_is_fitted_to_as_few_observations_as_parameters():
    random = np.random.default_rng(2)
    dose = np.array([0.0, 10, 90])
    e0, top, half = (
        random.normal(25, 8, 80),
        random.normal(120, 50, 80),
        15 * np.exp(0.3 * random.normal(size=80)),
    )
    y = e0[:, None] + top[:, None] * dose / (half[:, None] + dose) + random.normal(0, 4, (80, 3))
    frame = pd.DataFrame({"plant": np.repeat(range(80), 3), "day": np.tile(dose, 80), "y": y.ravel()})
    fit = fitted(frame, nf.Model(nf.curves.emax()), law=nf.Gaussian("diagonal"))
    assert float(fit.law.mean[1]) == pytest.approx(120, abs=15)
    with pytest.raises(nf.ModelError, match=r"at most 3 observations.*take nf\.Gaussian"):
        fitted(frame, nf.Model(nf.curves.emax()), law=nf.Mixture())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("residual", "rounding", "words"),
    [
        (nf.Combined(), 0, r"exactly zero for 10 observations.*plant '0' has y = 0 at day = 0"),
        (nf.Combined(), 1e-12, r"exactly zero for 10 observations.*plant '0' has y = "),
        (nf.Proportional(), 0, r"responses other than zero.*plant '0' has y = 0 at day = 0"),
    ],
)
def test_a_curve_that_is_zero_leaves_no_unbounded_likelihood(residual, rounding, words):
    random = np.random.default_rng(1)
    times = np.array([0.0, 1, 2, 4, 8])
    ka = 1.5 * np.exp(0.3 * random.standard_normal((10, 1)))
    y = 10 * ka / (ka - 0.1) * (np.exp(-0.1 * times) - np.exp(-ka * times))
    y = y + random.standard_normal(y.shape) * np.where(times > 0, 0.2, rounding)
    frame = pd.DataFrame({"plant": np.repeat(range(10), 5), "day": np.tile(times, 10), "y": y.ravel()})
    model = nf.Model(nf.curves.oral(100.0), residual)
    with pytest.raises(nf.ModelError, match=words):
        fitted(frame, model)
    assert fitted(frame.query("day > 0"), model).converged


@pytest.mark.slow
def test_zeros_among_the_responses_leave_no_unbounded_likelihood():
    """Near a response of zero the density of a proportional error rises without end as the curve falls."""
    random, day = np.random.default_rng(1), np.arange(30.0, 100, 5)
    curve = 1 / (1 + np.exp((day - random.normal(50, 4, 30)[:, None]) / 3))
    y = curve * (1 + 0.08 * random.standard_normal(curve.shape)) + 0.01 * random.standard_normal(curve.shape)
    y = np.where(curve < 0.01, 0, y).clip(0).round(2)
    frame = pd.DataFrame({"plant": np.repeat(range(30), 14), "day": np.tile(day, 30), "y": y.ravel()})
    with pytest.raises(nf.ModelError, match=r"responses other than zero.*plant '0' has y = 0 at day = 70"):
        fitted(frame, nf.Model(CURVE, nf.Proportional(), fixed=("A", "s")))
    with pytest.raises(nf.EstimationError, match=r"responses are exactly zero.*censored"):
        fitted(frame, nf.Model(CURVE, nf.Combined(), fixed=("A", "s")))


@pytest.mark.slow
def test_a_proportional_error_knows_no_sign():
    random, t = np.random.default_rng(0), np.arange(1.0, 7)
    curve = np.exp(random.normal(0.5, 0.3, 15))[:, None] * np.exp(-0.2 * t)
    y = (curve * (1 + 0.1 * random.standard_normal(curve.shape))).ravel()
    frame = pd.DataFrame({"plant": np.repeat(range(15), 6), "day": np.tile(t, 15)})
    found = []
    for sign, side in ((1, "left"), (-1, "right")):
        decay = nf.Curve(
            lambda t, p, sign=sign: sign * p["A"] * torch.exp(-p["k"] * t),
            [nf.Parameter("A", "log"), nf.Parameter("k", "log")],
        )
        table = frame.assign(y=sign * y.clip(min=0.6), seen=np.where(y < 0.6, side, ""))
        model = nf.Model(decay, nf.Proportional(), fixed=("k",))
        found.append(model.fit(read(table, censoring="seen"), seed=1, progress=False))
    assert found[0].log_likelihood().value == pytest.approx(found[1].log_likelihood().value, abs=1e-6)
    assert found[0].residual["sigma"] == pytest.approx(found[1].residual["sigma"])


@pytest.mark.slow
@pytest.mark.parametrize("law", [nf.Gaussian(), nf.Mixture(), nf.SAEM()])
def test_where_time_begins_does_not_matter_to_lines(law):
    random, year = np.random.default_rng(1), np.arange(2010.0, 2016)
    line = random.multivariate_normal((10, 1), [[4, 0.18], [0.18, 0.09]], 30)
    y = line[:, :1] + line[:, 1:] * (year - 2010) + 0.5 * random.standard_normal((30, 6))
    frame = pd.DataFrame({"plant": np.repeat(range(30), 6), "day": np.tile(year, 30), "y": y.ravel()})
    model = nf.Model(nf.curves.linear())
    late, early = (fitted(table, model, law=law) for table in (frame, frame.assign(day=frame["day"] - 2010)))
    assert late.log_likelihood().value == pytest.approx(early.log_likelihood().value, abs=0.05)
    assert late.residual["sigma"] == pytest.approx(early.residual["sigma"], rel=0.01)
    if law == nf.Gaussian():
        assert "times lie between 2010 and 2015, so that" in late.summary().numbers["warning"]
        assert "warning" not in early.summary().numbers


@pytest.mark.slow
@pytest.mark.parametrize("origin", [1e3, 1e5, 1.7e9])
def test_where_time_begins_does_not_matter_to_lines_of_one_slope(origin):
    """Level and slope are told apart by 1e-9 of their effects where time is Unix seconds."""
    random, time = np.random.default_rng(3), np.arange(6.0)
    y = random.normal(10, 1, (12, 1)) + 0.5 * time + random.normal(0, 0.3, (12, 6))
    frame = pd.DataFrame({"plant": np.repeat(range(12), 6), "day": np.tile(time, 12), "y": y.ravel()})
    model = nf.Model(nf.curves.linear(), fixed=("slope",))
    early, late = fitted(frame, model), fitted(frame.assign(day=frame["day"] + origin), model)
    assert late.log_likelihood().value == pytest.approx(early.log_likelihood().value, abs=0.01)
    assert float(late.beta) == pytest.approx(float(early.beta), rel=1e-3)
    assert float(late.law.mean + origin * late.beta) == pytest.approx(float(early.law.mean), abs=0.01)


@pytest.mark.slow
def test_a_curve_that_ends_before_the_responses_do_is_told_from_one_that_explains_nothing():
    """Errors that are shares of a curve cannot be measured where the curve has come to its end."""
    random, day = np.random.default_rng(0), np.linspace(30, 300, 20)
    y = 1 / (1 + np.exp((day - random.normal(50, 4, (30, 1))) / 2)) + 0.01 * random.standard_normal((30, 20))
    frame = pd.DataFrame({"plant": np.repeat(range(30), 20), "day": np.tile(day, 30), "y": y.ravel()})
    curve = nf.curves.logistic_senescence()
    with pytest.raises(nf.EstimationError, match=r"shares of the curve.*nf.Combined\(\) or nf.Additive"):
        fitted(frame, nf.Model(curve, nf.Proportional()))
    assert fitted(frame, nf.Model(curve, fixed=("A",))).converged


def senescence(level="log", tau="identity", extra=(), function=None):
    def usual(t, p):
        return p["A"] * torch.sigmoid((p["tau"] - t) / p["s"])

    parameters = [nf.Parameter("A", level), nf.Parameter("tau", tau), nf.Parameter("s", "log"), *extra]
    return nf.Curve(function or usual, parameters)


@pytest.mark.parametrize(
    ("curve", "fixed", "said"),
    [
        (senescence(tau=nf.bounded(0, 45)), ("A", "s"), "'tau' ran to the end of its scale, 45"),
        (senescence(level="logit"), ("A", "s"), "'A' ran to the end of its scale, 1: .* out of the curve.$"),
        (
            senescence(
                extra=[nf.Parameter("z")],
                function=lambda t, p: p["A"] * torch.sigmoid((p["tau"] - t) / p["s"]) + 0 * p["z"],
            ),
            ("A", "s", "z"),
            r"'z' does not move the curve .* fit\(..., start=\{'z': ...\}\).$",
        ),
        (
            senescence(
                extra=[nf.Parameter("b", "log")],
                function=lambda t, p: p["A"] * p["b"] * torch.sigmoid((p["tau"] - t) / p["s"]),
            ),
            ("A", "b", "s"),
            "'A' and 'b' do the same to the curve at all times of the data",
        ),
    ],
)
def test_a_parameter_that_the_data_cannot_place_is_named(curve, fixed, said):
    with pytest.raises(nf.EstimationError, match=said):
        fitted(plants(20), nf.Model(curve, fixed=fixed))


@pytest.mark.parametrize(("upper", "doubted"), [(49.0, True), (75.0, False)])
def test_a_population_at_an_end_of_its_scale_is_doubted(upper, doubted):
    """Onsets are near day 50: within limits under it the fit ends at the limit, and converges there."""
    model = nf.Model(CURVE.with_transforms(tau=nf.bounded(30.0, upper)), fixed=("A", "s"))
    fit = model.fit(read(plants()), nf.Gaussian(), particles=128, progress=False)
    assert fit.converged
    warning = fit.summary().numbers.get("warning", "")
    assert (
        "'tau' is typically 48.97" in warning and "at the end of its scale from 30 to 49" in warning
    ) == doubted


def test_a_scale_whose_functions_are_not_inverse_is_refused():
    wrong = nf.Transform("wrong", torch.exp, lambda psi: psi, lower=0.0)
    with pytest.raises(nf.ModelError, match="scale 'wrong' of 'tau' are not inverse to each other"):
        nf.Model(senescence(tau=wrong))
    with pytest.raises(nf.ModelError, match="scale 'own' of 'tau' cannot be called on tensors"):
        nf.Model(senescence(tau=nf.Transform("own", math.exp, math.log, lower=0.0)))


def test_a_parameter_is_fixed_once():
    with pytest.raises(nf.ModelError, match="fixed names 'A' twice"):
        nf.Model(CURVE, fixed=("A", "A", "s"))


def test_data_that_are_limits_only_are_refused():
    frame = plants(20)
    for side, where in (("left", "below"), ("right", "above")):
        with pytest.raises(nf.ModelError, match=f"All 180 responses are only known to lie {where} a limit"):
            MODEL.fit(read(frame.assign(k=side), censoring="k"), seed=1, progress=False)
    below = frame["y"] < 0.1
    zero = read(frame.assign(y=frame["y"].where(~below, 0.0), k=np.where(below, "left", "")), censoring="k")
    assert nf.Model(CURVE, nf.Proportional(), fixed=("A", "s")).problem(zero) is not None
    with pytest.raises(nf.ModelError, match="log-additive error needs positive responses"):
        nf.Model(CURVE, nf.LogAdditive(), fixed=("A", "s")).problem(zero)


def test_a_curve_is_drawn_with_the_covariates_of_its_individual():
    random, days = np.random.default_rng(0), np.arange(30.0, 75, 5)
    sex = np.arange(20) % 2
    onset, scale = random.normal(50, 4, (20, 1)), 3 * np.exp(0.7 * sex)[:, None]
    y = 1 / (1 + np.exp((days - onset) / scale)) + 0.02 * random.standard_normal((20, 9))
    frame = pd.DataFrame({"plant": np.repeat(range(20), 9), "day": np.tile(days, 20), "y": y.ravel()})
    data = read(frame.assign(sex=np.repeat(np.array(["f", "m"])[sex], 9)), covariates=["sex"])
    fit = nf.Model(CURVE, fixed=("A", "s"), covariates={"s": "sex"}).fit(data, seed=1, progress=False)
    day, drawn = nf.plots.trajectories(fit, [1]).lines[-1].get_xydata().T
    plt.close("all")
    assert np.abs(np.interp(days, day, drawn) - y[1]).max() < 0.06
    with pytest.raises(nf.ModelError, match=r"Covariates move 's'.*diagnostics\.predictions"):
        fit.predict(torch.tensor([[50.0]]), days)


def test_individuals_without_observations_count_for_nothing(fit):
    empty = plants(30).assign(plant=lambda f: f["plant"] + 100, y=np.nan)
    both = fitted(pd.concat([plants(), empty]))
    assert both.criteria()["BIC"] == pytest.approx(fit.criteria()["BIC"], abs=0.1)
    assert both.shrinkage()["tau"] == pytest.approx(fit.shrinkage()["tau"], abs=1e-3)
    table = both.individuals()
    assert len(table) == 50
    assert table.loc[120, "tau_mean"] == pytest.approx(float(fit.law.mean[0]), abs=0.3)
    scores = nf.compare(
        MODEL, read(pd.concat([plants(), empty])), [nf.Gaussian()], folds=3, progress=False
    ).scores
    assert len(scores) == 20


# levels of covariates


@pytest.fixture(scope="module")
def treated():
    frame = plants(60).assign(t=lambda f: np.array(["c", "h", "l"])[f["plant"] % 3])
    model = nf.Model(CURVE, fixed=("A", "s"), covariates={"tau": "t"})
    data = read(frame, covariates=["t"])
    return frame, model.fit(data, seed=1, particles=256, progress=False)


def test_a_fit_keeps_its_levels(treated):
    frame, fit = treated
    with pytest.raises(nf.DataError, match="'t' is 'H' for '1'; the model was fitted with 'c', 'h', 'l'"):
        fit.on(read(frame.assign(t=frame["t"].replace("h", "H")), covariates=["t"]))


def test_a_number_where_levels_were_words_is_shown_as_it_was_written(treated):
    with pytest.raises(nf.DataError, match="'t' is 2 for '1'; the model was fitted with"):
        treated[1].on(read(plants(3).query("plant == 1").assign(t=2), covariates=["t"]))


def senescing(onset, days, seed):
    """Plants of given onset (n,) whose level and time-scale vary by a tenth."""
    random = np.random.default_rng(seed)
    level, scale = np.exp(random.normal(np.log([[60.0], [2.0]]), 0.1, (2, len(onset))))
    y = level[:, None] / (1 + np.exp((days - onset[:, None]) / scale[:, None]))
    y += random.normal(0, 2, y.shape)
    n = len(onset)
    return pd.DataFrame({"plant": np.repeat(range(n), len(days)), "day": np.tile(days, n), "y": y.ravel()})


@pytest.mark.slow
@pytest.mark.parametrize("law", [nf.Gaussian(), nf.Mixture(2)], ids=["gaussian", "mixture"])
def test_a_new_individual_far_from_the_population_is_found(law):
    """Forty standard deviations away, where the curve at the mean does not say which way to go.

    The mode is that which Nelder and Mead's simplex finds from the truth.
    """
    days = np.arange(0.0, 80.0, 2.0)
    onset = np.random.default_rng(0).normal(20, 1, 60)
    fit = nf.Model(CURVE).fit(read(senescing(onset, days, 1)), law, seed=1, particles=512, progress=False)
    late = senescing(np.array([60.0]), days, 2)
    found = fit.on(read(late)).individuals().loc[0]
    response = torch.tensor(late["y"].to_numpy())

    def log_joint(phi):
        at = torch.tensor(phi[None])
        psi = {name: float(value) for name, value in CURVE.natural(at[0]).items()}
        curve = psi["A"] * torch.sigmoid((psi["tau"] - torch.tensor(days)) / psi["s"])
        normal = torch.distributions.Normal(curve, fit.residual["sigma"])
        return float(normal.log_prob(response).sum() + fit.law.log_prob(at))

    start = np.array([np.log(60.0), 60.0, np.log(2.0)])
    best = minimize(lambda phi: -log_joint(phi), start, method="Nelder-Mead", options={"fatol": 1e-6})
    mode = found[["A_mode", "tau_mode", "s_mode"]].to_numpy()
    assert log_joint(mode) == pytest.approx(-best.fun, abs=0.01)
    assert found["tau_mean"] == pytest.approx(best.x[1], abs=0.1)


def test_individuals_that_particles_hardly_reach_are_named(treated):
    frame, fit = treated
    one = read(frame[frame["plant"] == 1], covariates=["t"])
    looked = replace(fit.on(one), centre=torch.tensor([[1e3]], dtype=torch.float64))
    with pytest.warns(UserWarning, match="'1' lies far from the population that was fitted"):
        looked.individuals()


def test_a_new_covariate_far_outside_the_fits_is_named():
    frame = plants(30).assign(heat=lambda f: 10.0 + f["plant"] % 7)
    model = nf.Model(CURVE, fixed=("A", "s"), covariates={"tau": "heat"})
    fit = model.fit(read(frame, covariates=["heat"]), seed=1, particles=256, progress=False)
    one = frame[frame["plant"] == 1]
    with pytest.warns(UserWarning, match="heat = 400 of '1' lies far outside the fit's range, 10 to 16"):
        fit.on(read(one.assign(heat=400.0), covariates=["heat"]))
    fit.on(read(one.assign(heat=18.0), covariates=["heat"]))


def test_one_new_individual_is_looked_at(treated, tmp_path):
    frame, fit = treated
    fit.save(tmp_path / "fit")
    one = read(frame[frame["plant"] == 1], covariates=["t"])
    whole = fit.individuals().loc[1]
    for each in (fit, nf.load(tmp_path / "fit")):
        assert each.on(one).individuals().loc[1, "tau_mean"] == pytest.approx(whole["tau_mean"], abs=0.05)


# names


def test_a_users_name_is_never_one_of_ours():
    frame = plants(4).rename(columns={"plant": "individual"})
    data = nf.LongitudinalData.from_frame(frame, "individual", "day", "y")
    fit = MODEL.fit(data, seed=1, particles=256, progress=False)
    table = nf.diagnostics.predictions(fit)
    assert table["label"].tolist() == frame["individual"].tolist()
    assert table["individual"].between(-0.1, 1.1).all()
    renamed = frame.rename(columns={"individual": "npde"})
    other = MODEL.fit(nf.LongitudinalData.from_frame(renamed, "npde", "day", "y"), seed=1, progress=False)
    assert nf.diagnostics.npde(other, 100)["label"].nunique() == 4


def test_replicates_of_npde_follow_long_series():
    fit = fitted(plants(6, np.linspace(30, 75, 60)))
    errors = nf.diagnostics.npde(fit, replicates=100)
    assert np.isfinite(errors["npde"]).all()
    assert errors["npde"].std() == pytest.approx(1, abs=0.35)


# processes, threads, gradients, files


def test_a_fit_can_be_sent_to_another_process(fit):
    again = pickle.loads(pickle.dumps(fit))
    assert again.log_likelihood() == fit.log_likelihood()
    assert again.model.curve.names == fit.model.curve.names
    bounded = CURVE.with_transforms(A=nf.bounded(0.0, 2.0))
    copy = pickle.loads(pickle.dumps(bounded))
    assert copy["A"].scale.upper == 2.0


def test_fits_in_several_threads_are_those_of_one(fit):
    with ThreadPoolExecutor(3) as pool:
        fits = list(pool.map(lambda _: fitted(plants()), range(3)))
    assert all(torch.equal(each.law.mean, fit.law.mean) for each in fits)


FRESH = """
import os, signal, sys, torch
import nlmeflow as nf

first = torch.optim.LBFGS
signal.signal(signal.SIGINT, signal.default_int_handler)  # also in the background of a shell

def interrupt():
    os.kill(os.getpid(), signal.SIGINT)

def preparing(*arguments):
    torch.optim.LBFGS = first
    interrupt()
    return first(*arguments)

def reporting(curve, t, psi, calls=[]):
    calls.append(1)
    if len(calls) == 30:
        interrupt()
    return curve(t, psi)

plain = nf.curves.logistic_senescence()
curve = nf.Curve(lambda t, psi: reporting(plain, t, psi), plain.parameters)
if sys.argv[1] == "preparing":
    torch.optim.LBFGS, curve = preparing, plain
data = nf.LongitudinalData.from_frame(sys.argv[2], "plant", "day", "y")

def fit():
    return nf.Model(curve, fixed=("A", "s")).fit(data, seed=1, particles=256, progress=False)

try:
    fit()
except KeyboardInterrupt:
    print(fit().law.mean.item(), torch.get_num_threads())
"""


@pytest.mark.slow
@pytest.mark.parametrize("when", ["preparing", "estimating"])
def test_an_interrupt_of_the_first_fit_of_a_process_leaves_the_next_one_right(fit, tmp_path, when):
    plants().to_csv(tmp_path / "plants.csv", index=False)
    call = [sys.executable, "-c", FRESH, when, str(tmp_path / "plants.csv")]
    done = subprocess.run(
        call, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "2"}
    )
    mean, threads = done.stdout.split()
    assert float(mean) == pytest.approx(float(fit.law.mean), rel=1e-9)
    assert threads == "2"


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_standard_errors_do_not_ask_for_gradients_to_be_on(fit, mode):
    with mode():
        inside = fitted(plants())
        errors = inside.standard_errors()["standard error"]
    expected = fit.standard_errors()["standard error"]
    assert errors.to_numpy(dtype=float) == pytest.approx(expected.to_numpy(dtype=float))


def test_every_kind_of_covariate_comes_back_from_a_file(tmp_path):
    frame = plants(6)
    frame["w"] = 3.657142857142857e-13 * (1 + frame["plant"])
    frame["sown"] = pd.Timestamp("2024-04-01 06:07:08.123456789") + pd.to_timedelta(frame["plant"], unit="D")
    halves = pd.Series(np.where(frame["plant"] < 3, "2024-01-01", "2024-07-01"))
    frame["planted"] = pd.to_datetime(halves).dt.tz_localize("Europe/Paris")
    frame["count"] = frame["plant"].astype("int64") * 10**15
    frame["kind"] = pd.Categorical(
        np.where(frame["plant"] > 2, "a", "b"), categories=["b", "a", "z"], ordered=True
    )
    frame["early"] = frame["plant"] > 1
    columns = ["w", "sown", "planted", "count", "kind", "early"]
    fit = MODEL.fit(read(frame, covariates=columns), seed=1, particles=256, progress=False)
    path = tmp_path / "fit"
    before = os.umask(0o022)
    try:
        fit.save(path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644
    again = nf.load(path)
    pd.testing.assert_frame_equal(again.data.covariates, fit.data.covariates, check_exact=True)
    assert again.data == fit.data
    with pytest.raises(nf.DataError, match="is a folder"):
        fit.save(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes in folders")
def test_a_fit_replaces_no_pipe_and_no_device(fit, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(nf.DataError, match="is a device or a pipe; give the name of a file"):
        fit.save(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


def test_a_fit_is_saved_where_a_link_points_to(fit, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    fit.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert nf.load(tmp_path / "elsewhere").data == fit.data


# summaries


def decays(n=60):
    """Return decays whose offset B does not vary: its variance is at the boundary."""
    random = np.random.default_rng(5)
    t = np.array([0.0, 100, 300, 500, 800, 1200, 1600])
    top, k = 750 * np.exp(0.08 * random.normal(size=n)), 0.0017 * np.exp(0.12 * random.normal(size=n))
    y = top[:, None] * (1 - 0.94 * np.exp(-k[:, None] * t)) + random.normal(0, 27, (n, 7))
    frame = pd.DataFrame({"plant": np.repeat(range(n), 7), "day": np.tile(t, n), "y": y.ravel()})
    curve = nf.Curve(
        lambda t, p: p["A"] * (1 - p["B"] * torch.exp(-p["k"] * t)),
        [nf.Parameter(name, "log") for name in ("A", "B", "k")],
    )
    return frame, curve


@pytest.mark.slow
def test_at_a_boundary_the_other_standard_errors_remain():
    """Those of a model in which B does not vary at all, nearly; what is at the boundary is named."""
    frame, curve = decays(80)
    data = read(frame)
    held = nf.Model(curve, fixed=("B",)).fit(data, seed=1, progress=False).standard_errors()
    fit = nf.Model(curve).fit(data, seed=1, progress=False)
    table = fit.standard_errors()
    errors = table["standard error"].astype(float)
    assert table.attrs["boundary"]
    assert "at the boundary" in str(fit.summary())
    for row in (("mean", "A"), ("mean", "k"), ("sd", "A"), ("residual", "sigma")):
        assert errors[row] == pytest.approx(float(held.loc[row, "standard error"]), rel=0.25)
    blank = [f"{kind} {name}" for kind, name in errors.index[errors.isna()]]
    assert blank == table.attrs["boundary"]


def test_small_values_are_printed_with_their_digits():
    frame, curve = decays()
    fit = fitted(frame, nf.Model(curve, fixed=("B",)), law=nf.Gaussian("diagonal"))
    shown = f"{float(fit.law.mean[1].exp()):.5g}"
    assert shown in str(fit.summary())


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("plots", "matplotlib", "plots"),
        ("datasets", "pooch", "data"),
        ("datasets", "pyreadr", "data"),
        ("to_arviz", "arviz", "arviz"),
    ],
)
def test_what_needs_an_extra_names_it_where_it_is_absent(name, package, extra, monkeypatch):
    assert any(line.startswith(package) and f'extra == "{extra}"' in line for line in requires("nlmeflow"))
    module = import_module(f"nlmeflow.{nf._LATER[name]}")
    monkeypatch.delitem(sys.modules, module.__name__)
    monkeypatch.setitem(sys.modules, package, None)
    message = f"nlmeflow.{name} needs the package {package}: pip install 'nlmeflow[{extra}]'"
    with pytest.raises(ModuleNotFoundError, match=re.escape(message)):
        getattr(nf, name)


@pytest.mark.slow
def test_large_noise_does_not_send_a_fixed_parameter_off():
    """Linearisations lead from a good place to a step without slope; the best place on the way is taken."""
    model = nf.Model(nf.curves.logistic_senescence(), fixed=("A", "s"))
    one = torch.tensor([[2.0]], dtype=torch.float64)
    groups = MixtureLaw(
        torch.tensor([0.6, 0.4]).double(),
        50 + torch.tensor([[-2.5], [2.5]]).double(),
        one.expand(2, 1, 1),
        one / 100,
    )
    days = [32.0, 40.0, 48.0, 56.0, 64.0, 72.0]
    for seed in (1034, 1035, 1134):
        data, _ = model.simulate(groups, days, 300, seed, 0.24, A=1.0, s=3.0)
        fit = model.fit(data, seed=1, progress=False)
        assert fit.converged
        assert abs(fit.fixed["s"] - 3.0) < 1.2


def few_dates(days, seed):
    """Simulate 60 plants of L1 seen on a few days; the model has one curve's height for all."""
    model = nf.Model(CURVE, fixed=("A",))
    return model, model.simulate(nf.scenarios.load("L1").law, days, 60, seed, 0.06, A=1.0)[0]


def fit_few_dates(days, seed):
    model, data = few_dates(days, seed)
    return model.fit(data, nf.Gaussian(), seed=1, progress=False)


def test_a_climb_that_breaks_down_keeps_the_best_place_on_its_way():
    """With two dates the slopes of a linearisation vanish in the end, and a matrix cannot be inverted."""
    model, data = few_dates([35.0, 65.0], 2)
    problem = model.problem(data)
    for first in pooled_starts(problem, {}, 1):
        start = gaussian_starts(problem, [first], nf.Gaussian())[0]
        assert float(start.sigma) < 0.25 * float(data.response.std())


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3, 4])
def test_with_two_dates_a_fit_beats_a_constant_and_says_what_it_cannot_tell(seed):
    """A step of beta that lost likelihood was taken for the end; steps to curves of zero for a start."""
    fit = fit_few_dates([35.0, 65.0], seed)
    responses = fit.data.response.flatten()
    n, sigma = len(responses), float(responses.std(correction=0))
    constant = -n * (math.log(sigma) + 0.5 * math.log(2 * math.pi) + 0.5)
    assert fit.log_likelihood().value > constant + 100
    warning = fit.summary().numbers["warning"]
    assert "the responses have 5 means, variances and covariances, and 7 parameters are estimated" in warning


@pytest.mark.parametrize(
    ("fixed", "days", "seed"), [(("A",), [44.0, 50.0], 1), (("A", "tau"), [35.0, 65.0], 0)]
)
def test_curves_equally_near_to_the_mean_are_told_apart_by_individuals(fixed, days, seed):
    """Of the many curves through two means the first one was taken: 43 nats below the truth, or off."""
    simulated = {"A": 1.0, "tau": 50.0, "s": 3.0}
    model = nf.Model(nf.curves.logistic_senescence(), fixed=fixed)
    names = [name for name in model.curve.names if name not in fixed]
    mean = [simulated[name] if name == "tau" else math.log(simulated[name]) for name in names]
    sds = [6.0 if name == "tau" else 0.25 for name in names]
    law = GaussianLaw(torch.tensor(mean).double(), torch.tensor(sds).double().diag(), "full", 0.0)
    data, _ = model.simulate(law, days, 40, seed, 0.05, **{name: simulated[name] for name in fixed})
    found, known = (model.fit(data, seed=1, progress=False, start=start) for start in ({}, simulated))
    assert found.log_likelihood().value > known.log_likelihood().value - 1


@pytest.mark.slow
def test_a_rate_that_the_dates_do_not_show_is_named():
    fit = fit_few_dates([35.0, 50.0, 65.0], 2)
    assert float(fit.law.mean[1].exp()) < 0.01  # days; 3 simulated
    assert "jump between two neighbouring times" in fit.summary().numbers["warning"]
    seen = fit_few_dates([44.0, 50.0, 56.0], 2)
    assert "warning" not in seen.summary().numbers


def test_moments_of_responses_are_counted_at_times_seen_together():
    frame = pd.DataFrame({"plant": [0, 0, 1, 1, 1], "day": [1.0, 2, 1, 3, 4], "y": [1.0, 2, 3, 4, 5]})
    assert n_moments(read(frame)) == 4 + 4 + 4  # means, variances, covariances 12, 13, 14, 34
    assert n_moments(read(plants(3, DAYS[:2]))) == 5


def test_a_falling_curve_for_a_rising_response_is_refused_with_this_reason():
    random, days = np.random.default_rng(0), np.arange(30.0, 73, 6)
    middle, score = random.normal(50, 4, (30, 1)), 0.4 * random.standard_normal((30, 8))
    score = np.clip(np.round(9 / (1 + np.exp(-(days - middle) / 3)) + score), 0, 9)
    data = nf.LongitudinalData.regular(torch.from_numpy(np.tile(days, (30, 1))), torch.from_numpy(score))
    with pytest.raises(nf.EstimationError, match=r"cannot follow the response, which rises with time"):
        nf.Model(nf.curves.logistic_senescence()).fit(data, seed=1, progress=False)


@pytest.mark.slow
def test_scores_in_steps_have_standard_errors_beside_a_parameter_that_hardly_varies():
    """Those of the model in which it does not vary, but for the noise of their particles."""
    random, days, n = np.random.default_rng(0), np.arange(30.0, 73, 6), 60
    middle, scale = random.normal(50, 4, (n, 1)), np.exp(random.normal(1.1, 0.15, (n, 1)))
    exact = 9 / (1 + np.exp(-(days - middle) / scale)) + 0.4 * random.standard_normal((n, 8))
    frame = pd.DataFrame({"plant": np.repeat(np.arange(n), 8), "day": np.tile(days, n)})
    frame["score"] = np.clip(np.round(exact), 0, 9).ravel()
    frame = nf.mark_limits(frame, "score", lower=0, upper=9, step=1)
    data = nf.LongitudinalData.from_frame(
        frame, "plant", "day", "score", censoring="censoring", limit="limit"
    )
    curve = nf.curves.logistic_growth()
    free, held = (
        nf.Model(curve, fixed=name).fit(data, seed=1, particles=512, progress=False)
        for name in ((), ("Asym",))
    )
    table, other = free.standard_errors(), held.standard_errors()["standard error"]
    assert table.attrs["boundary"][0] == "sd Asym"
    for name in (("mean", "xmid"), ("mean", "scal"), ("sd", "xmid"), ("sd", "scal"), ("residual", "sigma")):
        assert table.loc[name, "standard error"] == pytest.approx(other[name], rel=0.12), name
    assert table.loc[("mean", "Asym"), "standard error"] == pytest.approx(other["fixed", "Asym"], rel=0.12)


def test_a_covariance_from_as_few_individuals_as_parameters_is_doubted():
    random, time = np.random.default_rng(1), torch.arange(6.0, dtype=torch.float64).expand(2, -1)
    response = (
        torch.from_numpy(random.normal(2, 1, (2, 1)) + 0.1 * random.standard_normal((2, 6))) + 0.5 * time
    )
    data = nf.LongitudinalData.regular(time, response)
    full, plain = (
        nf.Model(nf.curves.linear()).fit(data, nf.Gaussian(kind), seed=1, progress=False)
        for kind in ("full", "diagonal")
    )
    assert "2 individuals cannot tell a covariance of 2 parameters" in full.summary().numbers["warning"]
    assert "warning" not in plain.summary().numbers


# names of parameters


def named(first, second, **options):
    """Return a fit of first exp(-t / second), and its model."""
    random, t = np.random.default_rng(0), np.arange(0, 60, 5.0)
    size, rate = np.exp(random.normal(0, 0.2, (2, 20, 1)))
    y = size * np.exp(-t / 20 * rate) + random.normal(0, 0.03, (20, 12))
    table = pd.DataFrame({"plant": np.repeat(range(20), 12), "day": np.tile(t, 20), "y": y.ravel()})
    parameters = [nf.Parameter(first, "log", start=1.0), nf.Parameter(second, "log", start=20.0)]
    curve = nf.Curve(lambda t, psi: psi[first] * torch.exp(-t / psi[second]), parameters)
    return fitted(table, nf.Model(curve, **options))


@pytest.mark.parametrize("name", ["phi", "time", "self", "n"])
def test_a_fixed_parameter_may_be_called_as_an_argument(name):
    fit = named("A", name, fixed=(name,))
    assert "yes" in str(fit.summary())
    data, _ = fit.model.simulate(fit.law, [1.0, 2.0], n=7, seed=1, sigma=0.1, fixed={name: 20.0})
    assert len(data) == 7
    assert fit.model.curve.with_starts(**{name: 3.0})[name].start == 3.0
    with pytest.raises(nf.ModelError, match=rf"fixed parameters: {name}; one that is called as an argument"):
        fit.model.simulate(fit.law, [1.0, 2.0], n=7, seed=1, sigma=0.1)


def test_columns_of_ours_stand_beside_parameters_called_so():
    fit = named("observations", "group")
    table, plain = nf.characterise(fit).table, fit.individuals("natural")
    for name in fit.names:
        assert table[name].to_numpy() == pytest.approx(plain[f"{name}_mean"].to_numpy(), rel=0.05)
    assert (table["number of observations"] == 12).all()
    assert (table["most probable group"] == 1).all()

    fit = named("share", "lower")
    shares, groups = fit.bootstrap(replicates=10).shares(), nf.characterise(fit).groups
    assert shares.columns.tolist()[:3] == ["share", "lower", "share of the group"]
    assert shares["lower limit"].iloc[0] <= shares["share of the group"].iloc[0] == 1.0
    assert groups["share of the group"].tolist() == [1.0]
    assert groups["lower"].iloc[0] == pytest.approx(20, rel=0.3)

    found = nf.to_arviz(named("time", "individual"), draws=10)
    assert found.posterior["individual"].shape == found.posterior["time"].shape == (1, 10, 20)
    assert found.observed_data["observed time"].shape == (20, 12)
    with pytest.raises(nf.ModelError, match="arviz has a dimension 'draw'"):
        nf.to_arviz(named("A", "draw"))


def test_nobody_and_one_are_looked_at_in_words(fit):
    nobody, one = fit.on(read(plants(3).assign(y=np.nan))), fit.on(read(plants(1, days=np.array([40.0]))))
    assert nobody.summary().numbers["individuals"] == "3 (0 observations)"
    lines = nf.plots.trajectories(nobody, ax=plt.figure().gca()).lines
    assert (lines[1].get_xdata().min(), lines[1].get_xdata().max()) == (DAYS.min(), DAYS.max())
    for refused in (nf.diagnostics.vpc, nf.diagnostics.npde):
        with pytest.raises(nf.ModelError, match="Nobody in these data has an observation"):
            refused(nobody)
    with pytest.raises(nf.ModelError, match="Tests of prediction errors need at least two, got 1"):
        nf.diagnostics.npde_tests(nf.diagnostics.npde(one))
    assert one.summary().parameters["shrinkage"].isna().all()
    with pytest.raises(nf.ModelError, match="at least two individuals"):
        one.shrinkage()


@pytest.mark.parametrize(
    ("phi", "message"),
    [
        (np.array([[50 + 1j]]), r"an array of numbers, \(K, 1\): tau; got a ndarray"),
        (torch.tensor([[50 + 1j]]), "an array of numbers"),
        ([["late"]], "an array of numbers"),
        (np.array([[50.0], [np.nan]]), "'tau' is nan in row 1 of phi"),
        ([[None]], "'tau' is nan in row 0 of phi"),
    ],
)
def test_parameters_of_a_prediction_are_numbers(fit, phi, message):
    with pytest.raises(nf.ModelError, match=message):
        fit.predict(phi, [30.0])


def test_a_prediction_can_be_differentiated(fit):
    phi = torch.full((1, 1), 50.0, requires_grad=True)
    with torch.no_grad():
        before, after = (fit.predict([[50.0 + step]], [50.0]) for step in (-1e-4, 1e-4))
    assert torch.autograd.grad(fit.predict(phi, [50.0]).sum(), phi)[0].item() == pytest.approx(
        float(after - before) / 2e-4, rel=1e-4
    )


def test_a_table_is_no_array_of_parameters(fit):
    table = fit.individuals()[["tau_mean"]]
    with pytest.raises(nf.ModelError, match=r"\(K, 1\): tau; got a DataFrame. Of a table take these"):
        fit.predict(table, [30.0])
    assert fit.predict(table.to_numpy(), [30.0, 40.0]).shape == (20, 2)


@pytest.mark.filterwarnings("error")
def test_a_mixture_of_few_individuals_says_nothing_of_clusters():
    fit = nf.Model(CURVE, fixed=("A", "s")).fit(read(plants(3)), nf.Mixture(), seed=1, progress=False)
    assert fit.law.n_components <= 3
    with pytest.raises(nf.ModelError, match="mixture of 50 components needs as many individuals, got 3"):
        nf.Model(CURVE, fixed=("A", "s")).fit(read(plants(3)), nf.Mixture(50), seed=1, progress=False)


# arguments and cells that no one expects


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (1j, "'y' holds complex numbers"),
        (True, "'y' is True in row 0, among numbers"),
        (10**400, "'y' is infinite in row 0"),
        (" ", "It holds blanks alone"),
    ],
)
def test_cells_that_are_no_measurement_are_named(cell, words):
    frame = plants(3)
    frame["y"] = pd.Series([cell, *frame["y"][1:]], dtype=object)
    with pytest.raises(nf.DataError, match=words):
        read(frame)


def test_a_response_of_two_values_is_doubted_and_one_of_true_and_false_refused():
    frame = plants(12)
    with pytest.raises(nf.DataError, match="'y' holds True and False"):
        read(frame.assign(y=frame["y"] > 0.5))
    data = read(frame.assign(y=(frame["y"] > 0.5).astype(int)))
    assert "The response takes two values only (0 and 1)" in " ".join(mistakes(data))


def test_decimals_that_are_none_are_missing_and_other_floats_are_numbers():
    frame = plants(3)
    decimals = [Decimal("sNaN"), *(Decimal(str(value)) for value in frame["y"][1:])]
    assert read(frame.assign(y=decimals)).n_missing == 1
    assert read(frame.assign(y=pd.Series([pd.NaT, *frame["y"][1:]], dtype=object))).n_missing == 1
    weight = read(frame.assign(w=(frame["plant"] + 1).astype(np.longdouble)), covariates=["w"])
    assert weight.covariates["w"].tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("index", [10**30, [10**30]])
def test_a_position_of_any_size_is_out_of_range(index):
    with pytest.raises(nf.DataError, match="out of range: there are 3 individuals"):
        read(plants(3)).subset(index)


def test_a_table_without_a_name_for_each_column_is_refused(tmp_path):
    twice = plants(3).set_index(["plant", "day"])
    twice.index.names = ["plant", "plant"]
    with pytest.raises(nf.DataError, match="Two levels of the table's index are called 'plant'"):
        read(twice)
    long = tmp_path / "long.csv"
    long.write_text("plant,day,y\n1,0," + "9" * 140_000 + "\n")
    with pytest.raises(nf.DataError, match=r"Line 2 of 'long\.csv' has a value of more than"):
        read(long)
    with pytest.raises(nf.DataError, match="time is a tensor"):
        nf.LongitudinalData(np.zeros((3, 2)), np.zeros((3, 2)), np.ones((3, 2), bool), (1, 2, 3), plants(3))


@pytest.mark.parametrize("ends", [(5.0, 1.0), (math.nan, 1.0), ("a", 1.0)])
def test_a_scale_of_ones_own_has_ends_in_order(ends):
    with pytest.raises(nf.ModelError, match="has ends lower < upper"):
        nf.Transform("mine", torch.exp, torch.log, *ends)


@pytest.mark.parametrize(
    ("usual", "words"),
    [
        (lambda psi: psi["x"], "cannot be called on"),
        (lambda psi: None, "made None"),
        (lambda psi: {"A": 1.0}, "returns a number for each of A, tau, s"),
    ],
)
def test_what_takes_first_values_to_the_usual_ones_is_told_how_it_fails(usual, words):
    curve = replace(CURVE, recipe={}, conventional=usual)
    with pytest.raises(nf.ModelError, match=words):
        nf.Model(curve, fixed=("A", "s")).fit(read(plants(6)), particles=128, progress=False)


def test_equal_models_have_equal_hashes():
    assert len({MODEL, nf.Model(CURVE, fixed=("A", "s"))}) == 1


def test_limits_are_no_wild_values():
    frame = plants(12)
    high = frame["y"].quantile(0.9)
    marked = frame.assign(c=np.where(frame["y"] < high, "left", ""), y=frame["y"].clip(lower=high))
    assert not mistakes(read(marked, censoring="c"))
