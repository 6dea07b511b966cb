"""Warnings that point at the user's line."""

from __future__ import annotations

import sys
import warnings

__all__ = ["warn_user"]

_WITHIN = ("onnxcustom.", "contextlib")


def warn_user(message: str, category: type[Warning]) -> None:
    """Warn at the first frame that isn't of this library, nor of a context manager that it runs in."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_WITHIN):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
