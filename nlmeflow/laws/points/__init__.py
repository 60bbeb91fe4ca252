"""Laws made of points: nonparametric maximum likelihood, its weights and its certificate."""
