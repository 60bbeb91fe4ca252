"""Error models: how observations scatter around their curve."""

from nlmeflow.residuals.combined import Combined
from nlmeflow.residuals.one_scale import Additive, LogAdditive, Proportional
from nlmeflow.residuals.residual import Residual

__all__ = ["Additive", "Combined", "LogAdditive", "Proportional", "Residual"]
