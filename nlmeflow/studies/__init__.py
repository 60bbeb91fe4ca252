"""Studies: populations whose law is known, simulation studies, what chapters need besides the subject."""

from nlmeflow.studies.table import rows

__all__ = ["rows"]
