"""Data: repeated measures of many individuals, how tables are read, real data sets."""

from nlmeflow.data.files import read_table
from nlmeflow.data.longitudinal import LongitudinalData
from nlmeflow.data.nonmem import read_nonmem

__all__ = ["LongitudinalData", "read_nonmem", "read_table"]
