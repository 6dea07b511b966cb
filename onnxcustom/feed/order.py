"""The order of rows: a function of a seed."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np

from onnxcustom.exceptions import InvalidParameterError

__all__ = ["draw_seed", "permutation"]


def permutation(seed: int, epoch: int, rows: int) -> np.ndarray:
    """The order of the rows in an epoch, a function of (seed, epoch) and nothing else.

    Parameters
    ----------
    seed : int
        In [0, 2**64).
    epoch : int
        In [0, 2**64).
    rows : int
        Number of rows.

    Returns
    -------
    ndarray of shape (rows,), int64

    Examples
    --------
    >>> bool((permutation(0, 3, 100) == permutation(0, 3, 100)).all())
    True
    """
    key = np.array([seed, epoch], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).permutation(rows)


def draw_seed(random_state: Any = None) -> int:
    """A seed from scikit-learn's ``random_state``: None, an integer, a RandomState or a Generator."""
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1, np.uint64)[0])
    if isinstance(random_state, numbers.Integral) and not isinstance(random_state, bool):
        if not 0 <= int(random_state) < 2**64:
            raise InvalidParameterError(f"random_state must be in [0, 2**64), not {random_state}.")
        return int(random_state)
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31 - 1))
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**63))
    raise InvalidParameterError(
        f"random_state must be None, an integer, a RandomState or a Generator, not {random_state!r}."
    )
