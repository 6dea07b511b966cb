"""States as what JSON holds, and back: the one way in which rules, callbacks and checkpoints are written."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

__all__ = ["Path", "from_plain", "place", "to_plain"]

# Nesting of a state, and bits of an integer: more is a mistake, and could not be read again.
_DEEPEST = 100
_LONGEST = 10_000

#: Keys and positions that lead to a part of a state.
Path = tuple[Any, ...]


def to_plain(value: Any, what: str, convert: Callable[[Any, Path], Any] | None = None) -> Any:
    """A copy of a state as JSON gives it back.

    Parameters
    ----------
    value : object
        Numbers, NumPy's among them, texts, lists and mappings.
    what : str
        What errors call it.
    convert : callable, optional
        What stands for anything else, of it and of where it is: a mapping, which :func:`from_plain` hands
        back. Mappings are then written as pairs, since their keys may be no texts, or look like such a one.

    Raises
    ------
    TypeError, ValueError
        Something that JSON cannot hold, named by its place.

    Examples
    --------
    >>> to_plain({"a": (np.float64(1), None)}, "state")
    {'a': [1.0, None]}
    >>> to_plain({"a": {1j}}, "state", lambda value, path: {"text": str(value)})
    {'items': [['a', {'text': '{1j}'}]]}
    """
    return _plain(value, what, convert, ())


def _plain(value: Any, what: str, convert: Callable[[Any, Path], Any] | None, path: Path) -> Any:
    if len(path) > _DEEPEST:
        raise ValueError(f"{place(what, path)} is nested more than {_DEEPEST} deep, or holds itself.")
    if isinstance(value, (np.bool_, np.integer, np.floating)):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if value.bit_length() > _LONGEST:
            raise ValueError(f"{place(what, path)} is an integer of more than {_LONGEST} bits.")
        return int(value)
    for kind in (float, str):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        pairs = {k: _plain(v, what, convert, (*path, k)) for k, v in value.items()}
        if convert is not None:
            return {"items": [[_plain(k, what, convert, path), v] for k, v in pairs.items()]}
        for key in value:
            if not isinstance(key, str):
                key = reprlib.repr(key)
                raise TypeError(f"{place(what, path)} has the key {key}: JSON takes texts only.")
        return {str(k): v for k, v in pairs.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v, what, convert, (*path, i)) for i, v in enumerate(value)]
    if convert is not None:
        return convert(value, path)
    way = "give arrays among the tensors" if isinstance(value, np.ndarray) else "use numbers, texts and lists"
    raise TypeError(
        f"{place(what, path)} is {reprlib.repr(value)}, of type {type(value).__name__}, which JSON cannot "
        f"hold: {way}."
    )


def place(what: str, path: Path) -> str:
    """A part of a state as one would write it.

    Examples
    --------
    >>> place("state", ("a", 1))
    "state['a'][1]"
    """
    return what + "".join(f"[{str(k)!r}]" if isinstance(k, str) else f"[{k!r}]" for k in path)


def from_plain(value: Any, revive: Callable[[Mapping[str, Any]], Any]) -> Any:
    """What :func:`to_plain` has made plain with a function of the caller's.

    Parameters
    ----------
    value : object
        As JSON has given it back.
    revive : callable
        What a mapping stands for that `convert` gave.

    Examples
    --------
    >>> from_plain({"items": [["a", [{"text": "x"}]]]}, lambda made: made["text"].upper())
    {'a': ['X']}
    """
    if isinstance(value, Mapping):
        for name in ("items", "mapping"):  # "mapping" and "list" are those of older versions
            if name in value:
                return {key: from_plain(v, revive) for key, v in value[name]}
        return from_plain(value["list"], revive) if "list" in value else revive(value)
    return [from_plain(v, revive) for v in value] if isinstance(value, list) else value
