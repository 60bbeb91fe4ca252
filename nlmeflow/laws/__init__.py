"""Population laws: what is assumed, or learned, about the distribution of phi."""

from nlmeflow.laws.discrete import NPAG, NPEM, NPML, DiscreteLaw, NPonEBE, ParticleNPML
from nlmeflow.laws.flow import Flow, FlowLaw, Network
from nlmeflow.laws.gaussian import Gaussian, GaussianLaw
from nlmeflow.laws.kernels import EBEDensity, KernelLaw, SmoothNPMLE, TwoStage
from nlmeflow.laws.law import Law
from nlmeflow.laws.mixture import Mixture, MixtureLaw
from nlmeflow.laws.snp import SNP, SNPLaw
from nlmeflow.laws.stacked import StackedLaw
from nlmeflow.laws.transformed import Transformed, TransformedLaw

__all__ = [
    "NPAG",
    "NPEM",
    "NPML",
    "SNP",
    "DiscreteLaw",
    "EBEDensity",
    "Flow",
    "FlowLaw",
    "Gaussian",
    "GaussianLaw",
    "KernelLaw",
    "Law",
    "Mixture",
    "MixtureLaw",
    "NPonEBE",
    "Network",
    "ParticleNPML",
    "SNPLaw",
    "SmoothNPMLE",
    "StackedLaw",
    "Transformed",
    "TransformedLaw",
    "TwoStage",
]
