"""The observed information of a fit: how sharply the marginal likelihood peaks.

With particles phi_im fixed,

    L_i(theta) = log sum_m exp[log p(y_i | phi_im; beta, sigma) + log p(phi_im; mu, Omega) - log q_im]

is a smooth function of theta = (mu, factor of Omega, beta, log sigma). Minus the second derivatives of their
sum at the maximum are the observed information; its inverse is the covariance of a Gaussian fit's estimates
(Louis, JRSS B 1982, gives the same matrix by conditional moments). Of other laws mu and Omega are location
and scale: the law is moved by an affine map, its shape stays.
"""

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
EMPTY = 1e-4  # information of an individual about a coordinate of Omega that is none
MOVES = 0.1  # share of itself by which a parameter moves with a held coordinate
PERFECT = 0.99  # correlation that is one, but for rounding


class Chart:
    """Coordinates around a fit: mu, the factor of Omega, beta, log sigma; zero is the fit.

    Means in units of the population's standard deviations, the factor by its logarithmic diagonal and what is
    below it (left out when Omega is diagonal), beta as it is, sigma by its logarithm (left out when given).
    """

    def __init__(self, problem: Problem, state: State) -> None:
        self.problem, self.state, self.frame = problem, state, GaussianLaw.like(state.law).normal
        dim = problem.dim
        self.diagonal = state.law.normal is not None and state.law.n_parameters == 2 * dim
        self.below = 0 if self.diagonal else dim * (dim - 1) // 2
        self.scales = 0 if problem.residual.given else len(state.sigma)
        self.sizes = [2 * dim + self.below, len(state.beta), self.scales]

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
        random = self.problem.random
        pairs = zip(*torch.tril_indices(len(random), len(random), -1).tolist(), strict=True)
        scales = self.problem.residual.names if self.scales else ()
        return [
            *(f"the mean of '{name}'" for name in random),
            *(f"the standard deviation of '{name}'" for name in random),
            *(f"the correlation of '{random[k]}' and '{random[j]}'" for j, k in pairs if self.below),
            *(f"'{name}'" for name in (*self.problem.beta_names, *scales)),
        ]

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
        factor = self.frame.moved(torch.cat([torch.zeros_like(shift), scale])).factor
        sd = self.frame.factor.square().sum(1).sqrt()
        return Affine(self.frame.mean + sd * shift, factor)

    def log_likelihood(self, vector: Tensor, particles: Particles, rows: slice) -> Tensor:
        """Return log p(y_i) of some individuals, (n,), up to a constant; particles phi are eta + X gamma."""
        problem = self.problem
        frame, beta, sigma = self.at(vector)
        summary = particles.summary.map(lambda part: part[rows])
        eta = particles.phi[rows]
        if problem.effects:
            index = torch.arange(len(problem))[rows]
            change = problem.subset(index).shift(beta) - problem.subset(index).shift(self.state.beta)
            eta = eta - change[:, None]
        if problem.common:
            part = problem.subset(torch.arange(len(problem))[rows])
            summary = part.summary(eta, beta)
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
    whole = chart.problem.individuals is not chart.problem  # groups are not cut into rows
    step = len(chart.problem.data) if whole else max(1, held // width)
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


def inside(chart: Chart, information: Tensor) -> tuple[Tensor, list[int]]:
    """Return the coordinates in which the likelihood has a peak, and those of Omega held at its boundary.

    A coordinate of Omega of which the data say nothing is held; and while the information has an eigenvalue
    that is not positive (its diagonal scaled to one), the one that weighs most in its eigenvector: a variance
    of zero, a correlation of one.

    Raises
    ------
    EstimationError : there is no peak although all of Omega is held.

    """
    kept = list(range(len(information)))
    held: list[int] = []
    while True:
        part = information[kept][:, kept]
        scale = part.diagonal().abs().clamp_min(TINY).rsqrt()
        values, vectors = torch.linalg.eigh(scale[:, None] * part * scale)
        of_omega = [k for k, name in enumerate(kept) if chart.problem.dim <= name < chart.sizes[0]]
        empty = [k for k in of_omega if float(part[k, k]) < EMPTY * len(chart.problem)]
        if float(values[0]) > FLAT and not empty:
            return torch.tensor(kept), held
        if not of_omega:
            raise EstimationError(
                "The observed information is not positive definite: the likelihood has no peak here. Fewer "
                "parameters may vary, fixed=(...)."
            )
        worst = empty[0] if empty else of_omega[int(vectors[of_omega, 0].abs().argmax())]
        held.append(kept.pop(worst))


def at_boundary(chart: Chart, held: list[int], values: Tensor, slopes: Tensor) -> list[tuple[str, str]]:
    """Return (kind, name) of the reported parameters that held coordinates put at a boundary.

    Standard deviations and correlations that move with a held coordinate, and correlations of one. values,
    slopes : of `reported_slopes`.
    """
    found = []
    largest = slopes[:, held].abs().amax(1)
    for (kind, name), value, slope in zip(
        reported_names(chart), values.tolist(), largest.tolist(), strict=True
    ):
        moves = slope > MOVES * (value if kind == "sd" else 1.0)
        if (kind == "sd" and moves) or (kind == "correlation" and (moves or abs(value) > PERFECT)):
            found.append((kind, name))
    return found


def delta_covariance(information: Tensor, kept: Tensor, slopes: Tensor) -> Tensor:
    """Return the covariance of the reported values, by the delta method; other coordinates are known."""
    slopes = slopes[:, kept]
    covariance: Tensor = slopes @ torch.linalg.solve(information[kept][:, kept], slopes.mT)
    return covariance
