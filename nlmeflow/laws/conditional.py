"""A flow that depends on covariates: p(phi | x), location, shape and shares of modes.

    z = L^-1 (phi - m - S x),   u = T(z; x),   u ~ sum_c softmax(log w + B x)_c N(m_c, L_c L_c')

T is an autoregressive spline whose network also sees x (at the identity when made), S the shift of a Gaussian
with covariates, B how the shares of the base's components depend on x: a continuous map cannot move
mass from one mode to another.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nlmeflow.errors import ModelError
from nlmeflow.laws.flow import spline_layer
from nlmeflow.laws.gaussian import GaussianLaw
from nlmeflow.laws.law import check_phi
from nlmeflow.laws.mixture import MixtureLaw
from nlmeflow.seeds import Seed, generator, integer


class ConditionalFlow(nn.Module):
    """The map and the shares: phi (n, d) and x (n, q) to log p(phi | x) (n,).

    gaussian : frame (m, L); shift : S (d, q); base : of u, a Gaussian mixture (one component for a Gaussian).
    """

    def __init__(
        self,
        gaussian: GaussianLaw,
        shift: Tensor,
        base: MixtureLaw,
        hidden: tuple[int, ...],
        random: torch.Generator,
    ) -> None:
        super().__init__()
        self.gaussian, self.shift, self.base = gaussian, shift, base
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(integer(random))
            self.layer = spline_layer(gaussian.dim, hidden, context=shift.shape[1]).double()
        self.tilt = nn.Parameter(torch.zeros(base.n_components, shift.shape[1], dtype=torch.float64))

    def log_shares(self, x: Tensor) -> Tensor:
        """Return log shares of the base's components, (n, C)."""
        return (self.base.weights.log() + x @ self.tilt.mT).log_softmax(-1)

    def log_prob(self, phi: Tensor, x: Tensor) -> Tensor:
        """Return log p(phi | x) of rows phi (n, d) with covariates x (n, q): (n,)."""
        z = torch.linalg.solve_triangular(
            self.gaussian.factor, (phi - self.gaussian.mean - x @ self.shift.mT).mT, upper=False
        ).mT
        u, change = self.layer(x).call_and_ladj(z)
        joint = self.base.log_joint(u).mT - self.base.weights.log() + self.log_shares(x)
        return joint.logsumexp(-1) + change - self.gaussian.factor.diagonal().log().sum()

    def sample(self, x: Tensor, seed: Seed) -> Tensor:
        """Draw one phi for each row of x (n, q): (n, d)."""
        random = generator(seed)
        which = torch.multinomial(self.log_shares(x).exp(), 1, generator=random)[:, 0]
        noise = torch.randn(len(x), self.gaussian.dim, generator=random, dtype=x.dtype)
        u = self.base.means[which] + (self.base.factors[which] @ noise[..., None]).squeeze(-1)
        z = self.layer(x).inv(u)
        return self.gaussian.mean + x @ self.shift.mT + z @ self.gaussian.factor.mT


@dataclass(frozen=True)
class GivenLaw:
    """The law of individuals whose covariates are x (q,): a conditional flow at one place."""

    flow: ConditionalFlow
    x: Tensor

    @property
    def dim(self) -> int:
        return self.flow.gaussian.dim

    @property
    def n_parameters(self) -> int:
        """Weights of the network and of the shares, and parameters of the base."""
        return sum(p.numel() for p in self.flow.parameters()) + self.flow.base.n_parameters

    def log_prob(self, phi: Tensor) -> Tensor:
        """Return log p(phi | x): (..., d) -> (...)."""
        check_phi(phi, self.dim)
        flat = phi.reshape(-1, self.dim)
        return self.flow.log_prob(flat, self.x.expand(len(flat), -1)).reshape(phi.shape[:-1])

    def sample(self, n: int, seed: Seed) -> Tensor:
        """Draw (n, d)."""
        with torch.no_grad():
            return self.flow.sample(self.x.expand(n, -1), seed)

    def update(self, phi: Tensor, weights: Tensor) -> "GivenLaw":
        """Refuse: a conditional flow is learned from individuals with different covariates."""
        raise ModelError("A conditional flow is learned by nf.conditional_flow, not updated.")
