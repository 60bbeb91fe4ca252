"""Population laws: what is assumed, or learned, about the distribution of phi."""

from nlmeflow.laws.flow import Flow, FlowLaw, Network
from nlmeflow.laws.gaussian import Gaussian, GaussianLaw
from nlmeflow.laws.law import Law
from nlmeflow.laws.mixture import Mixture, MixtureLaw
from nlmeflow.laws.stacked import StackedLaw

__all__ = [
    "Flow",
    "FlowLaw",
    "Gaussian",
    "GaussianLaw",
    "Law",
    "Mixture",
    "MixtureLaw",
    "Network",
    "StackedLaw",
]
