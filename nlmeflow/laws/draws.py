"""Posterior draws: a few values of phi for each individual, from which every law can be learned.

Draws phi_im come from each individual's posterior under a broad reference law R. For any law p

    log p_p(y_i) - log p_R(y_i) = log E_R[p(phi) / R(phi) | y_i] ~ log mean_m p(phi_im) / R(phi_im),

so that laws are fitted and compared without likelihood, curve or data.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from nlmeflow.errors import ModelError
from nlmeflow.laws.law import Law
from nlmeflow.running import Memory, Report, silent
from nlmeflow.seeds import Stream, derive, generator

THIN = 0.125  # effective share of draws under which a law has few of them in it


@dataclass(frozen=True)
class Expectation:
    """The E-step: weights (N, M) summing to one per individual, log-likelihoods (N,)."""

    weights: Tensor
    log_likelihood: Tensor

    @property
    def ess(self) -> Tensor:
        """Effective sample size of each individual, 1 / sum_m w_im^2, (N,)."""
        return 1 / self.weights.square().sum(1)

    @property
    def error(self) -> float:
        """Monte-Carlo standard error of the total log-likelihood (independent draws).

        Var = sum_i (1 / ESS_i - 1 / M), an upper bound in practice: Sobol points do better.
        """
        size = self.weights.shape[1]
        return float((1 / self.ess - 1 / size).clamp_min(0).sum().sqrt())


def expectation(log_ratio: Tensor, log_law: Tensor) -> Expectation:
    """Weigh draws phi_im of a proposal q_i under a law p: the E-step.

        w_im = r_im / sum_k r_ik,   r_im = p(y_i | phi_im) p(phi_im) / q_i(phi_im),   L_i = log mean_m r_im

    log_ratio = log p(y_i | phi_im) - log q_i(phi_im) and log_law = log p(phi_im), both (N, M).
    """
    log_weight = log_ratio + log_law
    total = log_weight.logsumexp(1, keepdim=True)
    return Expectation((log_weight - total).exp(), total[:, 0] - math.log(log_weight.shape[1]))


def taken(phi: Tensor, index: Tensor) -> Tensor:
    """Return those of each individual's phi (N, M, d) that stand at index (N, n): (N, n, d)."""
    return phi.gather(1, index[..., None].expand(-1, -1, phi.shape[-1]))


def resample(phi: Tensor, weights: Tensor, n: int, random: torch.Generator) -> Tensor:
    """Draw n of each individual's weighted phi (N, M, d): (N, n, d). Systematic, one offset each."""
    offset = torch.rand(len(weights), 1, generator=random, dtype=weights.dtype)
    places = (torch.arange(n, dtype=weights.dtype) + offset) / n
    index = torch.searchsorted(weights.cumsum(1), places).clamp_max(weights.shape[1] - 1)
    return taken(phi, index)


def shuffled(phi: Tensor, random: torch.Generator) -> Tensor:
    """Return each individual's phi (N, M, d) in an order of its own: systematic draws come sorted."""
    return taken(phi, torch.argsort(torch.rand(phi.shape[:2], generator=random, dtype=torch.float32), dim=1))


def heaviest(phi: Tensor, weights: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return the n heaviest of each individual's phi (N, M, d), all when fewer, and their weights (N, n)."""
    heavy = weights.topk(min(n, weights.shape[1]), dim=1)
    return taken(phi, heavy.indices), heavy.values


class LikelihoodAtPoints(Protocol):
    """What the data say at any phi, for laws that are made of points; here the curve is called."""

    def log_psi(self, points: Tensor) -> Tensor:
        """Return log p(y_i | phi_k) - log p_R(y_i) at points (K, d): (N, K). Differentiable."""

    def alone(self, broad: Law) -> Tensor:
        """Return where each individual's own data put it, (N, d); `broad` holds what they leave free."""

    def around(self, broad: Law, n: int, seed: int) -> Tensor:
        """Return n points for each individual, spread as its own data allow, (N n, d)."""

    def modes(self, gaussian: Law, start: Tensor) -> Tensor:
        """Return the conditional modes under a Gaussian law, (N, d)."""

    def subset(self, index: Tensor) -> Self:
        """Return the same of the individuals at these positions."""


@dataclass(frozen=True)
class PosteriorDraws:
    """phi (N, m, d) and log R(phi) (N, m); `points` for laws made of points, when the data are at hand."""

    phi: Tensor
    log_reference: Tensor
    points: LikelihoodAtPoints | None = None

    def __len__(self) -> int:
        return len(self.phi)

    @property
    def dim(self) -> int:
        """Return d."""
        return self.phi.shape[-1]

    @property
    def equal(self) -> Tensor:
        """Return the weight 1 / m of every draw, (N, m)."""
        return self.phi.new_full(self.phi.shape[:2], 1 / self.phi.shape[1])

    @property
    def data(self) -> LikelihoodAtPoints:
        """Return what the data say at points, or raise ModelError."""
        if self.points is None:
            raise ModelError("A discrete law needs the data; draws of known parameters have none.")
        return self.points

    def weigh(self, law: Law) -> Expectation:
        """Return posterior weights under a law and its log-likelihood relative to R."""
        return expectation(-self.log_reference, law.log_prob(self.phi))

    def effective_share(self, law: Law) -> float:
        """Return the share of most individuals' draws that count under a law: their median."""
        return float(self.weigh(law).ess.median()) / self.phi.shape[1]

    def few_in(self, law: Law) -> bool:
        """Return whether a law is so thin that few draws are in it, which say nothing of its likelihood."""
        return self.effective_share(law) <= THIN

    def score(self, law: Law) -> Tensor:
        """Return log p_law(y_i) - log p_R(y_i) of each individual, (N,)."""
        if law.has_density:
            return self.weigh(law).log_likelihood
        scores: Tensor = (self.data.log_psi(law.support) + law.weights.log()).logsumexp(1)  # type: ignore[attr-defined]
        return scores

    def subset(self, index: Tensor) -> "PosteriorDraws":
        """Return the draws of the individuals at these positions."""
        points = None if self.points is None else self.points.subset(index)
        return PosteriorDraws(self.phi[index], self.log_reference[index], points)

    def thinned(self, n: int) -> "PosteriorDraws":
        """Return n draws per individual (all when fewer), evenly spaced."""
        last = self.phi.shape[1] - 1
        keep = torch.linspace(0, last, min(n, last + 1)).round().long()
        return PosteriorDraws(self.phi[:, keep], self.log_reference[:, keep], self.points)


@dataclass(frozen=True, eq=False)
class Folds:
    """Which individuals are held out together: `of` (N,), the number of each individual's fold."""

    of: Tensor

    @classmethod
    def random(cls, n: int, number: int, seed: int) -> "Folds":
        """Split n individuals at random; sizes differ by at most one."""
        order = torch.randperm(n, generator=generator(seed))
        fold = torch.empty(n, dtype=torch.long)
        fold[order] = torch.arange(n) % number
        return cls(fold)

    def __len__(self) -> int:
        """Return the number of folds."""
        return int(self.of.max()) + 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Folds) and torch.equal(self.of, other.of)

    def __hash__(self) -> int:
        return hash(self.of.numpy().tobytes())

    def parts(self) -> list[tuple[Tensor, Tensor]]:
        """Return, for each fold, the positions of the individuals outside it and of those in it."""
        return [
            (torch.nonzero(self.of != k)[:, 0], torch.nonzero(self.of == k)[:, 0]) for k in range(len(self))
        ]


@dataclass(frozen=True)
class TrainingSet:
    """What a law is learned from: draws, a seed, the folds when they are given, what was already computed."""

    draws: PosteriorDraws
    seed: int
    folds: Folds | None = None
    report: Report = silent
    memory: Memory = field(default_factory=Memory)

    def split(self, number: int) -> Folds:
        """Return the folds: as given, or that many at random."""
        if self.folds is not None:
            return self.folds
        return Folds.random(len(self.draws), number, derive(self.seed, Stream.FOLDS))

    def without(self, folds: Folds) -> list["TrainingSet"]:
        """Return the training set without each fold."""
        return [
            TrainingSet(
                self.draws.subset(inside), derive(self.seed, Stream.WITHOUT_FOLD, k), report=self.report
            )
            for k, (inside, _) in enumerate(folds.parts())
        ]

    def reporting(self, report: Report, folds: Folds | None) -> "TrainingSet":
        """Return the same training set with another report and other folds; memory is shared."""
        return replace(self, report=report, folds=folds)


def cross_scores(draws: PosteriorDraws, laws: Sequence[Law], folds: Folds) -> Tensor:
    """Return each individual's score (N,) under the law that was learned without its fold."""
    scores = torch.zeros(len(draws), dtype=torch.float64)
    for law, (_, outside) in zip(laws, folds.parts(), strict=True):
        scores[outside] = draws.subset(outside).score(law)
    return scores
