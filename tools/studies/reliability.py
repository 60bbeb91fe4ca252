"""How do fits end? A thousand random data sets, sensible and not.

    python -m nlmeflow.studies run tools/studies/reliability.yml [--out data/studies/reliability]

Each data set draws a curve of the library, units of time and response between 1e-6 and 1e6, parameters, a
population (Gaussian or of two groups), 2 to 40 individuals, 1 to 14 times, missing values, an error model, a
law, and often something awkward: individuals without data, twins, gross outliers, a constant response,
no noise at all, more noise than signal. Nothing is said to the fit but curve, error model and law.

Printed: how the fits ended. "converged": so it says, and every number that it reports is finite; "refused":
ModelError or DataError, before anything was fitted; "explained": EstimationError; "not converged": it says
so; "NaN": a number is not finite; anything else is a crash. `fitted(case(17))` repeats one data set.
"""

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

import nlmeflow as nf
from nlmeflow.studies.run import Row

GOOD = ["converged", "explained", "refused"]
Natural = dict[str, float]


@dataclass(frozen=True)
class Family:
    """A curve and typical natural parameters in units of time and of the response."""

    make: Callable[[float, float], nf.Curve]
    typical: Callable[[float, float], Natural]
    first: float
    last: float


FAMILIES = {
    "linear": Family(
        lambda time, size: nf.curves.linear(),
        lambda time, size: {"intercept": 2 * size, "slope": 0.5 * size / time},
        0,
        10,
    ),
    "logistic_senescence": Family(
        lambda time, size: nf.curves.logistic_senescence(),
        lambda time, size: {"A": size, "tau": 50 * time, "s": 3 * time},
        30,
        72,
    ),
    "logistic_growth": Family(
        lambda time, size: nf.curves.logistic_growth(),
        lambda time, size: {"Asym": 10 * size, "xmid": 5 * time, "scal": 1.5 * time},
        0,
        12,
    ),
    "gompertz": Family(
        lambda time, size: nf.curves.gompertz(),
        lambda time, size: {"A": 10 * size, "tau": 4 * time, "s": 1.5 * time},
        0,
        12,
    ),
    "change_point": Family(
        lambda time, size: nf.curves.change_point(time),
        lambda time, size: {"A": size, "tau": 50 * time, "b": 0.03 * size / time},
        30,
        72,
    ),
    "exponential_recovery": Family(
        lambda time, size: nf.curves.exponential_recovery(),
        lambda time, size: {"A": 10 * size, "y0": 2 * size, "k": 0.4 / time},
        0,
        12,
    ),
    "oral": Family(
        lambda time, size: nf.curves.oral(100.0),
        lambda time, size: {"ka": 1.2 / time, "CL": 2.5 / (size * time), "V": 30 / size},
        0.25,
        24,
    ),
    "infusion": Family(
        lambda time, size: nf.curves.infusion(500.0, 0.5 * time),
        lambda time, size: {"ke": 0.15 / time, "V": 100 / size},
        0.5,
        24,
    ),
    "biexponential": Family(
        lambda time, size: nf.curves.biexponential(),
        lambda time, size: {"A1": 6 * size, "k1": 1.2 / time, "A2": 3 * size, "k2": 0.15 / time},
        0.1,
        24,
    ),
    "emax": Family(
        lambda time, size: nf.curves.emax(),
        lambda time, size: {"E0": size, "Emax": 10 * size, "EC50": 3 * time},
        0,
        20,
    ),
}
RESIDUALS: list[Any] = [
    nf.Additive(),
    nf.Additive(),
    nf.Additive(),
    nf.Proportional(),
    nf.LogAdditive(),
    nf.Combined(),
]
LAWS: list[Any] = [nf.Gaussian()] * 9 + [nf.Gaussian("diagonal")] * 4 + [nf.Gaussian(prior=1.0)] * 2
LAWS += [nf.Mixture(), nf.Mixture(), nf.Flow(), nf.SNP(), nf.NPML()]
AWKWARD = ["", "", "", "outliers", "constant", "no noise", "much noise", "twins", "empty", "one time"]


@dataclass(frozen=True)
class Case:
    """A data set, the model and the law that are fitted to it, and what is special."""

    frame: pd.DataFrame
    model: nf.Model
    law: Any
    about: dict[str, Any]


def case(seed: int) -> Case:
    """Draw a data set; the same for the same seed."""
    random = np.random.default_rng(seed)
    name = str(random.choice(list(FAMILIES)))
    family, awkward = FAMILIES[name], str(random.choice(AWKWARD))
    units = 10.0 ** random.uniform(-6, 6, 2) if random.random() < 0.5 else np.ones(2)
    curve = family.make(*units)
    n, times = int(random.integers(2, 41)), int(random.integers(1, 15))
    psi = _individuals(curve, family.typical(*units), n, random)
    time = units[0] * np.sort(random.uniform(family.first, family.last, (n, times)), 1)
    if random.random() < 0.5:
        time = np.tile(time[:1], (n, 1))
    natural = {k: torch.from_numpy(v)[:, None] for k, v in psi.items()}
    mean = curve(torch.from_numpy(time), natural).expand(n, times).numpy()
    spread = mean.std() if mean.std() > 0 else units[1]
    noise = {"no noise": 0.0, "much noise": 3.0}.get(awkward, 10.0 ** random.uniform(-2.5, -0.3))
    response = mean + noise * spread * random.standard_normal(mean.shape)
    residual = RESIDUALS[random.integers(len(RESIDUALS))]
    if isinstance(residual, nf.LogAdditive):
        response = np.abs(mean) * np.exp(min(noise, 0.5) * random.standard_normal(mean.shape))
    response = _awkward(response, awkward, random)
    response[random.random(response.shape) < random.choice([0.0, 0.0, 0.2, 0.6])] = np.nan
    frame = pd.DataFrame(
        {"who": np.repeat(np.arange(n), times), "t": time.ravel(), "y": response.ravel()}
    ).sample(frac=1, random_state=seed)
    fixed = tuple(str(x) for x in random.choice(curve.names, 1)) if random.random() < 0.25 else ()
    law = LAWS[random.integers(len(LAWS))]
    about: dict[str, Any] = {"curve": name, "law": type(law).__name__, "error": type(residual).__name__}
    about |= {"awkward": awkward or "no", "individuals": n, "times": times}
    return Case(frame, nf.Model(curve, residual, fixed), law, about)


def _individuals(
    curve: nf.Curve, typical: Natural, n: int, random: np.random.Generator
) -> dict[str, np.ndarray]:
    group = random.random(n) < 0.4 if random.random() < 0.3 else np.zeros(n, dtype=bool)
    found = {}
    for parameter in curve.parameters:
        value, sd = typical[parameter.name], random.uniform(0.02, 0.4)
        shape = sd * random.standard_normal(n) + np.where(group, random.choice([-1.0, 0.0, 1.0]), 0.0)
        found[parameter.name] = value * (np.exp(shape) if parameter.scale.lower == 0 else 1 + 0.5 * shape)
    return found


def _awkward(response: np.ndarray, what: str, random: np.random.Generator) -> np.ndarray:
    if what == "outliers":
        wild = random.random(response.shape) < 0.02
        return np.where(wild, response * 1e3, response)
    if what == "constant":
        return np.full_like(response, response.flat[0])
    if what == "twins":
        response[1] = response[0]
    if what == "empty":
        response[random.random(len(response)) < 0.3] = np.nan
    if what == "one time":
        response[:, 1:] = np.nan
    return response


def measure(replicate: int) -> list[Row]:
    """Fit one data set; say how it ended."""
    one = case(replicate)
    try:
        fit = fitted(one)
        numbers = reported(fit)
        if not np.isfinite(numbers).all():
            end, why = "NaN", ""
        else:
            end, why = ("converged" if fit.converged else "not converged"), ""
    except (nf.ModelError, nf.DataError) as error:
        end, why = "refused", str(error)
    except nf.EstimationError as error:
        end, why = "explained", str(error)
    except Exception as error:
        end, why = "crash", "".join(traceback.format_exception_only(error)).strip()
    return [one.about | {"end": end, "why": why[:200]}]


def fitted(one: Case) -> nf.Fit:
    """Read the data and fit."""
    data = nf.LongitudinalData.from_frame(one.frame, "who", "t", "y")
    return one.model.fit(data, one.law, seed=0, particles=256, progress=False)


def reported(fit: nf.Fit) -> np.ndarray:
    """Return every number that a user looks at first."""
    numbers = [*fit.residual.values(), *fit.fixed.values(), fit.log_likelihood().value]
    numbers += [*fit.shrinkage().values(), *fit.individuals("natural").to_numpy(dtype=float).ravel()]
    numbers += list(fit.population(200, 1).to_numpy().ravel())
    return np.array(numbers)


def report(table: pd.DataFrame) -> None:
    """Print how the fits ended."""
    print(table.groupby("curve")["end"].value_counts().unstack(fill_value=0).to_string(), "\n")
    print(table.groupby("law")["end"].value_counts().unstack(fill_value=0).to_string(), "\n")
    print(table.groupby("awkward")["end"].value_counts().unstack(fill_value=0).to_string(), "\n")
    good = table["end"].isin(GOOD)
    print(f"{len(table)} data sets: {good.mean():.1%} ended in a converged fit or in an explanation.")
    tried = good[table["end"] != "refused"]
    print(f"Of the {len(tried)} that were not refused at once: {tried.mean():.1%}.")
    bad = table[~good]
    if len(bad):
        print(bad[["replicate", "curve", "law", "awkward", "end", "why"]].to_string(index=False))
