"""Curves: structural models f(t; psi) and the catalogue of those that the project uses."""

from nlmeflow.curves.catalogue import (
    biexponential,
    change_point,
    double_logistic,
    emax,
    exponential_recovery,
    gompertz,
    gompertz_senescence,
    infusion,
    linear,
    logistic_growth,
    logistic_senescence,
    oral,
)
from nlmeflow.curves.curve import LIBRARY, Curve, Parameter, Transform, bounded
from nlmeflow.curves.named import named

__all__ = [
    "LIBRARY",
    "Curve",
    "Parameter",
    "Transform",
    "biexponential",
    "bounded",
    "change_point",
    "double_logistic",
    "emax",
    "exponential_recovery",
    "gompertz",
    "gompertz_senescence",
    "infusion",
    "linear",
    "logistic_growth",
    "logistic_senescence",
    "named",
    "oral",
]
