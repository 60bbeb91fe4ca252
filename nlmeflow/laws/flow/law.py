"""The normalizing flow: phi = mean + L T^-1(u), u from a base law, T learned.

log p(phi) = log p_base(T(z)) + log |det dT/dz| - log |det L|, z = L^-1 (phi - mean).

z is phi standardised by the Gaussian fit, and T starts at the identity, so that a flow starts at the
law of its base: the Gaussian fit or the mixture fit. The base matters: a continuous map cannot split
one mode into two without a bridge.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from nlmeflow.laws.flow.network import Network, Transport
from nlmeflow.laws.gaussian import GaussianLaw
from nlmeflow.laws.law import Law
from nlmeflow.laws.mixture import MixtureLaw
from nlmeflow.seeds import Seed, generator


@dataclass(frozen=True, eq=False)
class FlowLaw(Law):
    """One flow: standardising Gaussian, transport map T, base law of u = T(z)."""

    title: ClassVar[str] = "normalizing flow"
    counted: ClassVar[bool] = False
    gaussian: GaussianLaw
    transport: Transport
    base: GaussianLaw | MixtureLaw
    network: Network

    @property
    def dim(self) -> int:
        return self.gaussian.dim

    @property
    def n_parameters(self) -> int:
        """Return the number of weights of the network and of parameters of the base."""
        weights = sum(p.numel() for p in self.transport.parameters())
        return weights + self.base.n_parameters

    def standardise(self, phi: Tensor) -> Tensor:
        """Return z = L^-1 (phi - mean)."""
        return self.gaussian.normal.standardise(phi)

    def log_prob(self, phi: Tensor) -> Tensor:
        return self._in_blocks(phi, self._log_density)

    def _log_density(self, rows: Tensor) -> Tensor:
        if len(rows) == 0:
            return rows.sum(-1)  # torch.distributions cannot sum log-slopes of no points
        u, change = self.transport(self.standardise(rows))
        log_density: Tensor = self.base.log_prob(u) + change - self.gaussian.normal.log_volume
        return log_density

    def sample(self, n: int, seed: Seed) -> Tensor:
        with torch.no_grad():
            return self.gaussian.normal(self.transport.inverse(self.base.sample(n, seed)))

    def frozen(self) -> "FlowLaw":
        """Stop recording gradients in the weights."""
        self.transport.requires_grad_(False)
        return self

    @classmethod
    def start(cls, network: Network, gaussian: GaussianLaw, base: Law | None, seed: Seed) -> "FlowLaw":
        """Return the flow at the identity: the Gaussian itself, or the mixture given as base."""
        transport = network.build(gaussian.dim, generator(seed))
        return cls(gaussian, transport, standardised(base, gaussian), network).frozen()

    @classmethod
    def restored(cls, **values: Any) -> "FlowLaw":
        """Return the flow whose transport map comes as its weights by name."""
        transport = values["network"].build(values["gaussian"].dim, generator(0))
        transport.load_state_dict(transport.state_dict() | values["transport"])
        return cls(**(values | {"transport": transport})).frozen()


def standardised(base: Law | None, gaussian: GaussianLaw) -> GaussianLaw | MixtureLaw:
    """Return the law of z = L^-1 (phi - mean) when phi follows `base` (the Gaussian when None)."""
    frame = gaussian.normal
    if isinstance(base, MixtureLaw):
        base = replace(base, floor=frame.inverse @ base.floor)
    elif not isinstance(base, GaussianLaw):
        return GaussianLaw(torch.zeros_like(frame.mean), torch.eye(frame.dim, dtype=frame.mean.dtype))
    weights, means, factors = base.components
    return base.with_components(weights, frame.standardise(means), frame.inverse @ factors)
