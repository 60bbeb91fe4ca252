"""Nonparametric maximum likelihood: where the points of a discrete law lie, and how it is certified.

The log-likelihood L(G) = sum_i log sum_k w_k p(y_i | phi_k) is concave in G. Its directional derivative
towards a point mass at phi is D(phi; G) = sum_i p(y_i | phi) / p_G(y_i) - N; G is the maximum if and
only if D <= 0 everywhere, and L* - L(G) <= sup D (Lindsay 1983).

NPML: Mallet, Biometrika 1986; NPEM: Schumitzky, Applied Mathematics and Computation 1991; NPAG: Leary,
Jelliffe, Schumitzky, Van Guilder 2001, Yamada, Neely, Bartroff, Bayard, Burke, van Guilder, Jelliffe,
Kryshchenko, Leary, Tatarinova, Schumitzky 2021; nonparametric on EBEs: Savic, Kjellsson, Karlsson, European
Journal of Pharmaceutical Sciences 2009.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy.linalg import qr
from torch import Tensor

from nlmeflow.errors import EstimationError, ModelError, check_whole, is_number
from nlmeflow.laws.draws import LikelihoodAtPoints, PosteriorDraws, TrainingSet
from nlmeflow.laws.gaussian import population
from nlmeflow.laws.kernels import empirical_bayes
from nlmeflow.laws.mixing import em_weights, solve_weights
from nlmeflow.laws.points.certificate import log_gradient, peaks
from nlmeflow.laws.points.law import DiscreteLaw
from nlmeflow.laws.specification import Specification
from nlmeflow.numerics import median_sd
from nlmeflow.seeds import Stream, derive, sobol

ROUNDS = 60  # of new points, at most
DROPPED = 1e-5  # weight, as a share of the largest, under which a point is left out
INDEPENDENT = 1e-8  # share of the largest pivot under which a point says nothing new
FARTHEST = 8.0  # standard deviations from the population's mean to which the box may reach


class PointSpecification(Specification):
    """Base of the laws made of points: an algorithm places them, steps of NPML go on until sup D is small.

    Such a step adds the points where the gradient function D(phi; G) is highest, solves the weights exactly
    and drops points without weight. When sigma has moved, they start from the points found before.

    tolerance : of sup D, in nats of log-likelihood that any law could still add; None is the algorithm alone.
    """

    levels: ClassVar[bool] = False
    of_points: ClassVar[bool] = True
    tolerance: float | None

    def __post_init__(self) -> None:
        if self.tolerance is not None and not (is_number(self.tolerance) and self.tolerance > 0):
            raise ModelError(f"tolerance is positive, in nats; got {self.tolerance!r}.")

    @abstractmethod
    def place(self, training: TrainingSet) -> DiscreteLaw:
        """Return the law that the algorithm alone finds."""

    def bound(self, training: TrainingSet, law: DiscreteLaw) -> float:
        """Return sup D(phi; G), found from the candidates: what any law could still add to the likelihood."""
        return float(_peaks(training, law)[1].max())

    def learn(self, training: TrainingSet, start: DiscreteLaw | None = None) -> DiscreteLaw:
        """Place points, or take those of an earlier law, and go on by steps of NPML until sup D is small."""
        draws = training.draws
        if self.tolerance is None:
            return self.place(training)
        found = self.place(training) if start is None else weighed(draws.data, start.support)
        for _ in range(ROUNDS):
            points, gains = _peaks(training, found)
            bound = float(gains.max())
            training.report(f"{self.name}: {len(found.weights)} points, bound {bound:.3g}")
            if bound < self.tolerance:
                break
            found = weighed(draws.data, torch.cat([found.support, points[gains > 0.1 * self.tolerance]]))
        return merged(draws, found, scale_of(draws))


@dataclass(frozen=True)
class NPML(PointSpecification):
    """Specification: nonparametric maximum likelihood to a certified optimum.

    Points are added where the gradient function D(phi; G) is highest, weights are solved exactly,
    points without weight are dropped, until sup D is under `tolerance` (nats of log-likelihood that
    any law could still add). None takes the best weights of fixed points alone: posterior draws, points
    around each individual's own data, and a Sobol set. In a model with two levels, where a point costs
    thousands of predictions, this is the only way.

    points : of the first two kinds each, at least two of each individual; half as many Sobol points.
    """

    name: ClassVar[str] = "npml"
    tolerance: float | None = 0.01
    points: int = 4000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, 1, "points")

    @property
    def levels(self) -> bool:  # type: ignore[override]
        """Whether the law may be that of groups: without the steps to a certified optimum."""
        return self.tolerance is None

    def place(self, training: TrainingSet) -> DiscreteLaw:
        return weighed(training.draws.data, places(training, self.points))


@dataclass(frozen=True)
class NPEM(PointSpecification):
    """Specification: EM of the weights of a fixed grid (Sobol points of a box).

    grid : number of points; iterations : of EM, at most. The box is that of NPAG.
    tolerance : steps of NPML go on from the points that EM leaves until sup D is under it; None for the grid
        alone, as published.
    """

    name: ClassVar[str] = "npem"
    grid: int = 4096
    iterations: int = 2000
    tolerance: float | None = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, 1, "grid", "iterations")

    def place(self, training: TrainingSet) -> DiscreteLaw:
        grid = _sobol(training, self.grid, Stream.NPEM_GRID)
        equal = grid.new_full((len(grid),), 1 / len(grid))
        weights = em_weights(training.draws.data.log_psi(grid), equal, self.iterations, tolerance=1e-7)
        return pruned(DiscreteLaw(grid, weights), DROPPED)


@dataclass(frozen=True)
class NPAG(PointSpecification):
    """Specification: the adaptive grid.

    From `grid` Sobol points in a box: solve the weights, drop points below a thousandth of the
    highest, let each of the others spawn two neighbours per coordinate at +-eps of the box's width;
    eps is halved from .2 to 1e-4 whenever the likelihood stands still.

    tolerance : steps of NPML go on from the last grid until sup D is under it; None for the adaptive grid
        alone, as published, which may end in a local optimum.
    """

    name: ClassVar[str] = "npag"
    grid: int = 1024
    tolerance: float | None = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, 1, "grid")

    def place(self, training: TrainingSet) -> DiscreteLaw:
        draws, data = training.draws, training.draws.data
        low, high = box_of(training)
        reach, value, rounds = 0.2, -torch.inf, 0
        found = weighed(data, _sobol(training, self.grid, Stream.NPAG_GRID), dropped=1e-3)
        while reach > 1e-4 and rounds < 400:
            rounds += 1
            steps = reach * torch.diag(high - low)
            moved = found.support[:, None, None] + torch.stack([steps, -steps])
            moved = torch.minimum(torch.maximum(moved.flatten(0, 2), low), high)
            found = weighed(data, torch.cat([found.support, moved]), dropped=1e-3)
            new = float(draws.score(found).sum())
            training.report(f"npag: {len(found.weights)} points, reach {reach:.1g}")
            if new - value < 1e-2:
                reach /= 2
            value = new
        return found


@dataclass(frozen=True)
class ParticleNPML(PointSpecification):
    """Specification: nonparametric maximum likelihood by particles whose weights and places move in turn.

    Wasserstein-Fisher-Rao gradient flow (Yan, Wang, Rigollet, Annals of Statistics 2024): weights by
    EM steps, places along the gradient of D, scaled for each by the curvature of its individuals.

    tolerance : steps of NPML go on from where the particles end until sup D is under it; None for the
        particles alone.
    """

    name: ClassVar[str] = "particles"
    particles: int = 400
    steps: int = 200
    tolerance: float | None = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, 2, "particles")
        check_whole(self, 1, "steps")

    def place(self, training: TrainingSet) -> DiscreteLaw:
        draws, data = training.draws, training.draws.data
        scale, half = scale_of(draws), self.particles // 2
        drawn = draws.thinned(-(-half // len(draws))).phi.flatten(0, 1)[:half]
        support = torch.cat([drawn, _sobol(training, self.particles - half, Stream.PARTICLE_POINTS)])
        weights = support.new_full((len(support),), 1 / len(support))
        rate = support.new_full((len(support), 1), 0.5)
        for _ in range(self.steps):
            with torch.enable_grad():
                x = support.clone().requires_grad_(True)
                seen = data.log_psi(x)
                weights = em_weights(seen.detach(), weights, 5)
                keep = weights > DROPPED * weights.max()
                log_marginal = (seen.detach()[:, keep] + weights[keep].log()).logsumexp(1)
                value = (seen[:, keep] - log_marginal[:, None]).logsumexp(0)
                slope = torch.autograd.grad(value.sum(), x)[0][keep]
            support, weights, rate = support[keep], weights[keep], rate[keep]
            step = rate * slope * scale.square()
            step = step * (0.5 / (step / scale).norm(dim=1, keepdim=True).clamp_min(0.5))
            tried = support + step
            better = (log_gradient(data.log_psi, log_marginal, tried) >= value)[:, None]
            rate = torch.where(better, rate * 1.3, rate * 0.3)
            support = torch.where(better, tried, support)
        return weighed(data, support)


@dataclass(frozen=True)
class NPonEBE(PointSpecification):
    """Specification: weights on the empirical Bayes estimates (conditional modes) of the Gaussian fit.

    extended : points that are drawn besides from the Gaussian fit made 1.5 times wider, for each EBE;
        0 takes the EBEs alone, which are shrunk.
    """

    name: ClassVar[str] = "np on ebes"
    tolerance: ClassVar[None] = None  # type: ignore[misc]
    extended: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, 0, "extended")

    def place(self, training: TrainingSet) -> DiscreteLaw:
        draws, wide = training.draws, population(training.draws).inflated(1.5)
        drawn = wide.sample(self.extended * len(draws), derive(training.seed, Stream.EBE_POINTS))
        return weighed(draws.data, torch.cat([empirical_bayes(draws), drawn]))


def candidates(training: TrainingSet) -> tuple[Tensor, Tensor]:
    """Return where points may be (C, d), and log psi (N, C) there.

    They are those of `places`.
    """

    def make() -> tuple[Tensor, Tensor]:
        found = places(training, 4000)
        return found, training.draws.data.log_psi(found)

    return training.memory.once("candidates", make)


def places(training: TrainingSet, n: int) -> Tensor:
    """Return posterior draws, points around each individual's own data, n of both, and a Sobol set."""

    def make() -> Tensor:
        draws = training.draws
        each, seed = max(2, n // len(draws)), derive(training.seed, Stream.POINTS_ALONE)
        own = draws.data.around(population(draws), each, seed)
        drawn = draws.thinned(each).phi.flatten(0, 1)
        return torch.cat([drawn, own, _sobol(training, -(-n * 2048 // 4000), Stream.CANDIDATE_POINTS)])

    return training.memory.once(("places", n), make)


def _peaks(training: TrainingSet, law: DiscreteLaw) -> tuple[Tensor, Tensor]:
    """Return points where D(phi; G) of a law is high, and D there."""
    draws, (candidate, there) = training.draws, candidates(training)
    here = draws.data.log_psi(law.support)
    log_marginal = (here + law.weights.log()).logsumexp(1)
    candidate, seen = torch.cat([law.support, candidate]), torch.cat([here, there], 1)
    values = (seen - log_marginal[:, None]).logsumexp(0)
    return peaks(draws.data.log_psi, log_marginal, candidate, values, scale_of(draws), len(law.weights))


def weighed(data: LikelihoodAtPoints, support: Tensor, dropped: float = DROPPED) -> DiscreteLaw:
    """Return the law of highest likelihood on given points, those without weight left out.

    Points that lie close together share their weight in the solution, more of them than individuals;
    then as many are kept as are linearly independent in what they say of the data (pivoted QR).
    """
    log_psi = data.log_psi(support)
    law = pruned(DiscreteLaw(support, solve_weights(log_psi)), dropped)
    if len(law.weights) <= len(log_psi):
        return law
    log_psi = data.log_psi(law.support)
    psi = (log_psi - log_psi.amax(1, keepdim=True)).exp() * law.weights
    _, triangle, order = qr(psi.numpy(), mode="economic", pivoting=True)
    size = np.abs(np.diag(triangle))
    kept = torch.from_numpy(order[: len(size)][size > INDEPENDENT * size[0]])
    weights = solve_weights(log_psi[:, kept])
    return pruned(DiscreteLaw(law.support[kept], weights), dropped)


def pruned(law: DiscreteLaw, dropped: float) -> DiscreteLaw:
    """Return the law without the points whose weight is below a share of the largest."""
    kept = law.weights > dropped * law.weights.max()
    if not bool(kept.any()):
        raise EstimationError("No point has any likelihood: an observation is impossible under all of them.")
    weights = law.weights[kept]
    return DiscreteLaw(law.support[kept], weights / weights.sum())


def scale_of(draws: PosteriorDraws) -> Tensor:
    """Return a length in each coordinate: the median conditional standard deviation."""
    return median_sd(draws.phi, draws.weigh(population(draws)).weights)


def merged(draws: PosteriorDraws, law: DiscreteLaw, scale: Tensor, distance: float = 0.02) -> DiscreteLaw:
    """Return the law with points closer than `distance` scales merged, when that costs no likelihood."""
    order = law.weights.argsort(descending=True).tolist()
    apart = torch.cdist(law.support / scale, law.support / scale)
    owner: dict[int, list[int]] = {}
    for k in order:
        near = next((j for j in owner if apart[j, k] < distance), None)
        owner.setdefault(k if near is None else near, []).append(k)
    rows = [(law.weights[group], law.support[group]) for group in owner.values()]
    support = torch.stack([w @ x / w.sum() for w, x in rows])
    lighter = weighed(draws.data, support)
    before, after = draws.score(law).sum(), draws.score(lighter).sum()
    return lighter if after > before - 1e-4 else law


def box_of(training: TrainingSet) -> tuple[Tensor, Tensor]:
    """Return the corners of a box that holds the draws and what each individual says alone.

    The latter up to FARTHEST standard deviations: an individual that leaves a parameter free says nothing.
    """

    def make() -> tuple[Tensor, Tensor]:
        draws, gaussian = training.draws, population(training.draws)
        reach = FARTHEST * gaussian.sd
        own = draws.data.alone(gaussian)
        own = torch.minimum(torch.maximum(own, gaussian.mean - reach), gaussian.mean + reach)
        held = torch.cat([own, draws.phi.flatten(0, 1)])
        low, high = held.amin(0), held.amax(0)
        return low - 0.05 * (high - low), high + 0.05 * (high - low)

    return training.memory.once("box", make)


def _sobol(training: TrainingSet, n: int, stream: Stream) -> Tensor:
    low, high = box_of(training)
    return low + (high - low) * sobol(n, len(low), derive(training.seed, stream))
