"""The batched Laplace step: every individual's mode and curvature under a Gaussian law.

Around the modes the model is a linear mixed model, y_i ~ f_i + J_i (phi - phi_i): its generalised
least squares give the population mean and the fixed effects, an EM step gives the covariance and
sigma (Lindstrom and Bates, Biometrics 1990). This is where estimation starts, not where it ends:
the particles of `particles.py` remove the linearisation.
"""

import math
from dataclasses import dataclass, replace
from functools import singledispatch
from typing import cast

import torch
from torch import Tensor

from nlmeflow.errors import EstimationError
from nlmeflow.estimation.problem import Problem
from nlmeflow.laws.affine import safe_cholesky
from nlmeflow.laws.gaussian import Gaussian, GaussianLaw

BROKEN = (EstimationError, torch.linalg.LinAlgError)  # type: ignore[attr-defined]
ROUNDED = 1e-10  # share of a diagonal entry that is left by the other coordinates, under which rounding rules
LIKELIER = 1.0  # nats by which a second start, or mode, is better
WIDER = 3.0  # times the sds of the first values, where individuals are followed
ALIKE = 1e-4  # smallest eigenvalue of slopes, as of a correlation matrix: parameters do nearly the same
EXACTLY = 1e-12  # distance between slopes of length one, of parameters that do the same
NEARLY = 1e-7  # smallest eigenvalue of slopes, under which normal equations do not tell parameters apart
LEAST = 1e-14  # what a smallest eigenvalue counts as at least, and the share of a length that counts as none
FAR = 100.0  # times the residual error of the first values that a start does not exceed
USELESS = 1.1  # times the error of a constant, by which curves that explain nothing miss the data
CONSTANT = 0.95  # times the error of a constant: curves that miss the data by more are little else


@dataclass(frozen=True)
class Laplace:
    """Modes (N, d) and lower factors (N, d, d) of the inverse curvatures at the modes."""

    mode: Tensor
    factor: Tensor


@dataclass(frozen=True)
class GaussianStart:
    """A Gaussian population with its fixed effects, residual parameters and individual modes.

    settled : whether it is where the steps to it ended, and not only the last of them.
    """

    law: GaussianLaw
    beta: Tensor
    sigma: Tensor
    laplace: Laplace
    settled: bool


@dataclass(frozen=True)
class Linear:
    """The standardised linear model at given phi: residuals (N, n), slopes (N, n, d + p + q).

    prediction (N, n) is the curve there; log_likelihood (N,) is that of the model itself, at phi.
    """

    prediction: Tensor
    residual: Tensor
    slope: Tensor
    log_likelihood: Tensor


def linearise(problem: Problem, phi: Tensor, beta: Tensor, sigma: Tensor) -> Linear:
    """Return the model around phi (N, d) as a linear one with errors of variance one."""
    prediction, slopes = problem.jacobian(phi, beta)
    residual, slope = problem.standardised(prediction, slopes, sigma)
    summary = problem.residual.summary(problem.data.response, prediction, problem.data.mask, problem.bounds())
    return Linear(prediction, residual, slope, problem.residual.log_likelihood(summary, sigma))


def _objective(problem: Problem, phi: Tensor, law: GaussianLaw, beta: Tensor, sigma: Tensor) -> Tensor:
    log_likelihood = problem.log_likelihood(phi[:, None], beta, sigma)[:, 0]
    return -log_likelihood - law.log_prob(phi)


def _newton(
    problem: Problem, phi: Tensor, law: GaussianLaw, beta: Tensor, sigma: Tensor, damping: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One damped Gauss-Newton step for all individuals: phi, slopes (N, n, d) where it began, damping."""
    linear = linearise(problem, phi, beta, sigma)
    objective = -linear.log_likelihood - law.log_prob(phi)
    slope = linear.slope[..., : problem.dim]
    precision = torch.cholesky_inverse(law.factor)
    hessian = slope.mT @ slope + precision
    gradient = (slope.mT @ linear.residual[..., None]).squeeze(-1) - (phi - law.mean) @ precision
    lift = damping[:, None] * hessian.diagonal(dim1=-2, dim2=-1)
    step = torch.linalg.solve(hessian + torch.diag_embed(lift), gradient)
    tried = phi + step
    better = _objective(problem, tried, law, beta, sigma) <= objective + 1e-9
    phi = torch.where(better[:, None], tried, phi)
    return phi, slope, redamped(damping, better)


def _inverse(slope: Tensor, law: GaussianLaw) -> Tensor:
    """Return the inverses of J'J + Omega^-1 (N, d, d): slopes J (N, n, d), a law's covariance Omega = LL'.

    Where J'J is so large that Omega^-1 is lost beside it, from the triangle R of (JL over I) = QR, whose
    square is L'(J'J + Omega^-1)L: the inverse is L R^-1 R^-T L'.
    """
    hessian = slope.mT @ slope + torch.cholesky_inverse(law.factor)
    pivots, failed = torch.linalg.cholesky_ex(hessian)
    left = (pivots.square() / hessian).diagonal(dim1=-2, dim2=-1)
    lost = (failed > 0) | (left < ROUNDED).any(1)
    inverse: Tensor = torch.linalg.inv_ex(hessian).inverse
    if bool(lost.any()):
        factor = law.factor.expand(int(lost.sum()), -1, -1)
        stacked = torch.cat([slope[lost] @ factor, torch.eye(law.dim).to(slope).expand_as(factor)], 1)
        triangle = torch.linalg.qr(stacked, mode="r").R
        half = torch.linalg.solve_triangular(triangle, factor, upper=True, left=False)
        inverse[lost] = half @ half.mT
    return inverse


def redamped(damping: Tensor, better: Tensor) -> Tensor:
    """Return the damping of Levenberg and Marquardt after steps that were taken, or refused."""
    return torch.where(better, damping / 10, (damping * 10).clamp_min(1e-2)).clamp(1e-8, 1e8)


@singledispatch
def modes(
    problem: Problem, law: GaussianLaw, beta: Tensor, sigma: Tensor, start: Tensor, steps: int = 8
) -> Laplace:
    """Return each individual's conditional mode and the factor of its inverse curvature."""
    damping = start.new_full((len(start),), 1e-8)
    phi = start
    for _ in range(steps):
        phi, slope, damping = _newton(problem, phi, law, beta, sigma, damping)
    return Laplace(phi, safe_cholesky(_inverse(slope, law)))


@singledispatch
def gaussian_starts(
    problem: Problem,
    firsts: list[dict[str, float]],
    specification: Gaussian,
    max_iterations: int = 60,
    tolerance: float = 1e-3,
) -> list[GaussianStart]:
    """Return Gaussian fits of the linearised model from pooled first values, the most likely first.

    Curves that are equally near to all the data together are not so to those of individuals: each of
    `firsts` is tried. Where the model does not settle, or settles where curves are little better than a
    constant, it is fitted once more, because the likelihood may have several maxima: not from a residual
    error that explains all differences between individuals, but from a tenth of it and a population three
    times as wide, which follows each individual's data. A later fit comes first where it is more likely by
    more than `LIKELIER`. Where one breaks down, because a linearisation far from the data sends it off, it is
    tried again in short steps. Where parameters do nearly the same to the curve, both ways of spreading them
    at first are tried.

    Raises
    ------
    EstimationError : all broke down; the reason is that of the first.

    """
    found: list[GaussianStart] = []
    failed: Exception | None = None
    for first in firsts:
        try:
            found += _fits(problem, first, specification, max_iterations, tolerance)
        except BROKEN as error:
            failed = failed or error
    if not found:
        raise cast(Exception, failed)
    values = [_log_likelihood(problem, start) for start in found]
    best = 0
    for k, value in enumerate(values):
        best = k if value > values[best] + LIKELIER else best
    order = sorted(range(len(found)), key=lambda k: (k != best, -values[k]))
    return [found[k] for k in order]


def _fits(
    problem: Problem, first: dict[str, float], specification: Gaussian, max_iterations: int, tolerance: float
) -> list[GaussianStart]:
    """Return fits of the linearised model from first values, one at least."""
    found, failed = [], None
    for begun in _first_gaussians(problem, first, specification):
        for narrow in (1.0, 0.1):
            try:
                found.append(_climb_or_creep(problem, begun, max_iterations, tolerance, narrow))
            except BROKEN as error:
                failed = error
                continue
            if found[-1].settled and _beats_constant(problem, found[-1], CONSTANT):
                break
    if not found:
        raise cast(Exception, failed)
    return found


def _log_likelihood(problem: Problem, start: GaussianStart) -> float:
    """Return Laplace's approximation of the marginal log-likelihood, up to a constant; -inf for no number."""
    mode, factor = start.laplace.mode, start.laplace.factor
    joint = -_objective(problem, mode, start.law, start.beta, start.sigma)
    value = float((joint + factor.diagonal(dim1=-2, dim2=-1).log().sum(1)).sum())
    return -math.inf if math.isnan(value) else value


def _climb_or_creep(
    problem: Problem,
    begun: tuple[GaussianLaw, Tensor, Tensor],
    max_iterations: int,
    tolerance: float,
    narrow: float,
) -> GaussianStart:
    """Climb; where this breaks down, in short steps."""
    try:
        return _climb(problem, begun, max_iterations, tolerance, narrow)
    except BROKEN:
        return _climb(problem, begun, max_iterations, tolerance, narrow, longest=2.0)


def _climb(
    problem: Problem,
    begun: tuple[GaussianLaw, Tensor, Tensor],
    max_iterations: int,
    tolerance: float,
    narrow: float,
    longest: float | None = None,
) -> GaussianStart:
    """Climb from a first law, beta and sigma, with `narrow` times this residual error.

    With `longest`, steps are short, and the place of highest likelihood on the way is returned: where noise
    is large, linearisations may lead from a good place to a curve without slope, and off.
    """
    law, beta, sigma = begun
    most = FAR * sigma
    if narrow < 1 and not problem.residual.given:
        law, sigma = replace(law, factor=WIDER * law.factor), narrow * sigma
    phi = law.mean.expand(len(problem), -1).clone()
    damping = phi.new_full((len(phi),), 1e-4)
    best: tuple[float, GaussianStart] | None = None
    for iteration in range(max_iterations):
        for _ in range(3 if iteration < 5 else 1):
            phi, _, damping = _newton(problem, phi, law, beta, sigma, damping)
        try:
            new_law, new_beta, new_sigma = _update(problem, phi, law, beta, sigma)
            if longest is not None:
                new_law, new_sigma = _shortened(law, new_law, longest), new_sigma.clamp(sigma / 2, sigma * 2)
            _check(problem, new_law, new_beta, new_sigma, most)
        except BROKEN:
            if best is None:
                raise
            break
        change = torch.cat(
            [
                (new_law.mean - law.mean) / law.sd,
                (new_law.sd / law.sd).log(),
                (new_sigma / sigma).log(),
                new_beta - beta,
            ]
        )
        law, beta, sigma = new_law, new_beta, new_sigma
        settled = bool(change.abs().max() < tolerance)
        if longest is not None or settled or iteration == max_iterations - 1:
            place = GaussianStart(law, beta, sigma, modes(problem, law, beta, sigma, phi, steps=4), settled)
            value = _log_likelihood(problem, place)
            best = (value, place) if best is None or value > best[0] else best
        if settled:
            break
    assert best is not None
    found = best[1]
    return found if _beats_constant(problem, found, USELESS) else _unclimbed(problem, begun)


def _shortened(before: GaussianLaw, after: GaussianLaw, longest: float) -> GaussianLaw:
    """Return the law on the way to another: means at most so many sds, sds a factor of two away."""
    step = (after.mean - before.mean) / before.sd
    ratio = (after.sd / before.sd).clamp(0.5, 2.0)
    mean = before.mean + before.sd * step.clamp(-longest, longest)
    return replace(after, mean=mean, factor=(ratio * before.sd / after.sd).diag() @ after.factor)


def first_gaussian(
    problem: Problem, first: dict[str, float], specification: Gaussian
) -> tuple[GaussianLaw, Tensor, Tensor]:
    """Return a first Gaussian, beta and sigma: spreads are what moves predictions by one residual."""
    return _first_gaussians(problem, first, specification)[0]


def unclimbed_start(problem: Problem, first: dict[str, float], specification: Gaussian) -> GaussianStart:
    """Return the first values themselves as a start, for where the steps from them led to a dead end."""
    return _unclimbed(problem, first_gaussian(problem, first, specification))


def _first_gaussians(
    problem: Problem, first: dict[str, float], specification: Gaussian
) -> list[tuple[GaussianLaw, Tensor, Tensor]]:
    """Return first Gaussians: of joint spreads where parameters do nearly the same, and of single ones."""
    mean = torch.tensor([first[name] for name in problem.random], dtype=torch.float64)
    beta = torch.tensor(
        [first[name] for name in problem.fixed] + [0.0] * len(problem.effects), dtype=torch.float64
    )
    prediction, slopes = problem.jacobian(mean.expand(len(problem), -1), beta)
    nearest = problem.nearest(prediction)
    sigma = problem.residual.start(nearest, prediction, problem.data.mask)
    deviation = torch.where(problem.data.mask, nearest - prediction, 0.0)
    slopes = torch.where(problem.data.mask[..., None], slopes, 0.0)
    _check_slopes(problem, slopes[..., : problem.dim + len(problem.fixed)].flatten(0, 1))
    slopes = slopes[..., : problem.dim]
    sizes = slopes.square().sum((0, 1)).sqrt()
    spread = deviation.square().sum().sqrt() / sizes.clamp_min(1e-300)
    free = torch.tensor([problem.curve[name].scale.name == "identity" for name in problem.random])
    spread = spread.clamp(1e-12, 1.0).where(~free, spread.clamp_min(1e-12))
    factors = [spread.diag()]
    if specification.covariance == "full" and (joint := _joint(slopes, free)) is not None:
        factors.insert(0, spread.diag() @ joint)
    structure, prior = specification.covariance, specification.prior
    return [(GaussianLaw(mean, factor, structure, prior), beta, sigma) for factor in factors]


def _joint(slopes: Tensor, free: Tensor) -> Tensor | None:
    """Return a factor (d, d) of joint spreads, in units of those of each parameter alone, or None.

    None unless some parameters without bounds (free, (d,)) do nearly the same to the curve, as intercept and
    slope do where time zero is far away: what distinguishes individuals is then the small difference of large
    spreads.
    """
    factor, index = torch.eye(len(free), dtype=slopes.dtype), torch.nonzero(free)[:, 0]
    some = slopes[..., index].flatten(0, 1)
    unit = some / some.norm(dim=0)
    values, vectors = torch.linalg.eigh(unit.mT @ unit)
    if not (len(index) and float(values[0]) < ALIKE):
        return None
    joint = vectors / values.clamp_min(LEAST) @ vectors.mT
    factor[index[:, None], index] = safe_cholesky(joint)
    return factor


def _check_slopes(problem: Problem, slopes: Tensor) -> None:
    """Raise EstimationError for a parameter without effect, or fixed beside another of the same effect.

    slopes (number of observations, d + p) : of the curve in random and fixed parameters.
    """
    sizes, names = slopes.norm(dim=0), (*problem.random, *problem.fixed)
    for name, size in zip(names, sizes.tolist(), strict=True):
        if not size > 0:
            cure = f" Take it out of the curve, or give it a first value: fit(..., start={{'{name}': ...}})."
            raise EstimationError(
                f"Parameter '{name}' does not move the curve at the data's times, at its first value."
                f"{cure if name in problem.fixed else ''}"
            )
    unit = slopes / sizes
    for k in range(problem.dim, len(names)):
        apart = (unit - (unit[:, k] @ unit)[None] * unit[:, k, None]).norm(dim=0)
        for other in torch.nonzero(apart < EXACTLY)[:, 0].tolist():
            if other != k:
                raise EstimationError(
                    f"'{names[k]}' and '{names[other]}' do the same to the curve at all times of the data; "
                    "only one of them can be estimated. Leave one out of the curve."
                )


def _coordinates(slope: Tensor) -> Tensor | None:
    """Return combinations (p, r) of parameters in which the least squares are solved, None for themselves.

    slope (N, n, p) : of each parameter. Where some do nearly the same, as intercept and slope where time zero
    is far away, normal equations do not tell them apart: combinations whose slopes are orthogonal do. Those
    that move nothing are left out.
    """
    flat = slope.flatten(0, 1)
    size = flat.norm(dim=0).clamp_min(1e-300)
    _, lengths, rows = torch.linalg.svd(torch.linalg.qr(flat / size, mode="r").R)
    if lengths[-1].square() > NEARLY:
        return None
    seen = lengths > LEAST * lengths[0]
    combinations: Tensor = rows[seen].mT / lengths[seen] / size[:, None]
    return combinations


def _update(
    problem: Problem, phi: Tensor, law: GaussianLaw, beta: Tensor, sigma: Tensor
) -> tuple[GaussianLaw, Tensor, Tensor]:
    linear = linearise(problem, phi, beta, sigma)
    dim = problem.dim
    slope = linear.slope[..., :dim]
    posterior = _inverse(slope, law)
    basis, origin = _coordinates(linear.slope), torch.cat([law.mean, beta])
    if basis is None:
        origin = torch.zeros_like(origin)
    working = linear.residual + (slope @ (phi - origin[:dim])[..., None]).squeeze(-1)
    working = working + linear.slope[..., dim:] @ (beta - origin[dim:])
    design = linear.slope.clone() if basis is None else linear.slope @ basis

    def whiten(x: Tensor) -> Tensor:  # V^-1 x, V = I + J Omega J'
        whitened: Tensor = x - slope @ (posterior @ (slope.mT @ x))
        return whitened

    left = (design.mT @ whiten(design)).sum(0)
    right = (design.mT @ whiten(working[..., None])).sum(0).squeeze(-1)
    scale = left.diagonal().clamp_min(1e-300).rsqrt()
    system = left * scale[:, None] * scale + 1e-10 * torch.eye(len(left), dtype=left.dtype)
    solution = scale * torch.linalg.solve(system, scale * right)
    place = solution if basis is None else origin + basis @ solution
    mean, new_beta = place[:dim], place[dim:]

    if basis is None:
        shift = working - linear.slope[..., dim:] @ new_beta - slope @ mean
    else:
        shift = working - design @ solution
    centre = (posterior @ (slope.mT @ shift[..., None])).squeeze(-1)
    spread = centre.mT @ centre / len(phi) + posterior.mean(0)
    new_law = GaussianLaw.of_moments(mean, spread, len(phi), law.structure, law.prior)
    if problem.residual.given:
        return new_law, new_beta, sigma
    left_over = shift - (slope @ centre[..., None]).squeeze(-1)
    squares = left_over.square().sum() + (slope @ posterior * slope).sum()
    if (bounds := problem.bounds()) is not None:  # as EM of a normal sample in classes has it
        open_ = problem.residual.left_open(linear.prediction, sigma, bounds)
        squares = squares + torch.where(problem.data.mask, open_, 0.0).sum()
    ratio = (squares / problem.data.n_observations).sqrt()
    return new_law, new_beta, sigma * ratio.clamp(0.2, 5.0)


def _beats_constant(problem: Problem, start: GaussianStart, times: float) -> bool:
    """Return whether everyone's own curve misses the data by less than so many times a constant's error."""
    prediction = problem.predict(start.laplace.mode, start.beta)
    error = problem.residual.start(problem.nearest(prediction), prediction, problem.data.mask)
    return bool((error <= times * problem.without_curve).any())


def _unclimbed(problem: Problem, begun: tuple[GaussianLaw, Tensor, Tensor]) -> GaussianStart:
    """Return the first values as a start, where steps from them led to curves that explain nothing."""
    law, beta, sigma = begun
    phi = law.mean.expand(len(problem), -1).clone()
    start = GaussianStart(law, beta, sigma, modes(problem, law, beta, sigma, phi), settled=False)
    if not _beats_constant(problem, start, USELESS):
        raise EstimationError(_useless(problem, start))
    return start


def _useless(problem: Problem, start: GaussianStart) -> str:
    """Return in words why a start explains nothing."""
    response, mask = problem.data.response, problem.data.mask
    missed = (problem.nearest(found := problem.predict(start.laplace.mode, start.beta)) - found)[mask]
    if float(missed.square().sum()) < float((response[mask] - response[mask].mean()).square().sum()):
        name, others, limits = type(problem.residual).__name__, "nf.Combined() or nf.Additive()", ""
        if problem.data.bounds is not None:
            ends = torch.stack(problem.data.bounds)[:, mask]
            lowest, highest = (float(end) for end in ends[ends.isfinite()].aminmax())
            others = "nf.Additive()"
            limits = (
                f" See that the limits of censored responses, from {lowest:.4g} to {highest:.4g}, are those "
                "of the measurement."
            )
        return (
            f"Under nf.{name}() errors are shares of the curve, and where a start was sought it comes close "
            f"to zero at times at which responses do not. Take {others}, or give first values with "
            f"fit(..., start={{...}}).{limits}"
        )
    return (
        "The curves explain nothing where a start was sought: a constant is nearer to the data. Give "
        "first values with fit(..., start={...}), or take a curve that these data can follow."
    )


def _check(problem: Problem, law: GaussianLaw, beta: Tensor, sigma: Tensor, most: Tensor) -> None:
    """Raise EstimationError when a parameter is no number, or e^200 of any unit away, or sigma too large."""
    values = dict(zip(problem.random, law.mean.tolist(), strict=True))
    values |= dict(zip(problem.beta_names, beta.tolist(), strict=True))
    problem.check_ends(beta)
    scales = {name: problem.curve[name].scale.name for name in problem.curve.names}
    for name, value in values.items():
        far = 200.0 if scales.get(name, "identity") != "identity" else float("inf")
        if not abs(value) < far:
            raise EstimationError(f"Parameter '{name}' ran off while a start was sought.")
    if not bool(torch.isfinite(sigma).all() and (sigma > 0).all()):
        raise EstimationError(
            "The residual error vanished while a start was sought: curves pass through the data."
        )
    if bool((sigma > most).all()):
        raise EstimationError("The curves ran away from the data while a start was sought.")
