"""What a person touches: a model, its fit to data, and what the fit can tell."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nlmeflow.bands import Bands
from nlmeflow.covariates import Effect, Terms, check_term, effects_of, read_terms
from nlmeflow.curves import Curve
from nlmeflow.data import LongitudinalData
from nlmeflow.errors import ModelError
from nlmeflow.estimation.certificate import Certificate, certify
from nlmeflow.estimation.cloud import Seen
from nlmeflow.estimation.em import Record, Result, State, evaluate
from nlmeflow.estimation.estimators import Task, default_particles, estimate
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
    Gaussian,
    GaussianLaw,
    KernelLaw,
    Law,
    MixtureLaw,
    SNPLaw,
    TransformedLaw,
)
from nlmeflow.laws.gaussian import median_sd, moments
from nlmeflow.residuals import Additive, Residual
from nlmeflow.running import one_thread, show_progress
from nlmeflow.seeds import derive, generator
from nlmeflow.standard_errors import standard_errors
from nlmeflow.summary import Summary


class Estimate(NamedTuple):
    """A value computed by Monte Carlo and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ± {self.error:.2f}"


@dataclass(frozen=True)
class Model:
    """A nonlinear mixed-effects model: y_ij = f(t_ij; psi_i) + error, psi_i = h(phi_i), phi_i ~ p.

    curve : the structural model f.
    residual : the error model.
    fixed : names of parameters shared by all individuals (without variability).
    covariates : by parameter, what moves its location on the unconstrained scale: a formula such as
        "log(weight / 70) + sex", or a list of terms. A category has one effect for each level but the first
        (in alphabetical order).
    """

    curve: Curve
    residual: Residual = field(default_factory=Additive)
    fixed: Sequence[str] = ()
    covariates: Mapping[str, Terms] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.curve, Curve):
            raise ModelError(f"curve is an nf.Curve, got {type(self.curve).__name__}.")
        if not isinstance(self.residual, Residual):
            raise ModelError(f"residual is an error model such as nf.Additive(), got {self.residual!r}.")
        names = (self.fixed,) if isinstance(self.fixed, str) else tuple(self.fixed)
        object.__setattr__(self, "fixed", names)
        for name in names:
            self.curve[name]
        terms = {name: read_terms(some) for name, some in dict(self.covariates).items()}
        object.__setattr__(self, "covariates", terms)
        for name, some in terms.items():
            self.curve[name]
            for term in some:
                check_term(term)

    @property
    def random(self) -> tuple[str, ...]:
        """The parameters that vary between individuals, in the order of phi."""
        return tuple(name for name in self.curve.names if name not in self.fixed)

    def problem(self, data: LongitudinalData, effects: Sequence[Effect] | None = None) -> Problem:
        """Return the estimation problem for a data set, checked; with the effects of a fit when given."""
        if effects is None:
            effects = effects_of(self.covariates, data.covariates)
        return Problem.build(data, self.curve, self.residual, self.fixed, effects)

    def task(
        self,
        data: LongitudinalData,
        seed: int = 0,
        start: Mapping[str, float] | None = None,
        particles: int | None = None,
    ) -> Task:
        """Return a fitting task, which several laws may share."""
        generator(seed)
        start = dict(start or {})
        for name, value in start.items():
            self.curve[name].scale.check(name, value)
        if particles is not None and particles < 64:
            raise ModelError(f"particles is at least 64, got {particles}.")
        problem = self.problem(data)
        _check_identifiable(problem)
        return Task(problem, start, seed, particles or default_particles(len(data)))

    def fit(
        self,
        data: LongitudinalData,
        law: Any = None,
        seed: int = 0,
        start: Mapping[str, float] | None = None,
        particles: int | None = None,
        progress: bool | None = None,
    ) -> "Fit":
        """Estimate the population law, the fixed effects and the residual parameters.

        law : specification such as nf.Gaussian() (default), nf.Mixture(), nf.Flow().
        seed : of every random number; the same seed gives the same fit.
        start : first values on the natural scale, by parameter; found from the data when absent.
        particles : per individual; 200,000 / N, between 512 and 16,384, when absent.
        progress : show a progress line; by default only in a terminal.

        Raises
        ------
        ModelError, EstimationError : with the parameter, the bound and what would be accepted.

        """
        law = Gaussian() if law is None else law
        return self.fit_laws(data, {"fit": law}, seed, start, particles, progress)["fit"]

    def fit_laws(
        self,
        data: LongitudinalData,
        laws: Mapping[str, Any],
        seed: int = 0,
        start: Mapping[str, float] | None = None,
        particles: int | None = None,
        progress: bool | None = None,
    ) -> dict[str, "Fit"]:
        """Fit several laws to the same data; what they have in common is computed once.

        laws : specifications by name; arguments as in `fit`. Each fit is the one that `fit` returns
        with the same seed.
        """
        task = self.task(data, seed, start, particles)
        return {name: self.fit_task(task, law, progress) for name, law in laws.items()}

    def fit_task(self, task: Task, law: Any, progress: bool | None = None) -> "Fit":
        """Fit a law to a task made by `task`; what earlier laws of the task computed is used."""
        with one_thread(), show_progress(law, progress) as task.report, torch.no_grad():
            return Fit.of(self, law, estimate(law, task), task)

    def simulate(
        self,
        law: Law,
        times: Sequence[float] | np.ndarray,
        n: int,
        seed: int,
        sigma: Sequence[float] | float,
        **fixed: float,
    ) -> tuple[LongitudinalData, Tensor]:
        """Draw n individuals from a law, and their responses; return data and phi (n, d).

        sigma : residual parameters; fixed : values of the parameters without variability.
        """
        missing = set(self.fixed) - set(fixed)
        if missing or set(fixed) - set(self.fixed):
            raise ModelError(f"Give values of the fixed parameters: {', '.join(self.fixed) or 'none'}.")
        phi = law.sample(n, derive(seed, 0))
        time = torch.as_tensor(np.asarray(times), dtype=phi.dtype).expand(n, -1)
        mean = self.mean_response(phi, time, **fixed)
        scale = torch.tensor(np.atleast_1d(sigma), dtype=phi.dtype)
        response = self.residual.sample(mean, scale, generator(derive(seed, 1)))
        return LongitudinalData.regular(time, response), phi

    def mean_response(self, phi: Tensor, time: Tensor, **fixed: float) -> Tensor:
        """Return f(t_i; phi_i) for phi (N, d) and time (N, n): (N, n). For curves without covariates."""
        psi = {name: value[:, None] for name, value in self.curve.natural(phi, self.random).items()}
        return self.curve(time, psi | {k: phi.new_tensor(v) for k, v in fixed.items()}).expand_as(time)


@dataclass
class Fit:
    """A fitted model.

    law : the population law on the unconstrained scale; fixed : natural values of the parameters
    without variability; residual : residual parameters by name.
    """

    model: Model
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
    def of(cls, model: Model, law: Any, result: Result, task: Task) -> "Fit":
        """Return the fit that a result of the engine describes."""
        trace = pd.DataFrame([asdict(r) if isinstance(r, Record) else r for r in result.trace])
        state, proposal = result.state, result.proposal
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
        return self.model.problem(self.data if data is None else data, self.effects)

    @property
    def residual(self) -> dict[str, float]:
        """Residual parameters by name."""
        return dict(zip(self.model.residual.names, self.sigma.tolist(), strict=True))

    @property
    def state(self) -> State:
        """What was estimated, as the engine keeps it."""
        return State(self.law, self.beta, self.sigma)

    @property
    def n_parameters(self) -> int:
        """Free parameters of the law, the fixed effects and the error model."""
        residual = 0 if self.model.residual.given else len(self.sigma)
        return self.law.n_parameters + len(self.beta) + residual

    @cached_property
    def marginal(self) -> Marginal:
        """Log p(y_i) of the individuals fitted, with Monte-Carlo errors."""
        with one_thread(), torch.no_grad():
            return self._marginal(self.problem(), lambda _: self._proposal())

    @property
    def conditional(self) -> tuple[Tensor, Tensor]:
        """Particles phi (N, M, d) of each individual given its data, and their weights (N, M)."""
        phi, weights = self.latent
        return phi + self.shift[:, None], weights

    @property
    def shift(self) -> Tensor:
        """What the covariates add to each individual's parameters, X gamma, (N, d)."""
        return self.problem().shift(self.beta)

    @cached_property
    def latent(self) -> tuple[Tensor, Tensor]:
        """Particles without what the covariates add, eta = phi - X gamma (N, M, d), and their weights.

        The population law is the law of eta.
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
        with one_thread(), torch.no_grad():
            random, size = generator(derive(self.seed, 92)), min(self.particles, 256)
            return self._marginal(
                self.problem(data), lambda problem: locate(problem, self.state, size, random)
            )

    def individuals(self, scale: Literal["phi", "natural"] = "phi") -> pd.DataFrame:
        """Return one row per individual: conditional mean, mode and sd of each parameter.

        On the unconstrained scale of phi (default) or on the natural scale (mean and sd of psi
        given the data; psi at the mode of phi). `ess` is the effective number of particles,
        `log_likelihood` is log p(y_i). Conditional means are shrunk: their spread is not the
        population's.
        """
        if scale not in ("phi", "natural"):
            raise ModelError(f"scale is 'phi' or 'natural', got {scale!r}.")
        phi, weights = self.conditional
        mode = self._modes() + self.shift
        if scale == "natural":
            curve = self.model.curve
            phi = torch.stack(list(curve.natural(phi, self.names).values()), -1)
            mode = torch.stack(list(curve.natural(mode, self.names).values()), -1)
        mean, covariance = moments(phi, weights)
        sd = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
        columns: dict[str, Tensor] = {}
        for k, name in enumerate(self.names):
            columns |= {f"{name}_mean": mean[:, k], f"{name}_mode": mode[:, k], f"{name}_sd": sd[:, k]}
        frame = pd.DataFrame({key: value.numpy() for key, value in columns.items()})
        frame["ess"] = (1 / weights.square().sum(1)).numpy()
        frame["log_likelihood"] = self.marginal.values.numpy()
        frame.index = pd.Index(self.data.labels, name=self.data.names[0])
        return frame

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
        if not isinstance(self.law, GaussianLaw | MixtureLaw | SNPLaw | TransformedLaw) or isinstance(
            self.law, KernelLaw
        ):
            raise ModelError(
                f"A {type(self.law).__name__} has no number of parameters to count; compare it by "
                "held-out likelihood, nf.compare."
            )
        deviance, n = -2 * self.log_likelihood().value, len(self.data)
        common = self.problem().common + (0 if self.model.residual.given else len(self.sigma))
        population = self.n_parameters - common
        corrected = population * np.log(n) + common * np.log(self.data.n_observations)
        values = {"AIC": 2 * self.n_parameters, "BIC": self.n_parameters * np.log(n), "BICc": corrected}
        return pd.Series({name: deviance + float(penalty) for name, penalty in values.items()})

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
        phi, weights = self.latent
        with one_thread(), torch.no_grad():
            if isinstance(self.law, DiscreteLaw):
                candidates, scale = self._candidates(self.law)
            else:
                drawn = posterior_draws(phi, weights, 8, generator(derive(self.seed, 94))).flatten(0, 1)
                candidates = torch.cat([self._modes(), drawn])
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
        """Draw n individuals from the fitted law, on the natural scale."""
        with one_thread(), torch.no_grad():
            natural = self.model.curve.natural(self.law.sample(n, seed), self.names)
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

    def _marginal(self, problem: Problem, proposal: Callable[[Problem], Proposal]) -> Marginal:
        """Return log p(y_i), exact for a discrete law, which needs no proposal."""
        if isinstance(self.law, DiscreteLaw):
            return exact(problem, self.state)
        size = max(64, self.particles // LEAST_BATCHES)
        return marginal(problem, self.state, proposal(problem), size, generator(derive(self.seed, 90)))

    def _candidates(self, law: DiscreteLaw) -> tuple[Tensor, Tensor]:
        """Return where more points could be: around each individual's own data, and a length."""
        each, seed = max(2, 4000 // len(self.data)), derive(self.seed, 94)
        own = around(self.problem(), law.moments, self.beta, self.sigma, each, seed)
        return torch.cat([law.support, own]), 0.1 * law.moments.sd

    def _modes(self) -> Tensor:
        phi, weights = self.latent
        if isinstance(self.law, DiscreteLaw):
            return self.law.support[weights.argmax(1)]
        with one_thread():
            return conditional_modes(self.problem(), self.state, phi, weights)


def _check_identifiable(problem: Problem) -> None:
    if len(problem) < 2:
        raise ModelError("A population needs at least two individuals; the data have one.")
    most = int(problem.data.counts.max())
    if most <= problem.dim and not problem.residual.given:
        names = ", ".join(problem.random)
        raise ModelError(
            f"Every individual has at most {most} observation{'s' if most != 1 else ''}, and "
            f"{problem.dim} parameter{'s' if problem.dim != 1 else ''} vary between individuals "
            f"({names}): the residual error and the population cannot both be estimated. Give the "
            "residual parameters, for example nf.Additive(sigma=0.1), or name more parameters in "
            "fixed=(...)."
        )
