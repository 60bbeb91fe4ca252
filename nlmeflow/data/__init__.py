"""Data: repeated measures of many individuals, how tables are read, real data sets."""

from nlmeflow.data.files import in_days, read_table
from nlmeflow.data.limits import mark_limits
from nlmeflow.data.longitudinal import LongitudinalData
from nlmeflow.data.nonmem import read_nonmem

__all__ = ["LongitudinalData", "in_days", "mark_limits", "read_nonmem", "read_table"]
