"""What an analysis found, in sentences computed from its numbers."""

import pandas as pd

from nlmeflow.arguments import checked
from nlmeflow.data import LongitudinalData
from nlmeflow.errors import ModelError
from nlmeflow.fitting.bootstrap import Bootstrap, share_columns
from nlmeflow.fitting.fit import Fit
from nlmeflow.reports.varieties import Characterisation

SURE = 0.9  # probability from which a statement about one variety counts as sure
FEW_LEVELS = 6  # whole numbers that may be names of groups
MOSTLY = 0.8  # share of replicates, and of places of a predictive check, that is called most


@checked
def about_data(data: LongitudinalData) -> str:
    """Return how many were observed, how often and when, what is missing or censored, and the covariates."""
    who, when, what = data.names
    counts = data.counts[data.counts > 0].double()
    if not len(counts):
        return f"None of the {len(data):,} individuals ({who}) has an observation of {what}."
    times = data.time[data.mask]
    each = f"{float(counts.median()):g}"
    if float(counts.min()) != float(counts.max()):
        each = f"{float(counts.min()):g} to {float(counts.max()):g} (median {each})"
    said = [
        f"{len(data):,} individuals ({who}) with {data.n_observations:,} observations of {what}, {each} "
        f"each, at {when} {float(times.min()):g} to {float(times.max()):g}."
    ]
    if nobody := int((data.counts == 0).sum()):
        said.append(f"{nobody} of the individuals have no observation, and take no part.")
    if data.n_missing:
        said.append(f"{data.n_missing:,} rows have no {what}; they are left out.")
    if data.group is not None:
        said.append(f"They belong to {data.covariates[data.group].nunique():,} groups ({data.group}).")
    if hidden := int((data.censored & data.mask).sum()):
        share = 100 * hidden / data.n_observations
        said.append(f"{hidden:,} observations ({share:.0f} %) are known only to lie between limits.")
    of_each = data.covariates.drop(columns=[data.group] if data.group is not None else [])
    return " ".join([*said, *(_about_covariate(str(name), values) for name, values in of_each.items())])


def _about_covariate(name: str, values: pd.Series) -> str:
    """Return how a covariate enters: by its number, or by its levels."""
    if not pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
        first, *others = sorted(values.astype(str).unique())
        compared = f"compared with {first}: {', '.join(others)}" if others else first
        return f"The covariate {name} has {len(others) + 1} levels, {compared}."
    low, high, count = values.min(), values.max(), values.nunique()
    said = f"The covariate {name} is a number, {low:g} to {high:g}: its effects are those of one unit."
    if count <= FEW_LEVELS and (values % 1 == 0).all():
        said += f" If it names {count} groups, write them as text, such as {name[0].upper()}{low:g}."
    return said


@checked
def about_groups(fit: Fit, bootstrap: Bootstrap) -> str:
    """Return how many groups the population law has, where and how large they are, and how sure that is.

    Raises
    ------
    ModelError : more than three random parameters.

    """
    if fit.law.normal is not None:
        return "A Gaussian law has one group by its form; it cannot show others."
    found, numbers = bootstrap.shares(), bootstrap.number_of_groups()
    count, replicates = len(found), len(bootstrap.laws)
    same = round(replicates * float(numbers.get(count, 0.0)))
    if count == 1:
        several = replicates - same
        few = several <= (1 - MOSTLY) * replicates
        words = "there is little sign of a second" if few else "a second group is not excluded"
        return (
            f"The population law has one group. In {several} of {replicates} replicates of the bootstrap "
            f"there are several: {words}."
        )
    share, low, high = share_columns(fit.names).values()
    places = "; ".join(
        f"group {label} around {', '.join(f'{name} = {row[name]:.3g}' for name in fit.names)}, "
        f"{100 * row[share]:.0f} % of the population (95 % limits {100 * max(row[low], 0):.0f} to "
        f"{100 * min(row[high], 1):.0f})"
        for label, row in found.iterrows()
    )
    sure = "their number is well supported" if same >= MOSTLY * replicates else "their number is not sure"
    return (
        f"The population law has {count} groups: {places}. There are {count} groups in {same} of "
        f"{replicates} replicates of the bootstrap: {sure}."
    )


@checked
def about_checks(check: pd.DataFrame, level: float = 0.9) -> str:
    """Return whether data simulated from the fit look like the data, from a visual predictive check.

    Raises
    ------
    ModelError : a table that `diagnostics.vpc` did not make.

    """
    if not {"observed", "lower", "upper", "time"} <= set(check.columns) or check.empty:
        raise ModelError("check is the table that nlmeflow.diagnostics.vpc returns.")
    within = check["observed"].between(check["lower"], check["upper"])
    gap = (check["lower"] - check["observed"]).combine(check["observed"] - check["upper"], max)
    said = (
        f"{int(within.sum())} of {len(check)} observed quantiles lie within the {100 * level:.0f} % "
        "intervals of data simulated from the fit"
    )
    if within.mean() >= MOSTLY:
        return f"{said}: the model makes data like these."
    worst = check.iloc[int(gap.to_numpy().argmax())]
    side = "above" if worst["observed"] > worst["upper"] else "below"
    return (
        f"{said}: the model does not make data like these. The largest gap is at time {worst['time']:.4g}, "
        f"where the observed {100 * worst['quantile']:.0f} % quantile lies {side} the interval. Another "
        "curve or error model may be needed."
    )


@checked
def about_varieties(found: Characterisation) -> str:
    """Return how many varieties belong surely to a group, and are surely on a side of the threshold."""
    table, said = found.table, []
    count = len(found.groups)
    if count > 1:
        sure = [int((table[f"P(group {k})"] > SURE).sum()) for k in range(1, count + 1)]
        each = ", ".join(f"{n} to group {k}" for k, n in enumerate(sure, 1)).replace(" to", " belong to", 1)
        left = len(table) - sum(sure)
        said.append(f"With a probability above {SURE:g}, {each}; {left} cannot be placed so.")
    if found.threshold is not None:
        below = table[f"P({found.parameter} < {found.threshold:g})"]
        said.append(
            f"{found.parameter} is below {found.threshold:g} with a probability above {SURE:g} in "
            f"{int((below > SURE).sum())} of {len(table)}, and above it in {int((below < 1 - SURE).sum())}; "
            f"the expected number below is {below.sum():.1f}."
        )
    width = table[f"rank of {found.parameter} upper"] - table[f"rank of {found.parameter} lower"]
    said.append(
        f"A rank of {found.parameter} among {len(table)} is known to within {width.median():.0f} places "
        "(median width of 90 % intervals)."
    )
    return " ".join(said)
