"""The marginal log-likelihood of a fitted state, with an honest Monte-Carlo error.

Batches of fresh particles are independent given the data, so that the spread between batches
measures the error that Sobol points really make; batches are added until it is small enough.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nlmeflow.estimation.em import State, evaluate
from nlmeflow.estimation.laplace import Laplace, modes
from nlmeflow.estimation.particles import Particles, Proposal, adapted, draw
from nlmeflow.estimation.problem import CHUNK, Problem
from nlmeflow.laws.affine import safe_cholesky
from nlmeflow.laws.draws import Expectation, expectation, heaviest
from nlmeflow.laws.gaussian import GaussianLaw
from nlmeflow.laws.law import Law
from nlmeflow.numerics import TINY, lbfgs, log_mean, moments
from nlmeflow.seeds import Seed, generator

LEAST_BATCHES, MOST_BATCHES = 8, 64
ALONE = 25.0  # standard deviations of the Gaussian under which an individual stands alone
MODE_CANDIDATES = 256  # heaviest particles among which a mode is sought


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
    tolerance: float = 0.1,
) -> Marginal:
    """Return log p(y_i), adding batches until the total's error is below `tolerance`; of points a sum."""
    if not state.law.has_density:
        values = on_points(problem, state)[1].log_likelihood
        return Marginal(values, torch.zeros_like(values))
    batches: list[Tensor] = []
    while True:
        drawn = draw(problem, proposal, state.beta, particles, random)
        batches.append(evaluate(problem, state, drawn).log_likelihood)
        if len(batches) < LEAST_BATCHES:
            continue
        logs = torch.stack(batches)
        mean = log_mean(logs, 0)
        relative = (logs - mean).exp()
        result = Marginal(mean, relative.std(0) / math.sqrt(len(logs)))
        if result.error < tolerance or len(batches) >= MOST_BATCHES:
            return result


def on_points(problem: Problem, state: State) -> tuple[Particles, Expectation]:
    """Return the points of a discrete law as particles of every individual, and their posterior weights."""
    support: Tensor = state.law.support  # type: ignore[attr-defined]
    weights: Tensor = state.law.weights  # type: ignore[attr-defined]
    phi = support.expand(len(problem), -1, -1)
    log_count = phi.new_full(phi.shape[:2], -math.log(phi.shape[1]))
    particles = Particles(phi, log_count, problem.summary(phi, state.beta))
    step = expectation(particles.log_ratio(problem, state.sigma), weights.clamp_min(TINY).log())
    return particles, step


def locate(problem: Problem, state: State, particles: int, random: torch.Generator) -> Proposal:
    """Return proposals for individuals that took no part in a fit: Laplace, then their moments."""
    gaussian = GaussianLaw.like(state.law)
    problem = problem.near(gaussian, state.beta, state.sigma)
    start = gaussian.mean.expand(len(problem), -1).clone()
    laplace = modes(problem, gaussian, state.beta, state.sigma, start, steps=20)
    proposal = Proposal(laplace.mode, laplace.factor, state.law, gaussian.inflated(2.0))
    for _ in range(2):
        drawn = draw(problem, proposal, state.beta, particles, random)
        proposal = adapted(proposal, drawn, evaluate(problem, state, drawn), state.law)
    return proposal


def alone(problem: Problem, law: GaussianLaw, beta: Tensor, sigma: Tensor) -> Laplace:
    """Return modes under the Gaussian with 25 times its standard deviations: each individual alone.

    A Gaussian so wide only holds what the individual's own data leave free.
    """
    wide = GaussianLaw(law.mean, (ALONE * law.sd).diag())
    start = law.mean.expand(len(problem), -1).clone()
    return modes(problem, wide, beta, sigma, start, steps=20)


def around(problem: Problem, law: GaussianLaw, beta: Tensor, sigma: Tensor, n: int, seed: Seed) -> Tensor:
    """Return n points for each individual, spread as its own data allow, (N n, d)."""
    own = alone(problem, law, beta, sigma)
    noise = torch.randn(len(problem), n, law.dim, generator=generator(seed), dtype=beta.dtype)
    return (own.mode[:, None] + noise @ own.factor.mT).flatten(0, 1)


def conditional_modes(
    problem: Problem, state: State, phi: Tensor, weights: Tensor, steps: int = 60
) -> Tensor:
    """Return the phi (N, d) of highest p(y_i | phi) p(phi): the best of the heaviest particles, polished.

    Individuals are independent, so that one L-BFGS in coordinates scaled by each one's conditional
    covariance serves all of them; a mode that got worse is not taken.
    """

    def log_joint(at: Tensor) -> Tensor:
        return problem.log_likelihood(at, state.beta, state.sigma) + state.law.log_prob(at)

    candidates, _ = heaviest(phi, weights, MODE_CANDIDATES)
    with torch.no_grad():
        best = log_joint(candidates).argmax(1)
    first = candidates[torch.arange(len(candidates)), best][:, None]
    scale = safe_cholesky(moments(phi, weights)[1])

    def moved(offset: Tensor) -> Tensor:
        return first + (scale @ offset[..., None]).mT

    start = torch.zeros_like(first[:, 0])
    found = lbfgs(lambda offset: -log_joint(moved(offset)).sum(), start, steps, 1e-9, 1e-12)
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
