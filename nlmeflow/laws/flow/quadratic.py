"""A map of few parameters: skewed, light- or heavy-tailed coordinates, bent along one another.

Triangular maps of low degree are the classical alternative to networks (Marzouk, Moselhy, Parno,
Spantini, Sampling via measure transport, 2016); the marginal map is the sinh-arcsinh transformation
(Jones and Pewsey, Biometrika 2009). With individuals in the hundreds, few parameters are a virtue.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

LOG_BOUND = 2.0  # of log-scales
TAIL_BOUND = 0.7  # of log delta


class Quadratic(nn.Module):
    """Layer u_k = exp(s_k(z_<k)) h_k(z_k) + q_k(z_<k), h_k(z) = sinh(delta_k asinh z - epsilon_k).

    s_k is affine (bounded), q_k quadratic in the coordinates that come before k in `order` (d,).
    All parameters are zero at the identity.
    """

    order: Tensor
    inverse_order: Tensor

    def __init__(self, dim: int, order: Tensor) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("order", order)
        self.register_buffer("inverse_order", order.argsort())
        self.skewness = nn.Parameter(torch.zeros(dim))
        self.tail = nn.Parameter(torch.zeros(dim))
        self.scale = nn.Parameter(torch.zeros(dim, dim))
        self.shift = nn.Parameter(torch.zeros(dim, 1 + dim + dim * (dim + 1) // 2))

    def forward(self) -> "QuadraticMap":
        """Return the map."""
        return QuadraticMap(self)


class QuadraticMap(NamedTuple):
    """The map of a layer, in the manner of zuko's transformations."""

    layer: Quadratic

    def _conditioned(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return log-scale and shift of coordinate k given the coordinates before it, x (..., k)."""
        layer, dim = self.layer, self.layer.dim
        row, column = torch.tril_indices(dim, dim)[:, : k * (k + 1) // 2]
        one = x.new_ones(*x.shape[:-1], 1)
        log_scale = layer.scale[k, 0] + x @ layer.scale[k, 1 : k + 1]
        squares = x[..., row] * x[..., column] - (row == column).to(x.dtype)
        features = torch.cat([one, x, squares], -1)
        weights = torch.cat([layer.shift[k, : k + 1], layer.shift[k, dim + 1 : dim + 1 + len(row)]])
        return LOG_BOUND * torch.tanh(log_scale / LOG_BOUND), features @ weights

    def call_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return u (..., d) and log |det du/dz| (...)."""
        x = z[..., self.layer.order]
        delta = (TAIL_BOUND * torch.tanh(self.layer.tail / TAIL_BOUND)).exp()
        angle = delta * torch.asinh(x) - self.layer.skewness
        marginal = torch.sinh(angle)
        log_slope = angle.cosh().log() + delta.log() - 0.5 * torch.log1p(x.square())
        total = log_slope.sum(-1)
        out = []
        for k in range(self.layer.dim):
            log_scale, shift = self._conditioned(x[..., :k], k)
            out.append(log_scale.exp() * marginal[..., k] + shift)
            total = total + log_scale
        return torch.stack(out, -1)[..., self.layer.inverse_order], total

    def inv(self, u: Tensor) -> Tensor:
        """Return z, coordinate after coordinate."""
        u = u[..., self.layer.order]
        delta = (TAIL_BOUND * torch.tanh(self.layer.tail / TAIL_BOUND)).exp()
        x = u[..., :0]
        for k in range(self.layer.dim):
            log_scale, shift = self._conditioned(x, k)
            marginal = (u[..., k] - shift) * (-log_scale).exp()
            value = torch.sinh((torch.asinh(marginal) + self.layer.skewness[k]) / delta[k])
            x = torch.cat([x, value[..., None]], -1)
        return x[..., self.layer.inverse_order]
