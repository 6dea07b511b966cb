"""Learning rates of gradient descent, at the import path of old; they live in :mod:`onnxcustom.optim`."""

from __future__ import annotations

from onnxcustom.optim import BaseLearningRate, LearningRateSGD, LearningRateSGDNesterov

__all__ = ["BaseLearningRate", "LearningRateSGD", "LearningRateSGDNesterov"]
