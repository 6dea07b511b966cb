"""Losses and penalties: ONNX graphs in stable forms."""

from __future__ import annotations

from .base import BaseLearningLoss, Loss, LossTarget, LossTerms, register_loss
from .classification import (
    BinaryCrossEntropyLearningLoss,
    HingeLearningLoss,
    NegLogLearningLoss,
    SoftmaxCrossEntropyLearningLoss,
)
from .custom import CustomLoss
from .penalties import (
    BaseLearningPenalty,
    ElasticLearningPenalty,
    L1LearningPenalty,
    L2LearningPenalty,
    NoLearningPenalty,
    Penalty,
    PenaltyTerms,
    PerWeightLearningPenalty,
    register_penalty,
    select_penalties,
)
from .regression import (
    AbsoluteLearningLoss,
    ElasticLearningLoss,
    HuberLearningLoss,
    PoissonLearningLoss,
    QuantileLearningLoss,
    SquareLearningLoss,
)

__all__ = [
    "AbsoluteLearningLoss",
    "BaseLearningLoss",
    "BaseLearningPenalty",
    "BinaryCrossEntropyLearningLoss",
    "CustomLoss",
    "ElasticLearningLoss",
    "ElasticLearningPenalty",
    "HingeLearningLoss",
    "HuberLearningLoss",
    "L1LearningPenalty",
    "L2LearningPenalty",
    "Loss",
    "LossTarget",
    "LossTerms",
    "NegLogLearningLoss",
    "NoLearningPenalty",
    "Penalty",
    "PenaltyTerms",
    "PerWeightLearningPenalty",
    "PoissonLearningLoss",
    "QuantileLearningLoss",
    "SoftmaxCrossEntropyLearningLoss",
    "SquareLearningLoss",
    "register_loss",
    "register_penalty",
    "select_penalties",
]
