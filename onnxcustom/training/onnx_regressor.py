"""Where older pickles look for :class:`~onnxcustom.training.estimators.onnx_regressor.OnnxRegressor`."""

from .estimators.onnx_regressor import OnnxRegressor

__all__ = ["OnnxRegressor"]
