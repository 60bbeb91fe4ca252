"""Nonlinear mixed-effects models whose population law is a normalizing flow.

import nlmeflow as nf

data = nf.LongitudinalData.from_frame(frame, individual="plant", time="day", response="greenness")
model = nf.Model(nf.curves.logistic_senescence(), residual=nf.Additive())
fit = model.fit(data, law=nf.Flow(), seed=1)
"""

from importlib import import_module
from typing import Any
from warnings import warn

from nlmeflow import curves, laws
from nlmeflow.curves import Curve, Parameter, Transform, bounded
from nlmeflow.data import LongitudinalData, in_days, mark_limits, read_nonmem, read_table
from nlmeflow.errors import DataError, EstimationError, ModelError, extra
from nlmeflow.estimation.saem import SAEM
from nlmeflow.fitting.comparison import Comparison, compare
from nlmeflow.fitting.conditional import Conditional, conditional_flow
from nlmeflow.fitting.fit import Fit
from nlmeflow.fitting.model import Model
from nlmeflow.fitting.storage import load
from nlmeflow.laws import (
    NPAG,
    NPEM,
    NPML,
    SNP,
    DirichletProcess,
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
from nlmeflow.residuals import Additive, Combined, LogAdditive, Proportional

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
    "DirichletProcess",
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
    "characterise",
    "compare",
    "conditional_flow",
    "curves",
    "datasets",
    "deconvolve",
    "diagnostics",
    "findings",
    "in_days",
    "laws",
    "linear_scenarios",
    "load",
    "marginals",
    "mark_limits",
    "metrics",
    "notebook",
    "plots",
    "read_nonmem",
    "read_table",
    "scenarios",
    "to_arviz",
]

# Found when they are first asked for: figures, studies and what else is not needed to fit.
_LATER = {
    "Deconvolution": "deconvolution",
    "characterise": "reports.varieties",
    "datasets": "data.datasets",
    "deconvolve": "deconvolution",
    "diagnostics": "reports.diagnostics",
    "findings": "reports.findings",
    "linear_scenarios": "studies.linear_scenarios",
    "marginals": "laws.marginals",
    "metrics": "laws.metrics",
    "notebook": "studies.notebook",
    "plots": "reports.plots",
    "scenarios": "studies.scenarios",
    "to_arviz": "reports.arviz",
}
_FORMER = {"study": "studies.core", "linear_study": "studies.linear"}


def __getattr__(name: str) -> Any:
    if name in _FORMER:
        warn(f"nlmeflow.{name} is now nlmeflow.{_FORMER[name]}.", DeprecationWarning, stacklevel=2)
    elif name not in _LATER:
        raise AttributeError(f"module 'nlmeflow' has no attribute {name!r}")
    path = _LATER.get(name) or _FORMER[name]
    with extra(f"nlmeflow.{name}"):
        module = import_module(f"nlmeflow.{path}")
    return module if path.endswith(f".{name}") or name in _FORMER else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
