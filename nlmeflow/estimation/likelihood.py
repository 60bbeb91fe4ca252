"""The marginal log-likelihood of a fitted state, with an honest Monte-Carlo error.

Batches of fresh particles are independent given the data, so that the spread between batches
measures the error that Sobol points really make; batches are added, for the individuals who need them,
until it is small enough.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nlmeflow.estimation.em import State, evaluate
from nlmeflow.estimation.laplace import LIKELIER, Laplace, modes
from nlmeflow.estimation.particles import Particles, Proposal, adapted, draw
from nlmeflow.estimation.problem import CHUNK, Problem
from nlmeflow.laws.affine import safe_cholesky
from nlmeflow.laws.draws import Expectation, expectation, taken
from nlmeflow.laws.gaussian import GaussianLaw
from nlmeflow.laws.law import Law
from nlmeflow.numerics import TINY, lbfgs, moments
from nlmeflow.running import Report, silent
from nlmeflow.seeds import Seed, generator

LEAST_BATCHES, MOST_BATCHES = 8, 64
ERROR, SMALL = 0.1, 200  # of the log-likelihood of so many individuals or fewer; it grows as the root of N
ALONE = 25.0  # standard deviations of the Gaussian under which an individual stands alone
DISTANCES = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)  # in sds of a parameter, at which an individual is sought
FEW = 20.0  # effective particles, under which an individual is sought once more, under the law itself
AT_A_TIME, MODE_STEPS = 2000, 60  # individuals whose modes are sought together; steps of L-BFGS, at most


@dataclass(frozen=True)
class Marginal:
    """log p(y_i) of each individual (N,) and its Monte-Carlo standard error (N,)."""

    values: Tensor
    errors: Tensor

    @property
    def total(self) -> float:
        """The log-likelihood of all individuals."""
        return float(self.values.sum())

    @property
    def error(self) -> float:
        """Its standard error: errors of individuals are independent."""
        return float(self.errors.square().sum().sqrt())


def marginal(
    problem: Problem,
    state: State,
    proposal: Proposal,
    particles: int,
    random: torch.Generator,
    tolerance: float | None = None,
    report: Report = silent,
) -> Marginal:
    """Return log p(y_i); of points a sum, else with batches until the total's error is below `tolerance`.

    By default 0.1, times sqrt(N / 200) for more than 200 individuals. After eight batches of everyone, more,
    up to 64, go to those whose error is above tolerance / sqrt(N), as the effective particles of a batch that
    is not used otherwise predict it: were they chosen by the batches used, estimates would be biased.
    """
    if not state.law.has_density:
        values = on_points(problem, state)[1].log_likelihood
        return Marginal(values, torch.zeros_like(values))
    tolerance = ERROR * math.sqrt(max(1.0, len(problem) / SMALL)) if tolerance is None else tolerance

    def batch(some: Problem, place: Proposal) -> Expectation:
        report(f"log-likelihood: {len(some)} of {len(problem)}")
        return evaluate(some, state, draw(some, place, state.beta, particles, random, calibrated=False))

    variance = 1 / batch(problem, proposal).ess - 1 / particles
    logs = torch.stack([batch(problem, proposal).log_likelihood for _ in range(LEAST_BATCHES)])
    count = torch.full_like(variance, LEAST_BATCHES)
    while not (result := averaged(logs, count)).error < tolerance and len(logs) < MOST_BATCHES:
        predicted = variance / count
        enough = predicted < (tolerance / result.error) ** 2 * predicted.mean()
        wanting = torch.nonzero(~enough)[:, 0]
        more = torch.full_like(count, -torch.inf)
        more[wanting] = batch(problem.subset(wanting), proposal.subset(wanting)).log_likelihood
        logs = torch.cat([logs, more[None]])
        count[wanting] += 1
    return result


def averaged(logs: Tensor, count: Tensor) -> Marginal:
    """Return log p(y_i) from count (N,) estimates of p(y_i), logs (B, N) their logarithms, -inf where none.

    The log of their mean with its standard error s by the delta method, less its bias -s^2 / 2: over all
    individuals a bias would grow as N, the error grows as the square root of N.
    """
    mean = logs.logsumexp(0) - count.log()
    square = ((logs - mean).exp().square().sum(0) - count).clamp_min(0) / (count * (count - 1))
    return Marginal(mean + 0.5 * square, square.sqrt())


def on_points(problem: Problem, state: State) -> tuple[Particles, Expectation]:
    """Return the points of a discrete law as particles of every individual, and their posterior weights."""
    support: Tensor = state.law.support  # type: ignore[attr-defined]
    phi = support.expand(len(problem), -1, -1)
    log_count = phi.new_full(phi.shape[:2], -math.log(phi.shape[1]))
    particles = Particles(phi, log_count, problem.summary(phi, state.beta))
    return particles, weighed_points(problem, state, particles)


def weighed_points(problem: Problem, state: State, particles: Particles) -> Expectation:
    """Weigh the points of a discrete law, predictions at them known, with its own weights."""
    weights: Tensor = state.law.weights  # type: ignore[attr-defined]
    return expectation(particles.log_ratio(problem, state.sigma), weights.clamp_min(TINY).log())


def locate(problem: Problem, state: State, particles: int, random: torch.Generator) -> Proposal:
    """Return proposals for individuals that took no part in a fit: Laplace, then their moments.

    Laplace's mode is the likelier of two: from the population's mean, and from where each one's own data put
    it, because far from the population a curve may not say which way to go.
    """
    gaussian = GaussianLaw.like(state.law)
    problem = problem.near(gaussian, state.beta, state.sigma)
    mean = gaussian.mean.expand(len(problem), -1).clone()
    laplace = modes(problem, gaussian, state.beta, state.sigma, mean, steps=20)
    own = _alone_from(problem, gaussian, state.beta, state.sigma, _likeliest(problem, gaussian, state))
    other = modes(problem, gaussian, state.beta, state.sigma, own.mode, steps=20)
    laplace = _likelier(problem, gaussian, state, laplace, other)
    proposal = Proposal(laplace.mode, laplace.factor, state.law, gaussian.inflated(2.0))
    proposal, drawn, step = _settled(problem, state, proposal, particles, random)
    poor = torch.nonzero(step.ess < FEW)[:, 0]
    if len(poor) and problem.individuals is problem:
        found, centre = drawn.subset(poor), proposal.centre.clone()
        centre[poor] = conditional_modes(problem.subset(poor), state, found, step.weights[poor])
        factor = proposal.factor.clone()
        factor[poor] = laplace.factor[poor]
        moved = replace(proposal, centre=centre, factor=factor)
        proposal = _settled(problem, state, moved, particles, random)[0]
    return proposal


def _settled(
    problem: Problem, state: State, proposal: Proposal, particles: int, random: torch.Generator
) -> tuple[Proposal, Particles, Expectation]:
    """Return proposals moved twice to their particles' moments, with the last particles and their weights."""
    for _ in range(2):
        drawn = draw(problem, proposal, state.beta, particles, random)
        step = evaluate(problem, state, drawn)
        proposal = adapted(proposal, drawn, step, state.law)
    return proposal, drawn, step


def _likeliest(problem: Problem, law: GaussianLaw, state: State) -> Tensor:
    """Return the places (N, d), near and far along each parameter, where each one's data are likeliest."""
    steps = law.mean.new_tensor(DISTANCES)
    far = torch.cat([-steps, steps])[:, None, None] * law.sd.diag()  # (2 K, d, d): one parameter moves
    points = torch.cat([law.mean[None], law.mean + far.flatten(0, 1)])
    log_likelihood = torch.cat(
        [
            problem.subset(some).log_likelihood(points.expand(len(some), -1, -1), state.beta, state.sigma)
            for some in torch.arange(len(problem)).split(AT_A_TIME)
        ]
    )
    return points[log_likelihood.nan_to_num(-torch.inf, -torch.inf, -torch.inf).argmax(1)]


def _likelier(problem: Problem, law: GaussianLaw, state: State, one: Laplace, other: Laplace) -> Laplace:
    """Return each individual's mode of higher p(y_i | phi) p(phi), the first of two that are alike."""

    def height(found: Laplace) -> Tensor:
        at = problem.log_likelihood(found.mode[:, None], state.beta, state.sigma)[:, 0]
        return (at + law.log_prob(found.mode)).nan_to_num(-torch.inf, -torch.inf, -torch.inf)

    better = height(other) > height(one) + LIKELIER
    mode = torch.where(better[:, None], other.mode, one.mode)
    return Laplace(mode, torch.where(better[:, None, None], other.factor, one.factor))


def alone(problem: Problem, law: GaussianLaw, beta: Tensor, sigma: Tensor) -> Laplace:
    """Return modes under the Gaussian with 25 times its standard deviations: each individual alone.

    A Gaussian so wide only holds what the individual's own data leave free.
    """
    return _alone_from(problem, law, beta, sigma, law.mean.expand(len(problem), -1).clone())


def _alone_from(problem: Problem, law: GaussianLaw, beta: Tensor, sigma: Tensor, start: Tensor) -> Laplace:
    wide = GaussianLaw(law.mean, (ALONE * law.sd).diag())
    return modes(problem, wide, beta, sigma, start, steps=20)


def around(problem: Problem, law: GaussianLaw, beta: Tensor, sigma: Tensor, n: int, seed: Seed) -> Tensor:
    """Return n points for each individual, spread as its own data allow, (N n, d)."""
    own = alone(problem, law, beta, sigma)
    noise = torch.randn(len(problem), n, law.dim, generator=generator(seed), dtype=beta.dtype)
    return (own.mode[:, None] + noise @ own.factor.mT).flatten(0, 1)


def conditional_modes(
    problem: Problem, state: State, particles: Particles, weights: Tensor, report: Report = silent
) -> Tensor:
    """Return the phi (N, d) of highest p(y_i | phi) p(phi): the best particles, polished.

    weights (N, M) : of the particles under the state.
    """
    best = (weights.log() + particles.log_proposal).argmax(1)  # p(y_i | phi) p(phi) is weight times density
    first = taken(particles.phi, best[:, None])
    scale = safe_cholesky(moments(particles.phi, weights)[1])
    found = []
    for some in torch.arange(len(problem)).split(AT_A_TIME):
        report(f"modes: {int(some[-1]) + 1} of {len(problem)}")
        whole = len(some) == len(problem)
        found.append(_polished(problem if whole else problem.subset(some), state, first[some], scale[some]))
    return torch.cat(found)


def _polished(problem: Problem, state: State, first: Tensor, scale: Tensor) -> Tensor:
    """Return the modes (N, d) that L-BFGS finds from first (N, 1, d), a mode that got worse not taken.

    Individuals are independent, so that one L-BFGS in coordinates scaled by each one's conditional
    covariance, with factors scale (N, d, d), serves all of them.
    """

    def log_joint(at: Tensor) -> Tensor:
        return problem.log_likelihood(at, state.beta, state.sigma) + state.law.log_prob(at)

    def moved(offset: Tensor) -> Tensor:
        return first + (scale @ offset[..., None]).mT

    start = torch.zeros_like(first[:, 0])
    found = lbfgs(lambda offset: -log_joint(moved(offset)).sum(), start, MODE_STEPS, 1e-9, 1e-12)
    with torch.no_grad():
        polished = moved(found)
        better = log_joint(polished) > log_joint(first)
        return torch.where(better[..., None], polished, first)[:, 0]


@dataclass(frozen=True)
class DataLikelihood:
    """What the data say at any phi, up to log p_R(y_i) under the reference law of some draws, (N,)."""

    problem: Problem
    beta: Tensor
    sigma: Tensor
    log_marginal: Tensor

    def log_psi(self, points: Tensor) -> Tensor:
        """Return log p(y_i | phi_k) - log p_R(y_i) at points (K, d): (N, K). Differentiable."""
        size = max(1, CHUNK // (len(self.problem) * self.problem.data.time.shape[1]))
        parts = [
            self.problem.log_likelihood(some.expand(len(self.problem), -1, -1), self.beta, self.sigma)
            for some in points.split(size)
        ]
        return torch.cat(parts, 1) - self.log_marginal[:, None]

    def alone(self, broad: Law) -> Tensor:
        """Return where each individual's own data put it, (N, d)."""
        return alone(self.problem, GaussianLaw.like(broad), self.beta, self.sigma).mode

    def around(self, broad: Law, n: int, seed: int) -> Tensor:
        """Return n points for each individual, spread as its own data allow, (N n, d)."""
        return around(self.problem, GaussianLaw.like(broad), self.beta, self.sigma, n, seed)

    def modes(self, gaussian: Law, start: Tensor) -> Tensor:
        """Return the conditional modes under a Gaussian law, (N, d)."""
        return modes(self.problem, GaussianLaw.like(gaussian), self.beta, self.sigma, start).mode

    def subset(self, index: Tensor) -> "DataLikelihood":
        """Return the same of the individuals at these positions."""
        return replace(self, problem=self.problem.subset(index), log_marginal=self.log_marginal[index])
