"""Forward and backward at their public path; they live in :mod:`onnxcustom.training.forward_backward`."""

from .forward_backward import OrtGradientForwardBackward, OrtGradientForwardBackwardFunction

__all__ = ["OrtGradientForwardBackward", "OrtGradientForwardBackwardFunction"]
