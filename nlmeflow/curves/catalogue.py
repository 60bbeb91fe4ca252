"""The curves that the data sets, the benchmark and the book use."""

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from nlmeflow.arguments import checked
from nlmeflow.curves.curve import LIBRARY, Curve, Parameter
from nlmeflow.errors import number

Psi = Mapping[str, Tensor]


def _listed(make: Callable[..., Curve]) -> Callable[..., Curve]:
    """Add a curve to the catalogue and note in it how it was made."""
    make = checked(make)

    @functools.wraps(make)
    def recorded(*args: Any, **kwargs: Any) -> Curve:
        bound = inspect.signature(make).bind(*args, **kwargs)
        curve = make(*args, **kwargs)
        return replace(curve, recipe={"name": make.__name__, "arguments": dict(bound.arguments)})

    LIBRARY[make.__name__] = recorded
    return recorded


@_listed
def logistic_senescence(time_unit: str = "days", response_unit: str = "") -> Curve:
    """Loss of greenness, f = A / (1 + exp((t - tau) / s)).

    A > 0 initial level, tau time of half-loss, s > 0 time-scale: the loss from 73 % to 27 % of A
    takes 2 s.
    """
    return Curve(
        lambda t, psi: psi["A"] * torch.sigmoid((psi["tau"] - t) / psi["s"]),
        [
            Parameter("A", "log", response_unit, "initial level"),
            Parameter("tau", "identity", time_unit, "time of half-loss"),
            Parameter("s", "log", time_unit, "time-scale of the loss"),
        ],
    )


@_listed
def logistic_growth(time_unit: str = "days", response_unit: str = "") -> Curve:
    """Growth to an asymptote, f = Asym / (1 + exp((xmid - t) / scal)) (R's SSlogis)."""
    return Curve(
        lambda t, psi: psi["Asym"] * torch.sigmoid((t - psi["xmid"]) / psi["scal"]),
        [
            Parameter("Asym", "identity", response_unit, "asymptote"),
            Parameter("xmid", "identity", time_unit, "time of half the asymptote"),
            Parameter("scal", "identity", time_unit, "time-scale"),
        ],
    )


@_listed
def gompertz(time_unit: str = "days", response_unit: str = "") -> Curve:
    """Asymmetric growth, f = A exp(-exp((tau - t) / s)); tau is the time of fastest growth."""
    return Curve(
        lambda t, psi: psi["A"] * torch.exp(-torch.exp((psi["tau"] - t) / psi["s"])),
        [
            Parameter("A", "log", response_unit, "asymptote"),
            Parameter("tau", "identity", time_unit, "time of fastest growth"),
            Parameter("s", "log", time_unit, "time-scale"),
        ],
    )


@_listed
def gompertz_senescence(
    tail: Literal["late", "early"] = "late", time_unit: str = "days", response_unit: str = ""
) -> Curve:
    """Asymmetric loss of greenness, with tau the time of half-loss, as in `logistic_senescence`.

    tail "late": a quick start and a slow end, f = A (1 - 2^(-exp((tau - t) / s))). The loss is fastest at
    tau - 0.37 s, where 63 % of A is left.
    tail "early": a slow start and a quick end, f = A 2^(-exp((t - tau) / s)). The loss is fastest at
    tau + 0.37 s, where 37 % of A is left.
    The fastest loss per unit of time is A / (e s).
    """

    def function(t: Tensor, psi: Psi) -> Tensor:
        late = (t - psi["tau"]) / psi["s"]
        if tail == "early":
            return psi["A"] * torch.exp(-math.log(2) * torch.exp(late))
        return -psi["A"] * torch.expm1(-math.log(2) * torch.exp(-late))

    return Curve(
        function,
        [
            Parameter("A", "log", response_unit, "initial level"),
            Parameter("tau", "identity", time_unit, "time of half-loss"),
            Parameter("s", "log", time_unit, "time-scale of the loss"),
        ],
    )


@_listed
def double_logistic(time_unit: str = "days", response_unit: str = "") -> Curve:
    """A rise and a later decline, f = A / ((1 + exp((rise - t) / s_rise)) (1 + exp((t - fall) / s_fall))).

    fall = rise + duration, duration > 0: the two times keep their order. Half of A is crossed at rise and at
    fall where duration is many times s_rise + s_fall; otherwise the peak is lower than A. With few
    observations around the peak, an individual's A, s_rise and s_fall can hardly be told apart: name A and
    one time-scale in `fixed`.
    """

    def function(t: Tensor, psi: Psi) -> Tensor:
        risen = torch.sigmoid((t - psi["rise"]) / psi["s_rise"])
        return psi["A"] * risen * torch.sigmoid((psi["rise"] + psi["duration"] - t) / psi["s_fall"])

    return Curve(
        function,
        [
            Parameter("A", "log", response_unit, "level between rise and decline", kind="level"),
            Parameter("rise", "identity", time_unit, "time of half the rise", kind="time"),
            Parameter("duration", "log", time_unit, "from half the rise to half the loss", kind="time"),
            Parameter("s_rise", "log", time_unit, "time-scale of the rise", kind="time"),
            Parameter("s_fall", "log", time_unit, "time-scale of the loss", kind="time"),
        ],
    )


@_listed
def change_point(smoothness: float, time_unit: str = "days", response_unit: str = "") -> Curve:
    """A plateau, then a straight decline, joined smoothly.

    f = A - b h log(1 + exp((t - tau) / h)), h = `smoothness` > 0 in the unit of time: a broken
    line whose corner at tau is rounded over about 4 h.

    Raises
    ------
    ModelError : smoothness not positive.

    """
    number("smoothness", smoothness, 0)

    def function(t: Tensor, psi: Psi) -> Tensor:
        late = (t - psi["tau"]) / smoothness
        return psi["A"] - psi["b"] * smoothness * torch.logaddexp(late, torch.zeros_like(late))

    return Curve(
        function,
        [
            Parameter("A", "identity", response_unit, "plateau"),
            Parameter("tau", "identity", time_unit, "time of the change"),
            Parameter("b", "log", f"{response_unit or '1'}/{time_unit}", "rate of decline"),
        ],
    )


@_listed
def exponential_recovery(time_unit: str = "days", response_unit: str = "") -> Curve:
    """Recovery towards a plateau, f = A - (A - y0) exp(-k t) (R's SSasymp, lrc = log k)."""
    return Curve(
        lambda t, psi: psi["A"] - (psi["A"] - psi["y0"]) * torch.exp(-psi["k"] * t),
        [
            Parameter("A", "identity", response_unit, "level after recovery"),
            Parameter("y0", "identity", response_unit, "level at time zero"),
            Parameter("k", "log", f"1/{time_unit}", "rate of recovery"),
        ],
    )


def _oral(t: Tensor, psi: Psi, dose: Tensor | float) -> Tensor:
    """One-compartment concentration, exact also where ka is near k = CL / V; zero before the dose."""
    t, ka, k = t.clamp(min=0), psi["ka"], psi["CL"] / psi["V"]
    return dose * ka / psi["V"] * t * torch.exp(-torch.minimum(ka, k) * t) * _expm1_ratio((ka - k).abs() * t)


def _oral_steady(t: Tensor, psi: Psi, dose: Tensor, interval: Tensor) -> Tensor:
    """Return the same at steady state: exp(-k t) becomes exp(-k t) / (1 - exp(-k interval)), and so with ka.

    With a <= b the two rates, h(t) = (1 - exp(-(b - a) t)) / (b - a) and q = exp(-a interval), the difference
    of the two terms is (b - a) exp(-a t) (h(t) + h(interval) q / (1 - q)) / (1 - exp(-b interval)).
    """
    ka, k = psi["ka"], psi["CL"] / psi["V"]
    slow, fast, gap = torch.minimum(ka, k), torch.maximum(ka, k), (ka - k).abs()
    earlier = torch.exp(-slow * interval) / -torch.expm1(-slow * interval)
    doses = t * _expm1_ratio(gap * t) + interval * _expm1_ratio(gap * interval) * earlier
    return dose * ka / psi["V"] * torch.exp(-slow * t) * doses / -torch.expm1(-fast * interval)


def _expm1_ratio(x: Tensor) -> Tensor:
    """Return (1 - exp(-x)) / x, exact also where x is near zero."""
    small = x < 1e-6
    return torch.where(small, 1 - x / 2, -torch.expm1(-x) / torch.where(small, 1.0, x))


def _fast_absorption(psi: dict[str, float]) -> dict[str, float]:
    """Return the twin with ka > CL / V: exchanging the two rates leaves the curve as it is."""
    if psi["ka"] >= psi["CL"] / psi["V"]:
        return psi
    return {"ka": psi["CL"] / psi["V"], "CL": psi["CL"], "V": psi["CL"] / psi["ka"]}


def _fast_phase_first(psi: dict[str, float]) -> dict[str, float]:
    """Return the twin with k1 > k2."""
    if psi["k1"] >= psi["k2"]:
        return psi
    return {"A1": psi["A2"], "k1": psi["k2"], "A2": psi["A1"], "k2": psi["k1"]}


def _check_amount(name: str, value: float | str) -> None:
    """Raise ModelError unless an amount is a positive number, or the name of the column that holds it."""
    if not isinstance(value, str):
        number(name, value, 0)


@_listed
def oral(dose: float | str = "dose", time_unit: str = "h", volume_unit: str = "L") -> Curve:
    """One compartment, first-order absorption (bioavailability 1), a dose at time zero.

    f = D ka / (V (ka - k)) (exp(-k t) - exp(-ka t)), k = CL / V, and zero before the dose. `dose` is a
    number, or the name of the covariate column that holds each individual's dose; several doses are
    superposed, and may have led to a steady state.

    Raises
    ------
    ModelError : a dose that is not positive.

    """
    parameters = [
        Parameter("ka", "log", f"1/{time_unit}", "absorption rate"),
        Parameter("CL", "log", f"{volume_unit}/{time_unit}", "clearance"),
        Parameter("V", "log", volume_unit, "volume of distribution"),
    ]
    _check_amount("dose", dose)
    if isinstance(dose, str):
        return Curve(
            lambda t, psi, x: _oral(t, psi, x[dose]),
            parameters,
            inputs=(dose,),
            conventional=_fast_absorption,
            dose=dose,
            steady=lambda t, psi, x, interval: _oral_steady(t, psi, x[dose], interval),
        )
    return Curve(lambda t, psi: _oral(t, psi, dose), parameters, conventional=_fast_absorption)


@_listed
def infusion(dose: float | str, duration: float | str, time_unit: str = "h", volume_unit: str = "L") -> Curve:
    """One compartment, constant infusion of `dose` from time zero over `duration`.

    f = D / (T ke V) (1 - exp(-ke min(t, T))) exp(-ke max(t - T, 0)), T = `duration`, and zero before. Both
    are numbers, or the names of covariate columns; several infusions are superposed, and may have led to a
    steady state.

    Raises
    ------
    ModelError : a dose or a duration that is not positive.

    """
    _check_amount("dose", dose)
    _check_amount("duration", duration)

    def amount_and_length(x: Psi) -> Iterator[Tensor | float]:
        return (x[about] if isinstance(about, str) else about for about in (dose, duration))

    def function(t: Tensor, psi: Psi, x: Psi) -> Tensor:
        size, length = amount_and_length(x)
        t = t.clamp(min=0)
        during = -torch.expm1(-psi["ke"] * torch.minimum(t, torch.as_tensor(length, dtype=t.dtype)))
        after = torch.exp(-psi["ke"] * (t - length).clamp(min=0))
        return size / (length * psi["ke"] * psi["V"]) * during * after

    def steady(t: Tensor, psi: Psi, x: Psi, interval: Tensor) -> Tensor:
        """Return D / (T ke V) (m + (exp(-ke u) - exp(-ke t)) / (1 - exp(-ke interval))).

        m of the infusions still run at t, and the last of the others has ended u = t + m interval - T ago.
        """
        size, length = amount_and_length(x)
        running = ((length - t) / interval).ceil().clamp(min=0)
        longer = length - running * interval  # t - u
        ended = torch.exp(-psi["ke"] * torch.minimum(t, t - longer)) * torch.expm1(-psi["ke"] * longer.abs())
        rest = longer.sign() * ended / torch.expm1(-psi["ke"] * interval)
        return size / (length * psi["ke"] * psi["V"]) * (running + rest)

    return Curve(
        function if isinstance(dose, str) or isinstance(duration, str) else partial(function, x={}),
        [
            Parameter("ke", "log", f"1/{time_unit}", "elimination rate"),
            Parameter("V", "log", volume_unit, "volume of distribution"),
        ],
        inputs=tuple(name for name in (dose, duration) if isinstance(name, str)),
        dose=dose if isinstance(dose, str) else None,
        duration=duration if isinstance(duration, str) else None,
        steady=steady if isinstance(dose, str) else None,
    )


@_listed
def biexponential(time_unit: str = "h", response_unit: str = "") -> Curve:
    """Two-phase decline, f = A1 exp(-k1 t) + A2 exp(-k2 t) (R's SSbiexp, lrc = log k)."""
    return Curve(
        lambda t, psi: psi["A1"] * torch.exp(-psi["k1"] * t) + psi["A2"] * torch.exp(-psi["k2"] * t),
        [
            Parameter("A1", "identity", response_unit, "size of the fast phase"),
            Parameter("k1", "log", f"1/{time_unit}", "rate of the fast phase"),
            Parameter("A2", "identity", response_unit, "size of the slow phase"),
            Parameter("k2", "log", f"1/{time_unit}", "rate of the slow phase"),
        ],
        conventional=_fast_phase_first,
    )


@_listed
def emax(dose_unit: str = "", response_unit: str = "") -> Curve:
    """Saturating dose response, f = E0 + Emax t / (EC50 + t), t the dose or concentration."""
    return Curve(
        lambda t, psi: psi["E0"] + psi["Emax"] * t / (psi["EC50"] + t),
        [
            Parameter("E0", "identity", response_unit, "response without dose"),
            Parameter("Emax", "identity", response_unit, "largest effect"),
            Parameter("EC50", "log", dose_unit, "dose of half the effect"),
        ],
    )


@_listed
def linear(time_unit: str = "", response_unit: str = "") -> Curve:
    """Straight line, f = intercept + slope t."""
    return Curve(
        lambda t, psi: psi["intercept"] + psi["slope"] * t,
        [
            Parameter("intercept", "identity", response_unit, "value at time zero"),
            Parameter("slope", "identity", response_unit, "change per unit of time"),
        ],
    )
