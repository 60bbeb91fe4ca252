"""Transport maps T: compositions of invertible layers, at the identity when made.

RealNVP: Dinh, Sohl-Dickstein, Bengio, arXiv:1605.08803 (2016); autoregressive: Papamakarios, Pavlakou,
Murray (2017); splines: Durkan, Bekasov, Murray, Papamakarios (2019). The layers are zuko's, but for
`Quadratic`.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from zuko.flows.autoregressive import MaskedAutoregressiveTransform
from zuko.flows.coupling import GeneralCouplingTransform
from zuko.transforms import MonotonicAffineTransform, MonotonicRQSTransform

from nlmeflow.arguments import check_fields
from nlmeflow.errors import ModelError, check_whole, whole
from nlmeflow.laws.flow.quadratic import Quadratic
from nlmeflow.records import Saved
from nlmeflow.seeds import integer, usual_precision

Kind = Literal["realnvp", "autoregressive", "spline", "quadratic"]
LAYERS: dict[Kind, int] = {"realnvp": 4, "autoregressive": 2, "spline": 1, "quadratic": 2}
RATES: dict[Kind, float] = {"realnvp": 0.01, "autoregressive": 0.01, "spline": 0.015, "quadratic": 0.06}
LOG_SCALE_BOUND = 2.0  # an affine layer scales by at most e^2
BINS = 8  # of a spline
BOX = 5.0  # outside, a spline is the identity


def widths(hidden: Any) -> tuple[int, ...]:
    """Return the widths of the layers of a network as a tuple, or raise ModelError."""
    if not isinstance(hidden, tuple | list) or not hidden:
        raise ModelError(f"hidden lists the widths of the layers, such as (32, 32); got {hidden!r}.")
    return tuple(whole("a width in hidden", width, 1) for width in hidden)


@dataclass(frozen=True)
class Network(Saved):
    """Specification of one transport map T.

    kind : "quadratic" (few parameters, see `Quadratic`), "spline" (autoregressive,
        rational-quadratic), "autoregressive" (affine) or "realnvp" (affine coupling).
    layers : number of layers, alternating the order of the coordinates; of the kind's own when None.
    hidden : widths of the networks in a layer.

    Raises
    ------
    ModelError : an option is none of those accepted, or outside its range.

    """

    kind: Kind = "spline"
    layers: int | None = None
    hidden: tuple[int, ...] = (16, 16)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.layers is None:
            object.__setattr__(self, "layers", LAYERS[self.kind])
        check_whole(self, 1, "layers")
        object.__setattr__(self, "hidden", widths(self.hidden))

    def build(self, dim: int, random: torch.Generator) -> "Transport":
        """Return a map at the identity whose other weights are drawn from `random`.

        Raises
        ------
        ModelError : "realnvp" of one coordinate.

        """
        if self.kind == "realnvp" and dim == 1:
            raise ModelError("A coupling layer needs two coordinates: with one, use kind='spline'.")
        with first_weights(random):
            layers = [self._layer(dim, k) for k in range(self.layers or 1)]
        return Transport(layers).double()

    def _layer(self, dim: int, k: int) -> nn.Module:
        order = torch.arange(dim) if k % 2 == 0 else torch.arange(dim).flip(0)
        layer: nn.Module
        if self.kind == "quadratic":
            layer = Quadratic(dim, order)
        elif self.kind == "spline":
            layer = MaskedAutoregressiveTransform(dim, order=order, **_spline(self.hidden))
        elif self.kind == "realnvp":
            mask = (torch.arange(dim) + k) % 2 == 0
            layer = GeneralCouplingTransform(dim, mask=mask, **_affine(self.hidden))
        else:
            layer = MaskedAutoregressiveTransform(dim, order=order, **_affine(self.hidden))
        return layer


@contextmanager
def first_weights(random: torch.Generator) -> Iterator[None]:
    """Draw the weights of modules made here from `random`, the same ones whatever torch's defaults are."""
    with torch.random.fork_rng(devices=[]), usual_precision():
        torch.manual_seed(integer(random))
        yield


def _affine(hidden: tuple[int, ...]) -> dict[str, Any]:
    univariate: Any = partial(MonotonicAffineTransform, slope=math.exp(-LOG_SCALE_BOUND))
    shapes: list[tuple[int, ...]] = [(), ()]
    return {"univariate": univariate, "shapes": shapes, "hidden_features": hidden, "activation": nn.Tanh}


def _spline(hidden: tuple[int, ...]) -> dict[str, Any]:
    univariate: Any = partial(MonotonicRQSTransform, bound=BOX)
    shapes = [(BINS,), (BINS,), (BINS - 1,)]
    return {"univariate": univariate, "shapes": shapes, "hidden_features": hidden, "activation": nn.Tanh}


def spline_layer(dim: int, hidden: tuple[int, ...], context: int) -> nn.Module:
    """Return an autoregressive spline whose network also sees `context` covariates, at the identity."""
    layer: nn.Module = MaskedAutoregressiveTransform(dim, context=context, **_spline(hidden))
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
