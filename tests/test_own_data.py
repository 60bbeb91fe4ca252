"""book/your_data.ipynb and tools/report.py: the reader's own file, from the table to the report."""

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import nlmeflow as nf

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "data" / "example" / "two_strategies.csv"
pytestmark = pytest.mark.slow


def report(path, out, *settings):
    command = [sys.executable, ROOT / "tools" / "report.py", path, "--out", out]
    command += [f"--set={setting}" for setting in settings]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_report_of_a_spreadsheet_file_is_one_page(tmp_path):
    text = EXAMPLE.read_text().splitlines()
    some = [line for line in text if line.startswith("variety") or int(line[1:4]) <= 40]
    (tmp_path / "my.csv").write_text("\n".join(some).replace(",", ";").replace(".", ","))
    done = report(
        tmp_path / "my.csv", tmp_path / "out", "refits=20", "folds=2", "threshold=50", "response_unit=%"
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "out" / "report.html").read_text()
    assert "semicolons" in page
    assert "decimal commas" in page
    assert "The population law has 2 groups" in page
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)  # nothing is fetched
    assert "<script" not in page
    assert "% by definition" not in page
    table = pd.read_csv(tmp_path / "out" / "tables" / "individuals.csv", index_col=0)
    assert len(table) == 40
    assert table["P(tau < 50)"].between(0, 1).all()


@pytest.mark.parametrize(
    ("change", "settings", "words"),
    [
        (lambda s: s.replace("33.0,85.5", "33.0,green"), (), "is not a number in line 2: 'green'"),
        (lambda s: s.replace(".", ","), (), "decimals may have been written with a comma"),
        (lambda s: s, ("curve=logistic",), "No curve 'logistic'"),
        (lambda s: s, ("curv=logistic",), "No parameter curv"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, change, settings, words):
    (tmp_path / "my.csv").write_text(change(EXAMPLE.read_text()))
    done = report(tmp_path / "my.csv", tmp_path / "out", *settings)
    assert done.returncode in (1, 2)
    assert words.lower() in done.stderr.lower()
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "report.html").exists()


def test_dates_become_days_and_the_first_is_named():
    frame = pd.DataFrame({"day": pd.to_datetime(["2024-05-03 12:00", "2024-05-01 00:00"])})
    days, said = nf.in_days(frame, "day")
    assert list(days["day"]) == [2.5, 0.0]
    assert "2024-05-01" in said
    plain = pd.DataFrame({"day": [1.0]})
    assert nf.in_days(plain, "day")[0] is plain
    empty, said = nf.in_days(plain.assign(day=pd.NaT), "day")
    assert empty["day"].isna().all()
    assert said == ""


def test_curves_have_names_in_a_string():
    curve = nf.curves.named("change_point(smoothness=2)", "days", "%")
    assert curve.names == ("A", "tau", "b")
    assert curve["b"].unit == "%/days"
    for text, words in (
        ("sigmoid", "the curves are"),
        ("change_point", "takes smoothness"),
        ("linear(1)", "name(argument=value"),
        ("__import__('os')", "name(argument=value"),
        ("linear(slope=2)", "takes time_unit"),
    ):
        with pytest.raises(nf.ModelError, match=re.escape(words)):
            nf.curves.named(text)
