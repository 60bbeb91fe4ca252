"""MCMC-SAEM: stochastic approximation of EM with Metropolis-Hastings draws of the individual parameters.

At iteration k the draws phi_i make a few Markov steps towards p(phi | y_i; theta_k), and the sufficient
statistics move by S_k = S_(k-1) + gamma_k (S(phi) - S_(k-1)), gamma_k = 1 first, then (k - K)^-0.65.
Delyon, Lavielle, Moulines, Annals of Statistics 1999; with MCMC Kuhn and Lavielle, ESAIM P&S 2004; in
nonlinear mixed-effects models Kuhn and Lavielle, Computational Statistics and Data Analysis 2005.
Several chains serve each individual; their draws are averaged in the statistics, never before.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from nlmeflow.errors import ModelError, check_whole
from nlmeflow.estimation.em import Result, State, fixed_effects_system
from nlmeflow.estimation.engine import Algorithm, Task, first_values
from nlmeflow.estimation.laplace import first_gaussian, modes
from nlmeflow.estimation.particles import Particles, Proposal
from nlmeflow.estimation.problem import Problem
from nlmeflow.laws.affine import normal_log_prob, safe_cholesky
from nlmeflow.laws.draws import Expectation, TrainingSet
from nlmeflow.laws.gaussian import CAREFUL, Gaussian, GaussianLaw
from nlmeflow.laws.law import Law
from nlmeflow.laws.specification import Specification, Trainer
from nlmeflow.seeds import Stream, derive, generator

EXPONENT = 0.65
LEAST_DRAWS, LEAST_CHAINS = 600, 5  # fewer draws drift to a singular covariance while the step is 1
TARGET = 0.3  # acceptance of random walks
REFRESH = 50  # iterations between Laplace steps before the steps fall
SHORTEST = 50  # iterations of a run that may have converged
LEAST_STEP = 0.05  # share of a flow's learning rate to which its steps fall


@dataclass(frozen=True)
class SAEM(Algorithm):
    """Specification: a law fitted by MCMC-SAEM instead of the engine's importance-weighted EM.

    law : nf.Gaussian(), or one flow on the Gaussian, nf.Flow(kind="spline", base="gaussian"), whose M-step
        is a step of stochastic gradient (Adam); no folds, no early stopping.
    burn_in : iterations with step 1; iterations : after them, with step k^-0.65.
    chains : for each individual; when None at least 5, and as many as give 600 draws in all. With few draws
        the covariance drifts to a singular one while the step is 1, and cannot come back.

    Raises
    ------
    ModelError : another law, numbers that are not whole or under 1; when fitted, a model with effects of
        covariates.

    """

    levels: ClassVar[bool] = False
    law: Specification = field(default_factory=Gaussian)
    burn_in: int = 300
    iterations: int = 300
    chains: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.law, Specification):
            raise ModelError(f"law is the specification of a law, such as nf.Gaussian(); got {self.law!r}.")
        if not (self.law.by_em or self.law.trainable):
            raise ModelError(
                "law is nf.Gaussian(...), or one flow that SAEM trains: name it, "
                f"nf.Flow(kind='spline', base='gaussian'); got {self.law!r}."
            )
        check_whole(self, 1, "burn_in", "iterations", "chains")

    @property
    def bounded(self) -> bool:  # type: ignore[override]
        return self.law.bounded

    @property
    def name(self) -> str:  # type: ignore[override]
        return "saem" if self.law.by_em else "saem flow"

    def learn(self, training: TrainingSet) -> Law:
        """Learn the law that SAEM fits on posterior draws: for held-out scores."""
        return self.law.learn(training)

    def run(self, task: Task) -> Result:
        return _saem(self, task)


@dataclass
class _Chains:
    """Draws phi (N, C, d) with summaries and log-likelihoods (N, C), proposals, scales of random walks."""

    problem: Problem
    phi: Tensor
    particles: Particles
    log_likelihood: Tensor
    mode: Tensor
    factor: Tensor
    random: torch.Generator
    scale: Tensor
    accepted: float = 0.0

    @classmethod
    def start(cls, problem: Problem, state: State, chains: int, random: torch.Generator) -> "_Chains":
        phi = state.law.sample(len(problem) * chains, random).reshape(len(problem), chains, -1)
        particles = _predicted(problem, phi, state.beta)
        log_likelihood = problem.residual.log_likelihood(particles.summary, state.sigma)
        centre = phi.mean(1)
        scale = phi.new_ones(len(problem), 1, 1)
        made = cls(problem, phi, particles, log_likelihood, centre, centre, random, scale)
        made.look(state)
        return made

    def look(self, state: State) -> None:
        """Put each individual's independent proposal at its mode, under the current Gaussian."""
        start = self.phi.mean(1)
        laplace = modes(self.problem, GaussianLaw.like(state.law), state.beta, state.sigma, start, steps=5)
        self.mode, self.factor = laplace.mode, laplace.factor

    def follow(self, state: State) -> None:
        """Take the predictions along when fixed effects or residual parameters have moved."""
        if self.problem.common:
            self.particles = _predicted(self.problem, self.phi, state.beta)
        self.log_likelihood = self.problem.residual.log_likelihood(self.particles.summary, state.sigma)

    def sweep(self, state: State) -> None:
        """Propose from the law, from the Laplace step, and by random walks along all and single axes."""
        size, chains, dim = self.phi.shape
        drawn = state.law.sample(size * chains, self.random).reshape(self.phi.shape)
        self._offer(state, drawn, -state.law.log_prob(drawn) + state.law.log_prob(self.phi))
        wide = 1.3 * self.factor
        local = self.mode[:, None] + self._normal() @ wide.mT
        back = normal_log_prob(self.phi, self.mode, wide) - normal_log_prob(local, self.mode, wide)
        self._offer(state, local, back)
        walks = [torch.ones(dim, dtype=self.phi.dtype), *torch.eye(dim, dtype=self.phi.dtype)]
        for axis in walks:
            step = (axis * self._normal()) @ self.factor.mT
            taken = self._offer(
                state, self.phi + 2.4 / math.sqrt(float(axis.sum())) * self.scale * step, None
            )
            self.accepted = float(taken.mean())
            rate = taken.mean(1)[:, None, None] - TARGET
            self.scale = (self.scale * (0.2 * rate).exp()).clamp(1e-3, 1e3)

    def _normal(self) -> Tensor:
        return torch.randn(self.phi.shape, generator=self.random, dtype=self.phi.dtype)

    def _offer(self, state: State, phi: Tensor, log_correction: Tensor | None) -> Tensor:
        """Accept or refuse proposals; log_correction is log q(old) - log q(new)."""
        particles = _predicted(self.problem, phi, state.beta)
        log_likelihood = self.problem.residual.log_likelihood(particles.summary, state.sigma)
        gain = log_likelihood - self.log_likelihood + state.law.log_prob(phi) - state.law.log_prob(self.phi)
        gain = gain if log_correction is None else gain + log_correction
        uniform = torch.rand(gain.shape, generator=self.random, dtype=gain.dtype)
        taken = uniform.log() < gain
        self.phi = torch.where(taken[..., None], phi, self.phi)
        self.log_likelihood = torch.where(taken, log_likelihood, self.log_likelihood)

        def kept(new: Tensor, old: Tensor) -> Tensor:
            return torch.where(taken.reshape(*taken.shape, *[1] * (new.ndim - 2)), new, old)

        summary = particles.summary.map(kept, self.particles.summary)
        self.particles = Particles(self.phi, self.particles.log_proposal, summary)
        return taken.to(phi.dtype)


def _predicted(problem: Problem, phi: Tensor, beta: Tensor) -> Particles:
    return Particles(phi, torch.zeros_like(phi[..., 0]), problem.summary(phi, beta))


def _saem(law: SAEM, task: Task) -> Result:
    problem, random = task.problem, generator(derive(task.seed, Stream.SAEM))
    if problem.effects:
        raise ModelError("nf.SAEM takes no covariate effects; the engine does: law=nf.Gaussian().")
    gaussian = cast(Gaussian, law.law) if law.law.by_em else CAREFUL
    state = State(*first_gaussian(problem, first_values(task)[0], gaussian))
    count = law.chains or max(LEAST_CHAINS, math.ceil(LEAST_DRAWS / len(problem)))
    chains = _Chains.start(problem, state, count, random)
    step = _MStep(problem, state)
    trainer: Trainer | None = None
    held = _Moments(chains.phi)
    trace: list[dict[str, Any]] = []
    for k in range(law.burn_in + law.iterations):
        late = k - law.burn_in
        gamma = 1.0 if late < 0 else (late + 1) ** -EXPONENT
        if (late < 0 and k % REFRESH == REFRESH - 1) or late == 0:
            chains.look(step.state)
        chains.sweep(state)
        state = step.move(chains, gamma)
        if late == 0 and law.law.trainable:
            trainer = law.law.trainer(step.gaussian, derive(task.seed, Stream.SAEM_FLOW))
        if trainer is not None:
            state = replace(state, law=trainer.move(chains.phi, max(gamma, LEAST_STEP)))
        chains.follow(state)
        if late >= 0:
            held.add(chains.phi)
        trace.append(_row(problem, step.state, k, gamma, chains.accepted))
        task.report(f"saem {k + 1}")
    if trainer is not None:
        state = replace(state, law=trainer.finished())
    centre, factor = held.result()
    proposal = Proposal(centre, factor, state.law, step.gaussian.inflated(2.0))
    return Result(state, proposal, _settled(trace), trace)


class _MStep:
    """Statistics of the Gaussian, of sigma and of the fixed effects, moved by stochastic approximation."""

    def __init__(self, problem: Problem, state: State) -> None:
        self.problem, self.state, self.gaussian = problem, state, cast(GaussianLaw, state.law)
        self.origin = self.gaussian.mean
        self.mean = torch.zeros_like(self.origin)
        self.second = self.gaussian.covariance
        self.curvature: Tensor | None = None

    def move(self, chains: _Chains, gamma: float) -> State:
        """Return the state after one M-step with step gamma."""
        problem, state, law = self.problem, self.state, self.gaussian
        centred = (chains.phi - self.origin).flatten(0, 1)
        self.mean = self.mean + gamma * (centred.mean(0) - self.mean)
        self.second = self.second + gamma * (centred.mT @ centred / len(centred) - self.second)
        spread = self.second - self.mean[:, None] * self.mean
        self.gaussian = GaussianLaw.of_moments(
            self.origin + self.mean, spread, len(problem), law.structure, law.prior
        )
        weights = torch.full_like(chains.log_likelihood, 1 / chains.phi.shape[1])
        new = problem.residual.update(chains.particles.summary, weights, state.sigma).square()
        sigma = (state.sigma.square() + gamma * (new - state.sigma.square())).sqrt()
        beta = state.beta
        if problem.common:
            expectation = Expectation(weights, weights[:, 0])
            left, right = fixed_effects_system(problem, state, chains.particles, expectation, problem.common)
            held = left if self.curvature is None else self.curvature
            self.curvature = held + gamma * (left - held)
            beta = beta + gamma * torch.linalg.solve(self.curvature, right)
        self.state = State(self.gaussian, beta, sigma)
        return self.state


class _Moments:
    """Running conditional means and covariances of each individual."""

    def __init__(self, phi: Tensor) -> None:
        self.origin = phi.mean(1)
        self.count = 0
        self.sum = torch.zeros_like(self.origin)
        self.square = phi.new_zeros(len(phi), phi.shape[-1], phi.shape[-1])

    def add(self, phi: Tensor) -> None:
        """Count the draws (N, C, d) of one iteration."""
        centred = phi - self.origin[:, None]
        self.sum += centred.sum(1)
        self.square += centred.mT @ centred
        self.count += phi.shape[1]

    def result(self) -> tuple[Tensor, Tensor]:
        """Return means (N, d) and lower factors of the covariances (N, d, d)."""
        mean = self.sum / self.count
        covariance = self.square / self.count - mean[:, :, None] * mean[:, None, :]
        return self.origin + mean, safe_cholesky(covariance)


def _row(problem: Problem, state: State, k: int, gamma: float, accepted: float) -> dict[str, Any]:
    law = cast(GaussianLaw, state.law)
    row: dict[str, Any] = {"iteration": k + 1, "step": gamma, "acceptance": accepted}
    row |= {f"mean {name}": float(v) for name, v in zip(problem.random, law.mean, strict=True)}
    row |= {f"sd {name}": float(v) for name, v in zip(problem.random, law.sd, strict=True)}
    row |= {name: float(v) for name, v in zip(problem.fixed, state.beta, strict=True)}
    return row | {name: float(v) for name, v in zip(problem.residual.names, state.sigma, strict=True)}


def _settled(trace: list[dict[str, Any]]) -> bool:
    """Whether no mean moved by a twentieth of its population sd over the last fifth of the iterations.

    Fewer than `SHORTEST` iterations say nothing.
    """
    if len(trace) < SHORTEST:
        return False
    last, before = trace[-1], trace[-1 - len(trace) // 5]
    names = [key.removeprefix("mean ") for key in last if key.startswith("mean ")]
    return all(abs(last[f"mean {n}"] - before[f"mean {n}"]) < 0.05 * last[f"sd {n}"] for n in names)
