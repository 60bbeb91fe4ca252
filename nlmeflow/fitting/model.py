"""A nonlinear mixed-effects model, and how it is fitted."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pandas as pd
import torch

from nlmeflow.data import LongitudinalData
from nlmeflow.errors import EstimationError, ModelError, check_memory, whole
from nlmeflow.estimation.engine import Task, fit_law
from nlmeflow.estimation.groups import GroupedProblem
from nlmeflow.estimation.particles import default_particles
from nlmeflow.estimation.problem import Problem
from nlmeflow.fitting.fit import Fit
from nlmeflow.fitting.structure import Structure, check_data, check_sizes
from nlmeflow.fitting.suspicions import suspicions
from nlmeflow.laws.draws import Folds
from nlmeflow.laws.gaussian import Gaussian
from nlmeflow.laws.specification import Specification, specified
from nlmeflow.residuals.censoring import censored
from nlmeflow.running import estimating, show_progress
from nlmeflow.seeds import check_seed

BROKEN = "The estimation broke down, at a matrix that cannot be inverted."
CLEAR_TREND = 0.5  # rank correlation of time and response
NO_ERROR = (
    "observations that lie exactly on curves, so that there is no residual error (give it, as in "
    "nf.Additive(sigma=0.1))"
)
CURES = ("sigma=", "start={", "out of the curve")  # in messages that say themselves what to do


@dataclass(frozen=True, eq=False)
class Model(Structure):
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

    Raises
    ------
    ModelError : no curve or error model, the name of no parameter, or a term that cannot be read.

    """

    def task(
        self,
        data: LongitudinalData,
        seed: int = 0,
        start: Mapping[str, float] | None = None,
        particles: int | None = None,
        folds: Folds | None = None,
    ) -> Task:
        """Return a fitting task, which several laws may share; folds : who is held out with whom.

        Raises
        ------
        ModelError : other data, a response that does not vary, fewer than two individuals, what the model
            cannot take; first values, particles or a seed out of range.
        DataError : the value of a covariate that its term cannot take.

        """
        check_data(data)
        seed = check_seed(seed)
        if start is not None and not isinstance(start, Mapping):
            raise ModelError(f"start holds first values by parameter, such as {{'{self.random[0]}': 1.0}}.")
        start = dict(start or {})
        for name, value in start.items():
            if name in self.residual.names and name not in self.curve.names:
                kind = type(self.residual).__name__
                raise ModelError(f"{name} needs no first value; {kind}({name}=...) holds it at a value.")
            self.curve[name].scale.check(name, value)
        if particles is not None:
            particles = whole("particles", particles, 64)
            check_memory("particles", particles, data.n_observations, "predictions")
        _check_varies(data)
        check_sizes(data)
        if not self.residual.given:
            _check_moves(data)
        problem = self.problem(data.observed)
        problem.individuals.probe()
        if len(problem) < 2:
            raise ModelError("A population needs at least two individuals (or groups); the data have one.")
        size = particles or default_particles(
            len(problem), bool(self.within), float(data.counts.double().mean())
        )
        return Task(problem, start, seed, size, folds, everyone=data)

    def fit(
        self,
        data: LongitudinalData,
        law: Specification | None = None,
        seed: int = 0,
        start: Mapping[str, float] | None = None,
        particles: int | None = None,
        progress: bool | None = None,
    ) -> Fit:
        """Estimate the population law, the fixed effects and the residual parameters.

        law : specification such as nf.Gaussian() (default), nf.Mixture(), nf.Flow().
        seed : of every random number; the same seed gives the same fit.
        start : first values on the natural scale, by parameter; found from the data when absent.
        particles : per individual; when absent a power of two near 200,000 / N (fewer where series are long),
            at least 512 (256 above 5,000 individuals, 128 above 20,000), at most 16,384; 256 for each
            group where there are two levels.
        progress : show a progress line; by default only in a terminal.

        Raises
        ------
        DataError, ModelError, EstimationError : with the parameter, the bound and what would be accepted.

        """
        law = Gaussian() if law is None else law
        return self.fit_laws(data, {"fit": law}, seed, start, particles, progress)["fit"]

    def fit_laws(
        self,
        data: LongitudinalData,
        laws: Mapping[str, Specification],
        seed: int = 0,
        start: Mapping[str, float] | None = None,
        particles: int | None = None,
        progress: bool | None = None,
    ) -> dict[str, Fit]:
        """Fit several laws to the same data; what they have in common is computed once.

        laws : specifications by name; arguments as in `fit`. Each fit is the one that `fit` returns
        with the same seed.

        Raises
        ------
        DataError, ModelError, EstimationError : as in `fit`.

        """
        if not isinstance(laws, Mapping):
            raise ModelError(f"laws are specifications by name, {{'mine': nf.Flow()}}, got {laws!r}.")
        task = self.task(data, seed, start, particles)
        return {name: self.fit_task(task, law, progress) for name, law in laws.items()}

    def fit_task(self, task: Task, law: Specification, progress: bool | None = None) -> Fit:
        """Fit a law to a task made by `task`; what earlier laws of the task computed is used.

        Raises
        ------
        ModelError : the law cannot be that of groups, or nobody has enough observations to tell error from
            population.
        EstimationError : the fit could not go on; the message says what is striking in the data.

        """
        law = specified(law)
        if self.within and not law.levels:
            raise ModelError(
                "A model with two levels is fitted with a law of its groups, nf.Gaussian(), "
                f"nf.Mixture(), nf.SNP(), nf.Transformed(), nf.Flow() or "
                f"nf.NPML(tolerance=None); got {law!r}."
            )
        _check_identifiable(task.problem, law)
        with estimating(), show_progress(law, progress) as report:
            try:
                return Fit.of(self, law, fit_law(law, replace(task, report=report)), task)
            except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
                raise EstimationError(_explained(BROKEN, task)) from error
            except EstimationError as error:
                raise EstimationError(_explained(str(error), task)) from error


def _explained(message: str, task: Task) -> str:
    """Return an error's message with what is striking in the data, or else with the usual causes."""
    assert task.everyone is not None
    curve = task.problem.individuals.curve
    found = suspicions(task.everyone, curve)
    if found:
        return " ".join([message, *found])
    starts = {one.name: one.start for one in curve.parameters if one.start is not None} | task.start
    values = ", ".join(f"{name} = {float(value):g}" for name, value in starts.items())
    given = f" First values were given, {values}; left out, they are found from the data." if starts else ""
    if any(cure in message for cure in CURES):
        return f"{message}{given}"
    residual, way = task.problem.individuals.residual, _way(task.everyone)
    error = f"residual parameters far from what the data show ({residual})" if residual.given else NO_ERROR
    first = "" if starts else "; a bad start (give first values with fit(..., start={...}))"
    none = "a parameter that the data do not determine (name it in fixed=(...))"
    return f"{message}{given} {'Other' if starts else 'Usual'} causes: {error}; {none}{way}{first}."


def _way(data: LongitudinalData) -> str:
    """Return which way the response goes with time, where it goes one way, as a cause of failure."""
    seen = pd.DataFrame({"time": data.time[data.mask].numpy(), "response": data.response[data.mask].numpy()})
    trend = float(seen["time"].corr(seen["response"], method="spearman"))
    if not abs(trend) > CLEAR_TREND:
        return ""
    goes = "rises" if trend > 0 else "falls"
    return f"; a curve that cannot follow the response, which {goes} with time (rank correlation {trend:.2f})"


def _check_varies(data: LongitudinalData) -> None:
    seen = data.response[data.mask]
    if len(seen) == 0:
        raise ModelError("No response was observed; every one is missing.")
    if data.bounds is not None and bool((limited := censored(data.bounds)[data.mask]).any()):
        for side, where in zip(data.bounds, ("below", "above"), strict=True):
            if bool((limited & ~torch.isfinite(side[data.mask])).all()):
                raise ModelError(
                    f"All {len(seen)} responses are only known to lie {where} a limit; some must be observed."
                )
    elif bool((seen == seen[0]).all()):
        raise ModelError(f"The response is {float(seen[0]):g} in all {len(seen)} rows: nothing varies.")


def _check_moves(data: LongitudinalData) -> None:
    """Raise ModelError when individuals differ from each other, and no one's response ever changes."""
    if data.bounds is not None:
        return
    high = data.response.masked_fill(~data.mask, -torch.inf).amax(1)
    low = data.response.masked_fill(~data.mask, torch.inf).amin(1)
    repeated = data.counts > 1
    if 2 * int(repeated.sum()) > len(data) and bool((high == low)[repeated].all()):
        who, _, what = data.names
        first = int(torch.nonzero(repeated)[0])
        raise ModelError(
            f"The response of every {who} is the same at all its times, such as {what} = "
            f"{float(high[first]):g} of '{data.labels[first]}': there is no residual error to estimate. Give "
            f"it, for example nf.Additive(sigma=0.1), or take the column that was measured each time."
        )


def _check_identifiable(problem: Problem, law: Specification) -> None:
    """Raise ModelError where residual error and population cannot both be estimated.

    With no more observations than parameters that vary, the likelihood of a law that can put points is
    unbounded. A Gaussian law's is not; it needs somebody who was measured twice.
    """
    if isinstance(problem, GroupedProblem):
        _check_levels(problem)
        return
    most = int(problem.data.counts.max())
    if most > (1 if law.bounded else problem.dim) or problem.residual.given:
        return
    names = ", ".join(problem.random)
    other = "" if law.bounded else ", or take nf.Gaussian(), whose likelihood has a maximum"
    raise ModelError(
        f"Every individual has at most {most} observation{'s' if most != 1 else ''}, and "
        f"{problem.dim} parameter{'s' if problem.dim != 1 else ''} vary between individuals "
        f"({names}): the residual error and the population cannot both be estimated. Give the "
        "residual parameters, for example nf.Additive(sigma=0.1), or name more parameters in "
        f"fixed=(...){other}."
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
