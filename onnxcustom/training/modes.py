"""Where older pickles look for :class:`~onnxcustom.step.modes.ModeSettings`."""

from onnxcustom.step.modes import ModeSettings

__all__ = ["ModeSettings"]
