"""Figures of `nlmeflow.diagnostics`: each takes a fit, draws on Axes, and returns them."""

from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from scipy import stats

from nlmeflow.arguments import checked
from nlmeflow.fitting.fit import Fit
from nlmeflow.reports import diagnostics

MAIN, SEEN = "#1f6f8b", "#222222"


def words(name: object) -> str:
    """Return a name as figures show it: of several $, matplotlib would make a formula."""
    return str(name).replace("$", r"\$")


@checked
def vpc(fit: Fit, ax: Axes | None = None, **options: Any) -> Axes:
    """Draw the visual predictive check: bands of simulated quantiles, lines of observed ones.

    options : of `diagnostics.vpc`.
    """
    ax = plt.gca() if ax is None else ax
    table = diagnostics.vpc(fit, **options)
    mask = fit.data.mask
    times, seen = fit.data.time[mask], fit.data.response[mask]
    ax.plot(times, seen, ".", ms=2.5, color="#999999", alpha=0.5, label="each observation")
    for k, (_, part) in enumerate(table.groupby("quantile")):
        ax.fill_between(part["time"], part["lower"], part["upper"], color=MAIN, alpha=0.25, lw=0)
        ax.plot(
            part["time"],
            part["predicted"],
            color=MAIN,
            lw=1.0,
            label="simulated quantiles" if k == 0 else None,
        )
        ax.plot(
            part["time"], part["observed"], color=SEEN, lw=1.3, label="observed quantiles" if k == 0 else None
        )
    ax.set_xlabel(words(fit.data.names[1]))
    ax.set_ylabel(words(fit.data.names[2]))
    ax.legend(frameon=False)
    return ax


@checked
def npde(fit: Fit, ax: Axes | None = None, **options: Any) -> Axes:
    """Draw the quantiles of npde against those of the normal law, with a 95 % band for independent ones."""
    ax = plt.gca() if ax is None else ax
    values = np.sort(diagnostics.npde(fit, **options)["npde"].to_numpy())
    n = len(values)
    expected = stats.norm.ppf((np.arange(1, n + 1) - 0.5) / n)
    rank = np.arange(1, n + 1)
    low, high = (stats.norm.ppf(stats.beta.ppf(q, rank, n + 1 - rank)) for q in (0.025, 0.975))
    ax.fill_between(expected, low, high, color=MAIN, alpha=0.25, lw=0, label="95 % if the model is right")
    ax.plot(expected, values, ".", ms=3, color=SEEN)
    ax.axline((0, 0), slope=1, color=MAIN, lw=1)
    ax.set_xlabel("quantiles of the standard normal law")
    ax.set_ylabel("npde")
    ax.legend(frameon=False)
    return ax


@checked
def observed_predicted(
    fit: Fit, kind: Literal["individual", "population"] = "individual", ax: Axes | None = None
) -> Axes:
    """Draw observations against predictions; kind : "individual" or "population"."""
    ax = plt.gca() if ax is None else ax
    table = diagnostics.predictions(fit)
    ax.plot(table[kind], table["observed"], ".", ms=3, color=SEEN, alpha=0.6)
    ax.axline((table["observed"].mean(),) * 2, slope=1, color=MAIN, lw=1)
    ax.set_xlabel(f"{kind} prediction")
    ax.set_ylabel(f"observed {words(fit.data.names[2])}")
    return ax


@checked
def residuals(fit: Fit, ax: Axes | None = None) -> Axes:
    """Draw standardised individual residuals against time, with the limits of 95 % of normal ones."""
    ax = plt.gca() if ax is None else ax
    table = diagnostics.predictions(fit)
    ax.plot(table["time"], table["residual"], ".", ms=3, color=SEEN, alpha=0.6)
    for height, style in ((0.0, "-"), (1.96, ":"), (-1.96, ":")):
        ax.axhline(height, color=MAIN, lw=1, ls=style)
    ax.set_xlabel(words(fit.data.names[1]))
    ax.set_ylabel("standardised residual")
    return ax
