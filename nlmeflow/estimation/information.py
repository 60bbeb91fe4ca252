"""The observed information of a Gaussian fit: how sharply the marginal likelihood peaks.

With particles phi_im fixed,

    L(theta) = sum_i log sum_m exp[log p(y_i | phi_im; beta, sigma) + log p(phi_im; mu, Omega) - log q_im]

is a smooth function of theta = (mu, factor of Omega, beta, log sigma). Minus its second derivatives at the
maximum are the observed information; its inverse is the covariance of the estimates (Louis, JRSS B 1982,
gives the same matrix by conditional moments).
"""

import torch
from torch import Tensor

from nlmeflow.errors import EstimationError
from nlmeflow.estimation.em import State
from nlmeflow.estimation.particles import Particles
from nlmeflow.estimation.problem import Problem
from nlmeflow.laws.affine import Affine, normal_log_prob
from nlmeflow.numerics import TINY

FLAT = 1e-6  # eigenvalue of the information, its diagonal scaled to one, under which there is no peak
EMPTY = 1e-4  # information of an individual about a coordinate of Omega that is none
MOVES = 0.1  # share of itself by which a parameter moves with a held coordinate
PERFECT = 0.99  # correlation that is one, but for rounding


class Chart:
    """Coordinates around a Gaussian fit: mu, the factor of Omega, beta, log sigma; zero is the fit.

    Means in units of the population's standard deviations, the factor by its logarithmic diagonal and what is
    below it (left out when Omega is diagonal), beta as it is, sigma by its logarithm (left out when given).
    """

    def __init__(self, problem: Problem, state: State) -> None:
        assert state.law.normal is not None, "a Gaussian law"
        self.problem, self.state, self.normal = problem, state, state.law.normal
        dim = problem.dim
        self.diagonal = state.law.n_parameters == 2 * dim
        self.below = 0 if self.diagonal else dim * (dim - 1) // 2
        self.scales = 0 if problem.residual.given else len(state.sigma)
        self.sizes = [2 * dim + self.below, len(state.beta), self.scales]

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return sum(self.sizes)

    def at(self, vector: Tensor) -> tuple[Affine, Tensor, Tensor]:
        """Return (mu, factor), beta and sigma at coordinates (size,)."""
        place, beta, log_scale = vector.split(self.sizes)
        dim = self.problem.dim
        full = dim * (dim - 1) // 2
        place = torch.cat([place, place.new_zeros(full - self.below)])
        sigma = self.state.sigma * log_scale.exp() if self.scales else self.state.sigma
        shift, scale = place.split([dim, len(place) - dim])
        factor = self.normal.moved(torch.cat([torch.zeros_like(shift), scale])).factor
        sd = self.normal.factor.square().sum(1).sqrt()
        return Affine(self.normal.mean + sd * shift, factor), self.state.beta + beta, sigma

    def log_likelihood(self, vector: Tensor, particles: Particles, rows: slice) -> Tensor:
        """Return the sum of log p(y_i) over some individuals; particles phi are those of eta + X gamma."""
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
        log_data = problem.residual.log_likelihood(summary, sigma) - particles.log_proposal[rows]
        log_law = normal_log_prob(eta, frame.mean, frame.factor)
        return (log_data + log_law).logsumexp(1).sum()


def observed_information(chart: Chart, particles: Particles, held: int = 2_000_000) -> Tensor:
    """Return minus the second derivatives of the log-likelihood in the chart's coordinates, (size, size)."""
    total = torch.zeros(chart.size, chart.size, dtype=torch.float64)
    width = particles.phi.shape[1] * chart.problem.data.time.shape[1]
    whole = chart.problem.individuals is not chart.problem  # groups are not cut into rows
    step = len(chart.problem.data) if whole else max(1, held // width)
    with torch.enable_grad():
        for start in range(0, len(chart.problem), step):
            rows = slice(start, start + step)
            zero = torch.zeros(chart.size, dtype=torch.float64)
            total -= torch.autograd.functional.hessian(
                lambda vector, rows=rows: chart.log_likelihood(vector, particles, rows), zero
            )
    return total


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
    zero = torch.zeros(chart.size, dtype=torch.float64)
    with torch.enable_grad():
        slopes = torch.autograd.functional.jacobian(lambda vector: reported(chart, vector), zero)
    return reported(chart, zero), slopes


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
