"""Penalties under the names older versions gave them; they live in :mod:`onnxcustom.objective`."""

from __future__ import annotations

from onnxcustom.objective import BaseLearningPenalty, ElasticLearningPenalty, NoLearningPenalty

__all__ = ["BaseLearningPenalty", "ElasticLearningPenalty", "NoLearningPenalty"]
