"""The observed information of a fit: how sharply the marginal likelihood peaks.

With particles phi_im fixed,

    L_i(theta) = log sum_m exp[log p(y_i | phi_im; beta, sigma) + log p(phi_im; mu, Omega) - log q_im]

is a smooth function of theta = (mu, factor of Omega, beta, log sigma). Minus the second derivatives of their
sum at the maximum are the observed information; its inverse is the covariance of a Gaussian fit's estimates
(Louis, JRSS B 1982, gives the same matrix by conditional moments). Of other laws mu and Omega are location
and scale: the law is moved by an affine map, its shape stays.
"""

from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor

from nlmeflow.errors import EstimationError
from nlmeflow.estimation.em import State
from nlmeflow.estimation.particles import Particles
from nlmeflow.estimation.problem import Problem
from nlmeflow.laws.affine import Affine
from nlmeflow.laws.gaussian import GaussianLaw
from nlmeflow.laws.moved import MovedLaw
from nlmeflow.numerics import TINY

FLAT = 1e-6  # eigenvalue of the information, its diagonal scaled to one, under which there is no peak
LITTLE = 1.0  # information about the logarithm of a scale, under which it may be zero for all the data say
MOVES = 0.1  # share of itself by which a parameter moves with a held coordinate
PERFECT = 0.99  # correlation that is one, but for rounding


class Chart:
    """Coordinates around a fit: mu, the factor of Omega, beta, log sigma; zero is the fit.

    Means in units of the population's standard deviations, the factor by its logarithmic diagonal and what is
    below it (left out when Omega is diagonal), beta as it is, sigma by its logarithm (left out when given).
    The factor is that of Omega with its rows and columns in `order`: where a parameter hardly varies it comes
    last, so that what the data do not say of its correlations leaves the variances of the others alone.
    """

    def __init__(self, problem: Problem, state: State, order: Tensor | None = None) -> None:
        self.problem, self.state, self.frame = problem, state, GaussianLaw.like(state.law).normal
        dim = problem.dim
        self.order = torch.arange(dim) if order is None else order
        self.sorted = self.frame
        if order is not None:
            omega = self.frame.factor @ self.frame.factor.mT
            self.sorted = Affine(self.frame.mean[order], torch.linalg.cholesky(omega[order][:, order]))
        self.diagonal = state.law.normal is not None and state.law.n_parameters == 2 * dim
        self.below = 0 if self.diagonal else dim * (dim - 1) // 2
        self.scales = 0 if problem.residual.given else len(state.sigma)
        self.sizes = [2 * dim + self.below, len(state.beta), self.scales]

    @property
    def grouped(self) -> bool:
        """Whether the law is that of groups of individuals."""
        return self.problem.individuals is not self.problem

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return sum(self.sizes)

    @property
    def zero(self) -> Tensor:
        """Coordinates of the fit."""
        return torch.zeros(self.size, dtype=torch.float64)

    @property
    def names(self) -> list[str]:
        """What each coordinate moves, in words."""
        random = [self.problem.random[k] for k in self.order.tolist()]
        pairs = zip(*torch.tril_indices(len(random), len(random), -1).tolist(), strict=True)
        scales = self.problem.residual.names if self.scales else ()
        return [
            *(f"the mean of '{name}'" for name in self.problem.random),
            *(f"the standard deviation of '{name}'" for name in random),
            *(f"the correlation of '{random[k]}' and '{random[j]}'" for j, k in pairs if self.below),
            *(f"'{name}'" for name in (*self.problem.beta_names, *scales)),
        ]

    @property
    def variances(self) -> list[int]:
        """Coordinates of Omega, and of the scales that may vanish: all but the one of a single sigma."""
        own, before = len(self.problem.own_sigma(self.state.sigma)), sum(self.sizes[:2])
        scales = range(0 if own > 1 else own, self.scales)
        return [*range(self.problem.dim, self.sizes[0]), *(before + k for k in scales)]

    def at(self, vector: Tensor) -> tuple[Affine, Tensor, Tensor]:
        """Return (mu, factor), beta and sigma at coordinates (size,)."""
        place, beta, log_scale = vector.split(self.sizes)
        sigma = self.state.sigma * log_scale.exp() if self.scales else self.state.sigma
        return self.moved(place), self.state.beta + beta, sigma

    def moved(self, place: Tensor) -> Affine:
        """Return (mu, factor) at the coordinates of the law alone."""
        dim = self.problem.dim
        full = dim * (dim - 1) // 2
        shift, scale = place[:dim], torch.cat([place[dim:], place.new_zeros(full - self.below)])
        factor = self.sorted.moved(torch.cat([torch.zeros_like(shift), scale])).factor
        if self.sorted is not self.frame:
            back = self.order.argsort()
            factor = torch.linalg.cholesky((factor @ factor.mT)[back][:, back])
        sd = self.frame.factor.square().sum(1).sqrt()
        return Affine(self.frame.mean + sd * shift, factor)

    def log_likelihood(self, vector: Tensor, particles: Particles, rows: slice) -> Tensor:
        """Return log p(y_i) of some individuals, (n,), up to a constant.

        As in the engine, effects of covariates on random parameters leave each individual's parameters in
        place: the particles of the law, and of the deviations within groups, are what is left of them.
        """
        problem, through = self.problem, self.problem.through
        if not self.grouped:
            problem = problem.subset(torch.arange(len(problem))[rows])
        frame, beta, sigma = self.at(vector)
        eta, summary = particles.phi[rows], particles.summary.map(lambda part: part[rows])
        if through < len(beta):
            eta, summary = problem.carried(eta, summary, (beta - self.state.beta)[through:])
        if through:
            summary = problem.predicted_again(eta, summary, beta)
        log_data = problem.residual.log_likelihood(summary.finite(), sigma) - particles.log_proposal[rows]
        log_law = MovedLaw(self.state.law, self.frame, frame).log_prob(eta)
        return (log_data + log_law).logsumexp(1)


def scores_and_information(
    chart: Chart, particles: Particles, held: int = 2_000_000
) -> tuple[Tensor, Tensor]:
    """Return the scores of individuals (N, size) and the observed information (size, size).

    First derivatives of each log p(y_i) in the chart's coordinates, and minus the second ones of their sum.

    Raises
    ------
    EstimationError : a derivative is not finite.

    """
    width = particles.phi.shape[1] * chart.problem.data.time.shape[1]
    step = len(chart.problem.data) if chart.grouped else max(1, held // width)  # groups are not cut into rows
    parts = [
        _derivatives(chart, particles, slice(start, start + step))
        for start in range(0, len(chart.problem), step)
    ]
    scores, seen = torch.cat([one for one, _ in parts]), torch.stack([one for _, one in parts]).sum(0)
    if not (torch.isfinite(scores).all() and torch.isfinite(seen).all()):
        raise EstimationError(
            "The observed information is not finite: the curve's derivatives are not at parameters that the "
            "data allow. Give the curve's function values and derivatives that are finite everywhere."
        )
    return scores, seen


def steepest(problem: Problem, state: State, particles: Particles) -> str:
    """Return in words the coordinate along which the likelihood rises most, in units of its curvature."""
    chart = Chart(problem, state)
    scores, information = scores_and_information(chart, particles)
    slope = scores.sum(0).abs() / information.diagonal().abs().clamp_min(TINY).sqrt()
    return chart.names[int(slope.argmax())]


def _derivatives(chart: Chart, particles: Particles, rows: slice) -> tuple[Tensor, Tensor]:
    """Return scores and information of some individuals, by differentiating backwards twice.

    The gradient of sum_i c_i L_i is linear in c: its derivatives in c are the scores.
    """
    with torch.enable_grad():
        zero = chart.zero.requires_grad_(True)
        value = chart.log_likelihood(zero, particles, rows)
        count = torch.ones_like(value, requires_grad=True)
        (slope,) = torch.autograd.grad(count @ value, zero, create_graph=True)
        both = [torch.autograd.grad(part, (count, zero), retain_graph=True) for part in slope]
    return torch.stack([scores for scores, _ in both], 1), -torch.stack([seen for _, seen in both])


def reported_values(problem: Problem, state: State) -> Tensor:
    """Return mean (d), sds (d), correlations below the diagonal, beta, sigma, in this order."""
    chart = Chart(problem, state)
    return reported(chart, chart.zero)


def reported(chart: Chart, vector: Tensor) -> Tensor:
    """Return mu (d), sds (d), correlations below the diagonal, beta, sigma at coordinates (size,)."""
    frame, beta, sigma = chart.at(vector)
    covariance = frame.factor @ frame.factor.mT
    sd = covariance.diagonal().sqrt()
    row, column = torch.tril_indices(chart.problem.dim, chart.problem.dim, -1)
    correlation = covariance[row, column] / (sd[row] * sd[column])
    kept = correlation if not chart.diagonal else correlation[:0]
    return torch.cat([frame.mean, sd, kept, beta, sigma if chart.scales else sigma[:0]])


def reported_slopes(chart: Chart) -> tuple[Tensor, Tensor]:
    """Return `reported` at the fit, and its derivatives in the chart's coordinates."""
    with torch.enable_grad():
        slopes = torch.autograd.functional.jacobian(lambda vector: reported(chart, vector), chart.zero)
    return reported(chart, chart.zero), slopes


def reported_names(chart: Chart) -> list[tuple[str, str]]:
    """Return (kind, name) of each of `reported`."""
    names = chart.problem.random
    pairs = zip(*torch.tril_indices(len(names), len(names), -1).tolist(), strict=True)
    correlations = [] if chart.diagonal else [("correlation", f"{names[k]}, {names[j]}") for j, k in pairs]
    fixed = len(chart.problem.fixed)
    kinds = ["fixed"] * fixed + ["effect"] * (len(chart.state.beta) - fixed)
    beta = list(zip(kinds, chart.problem.beta_names, strict=True))
    residual = [("residual", name) for name in chart.problem.residual.names] if chart.scales else []
    return [*[("mean", n) for n in names], *[("sd", n) for n in names], *correlations, *beta, *residual]


class Observed(NamedTuple):
    """Coordinates of a fit, scores of individuals, information, and which coordinates are kept or held."""

    chart: Chart
    scores: Tensor
    information: Tensor
    kept: Tensor
    held: list[int]

    @property
    def boundary(self) -> list[tuple[str, str]]:
        """Kind and name of the reported parameters that are at a boundary."""
        return at_boundary(self.chart, self.held, *reported_slopes(self.chart)) if self.held else []


def observed(problem: Problem, state: State, particles: Particles) -> Observed:
    """Return the observed information of a fit, and the coordinates in which the likelihood has a peak.

    Where a coordinate of Omega is held, or little is known of a standard deviation, the parameters are sorted
    by what is known of theirs, and the information is computed again.

    Raises
    ------
    EstimationError : a derivative is not finite; or there is no peak although all variances are held.

    """
    chart = Chart(problem, state)
    scores, information = scores_and_information(chart, particles)
    kept, held, peak = _inside(chart, information)
    if not chart.diagonal:
        known = _known_of_sds(chart, information)
        if min(held, default=chart.size) < chart.sizes[0] or float(known.min()) < LITTLE:
            with suppress(torch.linalg.LinAlgError):  # type: ignore[attr-defined]  # a correlation of one
                chart = Chart(problem, state, known.argsort(descending=True))
                scores, information = scores_and_information(chart, particles)
                kept, held, peak = _inside(chart, information)
    if not peak:
        raise EstimationError(
            "The observed information is not positive definite: the likelihood has no peak here. Fewer "
            "parameters may vary, fixed=(...)."
        )
    return Observed(chart, scores, information, torch.tensor(kept), held)


def _known_of_sds(chart: Chart, information: Tensor) -> Tensor:
    """Return the information about the logarithm of each standard deviation, correlations held, (d,).

    L becomes D L = L C with D scaling one row, so that C - 1 = L^-1 (D - 1) L are the coordinates' moves.
    """
    dim, factor = chart.problem.dim, chart.frame.factor
    row, column = torch.tril_indices(dim, dim, -1)
    moves = torch.einsum("jk,kl->kjl", chart.frame.inverse, factor)
    law = torch.cat([moves.diagonal(dim1=1, dim2=2), moves[:, row, column]], 1)
    part = information[dim : chart.sizes[0], dim : chart.sizes[0]]
    return torch.einsum("kp,pq,kq->k", law, part, law)


def _inside(chart: Chart, information: Tensor) -> tuple[list[int], list[int], bool]:
    """Return coordinates kept, coordinates held at a boundary, and whether the first have a peak.

    A variance of which the data say next to nothing is held; and while the information has an eigenvalue that
    is not positive (its diagonal scaled to one), the one that weighs most in its eigenvector: a variance of
    zero, a correlation of one.
    """
    kept = list(range(len(information)))
    held: list[int] = []
    while True:
        part = information[kept][:, kept]
        scale = part.diagonal().abs().clamp_min(TINY).rsqrt()
        values, vectors = torch.linalg.eigh(scale[:, None] * part * scale)
        variances = [k for k, name in enumerate(kept) if name in chart.variances]
        empty = [k for k in variances if float(part[k, k]) < LITTLE]
        peak = float(values[0]) > FLAT and not empty
        if peak or not variances:
            return kept, held, peak
        worst = empty[0] if empty else variances[int(vectors[variances, 0].abs().argmax())]
        held.append(kept.pop(worst))


def at_boundary(chart: Chart, held: list[int], values: Tensor, slopes: Tensor) -> list[tuple[str, str]]:
    """Return (kind, name) of the reported parameters that held coordinates put at a boundary.

    Standard deviations, scales and correlations that move with a held coordinate, and correlations of one.
    values, slopes : of `reported_slopes`.
    """
    found = []
    largest = slopes[:, held].abs().amax(1)
    for (kind, name), value, slope in zip(
        reported_names(chart), values.tolist(), largest.tolist(), strict=True
    ):
        moves = slope > MOVES * (1.0 if kind == "correlation" else value)
        if (kind in ("sd", "residual") and moves) or (
            kind == "correlation" and (moves or abs(value) > PERFECT)
        ):
            found.append((kind, name))
    return found


def delta_covariance(information: Tensor, kept: Tensor, slopes: Tensor) -> Tensor:
    """Return the covariance of the reported values, by the delta method; other coordinates are known."""
    slopes = slopes[:, kept]
    covariance: Tensor = slopes @ torch.linalg.solve(information[kept][:, kept], slopes.mT)
    return covariance
