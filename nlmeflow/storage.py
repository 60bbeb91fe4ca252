"""Save and load a fit: one safetensors file, its header a JSON text. Nothing loaded can run code.

The file is written beside its place and moved there when complete, so that an interrupted save
leaves what was there before.
"""

import json
import os
import tempfile
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from nlmeflow import laws
from nlmeflow.covariates import Effect
from nlmeflow.curves import LIBRARY, Curve, bounded
from nlmeflow.data import LongitudinalData
from nlmeflow.encoding import Tensors, decode, encode
from nlmeflow.errors import DataError, ModelError
from nlmeflow.estimation.saem import SAEM
from nlmeflow.fit import Fit
from nlmeflow.model import Model
from nlmeflow.residuals import RESIDUALS

FORMAT = 3
NAMES = ("Gaussian", "Mixture", "Flow", "SNP", "Transformed", "SmoothNPMLE", "TwoStage", "EBEDensity")
DISCRETE = ("NPML", "NPEM", "NPAG", "ParticleNPML", "NPonEBE")
SPECIFICATIONS: dict[str, Any] = {"SAEM": SAEM} | {name: getattr(laws, name) for name in NAMES + DISCRETE}


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
    if fit.data.bounds is not None:
        tensors |= {"data.low": fit.data.bounds[0], "data.high": fit.data.bounds[1]}
    header = {
        "format": FORMAT,
        "model": _model_header(fit.model),
        "law": encode(fit.law, "law", tensors),
        "specification": _describe(fit.specification),
        "data": {
            "labels": [_plain(label) for label in fit.data.labels],
            "names": fit.data.names,
            "covariates": _table(fit.data.covariates.reset_index(drop=True)),
            "n_missing": fit.data.n_missing,
            "group": fit.data.group,
        },
        "effects": [asdict(effect) for effect in fit.effects],
        "seed": fit.seed,
        "particles": fit.particles,
        "converged": fit.converged,
        "trace": _table(fit.trace),
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
        group=about["group"],
        bounds=(tensors["data.low"], tensors["data.high"]) if "data.low" in tensors else None,
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
        tuple(Effect(**about) for about in header["effects"]),
    )


def _table(frame: pd.DataFrame) -> Any:
    return json.loads(frame.to_json(orient="split", double_precision=15))


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
        "covariates": {name: list(terms) for name, terms in model.covariates.items()},
        "within": list(model.within),
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
    return Model(curve, residual, tuple(header["fixed"]), header["covariates"], tuple(header["within"]))


def _transform(name: str) -> Any:
    if name.startswith("logit("):
        lower, upper = name.removeprefix("logit(").removesuffix(")").split(",")
        return bounded(float(lower), float(upper))
    return name


def _describe(specification: Any) -> dict[str, Any]:
    """Return the type and the fields of a specification, which may hold another."""
    values = {field.name: getattr(specification, field.name) for field in fields(specification)}
    inner = {key: _describe(value) if is_dataclass(value) else value for key, value in values.items()}
    return {"type": type(specification).__name__, **inner}


def _read_specification(about: dict[str, Any]) -> Any:
    def read(value: Any) -> Any:
        if isinstance(value, dict):
            return _read_specification(value)
        return tuple(value) if isinstance(value, list) else value

    kind = SPECIFICATIONS[about["type"]]
    return kind(**{key: read(value) for key, value in about.items() if key != "type"})
