"""The observed information of a fit: how sharply the marginal likelihood peaks.

With particles phi_im fixed,

    L_i(theta) = log sum_m exp[log p(y_i | phi_im; beta, sigma) + log p(phi_im; mu, Omega) - log q_im]

is a smooth function of theta = (mu, factor of Omega, beta, log sigma). Minus the second derivatives of their
sum at the maximum are the observed information; its inverse is the covariance of a Gaussian fit's estimates
(Louis, JRSS B 1982, gives the same matrix by conditional moments). Of other laws mu and Omega are location
and scale: the law is moved by an affine map, its shape stays.
"""

from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from nlmeflow.errors import EstimationError, NoPeakError
from nlmeflow.estimation.em import State
from nlmeflow.estimation.laplace import modes
from nlmeflow.estimation.particles import Particles
from nlmeflow.estimation.problem import Problem
from nlmeflow.laws.affine import Affine
from nlmeflow.laws.draws import expectation, taken
from nlmeflow.laws.gaussian import GaussianLaw
from nlmeflow.laws.law import Law
from nlmeflow.laws.moved import MovedLaw
from nlmeflow.numerics import TINY, moments

FLAT = 1e-6  # eigenvalue of the information, its diagonal scaled to one, under which there is no peak
NARROW = 0.2  # what an individual says of the logarithm of a sd, at most two, where the law is narrow
LITTLE = 1.0  # information about the logarithm of a scale that may be zero, for all the data say
MOVES = 0.1  # share of itself by which a parameter moves with a held coordinate
HELD = 2_000_000  # predictions whose derivatives are held at a time, about 300 MB
BENT = 40  # predictions that take as much memory as the density of a law that is not Gaussian
LEAP = 1e-3  # steps of differences, in standard errors, about
PERFECT = 0.99  # correlation that is one, but for rounding


class Chart:
    """Coordinates around a fit: mu, the factor of Omega, beta, log sigma; zero is the fit.

    Means in units of the population's standard deviations, the factor by its logarithmic diagonal and what is
    below it (left out when Omega is diagonal), beta as it is, sigma by its logarithm (left out when given).
    The factor is that of Omega with its rows and columns in `order`. Its last `narrow` rows are those of
    parameters of which the data say little but what the law says: their particles are carried along when the
    law moves, phi = mean + L z with the same z, through the curve. Under a narrow law that leaves particles
    where they are, what they say of it would be a small difference of large and noisy numbers.
    """

    def __init__(self, problem: Problem, state: State, order: Tensor | None = None, narrow: int = 0) -> None:
        self.problem, self.state, self.frame = problem, state, GaussianLaw.like(state.law).normal
        dim = problem.dim
        self.narrow = narrow
        self.order = torch.arange(dim) if order is None else order
        self.sorted = self.frame
        if not torch.equal(self.order, torch.arange(dim)):
            self.sorted = in_order(self.frame, self.order)
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

    @property
    def centring(self) -> Tensor:
        """The coordinates in which effects move the law around the covariates' means, not their zero."""
        people = self.problem.individuals
        change = torch.eye(self.size, dtype=torch.float64)
        if people.effects:
            design = people.random_design.mean(0)
            first = self.sizes[0] + people.common
            sd = self.frame.factor.square().sum(1).sqrt()
            change[: len(sd), first : first + design.shape[1]] = -design / sd[:, None]
        return change

    def of_rows(self, chosen: Tensor) -> list[int]:
        """Return the coordinates of the rows of the factor chosen in (2, d): whole rows, diagonal entries."""
        dim, (whole, alone) = self.problem.dim, chosen.tolist()
        below = torch.tril_indices(dim, dim, -1)[0].tolist()[: self.below]
        diagonal = [dim + k for k in range(dim) if whole[k] or alone[k]]
        return diagonal + [2 * dim + k for k, row in enumerate(below) if whole[row]]

    def at(self, vector: Tensor) -> tuple[Affine, Tensor, Tensor]:
        """Return (mu, factor), beta and sigma at coordinates (size,)."""
        place, beta, log_scale = vector.split(self.sizes)
        sigma = self.state.sigma * log_scale.exp() if self.scales else self.state.sigma
        return self.moved(place), self.state.beta + beta, sigma

    def moved(self, place: Tensor) -> Affine:
        """Return (mu, factor) at the coordinates of the law alone."""
        after = self._sorted_at(place)
        if self.sorted is self.frame:
            return after
        return in_order(after, self.order.argsort())

    def _sorted_at(self, place: Tensor) -> Affine:
        """Return (mu, factor), in `order`, at the coordinates of the law alone."""
        dim = self.problem.dim
        full = dim * (dim - 1) // 2
        shift, scale = place[:dim], torch.cat([place[dim:], place.new_zeros(full - self.below)])
        factor = self.sorted.moved(torch.cat([torch.zeros_like(shift), scale])).factor
        sd = self.frame.factor.square().sum(1).sqrt()
        return Affine((self.frame.mean + sd * shift)[self.order], factor)

    def _carried(self, phi: Tensor, left: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """Return particles whose narrow rows move with the law, and log |d moved / d phi|.

        phi (n, M, d): where they were drawn; left: the same less what effects have changed.
        """
        wide, after = self.problem.dim - self.narrow, self._sorted_at(place)
        before, there = (
            self.sorted.standardise(phi[..., self.order]),
            after.standardise(left[..., self.order]),
        )
        moved = after(torch.cat([there[..., :wide], before[..., wide:]], -1))
        ratio = after.factor.diagonal()[wide:] / self.sorted.factor.diagonal()[wide:]
        return moved[..., self.order.argsort()], ratio.log().sum()

    def log_likelihood(self, vector: Tensor, particles: Particles, rows: slice) -> Tensor:
        """Return log p(y_i) of some individuals, (n,), up to a constant.

        As in the engine, effects of covariates on random parameters leave each individual's parameters in
        place: the particles of the law, and of the deviations within groups, are what is left of them. Those
        on narrow parameters leave the particles and move the individual. Particles that the data exclude,
        where the curve may have no derivative, are put beside one that they do not.
        """
        problem, through = self.problem, self.problem.through
        if not self.grouped:
            problem = problem.subset(torch.arange(len(problem))[rows])
        frame, beta, sigma = self.at(vector)
        phi, summary = particles.phi[rows], particles.summary.map(lambda part: part[rows])
        lost = ~torch.isfinite(problem.residual.log_likelihood(summary, self.state.sigma))
        if bool(lost.any()):
            left = (~lost).double().argmax(1)
            phi = torch.where(lost[..., None], taken(phi, left[:, None]), phi)
        eta, volume = phi, phi.new_zeros(())
        if through < len(beta):
            eta, summary = problem.carried(phi, summary, (beta - self.state.beta)[through:])
        if self.narrow:
            eta, volume = self._carried(phi, eta, vector[: self.sizes[0]])
        if through or self.narrow:
            summary = problem.predicted_again(eta, summary, beta)
        log_data = problem.residual.log_likelihood(summary.finite(), sigma) - particles.log_proposal[rows]
        log_law = MovedLaw(self.state.law, self.frame, frame).log_prob(eta)
        return (log_data + log_law).masked_fill(lost, -torch.inf).logsumexp(1) + volume


def in_order(frame: Affine, order: Tensor) -> Affine:
    """Return (mu, factor) of Omega = L L' with rows and columns in an order.

    The rows of L in this order are R' Q', with Q orthogonal. Omega, which can be singular where L is not
    quite, is not formed.
    """
    upper = torch.linalg.qr(frame.factor[order].mT).R
    sign = torch.where(upper.diagonal() < 0, -1.0, 1.0)
    return Affine(frame.mean[order], (sign[:, None] * upper).mT)


def scores_and_information(chart: Chart, particles: Particles, held: int = HELD) -> tuple[Tensor, Tensor]:
    """Return the scores of individuals (N, size) and the observed information (size, size).

    First derivatives of each log p(y_i) in the chart's coordinates, and minus the second ones of their sum,
    by differences of the first where the curve's own are not finite, as those of t**h are not at t = 0.
    held : predictions of individuals' particles that are differentiated at a time, for the memory it takes.

    Raises
    ------
    EstimationError : a derivative is not finite.

    """
    width = particles.phi.shape[1] * (chart.problem.data.time.shape[1] + BENT * _bent(chart.state.law))
    step = len(chart.problem.data) if chart.grouped else max(1, held // width)  # groups are not cut into rows
    starts = range(0, len(chart.problem), step)
    parts = [_derivatives(chart, particles, slice(start, start + step)) for start in starts]
    scores, seen = torch.cat([one for one, _ in parts]), torch.stack([one for _, one in parts]).sum(0)
    if torch.isfinite(scores).all() and not torch.isfinite(seen).all():
        size = LEAP / scores.square().sum(0).sqrt().clamp_min(TINY)
        seen = torch.stack(
            [_by_differences(chart, particles, slice(start, start + step), size) for start in starts]
        ).sum(0)
    if not (torch.isfinite(scores).all() and torch.isfinite(seen).all()):
        raise EstimationError(
            "The observed information is not finite: the curve's derivatives are not at parameters that the "
            "data allow. Give the curve's function values and derivatives that are finite everywhere."
        )
    return scores, seen


def _bent(law: Law) -> int:
    """Return how many laws that are not Gaussian are evaluated for the density."""
    if law.averaged is not None:
        return sum(_bent(part) for part in law.averaged[0])
    return int(law.normal is None)


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


def _by_differences(chart: Chart, particles: Particles, rows: slice, size: Tensor) -> Tensor:
    """Return the information of some individuals by differences of their score at distances `size`."""

    def score(vector: Tensor) -> Tensor:
        with torch.enable_grad():
            place = vector.requires_grad_(True)
            (slope,) = torch.autograd.grad(chart.log_likelihood(place, particles, rows).sum(), place)
        return slope

    change = torch.stack([score(-step) - score(step) for step in size.diag()]) / (2 * size[:, None])
    return (change + change.mT) / 2


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
    """Coordinates of a fit, scores of individuals, information, and which coordinates are kept or held.

    unknown : names of parameters of whose standard deviation the data say next to nothing.
    """

    chart: Chart
    scores: Tensor
    information: Tensor
    kept: Tensor
    held: list[int]
    unknown: set[str]

    @property
    def boundary(self) -> list[tuple[str, str]]:
        """Kind and name of the reported parameters that are at a boundary."""
        return _at_boundary(self, *reported_slopes(self.chart)) if self.held else []


def observed(problem: Problem, state: State, particles: Particles) -> Observed:
    """Return the observed information of a fit, and the coordinates in which the likelihood has a peak.

    Raises
    ------
    EstimationError : a derivative is not finite. NoPeakError : there is none although all variances are held.

    """
    chart, known = _chart_of(problem, state, particles)
    scores, information = scores_and_information(chart, particles)
    centred = chart.centring.mT @ information @ chart.centring
    kept, held, flat = _inside(chart, centred, known)
    if flat is not None:
        raise NoPeakError(
            "The observed information is not positive definite: the likelihood has no peak here. It is flat, "
            f"or still rises, most along {chart.names[flat]}. Fewer parameters may vary, fixed=(...)."
        )
    unknown = {problem.random[k] for k in chart.order[known[0] < LITTLE].tolist()}
    return Observed(chart, scores, information, torch.tensor(kept), held, unknown)


def _chart_of(problem: Problem, state: State, particles: Particles) -> tuple[Chart, Tensor]:
    """Return a chart, and what the data say of each standard deviation and each diagonal entry, (2, d).

    In the chart's order: sorted where the data say little of one of them, those of which they say most first.
    Of the logarithm of a scale w they say 2 sum_i (J_ik w^2 / (1 + J_ik w^2))^2, nothing to 2 N: the expected
    information of a linear model in which phi_k is all that varies; J_ik is the curvature of log p(y_i | phi)
    in phi_k at the mode, which has no noise of particles.
    """
    law = GaussianLaw.like(state.law)
    weights = expectation(particles.log_ratio(problem, state.sigma), particles.log_prob(state.law)).weights
    start, _ = moments(particles.phi, weights)
    alone = replace(law, factor=law.sd.diag())  # Omega's inverse may be too large to be subtracted
    precision = torch.cholesky_inverse(modes(problem, alone, state.beta, state.sigma, start).factor)
    curvature = (precision.diagonal(dim1=-2, dim2=-1) - law.sd.square().reciprocal()).clamp_min(0.0)

    def known(scale: Tensor, order: Tensor) -> Tensor:
        size = curvature[:, order] * scale.square()
        return 2 * (size / (1 + size)).square().sum(0)

    chart, limit = Chart(problem, state), NARROW * len(problem)
    if bool((known(law.factor.diagonal(), chart.order) < limit).any()):
        with suppress(torch.linalg.LinAlgError):  # type: ignore[attr-defined]  # a correlation of one
            order = known(law.sd, chart.order).argsort(descending=True)
            chart = Chart(problem, state, order)
            little = known(chart.sorted.factor.diagonal(), order) < limit
            chart = Chart(problem, state, torch.cat([order[~little], order[little]]), int(little.sum()))
    order, diagonal = chart.order, chart.sorted.factor.diagonal()
    return chart, torch.stack([known(law.sd[order], order), known(diagonal, order)])


def _inside(chart: Chart, information: Tensor, known: Tensor) -> tuple[list[int], list[int], int | None]:
    """Return coordinates kept, coordinates held at a boundary, and the flattest if the first have no peak.

    Standard deviations of which next to nothing is `known` (2, d) are held with their correlations, diagonal
    entries alone, and scales by their information; and while the information has an eigenvalue that is not
    positive (its diagonal scaled to one), the variance or correlation that weighs most in its eigenvector.
    """
    held = chart.of_rows(known < LITTLE)
    kept = [k for k in range(len(information)) if k not in held]
    while True:
        part = information[kept][:, kept]
        scale = part.diagonal().abs().clamp_min(TINY).rsqrt()
        values, vectors = torch.linalg.eigh(scale[:, None] * part * scale)
        variances = [k for k, name in enumerate(kept) if name in chart.variances]
        empty = [k for k in variances if float(part[k, k]) < LITTLE]
        peak = float(values[0]) > FLAT and not empty
        if peak or not variances:
            return kept, held, None if peak else kept[int(vectors[:, 0].abs().argmax())]
        worst = empty[0] if empty else variances[int(vectors[variances, 0].abs().argmax())]
        held.append(kept.pop(worst))


def _at_boundary(seen: Observed, values: Tensor, slopes: Tensor) -> list[tuple[str, str]]:
    """Return (kind, name) of the reported parameters that held coordinates put at a boundary.

    Those of unknown standard deviations; standard deviations, scales and correlations that move with a held
    coordinate; and correlations of one. values, slopes : of `reported_slopes`.
    """
    found = []
    largest = slopes[:, seen.held].abs().amax(1)
    for (kind, name), value, slope in zip(
        reported_names(seen.chart), values.tolist(), largest.tolist(), strict=True
    ):
        moves = slope > MOVES * (1.0 if kind == "correlation" else value)
        one = kind == "correlation" and abs(value) > PERFECT
        variance = kind in ("sd", "correlation", "residual")
        if variance and (moves or one or (kind != "residual" and seen.unknown & set(name.split(", ")))):
            found.append((kind, name))
    return found


def delta_covariance(information: Tensor, kept: Tensor, slopes: Tensor) -> Tensor:
    """Return the covariance of the reported values, by the delta method; other coordinates are known."""
    slopes = slopes[:, kept]
    covariance: Tensor = slopes @ torch.linalg.solve(information[kept][:, kept], slopes.mT)
    return covariance
