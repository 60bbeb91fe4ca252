"""Estimation: the engine and everything around it."""

from nlmeflow.estimation import components, ladder, nonparametric

__all__ = ["components", "ladder", "nonparametric"]  # how laws are learned is registered there
