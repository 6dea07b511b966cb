"""Where older pickles look for :class:`~onnxcustom.training.from_sklearn.frozen_steps.FrozenStep`."""

from .from_sklearn.frozen_steps import FrozenStep

__all__ = ["FrozenStep"]
