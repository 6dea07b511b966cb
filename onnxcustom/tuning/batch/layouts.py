"""Where the rows of a batch are in a tensor, found by comparing it with what the rows give alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

__all__ = ["Layout", "close", "find_layout", "joined"]

# Relative and absolute tolerances: kernels add up in another order for another number of rows.
_TOLERANCES = {2: (2e-2, 2e-2), 4: (1e-3, 1e-4), 8: (1e-6, 1e-8)}
# Numbers from here on stand for infinity, as in masks of attention.
_HUGE = 1e6


@dataclasses.dataclass(frozen=True)
class Layout:
    """The axis of the rows.

    Attributes
    ----------
    axis : int
        The axis.
    before : int
        Elements of that axis that lie before those of the rows, 1 unless axes were made one: of [T, N, C] as
        [T N, C] there are T.
    lifted : bool
        Whether the axis is one more than a block has, in front of the others.
    """

    axis: int
    before: int = 1
    lifted: bool = False

    def pure(self, shape: Sequence[int], block: int) -> bool:
        """Whether the axis holds rows and nothing else; `shape` is that of a block of so many rows."""
        return not self.lifted and self.before == 1 and shape[self.axis] == block


def joined(blocks: Sequence[np.ndarray], layout: Layout) -> np.ndarray:
    """Blocks of rows as one tensor of that layout."""
    shape, axis, before = blocks[0].shape, layout.axis, layout.before
    if layout.lifted:
        return np.stack(blocks)
    split = (*shape[:axis], before, shape[axis] // before, *shape[axis + 1 :])
    whole = np.concatenate([block.reshape(split) for block in blocks], axis=axis + 1)
    return whole.reshape(*shape[:axis], shape[axis] * len(blocks), *shape[axis + 1 :])


def find_layout(blocks: Sequence[np.ndarray], batch: np.ndarray, block: int) -> Layout | None:
    """How a tensor holds what blocks of rows give alone; None if it does not, or has other numbers."""
    if len({array.shape for array in blocks}) > 1:
        return None
    if block == 1 and batch.shape == (len(blocks), *blocks[0].shape):
        return Layout(0, lifted=True) if close(batch, np.stack(blocks)) else None
    if blocks[0].ndim != batch.ndim:
        return None
    return next(
        (found for found in _possible(blocks, batch, block) if close(batch, joined(blocks, found))), None
    )


def _possible(blocks: Sequence[np.ndarray], batch: np.ndarray, block: int) -> Iterator[Layout]:
    """Layouts that the shapes allow, rows alone on their axis first."""
    shape, count = blocks[0].shape, len(blocks)
    axes = [i for i, (a, b) in enumerate(zip(shape, batch.shape, strict=True)) if a != b]
    if len(axes) != 1 or shape[axes[0]] * count != batch.shape[axes[0]]:
        return
    size = shape[axes[0]]
    rows = block if size % block == 0 else size
    for before in range(1, size // rows + 1):
        if size // rows % before == 0:
            yield Layout(axes[0], before)


def close(found: Any, expected: Any, times: float = 1.0) -> bool:
    """Whether two arrays are the same, but for rounding; `times` as much of it."""
    found, expected = np.asarray(found), np.asarray(expected)
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if np.array_equal(found, expected):
        return True
    if found.dtype.kind not in "fc":
        return False
    relative, absolute = _TOLERANCES.get(found.dtype.itemsize, _TOLERANCES[4])
    usual = expected[np.isfinite(expected) & (np.abs(expected) < _HUGE)]
    size = float(np.sqrt(np.mean(np.square(usual, dtype=np.float64)))) if usual.size else 0.0
    return bool(
        np.allclose(found, expected, rtol=times * relative, atol=times * absolute * size, equal_nan=True)
    )
