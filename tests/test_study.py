"""nlmeflow.studies: each lists its jobs, tables are what they say."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pandas as pd
import pytest

from nlmeflow.studies import core, notebook
from nlmeflow.studies.run import Study, found
from nlmeflow.studies.scenarios import LAWS

STUDIES = sorted((Path(__file__).resolve().parent.parent / "tools" / "studies").glob("*.yml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_names_functions_that_exist_and_lists_its_jobs(path):
    study = Study.read(path, replicates=2)
    assert callable(found(study.measure))
    assert callable(found(study.report))
    assert len({tuple(job.items()) for job in study.jobs}) == len(study.jobs) > 0


def test_a_grid_may_be_several_and_replicates_come_first(tmp_path):
    path = tmp_path / "study.yml"
    path.write_text(
        "measure: nlmeflow.studies.core:measure\nreport: nlmeflow.studies.core:report\n"
        "grid:\n  - {a: [1, 2], b: [x]}\n  - {a: [3], b: [y]}\nreplicates: 2\nfirst: 4\noptions: {n: 5}\n"
    )
    study = Study.read(path)
    assert study.options == {"n": 5}
    assert study.jobs[0] == {"replicate": 4, "a": 1, "b": "x"}
    assert [(job["replicate"], job["a"]) for job in study.jobs] == [
        (4, 1),
        (4, 2),
        (4, 3),
        (5, 1),
        (5, 2),
        (5, 3),
    ]


def test_versions_are_those_of_installed_packages(monkeypatch):
    def without_figures(name):
        if name == "matplotlib":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(notebook, "version", without_figures)
    found = notebook.versions()
    assert found.keys() == {"python", "nlmeflow", "torch", "zuko", "numpy", "scipy", "pandas"}
    assert found["torch"] == version("torch")


def test_ratios_are_to_the_better_of_gaussian_and_mixture():
    kl = {"gaussian": 0.4, "mixture": 0.2, "stacked": 0.1}
    rows = pd.DataFrame(
        [{"scenario": "L2", "design": d, "law": k, "kl": v} for d in "RS" for k, v in kl.items()]
    )
    assert core.ratios(rows).tolist() == pytest.approx([0.5, 0.5])


def test_variants_are_compared_by_geometric_means_over_scenarios():
    kl = {("L1", "as it is"): 0.1, ("L1", "bare"): 0.4, ("L2", "as it is"): 0.2, ("L2", "bare"): 0.2}
    rows = [
        {"scenario": s, "variant": v, "design": "R", "law": "mixture", "kl": k} for (s, v), k in kl.items()
    ]
    found = core.relative_to(pd.DataFrame(rows), "as it is")["R"]
    assert found["mixture"].to_dict() == pytest.approx({"as it is": 1.0, "bare": 2.0})


def test_the_replicate_shown_is_the_median():
    rows = pd.DataFrame({"replicate": range(4), "kl": [3.0, 1.0, 2.0, 4.0]})
    rows = rows.assign(scenario="L2", design="R", law="stacked")
    assert core.median_replicate(rows, "L2", "R") == 2


def test_the_stored_study_is_whole():
    rows = core.stored()
    main = rows[rows["law"].isin(["gaussian", "mixture", "flow", "stacked", "oracle"])]
    counts = main.groupby(["scenario", "design", "law"])["kl"].count()
    assert len(counts) == len(LAWS) * 2 * 5
    assert (counts >= 20).all()


def test_former_names_are_found_with_a_warning():
    import nlmeflow as nf

    with pytest.warns(DeprecationWarning, match="is now nlmeflow.studies.core"):
        assert nf.study is core
