"""Losses and penalties: ONNX graphs in stable forms."""

from __future__ import annotations

from .base import BaseLearningLoss, Loss, LossTarget, LossTerms, register_loss
from .classification import (
    BinaryCrossEntropyLearningLoss,
    HingeLearningLoss,
    NegLogLearningLoss,
    SoftmaxCrossEntropyLearningLoss,
)
from .ctc import CTCLearningLoss
from .custom import CustomLoss
from .embeddings import ContrastiveLearningLoss, CosineLearningLoss, TripletLearningLoss
from .imbalance import DiceLearningLoss, FocalLearningLoss
from .likelihood import GaussianLearningLoss, KLDivergenceLearningLoss, NLLLearningLoss
from .penalties import (
    BaseLearningPenalty,
    ElasticLearningPenalty,
    L1LearningPenalty,
    L2LearningPenalty,
    L2StartLearningPenalty,
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
    LogCoshLearningLoss,
    PoissonLearningLoss,
    QuantileLearningLoss,
    SmoothL1LearningLoss,
    SquareLearningLoss,
)

__all__ = [
    "AbsoluteLearningLoss",
    "BaseLearningLoss",
    "BaseLearningPenalty",
    "BinaryCrossEntropyLearningLoss",
    "CTCLearningLoss",
    "ContrastiveLearningLoss",
    "CosineLearningLoss",
    "CustomLoss",
    "DiceLearningLoss",
    "ElasticLearningLoss",
    "ElasticLearningPenalty",
    "FocalLearningLoss",
    "GaussianLearningLoss",
    "HingeLearningLoss",
    "HuberLearningLoss",
    "KLDivergenceLearningLoss",
    "L1LearningPenalty",
    "L2LearningPenalty",
    "L2StartLearningPenalty",
    "LogCoshLearningLoss",
    "Loss",
    "LossTarget",
    "LossTerms",
    "NLLLearningLoss",
    "NegLogLearningLoss",
    "NoLearningPenalty",
    "Penalty",
    "PenaltyTerms",
    "PerWeightLearningPenalty",
    "PoissonLearningLoss",
    "QuantileLearningLoss",
    "SmoothL1LearningLoss",
    "SoftmaxCrossEntropyLearningLoss",
    "SquareLearningLoss",
    "TripletLearningLoss",
    "register_loss",
    "register_penalty",
    "select_penalties",
]
