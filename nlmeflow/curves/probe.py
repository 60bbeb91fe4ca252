"""Call a curve's function on a few numbers, to see that it can be called as fits call it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nlmeflow.errors import ModelError, first_line

SHAPE = (3, 4, 5)
AXES = ("individuals", "particles", "times")
MIDDLE = (1, 1, 2)  # of each axis: neither the first nor the last
SAME = 1e-6  # difference of two values of a curve, relative to its largest, that is rounding
STEP = 1e-3  # of phi, for differences
LITTLE = 1e-8  # derivative, relative to the largest value of a curve, that is none
NEAR = 0.05  # relative difference between a derivative and a difference of values
CURE = (
    "use torch functions of t and psi (torch.exp, not numpy's or math's; torch.where, not if), and return a "
    "tensor of t's shape."
)


def probe(
    name: str,
    call: Callable[[Tensor, dict[str, Tensor], dict[str, Tensor], Tensor | None], Any],
    natural: Callable[[Tensor], dict[str, Tensor]],
    dim: int,
    inputs: Sequence[str],
    steady: bool,
    linear: str | None = None,
    seen: tuple[Tensor, Mapping[str, Tensor]] | None = None,
) -> None:
    """Raise ModelError unless f(t; psi) is a torch function of each entry of its arguments by itself.

    t (3, 1, 5), psi (3, 4, 1) of `dim` parameters phi, inputs x (3, 1, 1) and, for the curve at `steady`
    state, the interval (3, 1, 1) have different values everywhere; or t and x are those `seen` in data. f is
    called on all, again on all, and on one individual, one particle and one time: values are the same, and
    arguments stay as they are. Values change with each parameter as its derivative says, and double with the
    input in which f is `linear`.
    """
    n, m, times = SHAPE
    phi = torch.arange(1, n * m * dim + 1, dtype=torch.float64).sin().reshape(n, m, 1, dim)
    t = 0.5 + 1.5 * torch.linspace(0.0, 1.0, n * times, dtype=torch.float64).square().reshape(n, 1, times)
    each = torch.tensor([1.0, 0.5, 0.7], dtype=torch.float64).reshape(n, 1, 1)
    interval = 2 * each if steady else None
    inputs_of = dict.fromkeys(inputs, each)
    if seen is not None:
        t, inputs_of = seen[0], inputs_of | dict(seen[1])

    def on_all(phi: Tensor, factor: float = 1.0) -> Any:
        x = {k: v * factor if k == linear else v.clone() for k, v in inputs_of.items()}
        return call(t.clone(), natural(phi), x, interval)

    def value(axis: int = 0, places: slice = slice(None)) -> Tensor:
        """Return f on all, or on a part of one axis."""

        def part(tensor: Tensor) -> Tensor:
            own = places if tensor.shape[axis] > 1 else slice(None)
            return tensor[(slice(None),) * axis + (own,)].clone()

        psi, x = {k: part(v) for k, v in natural(phi).items()}, {k: part(v) for k, v in inputs_of.items()}
        given = {"t": part(t)} | {f"psi['{k}']": v for k, v in psi.items()}
        given |= {f"x['{k}']": v for k, v in x.items()}
        given |= {} if interval is None else {"interval": part(interval)}
        before = {k: v._version for k, v in given.items()}
        found = tried(name, lambda: call(given["t"], psi, x, given.get("interval")))
        changed = [k for k, v in given.items() if v._version != before[k]]
        if changed:
            raise ModelError(
                f"The curve '{name}' changes {', '.join(changed)} in place: make a tensor of its own, with "
                "s.clamp(min=0) for s.clamp_(min=0), or t = t - 1 for t -= 1."
            )
        return _checked(name, found, part(torch.zeros(SHAPE)).shape)

    whole = value()
    if not _same(value(), whole):
        raise ModelError(
            f"The curve '{name}' gives other values when it is called again with the same t and psi: leave "
            "out what is random (torch.randn, dropout) or kept from call to call. Noise is what the error "
            "model is for, and differences between individuals are what the parameters are for."
        )
    for axis, place in enumerate(MIDDLE):
        places = slice(place, place + 1)
        if not _same(value(axis, places), whole.narrow(axis, place, 1)):
            raise ModelError(
                f"The curve '{name}' mixes {AXES[axis]}: one alone has other values than among others. A "
                "value may depend on its own t and psi only; let tensors broadcast, as in t / psi['a'], "
                "without means, sums or places of them, such as psi['a'].mean() or psi['a'][0]."
            )
    if seen is not None:
        return
    if linear is not None and not _same(on_all(phi, 2.0) / 2, on_all(phi)):
        raise ModelError(
            f"The curve '{name}' does not double when its dose '{linear}' does: doses are superposed, which "
            f"is right for curves linear in the dose alone. Take '{linear}' as one of its inputs, and leave "
            "dose= out."
        )
    tried(name, lambda: torch.func.jvp(on_all, (phi,), (torch.ones_like(phi),)))
    wrong = tried(name, lambda: _wrong_slopes(lambda at: on_all(at).expand(SHAPE), phi))
    for k, is_wrong in zip(natural(phi), wrong, strict=True):
        if is_wrong:
            raise ModelError(
                f"The curve '{name}' changes with '{k}' otherwise than its derivative says: leave out what "
                "takes it away, such as .detach(), torch.tensor(psi[...]) and torch.no_grad()."
            )


def _wrong_slopes(f: Callable[[Tensor], Tensor], phi: Tensor) -> list[bool]:
    """Return of each parameter whether derivatives differ from differences of values at most places.

    Not at a few: there may be corners and steps.
    """
    with torch.enable_grad():
        place = phi.clone().requires_grad_()
        total = f(place).sum()
        slopes = torch.autograd.grad(total, place)[0] if total.requires_grad else torch.zeros_like(phi)
    least, found = LITTLE * f(phi).nan_to_num(0.0, 0.0, 0.0).abs().max(), []
    for k, step in enumerate(STEP * torch.eye(phi.shape[-1], dtype=phi.dtype)):
        change, slope = (f(phi + step) - f(phi - step)).sum(-1) / (2 * STEP), slopes[..., 0, k]
        size = torch.maximum(change.abs(), slope.abs())
        told = torch.isfinite(size) & (size > least)
        found.append(bool(2 * (told & ((change - slope).abs() > NEAR * size)).sum() > told.sum()))
    return found


def tried(name: str, call: Callable[[], Any]) -> Any:
    """Return the value of a call of a user's function; raise ModelError in words where it fails."""
    try:
        return call()
    except (ModelError, MemoryError):
        raise
    except KeyError as error:
        raise ModelError(
            f"The curve '{name}' asks for {error}, which is not among its parameters and inputs: {CURE}"
        ) from error
    except Exception as error:
        said = first_line(error)
        raise ModelError(f"The curve '{name}' cannot be called on tensors ({said}): {CURE}") from error


def _checked(name: str, found: Any, shape: tuple[int, ...]) -> Tensor:
    """Return the value of a curve expanded to a shape; raise ModelError when it is none."""
    if not isinstance(found, Tensor):
        raise ModelError(f"The curve returned {type(found).__name__}, not a torch tensor: {CURE}")
    try:
        fits = torch.broadcast_shapes(found.shape, shape) == shape
    except RuntimeError:
        fits = False
    if not fits or found.dtype != torch.float64:
        raise ModelError(
            f"The curve '{name}' returned a tensor of shape {tuple(found.shape)} and type {found.dtype} "
            f"for times of shape {tuple(shape)}: {CURE}"
        )
    return found.expand(shape)


def _same(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors agree but for rounding; NaN equals NaN."""
    size = float(torch.where(other.isfinite(), other.abs(), 0.0).amax())
    return torch.allclose(one, other, rtol=SAME, atol=SAME * size, equal_nan=True)
