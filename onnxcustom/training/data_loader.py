"""The old import path of :class:`~onnxcustom.feed.data_loader.OrtDataLoader`."""

from onnxcustom.feed.data_loader import OrtDataLoader

__all__ = ["OrtDataLoader"]
