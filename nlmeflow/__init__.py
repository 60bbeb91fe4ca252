"""Nonlinear mixed-effects models whose population law is a normalizing flow.

import nlmeflow as nf

data = nf.LongitudinalData.from_frame(frame, individual="plant", time="day", response="greenness")
model = nf.Model(nf.curves.logistic_senescence(), residual=nf.Additive())
fit = model.fit(data, law=nf.Flow(), seed=1)
"""

from nlmeflow import (
    curves,
    datasets,
    diagnostics,
    laws,
    linear_scenarios,
    marginals,
    metrics,
    notebook,
    plots,
    scenarios,
)
from nlmeflow.comparison import Comparison, compare
from nlmeflow.conditional import Conditional, conditional_flow
from nlmeflow.curves import Curve, Parameter, Transform, bounded
from nlmeflow.data import LongitudinalData
from nlmeflow.deconvolution import Deconvolution, deconvolve
from nlmeflow.errors import DataError, EstimationError, ModelError
from nlmeflow.estimation.saem import SAEM
from nlmeflow.fit import Fit
from nlmeflow.interoperability import read_nonmem, to_arviz
from nlmeflow.laws import (
    NPAG,
    NPEM,
    NPML,
    SNP,
    EBEDensity,
    Flow,
    Gaussian,
    Mixture,
    Network,
    NPonEBE,
    ParticleNPML,
    SmoothNPMLE,
    Transformed,
    TwoStage,
)
from nlmeflow.model import Model
from nlmeflow.residuals import Additive, Combined, LogAdditive, Proportional
from nlmeflow.storage import load

__version__ = "0.1.0"

__all__ = [
    "NPAG",
    "NPEM",
    "NPML",
    "SAEM",
    "SNP",
    "Additive",
    "Combined",
    "Comparison",
    "Conditional",
    "Curve",
    "DataError",
    "Deconvolution",
    "EBEDensity",
    "EstimationError",
    "Fit",
    "Flow",
    "Gaussian",
    "LogAdditive",
    "LongitudinalData",
    "Mixture",
    "Model",
    "ModelError",
    "NPonEBE",
    "Network",
    "Parameter",
    "ParticleNPML",
    "Proportional",
    "SmoothNPMLE",
    "Transform",
    "Transformed",
    "TwoStage",
    "bounded",
    "compare",
    "conditional_flow",
    "curves",
    "datasets",
    "deconvolve",
    "diagnostics",
    "laws",
    "linear_scenarios",
    "load",
    "marginals",
    "metrics",
    "notebook",
    "plots",
    "read_nonmem",
    "scenarios",
    "to_arviz",
]
