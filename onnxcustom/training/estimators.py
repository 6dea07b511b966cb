"""scikit-learn estimators that hold an ONNX model: a regressor and a classifier."""

from .onnx_classifier import OnnxClassifier
from .onnx_regressor import OnnxRegressor

__all__ = ["OnnxClassifier", "OnnxRegressor"]
