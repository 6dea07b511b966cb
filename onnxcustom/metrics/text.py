"""How far texts, or rows of labels, are from those expected."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from onnxcustom._parameters import check_count
from onnxcustom.exceptions import InvalidDataError, InvalidParameterError

from .given import as_array, as_list, as_weights

__all__ = ["character_error_rate", "edit_distance", "word_error_rate"]


def edit_distance(a: Iterable[Any], b: Iterable[Any]) -> int:
    """Fewest insertions, deletions and replacements that make one sequence of the other.

    Parameters
    ----------
    a, b : iterable
        Texts, or sequences of anything that can be compared.

    Returns
    -------
    int

    References
    ----------
    V. Levenshtein, Binary codes capable of correcting deletions, insertions, and reversals, 1966; row by row
    as in R. Wagner and M. Fischer, The String-to-String Correction Problem, 1974,
    https://doi.org/10.1145/321796.321811

    Examples
    --------
    >>> edit_distance("kitten", "sitting")
    3
    """
    numbers: dict[Any, int] = {}
    try:
        x, y = (
            [numbers.setdefault(v, len(numbers)) for v in as_list(*named)] for named in (("a", a), ("b", b))
        )
    except TypeError as exc:
        raise InvalidDataError(f"Sequences hold what cannot be compared: {exc}.") from exc
    columns, places = np.array(y, dtype=np.int64), np.arange(len(y) + 1)
    row = places
    for i, symbol in enumerate(x, 1):
        made = np.empty_like(row)
        made[0] = i
        made[1:] = np.minimum(row[1:] + 1, row[:-1] + (columns != symbol))
        # Insertions: each place may be reached from any before, one step a place.
        row = np.minimum.accumulate(made - places) + places
    return int(row[-1])


def character_error_rate(
    expected: Sequence[Any], predicted: Sequence[Any], sample_weight: Sequence[float] | None = None
) -> float:
    """Edits that predictions are away from what was expected, over the length of the latter; 0 is perfect.

    Lengths and edits are summed over all rows before they are divided.

    Parameters
    ----------
    expected, predicted : sequence of str, or of sequences of int
        Texts, or labels, of which those below 0 fill rows up and do not count.
    sample_weight : array_like of shape (n,), optional
        Of the rows.

    Returns
    -------
    float
        In [0, inf); infinite if something was predicted and nothing expected, in any row.

    Raises
    ------
    InvalidDataError
        Another number of rows.

    References
    ----------
    A. Morris, V. Maier and P. Green, From WER and RIL to MER and WIL, Interspeech 2004, section 2: word
    error rate, here of characters.

    Examples
    --------
    >>> character_error_rate(["hello", "you"], ["hallo", "you!"])
    0.25
    """
    return _rate(expected, predicted, lambda text: text, sample_weight)


def word_error_rate(
    expected: Sequence[Any],
    predicted: Sequence[Any],
    space: int | None = None,
    sample_weight: Sequence[float] | None = None,
) -> float:
    """The same for words: inserted, left out or replaced, over the number of words expected.

    Parameters
    ----------
    expected, predicted : sequence of str, or of sequences of int
        Texts, whose words are separated by white space, or labels.
    space : int, optional
        The label that separates words; labels need it.
    sample_weight : array_like of shape (n,), optional
        Of the rows.

    Returns
    -------
    float
        In [0, inf).

    Examples
    --------
    >>> word_error_rate(["the cat sat"], ["the cat sat down"])
    0.3333333333333333
    >>> word_error_rate([[1, 2, 0, 3]], [[1, 0, 3]], space=0)
    0.5
    """

    def words(text: Any) -> list[Any]:
        if isinstance(text, str):
            return text.split()
        if space is not None:
            check_count("space", space, 0)
        else:
            raise InvalidParameterError(
                "The word error rate of labels needs the one that separates words: space=3, say."
            )
        found, labels = [], list(text)
        while labels:
            end = labels.index(space) if space in labels else len(labels)
            found.append(tuple(labels[:end]))
            labels = labels[end + 1 :]
        return [word for word in found if word]

    return _rate(expected, predicted, words, sample_weight)


def _rate(
    expected: Sequence[Any], predicted: Sequence[Any], parts: Callable[[Any], Any], weights: Any
) -> float:
    expected, predicted = as_list("expected", expected), as_list("predicted", predicted)
    if len(expected) != len(predicted) or (weights is not None and np.size(weights) != len(expected)):
        raise InvalidDataError(
            f"An error rate compares rows one by one: there are {len(expected)} expected ones, "
            f"{len(predicted)} predicted" + ("." if weights is None else f" and {np.size(weights)} weights.")
        )
    edits = length = 0.0
    weights = as_weights(weights, len(expected))
    for a, b, weight in zip(expected, predicted, weights.tolist(), strict=True):
        wanted, said = parts(_symbols(a)), parts(_symbols(b))
        edits += weight * edit_distance(wanted, said)
        length += weight * len(wanted)
    return edits / length if length else (np.inf if edits else 0.0)


def _symbols(row: Any) -> Any:
    """A text as it is; labels as a list, without what fills rows up."""
    if isinstance(row, str):
        return row
    array = as_array("A row of labels", row)
    if array.ndim != 1 or array.dtype.kind not in "biuf":
        raise InvalidDataError(
            f"Error rates take texts or rows of labels, whole numbers, not {type(row).__name__} of shape "
            f"{array.shape} and dtype {array.dtype}."
        )
    return array[array >= 0].astype(np.int64).tolist()
