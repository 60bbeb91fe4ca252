"""nlmeflow.laws.specification, nlmeflow.laws.em: a law from outside the package is a law like any other."""

from dataclasses import dataclass, replace
from typing import ClassVar

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import Tensor

import nlmeflow as nf
from nlmeflow.laws import Specification
from nlmeflow.laws.affine import Affine
from nlmeflow.laws.draws import TrainingSet
from nlmeflow.laws.em import SmoothLaw, best_climb
from nlmeflow.laws.gaussian import population
from nlmeflow.seeds import Seed, generator


@dataclass(frozen=True, eq=False)
class StudentLaw(SmoothLaw):
    """The multivariate t: phi = mean + factor z, z standard normal over sqrt(chi^2 / dof)."""

    title: ClassVar[str] = "multivariate Student t"
    frame: Affine
    log_dof: Tensor

    @property
    def n_parameters(self) -> int:
        return self.frame.n_parameters + 1

    @property
    def n_free(self) -> int:
        return self.n_parameters

    def log_prob(self, phi: Tensor) -> Tensor:
        dof, dim = self.log_dof.exp(), self.dim
        distance = self.frame.standardise(self._rows(phi)).square().sum(-1)
        constant = torch.lgamma((dof + dim) / 2) - torch.lgamma(dof / 2) - dim / 2 * (dof * torch.pi).log()
        value = constant - self.frame.log_volume - (dof + dim) / 2 * torch.log1p(distance / dof)
        return value.reshape(phi.shape[:-1])

    def sample(self, n: int, seed: Seed) -> Tensor:
        random = generator(seed)
        normal = torch.randn(n, self.dim, generator=random, dtype=torch.float64)
        uniform = torch.rand(n, generator=random, dtype=torch.float64)
        dof = float(self.log_dof.exp())
        scale = torch.from_numpy(stats.chi2.ppf(uniform.numpy(), dof) / dof).sqrt()
        return self.frame(normal / scale[:, None])

    def moved(self, vector: Tensor) -> "StudentLaw":
        place, change = vector.split([self.frame.n_parameters, 1])
        return replace(self, frame=self.frame.moved(place), log_dof=self.log_dof + change[0])


@dataclass(frozen=True)
class Student(Specification):
    """Specification of a multivariate t; dof: degrees of freedom at which climbs start."""

    name: ClassVar[str] = "student"
    dof: tuple[float, ...] = (3.0, 6.0, 20.0)

    def learn(self, training: TrainingSet) -> StudentLaw:
        frame = population(training.draws).normal
        starts = [StudentLaw(frame, frame.mean.new_tensor(dof).log()) for dof in self.dof]
        return best_climb(starts, training.draws)


def truth():
    factor = torch.tensor([[2.0, 0.0], [-0.05, 0.12]], dtype=torch.float64)
    frame = Affine(torch.tensor([50.0, 1.1], dtype=torch.float64), factor)
    return StudentLaw(frame, torch.tensor(2.2, dtype=torch.float64).log())


@pytest.fixture(scope="module")
def data(model):
    days = np.arange(30.0, 73.0, 6.0)
    return model.simulate(truth(), days, 40, 4, 0.04, A=1.0)[0]


@pytest.fixture(scope="module")
def comparison(model, data):
    laws = [nf.Gaussian(), Student()]
    return nf.compare(model, data, laws, folds=3, seed=1, progress=False)


@pytest.fixture(scope="module")
def fit(comparison):
    return comparison.fits["student"]


def test_its_density_is_that_of_scipy():
    law = truth()
    phi = law.sample(50, 1)
    shape = (law.frame.factor @ law.frame.factor.mT).numpy()
    exact = stats.multivariate_t(law.frame.mean.numpy(), shape, df=float(law.log_dof.exp()))
    assert law.log_prob(phi).numpy() == pytest.approx(exact.logpdf(phi.numpy()))


def test_it_is_fitted_and_beats_the_gaussian_where_tails_are_heavy(fit, comparison):
    assert fit.converged
    assert isinstance(fit.law, StudentLaw)
    gain = fit.log_likelihood().value - comparison.fits["gaussian"].log_likelihood().value
    assert 3 < gain < 100
    assert float(fit.law.log_dof.exp()) < 8
    assert fit.residual["sigma"] == pytest.approx(0.04, rel=0.15)


def test_it_is_compared_beside_the_gaussian(comparison):
    table = comparison.table()
    assert list(table.index) == ["gaussian", "student"]
    assert np.isfinite(comparison.scores.to_numpy()).all()
    assert table.loc["student", "gain"] > 0
    assert comparison.weights["student"] > 0.5
    phi = comparison.stacked.sample(20, 1)
    assert torch.isfinite(comparison.stacked.log_prob(phi)).all()
    assert "folds, gains over 'gaussian'\n" in repr(comparison)


@pytest.mark.slow
def test_a_fit_alone_is_that_of_the_comparison(model, data, fit):
    alone = model.fit(data, Student(), seed=1, progress=False)
    phi = fit.law.sample(20, 1)
    assert torch.equal(alone.law.log_prob(phi), fit.law.log_prob(phi))
    assert alone.log_likelihood() == fit.log_likelihood()


@pytest.mark.slow
def test_it_has_tables(fit):
    assert fit.n_parameters == 6 + 2
    assert fit.criteria()["AIC"] == pytest.approx(2 * 8 - 2 * fit.log_likelihood().value)
    text = str(fit.summary())
    assert "multivariate Student t" in text
    assert "log-likelihood" in text
    table = fit.individuals()
    assert len(table) == 40
    assert np.isfinite(table.to_numpy()).all()
    errors = fit.standard_errors()["standard error"]
    free = 40 * (8 - 2)  # observations less two parameters of each individual
    assert errors[("residual", "sigma")] == pytest.approx(0.04 / (2 * free) ** 0.5, rel=0.3)


def test_it_has_quantiles_with_errors(fit):
    """The median, because such a law need not have moments: pi / 2 times the variance of the mean, about."""
    row = fit.bootstrap(40, progress=False).quantiles([0.5]).loc[("tau", 0.5)]
    spread = float(fit.law.frame.factor[0, 0])
    assert row["standard error"] == pytest.approx(1.25 * spread / 40**0.5, rel=0.4)
    assert row["lower"] < 50 < row["upper"]


def test_it_has_bands_that_hold_it(fit):
    table = fit.bands(replicates=10, seed=2, progress=False).table("tau")
    middle = table["density"] > 0.2 * table["density"].max()
    inside = table["density"].between(table["lower"], table["upper"])
    assert inside[middle].mean() > 0.5
    assert (table["upper"] - table["lower"])[middle].min() > 0


def test_it_has_a_certificate(fit):
    certificate = fit.certificate()
    assert 0 < certificate.bound < float("inf")
    assert certificate.phi.shape == (2,)


def test_it_is_saved_and_read(fit, tmp_path):
    fit.save(tmp_path / "fit")
    again = nf.load(tmp_path / "fit")
    phi = fit.law.sample(30, 1)
    assert torch.equal(again.law.log_prob(phi), fit.law.log_prob(phi))
    assert again.specification == Student()
    assert again.log_likelihood() == fit.log_likelihood()


def test_a_class_that_is_not_defined_is_named_when_its_file_is_read(fit, tmp_path, monkeypatch):
    fit.save(tmp_path / "fit")
    monkeypatch.delitem(nf.laws.Law.classes, "StudentLaw")
    with pytest.raises(nf.DataError, match="Unknown 'StudentLaw' in the file; import what defines it"):
        nf.load(tmp_path / "fit")


def test_it_is_drawn(fit, comparison):
    _, (left, right) = plt.subplots(1, 2)
    ax = nf.plots.population(fit, ax=left)
    assert ax.get_xlabel() == "tau (days)"
    laws = {name: each.law for name, each in comparison.fits.items()}
    ax = nf.plots.marginals(laws, fit, "tau", right)
    assert len(ax.lines) == 2
    assert all(np.trapezoid(line.get_ydata(), line.get_xdata()) > 0.9 for line in ax.lines)
    plt.close("all")


def test_it_may_be_the_law_of_groups(model):
    random, days = np.random.default_rng(2), np.arange(30.0, 73.0, 6.0)
    groups, size = 12, 3
    phi = truth().sample(groups, 5).repeat_interleave(size, 0).numpy()
    phi[:, 0] += 1.5 * random.standard_normal(len(phi))
    seen = 1 / (1 + np.exp((days - phi[:, :1]) / np.exp(phi[:, 1:])))
    plant = np.repeat(np.arange(len(phi)), len(days))
    frame = pd.DataFrame({"plant": plant, "line": plant // size, "day": np.tile(days, len(phi))})
    frame["greenness"] = seen.ravel() + 0.04 * random.standard_normal(seen.size)
    data = nf.LongitudinalData.from_frame(frame, "plant", "day", "greenness", group="line")
    fit = replace(model, within=("tau",)).fit(data, Student(), seed=1, progress=False)
    assert fit.converged
    assert isinstance(fit.law, StudentLaw)
    assert fit.within["tau"] == pytest.approx(1.5, rel=0.35)
    assert len(fit.groups()) == groups
