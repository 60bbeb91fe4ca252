"""A flow that depends on covariates: p(phi | x), location, shape and shares of modes.

    z = L^-1 (phi - m - S x),   u = T(z; x),   u ~ sum_c softmax(log w + B x)_c N(m_c, L_c L_c')

T is an autoregressive spline whose network also sees x (at the identity when made), S the shift of a Gaussian
with covariates, B how the shares of the base's components depend on x: a continuous map cannot move
mass from one mode to another.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nlmeflow.laws.draws import Folds, PosteriorDraws, TrainingSet, expectation
from nlmeflow.laws.em import climb
from nlmeflow.laws.flow.ensemble import Flow
from nlmeflow.laws.flow.law import standardised
from nlmeflow.laws.flow.network import RATES, first_weights, spline_layer
from nlmeflow.laws.flow.training import DRAWS, Ascent, noise_width, until_best
from nlmeflow.laws.gaussian import GaussianLaw, population
from nlmeflow.laws.law import Law
from nlmeflow.laws.mixture import Mixture, MixtureLaw, redrawn
from nlmeflow.numerics import log_mean, moments
from nlmeflow.records import Saved
from nlmeflow.seeds import Seed, Stream, derive, generator

SHIFT_STEPS, SHIFT_TOLERANCE = 400, 1e-9  # of EM, nats of log-likelihood


class ConditionalNetwork(nn.Module):
    """What is trained: the spline T, whose network sees x, and the tilt B (C, q) of the base's shares."""

    def __init__(
        self, dim: int, covariates: int, components: int, hidden: tuple[int, ...], random: torch.Generator
    ) -> None:
        super().__init__()
        with first_weights(random):
            self.layer = spline_layer(dim, hidden, context=covariates).double()
        self.tilt = nn.Parameter(torch.zeros(components, covariates, dtype=torch.float64))


@dataclass(frozen=True, eq=False)
class ConditionalFlow(Saved):
    """The map and the shares: phi (n, d) and x (n, q) to log p(phi | x) (n,).

    gaussian : frame (m, L); shift : S (d, q); base : of u, a Gaussian mixture (one component for a Gaussian);
    hidden : widths of the layers of the network.
    """

    gaussian: GaussianLaw
    shift: Tensor
    base: MixtureLaw
    hidden: tuple[int, ...]
    network: ConditionalNetwork

    @classmethod
    def start(
        cls, gaussian: GaussianLaw, shift: Tensor, base: MixtureLaw, hidden: tuple[int, ...], seed: Seed
    ) -> "ConditionalFlow":
        """Return the flow at the identity, its shares the same for every x."""
        sizes = gaussian.dim, shift.shape[1], base.n_components
        network = ConditionalNetwork(*sizes, hidden, generator(seed)).requires_grad_(False)
        return cls(gaussian, shift, base, hidden, network)

    @classmethod
    def restored(cls, **values: Any) -> "ConditionalFlow":
        """Return the flow whose network comes as its weights by name."""
        weights = values.pop("network")
        flow = cls.start(**values, seed=0)
        flow.network.load_state_dict(flow.network.state_dict() | weights)
        return flow

    def log_shares(self, x: Tensor) -> Tensor:
        """Return log shares of the base's components, (n, C)."""
        return (self.base.weights.log() + x @ self.network.tilt.mT).log_softmax(-1)

    def log_prob(self, phi: Tensor, x: Tensor) -> Tensor:
        """Return log p(phi | x) of rows phi (n, d) with covariates x (n, q): (n,)."""
        z = self.gaussian.normal.standardise(phi - x @ self.shift.mT)
        u, change = self.network.layer(x).call_and_ladj(z)
        joint = self.base.log_joint(u).mT - self.base.weights.log() + self.log_shares(x)
        log_density: Tensor = joint.logsumexp(-1) + change - self.gaussian.normal.log_volume
        return log_density

    def sample(self, x: Tensor, seed: Seed) -> Tensor:
        """Draw one phi for each row of x (n, q): (n, d)."""
        random = generator(seed)
        which = torch.multinomial(self.log_shares(x).exp(), 1, generator=random)[:, 0]
        noise = torch.randn(len(x), self.gaussian.dim, generator=random, dtype=x.dtype)
        u = self.base.means[which] + (self.base.factors[which] @ noise[..., None]).squeeze(-1)
        z = self.network.layer(x).inv(u)
        return self.gaussian.normal(z) + x @ self.shift.mT


@dataclass(frozen=True, eq=False)
class GivenLaw(Law):
    """The law of individuals whose covariates are x (q,): a conditional flow at one place."""

    counted: ClassVar[bool] = False
    flow: ConditionalFlow
    x: Tensor

    @property
    def dim(self) -> int:
        return self.flow.gaussian.dim

    @property
    def n_parameters(self) -> int:
        """Return the number of weights of the network and of the shares, and of parameters of the base."""
        return sum(p.numel() for p in self.flow.network.parameters()) + self.flow.base.n_parameters

    def log_prob(self, phi: Tensor) -> Tensor:
        """Return log p(phi | x): (..., d) -> (...)."""
        rows = self._rows(phi)
        if len(rows) == 0:
            return phi.sum(-1)  # torch.distributions cannot sum log-slopes of no points
        return self.flow.log_prob(rows, self.x.expand(len(rows), -1)).reshape(phi.shape[:-1])

    def sample(self, n: int, seed: Seed) -> Tensor:
        with torch.no_grad():
            return self.flow.sample(self.x.expand(n, -1), seed)


@dataclass(frozen=True, eq=False)
class ShiftedGaussian(Law):
    """N(m + S x_i, Omega) of individual i: `gaussian` (m, Omega), shift S (d, q), covariates x (N, q)."""

    gaussian: GaussianLaw
    shift: Tensor
    x: Tensor

    @property
    def dim(self) -> int:
        return self.gaussian.dim

    @property
    def n_parameters(self) -> int:
        return self.gaussian.n_parameters + self.shift.numel()

    def log_prob(self, phi: Tensor) -> Tensor:
        """Return the log-density of individual i at phi[i], from phi (N, M, d): (N, M)."""
        return self.gaussian.log_prob(phi - (self.x @ self.shift.mT)[:, None])

    def sample(self, n: int, seed: Seed) -> Tensor:
        """Draw (N, d), one for each individual."""
        return self.gaussian.sample(n, seed) + self.x @ self.shift.mT

    @property
    def log_prior(self) -> float:
        return self.gaussian.log_prior

    def update(self, phi: Tensor, weights: Tensor) -> "ShiftedGaussian":
        """Return the exact maximiser: a regression of the conditional means on x."""
        mean, covariance = moments(phi, weights)
        design = torch.cat([torch.ones_like(self.x[:, :1]), self.x], 1)
        solution = torch.linalg.lstsq(design, mean).solution
        left = mean - design @ solution
        spread = covariance.mean(0) + left.mT @ left / len(left)
        gaussian = GaussianLaw.of_moments(solution[0], spread, len(left), "full", self.gaussian.prior)
        return ShiftedGaussian(gaussian, solution[1:].mT, self.x)


@dataclass(frozen=True)
class Learned:
    """Flows, one for each fold, and the held-out score of each individual (N,)."""

    flows: tuple[ConditionalFlow, ...]
    scores: Tensor


def shift_only(training: TrainingSet, x: Tensor, folds: Folds) -> Learned:
    """Return Gaussians with a mean linear in x, one without each fold."""
    flows = []
    for k, (part, (inside, _)) in enumerate(zip(training.without(folds), folds.parts(), strict=True)):
        first = ShiftedGaussian(population(part.draws), x.new_zeros(part.draws.dim, x.shape[1]), x[inside])
        found, _ = climb(first, part.draws, SHIFT_STEPS, SHIFT_TOLERANCE)
        flows.append(_flow(found.gaussian, found.shift, None, training, k))
    return Learned(tuple(flows), _Trained(flows, training.draws, x, folds).held_out())


def on_shift(training: TrainingSet, x: Tensor, folds: Folds) -> Learned:
    """Train flows that start at the Gaussian with a mean linear in x."""
    return _trained(training, x, folds, shift_only(training, x, folds).flows)


def on_mixture(training: TrainingSet, x: Tensor, folds: Folds) -> Learned:
    """Train flows that start at the mixture fitted without each fold, whose shares then follow x."""
    draws, like = training.draws, Flow()
    gaussian, still = population(draws), x.new_zeros(draws.dim, x.shape[1])
    starts = []
    for k, (part, (inside, _)) in enumerate(
        zip(Mixture().learn_without(training, folds), folds.parts(), strict=True)
    ):
        base = redrawn(part, draws.subset(inside), like.stiffness, like.prior)
        starts.append(_flow(gaussian, still, base, training, k))
    return _trained(training, x, folds, starts)


def _flow(
    gaussian: GaussianLaw, shift: Tensor, base: Law | None, training: TrainingSet, k: int
) -> ConditionalFlow:
    """Return the flow of fold k at the identity."""
    start = MixtureLaw.of_one(standardised(base, gaussian))
    seed = derive(training.seed, Stream.CONDITIONAL_START, k)
    return ConditionalFlow.start(gaussian, shift, start, Flow().hidden, seed)


def _trained(training: TrainingSet, x: Tensor, folds: Folds, starts: Sequence[ConditionalFlow]) -> Learned:
    """Train one flow without each fold; stop where all held-out individuals are predicted best."""
    flows = [replace(start, network=copy.deepcopy(start.network).requires_grad_(True)) for start in starts]
    weights = [weight for flow in flows for weight in flow.network.parameters()]
    ascent = Ascent(weights, RATES["spline"], len(starts))
    seed = derive(training.seed, Stream.CONDITIONAL_FLOW)
    trained = _Trained(flows, training.draws, x, folds)
    best, scores, _ = until_best(trained, ascent, Flow().steps, folds, seed)
    for flow, state in zip(flows, best, strict=True):
        flow.network.load_state_dict(state)
        flow.network.requires_grad_(False)
    return Learned(tuple(flows), scores)


class _Trained:
    """Conditional flows of all folds as they are trained."""

    def __init__(
        self, flows: Sequence[ConditionalFlow], draws: PosteriorDraws, x: Tensor, folds: Folds
    ) -> None:
        self.flows, self.draws, self.x, self.parts = flows, draws, x, folds.parts()
        self.noise = noise_width(Flow().noise, len(draws), draws.dim)

    def _log_ratio(self, flow: ConditionalFlow, phi: Tensor, rows: Tensor) -> Tensor:
        """Return log p(phi_im | x_i) of individuals `rows` at phi (n, M, d): (n, M)."""
        x = self.x[rows, None].expand(*phi.shape[:2], -1).flatten(0, 1)
        return flow.log_prob(phi.flatten(0, 1), x).reshape(phi.shape[:2])

    def loss(self, random: torch.Generator) -> Tensor:
        """Return the sum over flows of minus the mean log marginal density of their individuals."""
        draws, total = self.draws, torch.zeros((), dtype=torch.float64)
        for flow, (inside, _) in zip(self.flows, self.parts, strict=True):
            index = inside[:, None], torch.randint(draws.phi.shape[1], (len(inside), DRAWS), generator=random)
            place = draws.phi[index]
            shake = torch.randn(place.shape, generator=random, dtype=place.dtype)
            place = place + self.noise * shake @ flow.gaussian.factor.mT
            ratio = self._log_ratio(flow, place, inside) - draws.log_reference[index]
            total = total - log_mean(ratio).mean()
        return total

    def held_out(self) -> Tensor:
        """Return the score of each individual (N,) under the flow that does not see it."""
        scores = self.x.new_zeros(len(self.draws))
        for flow, (_, outside) in zip(self.flows, self.parts, strict=True):
            log_law = self._log_ratio(flow, self.draws.phi[outside], outside)
            scores[outside] = expectation(-self.draws.log_reference[outside], log_law).log_likelihood
        return scores

    def state(self) -> list[dict[str, Any]]:
        """Return a copy of all weights."""
        return [copy.deepcopy(flow.network.state_dict()) for flow in self.flows]
