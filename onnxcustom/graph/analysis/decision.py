"""From scores to probabilities and labels: how a classifier decides, wherever it runs."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from scipy.special import expit, softmax

from .classifier import Logits

__all__ = ["Decision"]


@dataclasses.dataclass(frozen=True)
class Decision:
    """What the scores of a classifier mean.

    Attributes
    ----------
    link : str or None
        What makes probabilities of them: ``'softmax'`` or ``'sigmoid'``; None if they are some already,
        ``'scores'`` if nothing does.
    multilabel : bool
        Whether each column is a question of its own, answered by 0 or 1.

    Examples
    --------
    >>> scores = np.array([[-1.0, 2.0], [0.5, 0.25]])
    >>> Decision("softmax").labels(scores, -1, np.array(["no", "yes"])).tolist()
    ['yes', 'no']
    >>> Decision("sigmoid", multilabel=True).labels(scores, -1, np.arange(2)).tolist()
    [[0, 1], [1, 1]]
    """

    link: str | None = None
    multilabel: bool = False

    @classmethod
    def of(cls, logits: Logits | None) -> Decision:
        """That of a model by its graph alone: `logits` are the scores behind its output, if any are."""
        return cls("scores") if logits is None else cls(None, logits.independent and logits.columns != 1)

    @property
    def threshold(self) -> float:
        """What a score is above for 'yes'."""
        return 0.5 if self.link is None else 0.0

    def labels(self, scores: np.ndarray, axis: int, classes: np.ndarray) -> np.ndarray:
        """The most probable classes; 0 and 1 in the shape of the scores for several questions a row."""
        if self.multilabel:
            return (scores > self.threshold).astype(np.int64)
        if scores.shape[axis] > 1:
            return classes[np.argmax(scores, axis=axis)]
        return classes[(scores.take(0, axis=axis) > self.threshold).astype(np.int64)]

    def probabilities(self, scores: np.ndarray, axis: int) -> np.ndarray | None:
        """Those of the classes; None if nothing makes some of the scores."""
        if self.link == "scores":
            return None
        if self.link == "softmax":
            return softmax(scores, axis=axis)
        found: Any = expit(scores) if self.link == "sigmoid" else scores
        return np.concatenate([1 - found, found], axis=axis) if found.shape[axis] == 1 else found

    def margins(self, scores: np.ndarray, axis: int) -> np.ndarray:
        """The scores; of two classes one number, that of the second class less that of the first."""
        if scores.ndim > 2 or self.multilabel or scores.shape[axis] > 2:
            return scores
        return scores[:, 0] if scores.shape[1] == 1 else scores[:, 1] - scores[:, 0]
