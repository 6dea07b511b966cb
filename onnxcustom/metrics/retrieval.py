"""Whether embeddings that belong together are found among the nearest."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxcustom._parameters import check_count
from onnxcustom.exceptions import InvalidDataError, UnknownNameError

from .given import as_array, as_numbers, as_weights

__all__ = ["recall_at_k"]

# Similarities that are nearer to each other than this are one.
_ROUNDING = 1e-9
# Numbers of similarities computed at a time.
_BLOCK = 4_000_000


def recall_at_k(
    embeddings: Any, labels: Any, k: int = 1, distance: str = "cosine", sample_weight: Any = None
) -> float:
    """Part of the rows that have one of their own among the k rows nearest to them.

    Their own are the other rows with the same label: those of their class, or the other one of their
    pair. Rows without one do not count. Strangers at the same distance come first, so that embeddings that
    are all alike find nothing.

    Parameters
    ----------
    embeddings : array_like of shape (n, d)
        One a row.
    labels : array_like of shape (n,)
        Classes, or numbers of pairs.
    k : int, default=1
        How many are looked at.
    distance : {'cosine', 'euclidean'}, default='cosine'
        By which they are near.
    sample_weight : array_like of shape (n,), optional
        Of the rows that look.

    Returns
    -------
    float
        In [0, 1]; NaN if no row has another one with its label.

    References
    ----------
    H. O. Song et al., Deep Metric Learning via Lifted Structured Feature Embedding, CVPR 2016, section 6,
    https://arxiv.org/abs/1511.06452

    Examples
    --------
    >>> recall_at_k([[1, 0], [1, 0.1], [0, 1], [0.2, 1]], [7, 7, 8, 7])
    0.6666666666666666
    """
    check_count("k", k)
    if not isinstance(distance, str) or distance not in ("cosine", "euclidean"):
        raise UnknownNameError(f"distance must be 'cosine' or 'euclidean', not {distance!r}.")
    x, y = as_numbers("embeddings", embeddings), as_array("labels", labels)
    if x.ndim != 2 or y.size != len(x):
        raise InvalidDataError(
            f"recall_at_k takes embeddings (rows, columns) and one label a row: shapes are {x.shape} and "
            f"{y.shape}."
        )
    if not np.isfinite(x).all():
        raise InvalidDataError("Embeddings hold NaN or infinity.")
    y = y.reshape(-1)
    weights = as_weights(sample_weight, len(x))
    found = _found(*_near(x, distance), y, k)
    weights = weights * ~np.isnan(found)
    total = weights.sum()
    return float((np.nan_to_num(found) * weights).sum() / total) if total else np.nan


def _near(x: np.ndarray, distance: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows and numbers: the product with a row, less its number, orders rows by how near they are."""
    if distance == "cosine":
        norms = np.linalg.norm(x, axis=1, keepdims=True)
        return x / np.where(norms > 0, norms, 1), np.zeros(len(x))
    x = x - x.mean(axis=0)
    x = x / (np.linalg.norm(x, axis=1).max(initial=0) or 1)
    # |a - b|² = |a|² + |b|² - 2ab, of which |a|² orders nothing.
    return x, (x * x).sum(axis=1) / 2


def _found(x: np.ndarray, less: np.ndarray, y: np.ndarray, k: int) -> np.ndarray:
    """Whether each row has one of its own among the k nearest, 0 or 1; NaN if it has none."""
    made = np.full(len(x), np.nan)
    size = max(_BLOCK // max(len(x), 1), 1)
    for start in range(0, len(x), size):
        rows = np.arange(start, min(start + size, len(x)))
        near = x[rows] @ x.T - less
        same = y[rows, None] == y
        own = same.copy()
        own[np.arange(len(rows)), rows] = False
        nearest = np.where(own, near, -np.inf).max(axis=1)
        before = (~same & (near >= nearest[:, None] - _ROUNDING)).sum(axis=1)
        made[rows] = np.where(own.any(axis=1), before < k, np.nan)
    return made
