"""The normalizing flow: phi = mean + L T^-1(u), u from a base law, T learned.

log p(phi) = log p_base(T(z)) + log |det dT/dz| - log |det L|, z = L^-1 (phi - mean).

z is phi standardised by the Gaussian fit, and T starts at the identity, so that a flow starts at the
law of its base: the Gaussian fit or the mixture fit. The base matters: a continuous map cannot split
one mode into two without a bridge. RealNVP: Dinh, Sohl-Dickstein, Bengio, arXiv:1605.08803 (2016);
autoregressive: Papamakarios, Pavlakou, Murray (2017); splines: Durkan, Bekasov, Murray, Papamakarios
(2019). The transformations are zuko's.
"""

import copy
import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from zuko.flows.autoregressive import MaskedAutoregressiveTransform
from zuko.flows.coupling import GeneralCouplingTransform
from zuko.transforms import MonotonicAffineTransform, MonotonicRQSTransform

from nlmeflow.errors import ModelError, check_whole
from nlmeflow.laws.gaussian import GaussianLaw
from nlmeflow.laws.law import Law, check_phi
from nlmeflow.laws.mixture import MixtureLaw
from nlmeflow.laws.quadratic import Quadratic
from nlmeflow.laws.snp import SNP
from nlmeflow.laws.transformed import Transformed
from nlmeflow.seeds import Seed, generator, integer

Kind = Literal["realnvp", "autoregressive", "spline", "quadratic"]
Base = Literal["gaussian", "mixture"]
KINDS: tuple[Kind, ...] = ("realnvp", "autoregressive", "spline", "quadratic")
LAYERS: dict[Kind, int] = {"realnvp": 4, "autoregressive": 2, "spline": 1, "quadratic": 2}
RATES: dict[Kind, float] = {"realnvp": 0.01, "autoregressive": 0.01, "spline": 0.015, "quadratic": 0.06}
LOG_SCALE_BOUND = 2.0  # an affine layer scales by at most e^2
BINS = 8  # of a spline
BOX = 5.0  # outside, a spline is the identity


@dataclass(frozen=True)
class Network:
    """Specification of one transport map T.

    kind : "quadratic" (few parameters, see `nlmeflow.laws.quadratic`), "spline" (autoregressive,
        rational-quadratic), "autoregressive" (affine) or "realnvp" (affine coupling).
    layers : number of layers, alternating the order of the coordinates; of the kind's own when None.
    hidden : widths of the networks in a layer.
    """

    kind: Kind = "spline"
    layers: int | None = None
    hidden: tuple[int, ...] = (16, 16)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ModelError(f"kind is one of {', '.join(KINDS)}; got {self.kind!r}.")
        if self.layers is None:
            object.__setattr__(self, "layers", LAYERS[self.kind])
        check_whole("layers", self.layers, 1)
        if not self.hidden or any(width < 1 for width in self.hidden):
            raise ModelError(f"hidden lists the widths of the layers, such as (32, 32); got {self.hidden!r}.")

    def build(self, dim: int, random: torch.Generator) -> "Transport":
        """Return a map at the identity whose other weights are drawn from `random`."""
        if self.kind == "realnvp" and dim == 1:
            raise ModelError("A coupling layer needs two coordinates: with one, use kind='spline'.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(integer(random))
            layers = [self._layer(dim, k) for k in range(self.layers or 1)]
        return Transport(layers).double()

    def _layer(self, dim: int, k: int) -> nn.Module:
        order = torch.arange(dim) if k % 2 == 0 else torch.arange(dim).flip(0)
        if self.kind == "quadratic":
            return Quadratic(dim, order)
        univariate: Any = partial(MonotonicAffineTransform, slope=math.exp(-LOG_SCALE_BOUND))
        if self.kind == "spline":
            return MaskedAutoregressiveTransform(dim, order=order, **_spline(self.hidden))
        options: dict[str, Any] = {
            "univariate": univariate,
            "shapes": [(), ()],
            "hidden_features": self.hidden,
            "activation": nn.Tanh,
        }
        if self.kind == "realnvp":
            mask = (torch.arange(dim) + k) % 2 == 0
            return GeneralCouplingTransform(dim, mask=mask, **options)
        return MaskedAutoregressiveTransform(dim, order=order, **options)


def _spline(hidden: tuple[int, ...]) -> dict[str, Any]:
    univariate: Any = partial(MonotonicRQSTransform, bound=BOX)
    shapes = [(BINS,), (BINS,), (BINS - 1,)]
    return {"univariate": univariate, "shapes": shapes, "hidden_features": hidden, "activation": nn.Tanh}


def spline_layer(dim: int, hidden: tuple[int, ...], context: int) -> nn.Module:
    """Return an autoregressive spline whose network also sees `context` covariates, at the identity."""
    layer = MaskedAutoregressiveTransform(dim, context=context, **_spline(hidden))
    start_at_identity(layer)
    return layer


def start_at_identity(layer: nn.Module) -> None:
    """Set the last weights of a layer's network to zero."""
    linear = [part for part in layer.modules() if hasattr(part, "weight")]
    last = linear[-1] if linear else layer  # with d = 1 a layer is a list of parameters
    for weight in last.parameters():
        nn.init.zeros_(weight)


class Transport(nn.Module):
    """A composition of lazy transformations, at the identity when made."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        for layer in layers:
            start_at_identity(layer)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return T(z) (..., d) and log |det dT/dz| (...)."""
        total = torch.zeros_like(z[..., 0])
        for layer in self.layers:
            z, change = layer().call_and_ladj(z)
            total = total + change
        return z, total

    def inverse(self, u: Tensor) -> Tensor:
        """Return T^-1(u)."""
        for layer in reversed(self.layers):
            u = layer().inv(u)
        return u


@dataclass(frozen=True)
class Flow:
    """Specification of a flow law: flows of several kinds on several bases, averaged.

    kind : "quadratic", "spline", "autoregressive", "realnvp", or several of them, on each base. None
        (default): quadratic and spline on the Gaussian, quadratic of one layer on the mixture.
    base : "gaussian" or "mixture" (a mixture fit, so that modes may be apart); None takes both.
    layers, hidden : size of each network; None leaves the number of layers to the kind.
    folds : individuals are split into this many parts; each flow is trained on all but one, stops
        where the held-out log-likelihood is highest, and the flows of all folds are averaged.
    noise : standard deviation of the noise added to standardised draws, times N^(-1/(d+4)).
    steps, rate : at most so many steps of Adam at this learning rate; None leaves it to the kind.
    stiffness : the mixture that is a base has so many times the shrinkage of a mixture alone (see
        `Mixture`), because the flow bends what the base keeps simple.
    prior : of the covariances of all bases, which keeps them off their boundary (see `Gaussian`).
    with_relatives : let a Box-Cox transformed Gaussian and an SNP law, smooth laws of few parameters, take
        part; False averages flows and their bases only.

    The bases themselves are flows at the identity and always take part, and so does the mixture of
    usual shrinkage. All are averaged with weights by held-out log-likelihood. Residual parameters and fixed
    effects are those most likely with each individual under the laws that have not seen its fold: a law that
    has seen it fits part of its noise, and sigma would be too small.
    """

    kind: Kind | tuple[Kind, ...] | None = None
    base: Base | None = None
    layers: int | None = None
    hidden: tuple[int, ...] = (16, 16)
    folds: int = 5
    noise: float = 0.3
    steps: int = 150
    rate: float | None = None
    stiffness: float = 2.0
    prior: float = 1.0
    with_relatives: bool = True

    def __post_init__(self) -> None:
        if self.base not in ("gaussian", "mixture", None):
            raise ModelError(f"base is 'gaussian', 'mixture' or None, got {self.base!r}.")
        check_whole("folds", self.folds, 2)
        if self.noise < 0 or (self.rate is not None and self.rate <= 0) or self.steps < 1:
            raise ModelError("noise is not negative, rate is positive, steps is at least 1.")
        for base in self.bases():
            self.networks(base)

    @property
    def name(self) -> str:
        """The key of this law in tables."""
        return "flow"

    def networks(self, base: Base) -> tuple[Network, ...]:
        """Return the networks to train on a base."""
        hidden = tuple(self.hidden)
        if self.kind is None and base == "mixture":
            return (Network("quadratic", self.layers or 1, hidden),)  # the base has most of the shape
        kinds: tuple[Kind, ...] = ("quadratic", "spline") if self.kind is None else _as_tuple(self.kind)
        return tuple(Network(kind, self.layers, hidden) for kind in kinds)

    def bases(self) -> tuple[Base, ...]:
        """Return the bases to train on."""
        return ("gaussian", "mixture") if self.base is None else (self.base,)

    def relatives(self) -> tuple[SNP | Transformed, ...]:
        """Return the laws of few parameters that take part."""
        return (Transformed(prior=self.prior), SNP(prior=self.prior)) if self.with_relatives else ()

    @property
    def n_laws(self) -> int:
        """How many laws are averaged: bases, flows on them, the mixture of usual shrinkage, relatives."""
        flows = sum(1 + len(self.networks(base)) for base in self.bases())
        return flows + ("mixture" in self.bases()) + len(self.relatives())

    def learning_rate(self, network: Network) -> float:
        """Return Adam's learning rate for a network."""
        return RATES[network.kind] if self.rate is None else self.rate


def _as_tuple(kind: Kind | tuple[Kind, ...]) -> tuple[Kind, ...]:
    return (kind,) if isinstance(kind, str) else tuple(kind)


@dataclass(frozen=True)
class FlowLaw:
    """One flow: standardising Gaussian, transport map T, base law of u = T(z)."""

    gaussian: GaussianLaw
    transport: Transport
    base: GaussianLaw | MixtureLaw
    network: Network

    @property
    def dim(self) -> int:
        return self.gaussian.dim

    @property
    def n_parameters(self) -> int:
        """Weights of the networks and parameters of the base."""
        weights = sum(p.numel() for p in self.transport.parameters())
        return weights + self.base.n_parameters

    def standardise(self, phi: Tensor) -> Tensor:
        """Return z = L^-1 (phi - mean)."""
        identity = torch.eye(self.dim, dtype=phi.dtype)
        inverse = torch.linalg.solve_triangular(self.gaussian.factor, identity, upper=False)
        return (phi - self.gaussian.mean) @ inverse.mT

    def log_prob(self, phi: Tensor) -> Tensor:
        """Return the log-density: (..., d) -> (...). Differentiable in phi."""
        check_phi(phi, self.dim)
        u, change = self.transport(self.standardise(phi.reshape(-1, self.dim)))
        log_scale = self.gaussian.factor.diagonal().log().sum()
        value = self.base.log_prob(u) + change - log_scale
        return value.reshape(phi.shape[:-1])

    def sample(self, n: int, seed: Seed) -> Tensor:
        """Draw (n, d)."""
        with torch.no_grad():
            z = self.transport.inverse(self.base.sample(n, seed))
            return self.gaussian.mean + z @ self.gaussian.factor.mT

    def update(self, phi: Tensor, weights: Tensor, steps: int = 20, rate: float = 2e-3) -> "FlowLaw":
        """Return the flow after Adam steps on the weighted log-density; never a lower one."""
        flat, weight = phi.reshape(-1, self.dim), weights.reshape(-1) / weights.sum()
        kept = weight > 1e-3 / len(weight)
        flat, weight = flat[kept], weight[kept]
        moved = FlowLaw(self.gaussian, copy.deepcopy(self.transport), self.base, self.network)
        moved.transport.requires_grad_(True)
        optimiser = torch.optim.Adam(moved.transport.parameters(), lr=rate)
        best, state = -math.inf, moved.transport.state_dict()
        for step in range(steps + 1):
            value = (weight * moved.log_prob(flat)).sum()
            if float(value.detach()) > best:
                best, state = float(value.detach()), copy.deepcopy(moved.transport.state_dict())
            if step < steps:
                optimiser.zero_grad()
                (-value).backward()
                optimiser.step()
        moved.transport.load_state_dict(state)
        return moved.frozen()

    def frozen(self) -> "FlowLaw":
        """Stop recording gradients in the weights."""
        self.transport.requires_grad_(False)
        return self

    @classmethod
    def start(cls, network: Network, gaussian: GaussianLaw, base: Law | None, seed: Seed) -> "FlowLaw":
        """Return the flow at the identity: the Gaussian itself, or the mixture given as base."""
        transport = network.build(gaussian.dim, generator(seed))
        return cls(gaussian, transport, standardised(base, gaussian), network).frozen()


def standardised(base: Law | None, gaussian: GaussianLaw) -> GaussianLaw | MixtureLaw:
    """Return the law of z = L^-1 (phi - mean) when phi follows `base` (the Gaussian when None)."""
    identity = torch.eye(gaussian.dim, dtype=gaussian.mean.dtype)
    inverse = torch.linalg.solve_triangular(gaussian.factor, identity, upper=False)
    if isinstance(base, MixtureLaw):
        means = (base.means - gaussian.mean) @ inverse.mT
        floor = inverse @ base.floor
        return replace(base, means=means, factors=inverse @ base.factors, floor=floor)
    if isinstance(base, GaussianLaw):
        return GaussianLaw(inverse @ (base.mean - gaussian.mean), inverse @ base.factor)
    return GaussianLaw(torch.zeros_like(gaussian.mean), identity)
