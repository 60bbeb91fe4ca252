"""The structure of a model: curve, error model, fixed parameters, covariates, levels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from nlmeflow.arguments import checked, names_of, taken
from nlmeflow.covariates import Effect, Terms, check_design, check_term, effects_of, read_terms
from nlmeflow.curves import Curve
from nlmeflow.data import LongitudinalData
from nlmeflow.errors import ModelError, number, whole
from nlmeflow.estimation.groups import GroupedProblem
from nlmeflow.estimation.problem import Problem
from nlmeflow.laws.law import Law
from nlmeflow.residuals import Additive, Residual
from nlmeflow.running import estimating
from nlmeflow.seeds import Stream, derive, generator

SIZES = 1e-70, 1e70  # of numbers whose squares, and products of these, are still numbers


@dataclass(frozen=True)
class Structure:
    """What a model says before it is fitted; see `Model`, which says what each field is."""

    curve: Curve
    residual: Residual = field(default_factory=Additive)
    fixed: Sequence[str] = ()
    covariates: Mapping[str, Terms] = field(default_factory=dict)
    within: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.curve, Curve):
            raise ModelError(f"curve is an nf.Curve, got {type(self.curve).__name__}.")
        with estimating():
            self.curve.probe()
        if isinstance(self.residual, type) and issubclass(self.residual, Residual):
            object.__setattr__(self, "residual", self.residual())
        if not isinstance(self.residual, Residual):
            raise ModelError(f"residual is an error model such as nf.Additive(), got {self.residual!r}.")
        with estimating():
            self.residual.probe()
        names, inner = names_of("fixed", self.fixed), names_of("within", self.within)
        object.__setattr__(self, "fixed", names)
        object.__setattr__(self, "within", inner)
        for name in names + inner:
            self.curve[name]
        for name in names:
            if names.count(name) > 1:
                raise ModelError(f"fixed names '{name}' twice.")
        for name in inner:
            if name in names or inner.count(name) > 1:
                raise ModelError(
                    f"within names '{name}', which is {'fixed' if name in names else 'twice there'}."
                )
        if not isinstance(self.covariates, Mapping):
            raise ModelError(
                f"covariates holds terms by parameter, such as {{'{self.curve.names[0]}': 'weight'}}, got "
                f"{self.covariates!r}."
            )
        terms = {name: read_terms(some) for name, some in dict(self.covariates).items()}
        object.__setattr__(self, "covariates", terms)
        for name, some in terms.items():
            self.curve[name]
            for term in some:
                check_term(term)

    def __hash__(self) -> int:
        return hash((self.curve, self.fixed, self.within))

    @property
    def random(self) -> tuple[str, ...]:
        """The parameters that vary between individuals, in the order of phi."""
        return tuple(name for name in self.curve.names if name not in self.fixed)

    def problem(self, data: LongitudinalData, effects: Sequence[Effect] | None = None) -> Problem:
        """Return the estimation problem for a data set, checked; with the effects of a fit when given.

        Raises
        ------
        DataError, ModelError : data, covariates, curve and error model do not fit together.

        """
        check_data(data)
        given = effects is not None
        effects = effects_of(self.covariates, data.covariates) if effects is None else effects
        problem = Problem.build(data, self.curve, self.residual, self.fixed, effects)
        if problem.design is not None and not given:
            check_design(problem.design, problem.effects, problem.random + problem.fixed)
            if self.within:
                _check_between([e for e in effects if e.parameter in self.random], data)
        return GroupedProblem.of(problem, tuple(self.within)) if self.within else problem

    @checked
    def simulate(
        self,
        law: Law,
        times: Sequence[float] | np.ndarray,
        n: int,
        seed: int,
        sigma: float | Sequence[float],
        fixed: Mapping[str, float] | None = None,
        **values: float,
    ) -> tuple[LongitudinalData, Tensor]:
        """Draw n individuals from a law, and their responses; return data and phi (n, d).

        sigma : residual parameters, in the order of the error model. Values of the parameters without
        variability are given by name, or in `fixed`, by name too, which takes those that are called as an
        argument is: fixed={"n": 2.0}. For models with one level, without covariates.

        Raises
        ------
        ModelError : fixed parameters other than the model's, a law of another dimension, n not a whole number
            from 1, a law whose draws are not finite, residual parameters that are not positive or not as many
            as the error model has.

        """
        if self.curve.inputs or self.covariates or self.within:
            raise ModelError("simulate() takes models with one level, without doses and covariates.")
        values = dict(fixed or {}) | values
        if set(values) != set(self.fixed):
            raise ModelError(
                f"Give values of the fixed parameters: {', '.join(self.fixed) or 'none'}; one "
                "that is called as an argument of simulate in fixed={'name': value}."
            )
        for name, value in values.items():
            self.curve[name].scale.check(name, value)
        if law.dim != len(self.random):
            raise ModelError(f"The law has dimension {law.dim}; {', '.join(self.random)} vary in the model.")
        n, scales = whole("n", n, 1), np.atleast_1d(sigma)
        wanted = self.residual.names
        if scales.shape != (len(wanted),):
            raise ModelError(f"sigma holds {len(wanted)} values, {', '.join(wanted)}; got {sigma!r}.")
        for name, value in zip(wanted, scales, strict=True):
            number(name, value, 0)
        phi = law.sample(n, derive(seed, Stream.SIMULATED_LAW))
        if not bool(phi.isfinite().all()):
            raise ModelError(f"The {type(law).__name__} has draws that are not finite numbers.")
        each = taken("times", np.asarray(times), Sequence[float])
        time = torch.as_tensor(each, dtype=phi.dtype).expand(n, -1)
        mean = self.mean_response(phi, time, **values)
        scale = torch.tensor(scales, dtype=phi.dtype)
        response = self.residual.sample(mean, scale, generator(derive(seed, Stream.SIMULATED_NOISE)))
        return LongitudinalData.regular(time, response), phi

    def mean_response(self, phi: Tensor, time: Tensor, /, **fixed: float) -> Tensor:
        """Return f(t_i; phi_i) for phi (N, d) and time (N, n): (N, n). For curves without covariates."""
        psi = {name: value[:, None] for name, value in self.curve.natural(phi, self.random).items()}
        return self.curve(time, psi | {k: phi.new_tensor(v) for k, v in fixed.items()}).expand_as(time)


def _check_between(effects: Sequence[Effect], data: LongitudinalData) -> None:
    """Raise ModelError for a covariate that has another level for each group."""
    code, groups = data.grouped()
    for effect in effects:
        levels = data.covariates[effect.variable].astype(str)
        each = levels.groupby(code).nunique()
        if effect.level is not None and bool((each == 1).all()) and levels.nunique() == len(groups):
            raise ModelError(
                f"Covariate '{effect.variable}' has a level for each group of '{data.group}', so that "
                f"nothing is left of '{effect.parameter}' that varies between groups. Leave it out, or "
                "leave out within=."
            )


def check_data(data: object) -> None:
    """Raise ModelError unless the data are longitudinal ones."""
    if not isinstance(data, LongitudinalData):
        raise ModelError(
            f"The data are an nf.LongitudinalData, got {type(data).__name__}; make them with "
            "nf.LongitudinalData.from_frame(frame, individual=..., time=..., response=...)."
        )


def check_sizes(data: LongitudinalData) -> None:
    """Raise ModelError when times or responses are so large or small that their squares are no numbers."""
    for name, values in zip(data.names[1:], (data.time, data.response), strict=True):
        sizes = torch.where(data.mask, values.abs(), 0.0)
        largest = float(sizes.max())
        if largest and not SIZES[0] < largest < SIZES[1]:
            raise ModelError(
                f"{data.about(*divmod(int(sizes.argmax()), sizes.shape[1]))}: give {name} in a unit in which "
                f"its largest size lies between {SIZES[0]:g} and {SIZES[1]:g}, or correct it."
            )
