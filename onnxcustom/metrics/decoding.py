"""From the scores of a CTC model to labels: the best path, and the best labels that a beam finds."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from onnxcustom._parameters import check_count
from onnxcustom.exceptions import InvalidDataError

from .given import as_array, as_numbers

__all__ = ["beam_search", "best_path"]


def best_path(scores: np.ndarray, blank: int = 0) -> list[np.ndarray]:
    """Labels of the most probable path: the best class of every frame, repeats merged, blanks left out.

    Parameters
    ----------
    scores : array_like of shape (N, T, C)
        Scores or probabilities of C classes in T frames.
    blank : int, default=0
        The class that says nothing.

    Returns
    -------
    list of ndarray
        Classes, one array a row.

    Raises
    ------
    InvalidDataError
        Scores of another rank, or no such class.

    References
    ----------
    A. Graves et al., Connectionist Temporal Classification, ICML 2006, section 3.2,
    https://doi.org/10.1145/1143844.1143891

    Examples
    --------
    >>> import numpy as np
    >>> frames = np.eye(3)[[1, 1, 0, 1, 2]]
    >>> best_path(frames[None])[0].tolist()
    [1, 1, 2]
    """
    best = _checked(scores, blank).argmax(axis=2)
    new = np.ones(best.shape, dtype=bool)
    new[:, 1:] = best[:, 1:] != best[:, :-1]
    return [row[said] for row, said in zip(best, new & (best != blank), strict=True)]


def beam_search(scores: np.ndarray, width: int = 10, blank: int = 0) -> list[np.ndarray]:
    """Most probable labels, all paths that say them counted, among those a beam of prefixes finds.

    The best path says the most probable path; several paths of other labels may be more probable together.
    After every frame the `width` most probable prefixes go on. With as many as there are, the result is
    exact.

    Parameters
    ----------
    scores : array_like of shape (N, T, C)
        Scores of C classes in T frames, or probabilities: numbers from 0 on that sum to 1.
    width : int, default=10
        Prefixes that are kept.
    blank : int, default=0
        The class that says nothing.

    Returns
    -------
    list of ndarray
        Classes, one array a row.

    Raises
    ------
    InvalidDataError
        Scores of another rank, or no such class.

    References
    ----------
    A. Hannun et al., First-Pass Large Vocabulary Continuous Speech Recognition using Bi-Directional Recurrent
    DNNs, 2014, algorithm 1 without a language model, https://arxiv.org/abs/1408.2873

    Examples
    --------
    Two frames, each blank with probability 0.6: "nothing" has one path, of 0.36, label 1 three, of 0.64.

    >>> import numpy as np
    >>> scores = np.array([[[0.6, 0.4], [0.6, 0.4]]])
    >>> best_path(scores)[0].tolist(), beam_search(scores)[0].tolist()
    ([], [1])
    """
    check_count("width", width)
    log_p = _log_probabilities(_checked(scores, blank))
    return [np.array(_beam(row, width, blank), dtype=np.int64) for row in log_p]


def _checked(scores: np.ndarray, blank: int) -> np.ndarray:
    scores = as_array("scores", scores)
    if scores.dtype.kind not in "biuf":
        scores = as_numbers("scores", scores)
    check_count("blank", blank, 0)
    if scores.ndim != 3 or blank >= scores.shape[2]:
        raise InvalidDataError(
            f"Decoding takes scores of shape (rows, frames, classes) with class {blank} for blanks, not of "
            f"shape {scores.shape}."
        )
    return scores


def _log_probabilities(scores: np.ndarray) -> np.ndarray:
    """Logarithms of probabilities, of scores or of probabilities, in float64."""
    x = scores.astype(np.float64)
    if x.size and x.min() >= 0 and np.allclose(x.sum(axis=2), 1, atol=1e-3):
        with np.errstate(divide="ignore"):
            return np.log(x)
    x = x - x.max(axis=2, keepdims=True, initial=-np.inf)
    return x - np.log(np.exp(x).sum(axis=2, keepdims=True))


def _beam(log_p: np.ndarray, width: int, blank: int) -> tuple[int, ...]:
    """The best labels of one row."""
    # Of each prefix: probability that its last frame was a blank, and that it was its last label.
    beam: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, -math.inf)}
    for frame in log_p:
        made: dict[tuple[int, ...], tuple[float, float]] = {}
        classes = _candidates(frame, width, blank, beam)
        for prefix, (silent, said) in beam.items():
            both = _add(silent, said)
            _gain(made, prefix, both + frame[blank], -math.inf)
            for label in classes:
                if prefix and label == prefix[-1]:  # again in the same breath, or after a blank
                    _gain(made, prefix, -math.inf, said + frame[label])
                    _gain(made, (*prefix, label), -math.inf, silent + frame[label])
                else:
                    _gain(made, (*prefix, label), -math.inf, both + frame[label])
        best = sorted(made.items(), key=lambda item: (-_add(*item[1]), item[0]))
        beam = dict(best[:width])
    return min(beam.items(), key=lambda item: (-_add(*item[1]), item[0]))[0]


def _candidates(frame: np.ndarray, width: int, blank: int, beam: Iterable[tuple[int, ...]]) -> list[int]:
    """Labels that may be said in a frame: of any others, `width` better prefixes would be known."""
    last = {prefix[-1] for prefix in beam if prefix}
    count = width + 1 + len(last)
    # All of them where there are no more.
    likely = range(len(frame)) if count >= len(frame) else np.argpartition(-frame, count)[:count].tolist()
    return sorted(label for label in {*likely, *last} if label != blank and frame[label] > -math.inf)


def _gain(
    made: dict[tuple[int, ...], tuple[float, float]], prefix: tuple[int, ...], silent: float, said: float
) -> None:
    """Add the probability of more paths to a prefix."""
    before = made.get(prefix, (-math.inf, -math.inf))
    made[prefix] = _add(before[0], silent), _add(before[1], said)


def _add(a: float, b: float) -> float:
    """Logarithm of the sum of two numbers that are given by theirs."""
    if a < b:
        a, b = b, a
    return a if b == -math.inf else a + math.log1p(math.exp(b - a))
