"""Error rates against the definition of the edit distance."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcustom.exceptions import InvalidDataError, InvalidParameterError
from onnxcustom.metrics import character_error_rate, edit_distance, word_error_rate


def levenshtein(a, b) -> int:
    """By recursion, as it is defined."""

    @functools.cache
    def of(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        replaced = of(i - 1, j - 1) + (a[i - 1] != b[j - 1])
        return min(of(i - 1, j) + 1, of(i, j - 1) + 1, replaced)

    return of(len(a), len(b))


texts = st.text("ab c", max_size=9)


@given(texts, texts)
def test_edit_distance(a: str, b: str) -> None:
    assert edit_distance(a, b) == levenshtein(a, b) == edit_distance(list(b), list(a))


@given(st.lists(st.tuples(texts, texts, st.floats(0.1, 3)), min_size=1, max_size=4))
def test_rates_are_sums_over_sums(rows) -> None:
    expected, predicted, weights = zip(*rows, strict=True)
    for rate, parts, told in ((character_error_rate, list, {}), (word_error_rate, str.split, {"space": 2})):
        edits = [levenshtein(parts(a), parts(b)) for a, b in zip(expected, predicted, strict=True)]
        lengths = [len(parts(a)) for a in expected]
        if sum(lengths):
            assert rate(expected, predicted) == pytest.approx(sum(edits) / sum(lengths))
            mean = np.dot(edits, weights) / np.dot(lengths, weights)
            assert rate(expected, predicted, sample_weight=weights) == pytest.approx(mean)
        else:
            assert rate(expected, predicted) == (np.inf if sum(edits) else 0)
        # As labels, padded by -1 or -100 and in any dtype.
        numbers = [
            [["a", "b", " ", "c"].index(letter) for letter in text] for text in (*expected, *predicted)
        ]
        for fill, dtype in ((-1, np.int64), (-100, np.float32)):
            padded = np.full((len(numbers), 12), fill, dtype=dtype)
            for row, labels in zip(padded, numbers, strict=True):
                row[: len(labels)] = labels
            halves = np.split(padded, 2)
            assert rate(*halves, **told) == rate(expected, predicted)


def test_what_cannot_be_compared() -> None:
    with pytest.raises(InvalidDataError, match="1 expected ones, 2 predicted"):
        character_error_rate(["a"], ["a", "b"])
    with pytest.raises(InvalidDataError, match="and 2 weights"):
        character_error_rate(["a"], ["a"], [1, 1])
    with pytest.raises(InvalidParameterError, match="space=3"):
        word_error_rate([[1, 2]], [[1, 2]])
    with pytest.raises(InvalidDataError, match="A row of labels must be an array"):
        character_error_rate([3], [3])
    with pytest.raises(InvalidDataError, match="texts or rows of labels"):
        character_error_rate([[[3]]], [[[3]]])
