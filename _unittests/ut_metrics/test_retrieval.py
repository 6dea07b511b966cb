"""Recall at k against a loop over all rows, and scikit-learn's neighbours."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from onnxcustom.exceptions import InvalidDataError, InvalidParameterError, UnknownNameError
from onnxcustom.metrics import recall_at_k, retrieval


def by_loop(x: np.ndarray, y: np.ndarray, k: int, distance: str) -> np.ndarray:
    found = np.full(len(x), np.nan)
    for i in range(len(x)):
        if distance == "cosine":
            apart = [1 - a @ x[i] / np.linalg.norm(a) / np.linalg.norm(x[i]) for a in x]
        else:
            apart = [np.linalg.norm(a - x[i]) for a in x]
        own = [apart[j] for j in range(len(x)) if j != i and y[j] == y[i]]
        if own:
            found[i] = sum(apart[j] <= min(own) + 1e-9 for j in range(len(x)) if y[j] != y[i]) < k
    return found


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@given(st.integers(2, 12), st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**31))
def test_against_a_loop(distance: str, rows: int, classes: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(rows, 3)), rng.integers(0, classes, rows)
    x[rng.random(rows) < 0.3] = x[0]  # some are alike
    found, weights = by_loop(x, y, k, distance), rng.uniform(0.5, 2, rows)
    there = ~np.isnan(found)
    if not there.any():
        assert np.isnan(recall_at_k(x, y, k, distance))
        return
    assert recall_at_k(x, y, k, distance) == pytest.approx(found[there].mean())
    mean = np.average(found[there], weights=weights[there])
    assert recall_at_k(x, y, k, distance, weights) == pytest.approx(mean)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_against_neighbours(distance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "_BLOCK", 1000)  # several blocks
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(60), 2)  # pairs
    x = (rng.normal(size=(60, 8))[y] + rng.normal(size=(120, 8))).astype(np.float32)
    near = NearestNeighbors(n_neighbors=4, metric=distance).fit(x).kneighbors(return_distance=False)
    for k in (1, 3):
        hits = (y[near[:, :k]] == y[:, None]).any(axis=1)
        assert 0.1 < recall_at_k(x, y, k, distance) == pytest.approx(hits.mean())


def test_embeddings_that_are_all_alike_find_nothing() -> None:
    x = np.full((40, 7), 0.3, dtype=np.float32)
    for distance in ("cosine", "euclidean"):
        assert recall_at_k(x, np.arange(40) // 2, 1, distance) == 0
    assert recall_at_k(np.zeros((4, 2)), [0, 0, 1, 1]) == 0
    assert np.isnan(recall_at_k(x, np.arange(40)))


def test_what_there_is_not() -> None:
    x, y = np.eye(3), [0, 1, 0]
    with pytest.raises(UnknownNameError, match="'cosine' or 'euclidean'"):
        recall_at_k(x, y, distance="manhattan")
    with pytest.raises(InvalidParameterError, match="k must be"):
        recall_at_k(x, y, 0)
    for bad in ((x[:2], y), (x[None], y), (x * np.nan, y), (x, y, 1, "cosine", [1, 2])):
        with pytest.raises(InvalidDataError):
            recall_at_k(*bad)
