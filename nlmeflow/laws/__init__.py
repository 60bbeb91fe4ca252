"""Population laws: what is assumed, or learned, about the distribution of phi."""

from nlmeflow.laws.dirichlet import DirichletLaw, DirichletProcess
from nlmeflow.laws.flow.conditional import ConditionalFlow, GivenLaw
from nlmeflow.laws.flow.ensemble import Flow
from nlmeflow.laws.flow.law import FlowLaw
from nlmeflow.laws.flow.network import Network
from nlmeflow.laws.gaussian import Gaussian, GaussianLaw
from nlmeflow.laws.kernels import EBEDensity, KernelLaw, SmoothNPMLE, TwoStage
from nlmeflow.laws.law import Law
from nlmeflow.laws.mixture import Mixture, MixtureLaw
from nlmeflow.laws.points.law import DiscreteLaw
from nlmeflow.laws.points.npml import NPAG, NPEM, NPML, NPonEBE, ParticleNPML
from nlmeflow.laws.snp import SNP, SNPLaw
from nlmeflow.laws.specification import Specification
from nlmeflow.laws.stacked import StackedLaw
from nlmeflow.laws.transformed import Transformed, TransformedLaw

__all__ = [
    "NPAG",
    "NPEM",
    "NPML",
    "SNP",
    "ConditionalFlow",
    "DirichletLaw",
    "DirichletProcess",
    "DiscreteLaw",
    "EBEDensity",
    "Flow",
    "FlowLaw",
    "Gaussian",
    "GaussianLaw",
    "GivenLaw",
    "KernelLaw",
    "Law",
    "Mixture",
    "MixtureLaw",
    "NPonEBE",
    "Network",
    "ParticleNPML",
    "SNPLaw",
    "SmoothNPMLE",
    "Specification",
    "StackedLaw",
    "Transformed",
    "TransformedLaw",
    "TwoStage",
]
