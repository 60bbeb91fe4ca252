"""The printed summary of a fit: what a statistician asks first."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from nlmeflow.errors import EstimationError, ModelError
from nlmeflow.estimation.likelihood import population_gaussian
from nlmeflow.laws import GaussianLaw
from nlmeflow.seeds import derive

LARGE = 2000  # individuals beyond which standard errors are left to `Fit.standard_errors`

if TYPE_CHECKING:
    from nlmeflow.fit import Fit


@dataclass(frozen=True)
class Summary:
    """A printed fit: `parameters` is a frame, `numbers` the rest by name."""

    parameters: pd.DataFrame
    numbers: dict[str, str]

    @classmethod
    def of(cls, fit: "Fit") -> "Summary":
        """Collect what a statistician asks first."""
        law, curve = fit.law, fit.model.curve
        gaussian = population_gaussian(law, derive(fit.seed, 93))
        shrinkage = fit.shrinkage()
        errors = _errors(fit)
        rows = []
        for k, name in enumerate(fit.names):
            typical = curve[name].scale.natural(gaussian.mean[k])
            mean, sd = float(gaussian.mean[k]), float(gaussian.sd[k])
            both = (errors.get(("mean", name), np.nan), errors.get(("sd", name), np.nan))
            scale, unit = curve[name].scale.name, curve[name].unit
            rows.append([name, scale, float(typical), mean, both[0], sd, both[1], shrinkage[name], unit])
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
        return cls(frame, _numbers(fit))

    def __str__(self) -> str:
        numbers = "\n".join(f"{key:<22} {value}" for key, value in self.numbers.items())
        return f"{self.parameters.round(4).to_string(na_rep='')}\n\n{numbers}"

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        numbers = pd.Series(self.numbers, name="").to_frame().to_html()
        return self.parameters.round(4).to_html(na_rep="") + numbers


def _errors(fit: "Fit") -> dict[tuple[str, str], float]:
    """Return standard errors by kind and name, none where there are none or where they take long."""
    if not isinstance(fit.law, GaussianLaw) or len(fit.data) > LARGE:
        return {}
    try:
        table = fit.standard_errors()["standard error"]
    except EstimationError:
        return {}
    return dict(zip(table.index.to_flat_index(), table.astype(float), strict=True))


def _numbers(fit: "Fit") -> dict[str, str]:
    estimate = fit.log_likelihood()
    ess = 1 / fit.latent[1].square().sum(1)
    numbers = {
        "law": type(fit.law).__name__,
        "individuals": f"{len(fit.data)} ({fit.data.n_observations} observations)",
        **({"groups": str(len(ess))} if fit.model.within else {}),
        "log-likelihood": f"{estimate} (Monte-Carlo standard error)",
    }
    try:
        criteria = {str(name): f"{value:.2f}" for name, value in fit.criteria().items()}
        numbers |= {"free parameters": str(fit.n_parameters), **criteria}
    except ModelError:
        pass  # a law whose parameters cannot be counted
    numbers["effective particles"] = f"{float(ess.min()):.0f} least, {float(ess.median()):.0f} median"
    numbers["converged"] = "yes" if fit.converged else "no: see fit.trace"
    return numbers
