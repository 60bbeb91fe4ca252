"""nlmeflow.data.datasets: the data are what their descriptions say; where they are looked for."""

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
potato_here = pytest.mark.skipif(
    not GIVEN or not (Path(GIVEN) / datasets.POTATO.path).is_file(),
    reason="the potato file is not in NLMEFLOW_DATA_DIR",
)
LOADERS = {"phenovator": nf.datasets.phenovator, "potato": nf.datasets.potato}
every_source = pytest.mark.parametrize("name", datasets.SOURCES)


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


@potato_here
def test_potato_is_what_its_description_says():
    frame = nf.datasets.potato()
    assert len(frame) == 1568
    assert (frame["Plot"].nunique(), frame["Gen"].nunique(), frame["DAP"].nunique()) == (196, 185, 8)
    assert (frame["VineMaturity"].min(), frame["VineMaturity"].max()) == (2, 7)
    season = nf.datasets.canopy(frame)
    assert len(season) == 1568
    assert not season.isna().any().any()
    assert season["cover"].between(0, 100).all()
    sides = season.groupby("bound")["cover"]
    assert sides.min().to_dict() == {"": pytest.approx(sides.min()[""]), "left": 0.0, "right": 100.0}
    assert sides.max()["left"] == 0 < sides.min()[""]
    assert sides.max()[""] < 100 == sides.max()["right"]
    decline = nf.datasets.canopy(frame, datasets.DECLINE_FROM)
    assert sorted(decline["day"].unique()) == [76, 92, 100, 108]
    assert decline.groupby("plot").size().eq(4).all()
    plots = decline.drop_duplicates("plot").groupby("clone").size()
    assert plots.value_counts().to_dict() == {1: 174, 2: 11}


@every_source
def test_about_tells_provenance_licence_and_citation(name):
    source, text = datasets.SOURCES[name], nf.datasets.about(name)
    for part in (source.title, source.url, source.sha256, source.licence, source.cite):
        assert part in text
    assert source.url.startswith("https://")
    assert len(source.sha256) == 64


def test_about_names_the_data_sets_there_are():
    with pytest.raises(nf.DataError, match=r"'tomato'; there are phenovator, potato"):
        nf.datasets.about("tomato")


@every_source
def test_a_wrong_file_is_refused(name, tmp_path, monkeypatch):
    path = tmp_path / datasets.SOURCES[name].path
    path.parent.mkdir()
    path.write_bytes(b"something else")
    monkeypatch.setenv(datasets.VARIABLE, str(tmp_path))
    with pytest.raises(nf.DataError, match="SHA-256"):
        LOADERS[name]()


@every_source
def test_without_file_and_network_the_error_says_what_to_do(name, tmp_path, monkeypatch):
    monkeypatch.setenv(datasets.VARIABLE, str(tmp_path))

    def no_network(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets.pooch, "retrieve", no_network)
    with pytest.raises(nf.DataError) as error:
        LOADERS[name]()
    source = datasets.SOURCES[name]
    for word in (Path(source.path).name, "NLMEFLOW_DATA_DIR", source.url):
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
