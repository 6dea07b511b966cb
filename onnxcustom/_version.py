"""The version of the library, for those inside it that may not import the package itself."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.5.0.dev0"
