"""A fitted model, and what it can tell."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nlmeflow import tables
from nlmeflow.bands import Bands
from nlmeflow.covariates import Effect
from nlmeflow.data import LongitudinalData
from nlmeflow.errors import ModelError
from nlmeflow.estimation.certificate import Certificate, certify
from nlmeflow.estimation.cloud import Seen
from nlmeflow.estimation.em import Record, Result, State, evaluate
from nlmeflow.estimation.estimators import Task
from nlmeflow.estimation.laplace import around
from nlmeflow.estimation.likelihood import (
    LEAST_BATCHES,
    Marginal,
    exact,
    locate,
    marginal,
    on_points,
    population_gaussian,
)
from nlmeflow.estimation.modes import conditional_modes
from nlmeflow.estimation.particles import Particles, Proposal, draw, posterior_draws
from nlmeflow.estimation.problem import Problem
from nlmeflow.laws import (
    DiscreteLaw,
    Law,
)
from nlmeflow.laws.gaussian import median_sd
from nlmeflow.running import one_thread
from nlmeflow.seeds import derive, generator
from nlmeflow.standard_errors import standard_errors
from nlmeflow.summary import Summary

if TYPE_CHECKING:
    from nlmeflow.model import Model


class Estimate(NamedTuple):
    """A value computed by Monte Carlo and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ± {self.error:.2f}"


@dataclass
class Fit:
    """A fitted model.

    law : the population law on the unconstrained scale; fixed : natural values of the parameters
    without variability; residual : residual parameters by name.
    """

    model: "Model"
    data: LongitudinalData
    specification: Any
    law: Law
    beta: Tensor
    sigma: Tensor
    centre: Tensor
    factor: Tensor
    seed: int
    particles: int
    converged: bool
    trace: pd.DataFrame
    effects: tuple[Effect, ...] = ()

    @classmethod
    def of(cls, model: "Model", law: Any, result: Result, task: Task) -> "Fit":
        """Return the fit that a result of the engine describes."""
        trace = pd.DataFrame([asdict(r) if isinstance(r, Record) else r for r in result.trace])
        state, proposal = result.state, result.proposal
        tables.check_finite(model, state)
        if not result.converged:
            tables.check_residual(task.problem, state)
        return cls(
            model,
            task.problem.data,
            law,
            state.law,
            state.beta,
            state.sigma,
            proposal.centre,
            proposal.factor,
            task.seed,
            task.particles,
            result.converged,
            trace,
            task.problem.effects,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The random parameters, in the order of phi."""
        return self.model.random

    @property
    def fixed(self) -> dict[str, float]:
        """Natural values of the parameters without variability."""
        kept = self.problem().fixed
        natural = self.model.curve.natural(self.beta[: len(kept)], kept)
        return {name: float(value) for name, value in natural.items()}

    @property
    def covariate_effects(self) -> dict[str, float]:
        """Coefficients of the covariates by name, on the unconstrained scale of their parameter."""
        values = self.beta[len(self.model.fixed) :].tolist()
        return {effect.name: value for effect, value in zip(self.effects, values, strict=True)}

    def problem(self, data: LongitudinalData | None = None) -> Problem:
        """Return the estimation problem of the data fitted, or of other data."""
        return self._problem if data is None else self.model.problem(data, self.effects)

    @cached_property
    def _problem(self) -> Problem:
        with one_thread(), torch.no_grad():
            problem = self.model.problem(self.data, self.effects)
            if not self.model.within:
                return problem
            gaussian = population_gaussian(self.law, derive(self.seed, 93))
            return problem.near(gaussian, self.beta, self.sigma)

    @property
    def residual(self) -> dict[str, float]:
        """Residual parameters by name."""
        return dict(zip(self.model.residual.names, self.sigma.tolist(), strict=False))

    @property
    def within(self) -> dict[str, float]:
        """Standard deviations of the parameters within groups, on the unconstrained scale, by name."""
        sds = self.sigma[len(self.model.residual.names) :].tolist()
        return dict(zip(self.model.within, sds, strict=True))

    @property
    def state(self) -> State:
        """What was estimated, as the engine keeps it."""
        return State(self.law, self.beta, self.sigma)

    @property
    def n_parameters(self) -> int:
        """Free parameters of the law, the fixed effects and the error model."""
        return self.law.n_parameters + len(self.beta) + self.n_scales

    @property
    def n_scales(self) -> int:
        """Free residual parameters, and standard deviations within groups."""
        given = len(self.model.residual.names) if self.model.residual.given else 0
        return len(self.sigma) - given

    @cached_property
    def marginal(self) -> Marginal:
        """Log p(y_i) of the individuals fitted, with Monte-Carlo errors."""
        with one_thread(), torch.no_grad():
            problem = self.problem()
            if isinstance(self.law, DiscreteLaw):
                return exact(problem, self.state)
            size = max(64, self.particles // LEAST_BATCHES)
            random = generator(derive(self.seed, 90))
            return marginal(problem, self.state, self._proposal(), size, random)

    @property
    def conditional(self) -> tuple[Tensor, Tensor]:
        """Particles phi (N, M, d) of each individual given its data, and their weights (N, M)."""
        phi, weights = self.latent
        if self.model.within:
            with one_thread(), torch.no_grad():
                summary = self.drawn().summary
                phi, weights = self.problem().of_individuals(phi, summary, weights, self.sigma)
        return phi + self.shift[:, None], weights

    @property
    def shift(self) -> Tensor:
        """What the covariates add to each individual's parameters, X gamma, (N, d)."""
        return self.problem().individuals.shift(self.beta)

    @cached_property
    def latent(self) -> tuple[Tensor, Tensor]:
        """Particles without what the covariates add, eta = phi - X gamma (N, M, d), and their weights.

        The population law is the law of eta. Where the model has two levels, of the groups' mu.
        """
        with one_thread(), torch.no_grad():
            problem = self.problem()
            if isinstance(self.law, DiscreteLaw):
                particles, step = on_points(problem, self.state)
                return particles.phi, step.weights
            drawn = self.drawn()
            return drawn.phi, evaluate(problem, self.state, drawn).weights

    def drawn(self) -> Particles:
        """Return particles of each individual, those behind `latent`, with their proposal's density."""
        random = generator(derive(self.seed, 91))
        return draw(self.problem(), self._proposal(), self.beta, self.particles, random)

    def log_likelihood(self, data: LongitudinalData | None = None) -> Estimate:
        """Return the marginal log-likelihood and its Monte-Carlo standard error; of other data when given."""
        result = self.marginal if data is None else self.scores(data)
        return Estimate(result.total, result.error)

    def scores(self, data: LongitudinalData) -> Marginal:
        """Return log p(y_i) of individuals that took no part in the fit."""
        return self.on(data).marginal

    def on(self, data: LongitudinalData) -> "Fit":
        """Return this fit looking at other individuals: nothing is estimated again.

        `fit.on(new).individuals()` are the conditional means of new individuals, and the functions of
        `nlmeflow.diagnostics` check the model on data that took no part in its fit.
        """
        with one_thread(), torch.no_grad():
            problem = self.problem(data)
            if isinstance(self.law, DiscreteLaw):
                return replace(self, data=data)
            random, size = generator(derive(self.seed, 92)), min(self.particles, 256)
            proposal = locate(problem, self.state, size, random)
            return replace(self, data=data, centre=proposal.centre, factor=proposal.factor)

    def individuals(self, scale: Literal["phi", "natural"] = "phi") -> pd.DataFrame:
        """Return one row per individual: conditional mean, mode and sd of each parameter.

        On the unconstrained scale of phi (default) or on the natural scale (mean and sd of psi
        given the data; psi at the mode of phi). `ess` is the effective number of particles,
        `log_likelihood` is log p(y_i). Conditional means are shrunk: their spread is not the
        population's. A model with two levels has no modes here, and its likelihoods in `groups`.
        """
        return tables.individuals(self, scale)

    def groups(self, scale: Literal["phi", "natural"] = "phi") -> pd.DataFrame:
        """Return one row per group of a model with two levels: mean and sd of mu, ess, log p(y_g)."""
        return tables.groups(self, scale)

    def shrinkage(self) -> dict[str, float]:
        """Return 1 - var(conditional means) / var(population) of each parameter."""
        phi, weights = self.latent
        means = (weights[..., None] * phi).sum(1)
        spread = population_gaussian(self.law, derive(self.seed, 93)).sd.square()
        return dict(zip(self.names, (1 - means.var(0) / spread).tolist(), strict=True))

    def criteria(self) -> pd.Series:
        """Return AIC, BIC and BICc of a law with a fixed number of parameters; the lower the better.

        -2 L + penalty: 2 p; p log N; and, for mixed models, log N for parameters of the population law and
        effects on random parameters, log of the number of observations for the others (Delattre,
        Lavielle, Poursat, Electronic Journal of Statistics 2014).

        Raises
        ------
        ModelError : the law is averaged, or made of points or kernels; use nf.compare.

        """
        return tables.criteria(self)

    def standard_errors(self) -> pd.DataFrame:
        """Return estimates with standard errors from the observed information, one row per parameter.

        Columns: value and standard error on the unconstrained scale (means, sds and correlations of
        phi, effects of covariates; sigma as it is); `natural` and its standard error by the delta method,
        the typical value of a parameter in its own unit; 95 % limits of `value`. For Gaussian laws; the
        uncertainty of other laws is that of their density, `Fit.bands`.

        Raises
        ------
        ModelError : the law is not Gaussian. EstimationError : the information is not positive, so that
            the likelihood has no peak there.

        """
        return standard_errors(self)

    def certificate(self) -> Certificate:
        """Return a bound on the log-likelihood that any law whatever could still add (Lindsay 1983).

        sup over phi of D(phi; G) = sum_i p(y_i | phi) / p_G(y_i) - N, sought from conditional modes
        and draws; fixed effects and residual parameters are those of the fit.
        """
        if self.model.within:
            raise ModelError("There is no certificate of a model with two levels.")
        phi, weights = self.latent
        with one_thread(), torch.no_grad():
            if isinstance(self.law, DiscreteLaw):
                candidates, scale = self._candidates(self.law)
            else:
                drawn = posterior_draws(phi, weights, 8, generator(derive(self.seed, 94))).flatten(0, 1)
                candidates = torch.cat([self.modes(), drawn])
                scale = median_sd(phi, weights)
            log_marginal = self.marginal.values
            seen = Seen(self.problem(), self.beta, self.sigma, torch.zeros_like(log_marginal))
            return certify(seen.log_psi, log_marginal, candidates, scale)

    def bands(
        self, replicates: int = 40, level: float = 0.9, seed: int = 0, progress: bool | None = None
    ) -> Bands:
        """Return pointwise bands for marginal densities, by the weighted-likelihood bootstrap.

        The law is refitted with Dirichlet weights of the individuals from posterior draws that the
        fit has, without a call of the curve. sigma and the fixed effects stay at their estimates.
        Bands say what other individuals would have changed; they do not know the bias of a law
        that is too simple (a Gaussian's bands are narrow wherever the truth is).
        """
        return Bands.of(self, replicates, level, seed, progress)

    def population(self, n: int = 1000, seed: int = 0) -> pd.DataFrame:
        """Draw n individuals, each of a new group when there are groups, on the natural scale."""
        with one_thread(), torch.no_grad():
            phi = self.law.sample(n, seed)
            for name, sd in self.within.items():
                noise = torch.randn(n, generator=generator(derive(seed, 2, self.names.index(name))))
                phi[:, self.names.index(name)] += sd * noise
            natural = self.model.curve.natural(phi, self.names)
        return pd.DataFrame({name: value.numpy() for name, value in natural.items()})

    def predict(self, phi: Tensor, times: Sequence[float] | np.ndarray) -> Tensor:
        """Return the curve at `times` for individual parameters (K, d): (K, number of times).

        For curves without covariates.
        """
        t = torch.as_tensor(np.asarray(times), dtype=phi.dtype)
        psi = {k: v[:, None] for k, v in self.model.curve.natural(phi, self.names).items()}
        psi |= {name: phi.new_tensor(value) for name, value in self.fixed.items()}
        return self.model.curve(t, psi).expand(len(phi), len(t))

    def summary(self) -> "Summary":
        """Return the estimates, the log-likelihood with its Monte-Carlo error, AIC, BIC and ESS."""
        return Summary.of(self)

    def save(self, path: str | Path) -> None:
        """Write the fit to one file (safetensors with a JSON header; nothing in it can run)."""
        from nlmeflow.storage import save

        save(self, path)

    def _proposal(self) -> Proposal:
        gaussian = population_gaussian(self.law, derive(self.seed, 93))
        return Proposal(self.centre, self.factor, self.law, gaussian.inflated(2.0))

    def _candidates(self, law: DiscreteLaw) -> tuple[Tensor, Tensor]:
        """Return where more points could be: around each individual's own data, and a length."""
        each, seed = max(2, 4000 // len(self.data)), derive(self.seed, 94)
        own = around(self.problem(), law.moments, self.beta, self.sigma, each, seed)
        return torch.cat([law.support, own]), 0.1 * law.moments.sd

    def modes(self) -> Tensor:
        """Return the conditional modes of eta, (N, d)."""
        phi, weights = self.latent
        if isinstance(self.law, DiscreteLaw):
            return self.law.support[weights.argmax(1)]
        with one_thread():
            return conditional_modes(self.problem(), self.state, phi, weights)
