"""Studies: populations whose law is known, simulation studies, what chapters need besides the subject."""
