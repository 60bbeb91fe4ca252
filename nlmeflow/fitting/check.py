"""Is a Gaussian population enough? The held-out test of it against an average of flexible laws."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from nlmeflow.errors import EstimationError, ModelError
from nlmeflow.estimation.engine import Task, fit_law
from nlmeflow.fitting.fitted import Fitted
from nlmeflow.fitting.held_out import folds_of, held_out_scores, held_out_with, mean_gain
from nlmeflow.fitting.structure import Structure
from nlmeflow.fitting.tables import criteria, standard_errors
from nlmeflow.laws import Flow, Gaussian

CLEAR = 3.0  # standard errors by which a standard deviation lies clearly above zero
TELLING = 3.0  # nats by which the average must predict better in all to leave the question open
FEW = 128  # particles of each group that decide whether a parameter varies
MARGIN = 2.0  # standard errors by which the average must predict better
FEWEST = 8  # units held out together, of which a standard error is taken


@dataclass(frozen=True, eq=False)
class GaussianCheck:
    """The verdict, and what it rests on.

    gain : mean of log p_average(y_i) - log p_Gaussian(y_i) over individuals held out, in nats, with its
        standard error `error`, for which individuals held out together are one unit.
    better : share of the `units` that the average predicts better. folds : number of parts of the data, each
        predicted from the others.
    scores : of each individual under both laws, up to a constant of the individual; unit : what they are.
    constant : parameters that the test held constant, because the data do not show that they vary.
    """

    gain: float
    error: float
    better: float
    folds: int
    scores: pd.DataFrame
    unit: str
    units: int
    constant: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        scores: pd.DataFrame,
        labels: Sequence[Hashable],
        folds: int,
        unit: str,
        constant: tuple[str, ...] = (),
    ) -> "GaussianCheck":
        """Return the verdict of held-out scores; labels : what each individual was held out with."""
        gain = mean_gain(scores["average"] - scores["gaussian"], labels)
        return cls(*gain, folds, scores, unit, len(set(labels)), constant)

    @property
    def few(self) -> bool:
        """Whether fewer than eight units are held out, of which a standard error is not known well."""
        return self.units < FEWEST

    @property
    def enough(self) -> bool:
        """Whether the average does not predict better by more than two standard errors, or units are few."""
        return self.few or not self.gain > MARGIN * self.error

    @property
    def undecided(self) -> bool:
        """Whether units are few, or it predicts better by one to two standard errors, three nats in all."""
        return self.few or (self.enough and self.gain > max(self.error, TELLING / len(self.scores)))

    @property
    def verdict(self) -> str:
        """The result in words."""
        about = (
            f"{self.gain:+.3f} ± {self.error:.3f} nats for each {self.unit}, {len(self.scores)} of them, "
            f"{self.folds} folds; {100 * self.better:.0f} % are predicted better"
        )
        held = f"{', '.join(self.constant)} held constant: no variation is seen in the data."
        who = "an average of flows, mixtures and smooth laws predicts what it has not seen"
        ratio = self.gain / self.error if self.error > 0 else 0.0
        if self.few:
            said = (
                f"These data do not decide whether a Gaussian is enough: {self.units} are held out, each "
                f"as a whole, and of fewer than {FEWEST} the error of a mean is not known well ({about})."
            )
        elif not self.enough:
            said = f"A Gaussian is not enough: {who} better by {ratio:.1f} standard errors ({about})."
        elif self.undecided:
            said = (
                f"These data do not decide whether a Gaussian is enough: {who} better, but by {ratio:.1f} "
                f"standard errors only ({about})."
            )
        else:
            how = "better by less than it can be sure of" if self.gain > 0 else "no better"
            most = max(self.gain, 0) + MARGIN * self.error
            said = (
                f"A Gaussian is enough for these data: {who} {how} ({about}). An advantage of up to "
                f"{most:.2g} nats would not have been seen."
            )
        return said + (f" {held}" if self.constant else "")

    def __str__(self) -> str:
        return self.verdict

    __repr__ = __str__


def check_gaussian(
    fit: Fitted, folds: int, seed: int, groups: str | None, progress: bool | None
) -> GaussianCheck:
    """Return the result of `Fit.check`."""
    if fit.origin is not None:
        raise ModelError(
            "A fit that looks at other data is not checked; fit the model to them, or check that."
        )
    constant = unseen(fit)
    _, task = _task_of(fit, (*fit.model.fixed, *constant))
    labels = list(task.problem.labels) if fit.model.within else held_out_with(fit.data.observed, groups)
    task = replace(task, seed=seed, folds=folds_of(labels, folds, seed))
    scores = held_out_scores(task, {"gaussian": Gaussian(), "average": Flow()}, progress)
    frame = pd.DataFrame(scores.numpy(), index=pd.Index(task.problem.labels), columns=["gaussian", "average"])
    return GaussianCheck.of(frame, labels, folds, unit_of(fit), constant)


def unseen(fit: Fitted) -> tuple[str, ...]:
    """Return the result of `Fit.unseen`, which is found once."""
    return fit.memory.once("unseen", lambda: _unseen(fit))


def _unseen(fit: Fitted) -> tuple[str, ...]:
    now = fit if fit.law.normal is not None else _gaussian_with(fit, fit.model.fixed)
    found: list[str] = []
    while len(now.names) > 1 and (weak := _weakest(now)):
        for name in weak:
            without = _gaussian_with(fit, (*now.model.fixed, name))
            if criteria(without)["BIC"] <= criteria(now)["BIC"]:
                now = without
                found.append(name)
                break
        else:
            break
    return tuple(found)


def _weakest(fit: Fitted) -> list[str]:
    """Return the parameters whose sds are not clearly above zero, the least certain first.

    The last parameter that varies within groups is kept: the model would have one level without it.
    """
    inner = fit.model.within
    kept = inner if len(inner) == 1 else ()
    try:
        table = standard_errors(fit)
    except EstimationError:
        return [name for name in fit.names if name not in kept]
    certainty = (table["value"] / table["standard error"]).fillna(0.0)
    within = {name: certainty["residual", f"within {name}"] for name in inner}
    weak = [str(name) for name, known in certainty["sd"].sort_values().items() if known < CLEAR]
    return [name for name in weak if name not in kept and within.get(name, 0.0) < CLEAR]


def _gaussian_with(fit: Fitted, fixed: Sequence[str]) -> Fitted:
    """Return the Gaussian fit of the model in which these parameters do not vary."""
    model, task = _task_of(fit, fixed)
    if fit.model.within:  # fixed parameters call the curve at every step, for all particles of all levels
        task = replace(task, particles=min(task.particles, FEW))
    return Fitted.of(model, Gaussian(), fit_law(Gaussian(), task), task)


def _task_of(fit: Fitted, fixed: Sequence[str]) -> tuple[Structure, Task]:
    """Return a fit's model with these parameters fixed, and its task, which starts where the fit ended."""
    within = tuple(name for name in fit.model.within if name not in fixed)
    model = replace(fit.model, fixed=tuple(fixed), within=within)
    typical = fit.model.curve.natural(fit.gaussian.mean, fit.names)
    start = {name: float(value) for name, value in typical.items()} | fit.fixed
    problem = model.problem(fit.data.observed, fit.effects)
    return model, Task(problem, start, fit.seed, fit.particles, everyone=fit.data)


def unit_of(fit: Fitted) -> str:
    """Return the user's word for what the law describes: individuals, or their groups."""
    return str(fit.data.group) if fit.model.within else fit.data.names[0]
