"""What a specification of a law can do: learn it from draws, without each fold, with other weights."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Protocol

from torch import Tensor

from nlmeflow.errors import ModelError
from nlmeflow.laws.draws import Folds, TrainingSet, cross_scores
from nlmeflow.laws.em import reweighted
from nlmeflow.laws.law import Law
from nlmeflow.records import Saved


class Trainer(Protocol):
    """A law that climbs the log-density of fresh draws by gradient steps, for stochastic approximation."""

    def move(self, phi: Tensor, share: float) -> Law:
        """Return the law after one step, at a share of the learning rate, on draws phi (N, C, d)."""

    def finished(self) -> Law:
        """Return the law as it is in the end."""


class Specification(Saved, ABC):
    """What is asked for, as nf.Mixture(3); a frozen dataclass. Only `name` and `learn` must be written.

    name : the key of the law in tables and figures.
    levels : whether the law may be that of groups in a model with two levels.
    by_em : a Gaussian law, which EM on particles of the data estimates from end to end.
    bounded : the likelihood has a maximum also where nobody has more observations than parameters.
    of_points : the law is made of points, and sigma and beta move in turn with them.
    maximised : the law is a maximum of the likelihood, with a prior or without, that the bootstrap finds
        again; not a mean over a posterior distribution.
    n_laws : how many laws it averages, each of which has a share of the prior in `compare`.
    """

    name: ClassVar[str] = ""
    levels: ClassVar[bool] = True
    by_em: ClassVar[bool] = False
    bounded: ClassVar[bool] = False
    of_points: ClassVar[bool] = False
    maximised: ClassVar[bool] = True

    @property
    def n_laws(self) -> int:
        return 1

    @abstractmethod
    def learn(self, training: TrainingSet) -> Law:
        """Return the law learned from all individuals."""

    def learn_without(self, training: TrainingSet, folds: Folds) -> Sequence[Law]:
        """Return the laws learned without each fold."""
        return [self.learn(part) for part in training.without(folds)]

    def held_out(self, training: TrainingSet, folds: Folds) -> Tensor:
        """Return log p(y_i), relative to the draws' reference, under the law without i's fold: (N,)."""
        return cross_scores(training.draws, self.learn_without(training, folds), folds)

    def unseen(self, training: TrainingSet, learned: Law) -> Law:
        """Return the law under which sigma and beta are estimated: the one learned, unless it fits the noise.

        A flexible law that has seen an individual fits part of its noise, and sigma would be too small.
        """
        return learned

    @property
    def trainable(self) -> bool:
        """Whether the law can be trained by gradient steps from a Gaussian on."""
        return False

    def trainer(self, gaussian: Law, seed: int) -> Trainer:
        """Return what trains the law from a Gaussian on; only of trainable ones.

        Raises
        ------
        ModelError : the law is not trained by gradient steps.

        """
        raise ModelError(f"{self!r} is not trained by gradient steps.")

    def refit(self, training: TrainingSet, weights: Tensor) -> Sequence[Law]:
        """Return one law for each row of individual weights (R, N), from where all individuals put it."""
        return reweighted(self.learn(training), training.draws, weights)


def specified(law: object) -> Specification:
    """Return a specification as it is, and the default one of its class.

    Raises
    ------
    ModelError : it is not the specification of a law.

    """
    if isinstance(law, type) and issubclass(law, Specification):
        law = law()
    if not isinstance(law, Specification):
        raise ModelError(
            f"{law!r} is not the specification of a law; try nf.Gaussian(), nf.Mixture() or nf.Flow()."
        )
    return law


def bic(law: Law, value: float, n: int) -> float:
    """Return p log n - 2 L of a law with p parameters and log-likelihood L; the lower the better."""
    return law.n_parameters * math.log(n) - 2 * value


def lowest_bic(laws: Sequence[Law], training: TrainingSet) -> int:
    """Return the position of the law of lowest BIC on the draws."""
    draws = training.draws
    values = [bic(law, float(draws.score(law).sum()), len(draws)) for law in laws]
    return values.index(min(values))
