"""Why the numbers of a fit may mislead although it ended well, in the user's words."""

from collections.abc import Iterator
from contextlib import suppress

import pandas as pd
import torch
from torch import Tensor

from nlmeflow.data import LongitudinalData
from nlmeflow.errors import ModelError
from nlmeflow.estimation.likelihood import FEW
from nlmeflow.fitting.fitted import Fitted
from nlmeflow.fitting.suspicions import counts_from_zero, mistakes
from nlmeflow.laws.gaussian import GaussianLaw
from nlmeflow.numerics import moments

BEYOND = 0.5  # of the range of a covariate in a fit, by which a new value lies outside it
FINE, STEP = 200, 10  # parts of the time between two dates, and in how many of them a curve jumps
JUMP = 0.9  # share of a curve's range that lies in a jump
SAME = 0.9999  # cosine of what two parameters do to the curve, from which they do the same
TAIL = 3.0  # times the spread of the individuals, from which on a law's standard deviation is a tail's
AT_END = 0.002  # share of a scale between two ends within which its typical value is at one of them
LOOKED_AT = 50  # individuals whose curves are looked at, and dates between which they are


def doubts(fit: Fitted) -> list[str]:
    """Return what makes the numbers of a fit doubtful, a sentence for each reason.

    Estimates are doubted for the data from which they were made, the log-likelihood for those looked at.
    """
    made = fit.estimated
    about_data = mistakes(made.data.observed)
    reasons = (_few, _moments, _jumps, _alike, _elsewhere, _ends, _tails)
    return [*_uncertain(fit), *about_data, *(said for reason in reasons for said in reason(made))]


def _uncertain(fit: Fitted) -> Iterator[str]:
    if fit.law.has_density and (float(fit.ess.min()) < FEW or fit.marginal.error > 1):
        yield "the log-likelihood is uncertain; fit again with more particles, particles=..."


def unreached(fit: Fitted) -> Iterator[str]:
    """Individuals that took no part in the fit, so far from the population that particles miss them."""
    if fit.origin is None or not fit.law.has_density:
        return
    poor = torch.nonzero(fit.ess < FEW)[:, 0]
    if len(poor):
        shown = ", ".join(f"'{fit.problem().labels[k]}'" for k in poor[:3].tolist())
        more = f" and {len(poor) - 3} more" if len(poor) > 3 else ""
        yield (
            f"{shown}{more} lie{'s' if len(poor) == 1 else ''} far from the population that was "
            f"fitted: means, standard deviations and likelihoods rest on {float(fit.ess[poor].min()):.1f} "
            "effective particles and are uncertain."
        )


def extrapolated(fit: Fitted, data: LongitudinalData) -> Iterator[str]:
    """Covariates of new individuals far outside those of the fit: their effects are lines drawn on."""
    for name in dict.fromkeys(effect.variable for effect in fit.effects if effect.level is None):
        seen, new = fit.estimated.data.observed.covariates[name], data.covariates[name]
        low, high = float(seen.min()), float(seen.max())
        outside = (new < low - BEYOND * (high - low)) | (new > high + BEYOND * (high - low))
        if outside.any():
            first = int(outside.to_numpy().argmax())
            yield (
                f"{name} = {float(new.iloc[first]):.4g} of '{data.labels[first]}' lies far outside the fit's "
                f"range, {low:.4g} to {high:.4g}: its effect there is an extrapolation."
            )


def _tails(fit: Fitted) -> Iterator[str]:
    """A standard deviation far above that of the individuals, sqrt(Var E[phi | y] + E Var[phi | y])."""
    means, covariance = moments(*fit.latent)
    within = covariance.diagonal(dim1=-2, dim2=-1)[fit.seen].mean(0)
    individuals = (means[fit.seen].var(0, correction=0) + within).sqrt()
    for name, sd, own in zip(fit.names, fit.gaussian.sd.tolist(), individuals.tolist(), strict=True):
        if sd > TAIL * own:
            yield (
                f"the standard deviation of '{name}' in the population, {sd:.4g}, is far above that of the "
                f"individuals, {own:.4g}: it is made by a tail of the law that none of them informs; look at "
                "quantiles, fit.population(), or take a law with fewer parameters"
            )


def _few(fit: Fitted) -> Iterator[str]:
    """No more individuals, or groups, than parameters that vary: the covariance is singular."""
    count, dim = int(fit.seen.sum()), fit.law.dim
    if fit.law.normal is not None and fit.law.n_parameters > 2 * dim and count <= dim:
        what = "groups" if fit.model.within else "individuals"
        yield (
            f"{count} {what} cannot tell a covariance of {dim} parameters, and the likelihood has several "
            "maxima; take nf.Gaussian('diagonal'), or fix some"
        )


def _moments(fit: Fitted) -> Iterator[str]:
    """A Gaussian with more parameters than the responses have means, variances and covariances."""
    data = fit.data.observed
    alike = fit.law.normal is not None and not (fit.effects or fit.model.curve.inputs or fit.model.within)
    if alike and data.bounds is None and (known := n_moments(data)) < fit.n_parameters:
        yield (
            f"the responses have {known} means, variances and covariances, and {fit.n_parameters} parameters "
            "are estimated: only the shape of the curve tells them apart; fix some, or give the residual "
            "parameters"
        )


def _ends(fit: Fitted) -> Iterator[str]:
    """A population at an end of a scale that has two: it may lie beyond."""
    mean = GaussianLaw.like(fit.law).mean
    natural = {name: float(value) for name, value in fit.model.curve.natural(mean, fit.names).items()}
    for name, value in (natural | fit.fixed).items():
        scale = fit.model.curve[name].scale
        if scale.end_near(value, AT_END) is not None:
            yield (
                f"'{name}' is typically {value:.6g}, at the end of its scale from {scale.lower:g} to "
                f"{scale.upper:g}: the population may lie beyond; give it other limits, "
                "nf.bounded(lower, upper)"
            )


def _elsewhere(fit: Fitted) -> Iterator[str]:
    """Effects that add nothing only where no individual is: the population law is the law there."""
    seen, where = fit.data.observed.covariates, {}
    written: dict[str, list[str]] = {}
    moved = set()
    for effect in fit.effects:
        if effect.parameter not in fit.names:
            continue
        terms = written.setdefault(effect.parameter, [])
        if effect.level is not None:
            terms += [] if effect.variable in terms else [effect.variable]
            continue
        values = seen[effect.variable]
        low, high, centre = float(values.min()), float(values.max()), _round(values)
        if low <= effect.zero <= high:
            terms.append(effect.name.removeprefix(f"{effect.parameter}: "))
            continue
        moved.add(effect.parameter)
        terms.append(effect.centred(centre) if centre > 0 else "")
        known = f"{effect.variable} lies between {low:.4g} and {high:.4g}"
        where[f"{effect.variable} = {effect.zero:g}"] = known
    if where:
        parts = [f"'{name}': '{' + '.join(terms)}'" for name, terms in written.items() if name in moved]
        plain = all(all(terms) for terms in written.values())
        how = f"write nf.Model(..., covariates={{{', '.join(parts)}}})" if plain else "subtract its mean"
        yield (
            f"the population law is that of individuals with {' and '.join(where)}, while "
            f"{' and '.join(where.values())}; {how} to have it where the data are"
        )


def _round(values: pd.Series) -> float:
    """Return the median of two digits, or of as many as are needed to lie among the values."""
    centre = float(values.median())
    rounded = (float(f"{centre:.{digits}g}") for digits in range(2, 17))
    return next((one for one in rounded if values.min() <= one <= values.max()), centre)


def n_moments(data: LongitudinalData) -> int:
    """Return how many means, variances and covariances the responses at distinct times have."""
    times, index = data.time[data.mask].unique(return_inverse=True)
    size = len(times)
    if size > LOOKED_AT:
        return 2 * size  # means and variances alone are more than any curve has parameters
    seen = torch.zeros(len(data), size, dtype=torch.float64)
    seen[data.mask.nonzero()[:, 0], index] = 1.0
    together = seen.mT @ seen > 0
    return size + int(together.triu().sum())


def _jumps(fit: Fitted) -> Iterator[str]:
    """Curves that fall or rise at once between two dates: the data say nothing of how fast."""
    if fit.model.curve.inputs:
        return
    data, (phi, weights) = fit.data.observed, fit.latent
    dates = data.time[data.mask].unique()[:LOOKED_AT]
    if len(dates) < 2:
        return
    mean = moments(phi[:LOOKED_AT], weights[:LOOKED_AT])[0]
    if not fit.model.within:  # else the curves are those of groups, without effects of covariates
        mean = mean + fit.shift[:LOOKED_AT]
    parts = torch.linspace(0, 1, FINE + 1, dtype=dates.dtype)[:-1]
    grid = torch.cat([(dates[:-1, None] + dates.diff()[:, None] * parts).flatten(), dates[-1:]])
    with suppress(ModelError):  # a user's own curve may refuse times at which nothing was observed
        step, reach = _steepest(fit.model.mean_response(mean, grid.expand(len(mean), -1), **fit.fixed))
        if bool((step > JUMP * reach).double().mean() > 0.5):
            yield (
                "the curves of most individuals jump between two neighbouring times; how fast they change "
                "there is hardly determined by these data: measure in between, or fix the rate"
            )


def _steepest(curve: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest change within a step of curves at points (N, n), and their ranges: (N,), (N,)."""
    change = (curve[:, STEP:] - curve[:, :-STEP]).abs()
    return change.amax(1), curve.amax(1) - curve.amin(1)


def _alike(fit: Fitted) -> Iterator[str]:
    """Two parameters that do the same to the curve, as intercept and slope do where time zero is far away."""
    people = fit.problem().individuals
    people = people.subset(torch.arange(len(people))[:LOOKED_AT])
    phi = GaussianLaw.like(fit.law).mean.expand(len(people), -1)
    slopes = people.jacobian(phi, fit.beta)[1][..., : people.dim]
    slopes = torch.where(people.data.mask[..., None], slopes, 0.0)
    size = slopes.square().sum(1).sqrt()
    cosine = (
        ((slopes.mT @ slopes) / (size[:, :, None] * size[:, None])).median(0).values.abs().nan_to_num(0.0)
    )
    row, column = torch.triu_indices(people.dim, people.dim, 1)
    if len(row) and float((pairs := cosine[row, column]).max()) > SAME:
        worst = int(pairs.argmax())
        one, other = people.random[row[worst]], people.random[column[worst]]
        seen = people.data.time[people.data.mask]
        first, last = float(seen.min()), float(seen.max())
        text = f"'{one}' and '{other}' change the curve in the same way at these times: "
        if first > last - first and counts_from_zero(fit.model.curve):
            text += (
                f"times lie between {first:.10g} and {last:.10g}, so that each alone is an extrapolation, "
                "and fits can end below the maximum, with independent parameters far below: subtract their "
                "origin"
            )
        else:
            text += "the data hardly tell one from the other"
        yield text
