"""Forward and backward at their public path; they live in :mod:`onnxcustom.gradient.forward_backward`."""

from onnxcustom.gradient.forward_backward import (
    OrtGradientForwardBackward,
    OrtGradientForwardBackwardFunction,
)

__all__ = ["OrtGradientForwardBackward", "OrtGradientForwardBackwardFunction"]
