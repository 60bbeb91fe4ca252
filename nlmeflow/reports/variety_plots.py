"""Figures of observations and of varieties: each draws on Axes, and returns them."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Ellipse
from scipy.stats import chi2
from torch import Tensor

from nlmeflow.arguments import checked
from nlmeflow.data import LongitudinalData
from nlmeflow.fitting.fit import Fit
from nlmeflow.numerics import moments
from nlmeflow.reports.diagnostic_plots import MAIN, SEEN, words
from nlmeflow.reports.diagnostics import time_bins

MOST = 300  # individuals whose lines, or ellipses, are drawn
CLEAR = 60  # ellipses that can be told apart; more are drawn fainter


@checked
def observations(data: LongitudinalData, ax: Axes | None = None) -> Axes:
    """Draw each individual's observations as a line, of at most 300 of them, and medians of all at each time.

    Medians stand at distinct times, or in 15 bins of equal numbers where there are more.
    """
    ax = plt.gca() if ax is None else ax
    for row in np.unique(np.linspace(0, len(data) - 1, min(MOST, len(data))).round().astype(int)):
        mask = data.mask[row]
        ax.plot(data.time[row, mask], data.response[row, mask], color=MAIN, lw=0.6, alpha=0.35)
    time, response = data.time[data.mask].numpy(), data.response[data.mask].numpy()
    bins = time_bins(time, None)
    medians = pd.DataFrame({"time": time, "response": response}).groupby(bins).median()
    ax.plot(medians["time"], medians["response"], "o-", color=SEEN, ms=4, lw=1.6, label="median")
    ax.set_xlabel(words(data.names[1]))
    ax.set_ylabel(words(data.names[2]))
    ax.legend(frameon=False)
    return ax


def ellipses(fit: Fit, axes: tuple[int, int], ax: Axes, level: float = 0.5) -> None:
    """Draw of each variety the ellipse that holds a share of its conditional law, by its moments."""
    mean, covariance = moments(*fit.latent)
    kept = list(axes)
    radius, faint = float(chi2.ppf(level, 2)) ** 0.5, 0.6 * min(1.0, CLEAR / len(mean)) ** 0.5
    for centre, spread in zip(mean[:, kept], covariance[:, kept][:, :, kept], strict=True):
        ax.add_patch(_ellipse(centre, spread, radius, faint))


def _ellipse(centre: Tensor, spread: Tensor, radius: float, alpha: float) -> Ellipse:
    values, vectors = np.linalg.eigh(spread.numpy())
    width, height = 2 * radius * np.sqrt(values.clip(min=0))
    angle = float(np.degrees(np.arctan2(vectors[1, 0], vectors[0, 0])))
    place = (float(centre[0]), float(centre[1]))
    under_contours = {"zorder": 1.9, "alpha": alpha}
    return Ellipse(place, width, height, angle=angle, fill=False, color=SEEN, lw=0.6, **under_contours)
