"""What the losses of a batch are means over: its rows, or the labels that count."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .targets import Target

__all__ = ["Counting", "counts_fed", "labels_a_row"]


def counts_fed(targets: Sequence[Target], accumulate: int, phase: str, lean: bool) -> list[str]:
    """Outputs whose count is an input of a graph; a whole step counts by itself, unless it is `lean`.

    Several outputs of which a part of an update is computed are divided by what the whole of it counts.
    """
    part = phase == "gradient" or accumulate > 1
    several = part and len(targets) > 1
    return [t.output for t in targets if several or phase == "gradient" or (t.counted and (part or lean))]


class Counting:
    """What the losses of targets are means over in a batch; false if that is always the rows.

    Parameters
    ----------
    targets : sequence of Target
        Targets.
    """

    def __init__(self, targets: Sequence[Target]) -> None:
        self._targets = len(targets)
        # What a property of a target finds out is the same for every batch.
        self._counted = [(i, t.count, t.masks) for i, t in enumerate(targets) if t.counted]

    def __bool__(self) -> bool:
        return bool(self._counted)

    def of(self, expected: Callable[[int], np.ndarray], rows: int) -> tuple[list[int], bool]:
        """What the loss of each target is a mean over, and whether labels are left out that graphs look for.

        Parameters
        ----------
        expected : callable
            The expected values of a target, by its place; only asked for those that count labels.
        rows : int
            Rows of the batch.
        """
        units, masked = [rows] * self._targets, False
        for i, count, masks in self._counted:
            labels = expected(i)
            units[i] = count(labels)
            masked = masked or (masks and units[i] != labels.size)
        return units, masked


def labels_a_row(
    targets: Sequence[Target], expected: Callable[[str], tuple[np.ndarray, bool]], rows: int
) -> list[float]:
    """Labels that count for each row on average, of each target that counts them: 1 where none does.

    Parameters
    ----------
    targets : sequence of Target
        Targets.
    expected : callable
        Expected values by output, and whether they are one for each row of a model that takes one at a time.
    rows : int
        Rows of the data.
    """
    made = []
    for target in targets:
        if target.counted:
            labels, each = expected(target.output)
            scores = rows if each or target.rows is not None else 1  # else all of it is one row
            made.append((target.count(labels) or scores) / scores)
    return made
