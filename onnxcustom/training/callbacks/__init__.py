"""Callbacks: what looks at a training while it runs, and may end it."""

from .base import Callback, Callbacks
from .checkpointing import Checkpoint
from .early_stopping import EarlyStopping
from .history_file import HistoryFile
from .learning_rate import LearningRate
from .limits import StopOnNonFinite, TimeBudget
from .progress import PrintLog, ProgressBar
from .scoring import Score
from .unfreezing import Unfreeze

__all__ = [
    "Callback",
    "Callbacks",
    "Checkpoint",
    "EarlyStopping",
    "HistoryFile",
    "LearningRate",
    "PrintLog",
    "ProgressBar",
    "Score",
    "StopOnNonFinite",
    "TimeBudget",
    "Unfreeze",
]
