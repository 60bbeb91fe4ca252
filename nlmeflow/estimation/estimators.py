"""From a specification of a law to a fit: Gaussian first, then what it makes possible."""

import math
from dataclasses import dataclass, field, replace
from functools import singledispatch

from torch import Tensor

from nlmeflow.errors import ModelError
from nlmeflow.estimation.cloud import Cloud, broad_reference, make_cloud
from nlmeflow.estimation.components import redrawn
from nlmeflow.estimation.em import Report, Result, Schedule, State, em, evaluate, silent
from nlmeflow.estimation.laplace import gaussian_start
from nlmeflow.estimation.learning import CAREFUL, CrossFitted, Lesson, learn, without_folds
from nlmeflow.estimation.memory import Memory
from nlmeflow.estimation.particles import Proposal, draw
from nlmeflow.estimation.problem import Problem
from nlmeflow.estimation.start import pooled_start
from nlmeflow.laws.flow import Flow
from nlmeflow.laws.gaussian import Gaussian, GaussianLaw
from nlmeflow.laws.kernels import EBEDensity, SmoothNPMLE, TwoStage
from nlmeflow.laws.law import Law
from nlmeflow.laws.mixture import Mixture
from nlmeflow.laws.snp import SNP
from nlmeflow.laws.transformed import Transformed
from nlmeflow.seeds import derive, generator

CLOUD_DRAWS = 64
Density = Mixture | SNP | Transformed | SmoothNPMLE | TwoStage | EBEDensity


@dataclass
class Task:
    """One fitting task: the problem, first values, the seed, and what was already computed.

    Gaussian and mixture fits are kept, so that several laws of one task share them. `fold` (N,) says
    which individuals are held out together; when None, each law that needs folds draws its own.
    """

    problem: Problem
    start: dict[str, float]
    seed: int
    particles: int
    report: Report = silent
    fold: Tensor | None = None
    kept: Memory = field(default_factory=Memory)

    @property
    def schedule(self) -> Schedule:
        """Return the engine's configuration for this task."""
        return Schedule(particles=self.particles, first=min(256, self.particles))


def default_particles(problem: Problem) -> int:
    """Return the particles per individual: 200,000 in all, between a least number and 16,384.

    The least number is 512, and 256 (128) above 5,000 (20,000) individuals: the more there are, the
    less each one's Monte-Carlo error matters, and predictions of all particles are kept in memory.
    Groups have 256: each stands for sixteen times as many predictions of every individual.
    """
    n_individuals = len(problem)
    if problem.individuals is not problem:
        return 256
    least = 512 if n_individuals <= 5000 else 256 if n_individuals <= 20_000 else 128
    return min(16384, max(least, 2 ** round(math.log2(200_000 / n_individuals))))


@singledispatch
def estimate(law: object, task: Task) -> Result:
    """Fit a law to a task's data."""
    raise ModelError(
        f"{law!r} is not the specification of a law; try nf.Gaussian(), nf.Mixture() or nf.Flow()."
    )


@estimate.register
def _(law: Gaussian, task: Task) -> Result:
    return task.kept.once(law, lambda: _gaussian(law, task, task.schedule))


def careful_gaussian(task: Task) -> Result:
    """Return a Gaussian fit kept off its boundary, good enough to start, scale and surround other laws."""
    schedule = Schedule(particles=256, first=256, refreshes=6)
    return task.kept.once("careful gaussian", lambda: _gaussian(CAREFUL, task, schedule))


def _gaussian(law: Gaussian, task: Task, schedule: Schedule) -> Result:
    problem = task.problem
    task.report("first values")
    first = task.kept.once(
        "first values", lambda: pooled_start(problem.individuals, task.start, derive(task.seed, 0))
    )
    task.report("Laplace")
    start = gaussian_start(problem, first, law)
    proposal = Proposal(start.laplace.mode, start.laplace.factor, start.law, start.law.inflated(2.0))
    state = State(start.law, start.beta, start.sigma)
    return em(problem, state, proposal, schedule, generator(derive(task.seed, 1)), task.report)


@estimate.register
def _(law: Density, task: Task) -> Result:
    """Learn the law on the task's cloud; then sigma and beta on fresh particles."""

    def make() -> Result:
        first = rough_mixture(task)
        return settled(task, learn(law, lesson(task)), first, stream=3)

    return task.kept.once(law, make)


@estimate.register
def _(law: Flow, task: Task) -> Result:
    """Learn the law on the task's cloud; then sigma and beta, each individual under the law of other folds.

    A law that has seen an individual fits part of its noise, and sigma would be too small.
    """

    def make() -> Result:
        first, taught = rough_mixture(task), lesson(task)
        fold = taught.folds(law.folds)
        learned = learn(law, taught)
        fit = settled(task, CrossFitted(without_folds(law, taught, fold), fold), first, stream=3)
        state = replace(fit.state, law=learned)
        seen = evaluate(task.problem, state, fit.particles)
        proposal = replace(fit.proposal, law=learned)
        return replace(fit, state=state, expectation=seen, proposal=proposal)

    return task.kept.once(law, make)


def lesson(task: Task) -> Lesson:
    """Return the lesson on which laws are learned and compared, made once for each task."""

    def make() -> Lesson:
        first = rough_mixture(task)
        return Lesson(reference_cloud(task, first.state.law, first, stream=5), derive(task.seed, 3))

    made = task.kept.once("lesson", make)
    made.report, made.fold = task.report, task.fold
    return made


def rough_mixture(task: Task) -> Result:
    """Return a mixture learned on the Gaussian fit's cloud: where the draws of the lesson come from."""

    def make() -> Result:
        gaussian = careful_gaussian(task)
        cloud = reference_cloud(task, gaussian.state.law, gaussian, stream=4)
        law = learn(Mixture(), Lesson(cloud, derive(task.seed, 2), task.report))
        law = redrawn(law, cloud, 1.0, CAREFUL.prior)
        return settled(task, law, gaussian, stream=2)

    return task.kept.once("rough mixture", make)


def reference_cloud(task: Task, law: Law, fit: Result, stream: int) -> Cloud:
    """Return posterior draws under 60 % of a law and 40 % of the Gaussian fit made wider."""
    gaussian = _gaussian_law(careful_gaussian(task))
    random = generator(derive(task.seed, stream))
    reference = broad_reference(law, gaussian)
    proposal = replace(fit.proposal, law=reference)
    problem = task.problem.near(gaussian, fit.state.beta, fit.state.sigma)
    particles = draw(problem, proposal, fit.state.beta, task.particles, random)
    return make_cloud(problem, particles, fit.state, reference, CLOUD_DRAWS, random)


def settled(task: Task, law: Law, previous: Result, stream: int) -> Result:
    """Run the engine on fresh particles for sigma and beta, the law as found on its cloud.

    Both are known far better than the law, and 128 particles each are enough for them.
    """
    state = replace(previous.state, law=law)
    schedule = Schedule(particles=128, first=128, refreshes=10, update_law=False)
    proposal = replace(previous.proposal, law=law)
    random = generator(derive(task.seed, stream, 1))
    return em(task.problem, state, proposal, schedule, random, task.report)


def _gaussian_law(result: Result) -> GaussianLaw:
    assert isinstance(result.state.law, GaussianLaw)
    return result.state.law
