"""The printed summary of a fit: what a statistician asks first."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from nlmeflow.estimation.likelihood import population_gaussian
from nlmeflow.laws import GaussianLaw, KernelLaw, MixtureLaw, SNPLaw, TransformedLaw
from nlmeflow.seeds import derive

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
        rows = []
        for k, name in enumerate(fit.names):
            typical = curve[name].scale.natural(gaussian.mean[k])
            mean, sd = float(gaussian.mean[k]), float(gaussian.sd[k])
            row = [name, curve[name].scale.name, float(typical), mean, sd, shrinkage[name], curve[name].unit]
            rows.append(row)
        for name, value in fit.fixed.items():
            phi = float(curve[name].scale.unconstrained(torch.tensor(value, dtype=torch.float64)))
            rows.append([name, curve[name].scale.name, value, phi, 0.0, np.nan, curve[name].unit])
        for name, value in fit.covariate_effects.items():
            rows.append([name, "effect", np.nan, value, np.nan, np.nan, ""])
        for name, value in fit.residual.items():
            rows.append([name, "residual", value, np.nan, np.nan, np.nan, ""])
        head = ["parameter", "scale", "typical", "mean", "sd", "shrinkage", "unit"]
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


def _numbers(fit: "Fit") -> dict[str, str]:
    estimate = fit.log_likelihood()
    kernels = isinstance(fit.law, KernelLaw)  # their places and width are chosen, not counted
    ess = 1 / fit.latent[1].square().sum(1)
    numbers = {
        "law": type(fit.law).__name__,
        "individuals": f"{len(fit.data)} ({fit.data.n_observations} observations)",
        "log-likelihood": f"{estimate} (Monte-Carlo standard error)",
    }
    if isinstance(fit.law, GaussianLaw | MixtureLaw | SNPLaw | TransformedLaw) and not kernels:
        k = fit.n_parameters
        numbers["free parameters"] = str(k)
        numbers["AIC"] = f"{2 * k - 2 * estimate.value:.2f}"
        numbers["BIC"] = f"{k * np.log(len(fit.data)) - 2 * estimate.value:.2f}"
    numbers["effective particles"] = f"{float(ess.min()):.0f} least, {float(ess.median()):.0f} median"
    numbers["converged"] = "yes" if fit.converged else "no: see fit.trace"
    return numbers
