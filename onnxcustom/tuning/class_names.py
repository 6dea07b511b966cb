"""Names of classes in the metadata of a file."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

__all__ = ["rename_classes"]

# Words that keys of such entries hold, and those of entries that name something else.
_WORDS = ("categor", "character", "class", "label", "name", "target")
_OTHERS = ("author", "column", "feature", "input", "license")
# Names that a decoder adds by itself, as the blank of CTC.
_ADDED = 2

_Write = Callable[[Sequence[Any]], str]


def rename_classes(
    metadata: MutableMapping[str, str], size: int | None, labels: Sequence[Any] | None
) -> list[str]:
    """Put other names in the place of those of a file's classes, in the form that they have.

    Parameters
    ----------
    metadata : dict of str to str
        Changed in place.
    size : int or None
        How many classes there were.
    labels : sequence, optional
        The new ones. None: entries are dropped.

    Returns
    -------
    list of str
        Keys of entries that were dropped.

    Examples
    --------
    >>> metadata = {"names": "{0: 'cat', 1: 'dog'}", "author": "somebody"}
    >>> rename_classes(metadata, 2, ["red", "green", "blue"]), metadata["names"]
    ([], "{0: 'red', 1: 'green', 2: 'blue'}")
    """
    dropped = []
    for key in list(metadata):
        low = key.lower()
        if not any(w in low for w in _WORDS) or any(w in low for w in _OTHERS):
            continue
        found = _parsed(metadata[key])
        if found is None or size is None or not 0 <= size - found[0] <= _ADDED:
            continue
        if labels is not None and found[0] == size:
            metadata[key] = found[1](labels)
        else:
            del metadata[key]
            dropped.append(key)
    return dropped


def _parsed(text: str) -> tuple[int, _Write] | None:
    """How many names an entry holds, and what writes others in its form."""
    for read, write in ((json.loads, json.dumps), (ast.literal_eval, repr)):
        try:
            held = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(held, (list, tuple)) and len(held) > 1:
            return len(held), lambda labels, write=write: write(list(labels))
        if isinstance(held, dict) and len(held) > 1:
            return len(held), _of_dict(held, write)
        return None
    for mark in ("\n", ","):
        parts = text.strip(mark).split(mark)
        if len(parts) > 1:
            return len(parts), lambda labels, mark=mark: mark.join(map(str, labels))
    return None


def _of_dict(held: dict[Any, Any], write: Callable[[Any], str]) -> _Write:
    """Names by their places, or places by their names."""
    key = next(iter(held))
    if isinstance(held[key], int) and not isinstance(key, int):
        return lambda labels: write({str(label): i for i, label in enumerate(labels)})
    kind = type(key)
    return lambda labels: write({kind(i): str(label) for i, label in enumerate(labels)})
