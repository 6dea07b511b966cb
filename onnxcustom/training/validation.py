"""Where older pickles look for :class:`~onnxcustom.feed.validation.TensorSpec`."""

from onnxcustom.feed.validation import TensorSpec

__all__ = ["TensorSpec"]
