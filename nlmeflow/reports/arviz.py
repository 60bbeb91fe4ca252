"""Draws of the individuals' parameters for arviz."""

from typing import Any

import arviz
import numpy as np

from nlmeflow.arguments import checked
from nlmeflow.errors import whole
from nlmeflow.fitting.bootstrap import check_columns
from nlmeflow.fitting.fit import Fit
from nlmeflow.laws.draws import resample, shuffled
from nlmeflow.seeds import Stream, derive, generator


@checked
def to_arviz(fit: Fit, draws: int = 500, seed: int = 0) -> Any:
    """Return draws of the individual parameters given the data as arviz InferenceData.

    posterior: each parameter on its natural scale, dimensions chain (1), draw, individual; sample_stats:
    nothing; observed_data: time and response by individual and observation; the attributes say the law, the
    residual and the fixed parameters.

    Raises
    ------
    ModelError : draws is not a whole number from 1.

    """
    draws = whole("draws", draws, 1)
    check_columns(fit.names, ("time", "response", "individual", "observation"))
    phi, weights = fit.conditional
    drawn = resample(phi, weights, draws, generator(derive(seed, Stream.EXPORTED_DRAWS)))
    drawn = shuffled(drawn, generator(derive(seed, Stream.EXPORTED_ORDER)))
    natural = fit.model.curve.natural(drawn, fit.names)
    posterior = {name: value.mT.numpy()[None] for name, value in natural.items()}
    mask = fit.data.mask.numpy()
    observed = {
        "time": np.where(mask, fit.data.time.numpy(), np.nan),
        "response": np.where(mask, fit.data.response.numpy(), np.nan),
    }
    dims: dict[str, Any] = {name: ["individual"] for name in posterior}
    dims |= {name: ["individual", "observation"] for name in observed}
    return arviz.from_dict(
        posterior=posterior,
        observed_data=observed,
        coords={"individual": list(map(str, fit.data.labels))},
        dims=dims,
        attrs={"law": type(fit.law).__name__, **fit.residual, **fit.fixed},
    )
