"""How do fits end? A thousand random data sets, sensible and not.

    python -m nlmeflow.studies run tools/studies/reliability.yml [--out data/studies/reliability]

Each data set draws a curve of the library, units of time and response between 1e-9 and 1e9, parameters, a
population (Gaussian or of two groups), 2 to 40 individuals, 1 to 14 times, missing values, an error model, a
law, often a design (individuals within groups, a covariate, a censored response, one or all series of 100 to
400 observations), and often something awkward: individuals without data, twins, gross outliers, a constant
response, no noise at all, more noise than signal. Nothing is said to the fit but the model and the law.

Printed: how the fits ended. "converged": so it says, and every number that it reports is finite, those of its
summary, standard errors included; "refused":
ModelError or DataError, before anything was fitted; "explained": EstimationError; "not converged": it says
so; "NaN": a number is not finite; "below": less likely than the parameters that were simulated, so not at the
maximum, without a warning in the summary or a word that the likelihood has no peak there; anything else is a
crash. `fitted(case(17))` repeats one data set.
"""

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

import nlmeflow as nf
from nlmeflow.estimation.em import State
from nlmeflow.estimation.likelihood import locate
from nlmeflow.estimation.particles import draw
from nlmeflow.laws.affine import safe_cholesky
from nlmeflow.laws.draws import expectation
from nlmeflow.laws.gaussian import GaussianLaw
from nlmeflow.running import estimating
from nlmeflow.seeds import generator
from nlmeflow.studies.run import Row

LOST = 2.0  # nats that Monte-Carlo error does not explain
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
DESIGNS = ["", "", "", "", "groups", "covariate", "censored", "long", "one long"]
AWKWARD = ["", "", "", "outliers", "constant", "no noise", "much noise", "twins", "empty", "one time"]


@dataclass(frozen=True)
class Case:
    """A data set, the model and the law that are fitted to it, and what is special."""

    frame: pd.DataFrame
    columns: dict[str, Any]
    model: nf.Model
    law: Any
    about: dict[str, Any]
    natural: dict[str, np.ndarray]
    noise: float


def case(seed: int) -> Case:
    """Draw a data set; the same for the same seed."""
    random = np.random.default_rng(seed)
    name, design = str(random.choice(list(FAMILIES))), str(random.choice(DESIGNS))
    family, awkward = FAMILIES[name], str(random.choice(AWKWARD))
    units = 10.0 ** random.uniform(-9, 9, 2) if random.random() < 0.5 else np.ones(2)
    curve = family.make(*units)
    n, times = int(random.integers(2, 41)), int(random.integers(1, 15))
    seen = np.full(n, times)
    if "long" in design:
        seen[: n if design == "long" else 1] = times = int(random.integers(100, 401))
    about_each = pd.DataFrame({"x": random.standard_normal(n), "kind": random.choice(["a", "b", "c"], n)})
    psi = _individuals(curve, family.typical(*units), about_each["x"].to_numpy(), random)
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
    response[np.arange(times) >= seen[:, None]] = np.nan
    table = pd.DataFrame({"who": np.repeat(np.arange(n), times), "t": time.ravel(), "y": response.ravel()})
    columns, structure = _designed(table, about_each, design, curve, random)
    frame = table.sample(frac=1, random_state=seed)
    free = [name for name in curve.names if name not in structure.get("within", ())]
    fixed = tuple(str(x) for x in random.choice(free, 1)) if random.random() < 0.25 else ()
    law = LAWS[random.integers(len(LAWS))]
    about: dict[str, Any] = {"curve": name, "law": type(law).__name__, "error": type(residual).__name__}
    about |= {"design": design or "plain", "awkward": awkward or "no", "individuals": n, "times": times}
    scale = min(noise, 0.5) if isinstance(residual, nf.LogAdditive) else noise * float(spread)
    return Case(frame, columns, nf.Model(curve, residual, fixed, **structure), law, about, psi, scale)


def _designed(
    table: pd.DataFrame, each: pd.DataFrame, design: str, curve: nf.Curve, random: np.random.Generator
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Add a design's columns to a table; return what to say of it to the data's reader and to the model."""
    parameter = str(random.choice(curve.names))
    if design == "groups":
        table["group"] = table["who"] // int(random.integers(2, 5))
        return {"group": "group"}, {"within": (parameter,)}
    if design == "covariate":
        term = str(random.choice(["x", "kind"]))
        table[term] = each[term].to_numpy()[table["who"]]
        return {"covariates": [term]}, {"covariates": {parameter: term}}
    if design == "censored":
        limit = np.nanquantile(table["y"], random.uniform(0.1, 0.6)) if table["y"].notna().any() else 0.0
        table["kind"] = np.where(table["y"] < limit, "left", "")
        table["y"] = table["y"].clip(lower=limit)
        return {"censoring": "kind"}, {}
    return {}, {}


def _individuals(
    curve: nf.Curve, typical: Natural, x: np.ndarray, random: np.random.Generator
) -> dict[str, np.ndarray]:
    """Return natural parameters; the first moves with x by a third of its spread."""
    n = len(x)
    group = random.random(n) < 0.4 if random.random() < 0.3 else np.zeros(n, dtype=bool)
    found: dict[str, np.ndarray] = {}
    for parameter in curve.parameters:
        value, sd = typical[parameter.name], random.uniform(0.02, 0.4)
        shape = sd * random.standard_normal(n) + np.where(group, random.choice([-1.0, 0.0, 1.0]), 0.0)
        shape = shape + (0.3 * sd * x if not found else 0.0)
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
        numbers, summary = reported(fit), fit.summary()
        if not np.isfinite(numbers).all() or "nan" in str(summary):
            end, why = "NaN", ""
        else:
            end, why = ("converged" if fit.converged else "not converged"), ""
        content = summary.numbers["converged"] == "yes" and "warning" not in summary.numbers
        if content and (lost := shortfall(one, fit)) > LOST:
            end, why = "below", f"{lost:.1f} nats less likely than what was simulated"
    except (nf.ModelError, nf.DataError) as error:
        end, why = "refused", str(error)
    except nf.EstimationError as error:
        end, why = "explained", str(error)
    except Exception as error:
        end, why = "crash", "".join(traceback.format_exception_only(error)).strip()
    return [one.about | {"end": end, "why": why[:200]}]


def fitted(one: Case) -> nf.Fit:
    """Read the data and fit."""
    data = nf.LongitudinalData.from_frame(one.frame, "who", "t", "y", **one.columns)
    return one.model.fit(data, one.law, seed=0, particles=256, progress=False)


def reported(fit: nf.Fit) -> np.ndarray:
    """Return every number that a user looks at first."""
    numbers = [*fit.residual.values(), *fit.fixed.values(), fit.log_likelihood().value]
    numbers += [*fit.shrinkage().values(), *fit.individuals("natural").to_numpy(dtype=float).ravel()]
    numbers += list(fit.population(200, 1).to_numpy().ravel())
    return np.array(numbers)


def shortfall(one: Case, fit: nf.Fit) -> float:
    """Return by how much a Gaussian of the simulated parameters' moments is more likely than the fit.

    A maximum is at least as likely as any other point of the model. Known where the model is the simulated
    one but for the population's shape, and the law a Gaussian without a prior; -inf elsewhere.
    """
    plain = one.about["awkward"] in ("no", "much noise", "empty") and not one.model.within
    known = isinstance(one.model.residual, nf.Additive | nf.LogAdditive) and plain
    if not known or not isinstance(fit.law, GaussianLaw) or fit.law.prior:
        return -np.inf
    phi = {
        p.name: p.scale.unconstrained(torch.from_numpy(one.natural[p.name]))
        for p in one.model.curve.parameters
    }
    drawn = torch.stack([phi[name] for name in fit.names], 1)
    sds = drawn.std(0).clamp_min(1e-6)
    factor = (
        sds.diag()
        if one.law.covariance == "diagonal"
        else safe_cholesky(drawn.mT.cov().reshape(len(sds), -1))
    )
    law = GaussianLaw(drawn.mean(0), factor)
    fixed = (
        torch.stack([phi[name].mean() for name in one.model.fixed]) if one.model.fixed else drawn.new_zeros(0)
    )
    beta = torch.cat([fixed, fit.state.beta.new_zeros(len(fit.state.beta) - len(fixed))])
    state = State(law, beta, drawn.new_tensor([one.noise]))
    with estimating():
        problem, random = fit.problem(), generator(0)
        particles = draw(problem, locate(problem, state, 512, random), beta, 2048, random)
        found = expectation(particles.log_ratio(problem, state.sigma), law.log_prob(particles.phi))
    return float(found.log_likelihood.sum()) - fit.log_likelihood().value


def report(table: pd.DataFrame) -> None:
    """Print how the fits ended."""
    print(table.groupby("curve")["end"].value_counts().unstack(fill_value=0).to_string(), "\n")
    print(table.groupby("law")["end"].value_counts().unstack(fill_value=0).to_string(), "\n")
    print(table.groupby("design")["end"].value_counts().unstack(fill_value=0).to_string(), "\n")
    print(table.groupby("awkward")["end"].value_counts().unstack(fill_value=0).to_string(), "\n")
    good = table["end"].isin(GOOD)
    print(f"{len(table)} data sets: {good.mean():.1%} ended in a converged fit or in an explanation.")
    tried = good[table["end"] != "refused"]
    print(f"Of the {len(tried)} that were not refused at once: {tried.mean():.1%}.")
    bad = table[~good]
    if len(bad):
        print(bad[["replicate", "curve", "law", "design", "awkward", "end", "why"]].to_string(index=False))
