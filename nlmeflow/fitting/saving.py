"""Save a fit: one safetensors file, its header a JSON text.

The file is written beside its place and moved there when complete, so that an interrupted save
leaves what was there before.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.torch import save_file

from nlmeflow.fitting.fitted import Fitted
from nlmeflow.fitting.structure import Structure
from nlmeflow.records import Tensors, encode

FORMAT = 4


def save(fit: Fitted, path: str | Path) -> None:
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
        "specification": encode(fit.specification, "specification", tensors),
        "data": {
            "labels": [_plain(label) for label in fit.data.labels],
            "names": fit.data.names,
            "covariates": _table(fit.data.covariates.reset_index(drop=True)),
            "n_missing": fit.data.n_missing,
            "group": fit.data.group,
        },
        "effects": encode(fit.effects, "effects", tensors),
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


def _table(frame: pd.DataFrame) -> Any:
    return json.loads(frame.to_json(orient="split", double_precision=15))


def _plain(label: Any) -> Any:
    value = label.item() if hasattr(label, "item") else label
    return value if isinstance(value, str | int | float | bool) else str(value)


def _model_header(model: Structure) -> dict[str, Any]:
    return {
        "curve": dict(model.curve.recipe) or None,
        "parameters": [[p.name, p.scale.name] for p in model.curve.parameters],
        "residual": encode(model.residual, "residual", {}),
        "fixed": list(model.fixed),
        "covariates": {name: list(terms) for name, terms in model.covariates.items()},
        "within": list(model.within),
    }
