"""Rows that belong into one batch: partners, and several of a class."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from onnxcustom._parameters import check_count, is_count
from onnxcustom.data import Stream
from onnxcustom.exceptions import InvalidDataError, InvalidParameterError

from .order import permutation

__all__ = ["Groups", "alone", "check_streamed", "class_groups", "pair_groups"]

# Orders of rows within classes must not be those of an epoch.
_WITHIN = 2**63


@dataclasses.dataclass(frozen=True, eq=False)
class Groups:
    """Which rows belong together; an epoch has every row once, and cuts no group that is whole.

    Attributes
    ----------
    labels : ndarray of int
        For each row, what it belongs to, numbered from 0 on in the order of their first rows.
    size : int
        Rows of a group, which divides the size of a batch.
    mixed : bool
        Whether rows of the same label are other groups in every epoch: of a class there are many.
    """

    labels: np.ndarray
    size: int
    mixed: bool = False

    def order(self, seed: int, epoch: int, shuffle: bool) -> np.ndarray:
        """The order of the rows in an epoch, a function of its arguments.

        Groups of a class are spread over the epoch; what is left of classes, less than a group of each, is
        at its end.
        """
        rows = np.arange(len(self.labels))
        if shuffle and self.mixed:
            rows = permutation(seed, epoch + _WITHIN, len(rows))
        rows = rows[np.argsort(self.labels[rows], kind="stable")]
        counts = np.bincount(self.labels)
        place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        whole = place < (counts // self.size * self.size)[self.labels[rows]]
        left = rows[~whole]
        groups = rows[whole].reshape(-1, self.size)
        if shuffle:
            drawn = permutation(seed, epoch, len(groups)) / max(1, len(groups))
            number = place[whole].reshape(-1, self.size)[:, 0] // self.size
            of_class = (counts // self.size)[self.labels[groups[:, 0]]]
            # The k-th of n groups of a class lies in the k-th part of n of the epoch.
            groups = groups[np.argsort((number + drawn) / np.maximum(1, of_class), kind="stable")]
            left = left[permutation(seed, epoch + _WITHIN, len(left))]
        return np.concatenate([groups.reshape(-1), left]).astype(np.int64)


def pair_groups(pairs: Any, rows: int, batch_size: int) -> Groups:
    """Partners: so many rows behind each other, or those that have the same number.

    Parameters
    ----------
    pairs : int or array_like of shape (n,)
        Rows of a group that are behind each other, or what each row belongs to.
    rows, batch_size : int
        Rows of the data, and of a batch.

    Raises
    ------
    ValueError, InvalidDataError
        Groups of several sizes, or of one that does not divide the rows or the batch.
    """
    if is_count(pairs):
        size = check_count("pairs", pairs, 2)
        if rows % size:
            raise InvalidDataError(
                f"pairs={size} rows belong together, and the data has {rows}: no multiple."
            )
        labels = np.arange(rows) // size
    else:
        given = np.asarray(pairs)
        if given.shape != (rows,):
            raise InvalidParameterError(
                "pairs must be the number of rows that belong together, or one number or name for each of "
                f"the {rows} rows, not {pairs!r:.60} of shape {given.shape}."
            )
        _, first, labels = np.unique(given, return_index=True, return_inverse=True)
        labels = np.argsort(np.argsort(first))[labels.reshape(-1)]  # in the order of the data
        sizes = np.bincount(labels)
        size = int(sizes[0])
        if size < 2 or (sizes != size).any():
            other = int((sizes != max(size, 2)).argmax())
            name = given[first[np.argsort(first)][other]]
            raise InvalidDataError(
                f"pairs must have groups of one size of at least 2; {name!s} has {sizes[other]} of the rows, "
                f"others from {sizes.min()} to {sizes.max()}: for classes of several sizes take m_per_class."
            )
    _check_size("pairs", size, batch_size)
    return Groups(labels, size)


def class_groups(m: Any, labels: np.ndarray, batch_size: int) -> Groups:
    """So many rows of each class of a batch, as ``MPerClassSampler`` of PyTorch Metric Learning has them.

    Parameters
    ----------
    m : int
        Rows of a class in a batch.
    labels : ndarray of shape (n,)
        Classes.
    batch_size : int
        Rows of a batch.

    Raises
    ------
    ValueError, InvalidDataError
        A number that does not divide the batch, or labels that are not one a row.
    """
    size = check_count("m_per_class", m, 2)
    if labels.size != len(labels):
        raise InvalidDataError(
            f"m_per_class needs one class for each row, y has the shape {labels.shape}: give pairs instead."
        )
    _check_size("m_per_class", size, batch_size)
    return Groups(np.unique(labels.reshape(-1), return_inverse=True)[1].reshape(-1), size, mixed=True)


def alone(labels: np.ndarray, batch_size: int) -> float:
    """The part of rows, in their order, without another one of their label in their batch."""
    count = 0
    for start in range(0, len(labels), batch_size):
        count += int((np.unique(labels[start : start + batch_size], return_counts=True)[1] == 1).sum())
    return count / max(1, len(labels))


def check_streamed(pairs: Any, m_per_class: Any, stream: Stream, batch_size: int, shuffle: bool) -> None:
    """Refuse groups of a stream, whose rows come as they are: only such that are behind each other may stay.

    Raises
    ------
    ValueError, InvalidDataError
        What to do instead.
    """
    if pairs is None and m_per_class is None:
        return
    if m_per_class is not None or not is_count(pairs) or shuffle:
        raise InvalidDataError(
            f"The rows of {stream.source.name} are read in turn, so they cannot be brought together: write "
            "rows that belong into one batch behind each other, and say pairs=2 (so many of them) and "
            "shuffle=False."
        )
    _check_size("pairs", check_count("pairs", pairs, 2), batch_size)


def _check_size(what: str, size: int, batch_size: int) -> None:
    if batch_size % size:
        raise InvalidParameterError(
            f"{what}: {size} rows belong into a batch, and batch_size={batch_size} is no multiple of {size}."
        )
