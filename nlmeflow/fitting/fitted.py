"""What a fit holds: law, effects, residual parameters; and what follows from them about the individuals."""

from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Self

import pandas as pd
import torch
from torch import Tensor

from nlmeflow.covariates import Effect
from nlmeflow.data import LongitudinalData
from nlmeflow.errors import EstimationError
from nlmeflow.estimation.em import Record, Result, State, evaluate
from nlmeflow.estimation.engine import Task
from nlmeflow.estimation.likelihood import LEAST_BATCHES, Marginal, conditional_modes, marginal, on_points
from nlmeflow.estimation.particles import Particles, Proposal, draw
from nlmeflow.estimation.problem import Problem
from nlmeflow.estimation.start import reach
from nlmeflow.fitting.structure import Structure
from nlmeflow.laws.gaussian import GaussianLaw
from nlmeflow.laws.law import Law
from nlmeflow.laws.specification import Specification
from nlmeflow.running import Memory, estimating, show_progress
from nlmeflow.seeds import Stream, derive, generator

NEAR_END = 1e-6  # share of a scale with two ends, so near to one of which a typical value has run there
FARTHEST = 1e100  # natural value, within three standard deviations, at which a parameter has run off
PATIENT = 3.0  # seconds after which what is asked of a fit shows its progress
NOTHING = 1e-3  # residual error, as a share of that without a curve, to which a fit that goes on has shrunk
VANISHED = 1e-6  # and the share that is none, also where a fit has ended


@dataclass(eq=False)
class Fitted:
    """The numbers of a fit, and what is computed from them when it is first asked for.

    origin : of a fit that looks at other individuals, the one from which it comes; see `estimated`.
    """

    model: Structure
    data: LongitudinalData
    specification: Specification
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
    origin: "Self | None" = None
    memory: Memory = field(default_factory=Memory, init=False)

    @classmethod
    def of(cls, model: Structure, law: Specification, result: Result, task: Task) -> Self:
        """Return the fit that a result of the engine describes.

        Raises
        ------
        EstimationError : a parameter ran off, or the residual error shrinks without end.

        """
        trace = pd.DataFrame([asdict(r) if isinstance(r, Record) else r for r in result.trace])
        state, place = result.state, result.proposal
        check_finite(model, state, reach(task.problem.individuals))
        check_residual(task.problem, state, VANISHED if result.converged else NOTHING)
        data = task.everyone or task.problem.data
        where = spread_out(model, data, task, place)
        numbers = state.law, state.beta, state.sigma, *where
        run = task.seed, task.particles, result.converged, trace, task.problem.effects
        return cls(model, data, law, *numbers, *run)

    @property
    def estimated(self) -> Self:
        """The fit to the data from which everything was estimated: itself, unless it looks at others."""
        return self.origin or self

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

    def curves_of(self, row: int, phi: Tensor, times: Tensor) -> Tensor:
        """Return the curves of one individual, with its covariates and doses, at phi (K, d): (K, times)."""
        problem = self.problem().individuals.subset(torch.tensor([row]))
        grid = LongitudinalData.regular(times[None], torch.zeros_like(times)[None])
        problem = replace(problem, data=replace(grid, doses=problem.data.doses))
        curves: Tensor = problem.predict((phi - problem.shift(self.beta))[None], self.beta)[0]
        return curves

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
        with estimating():
            problem = self.model.problem(self.data, self.effects)
            return problem.near(self.gaussian, self.beta, self.sigma) if self.model.within else problem

    @cached_property
    def gaussian(self) -> GaussianLaw:
        """The Gaussian of the same mean and covariance as the law."""
        with estimating():
            return GaussianLaw.like(self.law)

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
    def seen(self) -> Tensor:
        """Which individuals, or groups where there are two levels, have an observation: (N,) of bool."""
        seen = self.data.counts > 0
        if not self.model.within:
            return seen
        member = torch.from_numpy(self.data.grouped()[0])
        return torch.zeros(int(member.max()) + 1).index_add(0, member, seen.float()) > 0

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
        with estimating(), show_progress(self.specification, None, PATIENT) as report:
            size = max(64, self.particles // LEAST_BATCHES)
            random = generator(derive(self.seed, Stream.LIKELIHOOD))
            found = marginal(self.problem(), self.state, self.proposal, size, random, report=report)
        nothing = torch.zeros_like(found.values)  # log p of no observations
        return Marginal(found.values.where(self.seen, nothing), found.errors.where(self.seen, nothing))

    @property
    def conditional(self) -> tuple[Tensor, Tensor]:
        """Particles phi (N, M, d) of each individual given its data, and their weights (N, M)."""
        phi, weights = self.latent
        if self.model.within:
            with estimating():
                summary = self.drawn.summary
                phi, weights = self.problem().of_individuals(phi, summary, weights, self.sigma)
        return phi + self.shift[:, None], weights

    @property
    def shift(self) -> Tensor:
        """What the covariates add to each individual's parameters, X gamma, (N, d)."""
        return self.problem().individuals.shift(self.beta)

    @property
    def ess(self) -> Tensor:
        """The effective particles of each individual, or group where there are two levels, (N,)."""
        return 1 / self.latent[1].square().sum(1)

    @cached_property
    def latent(self) -> tuple[Tensor, Tensor]:
        """Particles without what the covariates add, eta = phi - X gamma (N, M, d), and their weights.

        The population law is the law of eta. Where the model has two levels, of the groups' mu.
        """
        with estimating():
            problem = self.problem()
            if not self.law.has_density:
                particles, step = on_points(problem, self.state)
                return particles.phi, step.weights
            return self.drawn.phi, evaluate(problem, self.state, self.drawn).weights

    @cached_property
    def drawn(self) -> Particles:
        """Particles of each individual, those behind `latent`, with their proposal's density."""
        with estimating():
            random = generator(derive(self.seed, Stream.PARTICLES))
            return draw(self.problem(), self.proposal, self.beta, self.particles, random)

    @property
    def proposal(self) -> Proposal:
        """Where each individual's particles are drawn."""
        return Proposal(self.centre, self.factor, self.law, self.gaussian.inflated(2.0))

    def modes(self) -> Tensor:
        """Return the conditional modes of eta, (N, d)."""
        phi, weights = self.latent
        if not self.law.has_density:
            return phi[0, weights.argmax(1)]
        with estimating(), show_progress(self.specification, None, PATIENT) as report:
            return conditional_modes(self.problem(), self.state, self.drawn, weights, report)


def spread_out(
    model: Structure, data: LongitudinalData, task: Task, place: Proposal
) -> tuple[Tensor, Tensor]:
    """Return where particles of all are drawn (N, d), (N, d, d): of those without data where the law is."""
    if len(data) == len(task.problem.data):
        return place.centre, place.factor
    labels = model.problem(data, task.problem.effects).labels
    gaussian = place.broad
    centre, factor = gaussian.mean.repeat(len(labels), 1), gaussian.factor.repeat(len(labels), 1, 1)
    known = torch.tensor([labels.index(label) for label in task.problem.labels])
    centre[known], factor[known] = place.centre, place.factor
    return centre, factor


def check_finite(model: Structure, state: State, farthest: float) -> None:
    """Raise EstimationError when a parameter ran off.

    To where its scale ends, or, on a scale without an end, its typical value to `farthest`; fixed ones too.
    """
    law = GaussianLaw.like(state.law)
    fixed = state.beta[: len(model.fixed)]
    mean, sd = torch.cat([law.mean, fixed]), torch.cat([law.sd, torch.zeros_like(fixed)])
    names = (*model.random, *model.fixed)
    wide = torch.stack([mean - 3 * sd, mean, mean + 3 * sd])
    for k, (name, values) in enumerate(model.curve.natural(wide, names).items()):
        scale = model.curve[name].scale
        if (end := scale.end_near(float(values[1]), NEAR_END)) is not None:
            raise EstimationError(model.curve[name].at_end(end))
        near = scale.lower > -torch.inf and bool((values - scale.lower < 1 / FARTHEST).any())
        far = scale.upper == torch.inf and not abs(float(values[1])) < farthest
        if near or far or not bool((values.abs() < FARTHEST).all()):
            other = "" if name in model.fixed else ", name it in fixed=(...)"
            raise EstimationError(
                f"Parameter '{name}' ran off while fitting (mean {float(mean[k]):.3g}, sd "
                f"{float(sd[k]):.3g} on the {scale.name} scale): the data do not determine it. Give it a "
                f"first value with fit(..., start={{'{name}': ...}}){other}, or take a simpler curve."
            )


def check_residual(problem: Problem, state: State, least: float) -> None:
    """Raise EstimationError when the residual error is under a share of that without a curve."""
    people, sigma = problem.individuals, problem.own_sigma(state.sigma)
    if people.residual.given:
        return
    vanished = sigma < NOTHING * people.without_curve
    zeros = torch.nonzero(people.residual.unbounded(people.data.response, vanished) & people.data.mask)
    if len(zeros):
        example, name = people.data.about(*zeros[0].tolist()), people.residual.names[0]
        raise EstimationError(
            f"{len(zeros)} responses are exactly zero, for example {example}: the likelihood rises "
            f"without end as '{name}' (last {float(sigma[0]):.2g}) and the predictions near them vanish. "
            "Mark responses below a limit as censored, leave them out, give a and b, or take nf.Additive()."
        )
    if bool((sigma < least * people.without_curve).all()):
        last = ", ".join(f"{value:.2g}" for value in sigma.tolist())
        raise EstimationError(
            f"The residual error shrinks without end (last {last}): curves pass through all "
            "observations. Give the residual parameters, for example nf.Additive(sigma=...), or name "
            "parameters in fixed=(...)."
        )
