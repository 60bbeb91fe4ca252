"""Estimation: the engine and everything around it."""

from nlmeflow.estimation import components, ladder, nonparametric, relatives, saem

__all__ = [
    "components",
    "ladder",
    "nonparametric",
    "relatives",
    "saem",
]  # how laws are learned is registered there
