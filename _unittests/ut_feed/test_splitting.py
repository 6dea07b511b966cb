from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcustom.exceptions import InvalidDataError
from onnxcustom.feed.splitting import hold_out


@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(2, 60),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**64 - 1),
    classes=st.integers(0, 4),
)
def test_every_row_is_in_one_part(rows, fraction, seed, classes):
    X, y, w = np.arange(rows)[:, None], np.arange(rows) * 2, np.arange(rows) * 3
    labels = np.random.default_rng(0).integers(0, classes, rows) if classes else None
    X1, y1, w1, X2, y2, w2 = hold_out(X, y, w, fraction, seed, labels)
    assert sorted([*X1[:, 0], *X2[:, 0]]) == list(range(rows))
    assert (y1 == 2 * X1[:, 0]).all()
    assert (w1 == 3 * X1[:, 0]).all()
    assert (y2 == 2 * X2[:, 0]).all()
    assert (w2 == 3 * X2[:, 0]).all()
    assert len(X2) == min(max(1, round(rows * fraction)), rows - 1)
    again = hold_out(X, y, w, fraction, seed, labels)
    np.testing.assert_array_equal(X2, again[3])


@pytest.mark.parametrize("sizes", [(90, 10), (50, 30, 20), (98, 2)])
def test_classes_keep_their_shares(sizes):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    for seed in range(5):
        *_, held, _ = hold_out(labels[:, None], labels, None, 0.5, seed, labels)
        counts = np.bincount(held, minlength=len(sizes))
        assert (abs(counts - np.array(sizes) / 2) <= 1).all()


def test_another_seed_is_another_choice():
    X = np.arange(100)[:, None]
    one, other = (hold_out(X, X[:, 0], None, 0.3, seed)[3] for seed in (0, 1))
    assert not np.array_equal(one, other)


def test_dicts_frames_and_lists():
    X = {"a": pd.DataFrame({"c": range(10)}), "b": np.arange(20).reshape(10, 2)}
    X1, y1, w1, X2, y2, w2 = hold_out(X, list(range(10)), np.array(2.0), 0.2, 0)
    assert list(X1["a"]["c"]) == list(y1) == list(X1["b"][:, 0] // 2)
    assert list(X2["a"]["c"]) == list(y2)
    assert (len(y1), len(y2), w1, w2) == (8, 2, 2.0, 2.0)


@pytest.mark.parametrize("kind", ["coo", "csr", "csc", "bsr", "dia"])
def test_sparse_rows(kind):
    X = scipy.sparse.random(20, 3, 0.5, random_state=0).asformat(kind)
    X1, y1, _, X2, y2, _ = hold_out(X, np.arange(20), None, 0.2, 0)
    np.testing.assert_array_equal(X1.toarray(), X.toarray()[y1])
    np.testing.assert_array_equal(X2.toarray(), X.toarray()[y2])


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, np.nan, "some", True, 3])
def test_fractions_that_are_none(fraction):
    with pytest.raises(InvalidDataError, match="validation_fraction"):
        hold_out(np.zeros((4, 1)), np.zeros(4), None, fraction, 0)


def test_one_row_is_too_few():
    with pytest.raises(InvalidDataError, match="there are 1"):
        hold_out(np.zeros((1, 1)), np.zeros(1), None, 0.5, 0)
