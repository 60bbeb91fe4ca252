"""What the kernel of a chapter that is executed for the site does first: keep figures for phones, too."""

import sys as _sys
from importlib import import_module as _imported

_sys.path.insert(0, __file__.rpartition("/")[0])
_imported("narrow").install()
_sys.path.pop(0)
del _sys, _imported
