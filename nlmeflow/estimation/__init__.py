"""Estimation: the engine and everything around it."""

from nlmeflow.estimation import components, ladder

__all__ = ["components", "ladder"]  # how mixtures and flows are learned is registered there
