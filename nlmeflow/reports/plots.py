"""Figures: each function draws on Axes, gives them labels with units, and returns them."""

import re
import reprlib
from collections.abc import Hashable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from nlmeflow.arguments import checked
from nlmeflow.errors import ModelError, whole
from nlmeflow.fitting.bands import Bands
from nlmeflow.fitting.fit import Fit
from nlmeflow.laws.draws import heaviest
from nlmeflow.laws.law import Law
from nlmeflow.laws.marginals import marginal_density, span
from nlmeflow.numerics import moments
from nlmeflow.reports.diagnostic_plots import npde, observed_predicted, residuals, vpc, words
from nlmeflow.reports.variety_plots import MOST, ellipses, observations

__all__ = [
    "bands",
    "colour",
    "convergence",
    "density",
    "legend",
    "levels",
    "marginals",
    "npde",
    "observations",
    "observed_predicted",
    "population",
    "residuals",
    "saem_paths",
    "side_by_side",
    "trajectories",
    "varieties",
    "vpc",
]

PALETTE = {"gaussian": "#8a8a8a", "mixture": "#d1812b", "flow": "#1f6f8b", "truth": "#222222"}
PALETTE |= {"snp": "#4c9f70", "smooth npmle": "#a04668", "box-cox": "#6b5ca5", "saem": "#b04a3a"}
PALETTE |= {"npml": "#b5a642", "two-stage": "#c77ca8", "heavy tails": "#c9a227", "ebe density": "#7a9ad1"}
PALETTE |= {"dirichlet process": "#5f8f8f"}
MASSES = (0.95, 0.8, 0.5, 0.2)  # of the regions of highest density that contours enclose
CELLS = 90  # points of a grid of two coordinates, along each


@checked
def colour(name: str, position: int = 0) -> str:
    """Return the colour of a law in every figure of the project."""
    others = ["#4c9f70", "#a04668", "#6b5ca5", "#b5a642"]
    return PALETTE.get(name, others[position % len(others)])


@checked
def levels(density: np.ndarray) -> list[float]:
    """Return the heights whose regions of highest density hold MASSES of the population."""
    ordered = np.sort(density.ravel())[::-1]
    held = np.cumsum(ordered) / ordered.sum()
    heights = [float(ordered[min(int(np.searchsorted(held, mass)), len(held) - 1)]) for mass in MASSES]
    return sorted(set(heights))


@checked
def density(
    law: Law,
    grids: tuple[np.ndarray, np.ndarray],
    axes: tuple[int, int] = (0, 1),
    ax: Axes | None = None,
    color: str = PALETTE["flow"],
    filled: bool = True,
) -> Axes:
    """Draw regions of highest density of two coordinates: 20, 50, 80 and 95 % of the population.

    Raises
    ------
    ModelError : the law has no density on the grids.

    """
    ax = plt.gca() if ax is None else ax
    values = marginal_density(law, axes, grids)
    if not values.max() > 0:
        raise ModelError("The law has no density at the points of the grids; `span` gives one where it lies.")
    heights = levels(values)
    if filled:
        for height in heights:
            top = max(float(values.max()) * 1.001, height * 1.001)
            ax.contourf(*grids, values.T, levels=[height, top], colors=[color], alpha=0.22)
    ax.contour(*grids, values.T, levels=heights, colors=[color], linewidths=0.9)
    return ax


@checked
def side_by_side(
    laws: Mapping[str, Law],
    labels: tuple[str, str],
    axes: tuple[int, int] = (0, 1),
    points: Tensor | None = None,
    titles: Mapping[str, str] | None = None,
) -> Figure:
    """Draw two coordinates of several laws, two in a row, on the grid of the first law.

    labels : of the two coordinates, with units. points (N, d) : drawn over the first law.

    Raises
    ------
    ModelError : no law.

    """
    if not laws:
        raise ModelError("Give at least one law to draw.")
    first = next(iter(laws.values()))
    grids = (_grid(first, axes[0], 3.2, points), _grid(first, axes[1], 4.0, points))
    columns = min(2, len(laws))
    rows = -(-len(laws) // columns)
    size = (3.3 * columns, 3.0 * rows + 0.3)
    figure, table = plt.subplots(rows, columns, figsize=size, sharex=True, sharey=True, squeeze=False)
    panels = list(table.flat)
    for unused in panels[len(laws) :]:
        unused.set_visible(False)
    for k, (name, law) in enumerate(laws.items()):
        density(law, grids, axes, panels[k], colour(name, k))
        panels[k].set_title((titles or {}).get(name, words(name)), fontsize=10)
        if k + columns >= len(laws):  # nothing is drawn below
            panels[k].set_xlabel(labels[0])
            panels[k].tick_params(labelbottom=True)
        if k % columns == 0:
            panels[k].set_ylabel(labels[1])
    if points is not None:
        panels[0].plot(*points[:, list(axes)].mT.numpy(), ".", ms=2.5, color="#222222", alpha=0.7)
    return figure


def _grid(law: Law, axis: int, reach: float, points: Tensor | None) -> np.ndarray:
    """Return a grid of a coordinate, `reach` standard deviations around the mean, to every point at least."""
    grid = span(law, axis, reach, CELLS)
    if points is None:
        return grid
    own = points[:, axis]
    return np.linspace(min(grid[0], float(own.min())), max(grid[-1], float(own.max())), len(grid))


@checked
def population(fit: Fit, pair: tuple[str, str] | None = None, ax: Axes | None = None) -> Axes:
    """Draw the fitted law of two parameters on the unconstrained scale, and conditional means.

    Of a law of one parameter the density itself, conditional means as marks under it. The points are the
    individuals' conditional means: shrunk, so not a sample of the law.
    """
    ax = plt.gca() if ax is None else ax
    color = colour(fit.specification.name)
    if len(fit.names) == 1:
        return _one(fit, ax, color)
    axes = _two(fit, pair, ax)
    phi, weights = fit.latent
    mean = moments(phi, weights)[0].numpy()
    ax.plot(mean[:, axes[0]], mean[:, axes[1]], ".", color="#222222", ms=2.5, alpha=0.5)
    return ax


@checked
def varieties(fit: Fit, pair: tuple[str, str] | None = None, ax: Axes | None = None) -> Axes:
    """Draw the fitted law of two parameters on the unconstrained scale, and what is known of each variety.

    An ellipse holds half of the conditional law of an individual, or of a group where the model has two
    levels; of more than 300 their conditional means are drawn. Contours of the law hold 20, 50, 80 and 95 %.

    Raises
    ------
    ModelError : as in `population`; the law has one parameter.

    """
    ax = plt.gca() if ax is None else ax
    _pair(fit, pair)  # a law of one parameter is refused here
    if len(fit.latent[0]) > MOST:
        return population(fit, pair, ax)
    ellipses(fit, _two(fit, pair, ax), ax)
    return ax


def _two(fit: Fit, pair: tuple[str, str] | None, ax: Axes) -> tuple[int, int]:
    """Draw the law of two parameters; return their places in phi."""
    axes = _pair(fit, pair)
    grids = (span(fit.law, axes[0], points=CELLS), span(fit.law, axes[1], points=CELLS))
    density(fit.law, grids, axes, ax, colour(fit.specification.name))
    ax.set_xlabel(words(fit.model.curve[fit.names[axes[0]]].label))
    ax.set_ylabel(words(fit.model.curve[fit.names[axes[1]]].label))
    return axes


def _one(fit: Fit, ax: Axes, color: str) -> Axes:
    grid = span(fit.law, 0)
    ax.plot(grid, marginal_density(fit.law, [0], [grid]), color=color)
    phi, weights = fit.latent
    mean = moments(phi, weights)[0][:, 0].numpy()
    ax.plot(mean, np.zeros_like(mean), "|", color="#222222", alpha=0.5)
    ax.set_xlabel(words(fit.model.curve[fit.names[0]].label))
    ax.set_ylabel("density")
    return ax


def _pair(fit: Fit, pair: tuple[str, str] | None) -> tuple[int, int]:
    if len(fit.names) < 2:
        raise ModelError("The fit has one random parameter; plots.marginals shows it.")
    first, second = fit.names[:2] if pair is None else pair
    if first == second:
        raise ModelError(f"pair names two parameters among {', '.join(fit.names)}, got '{first}' twice.")
    return _axis(fit, first), _axis(fit, second)


def _axis(fit: Fit, parameter: str) -> int:
    """Return the place of a parameter in phi, or raise ModelError."""
    if parameter not in fit.names:
        raise ModelError(f"No parameter '{parameter}' in the law; it has {', '.join(fit.names)}.")
    return fit.names.index(parameter)


@checked
def marginals(
    laws: Mapping[str, Law], fit: Fit, parameter: str, ax: Axes | None = None, reach: float = 3.5
) -> Axes:
    """Draw one parameter's marginal density under several laws, on the unconstrained scale.

    Raises
    ------
    ModelError : no random parameter of this name, or a law of another dimension.

    """
    ax = plt.gca() if ax is None else ax
    axis = _axis(fit, parameter)
    grid = span(fit.law, axis, reach, 160)
    for k, (name, law) in enumerate(laws.items()):
        style = {"lw": 2.2, "ls": "--"} if name == "truth" else {"lw": 1.8}
        if law.dim != len(fit.names):
            raise ModelError(f"The law '{name}' has dimension {law.dim}; the fit has {', '.join(fit.names)}.")
        values = marginal_density(law, [axis], [grid])
        ax.plot(grid, values, color=colour(name, k), label=words(name), **style)
    about = fit.model.curve[parameter]
    ax.set_xlabel(words(about.label))
    natural = about.scale.name == "identity" and about.unit
    ax.set_ylabel(f"density (1/{about.unit})" if natural else "density")
    ax.legend(frameon=False)
    return ax


@checked
def bands(bands: Bands, parameter: str, ax: Axes | None = None, color: str | None = None) -> Axes:
    """Draw one parameter's estimated marginal density with its pointwise band."""
    ax = plt.gca() if ax is None else ax
    table = bands.table(parameter)
    color = colour("flow") if color is None else color
    low, high = table["lower"].to_numpy(), table["upper"].to_numpy()
    about = f"{100 * bands.level:.0f} % band"
    ax.fill_between(table.index.to_numpy(), low, high, color=color, alpha=0.25, lw=0, label=about)
    ax.plot(table.index.to_numpy(), table["density"].to_numpy(), color=color, lw=1.8, label="estimate")
    label = bands.labels[parameter]
    unit = re.fullmatch(r"\w+ \((.+)\)", label)  # of a parameter on its natural scale
    ax.set_xlabel(words(label))
    ax.set_ylabel(words(f"density (1/{unit[1]})") if unit else "density")
    ax.legend(frameon=False)
    return ax


@checked
def trajectories(
    fit: Fit, individuals: Sequence[Hashable] | None = None, ax: Axes | None = None, points: int = 200
) -> Axes:
    """Draw the observations of some individuals and their fitted curves (conditional means).

    Of individuals none of whom was observed, at the times of the individuals fitted.

    Raises
    ------
    ModelError : an individual that is not in the fit, or stands twice; a mask; fewer than two points.

    """
    ax = plt.gca() if ax is None else ax
    labels = list(fit.data.labels)
    chosen = list(dict.fromkeys(labels))[:6] if individuals is None else list(individuals)
    for label in chosen:
        if label not in labels:
            raise ModelError(f"No individual {label!r} in the fit; it has {reprlib.repr(labels)}.")
    if len(set(chosen)) < len(chosen) or any(isinstance(label, bool | np.bool_) for label in chosen):
        raise ModelError(
            "individuals are names, each once; those that a mask of True and False chooses are "
            "fit.data.subset(mask).labels."
        )
    rows = [labels.index(label) for label in chosen]
    phi, weights = fit.conditional
    timed = fit.data if fit.data.n_observations else fit.estimated.data
    observed = timed.time[timed.mask]
    times = np.linspace(float(observed.min()), float(observed.max()), whole("points", points, 2))
    for k, row in enumerate(rows):
        mask = fit.data.mask[row]
        color, marker = plt.cm.viridis(k / max(1, len(rows) - 1) * 0.75), "o^sD"[k % 4]  # dark on white
        ax.plot(fit.data.time[row, mask], fit.data.response[row, mask], marker, ms=3.5, color=color)
        curve, style = _mean_curve(fit, row, phi[row], weights[row], times), ("-", "--", "-.", ":")[k % 4]
        ax.plot(times, curve, ls=style, color=color, label=words(chosen[k]))
    ax.set_xlabel(words(fit.data.names[1]))
    ax.set_ylabel(words(fit.data.names[2]))
    return ax


def _mean_curve(fit: Fit, row: int, phi: Tensor, weights: Tensor, times: np.ndarray) -> np.ndarray:
    """Return E[f(t; psi_i) | y_i] of the individual in a row, over its heaviest particles."""
    chosen, weight = heaviest(phi[None], weights[None], 200)
    return (weight[0] @ fit.curves_of(row, chosen[0], fit.beta.new_tensor(times)) / weight.sum()).numpy()


def _on_its_scale(fit: Fit, name: str) -> str:
    """Return a column of SAEM's trace with the scale of its parameter: "mean log s" for "mean s"."""
    *words_before, parameter = name.split(" ")
    known = parameter in fit.model.curve.names
    scale = fit.model.curve[parameter].scale.name if known else "identity"
    return " ".join([*words_before, *([] if scale == "identity" else [scale]), parameter])


@checked
def saem_paths(fit: Fit, exact: Mapping[str, float] | None = None) -> Figure:
    """Draw the path of each parameter over the iterations of SAEM, on the unconstrained scale.

    exact : values to compare with, by column of `fit.trace`, drawn as dashed lines. The steps fall from
    the dotted line on.

    Raises
    ------
    ModelError : the fit was not made by nf.SAEM.

    """
    trace = fit.trace
    if "iteration" not in trace:
        raise ModelError("This fit was not made by nf.SAEM; plots.convergence shows it.")
    names = [name for name in trace.columns if name not in ("iteration", "step", "acceptance")]
    across = min(2, len(names))  # legible on a narrow screen
    down = -(-len(names) // across)
    figure, panels = plt.subplots(
        down, across, figsize=(3.4 * across, 2.0 * down), sharex=True, squeeze=False
    )
    falls = trace["iteration"][trace["step"] < 1].min()
    for panel, name in zip(panels.flat, names, strict=False):
        panel.plot(trace["iteration"], trace[name], lw=0.9, color=colour("saem"))
        panel.axvline(falls, color="#555555", lw=0.8, ls=":")
        if exact and name in exact:
            panel.axhline(exact[name], color="#222222", lw=1.0, ls="--")
        panel.set_title(words(_on_its_scale(fit, name)), fontsize=10)
    for panel in panels.flat[len(names) :]:
        panel.set_visible(False)
    for panel in panels.flat[max(0, len(names) - across) : len(names)]:
        panel.tick_params(labelbottom=True)
        panel.set_xlabel("iteration")
    return figure


@checked
def convergence(fit: Fit, ax: Axes | None = None) -> Axes:
    """Draw the log-likelihood on fresh particles at each refresh, with its Monte-Carlo error.

    Raises
    ------
    ModelError : the fit was made by nf.SAEM.

    """
    trace = fit.trace
    if "log_likelihood" not in trace:
        raise ModelError("SAEM does not compute the likelihood as it goes; plots.saem_paths shows its paths.")
    ax = plt.gca() if ax is None else ax
    ax.errorbar(
        range(1, len(trace) + 1),
        trace["log_likelihood"],
        yerr=trace["error"],
        fmt="o-",
        color=colour(fit.specification.name),
    )
    ax.set_xlabel("refresh of the particles")
    ax.set_ylabel("log-likelihood (nats)")
    return ax


@checked
def legend(ax: Axes, names: Sequence[str]) -> None:
    """Put a legend of filled densities on Axes."""
    handles = [Patch(color=colour(name, k), alpha=0.5, label=words(name)) for k, name in enumerate(names)]
    ax.legend(handles=handles, frameon=False)
