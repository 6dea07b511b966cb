"""Copies of data that its owner may overwrite while it is in use."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .frames import is_column, is_frame
from .sparse import is_sparse

__all__ = ["owned", "owned_parts", "sealed"]

# Bytes that are copied though nobody but another thread could write to them.
_LARGE = 2**28


def owned(data: Any) -> Any:
    """Data in memory of its own.

    Arrays that are mapped for reading only, and tables of pyarrow, nobody can write to: they are returned as
    they are, as is what holds no data.

    Parameters
    ----------
    data : array_like, frame, sparse matrix or dict of them
        Features, expected values or weights as a user has them.

    Examples
    --------
    >>> given = np.zeros(2)
    >>> own = owned({"x": given})
    >>> given[:] = 1
    >>> own
    {'x': array([0., 0.])}
    """
    if isinstance(data, np.ndarray):
        return data if getattr(data, "mode", None) == "r" else data.copy()
    if is_sparse(data):
        return data.copy()
    if isinstance(data, Mapping):
        return {name: owned(part) for name, part in data.items()}
    if isinstance(data, (list, tuple)):
        return _owned_list(data)
    if is_frame(data) or is_column(data):
        duplicate = getattr(data, "copy", None) or getattr(data, "clone", None)  # of pandas, of polars
        return data if duplicate is None else duplicate()
    if not hasattr(data, "__array__") or isinstance(data, np.generic):
        return data
    try:
        return np.asarray(data).copy()  # PyTorch's tensors warn of np.array
    except Exception:  # who converts it says what is wrong
        return data


def _owned_list(data: Any) -> Any:
    """A list of rows; of lists of numbers a plain copy is enough."""
    if data and isinstance(data[0], (list, tuple, np.ndarray)):
        return type(data)(map(owned, data)) if type(data) in (list, tuple) else copy.deepcopy(data)
    return copy.copy(data)


def owned_parts(parts: Sequence[Any], watched: bool) -> list[Any]:
    """Features, expected values, weights ... as :func:`owned` makes them, for as long as training lasts.

    Parameters
    ----------
    parts : sequence
        Each of them, None for what there is not.
    watched : bool
        Whether code of others runs meanwhile. If not, more than 256 MB are left where they are.
    """
    if not watched and sum(map(_bytes_of, parts)) > _LARGE:
        return list(parts)
    return [owned(part) for part in parts]


def sealed(data: Any) -> Any:
    """Views of arrays that cannot be written to, alone or in a dict; other data as it is."""
    if isinstance(data, Mapping) and not is_sparse(data):
        return {name: sealed(part) for name, part in data.items()}
    if not isinstance(data, np.ndarray):
        return data
    view = data.view()
    view.flags.writeable = False
    return view


def _bytes_of(data: Any) -> int:
    """Memory that data takes, 0 where it does not say."""
    if is_sparse(data):
        return 2 * int(getattr(data, "nnz", 0)) * data.dtype.itemsize
    if isinstance(data, Mapping):
        return sum(map(_bytes_of, data.values()))
    for name in ("nbytes", "estimated_size", "memory_usage"):
        found = getattr(data, name, None)
        if found is not None:
            return int(np.sum(found() if callable(found) else found))
    return 0
