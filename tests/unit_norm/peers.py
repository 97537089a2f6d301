"""geoopt and pymanopt, imported without the warning that geoopt's own import gives (torch.jit.script is deprecated)."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import geoopt
    import pymanopt

__all__ = ["geoopt", "pymanopt"]
