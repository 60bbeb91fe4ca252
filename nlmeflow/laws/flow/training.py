"""Training of flows that do not overfit: folds, early stopping, noise, averages.

With individuals in the hundreds a flow trained to convergence is worse than a Gaussian: its
likelihood rises while the law gets worse. Each flow here sees all folds but one; training
ends where the held-out individuals' marginal log-likelihood, summed over the folds, was highest,
and the flows of all folds are averaged. Noise of width `noise * N^(-1/(d+4))` on standardised draws
keeps a flow from standing on single particles; scales are bounded in the flow itself. The folds of
one network are one batched computation, in single precision: the noise is far larger than its
rounding.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from nlmeflow.laws.affine import lower_inverse
from nlmeflow.laws.draws import Folds, PosteriorDraws
from nlmeflow.laws.flow.law import FlowLaw
from nlmeflow.laws.flow.network import Network, Transport
from nlmeflow.laws.gaussian import GaussianLaw
from nlmeflow.laws.law import Law
from nlmeflow.laws.mixture import MixtureLaw
from nlmeflow.numerics import LOG_2PI, LOST, log_mean
from nlmeflow.seeds import derive, generator

DRAWS = 6  # of each individual in one step
LOOK_DRAWS = 32  # of each held-out individual
BATCH = 256  # individuals in one step
CHECK = 15  # steps between looks at the held-out individuals
PATIENCE = 6  # looks without a gain before training ends
CLIP = 5.0  # length of the gradient of all flows together, at most, for each of them
NOISE = 0.3  # standard deviation of the noise on standardised draws, times N^(-1/(d+4))


@dataclass(frozen=True)
class Settings:
    """How flows are trained: noise on the draws, steps at most, learning rate of Adam."""

    noise: float
    steps: int
    rate: float


@dataclass(frozen=True)
class Trained:
    """Flows, one for each fold, held-out score of each individual (N,), steps of training."""

    laws: tuple[FlowLaw, ...]
    scores: Tensor
    steps: int


class Ascent:
    """Adam on the parameters of flows that share nothing: the one optimiser of every flow."""

    def __init__(self, parameters: Sequence[Tensor], rate: float, flows: int = 1) -> None:
        self.parameters, self.rate, self.flows = parameters, rate, flows
        self.optimiser = torch.optim.Adam(parameters, lr=rate)

    def step(self, loss: Callable[[], Tensor], share: float = 1.0) -> None:
        """Take one step down a loss, at a share of the learning rate."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * share
        self.optimiser.zero_grad()
        with torch.enable_grad():
            loss().backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, CLIP * self.flows)
        self.optimiser.step()


def noise_width(noise: float, n: int, dim: int) -> float:
    """Return the width of the noise on standardised draws of n individuals."""
    return float(noise * n ** (-1 / (dim + 4)))


State = TypeVar("State", covariant=True)


class Trainee(Protocol[State]):
    """Flows of all folds as they are trained."""

    def loss(self, random: torch.Generator) -> Tensor:
        """Return the loss of a batch."""

    def held_out(self) -> Tensor:
        """Return the score of each individual (N,) under the flow that does not see it."""

    def state(self) -> State:
        """Return a copy of all weights."""


def until_best(
    flows: Trainee[State], ascent: Ascent, steps: int, folds: Folds, seed: int
) -> tuple[State, Tensor, int]:
    """Train until the held-out individuals are predicted no better; return the best weights.

    One step for all folds: a fold alone has too few individuals to choose by. Also returned: each
    individual's score at the look that the other folds chose (N,), and the steps taken.
    """
    random = generator(seed)
    looks: list[Tensor] = []
    states: list[State] = []
    for step in range(steps + 1):
        if step % CHECK == 0:
            with torch.no_grad():
                looks.append(flows.held_out().nan_to_num(LOST, LOST, LOST))
            states.append(flows.state())
            best = _best_look(torch.stack(looks))
            if len(looks) - 1 - best == PATIENCE or step + CHECK > steps:
                break
        ascent.step(lambda: flows.loss(random))
    table = torch.stack(looks)
    scores = torch.zeros_like(looks[0])
    for inside, outside in folds.parts():
        scores[outside] = table[_best_look(table[:, inside]), outside]
    return states[best], scores, best * CHECK


def _best_look(looks: Tensor) -> int:
    """Return the look whose scores of individuals, looks (T, N), have the highest sum."""
    return int(looks.sum(1).argmax())


@dataclass(frozen=True)
class Course:
    """What the flows of one network have in common: their draws, and the Gaussian that standardises."""

    network: Network
    settings: Settings
    draws: PosteriorDraws
    gaussian: GaussianLaw

    def train(self, bases: Sequence[Law], folds: Folds, seed: int) -> Trained:
        """Train a flow without each fold, all at once, from bases fitted again without it."""
        share = torch.stack([folds.of != k for k in range(len(bases))]).double()
        flows = _Members(self, bases, share, seed)
        flows.hold_out(folds)
        ascent, steps = flows.ascent(), self.settings.steps
        best, scores, taken = until_best(flows, ascent, steps, folds, derive(seed, len(bases)))
        return Trained(flows.laws(best), scores, taken)

    def retrain(self, bases: Sequence[Law], share: Tensor, steps: int, seed: int) -> tuple[FlowLaw, ...]:
        """Train a flow for each row of individual weights (R, N), all at once, for so many steps."""
        flows = _Members(self, bases, share, seed)
        ascent, random = flows.ascent(), generator(derive(seed, len(bases)))
        for _ in range(steps):
            ascent.step(lambda: flows.loss(random))
        return flows.laws(flows.weights)


class _Members:
    """Flows of one network as one batch: stacked weights, and share (K, N), what each flow is shown."""

    def __init__(self, course: Course, bases: Sequence[Law], share: Tensor, seed: int) -> None:
        network, draws, gaussian = course.network, course.draws, course.gaussian
        self.starts = [FlowLaw.start(network, gaussian, b, derive(seed, k)) for k, b in enumerate(bases)]
        first = self.starts[0]
        self.rate = course.settings.rate
        self.z = first.standardise(draws.phi).float()
        self.log_reference = (draws.log_reference + gaussian.normal.log_volume).float()
        self.noise = noise_width(course.settings.noise, len(draws), draws.dim)
        weights, _ = stack_module_state([start.transport for start in self.starts])
        self.weights = {n: w.detach().float().requires_grad_(True) for n, w in weights.items()}
        self.module = copy.deepcopy(first.transport).float()
        self.base = _StackedBase([start.base for start in self.starts])
        self.share = share.float()
        self.shown = [torch.nonzero(row > 0)[:, 0] for row in share]
        self.batch = min(BATCH, *(len(shown) for shown in self.shown))

    def ascent(self) -> Ascent:
        """Return the optimiser of all weights."""
        return Ascent(list(self.weights.values()), self.rate, len(self.starts))

    def hold_out(self, folds: Folds) -> None:
        """Set which individuals judge each flow; folds of fewer are filled up, and what fills them masked."""
        held = [outside for _, outside in folds.parts()]
        width = max(len(h) for h in held)
        self.mask = torch.stack([torch.arange(width) < len(h) for h in held])
        self.held = torch.stack([torch.cat([h, h[:1].expand(width - len(h))]) for h in held])

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log-densities of z (K, n, d) under the K flows: (K, n)."""
        u, change = vmap(lambda w, x: functional_call(self.module, w, (x,)))(self.weights, z)
        log_density: Tensor = self.base.log_prob(u) + change
        return log_density

    def loss(self, random: torch.Generator) -> Tensor:
        """Return the sum over flows of minus the mean log marginal density of a batch.

        Of each individual the log of the mean over a few draws, moved by noise, of density over reference.
        """
        index = torch.stack([_pick(shown, self.batch, random) for shown in self.shown])
        draw = torch.randint(self.z.shape[1], (*index.shape, DRAWS), generator=random)
        z = self.z[index[..., None], draw]
        z = z + self.noise * torch.randn(z.shape, generator=random, dtype=z.dtype)
        log_ratio = self.log_prob(z.flatten(1, 2)).reshape(draw.shape)
        value = log_mean(log_ratio - self.log_reference[index[..., None], draw])
        weight = self.share.gather(1, index)
        return -((weight * value).sum(-1) / weight.sum(-1)).sum()

    def held_out(self) -> Tensor:
        z = self.z[self.held, :LOOK_DRAWS]
        log_ratio = self.log_prob(z.flatten(1, 2)).reshape(z.shape[:-1])
        found = log_mean((log_ratio - self.log_reference[self.held, :LOOK_DRAWS]).double())
        scores = torch.zeros(len(self.z), dtype=torch.float64)
        scores[self.held[self.mask]] = found[self.mask]
        return scores

    def state(self) -> dict[str, Tensor]:
        return {name: weight.detach().clone() for name, weight in self.weights.items()}

    def laws(self, state: dict[str, Tensor]) -> tuple[FlowLaw, ...]:
        """Return the flows with these stacked weights."""
        laws = []
        for k, start in enumerate(self.starts):
            transport: Transport = copy.deepcopy(start.transport)
            weights = {name: w[k].detach().double() for name, w in state.items()}
            transport.load_state_dict(transport.state_dict() | weights)
            laws.append(FlowLaw(start.gaussian, transport, start.base, start.network).frozen())
        return tuple(laws)


class GradientFlow:
    """One flow that starts at a Gaussian and climbs the log-density of fresh draws, step by step."""

    def __init__(self, network: Network, settings: Settings, gaussian: GaussianLaw, seed: int) -> None:
        self.law, self.noise = FlowLaw.start(network, gaussian, None, seed), settings.noise
        self.law.transport.requires_grad_(True)
        self.ascent = Ascent(list(self.law.transport.parameters()), settings.rate)
        self.random = generator(derive(seed, 1))

    def move(self, phi: Tensor, share: float) -> FlowLaw:
        """Return the flow after one step, at a share of the learning rate, on draws (N, C, d) with noise."""
        z = self.law.standardise(phi.flatten(0, 1))
        width = noise_width(self.noise, len(phi), self.law.dim)
        z = z + width * torch.randn(z.shape, generator=self.random, dtype=z.dtype)
        moved = self.law.gaussian.normal(z)
        self.ascent.step(lambda: -self.law.log_prob(moved).mean(), share)
        return self.law

    def finished(self) -> FlowLaw:
        """Return the flow, its weights frozen."""
        return self.law.frozen()


class _StackedBase:
    """The base laws of all flows as one batch of Gaussian mixtures."""

    def __init__(self, bases: Sequence[GaussianLaw | MixtureLaw]) -> None:
        mixtures = [MixtureLaw.of_one(base) for base in bases]
        most = max(mixture.n_components for mixture in mixtures)
        mixtures = [mixture.padded(most) for mixture in mixtures]
        self.log_weights = torch.stack([m.weights.log() for m in mixtures]).clamp_min(-1e30).float()
        self.means = torch.stack([m.means for m in mixtures]).float()
        self.inverse = lower_inverse(torch.stack([m.factors for m in mixtures]).float())
        self.constant = self.inverse.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        self.constant = self.constant - 0.5 * LOG_2PI * mixtures[0].dim

    def log_prob(self, u: Tensor) -> Tensor:
        """Return log-densities of u (K, n, d): (K, n)."""
        z = (u[:, None] - self.means[:, :, None]) @ self.inverse.mT
        joint = -0.5 * z.square().sum(-1) + (self.constant + self.log_weights)[..., None]
        return joint.logsumexp(1)


def _pick(shown: Tensor, size: int, random: torch.Generator) -> Tensor:
    """Return `size` of those shown at random, all of them in order when there are no more."""
    if len(shown) == size:
        return shown
    return shown[torch.randperm(len(shown), generator=random)[:size]]
