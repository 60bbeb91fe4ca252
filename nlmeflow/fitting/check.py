"""Is a Gaussian population enough? The held-out test of it against an average of flexible laws."""

from dataclasses import dataclass

import pandas as pd

from nlmeflow.estimation.engine import Task
from nlmeflow.fitting.fitted import Fitted
from nlmeflow.fitting.held_out import folds_of, held_out_scores, held_out_with, mean_gain
from nlmeflow.laws import Flow, Gaussian

MARGIN = 2.0  # standard errors by which the average must predict better


@dataclass(frozen=True, eq=False)
class GaussianCheck:
    """The verdict, and what it rests on.

    gain : mean of log p_average(y_i) - log p_Gaussian(y_i) over individuals held out, in nats, with its
        standard error `error`, for which individuals held out together are one unit.
    better : share of the units that the average predicts better. folds : number of parts of the data, each
        predicted from the others.
    scores : of each individual under both laws, up to a constant of the individual; unit : what they are.
    """

    gain: float
    error: float
    better: float
    folds: int
    scores: pd.DataFrame
    unit: str

    @property
    def enough(self) -> bool:
        """Whether the average does not predict better by more than two standard errors."""
        return not self.gain > MARGIN * self.error

    @property
    def verdict(self) -> str:
        """The result in words."""
        about = (
            f"{self.gain:+.3f} ± {self.error:.3f} nats for each {self.unit}, {len(self.scores)} of them, "
            f"{self.folds} folds; {100 * self.better:.0f} % are predicted better"
        )
        end = ""
        if not self.enough:
            how = f"better by {self.gain / self.error:.1f} standard errors"
        elif self.gain > 0:
            how = f"better, but by less than {MARGIN:g} standard errors"
            end = " With more data a difference might show."
        else:
            how = "no better"
        return (
            f"A Gaussian is {'enough for these data' if self.enough else 'not enough'}: an average of flows, "
            f"mixtures and smooth laws predicts what it has not seen {how} ({about}).{end}"
        )

    def __str__(self) -> str:
        return self.verdict

    __repr__ = __str__


def check_gaussian(
    fit: Fitted, folds: int, seed: int, groups: str | None, progress: bool | None
) -> GaussianCheck:
    """Return the result of `Fit.check`."""
    data = fit.data.observed
    problem = fit.model.problem(data, fit.effects)
    labels = list(problem.labels) if fit.model.within else held_out_with(data, groups)
    typical = fit.model.curve.natural(fit.gaussian.mean, fit.names)
    start = {name: float(value) for name, value in typical.items()} | fit.fixed
    parts = folds_of(labels, folds, seed)
    task = Task(problem, start, seed, fit.particles, parts, everyone=fit.data)
    scores = held_out_scores(task, {"gaussian": Gaussian(), "average": Flow()}, progress)
    frame = pd.DataFrame(scores.numpy(), index=pd.Index(problem.labels), columns=["gaussian", "average"])
    gain = mean_gain(frame["average"] - frame["gaussian"], labels)
    return GaussianCheck(*gain, int(folds), frame, unit_of(fit))


def unit_of(fit: Fitted) -> str:
    """Return the user's word for what the law describes: individuals, or their groups."""
    return str(fit.data.group) if fit.model.within else fit.data.names[0]
