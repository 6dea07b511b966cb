"""The optimizer at the import path of older versions; it lives in :mod:`onnxcustom.training.estimators`."""

from .estimators.forward_backward_optimizer import OrtGradientForwardBackwardOptimizer

__all__ = ["OrtGradientForwardBackwardOptimizer"]
