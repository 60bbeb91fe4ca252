"""Learning a flow's relatives on a cloud: SNP, transformed Gaussian, smooth NPMLE, kernel densities."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nlmeflow.estimation.cloud import Cloud
from nlmeflow.estimation.components import bic
from nlmeflow.estimation.laplace import alone, modes
from nlmeflow.estimation.learning import Lesson, learn, population, rows, without_folds
from nlmeflow.estimation.weights import solve_weights
from nlmeflow.laws.frame import Climber, Frame, ascend
from nlmeflow.laws.kernels import BANDWIDTHS, EBEDensity, KernelLaw, SmoothNPMLE, TwoStage
from nlmeflow.laws.law import Law, normal_log_prob
from nlmeflow.laws.mixture import Mixture
from nlmeflow.laws.snp import SNP, SNPLaw, exponents, hermite
from nlmeflow.laws.transformed import Transformed, TransformedLaw
from nlmeflow.seeds import derive, generator

STEPS = 100  # of L-BFGS, at most
AGAIN = 30  # of them from where all individuals ended
POINTS = 12_800  # draws of all individuals, about
TRIAL = (12, 40)  # draws, steps of the first climb of several starts
WIDTHS = (0.75, 0.9)  # of the frames in which SNP laws start: in wider ones they miss groups
NEGLIGIBLE = 1e-6  # weight under which a kernel is left out


def climb_smooth(law: Climber, cloud: Cloud, steps: int = STEPS, share: Tensor | None = None) -> Climber:
    """Return a law with a vector of parameters where the cloud's log-likelihood is highest (L-BFGS).

    A prior |Omega|^c of the law counts; share (N,): what each individual counts for.
    """
    one = cloud.phi.new_ones(len(cloud)) if share is None else share

    def objective(moved: Climber) -> Tensor:
        value = one @ cloud.weigh(moved).log_likelihood + 2 * moved.prior * moved.frame.log_volume
        return value / one.sum()

    return ascend(law, objective, steps)


def few(cloud: Cloud) -> Cloud:
    """Return the cloud with 32 draws of each individual, and with less, but 8, when they are many."""
    return cloud.thinned(max(8, min(32, POINTS // len(cloud))))


def best_climb(firsts: Sequence[Climber], cloud: Cloud, survivors: int = 2) -> Climber:
    """Return the best of several starts: short climbs on a thinned cloud, long ones for the best."""
    draws, steps = TRIAL
    thin = few(cloud).thinned(draws)
    tried = sorted(
        (climb_smooth(first, thin, steps) for first in firsts), key=lambda law: -float(thin.score(law).sum())
    )
    climbed = [climb_smooth(law, few(cloud)) for law in tried[:survivors]]
    return max(climbed, key=lambda law: float(cloud.score(law).sum()))


def fewest(laws: Sequence[SNPLaw], cloud: Cloud) -> int:
    """Return the position of the law of lowest BIC."""
    values = [bic(law, float(cloud.score(law).sum()), len(cloud)) for law in laws]
    return values.index(min(values))


@learn.register
def _(law: SNP, lesson: Lesson) -> Law:
    """Return the SNP law of lowest BIC."""
    found = orders(law, lesson)
    return found[fewest(found, lesson.cloud)]


@without_folds.register
def _(law: SNP, lesson: Lesson, fold: Tensor) -> list[Law]:
    """Fit again without each fold: the order that all individuals gave and the one below.

    Starts are of the fold's own: from the law of all individuals a fit may stay at an optimum that is
    there because of the individuals who were left out.
    """
    best = fewest(orders(law, lesson), lesson.cloud)
    near = law.orders[max(0, best - 1) : best + 1]
    laws: list[Law] = []
    for mixture, (inside, _) in zip(without_folds(Mixture(), lesson, fold), rows(fold), strict=True):
        cloud = lesson.cloud.subset(inside)
        again = [best_climb(_projections(law, k, cloud, mixture, lesson.seed), cloud, 1) for k in near]
        laws.append(again[fewest(again, cloud)])
    return laws


def orders(law: SNP, lesson: Lesson) -> list[SNPLaw]:
    """Return the law of each order to try; made once for each lesson."""

    def make() -> list[SNPLaw]:
        found = []
        for order in law.orders:
            lesson.report(f"snp of order {order}")
            starts = _projections(law, order, lesson.cloud, learn(Mixture(), lesson), lesson.seed)
            plain = SNPLaw.gaussian(Frame.of(population(lesson.cloud)), order, law.prior)
            found.append(best_climb([plain, *starts], lesson.cloud))
        return found

    return lesson.kept.once(law, make)


def refitted(law: Law, cloud: Cloud, share: Tensor) -> list[Law]:
    """Return an SNP or transformed law fitted again with each row of individual weights (R, N)."""
    assert isinstance(law, SNPLaw | TransformedLaw)
    thin = few(cloud)
    return [climb_smooth(law, thin, AGAIN, row) for row in share]


def _projections(law: SNP, order: int, cloud: Cloud, mixture: Law, seed: int) -> list[SNPLaw]:
    """Return projections of a mixture, in frames of several widths of the cloud's Gaussian.

    c_alpha = E h_alpha(z) sqrt(p(z) / N(z; 0, I)), z standard normal: the polynomial whose square is
    closest to the mixture p in Hellinger distance.
    """
    gaussian = population(cloud)
    starts = []
    index = exponents(gaussian.dim, order)
    engine = torch.quasirandom.SobolEngine(gaussian.dim, scramble=True, seed=derive(seed, 500))
    z = torch.special.ndtri(engine.draw(4096, dtype=torch.float64).clamp(1e-9, 1 - 1e-9))
    normal = normal_log_prob(z, torch.zeros_like(z[0]), torch.eye(gaussian.dim, dtype=z.dtype))
    basis = hermite(z, order)[:, torch.arange(gaussian.dim), index].prod(-1)
    for width in WIDTHS:
        frame = Frame.of(gaussian.inflated(width))
        log_mixture = mixture.log_prob(frame.mean + z @ frame.factor.mT) + frame.log_volume
        projected = (basis * (0.5 * (log_mixture - normal)).exp()[:, None]).mean(0)
        starts.append(SNPLaw(frame, projected / projected.norm(), order, law.prior))
    return starts


@learn.register
def _(law: Transformed, lesson: Lesson) -> Law:
    return lesson.kept.once(law, lambda: _transformed(law, lesson))


def _transformed(law: Transformed, lesson: Lesson) -> TransformedLaw:
    gaussian = population(lesson.cloud)
    shapes = (-0.4, 1e-3, 0.4) if law.kind == "box-cox" else (-0.3, 1e-3, 0.5)
    starts = [
        TransformedLaw(Frame.of(gaussian), torch.full_like(gaussian.mean, shape), law.kind, law.prior)
        for shape in shapes
    ]
    return best_climb(starts, lesson.cloud)


@without_folds.register
def _(law: Transformed, lesson: Lesson, fold: Tensor) -> list[Law]:
    """Fit again without each fold, from where all individuals ended."""
    first = lesson.kept.once(law, lambda: _transformed(law, lesson))
    return [climb_smooth(first, few(lesson.cloud.subset(inside)), AGAIN) for inside, _ in rows(fold)]


@learn.register
def _(law: SmoothNPMLE, lesson: Lesson) -> Law:
    """Return the weights of highest likelihood of kernels whose width held-out individuals choose."""
    cloud, random = lesson.cloud, generator(derive(lesson.seed, 501))
    flat = cloud.phi.flatten(0, 1)
    points = flat[torch.randperm(len(flat), generator=random)[: law.points]]
    gaussian = population(cloud)
    widths = BANDWIDTHS if law.bandwidth is None else (law.bandwidth,)
    tables = [_kernel_table(cloud, points, share * gaussian.factor) for share in widths]
    chosen = 0
    if len(widths) > 1:
        lesson.report("smooth npmle: bandwidth")
        fold = lesson.folds(law.folds)
        chosen = max(range(len(widths)), key=lambda k: _held_out(tables[k], fold))
    weights = solve_weights(tables[chosen])
    kept = weights > NEGLIGIBLE
    return KernelLaw.at(points[kept], widths[chosen] * gaussian.factor, weights[kept])


def _kernel_table(cloud: Cloud, points: Tensor, factor: Tensor) -> Tensor:
    """Return log of each individual's marginal density under each kernel, relative to R, (N, K)."""
    parts = []
    for some in points.split(64):
        joint = KernelLaw.at(some, factor).log_joint(cloud.phi) + math.log(len(some))
        parts.append((joint - cloud.log_reference).logsumexp(-1).mT - math.log(cloud.phi.shape[1]))
    return torch.cat(parts, 1)


def _held_out(table: Tensor, fold: Tensor) -> float:
    total = 0.0
    for inside, outside in rows(fold):
        weights = solve_weights(table[inside])
        total += float((table[outside] + weights.clamp_min(1e-300).log()).logsumexp(1).sum())
    return total


@learn.register
def _(law: TwoStage, lesson: Lesson) -> Law:
    seen = lesson.cloud.points
    own = alone(seen.problem, population(lesson.cloud), seen.beta, seen.sigma)
    return KernelLaw.density(own.mode, law.bandwidth)


@learn.register
def _(law: EBEDensity, lesson: Lesson) -> Law:
    return KernelLaw.density(empirical_bayes(lesson.cloud), law.bandwidth)


def empirical_bayes(cloud: Cloud) -> Tensor:
    """Return the conditional modes under the Gaussian law of the cloud, (N, d)."""
    gaussian, seen = population(cloud), cloud.points
    means = (cloud.weigh(gaussian).weights[..., None] * cloud.phi).sum(1)
    return modes(seen.problem, gaussian, seen.beta, seen.sigma, means).mode
