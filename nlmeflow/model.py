"""A nonlinear mixed-effects model: curve, error model, fixed parameters, covariates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nlmeflow.covariates import Effect, Terms, check_term, effects_of, read_terms
from nlmeflow.curves import Curve
from nlmeflow.data import LongitudinalData
from nlmeflow.errors import EstimationError, ModelError
from nlmeflow.estimation.estimators import Task, default_particles, estimate
from nlmeflow.estimation.grouped import GroupedProblem
from nlmeflow.estimation.problem import Problem
from nlmeflow.fit import Fit
from nlmeflow.laws import SNP, Flow, Gaussian, Law, Mixture, Transformed
from nlmeflow.residuals import Additive, Residual
from nlmeflow.running import one_thread, show_progress
from nlmeflow.seeds import derive, generator

BROKEN = (
    "The estimation broke down, at a matrix that cannot be inverted. Usual causes: observations that lie "
    "exactly on curves, so that there is no residual error (give it, as in nf.Additive(sigma=0.1)); single "
    "observations a thousand times the others; a parameter that the data do not determine (name it in "
    "fixed=(...), or give a first value with fit(..., start={...}))."
)
LEVELS = (Gaussian, Mixture, Flow, SNP, Transformed)  # laws of groups when individuals vary within them


@dataclass(frozen=True)
class Model:
    """A nonlinear mixed-effects model: y_ij = f(t_ij; psi_i) + error, psi_i = h(phi_i), phi_i ~ p.

    curve : the structural model f.
    residual : the error model.
    fixed : names of parameters shared by all individuals (without variability).
    covariates : by parameter, what moves its location on the unconstrained scale: a formula such as
        "log(weight / 70) + sex", or a list of terms. A category has one effect for each level but the first
        (in alphabetical order).
    within : parameters that vary between the individuals of a group, too, as phi = mu_group + b, b Gaussian
        and independent; the law is then that of the groups. The data name their groups, from_frame(...,
        group=); groups are plants of a genotype, or occasions of a subject.
    """

    curve: Curve
    residual: Residual = field(default_factory=Additive)
    fixed: Sequence[str] = ()
    covariates: Mapping[str, Terms] = field(default_factory=dict)
    within: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.curve, Curve):
            raise ModelError(f"curve is an nf.Curve, got {type(self.curve).__name__}.")
        if not isinstance(self.residual, Residual):
            raise ModelError(f"residual is an error model such as nf.Additive(), got {self.residual!r}.")
        names = (self.fixed,) if isinstance(self.fixed, str) else tuple(self.fixed)
        object.__setattr__(self, "fixed", names)
        inner = (self.within,) if isinstance(self.within, str) else tuple(self.within)
        object.__setattr__(self, "within", inner)
        for name in names + inner:
            self.curve[name]
        for name in inner:
            if name in names or inner.count(name) > 1:
                raise ModelError(
                    f"within names '{name}', which is {'fixed' if name in names else 'twice there'}."
                )
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
        problem = Problem.build(data, self.curve, self.residual, self.fixed, effects)
        return GroupedProblem.of(problem, tuple(self.within)) if self.within else problem

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
        _check_varies(data)
        _check_identifiable(problem)
        return Task(problem, start, seed, particles or default_particles(problem))

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
        if self.within and not isinstance(law, LEVELS):
            names = ", ".join(f"nf.{kind.__name__}()" for kind in LEVELS)
            raise ModelError(f"A model with two levels is fitted with {names}; got {law!r}.")
        with one_thread(), show_progress(law, progress) as task.report, torch.no_grad():
            try:
                return Fit.of(self, law, estimate(law, task), task)
            except torch.linalg.LinAlgError as error:
                raise EstimationError(BROKEN) from error

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


def _check_varies(data: LongitudinalData) -> None:
    seen = data.response[data.mask]
    if len(seen) == 0:
        raise ModelError("No response was observed; every one is missing.")
    if bool((seen == seen[0]).all()):
        raise ModelError(f"The response is {float(seen[0]):g} in all {len(seen)} rows: nothing varies.")


def _check_identifiable(problem: Problem) -> None:
    if len(problem) < 2:
        raise ModelError("A population needs at least two individuals (or groups); the data have one.")
    if isinstance(problem, GroupedProblem):
        _check_levels(problem)
        return
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


def _check_levels(problem: GroupedProblem) -> None:
    if int(problem.member.bincount().max()) < 2:
        raise ModelError(
            f"No group of '{problem.data.group}' has two individuals; what varies within groups cannot be "
            "told from what varies between them. Leave out within=."
        )
    most, width = int(problem.data.counts.max()), len(problem.within)
    if most <= width and not problem.error.inner.given:
        raise ModelError(
            f"Every individual has at most {most} observation{'s' if most != 1 else ''}, and {width} of its "
            "parameters vary within groups: the residual error and this variation cannot both be estimated. "
            "Give the residual parameters, or name fewer parameters in within=(...)."
        )
