"""What is known of each variety: its group, its rank, and how sure that is.

A variety is an individual, or a group of individuals where the model has two levels. What its data and the
population law say of its parameters together is its conditional law; every statement here is a probability
under it. Groups are those of the population law: one around each of its modes.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata
from torch import Tensor

from nlmeflow.arguments import checked, column
from nlmeflow.data import LongitudinalData
from nlmeflow.errors import ModelError, number
from nlmeflow.fitting.bootstrap import SAMPLE, located, share_columns
from nlmeflow.fitting.check import unit_of
from nlmeflow.fitting.fit import Fit
from nlmeflow.laws.draws import resample, shuffled
from nlmeflow.laws.modes import basins
from nlmeflow.running import estimating
from nlmeflow.seeds import Stream, derive, generator

DRAWS = 1000  # of each variety's conditional law
LIMITS = (0.05, 0.95)  # of intervals


@dataclass(frozen=True, eq=False)
class Characterisation:
    """Statements about varieties.

    table : one row per variety. For each parameter its conditional median on the natural scale and the limits
        of 90 %; the rank of the parameter named, 1 the smallest, with limits of 90 % (equal values, under a
        law made of points, share their mean rank); the probability of each group and the most probable one;
        with a threshold, the probability that the parameter is below it.
        The columns "observations" and "group" are "number of observations" and "most probable group" where
        a parameter is called so.
    groups : place of each group's mode on the natural scale, and the share of the population in it ("share of
        the group" where a parameter is called share).
    parameter : the parameter that is ranked. threshold : of it, or None.
    """

    table: pd.DataFrame
    groups: pd.DataFrame
    parameter: str
    threshold: float | None


@checked
def characterise(
    fit: Fit, parameter: str | None = None, threshold: float | None = None, seed: int = 0
) -> Characterisation:
    """Characterise varieties by their conditional laws.

    parameter : to rank them by, on the natural scale; by default the first random parameter whose scale is
        that of time (the identity), else the first. threshold : of interest, in the parameter's unit.

    Covariates are taken into account: parameters are those of the variety under its own covariates, groups
    those of the population law, which is that of individuals at whom the effects add nothing: a covariate of
    zero, or of its reference in a term such as 'age - 40', and the first level of a category. There are
    no groups where the law has no density, or more than three parameters vary; the table then has no such
    columns.

    Raises
    ------
    ModelError : no random parameter of this name; a threshold that is no number.

    """
    names = fit.names
    if parameter is None:
        plain = [name for name in names if fit.model.curve[name].scale.name == "identity"]
        parameter = (plain or list(names))[0]
    if parameter not in names:
        raise ModelError(f"No random parameter '{parameter}'; the model has {', '.join(names)}.")
    if threshold is not None:
        threshold = number("threshold", threshold)
    with estimating():
        eta = _drawn(fit, seed)
        shift = 0.0 if fit.model.within else fit.shift[:, None]
        natural = fit.model.curve.natural(eta + shift, names)
    labels = list(fit.problem().labels)
    table = pd.DataFrame(index=pd.Index(labels, name=unit_of(fit)))
    table[column("observations", "number of observations", names)] = _observations(
        fit.data, labels, bool(fit.model.within)
    )
    for name in names:
        low, middle, high = np.quantile(natural[name].numpy(), [LIMITS[0], 0.5, LIMITS[1]], axis=1)
        table[name], table[f"{name} lower"], table[f"{name} upper"] = middle, low, high
    table = table.join(_ranks(natural[parameter], parameter, table.index))
    if threshold is not None:
        below = (natural[parameter] < threshold).double().mean(1).numpy()
        table[f"P({parameter} < {threshold:g})"] = below
    probabilities, groups = _groups(fit, eta)
    for k in range(probabilities.shape[1]):
        table[f"P(group {k + 1})"] = probabilities[:, k].numpy()
    if probabilities.shape[1]:
        table[column("group", "most probable group", names)] = probabilities.argmax(1).numpy() + 1
    return Characterisation(table, groups, parameter, threshold)


def _drawn(fit: Fit, seed: int) -> Tensor:
    """Return draws of each variety's conditional law without the effects of covariates, (N, DRAWS, d)."""
    phi, weights = fit.latent
    random = generator(derive(seed, Stream.CHARACTERISED))
    if fit.law.has_density:
        return shuffled(resample(phi, weights, DRAWS, random), random)  # for ranks, each independent
    chosen = torch.multinomial(weights, DRAWS, replacement=True, generator=random)
    return phi[0][chosen]


def _observations(data: LongitudinalData, labels: list[object], grouped: bool) -> np.ndarray:
    counts = data.counts.numpy()
    if not grouped:
        return counts
    code, names = data.grouped()
    by_group = pd.Series(np.bincount(code, counts, len(names)), names)
    return by_group.reindex(labels).to_numpy().astype(int)


def _ranks(values: Tensor, parameter: str, index: pd.Index) -> pd.DataFrame:
    """Return the median and limits of each variety's rank among draws of all, 1 the smallest.

    Equal values, under a law made of points, share the mean of their ranks.
    """
    ranks = rankdata(values.numpy(), axis=0)
    low, middle, high = np.quantile(ranks, [LIMITS[0], 0.5, LIMITS[1]], axis=1)
    name = f"rank of {parameter}"
    return pd.DataFrame({name: middle, f"{name} lower": low, f"{name} upper": high}, index)


def _groups(fit: Fit, eta: Tensor) -> tuple[Tensor, pd.DataFrame]:
    """Return the probability of each group for each variety (N, K), and the groups' places and shares."""
    if not fit.law.has_density or fit.law.dim > 3:
        return eta.new_zeros(len(eta), 0), pd.DataFrame()
    with estimating():
        found = basins(fit.law)
        label = found.of(eta.flatten(0, 1)).reshape(eta.shape[:2])
        probabilities = torch.stack([(label == k).double().mean(1) for k in range(len(found.modes))], 1)
        shares = found.shares(fit.law.sample(SAMPLE, 0))
        return probabilities, located(fit, found).assign(
            **{share_columns(fit.names)["share"]: shares.numpy()}
        )
