"""Where older pickles look for :class:`~onnxcustom.step.training_step.TrainingStep`."""

from onnxcustom.step.training_step import TrainingStep

__all__ = ["TrainingStep"]
