"""Load a fit that was saved. Nothing loaded can run code."""

import inspect
import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nlmeflow.arguments import checked
from nlmeflow.curves import LIBRARY, Curve, Transform
from nlmeflow.curves.curve import named
from nlmeflow.data.longitudinal import Doses, LongitudinalData
from nlmeflow.errors import DataError, ModelError
from nlmeflow.fitting.fit import Fit
from nlmeflow.fitting.model import Model
from nlmeflow.fitting.saving import (
    FORMAT,
    column_name,
    curve_values,
    digest,
    read_column,
    read_table,
    write_column,
    write_table,
)
from nlmeflow.records import Tensors, decode

UNREADABLE = (SafetensorError, LookupError, TypeError, AttributeError, ValueError, ArithmeticError)


@checked
def load(path: str | Path, curve: Curve | None = None) -> Fit:
    """Read a fit. A curve of one's own is given again: `nf.load("fit", curve=curve)`.

    Raises
    ------
    FileNotFoundError : there is no such file.
    DataError : the file is damaged or was not written by `Fit.save`.
    ModelError : the fit needs its curve, or another curve was given.

    """
    path = Path(path).expanduser()
    if not os.path.isfile(path):
        raise FileNotFoundError(f"No fit at '{path}'.")
    try:
        with safe_open(str(path), framework="pt") as file:
            text = (file.metadata() or {})["nlmeflow"]
            header = json.loads(text)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if header.get("sha256") not in (None, digest(text, tensors)):  # older files have none
            raise DataError(f"'{path}' is damaged: its content is not what was saved.")
        if header["format"] == 3:
            header, tensors = upgraded(header, tensors)
        if header["format"] != FORMAT:
            raise DataError(f"'{path}' has format {header['format']}; this version reads 3 and {FORMAT}.")
        model = _read_model(header["model"], tensors, curve)
        return _read_fit(header, tensors, model)
    except (DataError, ModelError):
        raise
    except UNREADABLE as error:
        raise DataError(f"'{path}' is not a fit written by nlmeflow, or it is damaged.") from error


def _read_fit(header: dict[str, Any], tensors: Tensors, model: Model) -> Fit:
    about = header["data"]
    labels = read_column(about["labels"])
    covariates = read_table(about["covariates"], len(labels))
    covariates.index = pd.Index(labels, name=column_name(about["names"][0]))
    doses = {key.removeprefix("doses."): part for key, part in tensors.items() if key.startswith("doses.")}
    if doses:  # files written before there were steady states have no others
        none = torch.zeros_like(doses["time"])
        doses = {"interval": none, "until": none + torch.inf} | doses
    data = LongitudinalData(
        tensors["data.time"],
        tensors["data.response"],
        tensors["data.mask"],
        labels=tuple(labels.tolist()),
        covariates=covariates,
        names=tuple(map(column_name, about["names"])),
        n_missing=about["n_missing"],
        group=column_name(about["group"]),
        bounds=(tensors["data.low"], tensors["data.high"]) if "data.low" in tensors else None,
        doses=Doses(**doses) if doses else None,
    )
    fit = Fit(
        model,
        data,
        decode(header["specification"], tensors),
        decode(header["law"], tensors),
        tensors["beta"],
        tensors["sigma"],
        tensors["centre"],
        tensors["factor"],
        header["seed"],
        header["particles"],
        header["converged"],
        read_table(header["trace"], header["refreshes"]),
        decode(header["effects"], tensors),
    )
    if "curve" in tensors:
        _check_curve(fit, tensors["curve"])
    return fit


def _check_curve(fit: Fit, values: Tensor) -> None:
    """Raise ModelError unless the curve given has the values of the one that the fit was made with."""
    found, least = curve_values(fit), 1e-9 * float(values.nan_to_num(0.0, 0.0, 0.0).abs().max())
    wrong = torch.nonzero(~torch.isclose(found, values, rtol=1e-6, atol=least, equal_nan=True))
    if len(wrong):
        place = tuple(wrong[0].tolist())
        raise ModelError(
            f"The curve given is not the one that the fit was made with: where that was "
            f"{float(values[place]):.6g}, it is {float(found[place]):.6g}."
        )


def _read_model(header: dict[str, Any], tensors: Tensors, curve: Curve | None) -> Model:
    recipe = header["curve"]
    parameters = [[name, getattr(named(scale), "name", scale)] for name, scale in header["parameters"]]
    if curve is None:
        if recipe is None or not all(isinstance(named(scale), Transform) for _, scale in parameters):
            what = "curve" if recipe is None else "scale"
            raise ModelError(
                f"This fit has a {what} of its own: give the curve again, load(path, curve=...)."
            )
        curve = LIBRARY[recipe["name"]](**recipe["arguments"])
        curve = curve.with_transforms(**{name: named(scale) for name, scale in parameters})
    elif recipe is not None:
        _check_recipe(recipe, curve)
    names = [[p.name, p.scale.name] for p in curve.parameters]
    if names != parameters:
        raise ModelError(f"The fit was made with parameters {parameters}; this curve has {names}.")
    residual = decode(header["residual"], tensors)
    return Model(curve, residual, tuple(header["fixed"]), header["covariates"], tuple(header["within"]))


def _check_recipe(recipe: dict[str, Any], curve: Curve) -> None:
    """Raise ModelError unless a curve is the one of the catalogue that a fit was made with."""
    name = recipe["name"]
    if curve.recipe.get("name") != name:
        own = "" if curve.recipe else ", a function of its own"
        raise ModelError(f"The fit was made with the curve '{name}'; this one is '{curve.title}'{own}.")
    signature = inspect.signature(LIBRARY[name]).parameters
    for argument, about in signature.items():
        fitted, given = (made["arguments"].get(argument, about.default) for made in (recipe, curve.recipe))
        if given != fitted:
            raise ModelError(
                f"The fit was made with the curve '{name}' and {argument} = {fitted!r}; this one has "
                f"{argument} = {given!r}. Without curve=..., load makes the curve again as it was."
            )


def upgraded(header: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Return a file of format 3 as one of format 4: laws, specifications and effects name their classes."""
    residual = dict(header["model"]["residual"])
    model = header["model"] | {"residual": {"class": residual.pop("kind"), **residual}}
    effects = [{"class": "Effect", **effect} for effect in header["effects"]]
    about, trace = header["data"], pd.DataFrame(**header["trace"])
    data = about | {
        "labels": write_column(pd.Series(about["labels"]), "individual"),
        "covariates": write_table(pd.DataFrame(**about["covariates"])),
    }
    changed = {"format": FORMAT, "model": model, "effects": effects, "data": data}
    changed |= {"trace": write_table(trace), "refreshes": len(trace)}
    changed["specification"] = _specification_of_3(header["specification"])
    return header | changed | {"law": _law_of_3(header["law"], "law")}, tensors


def _specification_of_3(about: Any) -> Any:
    if not isinstance(about, dict):
        return about
    return {"class": about["type"]} | {k: _specification_of_3(v) for k, v in about.items() if k != "type"}


def _law_of_3(about: dict[str, Any], place: str) -> dict[str, Any]:
    """Return what format 4 would say of a law; its tensors keep the names that they have in the file."""
    kind, rest = about["kind"], {k: v for k, v in about.items() if k != "kind"}

    def found(*names: str) -> dict[str, Any]:
        return {name: {"tensor": f"{place}.{name}"} for name in names}

    frame = {"frame": {"class": "Affine", **found("mean", "factor")}}
    if kind == "gaussian":
        return {"class": "GaussianLaw", **rest, **found("mean", "factor")}
    if kind == "mixture":
        return {"class": "MixtureLaw", **rest, **found("weights", "means", "factors", "floor")}
    if kind == "snp":
        return {"class": "SNPLaw", **rest, **frame, **found("coefficients")}
    if kind == "transformed":
        shape = found("shape") | {"kind": rest.pop("transform")}
        return {"class": "TransformedLaw", **rest, **frame, **shape}
    if kind == "kernels":
        return {"class": "KernelLaw", **found("weights", "points", "factor")}
    if kind == "discrete":
        return {"class": "DiscreteLaw", **found("support", "weights")}
    if kind == "stacked":
        laws = [_law_of_3(part, f"{place}.{k}") for k, part in enumerate(rest["laws"])]
        return {"class": "StackedLaw", "laws": laws, **found("weights")}
    parts = {name: _law_of_3(rest[name], f"{place}.{name}") for name in ("gaussian", "base")}
    network = {"class": "Network", **rest["network"]}
    return {"class": "FlowLaw", **parts, "network": network, "transport": {"weights": f"{place}.transport"}}
