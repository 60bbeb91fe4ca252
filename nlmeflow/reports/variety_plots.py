"""Figures of observations and of varieties: each draws on Axes, and returns them."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Ellipse
from scipy.stats import chi2
from torch import Tensor

from nlmeflow.arguments import checked
from nlmeflow.data import LongitudinalData
from nlmeflow.fitting.fit import Fit
from nlmeflow.numerics import moments

MOST = 300  # individuals whose lines, or ellipses, are drawn
INK = "#222222"


@checked
def observations(data: LongitudinalData, ax: Axes | None = None) -> Axes:
    """Draw each individual's observations as a line, of at most 300 of them, and medians of all at each time.

    Medians stand at distinct times, or in 15 bins of equal numbers where there are more.
    """
    ax = plt.gca() if ax is None else ax
    for row in np.unique(np.linspace(0, len(data) - 1, min(MOST, len(data))).round().astype(int)):
        mask = data.mask[row]
        ax.plot(data.time[row, mask], data.response[row, mask], color="#1f6f8b", lw=0.6, alpha=0.35)
    time, response = data.time[data.mask].numpy(), data.response[data.mask].numpy()
    places = np.unique(time)
    if len(places) > 15:
        places = np.unique(np.quantile(time, np.linspace(0, 1, 16)))
    which = np.clip(np.searchsorted(places, time, side="right") - 1, 0, len(places) - 1)
    kept = np.unique(which)
    medians = [(np.median(time[which == k]), np.median(response[which == k])) for k in kept]
    ax.plot(*np.array(medians).T, "o-", color=INK, ms=4, lw=1.6, label="median")
    ax.set_xlabel(data.names[1])
    ax.set_ylabel(data.names[2])
    ax.legend(frameon=False)
    return ax


def ellipses(fit: Fit, axes: tuple[int, int], ax: Axes, level: float = 0.5) -> None:
    """Draw of each variety the ellipse that holds a share of its conditional law, by its moments.

    Of more than 300 varieties their conditional means alone.
    """
    phi, weights = fit.latent
    if not fit.law.has_density:
        phi = phi.expand(len(weights), -1, -1)
    mean, covariance = moments(phi, weights)
    kept = list(axes)
    if len(mean) > MOST:
        ax.plot(*mean[:, kept].mT.numpy(), ".", color=INK, ms=2.5, alpha=0.5)
        return
    radius = float(chi2.ppf(level, 2)) ** 0.5
    for centre, spread in zip(mean[:, kept], covariance[:, kept][:, :, kept], strict=True):
        ax.add_patch(_ellipse(centre, spread, radius))


def _ellipse(centre: Tensor, spread: Tensor, radius: float) -> Ellipse:
    values, vectors = np.linalg.eigh(spread.numpy())
    width, height = 2 * radius * np.sqrt(values.clip(min=0))
    angle = float(np.degrees(np.arctan2(vectors[1, 0], vectors[0, 0])))
    place = (float(centre[0]), float(centre[1]))
    return Ellipse(place, width, height, angle=angle, fill=False, color=INK, lw=0.6, alpha=0.6)
