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
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from nlmeflow.estimation.cloud import Cloud
from nlmeflow.estimation.learning import rows
from nlmeflow.laws.flow import Flow, FlowLaw, Network, Transport
from nlmeflow.laws.gaussian import GaussianLaw
from nlmeflow.laws.law import Law
from nlmeflow.laws.mixture import MixtureLaw
from nlmeflow.seeds import derive, generator

DRAWS = 6  # of each individual in one step
LOOK_DRAWS = 32  # of each held-out individual
BATCH = 256  # individuals in one step
CHECK = 15  # steps between looks at the held-out individuals
PATIENCE = 6  # looks without a gain before training ends


@dataclass(frozen=True)
class Trained:
    """Flows, one for each fold, held-out score of each individual (N,), steps of training."""

    laws: tuple[FlowLaw, ...]
    scores: Tensor
    steps: int


@torch.enable_grad()
def train(
    network: Network,
    flow: Flow,
    cloud: Cloud,
    gaussian: GaussianLaw,
    bases: Sequence[Law],
    fold: Tensor,
    seed: int,
) -> Trained:
    """Train one network on all folds at once, from bases refitted without each fold."""
    starts = [FlowLaw.start(network, gaussian, base, derive(seed, k)) for k, base in enumerate(bases)]
    inside = torch.stack([fold != k for k in range(len(starts))])
    members = _Members(starts, cloud, inside.double(), flow.noise)
    judge = _Judge(members, fold)
    climb = _Ascent(members, flow.learning_rate(network), derive(seed, len(starts)))
    for step in range(flow.steps + 1):
        if step % CHECK == 0:
            judge.look()
            if judge.since_best() == PATIENCE or step + CHECK > flow.steps:
                break
        climb.step()
    best = judge.best_look()
    return Trained(members.laws(judge.states[best]), judge.held_out_scores(), best * CHECK)


@torch.enable_grad()
def retrain(
    network: Network,
    flow: Flow,
    cloud: Cloud,
    gaussian: GaussianLaw,
    bases: Sequence[Law],
    share: Tensor,
    steps: int,
    seed: int,
) -> tuple[FlowLaw, ...]:
    """Train one network for each row of individual weights (R, N), all at once, for so many steps."""
    starts = [FlowLaw.start(network, gaussian, base, derive(seed, k)) for k, base in enumerate(bases)]
    members = _Members(starts, cloud, share, flow.noise)
    climb = _Ascent(members, flow.learning_rate(network), derive(seed, len(starts)))
    for _ in range(steps):
        climb.step()
    return members.laws(members.weights)


class _Ascent:
    """Adam on the likelihood of all flows of a batch; they share nothing."""

    def __init__(self, members: "_Members", rate: float, seed: int) -> None:
        self.members = members
        self.random = generator(seed)
        self.parameters = list(members.weights.values())
        self.optimiser = torch.optim.Adam(self.parameters, lr=rate)

    def step(self) -> None:
        """Take one step."""
        self.optimiser.zero_grad()
        self.members.loss(self.random).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 5.0 * len(self.members.starts))
        self.optimiser.step()


class _Members:
    """Flows of one network as one batch: stacked weights, and share (K, N), what each flow is shown."""

    def __init__(self, starts: list[FlowLaw], cloud: Cloud, share: Tensor, noise: float) -> None:
        self.starts = starts
        first = starts[0]
        self.z = first.standardise(cloud.phi).float()
        log_scale = first.gaussian.factor.diagonal().log().sum()
        self.log_reference = (cloud.log_reference + log_scale).float()
        self.noise = noise * len(cloud) ** (-1 / (cloud.dim + 4))
        weights, _ = stack_module_state([start.transport for start in starts])
        self.weights = {n: w.detach().float().requires_grad_(True) for n, w in weights.items()}
        self.module = copy.deepcopy(first.transport).float()
        self.base = _StackedBase([start.base for start in starts])
        self.share = share.float()
        self.shown = [torch.nonzero(row > 0)[:, 0] for row in share]
        self.batch = min(BATCH, *(len(shown) for shown in self.shown))

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log-densities of z (K, n, d) under the K flows: (K, n)."""
        u, change = vmap(lambda w, x: functional_call(self.module, w, (x,)))(self.weights, z)
        return self.base.log_prob(u) + change

    def loss(self, random: torch.Generator) -> Tensor:
        """Return the sum over flows of minus the mean log marginal density of a batch."""
        index = torch.stack([_pick(shown, self.batch, random) for shown in self.shown])
        draw = torch.randint(self.z.shape[1], (*index.shape, DRAWS), generator=random)
        z = self.z[index[..., None], draw]
        z = z + self.noise * torch.randn(z.shape, generator=random, dtype=z.dtype)
        log_ratio = self.log_prob(z.flatten(1, 2)).reshape(draw.shape)
        log_ratio = log_ratio - self.log_reference[index[..., None], draw]
        value = log_ratio.logsumexp(-1) - math.log(DRAWS)
        weight = self.share.gather(1, index)
        return -((weight * value).sum(-1) / weight.sum(-1)).sum()

    def laws(self, state: dict[str, Tensor]) -> tuple[FlowLaw, ...]:
        """Return the flows with these stacked weights."""
        laws = []
        for k, start in enumerate(self.starts):
            transport: Transport = copy.deepcopy(start.transport)
            weights = {name: w[k].detach().double() for name, w in state.items()}
            transport.load_state_dict(transport.state_dict() | weights)
            laws.append(FlowLaw(start.gaussian, transport, start.base, start.network).frozen())
        return tuple(laws)


class _Judge:
    """What the held-out individuals say of the flows of all folds, look after look."""

    def __init__(self, members: _Members, fold: Tensor) -> None:
        self.members = members
        self.fold = fold
        held = [torch.nonzero(fold == k)[:, 0] for k in range(len(members.starts))]
        width = max(len(h) for h in held)
        self.mask = torch.stack([torch.arange(width) < len(h) for h in held])
        self.held = torch.stack([torch.cat([h, h[:1].expand(width - len(h))]) for h in held])
        self.looks: list[Tensor] = []
        self.states: list[dict[str, Tensor]] = []

    def look(self) -> None:
        """Score the held-out individuals (N,) and keep the weights."""
        with torch.no_grad():
            z = self.members.z[self.held, :LOOK_DRAWS]
            log_ratio = self.members.log_prob(z.flatten(1, 2)).reshape(z.shape[:-1])
            log_ratio = (log_ratio - self.members.log_reference[self.held, :LOOK_DRAWS]).double()
            found = log_ratio.logsumexp(-1) - math.log(z.shape[2])
        scores = torch.zeros(len(self.fold), dtype=torch.float64)
        scores[self.held[self.mask]] = found[self.mask].nan_to_num(-1e6)
        self.looks.append(scores)
        self.states.append({name: weight.detach().clone() for name, weight in self.members.weights.items()})

    def best_look(self) -> int:
        """Return the look at which the held-out individuals were predicted best, all folds in one.

        One step for all folds: a fold alone has too few individuals to choose by.
        """
        return best_look(torch.stack(self.looks))

    def since_best(self) -> int:
        """Return the number of looks since the best one."""
        return len(self.looks) - 1 - self.best_look()

    def held_out_scores(self) -> Tensor:
        """Return each individual's score at the look that the other folds chose."""
        return cross_chosen(torch.stack(self.looks), self.fold)


def best_look(looks: Tensor) -> int:
    """Return the look whose scores of individuals, looks (T, N), have the highest sum."""
    return int(looks.sum(1).argmax())


def cross_chosen(looks: Tensor, fold: Tensor) -> Tensor:
    """Return each individual's score (N,) at the look that the other folds chose, from looks (T, N)."""
    scores = torch.zeros_like(looks[0])
    for inside, outside in rows(fold):
        scores[outside] = looks[best_look(looks[:, inside]), outside]
    return scores


class _StackedBase:
    """The base laws of all flows as one batch of Gaussian mixtures."""

    def __init__(self, bases: Sequence[GaussianLaw | MixtureLaw]) -> None:
        mixtures = [_as_mixture(base) for base in bases]
        most = max(mixture.n_components for mixture in mixtures)
        mixtures = [mixture.padded(most) for mixture in mixtures]
        self.log_weights = torch.stack([m.weights.log() for m in mixtures]).clamp_min(-1e30).float()
        self.means = torch.stack([m.means for m in mixtures]).float()
        identity = torch.eye(mixtures[0].dim, dtype=self.means.dtype)
        factors = torch.stack([m.factors for m in mixtures]).float()
        self.inverse = torch.linalg.solve_triangular(factors, identity.expand_as(factors), upper=False)
        self.constant = self.inverse.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        self.constant = self.constant - 0.9189385332046727 * mixtures[0].dim

    def log_prob(self, u: Tensor) -> Tensor:
        """Return log-densities of u (K, n, d): (K, n)."""
        z = (u[:, None] - self.means[:, :, None]) @ self.inverse.mT
        joint = -0.5 * z.square().sum(-1) + (self.constant + self.log_weights)[..., None]
        return joint.logsumexp(1)


def _as_mixture(law: GaussianLaw | MixtureLaw) -> MixtureLaw:
    if isinstance(law, MixtureLaw):
        return law
    return MixtureLaw(law.mean.new_ones(1), law.mean[None], law.factor[None], law.factor)


def _pick(shown: Tensor, size: int, random: torch.Generator) -> Tensor:
    """Return `size` of those shown at random, all of them in order when there are no more."""
    if len(shown) == size:
        return shown
    return shown[torch.randperm(len(shown), generator=random)[:size]]
