"""What the frozen part of a model has made of rows, kept for when they come again."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from onnxcustom._parameters import check_number
from onnxcustom.exceptions import InvalidParameterError
from onnxcustom.feed.specs import TensorSpec, some_rows
from onnxcustom.graph.trainable.frozen_part import NoFrozenPartError

from .frozen import Halves

__all__ = ["CacheSettings", "FrozenRows", "check_cache", "refuse"]

logger = logging.getLogger("onnxcustom")


class CacheSettings(NamedTuple):
    """Whether what the frozen part of a model makes of rows is kept: a word of the user's."""

    wanted: Any = False
    limit: float = 2**30


def check_cache(cache_frozen: Any, cache_bytes: Any) -> None:
    """Refuse values of the two parameters that are none.

    Raises
    ------
    InvalidParameterError
        Which one, and what it may be.
    """
    if not (cache_frozen == "auto" or isinstance(cache_frozen, (bool, np.bool_))):
        raise InvalidParameterError(f"cache_frozen must be True, False or 'auto', not {cache_frozen!r}.")
    check_number("cache_bytes", cache_bytes, "[0, inf)")


def refuse(wanted: Any, reason: NoFrozenPartError) -> None:
    """Say that nothing is computed once; an error, if that was asked for."""
    if wanted == "auto":
        logger.info("[cache_frozen] The frozen part runs in every step: %s.", reason)
        return
    raise InvalidParameterError(
        f"cache_frozen=True: the frozen part of the model cannot be computed once: {reason}. "
        "cache_frozen='auto' goes without it where it has to, cache_frozen=False always does."
    ) from reason


class FrozenRows:
    """Rows that went through the frozen half of a step, found again by their content.

    Parameters
    ----------
    halves : Halves
        Of the step.
    limit : float
        Bytes that may be kept; rows beyond that go through every time.
    """

    def __init__(self, halves: Halves, limit: float) -> None:
        self.halves, self._limit = halves, limit
        self._made: dict[bytes, list[np.ndarray]] = {}
        self._bytes = 0

    def values(self, inputs: Mapping[str, np.ndarray], specs: Sequence[TensorSpec]) -> list[np.ndarray]:
        """What the trained half takes of a batch, in its order.

        Parameters
        ----------
        inputs : mapping of str to ndarray
            The batch as the model takes it.
        specs : sequence of TensorSpec
            What these are.
        """
        rows = next((inputs[s.name].shape[s.axis] for s in specs if s.axis is not None), 1)
        keys = [self._key(inputs, specs, row) for row in range(rows)]
        fresh: dict[bytes, list[np.ndarray]] = {}
        if any(key not in self._made for key in keys):
            made = self.halves.compute(inputs)
            fresh = {key: self._row(made, i) for i, key in enumerate(keys) if key not in self._made}
        found = [fresh.get(key) or self._made[key] for key in keys]
        for key, row in fresh.items():
            size = sum(array.nbytes for array in row) + len(key)
            if self._bytes + size <= self._limit:
                self._made[key], self._bytes = row, self._bytes + size
        parts = list(zip(*found, strict=True))
        kept = self.halves.kept
        together = {
            k.spec.name: part[0] if k.spec.axis is None else np.concatenate(part, k.spec.axis)
            for k, part in zip(kept, parts, strict=True)
        }
        return [together[s.name] if s.name in together else inputs[s.name] for s in self.halves.specs]

    def _row(self, made: Sequence[np.ndarray], row: int) -> list[np.ndarray]:
        """A row of what the frozen half has made, with its axis."""
        return [
            np.array(m if k.spec.axis is None else np.take(m, [row], k.spec.axis))
            for k, m in zip(self.halves.kept, made, strict=True)
        ]

    @staticmethod
    def _key(inputs: Mapping[str, np.ndarray], specs: Sequence[TensorSpec], row: int) -> bytes:
        digest = hashlib.blake2b(digest_size=16)
        for spec in specs:
            array = np.asarray(some_rows(inputs[spec.name], spec, slice(row, row + 1)), order="C")
            digest.update(f"{array.shape}{array.dtype}".encode())
            digest.update(array.tobytes() if array.dtype.kind in "OUS" else array.data)
        return digest.digest()
