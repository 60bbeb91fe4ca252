"""Normalizing flows as population laws: maps, training, the average, laws that follow covariates."""
