"""Labels that are ignored; the rest is scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix

from onnxcustom.exceptions import InvalidDataError
from onnxcustom.metrics import mean_iou, token_accuracy

cases = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(2, 4), st.integers(0, 2**31))


@given(cases)
def test_against_the_formulas(case) -> None:
    rows, tokens, classes, seed = case
    rng = np.random.default_rng(seed)
    y, p = rng.integers(0, classes, (2, rows, tokens, 2))
    y[rng.random(y.shape) < 0.3] = -100
    kept = y != -100
    if not kept.any():
        assert np.isnan(token_accuracy(y, p))
        assert np.isnan(mean_iou(y, p))
        return
    weights = rng.uniform(0.5, 2, rows)
    by_label = np.broadcast_to(weights[:, None, None], y.shape)
    assert token_accuracy(y, p) == pytest.approx(accuracy_score(y[kept], p[kept]))
    weighed = ((y == p) * by_label)[kept].sum() / by_label[kept].sum()
    for given_weights in (weights, by_label):
        assert token_accuracy(y, p, sample_weight=given_weights) == pytest.approx(weighed)
    counts = confusion_matrix(y[kept], p[kept], labels=range(classes)).astype(float)
    union = counts.sum(0) + counts.sum(1) - np.diag(counts)
    assert mean_iou(y, p) == pytest.approx(np.mean((np.diag(counts) / np.maximum(union, 1))[union > 0]))
    assert mean_iou(y, p, sample_weight=weights) == mean_iou(y, p, sample_weight=by_label)


def test_another_label_is_ignored_or_none() -> None:
    y, p = [[0, 1, -1]], [[0, 1, 0]]
    assert token_accuracy(y, p, ignore_index=-1) == mean_iou(y, p, ignore_index=-1) == 1
    assert token_accuracy(y, p) == token_accuracy(y, p, None) == pytest.approx(2 / 3)
    assert token_accuracy([["a", "b"]], [["a", "a"]]) == 0.5
    assert token_accuracy(np.array(["a", "b"], dtype=object), np.array(["a", "a"])) == 0.5
    assert token_accuracy(y, p, sample_weight=[[1, 0, 1]]) == 0.5


def test_what_cannot_be_compared() -> None:
    with pytest.raises(InvalidDataError, match=r"\(1, 2\).*\(1, 3\)"):
        token_accuracy([[1, 2]], [[1, 2, 3]])
    with pytest.raises(InvalidDataError, match="each row or for each label"):
        mean_iou([[1, 2], [1, 2]], [[1, 2], [1, 2]], sample_weight=[1, 2, 3])
