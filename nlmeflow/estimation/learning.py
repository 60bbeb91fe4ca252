"""Learning a law on a cloud: no likelihood, no curve, no data, only posterior draws."""

from dataclasses import dataclass, field
from functools import singledispatch

import torch
from torch import Tensor

from nlmeflow.errors import ModelError
from nlmeflow.estimation.cloud import Cloud, climb
from nlmeflow.estimation.em import Report, silent
from nlmeflow.estimation.memory import Memory
from nlmeflow.laws.gaussian import Gaussian, GaussianLaw
from nlmeflow.laws.law import Law
from nlmeflow.seeds import Seed, derive, generator

CAREFUL = Gaussian(prior=1.0)  # what starts, scales and surrounds other laws is not singular


@dataclass
class Lesson:
    """A cloud, the seed, the folds of the individuals when they are given, what was already learned."""

    cloud: Cloud
    seed: int
    report: Report = silent
    fold: Tensor | None = None
    kept: Memory = field(default_factory=Memory)

    def folds(self, number: int) -> Tensor:
        """Return the fold of each individual (N,): as given, or that many at random."""
        return split(len(self.cloud), number, derive(self.seed, 100)) if self.fold is None else self.fold


def split(n: int, folds: int, seed: int) -> Tensor:
    """Return the fold of each of n individuals: sizes differ by at most one, order at random."""
    order = torch.randperm(n, generator=generator(seed))
    fold = torch.empty(n, dtype=torch.long)
    fold[order] = torch.arange(n) % folds
    return fold


def rows(fold: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return, for each fold, the positions of the individuals outside it and of those in it."""
    return [
        (torch.nonzero(fold != k)[:, 0], torch.nonzero(fold == k)[:, 0]) for k in range(int(fold.max()) + 1)
    ]


@singledispatch
def learn(law: object, lesson: Lesson) -> Law:
    """Return the fitted law of a specification."""
    raise ModelError(
        f"{law!r} is not the specification of a law; try nf.Gaussian(), nf.Mixture() or nf.Flow()."
    )


@singledispatch
def without_folds(law: object, lesson: Lesson, fold: Tensor) -> list[Law]:
    """Return the laws learned without each fold."""
    return [
        learn(law, Lesson(lesson.cloud.subset(inside), derive(lesson.seed, 200, k), lesson.report))
        for k, (inside, _) in enumerate(rows(fold))
    ]


@singledispatch
def held_out(law: object, lesson: Lesson, fold: Tensor) -> Tensor:
    """Return log p(y_i), relative to the cloud's reference, under the law learned without i's fold: (N,)."""
    return score_held_out(lesson.cloud, without_folds(law, lesson, fold), fold)


def score_held_out(cloud: Cloud, laws: list[Law], fold: Tensor) -> Tensor:
    """Return each individual's score under the law that was learned without its fold, (N,)."""
    scores = torch.zeros(len(cloud), dtype=torch.float64)
    for law, (_, outside) in zip(laws, rows(fold), strict=True):
        scores[outside] = cloud.subset(outside).score(law)
    return scores


@dataclass(frozen=True)
class CrossFitted:
    """Each individual's law is the one learned without its fold; not a law of new individuals."""

    laws: list[Law]
    fold: Tensor

    @property
    def dim(self) -> int:
        return self.laws[0].dim

    @property
    def n_parameters(self) -> int:
        return sum(law.n_parameters for law in self.laws)

    def log_prob(self, phi: Tensor) -> Tensor:
        """Return the log-density of individual i at phi[i], from phi (N, M, d): (N, M)."""
        log_prob = phi.new_zeros(phi.shape[:-1])
        for law, (_, outside) in zip(self.laws, rows(self.fold), strict=True):
            log_prob[outside] = law.log_prob(phi[outside])
        return log_prob

    def sample(self, n: int, seed: Seed) -> Tensor:
        """Draw (n, d), n / N for each individual in order."""
        random = generator(seed)
        drawn = torch.zeros(len(self.fold), n // len(self.fold), self.dim, dtype=torch.float64)
        for law, (_, outside) in zip(self.laws, rows(self.fold), strict=True):
            part = drawn[outside]
            drawn[outside] = law.sample(len(outside) * part.shape[1], random).reshape(part.shape)
        return drawn.flatten(0, 1)

    def update(self, phi: Tensor, weights: Tensor) -> "CrossFitted":
        """Return the laws as they are."""
        return self


@learn.register
def _(law: Gaussian, lesson: Lesson) -> Law:
    return population(lesson.cloud, law)


def population(cloud: Cloud, law: Gaussian = CAREFUL) -> GaussianLaw:
    """Return the Gaussian law of a cloud by EM; kept off the boundary unless another is asked for."""
    phi = cloud.phi
    equal = phi.new_full(phi.shape[:2], 1 / phi.shape[1])
    first = GaussianLaw.of(phi, equal, law.covariance, law.prior)
    fitted, _ = climb(first, cloud, 200, tolerance=1e-4)
    assert isinstance(fitted, GaussianLaw)
    return fitted
