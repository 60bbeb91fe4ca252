"""Population laws: what is assumed, or learned, about the distribution of phi."""

from nlmeflow.laws.discrete import NPAG, NPEM, NPML, DiscreteLaw, NPonEBE, ParticleNPML
from nlmeflow.laws.flow import Flow, FlowLaw, Network
from nlmeflow.laws.gaussian import Gaussian, GaussianLaw
from nlmeflow.laws.law import Law
from nlmeflow.laws.mixture import Mixture, MixtureLaw
from nlmeflow.laws.stacked import StackedLaw

__all__ = [
    "NPAG",
    "NPEM",
    "NPML",
    "DiscreteLaw",
    "Flow",
    "FlowLaw",
    "Gaussian",
    "GaussianLaw",
    "Law",
    "Mixture",
    "MixtureLaw",
    "NPonEBE",
    "Network",
    "ParticleNPML",
    "StackedLaw",
]
