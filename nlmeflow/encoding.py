"""Laws as tensors and JSON: how each kind is written to a file and read again."""

from dataclasses import asdict
from functools import singledispatch
from typing import Any

from torch import Tensor

from nlmeflow.errors import DataError, ModelError
from nlmeflow.laws import (
    DiscreteLaw,
    FlowLaw,
    GaussianLaw,
    KernelLaw,
    Law,
    MixtureLaw,
    Network,
    SNPLaw,
    StackedLaw,
    TransformedLaw,
)
from nlmeflow.laws.frame import Frame
from nlmeflow.seeds import generator

Tensors = dict[str, Tensor]


def _network(about: dict[str, Any]) -> Network:
    return Network(about["kind"], about["layers"], tuple(about["hidden"]))


@singledispatch
def encode(law: Law, prefix: str, tensors: Tensors) -> dict[str, Any]:
    """Put a law's tensors under `prefix` and return what JSON must say of it."""
    raise ModelError(f"A {type(law).__name__} cannot be saved.")


@encode.register
def _(law: GaussianLaw, prefix: str, tensors: Tensors) -> dict[str, Any]:
    tensors |= {f"{prefix}.mean": law.mean, f"{prefix}.factor": law.factor}
    return {"kind": "gaussian", "structure": law.structure, "prior": law.prior}


@encode.register
def _(law: SNPLaw, prefix: str, tensors: Tensors) -> dict[str, Any]:
    tensors |= {f"{prefix}.mean": law.frame.mean, f"{prefix}.factor": law.frame.factor}
    tensors[f"{prefix}.coefficients"] = law.coefficients
    return {"kind": "snp", "order": law.order, "prior": law.prior}


@encode.register
def _(law: TransformedLaw, prefix: str, tensors: Tensors) -> dict[str, Any]:
    tensors |= {f"{prefix}.mean": law.frame.mean, f"{prefix}.factor": law.frame.factor}
    tensors[f"{prefix}.shape"] = law.shape
    return {"kind": "transformed", "transform": law.kind, "prior": law.prior}


@encode.register
def _(law: KernelLaw, prefix: str, tensors: Tensors) -> dict[str, Any]:
    tensors |= {f"{prefix}.weights": law.weights, f"{prefix}.points": law.means}
    tensors[f"{prefix}.factor"] = law.factors[0]
    return {"kind": "kernels"}


@encode.register
def _(law: MixtureLaw, prefix: str, tensors: Tensors) -> dict[str, Any]:
    for name in ("weights", "means", "factors", "floor"):
        tensors[f"{prefix}.{name}"] = getattr(law, name)
    return {"kind": "mixture", "shrinkage": law.shrinkage, "prior": law.prior}


@encode.register
def _(law: FlowLaw, prefix: str, tensors: Tensors) -> dict[str, Any]:
    for name, weight in law.transport.named_parameters():
        tensors[f"{prefix}.transport.{name}"] = weight
    return {
        "kind": "flow",
        "network": asdict(law.network),
        "gaussian": encode(law.gaussian, f"{prefix}.gaussian", tensors),
        "base": encode(law.base, f"{prefix}.base", tensors),
    }


@encode.register
def _(law: StackedLaw, prefix: str, tensors: Tensors) -> dict[str, Any]:
    tensors[f"{prefix}.weights"] = law.weights
    parts = [encode(part, f"{prefix}.{k}", tensors) for k, part in enumerate(law.laws)]
    return {"kind": "stacked", "laws": parts}


@encode.register
def _(law: DiscreteLaw, prefix: str, tensors: Tensors) -> dict[str, Any]:
    tensors |= {f"{prefix}.support": law.support, f"{prefix}.weights": law.weights}
    return {"kind": "discrete"}


def decode(about: dict[str, Any], prefix: str, tensors: Tensors) -> Law:
    """Return the law that `encode` put away."""
    kind = about["kind"]
    if kind == "gaussian":
        mean, factor = tensors[f"{prefix}.mean"], tensors[f"{prefix}.factor"]
        return GaussianLaw(mean, factor, about["structure"], about.get("prior", 0.0))
    if kind == "mixture":
        weights, means, factors, floor = (
            tensors[f"{prefix}.{name}"] for name in ("weights", "means", "factors", "floor")
        )
        return MixtureLaw(weights, means, factors, floor, about["shrinkage"], about.get("prior", 0.0))
    if kind in ("snp", "transformed"):
        frame = Frame(tensors[f"{prefix}.mean"], tensors[f"{prefix}.factor"])
        if kind == "snp":
            return SNPLaw(frame, tensors[f"{prefix}.coefficients"], about["order"], about["prior"])
        return TransformedLaw(frame, tensors[f"{prefix}.shape"], about["transform"], about["prior"])
    if kind == "kernels":
        points, weights = tensors[f"{prefix}.points"], tensors[f"{prefix}.weights"]
        return KernelLaw.at(points, tensors[f"{prefix}.factor"], weights)
    if kind == "stacked":
        laws = [decode(part, f"{prefix}.{k}", tensors) for k, part in enumerate(about["laws"])]
        return StackedLaw(tuple(laws), tensors[f"{prefix}.weights"])
    if kind == "discrete":
        return DiscreteLaw(tensors[f"{prefix}.support"], tensors[f"{prefix}.weights"])
    if kind == "flow":
        return _decode_flow(about, prefix, tensors)
    raise DataError(f"Unknown law '{kind}' in the file.")


def _decode_flow(about: dict[str, Any], prefix: str, tensors: Tensors) -> FlowLaw:
    gaussian = decode(about["gaussian"], f"{prefix}.gaussian", tensors)
    base = decode(about["base"], f"{prefix}.base", tensors)
    assert isinstance(gaussian, GaussianLaw)
    assert isinstance(base, GaussianLaw | MixtureLaw)
    network = _network(about["network"])
    transport = network.build(gaussian.dim, generator(0))
    start = f"{prefix}.transport."
    weights = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
    transport.load_state_dict(transport.state_dict() | weights)
    return FlowLaw(gaussian, transport, base, network).frozen()
