"""Forward and backward passes over an ONNX graph, for those who write their own training loop."""

from .function import OrtGradientForwardBackwardFunction
from .session import OrtGradientForwardBackward

__all__ = ["OrtGradientForwardBackward", "OrtGradientForwardBackwardFunction"]
