"""A table of estimates: values, standard errors, typical values on the natural scale, and limits."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nlmeflow.estimation.information import Chart, reported_names
from nlmeflow.fitting.fitted import Fitted
from nlmeflow.numerics import NORMAL_95


def table_of_estimates(
    fit: Fitted,
    values: Tensor,
    errors: Tensor,
    boundary: Sequence[tuple[str, str]] = (),
    quantile: float = NORMAL_95,
) -> pd.DataFrame:
    """Return one row for each of `information.reported_names`, as `Fit.standard_errors` describes them.

    values, errors : (P,) in this order. boundary : those without standard error and limits, which
    `attrs["boundary"]` names. quantile : how many standard errors a limit is away.
    """
    names = reported_names(Chart(fit.problem(), fit.state))
    rows = [
        _estimate(fit, kind, name, value, np.nan if (kind, name) in boundary else error)
        for (kind, name), value, error in zip(names, values.tolist(), errors.tolist(), strict=True)
    ]
    frame = pd.DataFrame(rows).set_index(["kind", "parameter"])
    frame.attrs["boundary"] = [f"{kind} {name}" for kind, name in boundary]
    kind = frame.index.get_level_values("kind")
    positive, correlation = frame[kind.isin(["sd", "residual"])], frame[kind == "correlation"]
    z, slope = np.arctanh(correlation["value"]), 1 / (1 - correlation["value"] ** 2)
    limits = with_limits(frame, quantile)
    for end, sign in (("lower", -quantile), ("upper", quantile)):
        by = sign * positive["standard error"] / positive["value"]
        limits.loc[positive.index, end] = positive["value"] * np.exp(by)
        limits.loc[correlation.index, end] = np.tanh(z + sign * correlation["standard error"] * slope)
    return limits


def with_limits(estimates: pd.DataFrame, quantile: float) -> pd.DataFrame:
    """Return a table of values and standard errors with limits, so many standard errors away."""
    half = quantile * estimates["standard error"]
    return estimates.assign(lower=estimates["value"] - half, upper=estimates["value"] + half)


def _estimate(fit: Fitted, kind: str, name: str, value: float, error: float) -> dict[str, object]:
    row: dict[str, object] = {"kind": kind, "parameter": name, "value": value, "standard error": error}
    if kind in ("mean", "fixed"):
        with torch.enable_grad():
            place = torch.tensor(value, dtype=torch.float64, requires_grad=True)
            natural = fit.model.curve[name].scale.natural(place)
            (slope,) = torch.autograd.grad(natural, place)
        row |= {"natural": float(natural.detach()), "natural error": float(slope.abs()) * error}
    return row
