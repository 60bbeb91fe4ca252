"""nlmeflow.data.files: text files as people have them."""

import gzip

import numpy as np
import pandas as pd
import pytest

import nlmeflow as nf

ROWS = [("a", 1, 3.5), ("a", 2, 0.25), ("b", 1, 90.0), ("b", 2, None)]


def text(separator=",", point=".", missing=""):
    """Return a small file with the columns plant, day and greenness."""
    lines = [separator.join(["plant", "day", "greenness"])]
    for plant, day, value in ROWS:
        lines.append(
            separator.join([plant, str(day), missing if value is None else f"{value}".replace(".", point)])
        )
    return "\n".join(lines) + "\n"


def with_row_names(separator):
    """Return the file as R's write.table has it: names of rows, and no name above them."""
    first, *rows = text(separator, missing="NA").splitlines()
    return "\n".join([first, *(f'"{k}"{separator}{row}' for k, row in enumerate(rows, 1))])


@pytest.mark.parametrize(
    "content",
    [
        text().encode(),
        text(";", ",").encode(),
        text("\t", ",").encode("utf-16"),
        text("|", missing="NA").encode(),
        b"\xef\xbb\xbf" + text(missing=".").encode(),
        text().replace("\n", "\r\n").encode(),
        text().replace("\n", "\r").encode(),
        text(";").replace("\n", ";;\n").encode(),  # a spreadsheet's empty columns
        ("\n\n" + text().replace("b,1", "\n\nb,1")).encode(),
        text(" ", missing="NA").replace(" ", "   ").replace("\na", " \n  a").encode(),
        with_row_names(",").encode(),
        with_row_names(" ").encode(),
    ],
)
def test_files_of_spreadsheets_hold_the_same_table(tmp_path, content):
    (tmp_path / "my.csv").write_bytes(content)
    frame = nf.read_table(tmp_path / "my.csv").frame
    assert list(frame.columns) == ["plant", "day", "greenness"]
    assert frame["day"].dtype == int
    np.testing.assert_array_equal(frame["greenness"], [3.5, 0.25, 90.0, np.nan])
    assert list(frame["plant"]) == ["a", "a", "b", "b"]


def test_what_is_not_plain_is_said(tmp_path):
    (tmp_path / "my.csv").write_text(text(";", ","))
    with pytest.warns(UserWarning, match="decimal commas"):
        data = nf.LongitudinalData.from_frame(tmp_path / "my.csv", "plant", "day", "greenness")
    assert data.n_missing == 1
    said = " ".join(nf.read_table(tmp_path / "my.csv").remarks)
    assert "semicolons" in said
    assert "3,5 is read as 3.5" in said
    (tmp_path / "plain.csv").write_text(text())
    assert nf.read_table(tmp_path / "plain.csv").remarks == ()


def test_names_of_rows_are_said_to_be_left_out(tmp_path):
    (tmp_path / "my.csv").write_text(with_row_names(" "))
    said = " ".join(nf.read_table(tmp_path / "my.csv").remarks)
    assert "separated by spaces" in said
    assert "taken for names of rows" in said


def read(tmp_path, content, time="day"):
    (tmp_path / "my.csv").write_text(content)
    return nf.LongitudinalData.from_frame(tmp_path / "my.csv", "plant", time, "greenness")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.replace("b,1,90.0", "b,1,ninety"), "'greenness' is not a number in line 4: 'ninety'"),
        (lambda s: s.replace("b,1,90.0", "b,1,<90"), "censoring="),
        (lambda s: s.replace("b,1,90.0", "b,1,90,0"), "Line 4 of 'my.csv' has 4 values"),
        (
            lambda s: s.replace(".", ",").replace("b,2,", "b,2,0,5"),
            "Decimals may have been written with a comma",
        ),
        (lambda s: s.replace("a,2", "a,1"), "lines 2, 3"),
        (lambda s: s.replace("greenness", "Greeness"), "Is it 'Greeness'"),
        (lambda s: s.replace("day", "plant"), "'plant' stands twice"),
        (lambda s: s.replace(",1,", ",2024-05-01,").replace(",2,", ",2024-05-08,"), "holds dates"),
        (lambda s: s.replace(",1,", ",01/05/2024,").replace(",2,", ",08/05/2024,"), "may be a date"),
        (lambda s: s.replace("3.5", '"1,234"').replace("0.25", '"2,500"'), "thousands"),
        (lambda s: "", "is empty"),
        (lambda s: "plant,day,greenness\n", "no rows"),
        (lambda s: "PK\x03\x04", "workbook"),
    ],
)
def test_what_cannot_be_read_is_explained(tmp_path, change, words):
    with pytest.raises(nf.DataError, match=words):
        read(tmp_path, change(text()))


def test_names_with_leading_zeros_stay_names(tmp_path):
    data = read(tmp_path, text().replace("a,", "01,").replace("b,", "1,"))
    assert data.labels == ("01", "1")


def test_none_is_a_level_among_words_and_missing_among_numbers(tmp_path):
    path = tmp_path / "my.csv"
    path.write_text(
        "plant,day,y,feed,kind,c\na,1,2,none,None,None\na,2,None,none,None,left\nb,1,3,high,NA,.\n"
    )
    frame = nf.read_table(path).frame
    assert frame["y"].isna().tolist() == [False, True, False]
    assert frame["kind"].isna().tolist() == [False, False, True]
    data = nf.LongitudinalData.from_frame(path, "plant", "day", "y", covariates=["feed"])
    assert data.covariates["feed"].tolist() == ["none", "high"]
    frame["y"] = 1.0
    data = nf.LongitudinalData.from_frame(frame, "plant", "day", "y", censoring="c")
    assert int((data.censored & data.mask).sum()) == 1


@pytest.mark.parametrize(
    "names", [("1.1", "1.10"), ("2E1", "20"), ("2024-01-01", "2024-01-1"), ("5%", "5.0%")]
)
def test_names_are_kept_as_they_are_written(tmp_path, names):
    first, second = names
    content = text().replace("a,", f"{first},").replace("b,", f"{second},").replace("90.0", "90.00")
    assert read(tmp_path, content).labels == names
    frame = nf.read_table(tmp_path / "my.csv", ["plant"]).frame
    assert frame["plant"].tolist() == [first, first, second, second]
    assert frame["greenness"].dtype == float
    path = tmp_path / "groups.csv"
    path.write_text(f"lot,plant,day,y\n{first},a,1,2\n{second},b,1,3\n")
    data = nf.LongitudinalData.from_frame(path, "plant", "day", "y", group="lot")
    assert tuple(data.grouped()[1]) == names
    path = tmp_path / "doses.csv"
    path.write_text("".join(["ID,TIME,DV,AMT\n", *(f"{n},0,.,10\n{n},1,5,.\n" for n in names)]))
    assert nf.read_nonmem(path).labels == names


def test_names_that_were_read_as_one_number_are_said(tmp_path):
    (tmp_path / "my.csv").write_text(text().replace("a,", "1.1,").replace("b,", "1.10,"))
    (said,) = nf.read_table(tmp_path / "my.csv").remarks
    assert "'plant' has 1.1 and 1.10, which are one number" in said
    assert nf.read_table(tmp_path / "my.csv", names=["plant"]).remarks == ()
    assert nf.read_table(tmp_path / "my.csv", names="plant").remarks == ()
    with pytest.raises(nf.DataError, match="No column 'plot' in the table; its columns are: plant"):
        nf.read_table(tmp_path / "my.csv", names=["plot"])


def test_long_numbers_beside_an_empty_cell_keep_their_digits(tmp_path):
    path = tmp_path / "long.csv"
    path.write_text("plant,day,y\n20240500012345677,1,1\n20240500012345678,1,2\n,2,3\n")
    frame = nf.read_table(path, names="plant").frame.dropna()
    assert frame["plant"].tolist() == ["20240500012345677", "20240500012345678"]
    path.write_text("plant,day,y\n7,1,1\n8,1,2\n,2,3\n")
    assert nf.read_table(path, names="plant").frame["plant"].tolist()[:2] == [7, 8]


def test_whole_numbers_that_are_names_are_numbers(tmp_path):
    assert read(tmp_path, text().replace("a,", "9,").replace("b,", "10,")).labels == (9, 10)


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (['a,1,"b",9', 'a,2,",9', 'b,1,",8'], 3),  # two cells close each other
        (["a,1,x,9", 'a,2,",9', "b,1,y,8", "b,2,z,8"], 3),  # one never closes
        (['a,1,x,"', 'b,1,y,"'], 2),
        (["a,1,x,9", 'a,",",9'], 3),
        (['a,1,x,"', *["b,1,y,8"] * 20000], 2),  # more than a cell can hold
    ],
)
def test_a_lone_quotation_mark_loses_no_row(tmp_path, lines, found):
    path = tmp_path / "my.csv"
    path.write_text("\n".join(["plant,day,note,y", *lines]) + "\n")
    with pytest.raises(nf.DataError, match=f"quotation mark in line {found} of 'my.csv'"):
        nf.read_table(path)


def test_cells_in_quotation_marks_may_have_lines_and_separators(tmp_path):
    path = tmp_path / "my.csv"
    path.write_text(
        'plant,day,note,y\na,1,"dry,\nhot, and, so, on",2\na,2,"\nwet, cold\n",3\n"b","1",", 5",4\n'
    )
    assert nf.read_table(path).frame["note"].tolist() == ["dry,\nhot, and, so, on", "wet, cold", ", 5"]


def test_dates_are_read_and_percentages_are_numbers(tmp_path):
    (tmp_path / "my.csv").write_text("plant,when,green\na,2024-05-31,85 %\na,2024-06-02 12:00,70 %\n")
    frame = nf.read_table(tmp_path / "my.csv").frame
    assert frame["when"].diff().iloc[1] == pd.Timedelta(hours=60)
    assert list(frame["green"]) == [85, 70]


def test_what_is_not_seen_in_names_of_columns_is_left_out(tmp_path):
    path = tmp_path / "my.csv"
    path.write_text("plant\u200b,day\u00a0nr,\u00a0y\n1,2,3\n", encoding="utf-8")
    assert list(nf.read_table(path).frame) == ["plant", "day nr", "y"]


def test_digits_and_signs_of_other_scripts(tmp_path):
    path = tmp_path / "my.csv"
    path.write_text("plant,day,y\n1,\u22122,3\n1,4,\u0663\n", encoding="utf-8")
    assert nf.read_table(path).frame["day"].tolist() == [-2, 4]
    with pytest.raises(nf.DataError, match="'y' is not a number in line 3: '\u0663'"):
        nf.LongitudinalData.from_frame(path, "plant", "day", "y")


def test_what_is_no_text_is_refused(tmp_path):
    (tmp_path / "my.csv.gz").write_bytes(gzip.compress(b"plant,day,y\n1,2,3\n"))
    (tmp_path / "my.bin").write_bytes(bytes(range(256)))
    for name in ("my.csv.gz", "my.bin"):
        with pytest.raises(nf.DataError, match=f"'{name}' is no text; unpack it, or save the table as CSV"):
            nf.read_table(tmp_path / name)


def test_a_folder_or_nothing_is_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(nf.DataError, match="No file"):
            nf.read_table(path)


def test_messages_name_the_line_of_a_row_that_others_were_taken_from_around(tmp_path):
    (tmp_path / "my.csv").write_text(text().replace("b,1,90.0", "b,1,ninety"))
    frame = nf.read_table(tmp_path / "my.csv").frame
    some = frame[frame["plant"] == "b"].sort_values("day", ascending=False)
    with pytest.raises(nf.DataError, match="not a number in line 4"):
        nf.LongitudinalData.from_frame(some, "plant", "day", "greenness")
    (tmp_path / "doses.csv").write_text("ID,TIME,DV,AMT\n1,0,.,10\n1,1,5,.\n2,0,.,10\n2,1,inf,.\n")
    with pytest.raises(nf.DataError, match="'DV' is infinite in line 5"):
        nf.read_nonmem(tmp_path / "doses.csv")


def test_a_comment_or_a_wide_table_is_explained(tmp_path):
    path = tmp_path / "my.csv"
    path.write_text("# measured in 2024\nplant,day,y\n1,2,3\n")
    with pytest.raises(nf.DataError, match="'# measured in 2024', has to name the columns"):
        nf.read_table(path)
    path.write_text("plant,33,39.5,2024-05-01\n1,2,3,4\n2,3,4,5\n")
    with pytest.raises(nf.DataError, match=r"33 and 39\.5 may be times: one row for each measurement"):
        nf.LongitudinalData.from_frame(nf.read_table(path).frame, "plant", "day", "y")


@pytest.mark.parametrize("rows", [["1;12,5;1", "2;1.234;2"], ["1;0,5;1.234", "2;1,5;2.500"]])
def test_points_beside_decimal_commas_may_be_of_thousands(tmp_path, rows):
    path = tmp_path / "my.csv"
    path.write_text("id;zeit;wert\n" + "\n".join(rows))
    with pytest.raises(nf.DataError, match="Write thousands without a sign between them"):
        nf.LongitudinalData.from_frame(path, "id", "zeit", "wert")


def test_points_and_decimal_commas_in_columns_of_their_own_are_decimals(tmp_path):
    path = tmp_path / "my.csv"
    path.write_text("id;zeit;wert\n1;0,5;1.2341\n2;1,5;2.5\n")
    assert nf.read_table(path).frame["wert"].tolist() == [1.2341, 2.5]


@pytest.mark.parametrize("cells", ["2,5;k.A.", "2,5;later", "85 %;often %"])
def test_nothing_is_said_of_a_column_that_stays_text(tmp_path, cells):
    path = tmp_path / "my.csv"
    one, other = cells.split(";")
    path.write_text(f"id\twert\n1\t{one}\n2\t{other}\n")
    table = nf.read_table(path)
    assert table.frame["wert"].tolist() == [one, other]
    assert table.remarks == ("Columns are separated by tabs.",)
