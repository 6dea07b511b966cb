"""Exceptions of training, at the import path of older versions."""

from __future__ import annotations

from onnxcustom.exceptions import ConvergenceError, ConvergenceWarning, EvaluationError, ProviderError

__all__ = ["ConvergenceError", "ConvergenceWarning", "EvaluationError", "ProviderError"]
