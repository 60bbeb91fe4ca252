"""Standard errors of a Gaussian fit as a table."""

from typing import TYPE_CHECKING

import pandas as pd
import torch

from nlmeflow.errors import EstimationError, ModelError
from nlmeflow.estimation.information import Chart, delta_covariance, observed_information, reported_names
from nlmeflow.laws import GaussianLaw
from nlmeflow.running import one_thread

if TYPE_CHECKING:
    from nlmeflow.fit import Fit

NORMAL_95 = 1.959963984540054


def standard_errors(fit: "Fit") -> pd.DataFrame:
    """Return the table of `Fit.standard_errors`."""
    if not isinstance(fit.law, GaussianLaw):
        raise ModelError(
            f"Standard errors are those of a Gaussian law's parameters; this is a {type(fit.law).__name__}. "
            "fit.bands() gives the uncertainty of its density."
        )
    with one_thread():
        with torch.no_grad():
            particles = fit.drawn()
        chart = Chart(fit.problem(), fit.state)
        information = observed_information(chart, particles)
        with torch.no_grad():
            lowest = float(torch.linalg.eigvalsh(information)[0])
            if not lowest > 0:
                raise EstimationError(
                    "The observed information is not positive definite: the likelihood has no peak here "
                    "(a variance of zero or a correlation of one). nf.Gaussian(prior=1) keeps off that "
                    "boundary, nf.Gaussian('diagonal') has fewer parameters."
                )
            values, covariance = delta_covariance(chart, information)
    errors = covariance.diagonal().sqrt()
    rows = []
    for (kind, name), value, error in zip(reported_names(chart), values, errors, strict=True):
        row = {"kind": kind, "parameter": name, "value": float(value), "standard error": float(error)}
        if kind in ("mean", "fixed"):
            scale = fit.model.curve[name].scale
            place = value.detach().clone().requires_grad_(True)
            natural = scale.natural(place)
            (slope,) = torch.autograd.grad(natural, place)
            row |= {"natural": float(natural.detach()), "natural error": float(slope.abs() * error)}
        rows.append(row)
    frame = pd.DataFrame(rows).set_index(["kind", "parameter"])
    half = NORMAL_95 * frame["standard error"]
    return frame.assign(lower=frame["value"] - half, upper=frame["value"] + half)
