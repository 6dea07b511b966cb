"""Losses of several outputs over a whole data set, where each is a mean over labels of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from onnxcustom.step.training_step import TrainingStep

__all__ = ["apart", "weighing"]


def apart(step: TrainingStep, heads: Iterable[float]) -> float:
    """What the losses of several outputs have in the objective, where each has labels of its own."""
    if not step.counts_labels:
        return 0.0
    return sum(t.weight * float(loss) for t, loss in zip(step.targets, heads, strict=False))


def weighing(step: TrainingStep) -> Callable[..., np.ndarray] | None:
    """How much the losses of a part of the data count; None for its rows."""
    if not step.counts_labels:
        return None

    def counts(expected: Any, rows: int) -> np.ndarray:
        found = [*step.counts(expected, rows).values()]
        return np.array(found if len(found) == 1 else [rows, *found])

    return counts
