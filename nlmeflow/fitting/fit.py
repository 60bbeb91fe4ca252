"""A fitted model, and what it can tell."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from warnings import warn

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nlmeflow.arguments import checked, taken
from nlmeflow.data import LongitudinalData
from nlmeflow.errors import ModelError, whole
from nlmeflow.estimation.likelihood import DataLikelihood, Marginal, around, locate
from nlmeflow.fitting import tables
from nlmeflow.fitting.bands import Bands
from nlmeflow.fitting.bootstrap import Bootstrap
from nlmeflow.fitting.check import GaussianCheck, check_gaussian, unseen
from nlmeflow.fitting.doubts import extrapolated, unreached
from nlmeflow.fitting.fitted import Fitted
from nlmeflow.fitting.saving import save
from nlmeflow.fitting.structure import check_data, check_sizes
from nlmeflow.laws.draws import resample
from nlmeflow.laws.points.certificate import Certificate, certify
from nlmeflow.numerics import median_sd
from nlmeflow.running import estimating
from nlmeflow.seeds import Stream, derive, generator

STARTS = 300  # individuals from whom a certificate starts, at most


@dataclass(eq=False, repr=False)
class Fit(Fitted):
    """A fitted model.

    law : the population law on the unconstrained scale; fixed : natural values of the parameters
    without variability; residual : residual parameters by name.
    """

    def __repr__(self) -> str:
        end = "converged" if self.converged else "not converged"
        return f"Fit({self.law.title or type(self.law).__name__}, {self.data!r}, {end}); see summary()"

    def log_likelihood(self, data: LongitudinalData | None = None) -> tables.Estimate:
        """Return the marginal log-likelihood and its Monte-Carlo standard error; of other data when given.

        The error is below 0.1 for up to 200 individuals, and below 0.1 sqrt(N / 200) for more, unless 64
        batches of particles were not enough.
        """
        result = self.marginal if data is None else self.scores(data)
        return tables.Estimate(result.total, result.error)

    def scores(self, data: LongitudinalData) -> Marginal:
        """Return log p(y_i) of individuals that took no part in the fit."""
        return self.on(data).marginal

    def on(self, data: LongitudinalData) -> "Fit":
        """Return this fit looking at other individuals: nothing is estimated again.

        `fit.on(new).individuals()` are the conditional means of new individuals, and the functions of
        `nlmeflow.diagnostics` check the model on data that took no part in its fit. Estimates stay those of
        the individuals fitted, and so do `standard_errors`, `bootstrap`, `bands` and `unseen`; `criteria` and
        `check` refuse, and it is not saved.

        A warning names a covariate far outside those of the fit, and `individuals` those so far from the
        population that particles hardly reach them.

        Raises
        ------
        ModelError : no data, or what the model cannot take. DataError : the value of a covariate.

        """
        check_data(data)
        check_sizes(data)
        with estimating():
            problem = self.problem(data)
            problem.individuals.probe()
            for doubt in extrapolated(self, data):
                warn(doubt, stacklevel=2)
            if not self.law.has_density:
                return replace(self, data=data, origin=self.estimated)
            random, size = generator(derive(self.seed, Stream.NEW_INDIVIDUALS)), min(self.particles, 256)
            proposal = locate(problem, self.state, size, random)
            centre, factor = proposal.centre, proposal.factor
            return replace(self, data=data, origin=self.estimated, centre=centre, factor=factor)

    def individuals(self, scale: Literal["phi", "natural"] = "phi") -> pd.DataFrame:
        """Return one row per individual: conditional mean, mode and sd of each parameter.

        On the unconstrained scale of phi (default) or on the natural scale (mean and sd of psi
        given the data; psi at the mode of phi). `ess` is the effective number of particles,
        `log_likelihood` is log p(y_i). Conditional means are shrunk: their spread is not the
        population's. A model with two levels has no modes here, and its likelihoods in `groups`.

        Raises
        ------
        ModelError : another scale.

        """
        for doubt in unreached(self):
            warn(doubt, stacklevel=2)
        return tables.individuals(self, scale)

    def groups(self, scale: Literal["phi", "natural"] = "phi") -> pd.DataFrame:
        """Return one row per group of a model with two levels: mean and sd of mu, ess, log p(y_g).

        Raises
        ------
        ModelError : the model has one level.

        """
        for doubt in unreached(self):
            warn(doubt, stacklevel=2)
        return tables.groups(self, scale)

    def shrinkage(self) -> dict[str, float]:
        """Return 1 - var(conditional means) / var(population) of each parameter, both with divisor N.

        Raises
        ------
        ModelError : fewer than two individuals, or groups, with an observation: their means do not vary.

        """
        return tables.shrinkage(self)

    def unseen(self) -> tuple[str, ...]:
        """Return the parameters whose variation between individuals the data do not show.

        Those without which the BIC of a Gaussian fit is no larger, sought one by one among parameters whose
        standard deviation is not three standard errors above zero. The shape of their law is arbitrary: name
        them in nf.Model(..., fixed=...). With two levels they are those that vary neither between groups nor
        within them.

        Raises
        ------
        EstimationError : as in `Model.fit`.

        """
        return unseen(self.estimated)

    def criteria(self) -> pd.Series:
        """Return AIC, BIC and BICc of a law with a fixed number of parameters; the lower the better.

        -2 L + penalty: 2 p; p log N; and, for mixed models, log N for parameters of the population law and
        effects on random parameters, log of the number of observations for the others (Delattre,
        Lavielle, Poursat, Electronic Journal of Statistics 2014).

        Raises
        ------
        ModelError : the law is an average, a flow, a Dirichlet-process mixture, or made of points or kernels;
            use nf.compare. The fit looks at other data.

        """
        return tables.criteria(self)

    def standard_errors(self) -> pd.DataFrame:
        """Return estimates with standard errors, one row per parameter.

        Of a Gaussian law from the observed information, of other laws from 100 replicates of `bootstrap`.
        Columns: value and standard error on the unconstrained scale (means, sds and correlations of
        phi, effects of covariates; sigma as it is); `natural` and its standard error by the delta method,
        the typical value of a parameter in its own unit; 95 % limits of `value`, which is value -+ 1.96
        standard errors, 1.98 where they are of 100 replicates: of standard deviations and sigma on the scale
        of their logarithms, of a correlation r on Fisher's scale atanh(r), so that they stay where they make
        sense. Parameters of a Gaussian law at the boundary have none, and are named in `attrs["boundary"]`.
        Of `fit.on(...)` they are those of the individuals fitted: others have estimated nothing.

        Raises
        ------
        ModelError : the law is made of points. EstimationError : the information is not positive, so that
            the likelihood has no peak there; or the law is a Dirichlet-process mixture.

        """
        return tables.standard_errors(self)

    @checked
    def bootstrap(self, replicates: int = 100, seed: int = 0, progress: bool | None = None) -> Bootstrap:
        """Return the fit estimated again, with random weights of the individuals, that many times.

        The weighted-likelihood bootstrap, from posterior draws that the fit has, without a search in the
        data. From it come quantiles of the parameters, shares of groups and bands of densities, with
        standard errors. Of `fit.on(...)` it is that of the individuals fitted.

        Raises
        ------
        ModelError : fewer than 10 replicates, or a law made of points. EstimationError : the likelihood has
            no peak in the fixed effects and the residual parameters; a Dirichlet-process mixture.

        """
        return Bootstrap.of(self, replicates, seed, progress)

    def certificate(self) -> Certificate:
        """Return a bound on the log-likelihood that any law whatever could still add (Lindsay 1983).

        sup over phi of D(phi; G) = sum_i p(y_i | phi) / p_G(y_i) - N, sought, of a law with a density, from
        conditional modes and draws of at most 300 individuals, half of them those whom the law expects least,
        of points from these and from points around each individual's own data; fixed effects and
        residual parameters are those of the fit. Of a model with two levels only the twenty best places are
        searched further, and the bound holds for the likelihood as the fit's own draws of what varies within
        groups give it.

        Raises
        ------
        ModelError : the model has two levels, and the law a density.

        """
        if self.model.within and self.law.has_density:
            raise ModelError("There is no certificate of a law with a density in a model with two levels.")
        phi, weights = self.latent
        seed, gaussian = derive(self.seed, Stream.CERTIFICATE), self.gaussian
        with estimating():
            if self.law.has_density:
                modes = self.modes()
                some = self._telling(modes)
                own = resample(phi[some], weights[some], 8, generator(seed)).flatten(0, 1)
                places, scale = torch.cat([modes[some], own]), median_sd(phi, weights)
            else:
                each = 2 if self.model.within else max(2, 4000 // len(self.data))
                own = around(self.problem(), gaussian, self.beta, self.sigma, each, seed)
                places, scale = torch.cat([phi[0], own]), 0.1 * gaussian.sd
            log_marginal = self.marginal.values
            data = DataLikelihood(self.problem(), self.beta, self.sigma, torch.zeros_like(log_marginal))
            n_points = 0 if self.law.has_density or self.model.within else phi.shape[1]
            most = 20 if self.model.within else None
            return certify(data.log_psi, log_marginal, places, scale, n_points, most)

    def _telling(self, modes: Tensor) -> Tensor:
        """Return the individuals from whom a certificate starts: those least expected, and others evenly."""
        if len(modes) <= STARTS:
            return torch.arange(len(modes))
        seen = self.problem().log_likelihood(modes[:, None], self.beta, self.sigma)[:, 0]
        least = (seen - self.marginal.values).topk(STARTS // 2).indices
        evenly = torch.linspace(0, len(modes) - 1, STARTS // 2).round().long()
        some: Tensor = torch.cat([least, evenly]).unique()
        return some

    @checked
    def bands(
        self, replicates: int = 40, level: float = 0.9, seed: int = 0, progress: bool | None = None
    ) -> Bands:
        """Return pointwise bands for marginal densities, from `bootstrap`.

        Bands say what other individuals would have changed; they do not know the bias of a law
        that is too simple (a Gaussian's bands are narrow wherever the truth is).

        Raises
        ------
        ModelError, EstimationError : as `bootstrap`, and a level that is not between 0 and 1.

        """
        return self.bootstrap(replicates, seed, progress).bands(level)

    @checked
    def check(
        self, folds: int = 5, seed: int = 0, groups: str | None = None, progress: bool | None = None
    ) -> GaussianCheck:
        """Return whether a Gaussian population is enough for the data, as a verdict to print.

        Whatever the law of this fit, a Gaussian and an average of flows, mixtures and smooth laws (that of
        nf.Flow()) are learned without each fold of the individuals and predict it; the Gaussian is enough
        unless the average predicts better by more than two standard errors. groups : a covariate;
        individuals with the same value are held out together. Of fewer than eight individuals, or groups, a
        standard error is not known well, and the verdict is that the data do not decide.

        Parameters of `unseen` are held constant in this test.

        A Q-Q plot of conditional means is no such test: they are shrunk towards the Gaussian that made them.

        Raises
        ------
        ModelError : folds out of range, no covariate `groups`; the fit looks at other data.
        EstimationError : as in `Model.fit`.

        """
        return check_gaussian(self, folds, seed, groups, progress)

    @checked
    def population(self, n: int = 1000, seed: int = 0) -> pd.DataFrame:
        """Draw n individuals, each of a new group when there are groups, on the natural scale.

        Of a model with covariates they are those of individuals at whom the effects add nothing: a covariate
        of zero, or of its reference in a term such as 'age - 40', and the first level of a category.

        Raises
        ------
        ModelError : n or seed out of range.

        """
        n = whole("n", n, 1)
        with estimating():
            phi = self.law.sample(n, seed)
            for name, sd in self.within.items():
                stream = derive(seed, Stream.DRAWN_POPULATION, self.names.index(name))
                noise = torch.randn(n, generator=generator(stream), dtype=torch.float32)
                phi[:, self.names.index(name)] += sd * noise
            natural = self.model.curve.natural(phi, self.names)
        return pd.DataFrame({name: value.numpy() for name, value in natural.items()})

    def predict(
        self, phi: Tensor | np.ndarray | Sequence[Sequence[float]], times: Sequence[float] | np.ndarray
    ) -> Tensor:
        """Return the curve at `times` for individual parameters (K, d): (K, number of times).

        phi : a tensor or an array, on the unconstrained scale, columns in the order of `names`; not a table,
            in which they could be others. For curves without covariates, and fixed parameters that no
            covariate moves.

        Raises
        ------
        ModelError : the curve takes covariates, or they move a fixed parameter; phi of other parameters than
            the law's, or not of finite numbers; times that are no numbers.

        """
        if inputs := self.model.curve.inputs:
            raise ModelError(f"The curve takes {', '.join(inputs)}, which differ between individuals.")
        if moved := {effect.parameter for effect in self.effects} & set(self.fixed):
            raise ModelError(
                f"Covariates move '{min(moved)}', which differs between individuals and is not in phi; "
                "nf.diagnostics.predictions(fit) has each individual's curve."
            )
        phi = _parameters(phi, self.names)
        t = torch.from_numpy(np.array(taken("times", times, Sequence[float]), dtype=np.float64))
        psi = {k: v[:, None] for k, v in self.model.curve.natural(phi, self.names).items()}
        psi |= {name: phi.new_tensor(value) for name, value in self.fixed.items()}
        return self.model.curve(t, psi).expand(len(phi), len(t))

    def summary(self) -> tables.Summary:
        """Return the estimates, the log-likelihood with its Monte-Carlo error, AIC, BIC and ESS."""
        return tables.Summary.of(self)

    def save(self, path: str | Path) -> None:
        """Write the fit to one file (safetensors with a JSON header; nothing in it can run).

        Raises
        ------
        DataError : the path is that of a folder. ModelError : the fit holds something that a file cannot, or
            looks at other data than those fitted.

        """
        save(self, path)


def _parameters(given: object, names: Sequence[str]) -> Tensor:
    """Return individual parameters as (K, d), or raise ModelError unless they are finite numbers."""
    size = len(names)
    try:
        phi = given
        if not isinstance(phi, Tensor):
            values = np.asarray(taken("phi", given, np.ndarray | Sequence))
            phi = torch.from_numpy(values.astype(complex if np.iscomplexobj(values) else float))
        if phi.is_complex():
            raise TypeError
        phi = phi.to(torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise ModelError(
            f"phi is a tensor or an array of numbers, (K, {size}): {', '.join(names)}; got "
            f"a {type(given).__name__}. Of a table take these columns, frame[...].to_numpy()."
        ) from None
    if phi.dim() != 2 or phi.shape[1] != size:
        raise ModelError(f"phi is (K, {size}): {', '.join(names)}; got {tuple(phi.shape)}.")
    if len(wrong := torch.nonzero(~phi.isfinite())):
        row, column = wrong[0].tolist()
        raise ModelError(f"'{names[column]}' is {phi[row, column]:g} in row {row} of phi.")
    return phi
