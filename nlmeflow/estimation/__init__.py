"""Estimation: the engine and everything around it."""
