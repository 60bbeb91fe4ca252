"""MCMC-SAEM: stochastic approximation of EM with Metropolis-Hastings draws of the individual parameters.

At iteration k the draws phi_i make a few Markov steps towards p(phi | y_i; theta_k), and the sufficient
statistics move by S_k = S_(k-1) + gamma_k (S(phi) - S_(k-1)), gamma_k = 1 first, then (k - K)^-0.65.
Delyon, Lavielle, Moulines, Annals of Statistics 1999; with MCMC Kuhn and Lavielle, ESAIM P&S 2004; in
nonlinear mixed-effects models Kuhn and Lavielle, Computational Statistics and Data Analysis 2005.
Several chains serve each individual; their draws are averaged in the statistics, never before.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from nlmeflow.errors import ModelError, check_whole
from nlmeflow.estimation.em import Result, State, evaluate, fixed_effects_system
from nlmeflow.estimation.estimators import Task, estimate
from nlmeflow.estimation.laplace import first_gaussian, modes
from nlmeflow.estimation.learning import Lesson, learn
from nlmeflow.estimation.particles import Expectation, Particles, Proposal, draw
from nlmeflow.estimation.problem import Problem
from nlmeflow.estimation.start import pooled_start
from nlmeflow.laws.flow import Flow, FlowLaw
from nlmeflow.laws.gaussian import Gaussian, GaussianLaw
from nlmeflow.laws.law import Law, normal_log_prob, safe_cholesky
from nlmeflow.seeds import derive, generator

EXPONENT = 0.65
LEAST_DRAWS, LEAST_CHAINS = 600, 5  # fewer draws drift to a singular covariance while the step is 1
TARGET = 0.3  # acceptance of random walks
REFRESH = 50  # iterations between Laplace steps before the steps fall
NOISE = 0.3  # times N^(-1/(d+4)): width of the noise on standardised draws that train a flow


@dataclass(frozen=True)
class SAEM:
    """Specification: a law fitted by MCMC-SAEM instead of the engine's importance-weighted EM.

    law : nf.Gaussian(), or one flow on the Gaussian, nf.Flow(kind="spline", base="gaussian"), whose M-step
        is a step of stochastic gradient (Adam); no folds, no early stopping.
    burn_in : iterations with step 1; iterations : after them, with step k^-0.65.
    chains : for each individual; when None at least 5, and as many as give 600 draws in all. With few draws
        the covariance drifts to a singular one while the step is 1, and cannot come back.
    """

    law: Gaussian | Flow = field(default_factory=Gaussian)
    burn_in: int = 300
    iterations: int = 300
    chains: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.law, Gaussian | Flow):
            raise ModelError(
                f"law is nf.Gaussian(...) or one nf.Flow(kind=, base='gaussian'), got {self.law!r}."
            )
        if isinstance(self.law, Flow) and (
            self.law.base != "gaussian" or len(self.law.networks("gaussian")) > 1
        ):
            raise ModelError("SAEM trains one flow: name it, nf.Flow(kind='spline', base='gaussian').")
        check_whole("burn_in", self.burn_in, 1)
        check_whole("iterations", self.iterations, 1)
        if self.chains is not None:
            check_whole("chains", self.chains, 1)

    @property
    def name(self) -> str:
        """The key of this law in tables."""
        return "saem" if isinstance(self.law, Gaussian) else "saem flow"


@learn.register
def _(law: SAEM, lesson: Lesson) -> Law:
    """Learn the law that SAEM fits, on the cloud: for held-out scores."""
    return learn(law.law, lesson)


@estimate.register
def _(law: SAEM, task: Task) -> Result:
    return task.kept.once(law, lambda: _saem(law, task))


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
        assert isinstance(state.law, GaussianLaw)
        start = self.phi.mean(1)
        laplace = modes(self.problem, state.law, state.beta, state.sigma, start, steps=5)
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
        summary = tuple(
            torch.where(taken.reshape(*taken.shape, *[1] * (new.ndim - 2)), new, old)
            for new, old in zip(particles.summary, self.particles.summary, strict=True)
        )
        self.particles = Particles(self.phi, self.particles.log_proposal, summary)
        return taken.to(phi.dtype)


def _predicted(problem: Problem, phi: Tensor, beta: Tensor) -> Particles:
    return Particles(phi, torch.zeros_like(phi[..., 0]), problem.summary(phi, beta))


def _saem(law: SAEM, task: Task) -> Result:
    problem, random = task.problem, generator(derive(task.seed, 21))
    if problem.effects:
        raise ModelError("nf.SAEM takes no covariate effects; the engine does: law=nf.Gaussian().")
    first = task.kept.once("first values", lambda: pooled_start(problem, task.start, derive(task.seed, 0)))
    gaussian = law.law if isinstance(law.law, Gaussian) else Gaussian(prior=law.law.prior)
    state = State(*first_gaussian(problem, first, gaussian))
    count = law.chains or max(LEAST_CHAINS, math.ceil(LEAST_DRAWS / len(problem)))
    chains = _Chains.start(problem, state, count, random)
    step = _MStep(problem, state)
    trainer: _Trainer | None = None
    held = _Moments(chains.phi)
    trace: list[dict[str, Any]] = []
    for k in range(law.burn_in + law.iterations):
        late = k - law.burn_in
        gamma = 1.0 if late < 0 else (late + 1) ** -EXPONENT
        if (late < 0 and k % REFRESH == REFRESH - 1) or late == 0:
            chains.look(step.state)
        chains.sweep(state)
        state = step.move(chains, gamma)
        if isinstance(law.law, Flow) and late >= 0:
            trainer = _Trainer(law.law, step.state, derive(task.seed, 22)) if trainer is None else trainer
            state = replace(state, law=trainer.move(chains.phi, gamma))
        chains.follow(state)
        if late >= 0:
            held.add(chains.phi)
        trace.append(_row(problem, step.state, k, gamma, chains.accepted))
        task.report(f"saem {k + 1}")
    if trainer is not None:
        state = replace(state, law=trainer.law.frozen())
    centre, factor = held.result()
    proposal = Proposal(centre, factor, state.law, step.gaussian.inflated(2.0))
    particles = draw(problem, proposal, state.beta, task.particles, random)
    return Result(state, particles, evaluate(problem, state, particles), proposal, _settled(trace), trace)


class _MStep:
    """Statistics of the Gaussian, of sigma and of the fixed effects, moved by stochastic approximation."""

    def __init__(self, problem: Problem, state: State) -> None:
        assert isinstance(state.law, GaussianLaw)
        self.problem, self.state, self.gaussian = problem, state, state.law
        self.origin = state.law.mean
        self.mean = torch.zeros_like(state.law.mean)
        self.second = state.law.covariance
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


class _Trainer:
    """A flow that starts at the Gaussian and climbs the log-density of the draws by Adam."""

    def __init__(self, flow: Flow, state: State, seed: int) -> None:
        assert isinstance(state.law, GaussianLaw)
        network = flow.networks("gaussian")[0]
        self.law = FlowLaw.start(network, state.law, None, seed)
        self.law.transport.requires_grad_(True)
        self.rate = flow.learning_rate(network)
        self.optimiser = torch.optim.Adam(self.law.transport.parameters(), lr=self.rate)
        self.random = generator(derive(seed, 1))

    def move(self, phi: Tensor, gamma: float) -> FlowLaw:
        """Return the flow after one step on draws (N, C, d) with noise; the rate falls with gamma."""
        z = self.law.standardise(phi.flatten(0, 1))
        width = NOISE * len(phi) ** (-1 / (self.law.dim + 4))
        z = z + width * torch.randn(z.shape, generator=self.random, dtype=z.dtype)
        moved = self.law.gaussian.mean + z @ self.law.gaussian.factor.mT
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * max(gamma, 0.05)
        with torch.enable_grad():
            self.optimiser.zero_grad()
            (-self.law.log_prob(moved).mean()).backward()
            self.optimiser.step()
        return self.law


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
    law = state.law
    assert isinstance(law, GaussianLaw)
    row: dict[str, Any] = {"iteration": k + 1, "step": gamma, "acceptance": accepted}
    row |= {f"mean {name}": float(v) for name, v in zip(problem.random, law.mean, strict=True)}
    row |= {f"sd {name}": float(v) for name, v in zip(problem.random, law.sd, strict=True)}
    row |= {name: float(v) for name, v in zip(problem.fixed, state.beta, strict=True)}
    return row | {name: float(v) for name, v in zip(problem.residual.names, state.sigma, strict=True)}


def _settled(trace: list[dict[str, Any]]) -> bool:
    """Whether no mean moved by a twentieth of its population sd over the last fifth of the iterations."""
    last, before = trace[-1], trace[-1 - len(trace) // 5]
    names = [key.removeprefix("mean ") for key in last if key.startswith("mean ")]
    return all(abs(last[f"mean {n}"] - before[f"mean {n}"]) < 0.05 * last[f"sd {n}"] for n in names)
