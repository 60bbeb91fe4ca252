"""How laws climb the likelihood of draws: EM with Anderson acceleration, L-BFGS where there is no M-step.

EM is slow where the data say little: near the boundary of sparse data it moves a law by a hundredth of
the way. Anderson acceleration of x -> G(x) (Walker and Ni, SIAM J. Numer. Anal. 2011) compares its steps, and
extrapolates, in coordinates of order one: log weights, means and lower factors (logarithms on the
diagonal) of Gaussian components in units of the first law seen.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Self, TypeVar

import torch
from torch import Tensor

from nlmeflow.laws.affine import Affine
from nlmeflow.laws.draws import PosteriorDraws
from nlmeflow.laws.law import Components, Law
from nlmeflow.numerics import lbfgs

LBFGS_STEPS = 100  # at most
AGAIN = 30  # of them from where all individuals ended
FEW_DRAWS = 12_800  # of all individuals, about, in an L-BFGS climb
CARE = 1.0  # prior of laws that are kept off their boundary
TRIAL = (12, 40)  # draws, steps of the first climb of several starts

AnyLaw = TypeVar("AnyLaw", bound=Law)
Smooth = TypeVar("Smooth", bound="SmoothLaw")


class Anderson:
    """Keeps the last few steps and extrapolates to where their differences vanish.

    The caller judges each proposal by the log-likelihood and calls `forget` when it fell. Laws without
    Gaussian components are left alone.
    """

    def __init__(self, depth: int = 5) -> None:
        self.depth = depth
        self._points: list[Tensor] = []
        self._images: list[Tensor] = []
        self._unit: Affine | None = None

    def forget(self) -> None:
        """Drop the history."""
        self._points.clear()
        self._images.clear()

    def law(
        self, before: AnyLaw, after: AnyLaw, *others: tuple[Tensor, Tensor]
    ) -> tuple[AnyLaw, list[Tensor]]:
        """Return the law, and other vectors, extrapolated from (before, after) pairs."""
        if (start := before.components) is None or (end := after.components) is None:
            return after, [image for _, image in others]
        if self._unit is None:
            self._unit = Affine(start[0] @ start[1], start[2][int(start[0].argmax())])
        point = torch.cat([_packed(start, self._unit), *[x for x, _ in others]])
        image = torch.cat([_packed(end, self._unit), *[x for _, x in others]])
        sizes = [len(x) for x, _ in others]
        head, *rest = self.step(point, image).split([len(point) - sum(sizes), *sizes])
        return after.with_components(*_unpacked(head, end[1].shape, self._unit)), rest

    def step(self, point: Tensor, image: Tensor) -> Tensor:
        """Return the next point, extrapolated from (point, image) pairs of vectors."""
        self._points = [*self._points[-self.depth :], point]
        self._images = [*self._images[-self.depth :], image]
        if len(self._points) < 2:
            return image
        images = torch.stack(self._images)
        residuals = images - torch.stack(self._points)
        differences = residuals.diff(dim=0)
        if not bool(torch.isfinite(differences).all()):
            self.forget()
            return image
        gamma = torch.linalg.lstsq(differences.mT, residuals[-1], driver="gelsd").solution
        further: Tensor = images[-1] - gamma @ images.diff(dim=0)
        return further


def _packed(components: Components, unit: Affine) -> Tensor:
    weights, means, factors = components
    white = unit.inverse @ factors
    log_scale = white.diagonal(dim1=-2, dim2=-1).log()
    below = torch.tril_indices(unit.dim, unit.dim, -1)
    parts = [weights.clamp_min(1e-12).log(), unit.standardise(means), log_scale, white[:, below[0], below[1]]]
    return torch.cat([part.flatten() for part in parts])


def _unpacked(vector: Tensor, shape: Sequence[int], unit: Affine) -> Components:
    k, dim = shape
    log_weights, mean, log_scale, lower = vector.split([k, k * dim, k * dim, k * dim * (dim - 1) // 2])
    white = torch.diag_embed(log_scale.clamp(-30, 30).reshape(k, dim).exp())
    below = torch.tril_indices(dim, dim, -1)
    white[:, below[0], below[1]] = lower.reshape(k, -1)
    return log_weights.softmax(0), unit(mean.reshape(k, dim)), unit.factor @ white


def climb(
    law: AnyLaw,
    draws: PosteriorDraws,
    iterations: int,
    tolerance: float = 1e-4,
    share: Tensor | None = None,
) -> tuple[AnyLaw, float]:
    """Run EM of a law on posterior draws; return the law and its log-likelihood relative to R.

    It ends when two iterations in a row change the penalised log-likelihood by less than `tolerance`.

    share (N,): what each individual counts for; one each when None.
    """
    one = draws.phi.new_ones(len(draws)) if share is None else share
    accelerator, small = Anderson(), 0
    step = draws.weigh(law)
    value = float(one @ step.log_likelihood) + law.log_prior
    for _ in range(iterations):
        plain = law.update(draws.phi, one[:, None] * step.weights)
        moved = accelerator.law(law, plain)[0]
        trial = draws.weigh(moved)
        new = float(one @ trial.log_likelihood) + moved.log_prior
        if moved is not plain and not new > value - tolerance:
            accelerator.forget()
            moved, trial = plain, draws.weigh(plain)
            new = float(one @ trial.log_likelihood) + moved.log_prior
        small = small + 1 if abs(new - value) < tolerance else 0
        law, step, value = moved, trial, new
        if small == 2:
            break
    return law, float(one @ step.log_likelihood)


class SmoothLaw(Law):
    """A law with a vector of free parameters, zero where it stands, that climbs by L-BFGS.

    A subclass has a field `frame`, where the law stands. One that knows a prior has a field `prior`, the c of
    a factor |Omega|^c on the likelihood (see `Gaussian`), Omega = factor factor', and says `careful`.
    """

    frame: Affine
    prior: float = 0.0

    @property
    def dim(self) -> int:
        return self.frame.dim

    @property
    @abstractmethod
    def n_free(self) -> int:
        """Return the length of the vector."""

    @abstractmethod
    def moved(self, vector: Tensor) -> Self:
        """Return the law moved by a vector (n_free,)."""

    def careful(self) -> Self | None:
        """Return the law with a prior that keeps it off its boundary; None where it knows no prior."""
        return None


def climb_smooth(
    law: Smooth, draws: PosteriorDraws, steps: int = LBFGS_STEPS, share: Tensor | None = None
) -> Smooth:
    """Return a smooth law where the log-likelihood of the draws is highest, with its prior (L-BFGS).

    share (N,): what each individual counts for.
    """
    one = draws.phi.new_ones(len(draws)) if share is None else share

    def loss(vector: Tensor) -> Tensor:
        moved = law.moved(vector)
        value = one @ draws.weigh(moved).log_likelihood + 2 * moved.prior * moved.frame.log_volume
        return -value / one.sum()

    start = torch.zeros(law.n_free, dtype=torch.float64)
    return law.moved(lbfgs(loss, start, steps, change=1e-7))


def few(draws: PosteriorDraws) -> PosteriorDraws:
    """Return 32 draws of each individual, fewer where individuals are many (12,800 in all), 8 at least."""
    return draws.thinned(max(8, min(32, FEW_DRAWS // len(draws))))


def best_climb(
    firsts: Sequence[Smooth], draws: PosteriorDraws, survivors: int = 2, also: Sequence[Smooth] = ()
) -> Smooth:
    """Return the best of several starts: short climbs on few draws, long ones for the best.

    also : laws to compare with at the end, as they are.
    A law so thin that few draws are in it fits their noise: it is climbed to again with a prior.
    """
    best = _best_climb(firsts, draws, survivors)
    kept = [law for first in firsts if (law := first.careful()) is not None]
    if kept and not best.prior and draws.few_in(best):
        best = _best_climb(kept, draws, survivors)
    return _highest([best, *also], draws)


def _best_climb(firsts: Sequence[Smooth], draws: PosteriorDraws, survivors: int) -> Smooth:
    size, steps = TRIAL
    thin = few(draws).thinned(size)
    tried = sorted(
        (climb_smooth(first, thin, steps) for first in firsts), key=lambda law: -float(thin.score(law).sum())
    )
    return _highest([climb_smooth(law, few(draws)) for law in tried[:survivors]], draws)


def _highest(laws: Sequence[Smooth], draws: PosteriorDraws) -> Smooth:
    return max(laws, key=lambda law: float(draws.score(law).sum()))


def reweighted(law: Law, draws: PosteriorDraws, weights: Tensor) -> list[Law]:
    """Return the law fitted again, from where it stands, with each row of individual weights (R, N)."""
    if isinstance(law, SmoothLaw):
        return [climb_smooth(law, few(draws), AGAIN, row) for row in weights]
    return [climb(law, draws, 100, 1e-3, row)[0] for row in weights]
