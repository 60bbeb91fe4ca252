"""Conditional flows: a population law whose shape may change with covariates."""

from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from nlmeflow.arguments import checked
from nlmeflow.covariates import Effect, Terms, effects_of, read_terms
from nlmeflow.data import LongitudinalData
from nlmeflow.errors import ModelError, whole
from nlmeflow.estimation.engine import training_set
from nlmeflow.fitting.model import Model
from nlmeflow.laws.averaging import held_out_average, stacking_weights
from nlmeflow.laws.draws import Folds
from nlmeflow.laws.flow.conditional import GivenLaw, Learned, on_mixture, on_shift, shift_only
from nlmeflow.laws.flow.ensemble import PENALTIES, Flow
from nlmeflow.laws.law import Law
from nlmeflow.laws.stacked import NEGLIGIBLE, StackedLaw
from nlmeflow.running import estimating, show_progress
from nlmeflow.seeds import Stream, derive


@dataclass(frozen=True)
class Conditional:
    """The law of phi given covariates, and what it gained.

    scores : a frame, one row per individual: held-out log p(y_i), up to a constant of the individual, under
        "shared", one flow for all; "shift", a Gaussian whose mean follows the covariates; "flow on shift"
        and "flow on mixture", flows whose shape follows them; "conditional", their average.
    weights : of the first four in the average.
    """

    scores: pd.DataFrame
    weights: dict[str, float]
    shared: Law
    learned: dict[str, Learned]
    effects: tuple[Effect, ...]
    levels: dict[str, list[str]]
    centre: Tensor
    scale: Tensor

    def law(self, /, **values: Any) -> StackedLaw:
        """Return the law of individuals with these values of the covariates, such as treatment="high".

        Raises
        ------
        ModelError : a covariate is missing or unknown, or has a level that the data have not.
        DataError : a value that the covariate's term cannot take.

        """
        wanted = sorted({effect.variable for effect in self.effects})
        if sorted(values) != wanted:
            raise ModelError(
                f"Give a value of {', '.join(wanted)}; got {', '.join(sorted(values)) or 'none'}."
            )
        for name, levels in self.levels.items():
            if str(values[name]) not in levels:
                raise ModelError(f"'{name}' is one of {', '.join(levels)}; got {values[name]!r}.")
        frame = pd.DataFrame({name: [value] for name, value in values.items()})
        x = (_matrix(self.effects, frame)[0] - self.centre) / self.scale
        laws, shares = [self.shared], [self.weights["shared"]]
        for name, found in self.learned.items():
            laws += [GivenLaw(flow, x) for flow in found.flows]
            shares += [self.weights[name] / len(found.flows)] * len(found.flows)
        return StackedLaw.weighted(laws, torch.tensor(shares, dtype=torch.float64), NEGLIGIBLE / 10)

    @checked
    def table(self, against: str = "shared") -> pd.DataFrame:
        """Return the mean gain in held-out log-likelihood per individual over another, with its error.

        Raises
        ------
        ModelError : `against` is none of the columns of `scores`.

        """
        if against not in self.scores:
            raise ModelError(f"'{against}' is not among {', '.join(self.scores.columns)}.")
        gain = self.scores.sub(self.scores[against], axis=0)
        weights = pd.Series(self.weights).reindex(gain.columns)
        columns = {"gain": gain.mean(), "standard error": gain.sem(), "weight": weights}
        return pd.DataFrame(columns).rename_axis("law")


@checked
def conditional_flow(
    model: Model,
    data: LongitudinalData,
    on: Terms,
    folds: int = 5,
    seed: int = 0,
    progress: bool | None = None,
) -> Conditional:
    """Estimate p(phi | covariates): location, shape and shares of modes may follow them.

    on : covariates, as in `Model(covariates=...)`: "treatment", "log(weight) + sex", or a list of terms.

    Laws are learned on posterior draws of the individuals, as in `compare`, with sigma and fixed effects of
    the mixture fit; effects of other covariates that the model itself has are taken off first, and the law is
    that without them. Each of four is scored on individuals held out, and they are averaged by these scores,
    so that covariates without effect cost little.

    Raises
    ------
    ModelError : no term, or one that cannot be read; a covariate is not in the data or constant, or moves a
        random parameter of the model already; folds are out of range; the model has two levels.

    """
    if model.within:
        raise ModelError("Conditional flows are learned of models with one level.")
    data = data.observed
    terms = read_terms(on)
    if not terms:
        raise ModelError("on names at least one covariate, such as 'treatment'.")
    effects = effects_of({"phi": terms}, data.covariates)
    raw = _matrix(effects, data.covariates)
    centre, scale = raw.mean(0), raw.std(0)
    constant = raw.amax(0) == raw.amin(0)
    if bool(constant.any()):
        raise ModelError(f"Covariate '{effects[int(constant.nonzero()[0])].variable}' is constant.")
    _check_once(model, effects, data)
    x = (raw - centre) / scale
    folds = whole("folds (at most the number of individuals)", folds, 2, len(data))
    parts = Folds.random(len(data), folds, derive(seed, Stream.CONDITIONAL_FOLDS))
    task = model.task(data, seed, folds=parts)
    with estimating(), show_progress(Flow(), progress) as report:
        training = training_set(replace(task, report=report))
        shared = Flow().learn(training)
        learned = {}
        kinds = {"shift": shift_only, "flow on shift": on_shift, "flow on mixture": on_mixture}
        for name, kind in kinds.items():
            report(name)
            learned[name] = kind(training, x, parts)
        columns = [Flow().held_out(training, parts)] + [found.scores for found in learned.values()]
        scores = torch.stack(columns, 1)
        penalty = scores.new_tensor([0.0, 0.0, PENALTIES["spline"], PENALTIES["spline"]])
        names = ["shared", *learned]
        weights = stacking_weights(scores, penalty)
        both = held_out_average(scores, penalty, parts)
    frame = pd.DataFrame(scores.numpy(), columns=names, index=pd.Index(data.labels))
    shares = dict(zip(names, weights.tolist(), strict=True))
    found_levels = _levels(effects, data.covariates)
    frame["conditional"] = both.numpy()
    return Conditional(frame, shares, shared, learned, effects, found_levels, centre, scale)


def _check_once(model: Model, effects: tuple[Effect, ...], data: LongitudinalData) -> None:
    """Raise ModelError for a covariate that the model has already: its effect would be missing in the law."""
    mine = {effect.variable for effect in effects}
    for effect in effects_of(model.covariates, data.covariates):
        if effect.variable in mine and effect.parameter not in model.fixed:
            raise ModelError(
                f"'{effect.variable}' moves '{effect.parameter}' in the model already (covariates=...): its "
                "effect would be taken off before the law given it is learned. Name it in one of the two."
            )


def _matrix(effects: tuple[Effect, ...], covariates: pd.DataFrame) -> Tensor:
    return torch.stack([effect.values(covariates) for effect in effects], 1)


def _levels(effects: tuple[Effect, ...], covariates: pd.DataFrame) -> dict[str, list[str]]:
    names = {effect.variable for effect in effects if effect.level is not None}
    return {name: sorted(covariates[name].astype(str).unique()) for name in names}
