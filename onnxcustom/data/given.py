"""What a user may hand to ``fit`` for data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxcustom.exceptions import InvalidDataError

from .frames import is_frame
from .streams import Stream, stream

__all__ = ["as_data"]


def as_data(X: Any, y: Any) -> Any:
    """Features as they are; what holds batches of features and expected values as a stream.

    Parameters
    ----------
    X : array_like, frame, dict, Stream or iterable of batches
        An iterable of batches, such as ``torch.utils.data.DataLoader``, or a function that returns an
        iterator of them, where `y` is None.
    y : array_like, frame, dict or None
        Expected values.

    Raises
    ------
    InvalidDataError
        Expected values beside a stream, which has its own.
    """
    if isinstance(X, Stream):
        if y is not None:
            raise InvalidDataError(
                "A stream brings the expected values: name their column, stream(..., target='y')."
            )
        return X
    return stream(X) if y is None and _holds_batches(X) else X


def _holds_batches(X: Any) -> bool:
    plain = isinstance(X, (str, bytes, list, tuple, Mapping)) or is_frame(X)
    array = any(hasattr(X, name) for name in ("__array__", "shape", "__array_interface__"))
    return not (plain or array) and (callable(X) or hasattr(X, "__iter__"))
