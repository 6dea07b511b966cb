"""What scikit-learn does not measure: texts that are decoded, tokens, pixels, embeddings."""

from __future__ import annotations

from .decoding import beam_search, best_path
from .labels import mean_iou, token_accuracy
from .retrieval import recall_at_k
from .scorers import Metric, get_scorer, register_metric, scorer_names
from .text import character_error_rate, edit_distance, word_error_rate

__all__ = [
    "Metric",
    "beam_search",
    "best_path",
    "character_error_rate",
    "edit_distance",
    "get_scorer",
    "mean_iou",
    "recall_at_k",
    "register_metric",
    "scorer_names",
    "token_accuracy",
    "word_error_rate",
]
