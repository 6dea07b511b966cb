"""Where older pickles look for :class:`~onnxcustom.step.targets.Target`."""

from onnxcustom.step.targets import Target

__all__ = ["Target"]
