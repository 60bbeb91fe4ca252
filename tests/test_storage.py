"""nlmeflow.fitting.saving, nlmeflow.fitting.storage: fits saved and read, also of the former format."""

import errno
import json
import re
import resource
import signal
import struct
import subprocess
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path
from uuid import UUID

import numpy as np
import pandas as pd
import pyarrow
import pytest
import torch
from safetensors import safe_open

import nlmeflow as nf
from nlmeflow.fitting.saving import read_column, write_column
from nlmeflow.laws import (
    DiscreteLaw,
    FlowLaw,
    GaussianLaw,
    KernelLaw,
    MixtureLaw,
    SNPLaw,
    StackedLaw,
    TransformedLaw,
)

SAVED = Path(__file__).resolve().parent / "saved"


@pytest.mark.parametrize(
    "name", ["gaussian_fit", "mixture_fit", pytest.param("flow_fit", marks=pytest.mark.slow)]
)
def test_save_and_load(name, request, tmp_path, senescence):
    fit = request.getfixturevalue(name)
    path = tmp_path / "folder" / "fit"
    fit.save(path)
    again = nf.load(path)
    assert again.log_likelihood() == fit.log_likelihood()
    phi = fit.law.sample(20, 1)
    assert torch.equal(again.law.log_prob(phi), fit.law.log_prob(phi))
    assert torch.equal(again.law.sample(20, 3), fit.law.sample(20, 3))
    assert again.specification == fit.specification
    assert again.data.labels == fit.data.labels
    pd.testing.assert_frame_equal(again.individuals(), fit.individuals())
    pd.testing.assert_frame_equal(again.trace, fit.trace)
    assert str(again.summary()) == str(fit.summary())


@pytest.mark.parametrize("kind", [torch.tensor, np.array, np.float32])
def test_a_scale_given_as_a_scalar_of_any_kind_is_saved(kind, senescence, tmp_path):
    model = nf.Model(nf.curves.logistic_senescence(), nf.Additive(kind(0.04)), fixed=("A", "s"))
    model.fit(senescence.subset(range(8)), seed=1, particles=64).save(tmp_path / "fit")
    assert nf.load(tmp_path / "fit").model.residual == nf.Additive(float(kind(0.04)))


@pytest.mark.parametrize(
    "column",
    [
        pd.Series(pd.to_timedelta([1, 2, None], unit="h")).astype("duration[ns][pyarrow]"),
        pd.Series([np.int64(1), np.float32(2.5), np.bool_(True)], dtype=object),
        pd.Series(pd.arrays.SparseArray([0, 0, 2])),
        pd.Series([date(2024, 5, 1), date(1999, 12, 31)], dtype=object),
        pd.Series([date(2024, 5, 1)]).astype(pd.ArrowDtype(pyarrow.date32())),
        pd.Series(pd.PeriodIndex(["2024-05", "2024-07", None], freq="M")),
        pd.Series(pd.PeriodIndex(["2024-05-06"], freq="W-SUN")),
    ],
)
def test_columns_are_read_as_they_were_written(column):
    again = read_column(json.loads(json.dumps(write_column(column, "c"))))
    pd.testing.assert_series_equal(again, column)


def test_a_column_of_a_type_that_could_not_be_read_is_not_written():
    kind = pd.ArrowDtype(pyarrow.dictionary(pyarrow.int32(), pyarrow.string()))
    column = pd.Series(["a", "b"], dtype=kind)
    with pytest.raises(nf.ModelError, match=r"Column 'c' is of the type dictionary.*cannot be saved"):
        write_column(column, "c")


def test_names_of_a_kind_that_a_file_cannot_hold_are_those_of_the_users_column(gaussian_fit, tmp_path):
    fit = gaussian_fit
    ids = tuple(UUID(int=k) for k in range(len(fit.data)))
    data = replace(fit.data, labels=ids, names=("animal", *fit.data.names[1:]))
    with pytest.raises(nf.ModelError, match="Column 'animal' holds a UUID, which cannot be saved"):
        replace(fit, data=data).save(tmp_path / "fit")


@pytest.mark.parametrize("step", ["fdopen", "fsync", "chmod", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_save_that_fails_leaves_the_old_file_and_no_other(gaussian_fit, tmp_path, monkeypatch, step, error):
    path = tmp_path / "fit"
    gaussian_fit.save(path)
    before = path.read_bytes()

    def fails(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(f"nlmeflow.fitting.saving.os.{step}", fails)
        with pytest.raises(type(error)):
            gaussian_fit.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["fit"]
    gaussian_fit.save(path)
    assert path.read_bytes() == before


def test_a_disk_that_is_full_in_the_middle_of_a_file(gaussian_fit, tmp_path):
    """The largest size that the system lets a file have stands for the space that is left."""
    path = tmp_path / "fit"
    gaussian_fit.save(path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    signals = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
        with pytest.raises(OSError, match="too large"):
            gaussian_fit.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, signals)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["fit"]


KILLED = """
import os, signal, sys
import nlmeflow as nf
fit = nf.load(sys.argv[1])
fit.seed = 2
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
fit.save(sys.argv[1])
"""


@pytest.mark.slow
def test_a_process_killed_while_it_saves_leaves_the_old_file(gaussian_fit, tmp_path):
    path = tmp_path / "fit"
    gaussian_fit.save(path)
    before = path.read_bytes()
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    left = [p.name for p in tmp_path.iterdir() if p != path]
    assert len(left) == 1
    assert re.fullmatch(r"\.fit\..+\.unfinished", left[0])
    gaussian_fit.save(path)
    assert nf.load(path).log_likelihood() == gaussian_fit.log_likelihood()


def test_damaged_and_foreign_files_are_refused(gaussian_fit, tmp_path):
    path = tmp_path / "fit"
    gaussian_fit.save(path)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"hello", whole[:8] + b"\x00" * 50 + whole[58:]):
        path.write_bytes(damaged)
        with pytest.raises(nf.DataError, match="damaged"):
            nf.load(path)
    size = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + size])
    header["__metadata__"] = {"other": "thing"}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + size :])
    with pytest.raises(nf.DataError, match="not a fit"):
        nf.load(path)
    with pytest.raises(FileNotFoundError, match="No fit at"):
        nf.load(tmp_path / "absent")


def test_a_bit_that_changed_on_the_disk_is_seen(gaussian_fit, tmp_path):
    path = tmp_path / "fit"
    gaussian_fit.save(path)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1  # in a tensor, which is a number still
    path.write_bytes(content)
    with pytest.raises(nf.DataError, match="is damaged: its content is not what was saved"):
        nf.load(path)


def test_a_place_where_there_can_be_no_file_is_told(gaussian_fit, tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "fit", tmp_path / ("a" * 300), f"{tmp_path}/a\0b"):
        with pytest.raises(nf.DataError, match="No file can be written at"):
            gaussian_fit.save(place)
        with pytest.raises(FileNotFoundError, match="No fit at"):
            nf.load(place)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_curve_of_ones_own_is_given_again(tmp_path, senescence):
    def own(t, psi):
        return psi["A"] / (1 + torch.exp((t - psi["tau"]) / psi["s"]))

    parameters = [nf.Parameter("A", "log"), nf.Parameter("tau"), nf.Parameter("s", "log")]
    curve = nf.Curve(own, parameters)
    fit = nf.Model(curve, fixed=("A",)).fit(senescence, seed=1, progress=False)
    fit.save(tmp_path / "fit")
    with pytest.raises(nf.ModelError, match="curve of its own"):
        nf.load(tmp_path / "fit")
    with pytest.raises(nf.ModelError, match="was made with parameters"):
        nf.load(tmp_path / "fit", curve=nf.curves.linear())
    with pytest.raises(nf.ModelError, match=r"not the one that the fit was made with: where that was 0\.9"):
        nf.load(tmp_path / "fit", curve=nf.Curve(lambda t, psi: 0.9 * own(t, psi), parameters))
    assert nf.load(tmp_path / "fit", curve=curve).log_likelihood() == fit.log_likelihood()


@pytest.mark.parametrize(
    ("curve", "words"),
    [
        (nf.curves.change_point(8.0), r"smoothness = 2.0; this one has smoothness = 8.0"),
        (nf.curves.change_point(2.0, "h"), r"time_unit = 'days'; this one has time_unit = 'h'"),
        (nf.Curve(lambda t, psi: t, nf.curves.change_point(2.0).parameters), "a function of its own"),
    ],
)
def test_a_curve_with_other_arguments_than_the_fitted_one_is_refused(tmp_path, senescence, curve, words):
    fitted = nf.curves.change_point(2.0)
    fit = nf.Model(fitted, fixed=("A", "b")).fit(senescence, seed=1, particles=64, progress=False)
    fit.save(tmp_path / "fit")
    with pytest.raises(nf.ModelError, match=words):
        nf.load(tmp_path / "fit", curve=curve)
    same = nf.load(tmp_path / "fit", curve=nf.curves.change_point(smoothness=2, time_unit="days"))
    assert same.log_likelihood() == fit.log_likelihood()


# Files of format 3, fits of scenario L2 (design R, n 60, seed 1): class, log-likelihood, mean log-density.
FORMER = {
    "gaussian": (GaussianLaw, 1417.020884902244, -2.772606692162095),
    "mixture": (MixtureLaw, 1440.963261231117, -2.4824002943211774),
    "snp": (SNPLaw, 1439.2815063637136, -2.4091508752758766),
    "boxcox": (TransformedLaw, 1417.9110246855594, -2.7981608597290935),
    "smooth": (KernelLaw, 1441.4596633333033, -2.7329980849309576),
    "npml": (DiscreteLaw, 1489.6319854217768, None),
    "flow": (StackedLaw, 1440.7017606003717, -2.433387417402397),
    "realnvp": (StackedLaw, 1439.739339846235, -2.4130861926217566),
    "saem": (GaussianLaw, 1417.0172525295447, -2.772161418594639),
    "twostage": (KernelLaw, 1428.2732655392028, -2.6002545033405875),
}


def test_every_file_of_the_former_format_is_known():
    assert {path.stem for path in SAVED.glob("*.fit")} == set(FORMER)


def format_of(path):
    with safe_open(str(path), framework="pt") as file:
        return json.loads(file.metadata()["nlmeflow"])["format"]


AVERAGES = ("flow", "realnvp")  # whose likelihoods take a while
CASES = [pytest.param(name, marks=pytest.mark.slow) if name in AVERAGES else name for name in FORMER]


@pytest.mark.parametrize("name", CASES)
def test_a_file_of_the_former_format_is_read_and_saved_in_the_new_one(name, tmp_path):
    kind, value, density = FORMER[name]
    former = nf.load(SAVED / f"{name}.fit")
    former.save(tmp_path / "fit")
    assert [format_of(path) for path in (SAVED / f"{name}.fit", tmp_path / "fit")] == [3, 4]
    again = nf.load(tmp_path / "fit")
    phi = nf.scenarios.load("L2", "R", 60, 1).law.sample(500, 5)
    for fit in (former, again):
        assert type(fit.law) is kind
        if density is not None:
            assert float(fit.law.log_prob(phi).mean()) == pytest.approx(density, abs=1e-9)
    found, error = again.log_likelihood()
    assert error < 0.1
    assert found == pytest.approx(value, abs=3 * error + 0.01)
    assert torch.equal(again.law.sample(20, 1), former.law.sample(20, 1))
    assert again.specification == former.specification
    assert again.data.labels == former.data.labels
    pd.testing.assert_frame_equal(again.trace, former.trace)


def test_options_of_laws_of_the_former_format_are_kept():
    law = {name: nf.load(SAVED / f"{name}.fit").law for name in ("mixture", "snp", "boxcox", "flow")}
    assert (law["mixture"].shrinkage, law["mixture"].prior) == (5.0, 0.0)
    assert (law["snp"].order, law["boxcox"].kind) == (2, "box-cox")
    bases = [part for part in law["flow"].laws if isinstance(part, MixtureLaw)]
    assert [(base.shrinkage, base.prior) for base in bases] == [(5.0, 1.0), (10.0, 1.0)]
    averages = [part.laws[0] for part in law["flow"].laws if isinstance(part, StackedLaw)]
    networks = [first.network for first in averages if isinstance(first, FlowLaw)]
    assert networks == [nf.Network("quadratic", layers, (8,)) for layers in (2, 1)]


def test_a_fit_is_read_with_its_own_curve(gaussian_fit, senescence, tmp_path):
    gaussian_fit.save(tmp_path / "fit")
    with pytest.raises(
        nf.ModelError, match="made with the curve 'logistic_senescence'; this one is 'gompertz'"
    ):
        nf.load(tmp_path / "fit", curve=nf.curves.gompertz())
    cube = nf.Transform("cube", lambda phi: phi**3, lambda psi: psi.sign() * psi.abs() ** (1 / 3))
    curve = nf.curves.logistic_senescence().with_transforms(tau=cube)
    fit = nf.Model(curve, fixed=("A", "s")).fit(senescence, seed=1, particles=128, progress=False)
    fit.save(tmp_path / "own")
    with pytest.raises(nf.ModelError, match="has a scale of its own: give the curve again"):
        nf.load(tmp_path / "own")
    assert nf.load(tmp_path / "own", curve=curve).law.mean == pytest.approx(fit.law.mean)


def test_a_path_may_begin_at_home(gaussian_fit, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    gaussian_fit.save("~/one.fit")
    assert (tmp_path / "one.fit").is_file()
    assert nf.load("~/one.fit").log_likelihood() == gaussian_fit.log_likelihood()


def test_names_of_columns_of_several_parts_are_saved(senescence, tmp_path):
    names = (("plant", "id"), 2, "y")
    frame = senescence.to_frame()
    frame.columns = pd.Index([*names, *frame.columns[3:]], tupleize_cols=False)
    data = nf.LongitudinalData.from_frame(frame.assign(**{"row of the table": 1.0}), *names)
    fit = nf.Model(nf.curves.logistic_senescence(), fixed=("A", "s")).fit(data, particles=64, progress=False)
    fit.save(tmp_path / "fit")
    assert nf.load(tmp_path / "fit").data.names == names
