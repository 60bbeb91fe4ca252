"""A curve (structural model) and its parameters, each with a scale on which it is unconstrained."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor

from nlmeflow.arguments import check_fields, names_of, taken
from nlmeflow.curves.probe import CURE, probe, tried
from nlmeflow.errors import ModelError, first_line, is_number, number

Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Transform:
    """A one-to-one map between an unconstrained phi and a natural parameter psi.

    `natural(phi) = psi`, `unconstrained(psi) = phi`, and the derivative d psi / d phi.
    """

    name: str
    natural: Callable[[Tensor], Tensor]
    unconstrained: Callable[[Tensor], Tensor]
    lower: float = -float("inf")
    upper: float = float("inf")

    def __post_init__(self) -> None:
        taken("name", self.name, str)
        ends = [getattr(self, name) for name in ("lower", "upper")]
        if not all(isinstance(end, int | float) for end in ends) or not ends[0] < ends[1]:
            raise ModelError(
                f"The scale '{self.name}' has ends lower < upper, infinite ones too; got "
                f"{ends[0]!r} and {ends[1]!r}."
            )

    def __reduce__(self) -> Any:
        """Pickle a transform of the library by its name; one's own as its functions."""
        known = isinstance(found := named(self.name), Transform) and found.natural.__module__ == __name__
        if known and self.natural.__module__ == __name__:
            return named, (self.name,)
        return Transform, (self.name, self.natural, self.unconstrained, self.lower, self.upper)

    @property
    def has_ends(self) -> bool:
        """Whether the natural range has two ends."""
        return -float("inf") < self.lower < self.upper < float("inf")

    def end_near(self, value: float, share: float) -> float | None:
        """Return the end of a range with two ends from which a value is less than this share of it away."""
        near = share * (self.upper - self.lower)
        ends = (self.lower, self.upper) if self.has_ends else ()
        return next((end for end in ends if abs(value - end) < near), None)

    def check(self, parameter: str, value: float) -> None:
        """Raise ModelError when `value` lies outside the natural range."""
        if not is_number(value) or not self.lower < value < self.upper:
            raise ModelError(
                f"{parameter} = {value!r} is not a number in ({self.lower:g}, {self.upper:g}), "
                f"the range of its {self.name} scale."
            )


IDENTITY = Transform("identity", lambda phi: phi, lambda psi: psi)
LOG = Transform("log", torch.exp, torch.log, lower=0.0)


def bounded(lower: float, upper: float) -> Transform:
    """Return the logit scale of the interval (lower, upper): phi = log((psi-lower)/(upper-psi)).

    Raises
    ------
    ModelError : no numbers, or lower not below upper.

    """
    lower, upper = number("lower", lower), number("upper", upper)
    if not lower < upper:
        raise ModelError(f"bounded() needs lower < upper, got {lower:g} and {upper:g}.")
    name = "logit" if (lower, upper) == (0.0, 1.0) else f"logit({lower!r}, {upper!r})"
    return Transform(
        name,
        lambda phi: lower + (upper - lower) * torch.sigmoid(phi),
        lambda psi: torch.logit((psi - lower) / (upper - lower)),
        lower,
        upper,
    )


LOGIT = bounded(0.0, 1.0)
TRANSFORMS = {"identity": IDENTITY, "log": LOG, "logit": LOGIT}


def named(name: str) -> "str | Transform":
    """Return the transform of a name that `bounded` gives; other names as they are."""
    if name in TRANSFORMS:
        return TRANSFORMS[name]
    if not name.startswith("logit("):
        return name
    lower, upper = name.removeprefix("logit(").removesuffix(")").split(",")
    return bounded(float(lower), float(upper))


@dataclass(frozen=True)
class Parameter:
    """A structural parameter.

    name : as the curve's function uses it, psi["name"].
    transform : "identity" (real), "log" (positive), "logit" (between 0 and 1), `bounded(a, b)`,
        or a `Transform` of one's own.
    unit, meaning : for tables and figures.
    start : a first value on the natural scale; found from the data when absent.
    kind : "time" or "level" of a parameter that is a time, or a level of the response: first values are then
        sought among sizes of that kind alone, the same in every unit. Of use in curves with many parameters.
    """

    name: str
    transform: str | Transform = "identity"
    unit: str = ""
    meaning: str = ""
    start: float | None = None
    kind: Literal["time", "level"] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise ModelError(f"A parameter's name is a word such as 'tau', got {self.name!r}.")
        known = isinstance(self.transform, str) and self.transform in TRANSFORMS
        if not isinstance(self.transform, Transform) and not known:
            raise ModelError(
                f"Parameter '{self.name}' has transform {self.transform!r}; accepted are "
                f"{', '.join(map(repr, TRANSFORMS))}, bounded(lower, upper) or a Transform."
            )
        if self.kind not in (None, "time", "level"):
            raise ModelError(f"Parameter '{self.name}' has kind {self.kind!r}; accepted are 'time', 'level'.")
        if self.start is not None:
            self.scale.check(self.name, self.start)

    @property
    def scale(self) -> Transform:
        """The transform itself."""
        return TRANSFORMS[self.transform] if isinstance(self.transform, str) else self.transform

    def probe(self) -> None:
        """Raise ModelError unless the two functions of the scale are inverse to each other."""
        phi = torch.tensor([-1.3, -0.4, 0.2, 0.9], dtype=torch.float64)
        try:
            back = self.scale.unconstrained(self.scale.natural(phi))
            wrong = not torch.allclose(back, phi, rtol=1e-6, atol=1e-6)
        except Exception as error:
            raise ModelError(
                f"The scale '{self.scale.name}' of '{self.name}' cannot be called on tensors ({error}): use "
                "torch functions."
            ) from error
        if wrong:
            raise ModelError(
                f"The functions of the scale '{self.scale.name}' of '{self.name}' are not inverse to each "
                f"other: natural({float(phi[0])}) is {float(self.scale.natural(phi)[0]):g}, and "
                f"unconstrained of this {float(back[0]):g}."
            )

    def at_end(self, end: float) -> str:
        """Return in words that a fit led to an end of the scale."""
        lower, upper = self.scale.lower, self.scale.upper
        return (
            f"Parameter '{self.name}' ran to the end of its scale, {end:g}: the data ask for a value there "
            f"or beyond. Give it other limits than {lower:g} and {upper:g}, nf.bounded(lower, upper), or "
            "leave it out of the curve."
        )

    @property
    def label(self) -> str:
        """Name on the unconstrained scale with its unit, for axes: 'tau (days)', 'log s (s in days)'."""
        plain = self.scale.name == "identity"
        name = self.name if plain else f"{self.scale.name} {self.name}"
        unit = self.unit if plain else f"{self.name} in {self.unit}"
        return f"{name} ({unit})" if self.unit else name


@dataclass(frozen=True)
class Curve:
    """A structural model f(t; psi), written once for any shape.

    function : called as function(t, psi) with a dict of natural parameters; tensors broadcast
        against each other. With `inputs` it is called as function(t, psi, x), x a dict of the
        covariate columns named there (a dose, say), constant within an individual.
    parameters : in the order of phi.
    recipe : name and arguments of the curve in the catalogue, by which a saved fit finds it again.
    conventional : where two parameter vectors give the same curve (flip-flop absorption, the two
        phases of a sum of exponentials), a function from either to the usual one; applied to
        first values only.
    dose, duration : inputs that hold the amount of a dose and how long its infusion takes. The curve is
        linear in the dose, so that several doses are superposed.
    steady : the curve at steady state, sum over n >= 0 of f(t + n interval), for doses repeated for ever:
        called as steady(t, psi, x, interval). None: such doses are refused.
    """

    function: Function
    parameters: Sequence[Parameter]
    inputs: tuple[str, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    conventional: Callable[[dict[str, float]], dict[str, float]] = dict
    dose: str | None = None
    duration: str | None = None
    steady: Function | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", names_of("inputs", self.inputs))
        check_fields(self)
        object.__setattr__(self, "parameters", tuple(self.parameters))
        names = self.names
        if not names:
            raise ModelError("A curve needs at least one parameter.")
        if len(set(names)) < len(names):
            raise ModelError(f"Each parameter of a curve has its own name, got {', '.join(names)}.")
        for what, name in (("dose", self.dose), ("duration", self.duration)):
            if name is not None and name not in self.inputs:
                listed = ", ".join(map(repr, self.inputs)) or "none"
                raise ModelError(
                    f"The curve's {what} is '{name}', which is not one of its inputs ({listed}): the "
                    f"function is given it as x['{name}']. Write nf.Curve(..., inputs=['{name}'], "
                    f"{what}='{name}')."
                )
        if len(set(self.inputs)) < len(self.inputs):
            raise ModelError(f"Each input of a curve is another column, got {', '.join(self.inputs)}.")

    def __hash__(self) -> int:
        return hash((self.title, self.names, self.inputs))

    def __reduce__(self) -> Any:
        """Pickle a curve of the library by how it was made; one's own as its function (see cloudpickle)."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.recipe:
            values |= {"function": None, "conventional": None, "steady": None}
        return _unpickled, (values,)

    @property
    def title(self) -> str:
        """The name of the curve in the catalogue, or of its function."""
        return str(self.recipe.get("name") or getattr(self.function, "__name__", "function"))

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters' names in order."""
        return tuple(parameter.name for parameter in self.parameters)

    def __getitem__(self, name: str) -> Parameter:
        """Return a parameter by name."""
        for parameter in self.parameters:
            if parameter.name == name:
                return parameter
        raise ModelError(f"No parameter '{name}'; the curve has {', '.join(self.names)}.")

    def __call__(
        self,
        t: Tensor,
        psi: Mapping[str, Tensor],
        x: Mapping[str, Tensor] | None = None,
        interval: Tensor | None = None,
    ) -> Tensor:
        """Return f(t; psi); the curve at steady state when the interval between doses is given.

        The function may enter values of its own in psi and x, which are copies.

        Raises
        ------
        ModelError : the function fails, which it may do at these times alone, or changes its type there.

        """
        psi, x = dict(psi), dict(x or {})
        if interval is not None:
            name, call = self._steady_title, lambda: cast(Function, self.steady)(t, psi, x, interval)
        else:
            name, call = self.title, lambda: self.function(t, psi, *([x] if self.inputs else []))
        found: Tensor = tried(name, call)
        if isinstance(found, Tensor) and found.dtype == torch.float32 != t.dtype:
            raise ModelError(f"The curve '{name}' returns numbers of single precision: {CURE}")
        return found

    def probe(self) -> None:
        """Call the function, and `steady`, as fits do, on tensors of individuals, particles and times.

        Raises
        ------
        ModelError : it fails, does not return a tensor of the right shape and type, is random, changes its
            arguments in place, mixes individuals, particles or times, or is not linear in its dose.

        """
        for parameter in self.parameters:
            parameter.probe()
        self._probe(self.title, steady=False, linear=self.dose)
        if self.steady is not None:
            self._probe(self._steady_title, steady=True, linear=self.dose)

    def probe_at(self, times: Tensor, inputs: Mapping[str, Tensor]) -> None:
        """Call a function of one's own as `probe` does, at times (3, 1, 5) and inputs (3, 1, 1) of data.

        Raises
        ------
        ModelError : as `probe`; a function may do at these times what it does not elsewhere.

        """
        if not self.recipe:
            self._probe(self.title, steady=False, seen=(times, inputs))

    def _probe(self, name: str, **how: Any) -> None:
        probe(name, self, self.natural, len(self.names), self.inputs, **how)

    @property
    def _steady_title(self) -> str:
        return getattr(self.steady, "__name__", "steady")

    def usual(self, psi: dict[str, float]) -> dict[str, float]:
        """Return the parameters that `conventional` takes in the place of others of the same curve.

        Raises
        ------
        ModelError : it fails, or does not return a number for each parameter.

        """
        what = f"conventional of the curve '{self.title}'"
        try:
            found = self.conventional(dict(psi))
        except Exception as error:
            raise ModelError(f"{what} cannot be called on {psi} ({first_line(error)}).") from error
        fits = isinstance(found, Mapping) and set(found) == set(self.names)
        if not fits or not all(map(is_number, found.values())):
            raise ModelError(
                f"{what} returns a number for each of {', '.join(self.names)}; of {psi} it made {found!r}."
            )
        return {name: float(found[name]) for name in self.names}

    def natural(self, phi: Tensor, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Return the natural parameters of phi (..., d), d the number of `names` (default all)."""
        names = self.names if names is None else names
        return {name: self[name].scale.natural(phi[..., k]) for k, name in enumerate(names)}

    def with_transforms(self, /, **transforms: str | Transform) -> "Curve":
        """Return the same curve with other scales: `curve.with_transforms(Asym="log")`."""
        return self._with("transform", transforms)

    def with_starts(self, /, **starts: float) -> "Curve":
        """Return the same curve with first values on the natural scale."""
        return self._with("start", starts)

    def _with(self, what: str, values: Mapping[str, Any]) -> "Curve":
        for name in values:
            self[name]
        parameters = [
            replace(p, **{what: values[p.name]}) if p.name in values else p for p in self.parameters
        ]
        return replace(self, parameters=parameters)


# the catalogue's curves by name: a function that makes each; `nlmeflow.curves.catalogue` enters them
LIBRARY: dict[str, Callable[..., Curve]] = {}


def _unpickled(values: dict[str, Any]) -> Curve:
    if values["function"] is not None:
        return Curve(**values)
    made = LIBRARY[values["recipe"]["name"]](**values["recipe"]["arguments"])
    return replace(made, parameters=values["parameters"])
