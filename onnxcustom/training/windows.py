"""Batches of an epoch in the windows that updates are of, where outputs count differently."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from onnxcustom._warnings import warn_user
from onnxcustom.step.training_step import TrainingStep

__all__ = ["counts_differ", "in_windows", "leave_out_cut", "one_label_a_row"]


def counts_differ(step: TrainingStep, loader: Any) -> bool:
    """Whether the losses of a step may count differently in batches that are accumulated.

    They don't where all labels of data in memory count, as many in each row.
    """
    if step.optimizer.accumulate == 1 or len(step.targets) < 2 or not step.counts_labels:
        return False
    arrays = getattr(loader, "arrays", None)
    if arrays is None:
        return True
    counted = [target for target in step.targets if target.counted]
    return any(not t.soft and t.count(arrays[t.output]) != arrays[t.output].size for t in counted)


def one_label_a_row(step: TrainingStep, loader: Any) -> bool:
    """Whether every loss is a mean over the rows in any batch of the data: then nobody has to count labels.

    It is known of data in memory, once the shape of the labels has settled what they are.
    """
    arrays = getattr(loader, "arrays", None)
    if arrays is None or not step.recipe.settled:
        return False
    counted = [target for target in step.targets if target.counted]
    return all(not t.has_positions and t.count(arrays[t.output]) == arrays[t.output].size for t in counted)


def in_windows(step: TrainingStep, batches: Iterable[Any], position: int) -> Iterator[Any]:
    """Batches, as many read ahead as an update is of; the last update of an epoch is of those that are left.

    Parameters
    ----------
    step : TrainingStep
        What is told of them.
    batches : iterable of Batch
        Those of an epoch that are left.
    position : int
        How many of it were done.
    """
    source = iter(batches)
    if not position:
        leave_out_cut(step)
    if not step.announced:
        step.apply_accumulated()  # of an epoch before
    while True:
        left = step.announced
        window = [batch.copy() for batch in itertools.islice(source, left or step.optimizer.accumulate)]
        if window and not left:
            step.announce_batches([(batch.values, batch.rows) for batch in window])
        yield from window
        if not window:
            return
        step.apply_accumulated()  # there were fewer, or one of them was skipped


def leave_out_cut(step: TrainingStep) -> None:
    """Leave out a window that training was stopped in: its losses are divided by what all of it counts."""
    if step.announced:
        warn_user(
            f"Training was stopped before the last {step.announced} of the batches of an update, whose "
            "losses count different numbers of labels: what is accumulated of the others is left out.",
            UserWarning,
        )
        step.forget_accumulated()
