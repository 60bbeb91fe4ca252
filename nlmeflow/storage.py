"""Save and load a fit: one safetensors file, its header a JSON text. Nothing loaded can run code.

The file is written beside its place and moved there when complete, so that an interrupted save
leaves what was there before.
"""

import json
import os
import tempfile
from dataclasses import asdict
from functools import singledispatch
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nlmeflow.curves import LIBRARY, Curve, bounded
from nlmeflow.data import LongitudinalData
from nlmeflow.errors import DataError, ModelError
from nlmeflow.fit import Fit, Model
from nlmeflow.laws import (
    NPAG,
    NPEM,
    NPML,
    DiscreteLaw,
    Flow,
    FlowLaw,
    Gaussian,
    GaussianLaw,
    Law,
    Mixture,
    MixtureLaw,
    Network,
    NPonEBE,
    ParticleNPML,
    StackedLaw,
)
from nlmeflow.residuals import RESIDUALS
from nlmeflow.seeds import generator

FORMAT = 1
SPECIFICATIONS: dict[str, Any] = {
    kind.__name__: kind for kind in (Gaussian, Mixture, Flow, NPML, NPEM, NPAG, ParticleNPML, NPonEBE)
}
Tensors = dict[str, Tensor]


def save(fit: Fit, path: str | Path) -> None:
    """Write a fit; see `Fit.save`."""
    path = Path(path)
    tensors: Tensors = {
        "beta": fit.beta,
        "sigma": fit.sigma,
        "centre": fit.centre,
        "factor": fit.factor,
        "data.time": fit.data.time,
        "data.response": fit.data.response,
        "data.mask": fit.data.mask,
    }
    header = {
        "format": FORMAT,
        "model": _model_header(fit.model),
        "law": encode(fit.law, "law", tensors),
        "specification": {"law": type(fit.specification).__name__, **asdict(fit.specification)},
        "data": {
            "labels": [_plain(label) for label in fit.data.labels],
            "names": fit.data.names,
            "covariates": json.loads(fit.data.covariates.reset_index(drop=True).to_json(orient="split")),
            "n_missing": fit.data.n_missing,
        },
        "seed": fit.seed,
        "particles": fit.particles,
        "converged": fit.converged,
        "trace": json.loads(fit.trace.to_json(orient="split", double_precision=15)),
    }
    tensors = {key: value.detach().clone().contiguous() for key, value in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        save_file(tensors, temporary, metadata={"nlmeflow": json.dumps(header)})
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load(path: str | Path, curve: Curve | None = None) -> Fit:
    """Read a fit. A curve of one's own is given again: `nf.load("fit", curve=curve)`.

    Raises
    ------
    FileNotFoundError : there is no such file.
    DataError : the file is damaged or was not written by `Fit.save`.
    ModelError : the fit needs its curve, or another curve was given.

    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"No fit at '{path}'.")
    try:
        with safe_open(str(path), framework="pt") as file:
            header = json.loads((file.metadata() or {})["nlmeflow"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if header["format"] != FORMAT:
            raise DataError(f"'{path}' has format {header['format']}; this version reads {FORMAT}.")
        model = _read_model(header["model"], curve)
        return _read_fit(header, tensors, model)
    except (SafetensorError, KeyError, IndexError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise DataError(f"'{path}' is not a fit written by nlmeflow, or it is damaged.") from error


def _read_fit(header: dict[str, Any], tensors: Tensors, model: Model) -> Fit:
    about = header["data"]
    covariates = pd.DataFrame(**about["covariates"])
    covariates.index = pd.Index(about["labels"])
    data = LongitudinalData(
        tensors["data.time"],
        tensors["data.response"],
        tensors["data.mask"],
        labels=tuple(about["labels"]),
        covariates=covariates,
        names=tuple(about["names"]),
        n_missing=about["n_missing"],
    )
    return Fit(
        model,
        data,
        _read_specification(header["specification"]),
        decode(header["law"], "law", tensors),
        tensors["beta"],
        tensors["sigma"],
        tensors["centre"],
        tensors["factor"],
        header["seed"],
        header["particles"],
        header["converged"],
        pd.DataFrame(**header["trace"]),
    )


def _plain(label: Any) -> Any:
    value = label.item() if hasattr(label, "item") else label
    return value if isinstance(value, str | int | float | bool) else str(value)


def _model_header(model: Model) -> dict[str, Any]:
    residual = model.residual
    return {
        "curve": dict(model.curve.recipe) or None,
        "parameters": [[p.name, p.scale.name] for p in model.curve.parameters],
        "residual": {"kind": type(residual).__name__, **asdict(residual)},  # type: ignore[call-overload]
        "fixed": list(model.fixed),
    }


def _read_model(header: dict[str, Any], curve: Curve | None) -> Model:
    recipe, parameters = header["curve"], header["parameters"]
    if curve is None:
        if recipe is None:
            raise ModelError("This fit has a curve of its own: give it again, load(path, curve=...).")
        curve = LIBRARY[recipe["name"]](**recipe["arguments"])
        curve = curve.with_transforms(**{name: _transform(scale) for name, scale in parameters})
    names = [[p.name, p.scale.name] for p in curve.parameters]
    if names != parameters:
        raise ModelError(f"The fit was made with parameters {parameters}; this curve has {names}.")
    about = dict(header["residual"])
    residual = RESIDUALS[about.pop("kind")](**about)
    return Model(curve, residual, tuple(header["fixed"]))


def _transform(name: str) -> Any:
    if name.startswith("logit("):
        lower, upper = name.removeprefix("logit(").removesuffix(")").split(",")
        return bounded(float(lower), float(upper))
    return name


def _read_specification(about: dict[str, Any]) -> Any:
    about = dict(about)
    kind = SPECIFICATIONS[about.pop("law")]
    return kind(**{key: tuple(v) if isinstance(v, list) else v for key, v in about.items()})


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
