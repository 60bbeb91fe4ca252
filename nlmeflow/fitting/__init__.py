"""Fitting: models, fits, comparisons, and what is told of them."""
