"""The average of flows, mixtures and two smooth laws, each scored on held-out individuals: `nf.Flow`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from nlmeflow.arguments import check_fields
from nlmeflow.errors import ModelError, check_whole
from nlmeflow.laws.averaging import held_out_average, prior_weights, stacking_weights
from nlmeflow.laws.draws import Folds, PosteriorDraws, TrainingSet, cross_scores
from nlmeflow.laws.em import climb
from nlmeflow.laws.flow.law import FlowLaw
from nlmeflow.laws.flow.network import RATES, Kind, Network, widths
from nlmeflow.laws.flow.training import NOISE, Course, GradientFlow, Settings
from nlmeflow.laws.gaussian import Gaussian, GaussianLaw, check_prior, population
from nlmeflow.laws.law import Law
from nlmeflow.laws.mixture import Mixture, redrawn
from nlmeflow.laws.snp import SNP
from nlmeflow.laws.specification import Specification
from nlmeflow.laws.stacked import CrossFittedLaw, StackedLaw
from nlmeflow.laws.transformed import Transformed
from nlmeflow.numerics import LOST, moments
from nlmeflow.seeds import Stream, derive, generator

Refit = Callable[[Tensor], Sequence[Law]]
Base = Literal["gaussian", "mixture"]
ASTRAY = 3.0  # times the standard deviation of the draws, from which on a flow is left out
WIDER, TRIED = 1.5, 4000  # how many draws of how wide a base show it
PENALTIES: dict[Kind, float] = {"quadratic": 2.0, "spline": 4.0, "autoregressive": 4.0, "realnvp": 4.0}


@dataclass(frozen=True)
class Candidate:
    """A law of the average, its fits without each fold, their held-out scores (N,), how to refit it.

    refit(weights) returns one law for each row of individual weights (R, N). penalty : what it has to be
    ahead by, in nats (see `averaging`).
    """

    name: str
    law: Law
    parts: Sequence[Law]
    scores: Tensor
    refit: Refit
    penalty: float = 0.0


class Table(NamedTuple):
    """Held-out scores (N, K) and penalties (K,) of several candidates."""

    scores: Tensor
    penalty: Tensor

    @classmethod
    def of(cls, found: Sequence[Candidate]) -> "Table":
        """Return the table of these candidates."""
        scores = torch.stack([c.scores for c in found], 1).nan_to_num(LOST, LOST, LOST)
        return cls(scores, scores.new_tensor([c.penalty for c in found]))


def _candidates(law: "Flow", training: TrainingSet, folds: Folds) -> list[Candidate]:
    draws = training.draws
    careful = Gaussian(prior=law.prior)
    gaussian = population(draws, careful)
    found = []
    for b, base in enumerate(law.bases()):
        if base == "gaussian":
            parts, again = careful.learn_without(training, folds), partial(_climbed, gaussian, draws)
            on_base = _scored("gaussian base", training, folds, gaussian, parts, again)
        else:
            found.append(_mixture("mixture", training, folds, 1.0, law.prior))
            on_base = _mixture("mixture base", training, folds, law.stiffness, law.prior)
        found.append(on_base)
        for k, network in enumerate(law.networks(base)):
            seed = derive(training.seed, Stream.FLOWS, b, k)
            course = Course(network, law.settings(network), draws, gaussian)
            key = ("flows", base, network, course.settings, law.stiffness, law.prior, folds, seed)
            make = partial(_flows, course, base, on_base, training, folds, seed)
            found += training.memory.once(key, make)
    for some in law.relatives():
        make = partial(_relative, some, training, folds, gaussian)
        found += training.memory.once(("relative", some, folds), make)
    return found


def _stays(flow: FlowLaw) -> bool:
    """Return whether a flow has standard deviations like the draws from which it was learned.

    Squares of squares, in several coordinates and layers, take one draw in a thousand, or in a million,
    anywhere. Held-out scores do not see it, and the population's means and standard deviations are lost. So
    the flow's are found from draws of a base 1.5 times as wide, weighed as importance sampling weighs them.
    """
    wide = flow.base.inflated(WIDER)
    u = wide.sample(TRIED, 0)
    weights = (flow.base.log_prob(u) - wide.log_prob(u)).softmax(0)
    variances = moments(flow.transport.inverse(u), weights)[1].diagonal()
    return bool((variances < ASTRAY**2).all())  # of standardised draws, whose variances are one


def _flows(
    course: Course, base: Base, on_base: Candidate, training: TrainingSet, folds: Folds, seed: int
) -> list[Candidate]:
    """Return the average of the flows of one network, each trained without one of the folds, if any stays."""
    network = course.network
    name = f"{network.kind} on {base}"
    training.report(f"flow: {name}")
    trained = course.train(on_base.parts, folds, seed)
    refit = partial(_retrained, course, on_base.refit, trained.steps, derive(seed, 1))
    if not (stay := [law for law in trained.laws if _stays(law)]):
        return []
    whole, penalty = StackedLaw.average(stay), PENALTIES[network.kind]
    return [Candidate(name, whole, trained.laws, trained.scores, refit, penalty)]


def _scored(
    name: str, training: TrainingSet, folds: Folds, law: Law, parts: Sequence[Law], refit: Refit
) -> Candidate:
    return Candidate(name, law, parts, cross_scores(training.draws, parts, folds), refit)


def _mixture(name: str, training: TrainingSet, folds: Folds, stiffness: float, prior: float) -> Candidate:
    """Return the mixture by BIC under another shrinkage and a prior, and the same without each fold."""
    draws, law = training.draws, Mixture()
    parts = [
        redrawn(part, draws.subset(inside), stiffness, prior)
        for part, (inside, _) in zip(law.learn_without(training, folds), folds.parts(), strict=True)
    ]
    whole = redrawn(law.learn(training), draws, stiffness, prior)
    return _scored(name, training, folds, whole, parts, partial(_climbed, whole, draws))


def _relative(
    law: Specification, training: TrainingSet, folds: Folds, gaussian: GaussianLaw
) -> list[Candidate]:
    """Return a law of few parameters if it stays: where its density has roots, the average over the folds."""
    training.report(f"flow: {law.name}")
    whole, parts = law.learn(training), law.learn_without(training, folds)
    stay = [one for one in (parts if whole.has_roots else [whole]) if _is_near(one, gaussian)]
    if not stay:
        return []
    shown = StackedLaw.average(stay) if whole.has_roots else whole
    return [_scored(law.name, training, folds, shown, parts, partial(_refitted, law, training, gaussian))]


def _is_near(law: Law, gaussian: GaussianLaw) -> bool:
    """Return whether a law has standard deviations like the Gaussian of the same draws.

    Of few individuals a tail that none of them informs may have any weight.
    """
    return bool((GaussianLaw.like(law).sd < ASTRAY * gaussian.sd).all())


def _refitted(law: Specification, training: TrainingSet, gaussian: GaussianLaw, weights: Tensor) -> list[Law]:
    return [one if _is_near(one, gaussian) else gaussian for one in law.refit(training, weights)]


def _climbed(law: Law, draws: PosteriorDraws, share: Tensor) -> list[Law]:
    return [climb(law, draws, 40, 0.02, row)[0] for row in share]


def _retrained(course: Course, bases: Refit, steps: int, seed: int, share: Tensor) -> Sequence[Law]:
    starts = bases(share)
    flows = course.retrain(starts, share, steps, seed)
    return [flow if _stays(flow) else start for flow, start in zip(flows, starts, strict=True)]


@dataclass(frozen=True)
class Flow(Specification):
    """Specification of a flow law: flows of several kinds on several bases, averaged.

    kind : "quadratic", "spline", "autoregressive", "realnvp", or several of them, on each base. None
        (default): quadratic and spline on the Gaussian, quadratic of one layer on the mixture.
    base : "gaussian" or "mixture" (a mixture fit, so that modes may be apart); None takes both.
    layers, hidden : size of each network; None leaves the number of layers to the kind.
    folds : individuals are split into this many parts; each flow is trained on all but one, stops
        where the held-out log-likelihood is highest, and the flows of all folds are averaged.
    noise : standard deviation of the noise added to standardised draws, times N^(-1/(d+4)).
    steps, rate : at most so many steps of Adam at this learning rate; None leaves it to the kind.
    stiffness : the mixture that is a base has so many times the shrinkage of a mixture alone (see
        `Mixture`), because the flow bends what the base keeps simple.
    prior : of the covariances of all bases, which keeps them off their boundary (see `Gaussian`).
    with_relatives : let a Box-Cox transformed Gaussian and an SNP law, smooth laws of few parameters, take
        part; False averages flows and their bases only.

    The bases themselves are flows at the identity and always take part, and so does the mixture of
    usual shrinkage. A law with three times the standard deviation of the draws is left out.
    All are averaged with weights by held-out log-likelihood. Residual parameters and fixed effects are
    those most likely with each individual under the laws that have not seen its fold: a law that has seen
    it fits part of its noise, and sigma would be too small.

    Raises
    ------
    ModelError : an option is none of those accepted, or outside its range.

    """

    name: ClassVar[str] = "flow"
    kind: Kind | tuple[Kind, ...] | None = None
    base: Base | None = None
    layers: int | None = None
    hidden: tuple[int, ...] = (16, 16)
    folds: int = 5
    noise: float = NOISE
    steps: int = 150
    rate: float | None = None
    stiffness: float = 2.0
    prior: float = 1.0
    with_relatives: bool = True

    def __post_init__(self) -> None:
        check_whole(self, 2, "folds")
        check_whole(self, 1, "steps", "layers")
        object.__setattr__(self, "hidden", widths(self.hidden))
        object.__setattr__(self, "kind", _names(self.kind))
        check_fields(self)
        if self.noise < 0 or self.stiffness <= 0 or (self.rate is not None and self.rate <= 0):
            raise ModelError("noise is not negative, stiffness and rate are positive.")
        if self.kind == ():
            raise ModelError(f"kind is None, or one or several of {', '.join(RATES)}; got none.")
        check_prior(self.prior)
        for base in self.bases():
            self.networks(base)

    def networks(self, base: Base) -> tuple[Network, ...]:
        """Return the networks to train on a base."""
        if self.kind is None and base == "mixture":
            return (Network("quadratic", self.layers or 1, self.hidden),)  # the base has most of the shape
        kinds: tuple[Kind, ...] = ("quadratic", "spline") if self.kind is None else _as_tuple(self.kind)
        return tuple(Network(kind, self.layers, self.hidden) for kind in kinds)

    def bases(self) -> tuple[Base, ...]:
        """Return the bases to train on."""
        return ("gaussian", "mixture") if self.base is None else (self.base,)

    def relatives(self) -> tuple[Specification, ...]:
        """Return the laws of few parameters that take part."""
        return (Transformed(prior=self.prior), SNP(prior=self.prior)) if self.with_relatives else ()

    @property
    def n_laws(self) -> int:
        """Return how many laws are averaged: bases, flows on them, a plain mixture, relatives."""
        flows = sum(1 + len(self.networks(base)) for base in self.bases())
        return flows + ("mixture" in self.bases()) + len(self.relatives())

    def settings(self, network: Network) -> Settings:
        """Return how a network is trained."""
        return Settings(self.noise, self.steps, RATES[network.kind] if self.rate is None else self.rate)

    def candidates(self, training: TrainingSet, folds: Folds) -> list[Candidate]:
        """Return the bases, the flows trained on them and the relatives."""
        return training.memory.once((self, folds), lambda: _candidates(self, training, folds))

    def learn(self, training: TrainingSet) -> StackedLaw:
        """Return the average of the candidates, weighed by how well they predict held-out individuals."""
        found = self.candidates(training, training.split(self.folds))
        return StackedLaw.weighted([c.law for c in found], stacking_weights(*Table.of(found)))

    def learn_without(self, training: TrainingSet, folds: Folds) -> list[StackedLaw]:
        """Return for each fold the average of the laws fitted without it, weighed by the other folds."""
        found = self.candidates(training, folds)
        scores, penalty = Table.of(found)
        return [
            StackedLaw.weighted([c.parts[k] for c in found], stacking_weights(scores[inside], penalty))
            for k, (inside, _) in enumerate(folds.parts())
        ]

    def held_out(self, training: TrainingSet, folds: Folds) -> Tensor:
        """Score each fold under the average whose weights the other folds gave.

        Every candidate was fitted, and its stopping step chosen, without the fold.
        """
        return held_out_average(*Table.of(self.candidates(training, folds)), folds)

    def unseen(self, training: TrainingSet, learned: Law) -> CrossFittedLaw:
        """Return each individual's law as it was learned without its fold."""
        folds = training.split(self.folds)
        return CrossFittedLaw(self.learn_without(training, folds), folds)

    @property
    def trainable(self) -> bool:
        """Whether one network on the Gaussian base is all that is asked for."""
        return self.base == "gaussian" and len(self.networks("gaussian")) == 1

    def trainer(self, gaussian: Law, seed: int) -> GradientFlow:
        network = self.networks("gaussian")[0]
        return GradientFlow(network, self.settings(network), GaussianLaw.like(gaussian), seed)

    def refit(self, training: TrainingSet, weights: Tensor) -> list[Law]:
        """Refit one candidate for each row, drawn with its weight in the average of that row.

        So replicates differ as the candidates do, not only as one average of them would.
        """
        found = self.candidates(training, training.split(self.folds))
        table, penalty = Table.of(found)
        shares = torch.stack([prior_weights(row[:, None] * table, penalty) for row in weights])
        random = generator(derive(training.seed, Stream.REFITTED))
        chosen = torch.multinomial(shares, 1, generator=random)[:, 0]
        refits: dict[int, Law] = {}
        for k in chosen.unique().tolist():
            training.report(f"again: {found[k].name}")
            rows = torch.nonzero(chosen == k)[:, 0]
            refits |= dict(zip(rows.tolist(), found[k].refit(weights[rows]), strict=True))
        return [refits[r] for r in range(len(weights))]


def _as_tuple(kind: Kind | tuple[Kind, ...]) -> tuple[Kind, ...]:
    return (kind,) if isinstance(kind, str) else tuple(kind)


def _names(kind: Any) -> Any:
    """Return a list, or a set, of kinds as a tuple, so that the specification can be a key."""
    if isinstance(kind, set | frozenset):
        return tuple(sorted(kind, key=str))
    return tuple(kind) if isinstance(kind, list) else kind
