"""nlmeflow.data.longitudinal, nlmeflow.data.checks: long tables read, sorted, masked, and refused by name."""

import re
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow
import pytest
import torch

import nlmeflow as nf


def table():
    return pd.DataFrame(
        {
            "plant": ["a", "a", "a", "b", "b", "b", "b"],
            "day": [2.0, 1.0, 3.0, 1.0, 2.0, 3.0, 4.0],
            "green": [20.0, 10.0, 30.0, 1.0, np.nan, 3.0, 4.0],
            "dose": [5, 5, 5, 7, 7, 7, 7],
        }
    )


def read(frame, **changes):
    names = {"individual": "plant", "time": "day", "response": "green", "covariates": ["dose"]} | changes
    return nf.LongitudinalData.from_frame(frame, **names)


def test_ragged_rows_are_sorted_padded_and_masked():
    data = read(table())
    assert data.labels == ("a", "b")
    assert data.time.tolist() == [[1, 2, 3], [1, 3, 4]]
    assert data.response.tolist() == [[10, 20, 30], [1, 3, 4]]
    assert data.mask.all()
    assert data.n_missing == 1
    assert data.counts.tolist() == [3, 3]
    assert data.covariates["dose"].tolist() == [5, 7]


def test_an_individual_without_responses_keeps_its_place():
    frame = table()
    frame.loc[frame.plant == "b", "green"] = np.nan
    data = read(frame)
    assert data.labels == ("a", "b")
    assert data.counts.tolist() == [3, 0]


def test_frame_and_back():
    frame = read(table()).to_frame()
    again = read(frame)
    assert again.response.tolist() == read(table()).response.tolist()
    assert frame["dose"].tolist() == [5, 5, 5, 7, 7, 7]


def test_subset_keeps_order_and_trims():
    data = read(table()).subset([1])
    assert data.labels == ("b",)
    assert data.time.tolist() == [[1, 3, 4]]


def change(frame, row, column, value):
    frame = frame.astype({column: object})
    frame.loc[row, column] = value
    return frame


@pytest.mark.parametrize(
    ("frame", "changes", "words"),
    [
        (table(), {"time": "dya"}, ["No column 'dya'", "plant, day, green, dose"]),
        (change(table(), 4, "green", "high"), {}, ["'green'", "row 4", "'high'"]),
        (change(table(), 4, "green", np.inf), {}, ["'green'", "infinite", "row 4"]),
        (change(table(), 2, "day", np.nan), {}, ["'day'", "missing", "row 2"]),
        (change(table(), 2, "day", 1.0), {}, ["'a'", "2 rows", "day = 1", "rows 1, 2"]),
        (change(table(), 3, "plant", None), {}, ["'plant'", "row 3"]),
        (change(table(), 5, "dose", 9), {}, ["'dose'", "'b'", "constant"]),
        (table().iloc[:0], {}, ["no rows"]),
        (table().assign(day=pd.Timestamp("2018-06-09")), {}, ["'day'", "dates", "days since"]),
        ([1, 2], {}, ["DataFrame", "list"]),
    ],
)
def test_bad_tables_are_refused_by_name(frame, changes, words):
    with pytest.raises(nf.DataError) as error:
        read(frame, **changes)
    for word in words:
        assert word in str(error.value)


def test_individuals_drawn_twice_stand_twice_in_the_table():
    data = nf.LongitudinalData.from_frame(table(), "plant", "day", "green", ["dose"])
    twice = data.subset([0, 0, 1])
    frame = twice.to_frame()
    assert len(frame) == twice.n_observations
    assert frame["dose"].notna().all()


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([np.bool_(True), False], "bool"),
        ([1, np.int64(2)], "int64"),
        ([1, np.float32(2.5)], "float64"),
        ([Decimal("1.5"), 2], "float64"),
        ([torch.tensor(1.5), np.array(2)], "float64"),
        ([1, "2"], "object"),
        ([True, 2], "object"),
    ],
)
def test_objects_that_are_numbers_are_read_as_numbers(values, kind):
    column = pd.Series([values[0]] * 3 + [values[1]] * 4, dtype=object)
    assert read(table().assign(dose=column)).covariates["dose"].dtype == kind
    about = pd.DataFrame({"dose": pd.Series(values, dtype=object)})
    data = nf.LongitudinalData.regular(torch.zeros(2, 1), torch.zeros(2, 1), about)
    assert data.covariates["dose"].dtype == kind
    assert about["dose"].dtype == object


def test_a_response_of_objects_with_an_empty_cell_is_read():
    values = [torch.tensor(0.5), None, Decimal("0.25"), np.array(1), np.float32(2), 3, 4]
    data = read(table().assign(green=pd.Series(values, dtype=object)))
    assert sorted(data.response[data.mask].tolist()) == [0.25, 0.5, 1, 2, 3, 4]
    assert data.n_missing == 1


def test_a_covariate_with_an_empty_cell_is_refused_in_regular_data_too():
    about = pd.DataFrame({"kind": ["a", None]})
    with pytest.raises(nf.DataError, match="Column 'kind' is empty in row 1"):
        nf.LongitudinalData.regular(torch.zeros(2, 1), torch.zeros(2, 1), about)


def test_regular_data_are_copies():
    time, response = torch.arange(3.0).double().repeat(2, 1), torch.ones(2, 3, requires_grad=True)
    data = nf.LongitudinalData.regular(time, response)
    time[0, 0] = 99.0
    assert data.time[0, 0] == 0
    assert not data.response.requires_grad
    values = torch.ones(2, 3).double()
    data = nf.LongitudinalData.regular(values, values)
    values *= 2
    assert data == nf.LongitudinalData.regular(torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(nf.DataError, match=r"response holds complex numbers; .* response\.real"):
        nf.LongitudinalData.regular(values, values + 1j)


def test_a_dictionary_of_pyarrow_is_a_category():
    kind = pd.ArrowDtype(pyarrow.dictionary(pyarrow.int32(), pyarrow.string()))
    column = pd.Series(["a"] * 3 + ["b"] * 4, dtype=kind)
    assert read(table().assign(dose=column)).covariates["dose"].dtype == "category"


@pytest.mark.parametrize(
    "roles", [("limit", "day", "y"), ("plant", "censoring", "y"), ("plant", "day", "limit")]
)
def test_columns_of_censoring_leave_those_of_the_user_alone(roles):
    frame = pd.DataFrame(
        dict(
            zip(
                [*roles, "how"],
                [[0, 0, 1, 1], [1.0, 2, 1, 2], [0.5, 2.0, 1.0, 9.0], ["left", "", "", ""]],
                strict=True,
            )
        )
    )
    for taken in {"limit", "censoring"} - set(roles):
        data = nf.LongitudinalData.from_frame(frame.assign(**{taken: 3.0}), *roles, [taken], "how")
        table = data.to_frame()
        assert table.columns.is_unique
        pd.testing.assert_frame_equal(table[[*roles, taken]], frame.assign(**{taken: 3.0})[[*roles, taken]])
        kind, limit = (f"{name} of {roles[2]}" for name in ("censoring", "limit"))
        assert nf.LongitudinalData.from_frame(table, *roles, [taken], kind, limit) == data


def test_censored_data_are_written_as_they_are_read():
    frame = pd.DataFrame(
        {"plant": [0, 0, 1, 1], "day": [1.0, 2, 1, 2], "y": [0.5, 2.0, 1.0, 9.0], "dose": 1.0}
    )
    frame["how"], frame["upper"] = ["left", "", "interval", "right"], [np.nan, np.nan, 3.0, np.nan]
    data = nf.LongitudinalData.from_frame(frame, "plant", "day", "y", ["dose"], "how", "upper")
    again = nf.LongitudinalData.from_frame(
        data.to_frame(), "plant", "day", "y", ["dose"], "censoring", "limit"
    )
    for one, other in zip(again.bounds, data.bounds, strict=True):
        assert one.tolist() == other.tolist()
    assert again.response.tolist() == data.response.tolist()


def test_levels_that_look_the_same_are_refused():
    frame = table().assign(sex=lambda t: np.where(t.index == 0, "m ", "m"))
    with pytest.raises(nf.DataError, match="'sex' has 'm ' and 'm'"):
        nf.LongitudinalData.from_frame(frame, "plant", "day", "green", ["sex"])


@pytest.mark.parametrize(
    "names", [[1.0, "1"], [1, "1"], ["1.0", 1.0], ["\u00e9", "e\u0301"], ["a  b", "a b"]]
)
def test_names_that_look_the_same_are_refused_with_advice_that_makes_them_one(names):
    frame = pd.DataFrame({"plant": pd.Series([*names, "c", "c"], dtype=object), "day": range(4), "y": 1.0})
    with pytest.raises(nf.DataError, match="would be two different names") as error:
        nf.LongitudinalData.from_frame(frame, "plant", "day", "y")
    frame["plant"] = eval(str(error.value).partition("'] = ")[2].removesuffix("."))
    assert nf.LongitudinalData.from_frame(frame, "plant", "day", "y").counts.tolist() == [2, 2]


@pytest.mark.parametrize("column", ["plant", "sex"])
def test_a_cell_that_is_no_name_is_refused(column):
    frame = table().assign(sex="m")
    frame[column] = [{"name": name} for name in frame[column]]
    with pytest.raises(nf.DataError, match=f"'{column}' is {{'name': .*}} in row 0; a name is one word"):
        nf.LongitudinalData.from_frame(frame, "plant", "day", "green", ["sex"])


def test_ends_of_intervals_without_a_column_of_censoring_are_refused():
    with pytest.raises(nf.DataError, match="limit='end' holds the upper ends of intervals; name the column"):
        nf.LongitudinalData.from_frame(table().assign(end=9.0), "plant", "day", "green", limit="end")


def test_complex_numbers_are_refused_and_sparse_ones_read():
    frame = table()
    sparse = read(frame.assign(green=pd.arrays.SparseArray(frame["green"])))
    assert sparse.response.nan_to_num().tolist() == read(frame).response.nan_to_num().tolist()
    with pytest.raises(nf.DataError, match="'green' holds complex numbers; real"):
        read(frame.assign(green=frame["green"] + 1j))
    with pytest.raises(nf.DataError, match="'w' holds complex numbers; real"):
        nf.LongitudinalData.from_frame(frame.assign(w=1j), "plant", "day", "green", ["w"])


def test_one_individual_has_no_density():
    frame = pd.DataFrame({"plant": 0, "day": range(5), "y": [1.0, 2.2, 2.9, 4.1, 5.0]})
    with pytest.raises(nf.DataError, match="at least two individuals, better fifty"):
        nf.deconvolve(nf.LongitudinalData.from_frame(frame, "plant", "day", "y"))


DAYS = pd.Series([0, 1, 3, 8])
DATES = pd.Timestamp("2024-05-01") + pd.to_timedelta(DAYS, unit="D")


@pytest.mark.parametrize(
    ("column", "numbers"),
    [
        (DATES, DAYS),
        (DATES.dt.tz_localize("Europe/Paris"), DAYS),
        (DATES.dt.date, DAYS),
        (DATES.dt.to_period("D"), DAYS),
        (pd.Series([np.datetime64(d, "D") for d in DATES], dtype=object), DAYS),
        (DATES - DATES[0], DAYS),
        (pd.Series([d.to_pytimedelta() for d in DATES - DATES[0]], dtype=object), DAYS),
        (pd.Series([np.timedelta64(d, "D") for d in DAYS], dtype=object), DAYS),
        ((pd.Timestamp(0) + pd.to_timedelta(DAYS + 0.5, unit="h")).dt.time, DAYS + 0.5),
        (DATES.dt.strftime("%Y-%m-%d"), DAYS),
        (pd.Series(["0:30", "1:30", "3:30", "08:30"]), DAYS + 0.5),
        (pd.Series(["\u22122", "\u22121", "0", "1"]), pd.Series([-2, -1, 0, 1])),
    ],
)
def test_what_is_advised_makes_numbers_of_dates_durations_and_times_of_day(column, numbers):
    frame = pd.DataFrame({"plant": ["a", "a", "b", "b"], "day": column, "y": [1.0, 2, 3, 4]})
    with pytest.raises(nf.DataError, match="Column 'day' ") as error:
        nf.LongitudinalData.from_frame(frame, "plant", "day", "y")
    advised = re.search(r"\(?(frame\[|pd\.).*(?=\.$)", str(error.value))[0]
    frame["day"] = eval(advised, {"frame": frame, "pd": pd})
    data = nf.LongitudinalData.from_frame(frame, "plant", "day", "y")
    assert data.time.flatten().tolist() == numbers.tolist()


def test_long_identifiers_of_a_database_stay_apart():
    """Decimals beyond 2^53, which floats cannot tell apart."""
    names = [Decimal(20_240_500_012_345_677 + k) for k in range(4)]
    frame = pd.DataFrame(
        {"plant": np.repeat(names, 3), "day": np.tile([1.0, 2.0, 3.0], 4), "y": np.arange(12.0)}
    )
    data = nf.LongitudinalData.from_frame(frame, "plant", "day", "y")
    assert [str(label) for label in data.labels] == [str(name) for name in names]


def test_a_table_of_another_library_is_named_with_its_way_to_pandas():
    with pytest.raises(nf.DataError, match=r"got pyarrow\.lib\.Table, whose to_pandas\(\) makes one\."):
        read(pyarrow.Table.from_pandas(table()))
    with pytest.raises(nf.DataError, match=r"a CSV file; got dict\.$"):
        read(dict(table()))
