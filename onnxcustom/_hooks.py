"""What lower rooms ask of higher ones: the package, which knows them all, fills it in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["ask_for_types", "output_types"]


def output_types(model: Any) -> dict[str, Any]:
    """Types of a model's outputs as onnxruntime infers them; see :mod:`onnxcustom.runtime.sessions`."""
    return _asked[0](model)


_asked: list[Callable[[Any], dict[str, Any]]] = []


def ask_for_types(function: Callable[[Any], dict[str, Any]]) -> None:
    """Have :func:`output_types` ask that function."""
    _asked[:] = [function]
