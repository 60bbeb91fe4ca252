"""The study: interrupted ones go on, failures are left out, tables are what they say."""

from time import time_ns

import pandas as pd
import pytest

from nlmeflow.studies import core as study
from nlmeflow.studies.scenarios import LAWS


def stamped(job):
    """Return one row that no second call repeats; replicate 9 fails."""
    if job[3] == 9:
        raise ValueError("no law in sight")
    return [{**dict(zip(study.KEY, job, strict=True)), "law": "clock", "kl": float(time_ns() % 10**9)}]


def test_a_study_goes_on_where_it_stopped_and_leaves_failures_out(tmp_path, capsys):
    path = tmp_path / "rows.csv"
    jobs = [("L1", "R", 50, replicate) for replicate in (0, 1, 9)]
    study.run(jobs[:1], path, 1, stamped)
    first = pd.read_csv(path)
    study.run(jobs, path, 1, stamped)
    second = pd.read_csv(path)
    assert second["replicate"].tolist() == [0, 1]
    assert second["kl"][0] == first["kl"][0]
    assert "no law in sight" in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir()] == ["rows.csv"]


def test_ratios_are_to_the_better_of_gaussian_and_mixture():
    kl = {"gaussian": 0.4, "mixture": 0.2, "stacked": 0.1}
    rows = pd.DataFrame(
        [{"scenario": "L2", "design": d, "law": k, "kl": v} for d in "RS" for k, v in kl.items()]
    )
    assert study.ratios(rows).tolist() == pytest.approx([0.5, 0.5])


def test_variants_are_compared_by_geometric_means_over_scenarios():
    kl = {("L1", "as it is"): 0.1, ("L1", "bare"): 0.4, ("L2", "as it is"): 0.2, ("L2", "bare"): 0.2}
    rows = [
        {"scenario": s, "variant": v, "design": "R", "law": "mixture", "kl": k} for (s, v), k in kl.items()
    ]
    found = study.relative_to(pd.DataFrame(rows), "as it is")["R"]
    assert found["mixture"].to_dict() == pytest.approx({"as it is": 1.0, "bare": 2.0})


def test_the_replicate_shown_is_the_median():
    rows = pd.DataFrame({"replicate": range(4), "kl": [3.0, 1.0, 2.0, 4.0]})
    rows = rows.assign(scenario="L2", design="R", law="stacked")
    assert study.median_replicate(rows, "L2", "R") == 2


def test_the_stored_study_is_whole():
    rows = study.stored()
    main = rows[rows["law"].isin(["gaussian", "mixture", "flow", "stacked", "oracle"])]
    counts = main.groupby(["scenario", "design", "law"])["kl"].count()
    assert len(counts) == len(LAWS) * 2 * 5
    assert (counts >= 20).all()
