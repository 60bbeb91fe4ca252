"""Tables of a fit: its individuals, its groups, criteria, standard errors, and the printed summary."""

from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nlmeflow.errors import EstimationError, ModelError, NoPeakError
from nlmeflow.estimation.information import (
    delta_covariance,
    observed,
    reported_slopes,
    steepest,
)
from nlmeflow.fitting.bootstrap import Bootstrap
from nlmeflow.fitting.doubts import doubts
from nlmeflow.fitting.estimates import table_of_estimates
from nlmeflow.fitting.fitted import Fitted
from nlmeflow.fitting.suspicions import suspicions
from nlmeflow.numerics import moments
from nlmeflow.running import one_thread

DIGITS = "{:.5g}".format  # of printed numbers, so that small ones can be read
REPLICATES = 100  # of the bootstrap behind standard errors
LARGE, LARGE_BOOTSTRAP = 2000, 300  # individuals beyond which they are left to `Fit.standard_errors`


class Estimate(NamedTuple):
    """A value computed by Monte Carlo and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ± {self.error:.2f}"


def individuals(fit: Fitted, scale: str) -> pd.DataFrame:
    """Return the table of `Fit.individuals`."""
    phi, weights = fit.conditional
    mode = None if fit.model.within else fit.modes() + fit.shift
    frame = _conditional(fit, phi, weights, scale, mode)
    if mode is not None:
        frame["log_likelihood"] = fit.marginal.values.numpy()
    frame.index = pd.Index(fit.data.labels, name=fit.data.names[0])
    return frame


def groups(fit: Fitted, scale: str) -> pd.DataFrame:
    """Return the table of `Fit.groups`."""
    if not fit.model.within:
        raise ModelError("The model has one level; groups are those of nf.Model(..., within=...).")
    frame = _conditional(fit, *fit.latent, scale)
    frame["log_likelihood"] = fit.marginal.values.numpy()
    frame.index = pd.Index(fit.problem().labels, name=fit.data.group)
    return frame


def _conditional(
    fit: Fitted, phi: Tensor, weights: Tensor, scale: str, mode: Tensor | None = None
) -> pd.DataFrame:
    if not isinstance(scale, str) or scale not in ("phi", "natural"):
        raise ModelError(f"scale is 'phi' or 'natural', got {scale!r}.")

    def scaled(values: Tensor) -> Tensor:
        if scale == "phi":
            return values
        return torch.stack(list(fit.model.curve.natural(values, fit.names).values()), -1)

    seen = weights[..., None] > 1e-12  # a particle of no weight may be infinite on the natural scale
    mean, covariance = moments(torch.where(seen, scaled(phi), 0.0), weights)
    sd = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    mode = None if mode is None else scaled(mode)
    columns: dict[str, Tensor] = {}
    for k, name in enumerate(fit.names):
        columns[f"{name}_mean"] = mean[:, k]
        if mode is not None:
            columns[f"{name}_mode"] = mode[:, k]
        columns[f"{name}_sd"] = sd[:, k]
    columns["ess"] = 1 / weights.square().sum(1)
    return pd.DataFrame({key: value.numpy() for key, value in columns.items()})


def criteria(fit: Fitted) -> pd.Series:
    """Return the table of `Fit.criteria`."""
    if fit.origin is not None:
        raise ModelError("AIC and BIC are those of the data fitted; of others there is the log-likelihood.")
    if not fit.law.counted:
        raise ModelError(
            f"A {type(fit.law).__name__} has no number of parameters to count; compare it by "
            "held-out likelihood, nf.compare."
        )
    deviance, n = -2 * fit.marginal.total, int(fit.seen.sum())
    common = fit.problem().common + fit.n_scales
    population = fit.n_parameters - common
    corrected = population * np.log(n) + common * np.log(fit.data.n_observations)
    values = {"AIC": 2 * fit.n_parameters, "BIC": fit.n_parameters * np.log(n), "BICc": corrected}
    return pd.Series({name: deviance + float(penalty) for name, penalty in values.items()})


def shrinkage(fit: Fitted) -> dict[str, float]:
    """Return the values of `Fit.shrinkage`."""
    if int(fit.seen.sum()) < 2:
        raise ModelError("Shrinkage is that of the means of at least two individuals, or groups, with data.")
    means, _ = moments(*fit.latent)
    shrunk = 1 - means[fit.seen].var(0, correction=0) / fit.gaussian.sd.square()
    return dict(zip(fit.names, shrunk.tolist(), strict=True))


def standard_errors(fit: Fitted) -> pd.DataFrame:
    """Return the table of `Fit.standard_errors`."""
    fit = fit.estimated
    if fit.law.normal is None:
        return fit.memory.once("bootstrap", lambda: Bootstrap.of(fit, REPLICATES, 0)).parameters()
    with one_thread():
        with torch.no_grad():
            found = observed(fit.problem(), fit.state, fit.drawn)
            values, slopes = reported_slopes(found.chart)
            errors = delta_covariance(found.information, found.kept, slopes).diagonal().sqrt()
        return table_of_estimates(fit, values, errors, found.boundary)


@dataclass(frozen=True)
class Summary:
    """A printed fit: `parameters` is a frame, `numbers` the rest by name."""

    parameters: pd.DataFrame
    numbers: dict[str, str]

    @classmethod
    def of(cls, fit: Fitted) -> "Summary":
        """Collect what a statistician asks first."""
        curve, gaussian = fit.model.curve, fit.gaussian
        shrunk = shrinkage(fit) if int(fit.seen.sum()) > 1 else dict.fromkeys(fit.names, np.nan)
        errors, said = _errors(fit)
        rows = []
        for k, name in enumerate(fit.names):
            typical = curve[name].scale.natural(gaussian.mean[k])
            mean, sd = float(gaussian.mean[k]), float(gaussian.sd[k])
            both = (errors.get(("mean", name), np.nan), errors.get(("sd", name), np.nan))
            scale, unit = curve[name].scale.name, curve[name].unit
            rows.append([name, scale, float(typical), mean, both[0], sd, both[1], shrunk[name], unit])
        for name, value in fit.fixed.items():
            phi = float(curve[name].scale.unconstrained(torch.tensor(value, dtype=torch.float64)))
            error = errors.get(("fixed", name), np.nan)
            unit = curve[name].unit
            rows.append([name, curve[name].scale.name, value, phi, error, 0.0, np.nan, np.nan, unit])
        for name, value in fit.covariate_effects.items():
            error = errors.get(("effect", name), np.nan)
            rows.append([name, "effect", np.nan, value, error, np.nan, np.nan, np.nan, ""])
        for name, value in fit.residual.items():
            error = errors.get(("residual", name), np.nan)
            rows.append([name, "residual", value, np.nan, error, np.nan, np.nan, np.nan, ""])
        for name, value in fit.within.items():
            error = errors.get(("residual", f"within {name}"), np.nan)
            rows.append([f"{name} within", "within", np.nan, np.nan, np.nan, value, error, np.nan, ""])
        head = ["parameter", "scale", "typical", "mean", "s.e.", "sd", "s.e. of sd", "shrinkage", "unit"]
        frame = pd.DataFrame(rows, columns=head).set_index("parameter")
        return cls(frame, _numbers(fit) | said)

    def __str__(self) -> str:
        numbers = "\n".join(f"{key:<22} {value}" for key, value in self.numbers.items())
        return f"{self.parameters.to_string(na_rep='', float_format=DIGITS)}\n\n{numbers}"

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        numbers = pd.Series(self.numbers, name="").to_frame().to_html()
        return self.parameters.to_html(na_rep="", float_format=DIGITS) + numbers


def _errors(fit: Fitted) -> tuple[dict[tuple[str, str], float], dict[str, str]]:
    """Return standard errors by kind and name, none where they take long, and what is to be said of them."""
    most = LARGE_BOOTSTRAP if fit.law.normal is None else LARGE
    if not fit.law.has_density:
        return {}, {}
    if len(fit.estimated.data) > most:
        return {}, {"standard errors": "fit.standard_errors() computes them; it takes long with so many"}
    try:
        table = standard_errors(fit)
    except EstimationError as error:
        none = {"standard errors": f"none: {error}"}
        flat = fit.converged and isinstance(error, NoPeakError)
        return {}, none | ({"converged": "to no peak of the likelihood: see standard errors"} if flat else {})
    errors, boundary = table["standard error"].astype(float), table.attrs["boundary"]
    said = {"at the boundary": ", ".join(boundary)} if boundary else {}
    return dict(zip(errors.index.to_flat_index(), errors, strict=True)), said


def _unsettled(fit: Fitted) -> str:
    """Return in words why a fit has not converged, as far as its numbers and its data tell."""
    fit = fit.estimated
    reasons = [f"stopped after {len(fit.trace)} rounds, see fit.trace"]
    if fit.law.has_density:
        with suppress(EstimationError):
            most = steepest(fit.problem(), fit.state, fit.drawn)
            reasons = [f"the likelihood still rises, most along {most}: fix it, or give first values"]
    return ". ".join([*reasons, *suspicions(fit.data, fit.model.curve)])


def _numbers(fit: Fitted) -> dict[str, str]:
    estimate = Estimate(fit.marginal.total, fit.marginal.error)
    ess = fit.ess
    numbers = {
        "law": fit.law.title or type(fit.law).__name__,
        "individuals": f"{len(fit.data)} ({fit.data.n_observations} observations)",
        **({"groups": str(len(ess))} if fit.model.within else {}),
        "log-likelihood": f"{estimate} (Monte-Carlo standard error)",
    }
    try:
        found = {str(name): f"{value:.2f}" for name, value in criteria(fit).items()}
        numbers |= {"free parameters": str(fit.n_parameters), **found}
    except ModelError:
        pass  # a law whose parameters cannot be counted
    numbers["effective particles"] = f"{float(ess.min()):.0f} least, {float(ess.median()):.0f} median"
    numbers["converged"] = "yes" if fit.converged else f"no: {_unsettled(fit)}"
    if reasons := doubts(fit):
        numbers["warning"] = ". ".join(reasons)
    return numbers
