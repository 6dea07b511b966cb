"""Where older pickles look for :class:`~onnxcustom.training.estimators.onnx_classifier.OnnxClassifier`."""

from .estimators.onnx_classifier import OnnxClassifier

__all__ = ["OnnxClassifier"]
