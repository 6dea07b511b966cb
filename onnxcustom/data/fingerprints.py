"""What tells one set of data from another: text that is the same from process to process."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from .blocks import Block, Key
from .sparse import SparseRows

__all__ = ["hash_array", "hash_file", "hash_rows"]

# Bytes that are hashed at a time, and those of arrays and files beyond which samples stand for the rest.
_PIECE = 2**22
_WHOLE = 2**30
_SAMPLES = 64


def hash_array(array: np.ndarray | SparseRows, whole: bool = False) -> str:
    """Dtype, shape and the beginning of the SHA-256 of an array.

    Parameters
    ----------
    array : ndarray or SparseRows
        In memory or mapped into it; it is read in pieces of 4 MB.
    whole : bool, default=False
        Read all of an array of more than 1 GB too, rather than 64 pieces spread evenly over it.

    Examples
    --------
    >>> hash_array(np.arange(3.0))
    'float64 (3,) b0c45303f7f11848'
    """
    digest = hashlib.sha256()
    if isinstance(array, SparseRows):
        for part in array.parts():
            _update(digest, part, whole)
        return f"sparse {array.dtype} {array.shape} {digest.hexdigest()[:16]}"
    _update(digest, array, whole)
    return f"{array.dtype} {array.shape} {digest.hexdigest()[:16]}"


def _update(digest: Any, array: np.ndarray, whole: bool) -> None:
    rows = len(array)
    step = max(1, _PIECE // max(1, array.nbytes // max(1, rows)))
    starts: Iterable[int] = range(0, rows, step)
    if array.nbytes > _WHOLE and not whole:
        starts = np.linspace(0, max(0, rows - step), _SAMPLES).astype(np.int64).tolist()
    for start in starts:
        digest.update(_bytes(array[start : start + step]))


def _bytes(array: np.ndarray) -> Any:
    if array.dtype.kind == "O":
        return "\0".join(map(str, array.reshape(-1).tolist())).encode()
    if not array.dtype.isnative or array.dtype.kind in "mM":
        return np.ascontiguousarray(array).tobytes()
    return np.ascontiguousarray(array).data.cast("B") if array.size else b""


def hash_rows(blocks: Iterable[Block]) -> dict[str, str]:
    """Dtype, rows and SHA-256 of the arrays of blocks, one after the other."""
    digests: dict[Key, Any] = {}
    shapes: dict[Key, Any] = {}
    rows = 0
    for block in blocks:
        for key, array in block.arrays.items():
            digests.setdefault(key, hashlib.sha256()).update(_bytes(array))
            shapes[key] = f"{array.dtype} {array.shape[1:]}"
        rows += len(block)
    return {str(k): f"{shapes[k]} {rows} rows {d.hexdigest()[:16]}" for k, d in digests.items()}


def hash_file(path: str | os.PathLike, piece: int = _PIECE, whole: int = _WHOLE) -> str:
    """Size of a file and SHA-256 of it; of more than 1 GB, of 64 pieces of 4 MB spread evenly over it.

    Parameters
    ----------
    path : path
        The file.
    piece, whole : int
        Bytes of such a piece, and of the largest file that is read as a whole.
    """
    size = os.path.getsize(path)
    starts: Iterable[int] = range(0, size, piece)
    if size > whole:
        starts = np.linspace(0, size - piece, _SAMPLES).astype(np.int64).tolist()
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for start in starts:
            file.seek(start)
            digest.update(file.read(piece))
    return f"{size} bytes {digest.hexdigest()[:16]}"
