"""Decoding against all paths of small alphabets."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcustom.exceptions import InvalidDataError
from onnxcustom.metrics import beam_search, best_path


def said(path: tuple[int, ...], blank: int) -> tuple[int, ...]:
    """Labels of a path, by the definition: repeats merged, blanks left out."""
    return tuple(label for label, _ in itertools.groupby(path) if label != blank)


def by_labels(p: np.ndarray, blank: int) -> dict[tuple[int, ...], float]:
    """Probability of all labels, summed over all paths."""
    made: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(p.shape[1]), repeat=len(p)):
        key = said(path, blank)
        made[key] = made.get(key, 0) + float(np.prod(p[np.arange(len(p)), path]))
    return made


def softmax(scores: np.ndarray) -> np.ndarray:
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


frames = st.tuples(st.integers(1, 5), st.integers(2, 4), st.integers(0, 2**31), st.booleans())


@given(frames)
def test_a_wide_beam_finds_the_most_probable_labels(case) -> None:
    length, classes, seed, probabilities = case
    rng = np.random.default_rng(seed)
    scores, blank = rng.normal(scale=2, size=(2, length, classes)), int(rng.integers(classes))
    found = beam_search(softmax(scores) if probabilities else scores, 1000, blank)
    for row, labels in zip(softmax(scores), found, strict=True):
        of_all = by_labels(row, blank)
        assert of_all[tuple(labels.tolist())] == pytest.approx(max(of_all.values()), rel=1e-9)


@given(frames)
def test_the_best_path_is_that_of_all_paths(case) -> None:
    length, classes, seed, _ = case
    rng = np.random.default_rng(seed)
    p, blank = softmax(rng.normal(size=(1, length, classes))), int(rng.integers(classes))
    paths = itertools.product(range(classes), repeat=length)
    best = max(paths, key=lambda path: np.prod(p[0, np.arange(length), path]))
    assert tuple(best_path(p, blank)[0].tolist()) == said(best, blank)


def test_of_many_classes_a_narrow_beam_leaves_out_only_what_is_worse() -> None:
    """Classes that are not looked at could not have been among the prefixes that are kept."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(3, 6, 30))
    for row in scores:
        beam = {(): (1.0, 0.0)}
        for frame in softmax(row):
            made: dict[tuple[int, ...], list[float]] = {}
            for prefix, (silent, again) in beam.items():
                here = made.setdefault(prefix, [0, 0])
                here[0] += (silent + again) * frame[0]
                for label in range(1, 30):
                    longer = made.setdefault((*prefix, label), [0, 0])
                    if prefix and prefix[-1] == label:
                        made[prefix][1] += again * frame[label]
                        longer[1] += silent * frame[label]
                    else:
                        longer[1] += (silent + again) * frame[label]
            beam = dict(sorted(made.items(), key=lambda item: -sum(item[1]))[:4])
        best = max(beam, key=lambda prefix: sum(beam[prefix]))
        assert tuple(beam_search(row[None], 4)[0].tolist()) == best


def test_impossible_classes_and_equal_ones() -> None:
    p = np.array([[[0, 1, 0], [1, 0, 0], [0, 1, 0]]], dtype=np.float32)
    assert beam_search(p)[0].tolist() == best_path(p)[0].tolist() == [1, 1]
    assert beam_search(np.zeros((1, 2, 3)), 1)[0].tolist() == best_path(np.zeros((1, 2, 3)))[0].tolist() == []
    assert beam_search(np.zeros((0, 2, 3))) == best_path(np.zeros((0, 2, 3))) == []
    assert [len(row) for row in beam_search(np.zeros((2, 0, 3)))] == [0, 0]


@pytest.mark.parametrize(("shape", "blank"), [((2, 3), 0), ((1, 2, 3), 3)])
@pytest.mark.parametrize("decode", [best_path, beam_search])
def test_other_shapes_are_refused(decode, shape, blank) -> None:
    with pytest.raises(InvalidDataError, match="rows, frames, classes"):
        decode(np.zeros(shape), blank=blank)
