"""scikit-learn estimators that hold an ONNX model."""

from .forward_backward_optimizer import OrtGradientForwardBackwardOptimizer
from .onnx_classifier import OnnxClassifier
from .onnx_regressor import OnnxRegressor

__all__ = ["OnnxClassifier", "OnnxRegressor", "OrtGradientForwardBackwardOptimizer"]
