"""nlmeflow.data.datasets: the Phenovator data are what their description says; where they are looked for."""

import os
from pathlib import Path

import pytest

import nlmeflow as nf
from nlmeflow.data import datasets

GIVEN = os.environ.get(datasets.VARIABLE)
here = pytest.mark.skipif(
    not GIVEN or not (Path(GIVEN) / datasets.PHENOVATOR.path).is_file(),
    reason="the Phenovator file is not in NLMEFLOW_DATA_DIR",
)


@here
def test_phenovator_is_what_its_description_says():
    frame = nf.datasets.phenovator()
    assert len(frame) == 103_839
    assert frame["pos"].nunique() == 1434
    assert frame["Genotype"].nunique() == 196
    assert frame["timepoints"].nunique() == 73
    window = nf.datasets.high_light(frame)
    assert len(window) == 28_186
    assert window["plant"].nunique() == 1432
    assert window["day"].nunique() == 20
    assert sorted(window["replicate"].unique()) == list("12345678")
    assert window["day"].min() == 0
    assert not window.isna().any().any()


@here
def test_the_gaussian_fit_of_the_description_comes_out():
    frame = nf.datasets.high_light()
    data = nf.LongitudinalData.from_frame(frame, "plant", "day", "efficiency")
    fit = nf.Model(nf.curves.exponential_recovery("days")).fit(data, seed=1, progress=False)
    assert fit.law.mean.tolist() == pytest.approx([0.685, 0.336, -0.86], abs=0.02)
    assert fit.law.sd.tolist() == pytest.approx([0.037, 0.058, 0.39], rel=0.05)
    assert float(fit.law.correlation[0, 2]) == pytest.approx(-0.80, abs=0.02)
    assert fit.residual["sigma"] == pytest.approx(0.0155, abs=2e-4)


def test_a_wrong_file_is_refused(tmp_path, monkeypatch):
    path = tmp_path / datasets.PHENOVATOR.path
    path.parent.mkdir()
    path.write_bytes(b"something else")
    monkeypatch.setenv(datasets.VARIABLE, str(tmp_path))
    with pytest.raises(nf.DataError, match="SHA-256"):
        nf.datasets.phenovator()


def test_without_file_and_network_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv(datasets.VARIABLE, str(tmp_path))

    def no_network(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets.pooch, "retrieve", no_network)
    with pytest.raises(nf.DataError) as error:
        nf.datasets.phenovator()
    for word in ("PhenovatorDat1.rda", "NLMEFLOW_DATA_DIR", datasets.PHENOVATOR.url):
        assert word in str(error.value)


def test_the_folder_comes_before_the_cache_and_the_cache_before_the_network(tmp_path, monkeypatch):
    asked = []
    monkeypatch.delenv(datasets.VARIABLE, raising=False)
    monkeypatch.setattr(
        datasets.pooch,
        "retrieve",
        lambda url, known, **more: asked.append((url, known)) or str(tmp_path / "x"),
    )
    assert datasets.fetch(datasets.PHENOVATOR) == tmp_path / "x"
    assert asked == [(datasets.PHENOVATOR.url, f"sha256:{datasets.PHENOVATOR.sha256}")]
