"""Tables of a fit: its individuals, its groups, its criteria; and the check that its numbers are numbers."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nlmeflow.errors import EstimationError, ModelError
from nlmeflow.estimation.em import State
from nlmeflow.estimation.likelihood import population_gaussian
from nlmeflow.estimation.problem import Problem
from nlmeflow.laws import DiscreteLaw, GaussianLaw, KernelLaw, MixtureLaw, SNPLaw, TransformedLaw
from nlmeflow.laws.gaussian import moments

if TYPE_CHECKING:
    from nlmeflow.fit import Fit
    from nlmeflow.model import Model

FARTHEST = 1e100  # natural value at which a parameter has run off
NOTHING = 1e-3  # residual error, as a share of that without a curve, that is next to none


def individuals(fit: "Fit", scale: str) -> pd.DataFrame:
    """Return the table of `Fit.individuals`."""
    phi, weights = fit.conditional
    mode = None if fit.model.within else fit.modes() + fit.shift
    frame = _conditional(fit, phi, weights, scale, mode)
    if mode is not None:
        frame["log_likelihood"] = fit.marginal.values.numpy()
    frame.index = pd.Index(fit.data.labels, name=fit.data.names[0])
    return frame


def groups(fit: "Fit", scale: str) -> pd.DataFrame:
    """Return the table of `Fit.groups`."""
    if not fit.model.within:
        raise ModelError("The model has one level; groups are those of nf.Model(..., within=...).")
    frame = _conditional(fit, *fit.latent, scale)
    frame["log_likelihood"] = fit.marginal.values.numpy()
    frame.index = pd.Index(fit.problem().labels, name=fit.data.group)
    return frame


def _conditional(
    fit: "Fit", phi: Tensor, weights: Tensor, scale: str, mode: Tensor | None = None
) -> pd.DataFrame:
    if scale not in ("phi", "natural"):
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


def criteria(fit: "Fit") -> pd.Series:
    """Return the table of `Fit.criteria`."""
    counted = isinstance(fit.law, GaussianLaw | MixtureLaw | SNPLaw | TransformedLaw)
    if not counted or isinstance(fit.law, KernelLaw):
        raise ModelError(
            f"A {type(fit.law).__name__} has no number of parameters to count; compare it by "
            "held-out likelihood, nf.compare."
        )
    deviance, n = -2 * fit.log_likelihood().value, len(fit.problem())
    common = fit.problem().common + fit.n_scales
    population = fit.n_parameters - common
    corrected = population * np.log(n) + common * np.log(fit.data.n_observations)
    values = {"AIC": 2 * fit.n_parameters, "BIC": fit.n_parameters * np.log(n), "BICc": corrected}
    return pd.Series({name: deviance + float(penalty) for name, penalty in values.items()})


def check_finite(model: "Model", state: State) -> None:
    """Raise EstimationError when a parameter ran off to where the curve's own units end."""
    law = state.law.moments if isinstance(state.law, DiscreteLaw) else population_gaussian(state.law)
    wide = torch.stack([law.mean - 3 * law.sd, law.mean, law.mean + 3 * law.sd])
    for name, values in model.curve.natural(wide, model.random).items():
        lower = model.curve[name].scale.lower
        near = lower > -torch.inf and bool((values - lower < 1 / FARTHEST).any())
        if near or not bool((values.abs() < FARTHEST).all()):
            middle, sd = law.mean[model.random.index(name)], law.sd[model.random.index(name)]
            raise EstimationError(
                f"Parameter '{name}' ran off while fitting (mean {float(middle):.3g}, sd {float(sd):.3g} on "
                f"the {model.curve[name].scale.name} scale): the data do not determine it. Give it a first "
                f"value with fit(..., start={{'{name}': ...}}), name it in fixed=(...), or take a simpler "
                "curve."
            )


def check_residual(problem: Problem, state: State) -> None:
    """Raise EstimationError when a fit did not end because its residual error shrinks without end."""
    data, people = problem.data, problem.individuals
    pooled = data.response[data.mask].mean().expand_as(data.response)
    whole = people.residual.start(data.response, pooled, data.mask)
    sigma = problem.own_sigma(state.sigma)
    if not people.residual.given and bool((sigma < NOTHING * whole).all()):
        last = ", ".join(f"{value:.2g}" for value in sigma.tolist())
        raise EstimationError(
            f"The residual error shrinks without end (last {last}): curves pass through all observations. "
            "Give the residual parameters, for example nf.Additive(sigma=...), or name parameters in "
            "fixed=(...)."
        )
