"""Comparison of laws by how well they predict individuals that they have not seen."""

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from nlmeflow.arguments import checked
from nlmeflow.data import LongitudinalData
from nlmeflow.errors import ModelError
from nlmeflow.estimation.engine import Task
from nlmeflow.fitting.check import GaussianCheck, unit_of
from nlmeflow.fitting.fit import Fit
from nlmeflow.fitting.held_out import folds_of, held_out_scores, held_out_with, mean_gain
from nlmeflow.fitting.model import Model
from nlmeflow.laws.averaging import stacking_weights
from nlmeflow.laws.specification import Specification, specified
from nlmeflow.laws.stacked import StackedLaw

One = Specification | type[Specification]
Laws = One | Sequence[One] | Mapping[str, One]


@dataclass(frozen=True)
class Comparison:
    """Held-out scores of several laws.

    fits : each law fitted to all the data, by name.
    scores : a frame, one row per individual, one column per law: log p(y_i) under the law fitted
        without the individual's fold, up to a constant of the individual that is the same for all
        laws (sigma and the fixed effects are those of a rough mixture fit).
    groups : what each individual was held out with.
    stacked : the average of the laws by how well they predict held-out individuals. A flow, itself an
        average of many laws, has as many shares of the prior weight; laws made of points have no density and
        take no part.
    weights : these weights, by name. folds : number of parts of the data, each predicted from the others.
    """

    fits: dict[str, Fit]
    scores: pd.DataFrame
    groups: pd.Series
    stacked: StackedLaw
    weights: dict[str, float]
    folds: int

    def __repr__(self) -> str:
        table = self.table().to_string(float_format="{:.3f}".format)
        return f"{len(self.scores)} individuals in {self.folds} folds, gains over '{self._first}'\n{table}"

    @property
    def _first(self) -> str:
        return "gaussian" if "gaussian" in self.fits else next(iter(self.fits))

    @checked
    def table(self, against: str | None = None) -> pd.DataFrame:
        """Return, for each law, the mean gain in held-out log-likelihood per individual over another.

        against : a name; None takes "gaussian", or the first law where none is called so. The standard error
        of the paired difference treats groups as the independent units.

        Raises
        ------
        ModelError : `against` is none of the laws.

        """
        if against is None:
            against = self._first
        if against not in self.scores:
            raise ModelError(f"'{against}' is not among {', '.join(self.fits)}.")
        rows = {}
        for name in self.fits:
            gain = mean_gain(self.scores[name] - self.scores[against], self.groups.tolist())
            rows[name] = [*gain, self.weights[name]]
        columns = ["gain", "standard error", "groups better predicted", "stacking weight"]
        return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("law")

    def check(self) -> GaussianCheck:
        """Return whether a Gaussian population is enough, from the scores of "gaussian" and "flow".

        Raises
        ------
        ModelError : one of the two is not among the laws.

        """
        for name in ("gaussian", "flow"):
            if name not in self.scores:
                raise ModelError(f"'{name}' is not among {', '.join(self.fits)}; Fit.check compares the two.")
        one = next(iter(self.fits.values()))
        scores = self.scores[["gaussian", "flow"]].set_axis(["gaussian", "average"], axis=1)
        return GaussianCheck.of(scores, self.groups.tolist(), self.folds, unit_of(one))


@checked
def compare(
    model: Model,
    data: LongitudinalData,
    laws: Laws,
    folds: int = 5,
    seed: int = 0,
    groups: str | None = None,
    progress: bool | None = None,
) -> Comparison:
    """Fit laws, and score each on individuals held out, by K-fold cross-validation.

    Every law is learned anew without each fold, from posterior draws that stand for the
    individuals, so that the curve is not called again, but by laws of points or of estimates. A score is
    log p(y_i) - log p_R(y_i), R a broad reference law common to all.

    laws : specifications such as nf.Gaussian(), nf.Mixture(), nf.Flow(), of different kinds, or by name,
        {"two": nf.Mixture(2), "three": nf.Mixture(3)}.
    groups : a covariate; individuals with the same value are held out together (plants of a
        genotype, say). Without it individuals are. A model with two levels always holds out its groups.

    Raises
    ------
    ModelError : no law has a density, two have one name, folds out of range, no covariate `groups`; as in
        `Model.fit`.
    EstimationError : as in `Model.fit`.

    """
    task = model.task(data, seed)
    labels = list(task.problem.labels) if model.within else held_out_with(task.problem.data, groups)
    task = replace(task, folds=folds_of(labels, folds, seed))
    return compare_task(model, task, laws, labels, progress)


def compare_task(
    model: Model,
    task: Task,
    laws: Laws,
    labels: Sequence[Hashable],
    progress: bool | None = None,
) -> Comparison:
    """Compare laws on a task whose folds are set; labels (N) say who was held out with whom.

    Raises
    ------
    ModelError : no law has a density, or two have one name.
    EstimationError : as in `Model.fit`.

    """
    named = _named(laws)
    assert task.folds is not None
    fits = {name: model.fit_task(task, law, progress) for name, law in named.items()}
    scores = held_out_scores(task, named, progress)
    smooth = [k for k, fit in enumerate(fits.values()) if fit.law.has_density]
    if not smooth:
        raise ModelError("Points have no density to average; add a law such as nf.Gaussian().")
    weights = scores.new_zeros(len(named))
    sizes = scores.new_tensor([law.n_laws for law in named.values()])
    weights[smooth] = stacking_weights(scores[:, smooth], sizes=sizes[smooth])
    frame = pd.DataFrame(scores.numpy(), index=pd.Index(task.problem.labels), columns=list(named))
    densities = tuple(fit.law for fit in fits.values() if fit.law.has_density)
    stacked = StackedLaw(densities, weights[smooth])
    shares = dict(zip(named, weights.tolist(), strict=True))
    return Comparison(
        fits, frame, pd.Series(list(labels), index=frame.index), stacked, shares, len(task.folds)
    )


def _named(given: Laws) -> dict[str, Specification]:
    if isinstance(given, Mapping):
        laws, names = [specified(law) for law in given.values()], list(given)
    else:
        laws = [specified(law) for law in (given if isinstance(given, Collection) else [given])]
        names = [law.name for law in laws]
    if all(law.of_points for law in laws):  # or none is given
        raise ModelError("Give at least one law with a density, such as nf.Gaussian().")
    if twice := {name for name in names if names.count(name) > 1}:
        raise ModelError(
            f"Two laws are called '{min(twice)}'; give them names, as in {{'two': nf.Mixture(2), 'three': "
            "nf.Mixture(3)}."
        )
    return dict(zip(names, laws, strict=True))
