"""The engine: the road that every fit takes, on one page.

    observations --> first values --> Laplace --> Gaussian EM --> posterior draws under a broad reference law
    --> the law is learned on the draws (no curve, no data) --> sigma and beta with each individual under
    laws that have not seen it

The curve is called where draws are made, where sigma and beta are settled, and by laws that ask for the
likelihood at points. A Gaussian law ends after the third step; a law made of points goes back and forth at
the end; SAEM brings a road of its own.
"""

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import cast

import torch

from nlmeflow.data import LongitudinalData
from nlmeflow.estimation.em import Result, Schedule, State, em
from nlmeflow.estimation.laplace import BROKEN, GaussianStart, gaussian_starts, unclimbed_start
from nlmeflow.estimation.particles import Proposal, draw
from nlmeflow.estimation.points import Placing, settle_points
from nlmeflow.estimation.posterior import posterior_draws
from nlmeflow.estimation.problem import Problem
from nlmeflow.estimation.start import pooled_starts
from nlmeflow.laws.draws import Folds, PosteriorDraws, TrainingSet
from nlmeflow.laws.gaussian import CAREFUL, Gaussian, GaussianLaw
from nlmeflow.laws.law import Law
from nlmeflow.laws.mixture import Mixture, redrawn
from nlmeflow.laws.specification import Specification
from nlmeflow.laws.stacked import StackedLaw
from nlmeflow.running import Memory, Report, silent
from nlmeflow.seeds import Stream, derive, generator

BROAD = (0.6, 0.4)  # shares of a law and of the widened Gaussian in the reference of the draws
QUICK = Schedule(particles=256, first=256, refreshes=6)  # good enough to start, scale and surround other laws
SETTLING = Schedule(particles=128, first=128, refreshes=10, update_law=False)


@dataclass(frozen=True)
class Task:
    """One fitting task: the problem, first values, the seed, and what was already computed.

    folds : which individuals are held out together; when None, each law that needs folds draws its own.
    memory : fits and draws that several laws of one task share.
    everyone : the data with the individuals that have no observation; the problem is of the others.
    """

    problem: Problem
    start: dict[str, float]
    seed: int
    particles: int
    folds: Folds | None = None
    report: Report = silent
    memory: Memory = field(default_factory=Memory)
    everyone: LongitudinalData | None = None


class Algorithm(Specification):
    """A specification that brings its own road, as SAEM does."""

    @abstractmethod
    def run(self, task: Task) -> Result:
        """Fit the law to a task's data."""


def fit_law(law: Specification, task: Task) -> Result:
    """Fit a law to a task's data, once."""
    return task.memory.once(("fit", law, task.folds), lambda: road(law, task))


def road(law: Specification, task: Task) -> Result:
    """Take the road: each line is a step of the sentence above."""
    if isinstance(law, Algorithm):
        return law.run(task)
    if law.by_em:
        schedule = Schedule(particles=task.particles, first=min(256, task.particles))
        return gaussian_em(cast(Gaussian, law), task, schedule)
    first, training = rough_mixture(task), training_set(task)
    if law.of_points:
        return settle_points(cast(Placing, law), task.problem, first.state, training)
    learned = law.learn(training)
    unseen = law.unseen(training, learned)
    fit = settle(task, unseen, first, Stream.FINAL_STEPS)
    if unseen is learned:
        return fit
    state, proposal = replace(fit.state, law=learned), replace(fit.proposal, law=learned)
    return replace(fit, state=state, proposal=proposal)


def gaussian_em(law: Gaussian, task: Task, schedule: Schedule) -> Result:
    """First values, Laplace, and EM of a Gaussian law on particles."""
    problem = task.problem
    task.report("Laplace")
    try:
        starts = gaussian_starts(problem, first_values(task), law)
    except BROKEN:
        starts = gaussian_starts(problem, first_values(task, thorough=True), law)
    for start in starts:
        try:
            return _em_from(start, task, schedule)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            # steps in much noise may end where a fixed parameter moves the curve no more: nothing leads back
            failed = error
    if problem.individuals is not problem:
        raise failed
    return _em_from(unclimbed_start(problem, first_values(task)[0], law), task, schedule)


def _em_from(start: GaussianStart, task: Task, schedule: Schedule) -> Result:
    proposal = Proposal(start.laplace.mode, start.laplace.factor, start.law, start.law.inflated(2.0))
    state, random = State(start.law, start.beta, start.sigma), generator(derive(task.seed, Stream.GAUSSIAN))
    return em(task.problem, state, proposal, schedule, random, task.report)


def first_values(task: Task, thorough: bool = False) -> list[dict[str, float]]:
    """Return first values of all parameters of the curve, on the unconstrained scale, best first."""
    task.report("first values")
    people, seed = task.problem.individuals, derive(task.seed, Stream.FIRST_VALUES)
    return task.memory.once(
        ("first values", thorough), lambda: pooled_starts(people, task.start, seed, thorough)
    )


def careful_gaussian(task: Task) -> Result:
    """Return a quick Gaussian fit kept off its boundary: it starts, scales and surrounds other laws."""
    size = min(QUICK.particles, task.particles)
    quick = replace(QUICK, particles=size, first=size)
    return task.memory.once("careful gaussian", lambda: gaussian_em(CAREFUL, task, quick))


def rough_mixture(task: Task) -> Result:
    """Return a mixture learned on draws under the Gaussian fit: where the draws of other laws come from."""

    def make() -> Result:
        gaussian = careful_gaussian(task)
        draws = draws_around(task, gaussian, Stream.ROUGH_DRAWS)
        training = TrainingSet(draws, derive(task.seed, Stream.ROUGH_MIXTURE), report=task.report)
        law = redrawn(Mixture().learn(training), draws, 1.0, CAREFUL.prior)
        return settle(task, law, gaussian, Stream.ROUGH_MIXTURE)

    return task.memory.once("rough mixture", make)


def training_set(task: Task) -> TrainingSet:
    """Return the draws on which laws are learned and compared, made once for each task."""

    def make() -> TrainingSet:
        draws = draws_around(task, rough_mixture(task), Stream.DRAWS)
        return TrainingSet(draws, derive(task.seed, Stream.FINAL_STEPS))

    return task.memory.once("training set", make).reporting(task.report, task.folds)


def broad_reference(law: Law, gaussian: GaussianLaw) -> StackedLaw:
    """Return a reference that covers what other laws may want: a law, and a Gaussian made wider."""
    return StackedLaw((law, gaussian.inflated(1.5)), torch.tensor(BROAD, dtype=torch.float64))


def draws_around(task: Task, fit: Result, stream: Stream) -> PosteriorDraws:
    """Return posterior draws of a task's individuals under a broad reference around a fit's law."""
    gaussian = GaussianLaw.like(careful_gaussian(task).state.law)
    state, random = fit.state, generator(derive(task.seed, stream))
    reference = broad_reference(state.law, gaussian)
    problem = task.problem.near(gaussian, state.beta, state.sigma)
    particles = draw(problem, replace(fit.proposal, law=reference), state.beta, task.particles, random)
    return posterior_draws(problem, particles, state, reference, random)


def settle(task: Task, law: Law, previous: Result, stream: Stream) -> Result:
    """Run EM on fresh particles for sigma and beta, the law as it was found on the draws.

    Both are known far better than the law, and 128 particles each are enough for them.
    """
    state, proposal = replace(previous.state, law=law), replace(previous.proposal, law=law)
    random = generator(derive(task.seed, stream, 1))
    return em(task.problem, state, proposal, SETTLING, random, task.report)
