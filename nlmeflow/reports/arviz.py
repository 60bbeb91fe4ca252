"""Draws of the individuals' parameters for arviz."""

from typing import Any

import arviz
import numpy as np

from nlmeflow.arguments import checked, column
from nlmeflow.errors import ModelError, check_memory, whole
from nlmeflow.fitting.fit import Fit
from nlmeflow.laws.draws import resample, shuffled
from nlmeflow.seeds import Stream, derive, generator


@checked
def to_arviz(fit: Fit, draws: int = 500, seed: int = 0) -> Any:
    """Return draws of the individual parameters given the data as arviz InferenceData.

    posterior: each parameter on its natural scale, dimensions chain (1), draw, individual; sample_stats:
    nothing; observed_data: time and response by individual and observation; the attributes say the law, the
    residual and the fixed parameters. What is ours has a longer name where a parameter is called so:
    "observed time", "observed response", "name of the individual", "population law", "residual sigma".

    Raises
    ------
    ModelError : draws is not a whole number from 1; a parameter is called chain or draw, as arviz calls the
        dimensions of draws.

    """
    if taken := {"chain", "draw"} & set(fit.names):
        raise ModelError(f"arviz has a dimension '{taken.pop()}'; give this parameter another name.")
    draws = whole("draws", draws, 1)
    phi, weights = fit.conditional
    check_memory("draws", draws, phi[:, 0].numel(), "parameters")
    drawn = resample(phi, weights, draws, generator(derive(seed, Stream.EXPORTED_DRAWS)))
    drawn = shuffled(drawn, generator(derive(seed, Stream.EXPORTED_ORDER)))
    natural = fit.model.curve.natural(drawn, fit.names)
    posterior = {name: value.mT.numpy()[None] for name, value in natural.items()}
    mask = fit.data.mask.numpy()
    when, what, who, number = (
        column(ours, longer, fit.names)
        for ours, longer in (
            ("time", "observed time"),
            ("response", "observed response"),
            ("individual", "name of the individual"),
            ("observation", "number of the observation"),
        )
    )
    observed = {
        when: np.where(mask, fit.data.time.numpy(), np.nan),
        what: np.where(mask, fit.data.response.numpy(), np.nan),
    }
    dims: dict[str, Any] = {name: [who] for name in posterior}
    dims |= {name: [who, number] for name in observed}
    return arviz.from_dict(
        posterior=posterior,
        observed_data=observed,
        coords={who: list(map(str, fit.data.labels))},
        dims=dims,
        attrs={
            column("law", "population law", fit.fixed): type(fit.law).__name__,
            **{column(name, f"residual {name}", fit.fixed): value for name, value in fit.residual.items()},
            **fit.fixed,
        },
    )
