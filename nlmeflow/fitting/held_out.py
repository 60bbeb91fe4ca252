"""Held-out scores: how well laws predict individuals, or groups of them, that they have not seen."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nlmeflow.data import LongitudinalData
from nlmeflow.errors import ModelError, whole
from nlmeflow.estimation.engine import Task, training_set
from nlmeflow.laws.draws import Folds
from nlmeflow.laws.specification import Specification
from nlmeflow.running import estimating, show_progress
from nlmeflow.seeds import Stream, derive


def held_out_scores(task: Task, laws: Mapping[str, Specification], progress: bool | None) -> Tensor:
    """Return log p(y_i) - log p_R(y_i) under each law learned without the individual's fold, (N, laws)."""
    assert task.folds is not None
    columns = []
    with estimating():
        for law in laws.values():
            with show_progress(law, progress) as report:
                columns.append(law.held_out(training_set(replace(task, report=report)), task.folds))
    return torch.stack(columns, 1)


def held_out_with(data: LongitudinalData, groups: str | None) -> list[Hashable]:
    """Return what each individual is held out with: itself, or its value of a covariate.

    Raises
    ------
    ModelError : no covariate of this name.

    """
    if groups is None:
        return list(data.labels)
    if groups not in data.covariates:
        raise ModelError(
            f"No covariate '{groups}' in the data; name it when reading the table, covariates=['{groups}']."
        )
    return list(data.covariates[groups])


def folds_of(labels: Sequence[Hashable], folds: int, seed: int) -> Folds:
    """Return the fold of each individual; those of one label lie in one fold.

    Raises
    ------
    ModelError : folds is not a whole number from 2 to the number of labels, or there is one label only.

    """
    code, names = pd.factorize(pd.Series(list(labels)))
    if len(names) < 2:
        raise ModelError(
            "Everybody would be held out together; at least two individuals, or groups, are needed."
        )
    folds = whole("folds (at most the number of groups)", folds, 2, len(names))
    place = np.random.default_rng(derive(seed, Stream.COMPARISON_FOLDS)).permutation(len(names)) % folds
    return Folds(torch.from_numpy(place[code]))


def mean_gain(gain: pd.Series, labels: Sequence[Hashable]) -> tuple[float, float, float]:
    """Return the mean over individuals, its standard error with labels as units, and their share above 0."""
    by_label = gain.groupby(np.asarray(labels, dtype=object)).sum()
    error = float(by_label.std()) * len(by_label) ** 0.5 / len(gain)
    return float(gain.mean()), error, float((by_label > 0).mean())
