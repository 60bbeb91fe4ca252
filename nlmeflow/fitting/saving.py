"""Save a fit: one safetensors file, its header a JSON text.

The file is written beside its place and moved there when complete, so that a save that fails (a full disk),
or is interrupted, leaves what was there before. Of a process that is killed meanwhile a file
".NAME.*.unfinished" may remain, which can be deleted.
"""

import hashlib
import json
import os
import re
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

from nlmeflow.arguments import checked
from nlmeflow.errors import DataError, ModelError, first_line
from nlmeflow.fitting.fitted import Fitted
from nlmeflow.fitting.structure import Structure
from nlmeflow.records import Tensors, encode
from nlmeflow.running import estimating

FORMAT = 4


@checked
def save(fit: Fitted, path: str | Path) -> None:
    """Write a fit; see `Fit.save`.

    Raises
    ------
    DataError : the path is that of a folder or of a device, or no file can be made there.
    ModelError : the fit holds something that a file cannot, or looks at other data than those fitted.

    """
    path = Path(path).expanduser()
    if fit.origin is not None:
        raise ModelError(
            "A fit that looks at other data is not saved: save the one that was fitted, and look at them "
            "with nf.load(path).on(data)."
        )
    if os.path.isdir(path):
        raise DataError(f"'{path}' is a folder; give the name of a file, such as '{path / 'fit'}'.")
    if os.path.exists(path) and not os.path.isfile(path):
        raise DataError(f"'{path}' is a device or a pipe; give the name of a file, such as 'fit'.")
    tensors: Tensors = {
        "beta": fit.beta,
        "sigma": fit.sigma,
        "centre": fit.centre,
        "factor": fit.factor,
        "data.time": fit.data.time,
        "data.response": fit.data.response,
        "data.mask": fit.data.mask,
    }
    if not fit.model.curve.recipe:
        tensors["curve"] = curve_values(fit)
    if fit.data.bounds is not None:
        tensors |= {"data.low": fit.data.bounds[0], "data.high": fit.data.bounds[1]}
    if (doses := fit.data.doses) is not None:
        tensors |= {f"doses.{name}": part for name, part in vars(doses).items()}
    header = {
        "format": FORMAT,
        "model": _model_header(fit.model, tensors),
        "law": encode(fit.law, "law", tensors),
        "specification": encode(fit.specification, "specification", tensors),
        "data": {
            "labels": write_column(pd.Series(list(fit.data.labels)), fit.data.names[0]),
            "names": fit.data.names,
            "covariates": write_table(fit.data.covariates),
            "n_missing": fit.data.n_missing,
            "group": fit.data.group,
        },
        "effects": encode(fit.effects, "effects", tensors),
        "seed": fit.seed,
        "particles": fit.particles,
        "converged": fit.converged,
        "trace": write_table(fit.trace),
        "refreshes": len(fit.trace),
    }
    tensors = {key: value.detach().clone().contiguous() for key, value in tensors.items()}
    text = json.dumps(header, default=_number)
    text = json.dumps({"sha256": digest(text, tensors)})[:-1] + ", " + text[1:]
    content = to_bytes(tensors, metadata={"nlmeflow": text})
    _replace(path, content)


def digest(header: str, tensors: Tensors) -> str:
    """Return the SHA-256 of what a file holds, by which damage is seen; its own first entry left out."""
    content = hashlib.sha256(re.sub(r'^{"sha256": "\w*", ', "{", header).encode())
    for name in sorted(tensors):
        content.update(name.encode())
        content.update(tensors[name].numpy().tobytes())
    return content.hexdigest()


def curve_values(fit: Fitted) -> Tensor:
    """Return the curve of everybody, (N, n), at one vector of parameters in the middle."""
    with estimating():
        people, middle = fit.problem().individuals, fit.centre.mean(0)
        values: Tensor = people.predict(middle.expand(len(people), -1), fit.beta)
        return torch.where(people.data.mask, values, 0.0)


def _replace(path: Path, content: bytes) -> None:
    """Write a file under another name, and give it its own when it is complete and on the disk.

    Where the path is a link, the file is the one that it stands for.
    """
    try:
        path = path.resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".unfinished")
    except (OSError, ValueError) as error:
        raise DataError(f"No file can be written at '{path}': {first_line(error)}.") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _number(value: object) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise ModelError(f"A {type(value).__name__} cannot be saved.")


def write_table(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a table's columns as JSON, each with its type; the index is left out."""
    return [{"name": name, **write_column(frame[name], name)} for name in frame.columns]


def write_column(column: pd.Series, name: object) -> dict[str, Any]:
    """Return the values and the type of a column as JSON, to the bit; dates as text.

    Raises
    ------
    ModelError : a cell holds something else than a number, a word, True or False, a date or nothing, or the
        column is of a type that `read_column` cannot make again.

    """
    about = _written(column, name)
    try:
        read_column(about)
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"Column '{name}' is of the type {column.dtype}, which cannot be saved; read the table with it "
            "as numbers, text or a category."
        ) from error
    return about


def _written(column: pd.Series, name: object) -> dict[str, Any]:
    about: dict[str, Any] = {"dtype": str(column.dtype)}
    if isinstance(column.dtype, pd.CategoricalDtype):
        levels = write_column(pd.Series(column.cat.categories), name)
        return {"dtype": "category", "codes": column.cat.codes.tolist(), "levels": levels} | {
            "ordered": bool(column.cat.ordered)
        }
    if isinstance(column.dtype, pd.PeriodDtype):
        return about | {"values": column.astype(str).tolist()}
    values = [None if pd.isna(value) else value for value in column.tolist()]
    values = [value.item() if isinstance(value, np.number | np.bool_) else value for value in values]
    if column.dtype.kind in "Mm":
        return about | {"values": [None if value is None else value.isoformat() for value in values]}
    dates = [value.isoformat() for value in values if type(value) is date]
    if dates and len(dates) == len(values):
        return about | {"dates": dates}
    wrong = next((v for v in values if v is not None and not isinstance(v, str | int | float | bool)), None)
    if wrong is not None:
        raise ModelError(
            f"Column '{name}' holds a {type(wrong).__name__}, which cannot be saved; read the table with it "
            "as numbers, text or a category."
        )
    return about | {"values": values}


def read_column(about: dict[str, Any]) -> pd.Series:
    """Return the column that `write_column` put away."""
    if about["dtype"] == "category":
        kind = pd.CategoricalDtype(read_column(about["levels"]), ordered=about["ordered"])
        return pd.Series(pd.Categorical.from_codes(about["codes"], dtype=kind))
    if about["dtype"].startswith("datetime64"):
        zoned = "," in about["dtype"]  # "datetime64[ns, Europe/Paris]": offsets differ in summer
        dates = pd.to_datetime(about["values"], format="ISO8601", utc=zoned)
        return pd.Series(dates).astype(about["dtype"])
    if about["dtype"].startswith(("timedelta64", "duration")):
        return pd.Series(pd.to_timedelta(about["values"])).astype(about["dtype"])
    values = map(date.fromisoformat, about["dates"]) if "dates" in about else about["values"]
    column: pd.Series = pd.Series(list(values), dtype=about["dtype"])
    return column


def read_table(columns: list[dict[str, Any]], size: int) -> pd.DataFrame:
    """Return the table of so many rows that `write_table` put away."""
    parts = {column_name(about["name"]): read_column(about) for about in columns}
    return pd.DataFrame(parts, index=range(size), columns=pd.Index(list(parts), tupleize_cols=False))


def column_name(name: Any) -> Any:
    """Return the name of a column, which JSON makes a list where it is a tuple."""
    return tuple(map(column_name, name)) if isinstance(name, list) else name


def _model_header(model: Structure, tensors: Tensors) -> dict[str, Any]:
    return {
        "curve": dict(model.curve.recipe) or None,
        "parameters": [[p.name, p.scale.name] for p in model.curve.parameters],
        "residual": encode(model.residual, "residual", tensors),
        "fixed": list(model.fixed),
        "covariates": {name: list(terms) for name, terms in model.covariates.items()},
        "within": list(model.within),
    }
