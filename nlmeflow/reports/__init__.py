"""Reports: figures, diagnostics, draws for other programs."""
