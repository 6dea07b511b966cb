"""One array, frame or list as a tensor of a model wants it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from sklearn.utils.validation import check_array

from onnxcustom._text import capital, count
from onnxcustom.data.frames import (
    UnfitError,
    as_array,
    column_getter,
    column_names,
    find_unfit,
    is_column,
    is_frame,
    is_plain,
    joined,
    library,
    numbers,
    refuse_masked,
)
from onnxcustom.data.naming import ColumnCountError, in_order, naming, without_index
from onnxcustom.data.sparse import SparseRows, is_sparse
from onnxcustom.exceptions import InvalidDataError
from onnxcustom.graph.trainable.finding import all_finite
from onnxcustom.runtime.bfloat16 import WAY_OUT
from onnxcustom.runtime.tensors import check_places

from .specs import TensorSpec, shape_text

__all__ = ["as_tensor", "check_not_masked", "dense", "dimensions", "is_named", "ordered"]

# What sparse rows may take as dense ones where all of them are needed at once.
_DENSE_BYTES = 2**31


def ordered(data: Any, spec: TensorSpec) -> Any:
    """A frame with its columns as the model takes them, if the model knows their names; the rest as it is.

    Columns that pandas takes for the index of a frame are no features.

    Raises
    ------
    InvalidDataError
        The frame has other columns.
    """
    if isinstance(data, np.ndarray) or not is_frame(data):
        return data
    data = without_index(data)
    return data if spec.columns is None else in_order(data, spec.columns, f"Input {spec.name!r}")


def as_tensor(data: Any, spec: TensorSpec, what: str, whole: bool = False, sparse: bool = False) -> Any:
    """One array as its tensor wants it.

    All of the features (`whole`) follow scikit-learn's rules: a matrix is not made out of a list.
    """
    if spec.dtype is not None and spec.dtype.kind not in "fiub":
        way_out = f". {WAY_OUT}" if spec.dtype.name == "bfloat16" else ": encode it as numbers first."
        raise InvalidDataError(f"{what} takes {spec.dtype}, which cannot be bound in training{way_out}")
    check_not_masked(data, what)
    data = ordered(data, spec)
    matrix = whole and (spec.rank is None or spec.rank >= 2)
    if is_sparse(data):
        return _as_sparse(data, spec, what, sparse and spec.axis == 0)
    number = spec.shape is None and spec.axis is None and getattr(data, "ndim", None) == 0
    if number or (spec.shape == () and not (spec.each and np.ndim(data) == 1)):
        return _cast(_as_number(data, spec, what), spec, what)
    with _placed(data, spec, what):
        array = _checked(_plain(data, spec, what), spec, what, matrix)
    if not matrix and not spec.each:
        array = _reshaped(array, spec)
    with naming(lambda _: column_names(data) if is_frame(data) else spec.columns):
        _check_shape(array, spec, what)
    with _placed(data, spec, what):
        array = _cast(array, spec, what)
    if spec.places is not None:
        check_places(array, spec.places, spec.name, spec.axis)
    return array


@contextlib.contextmanager
def _placed(data: Any, spec: TensorSpec, what: str) -> Iterator[None]:
    """Let an error say which column and row of a frame it is about; only then they are looked at."""
    try:
        yield
    except InvalidDataError as exc:
        if isinstance(data, np.ndarray) or isinstance(exc.__cause__, UnfitError):
            raise
        found = find_unfit(data, spec.dtype) if is_frame(data) or is_column(data) else None
        if found is None:
            raise
        raise type(exc)(f"{capital(what)}: {found}.") from exc


def check_not_masked(data: Any, what: str) -> None:
    """Refuse an array of numpy.ma with masked values.

    Raises
    ------
    InvalidDataError
        Saying what it was given as.
    """
    try:
        refuse_masked(data)
    except UnfitError as exc:
        raise InvalidDataError(f"{capital(what)}: {exc}") from exc


def _as_number(data: Any, spec: TensorSpec, what: str) -> np.ndarray:
    """A tensor without dimensions."""
    try:
        array = np.asarray(data)
    except ValueError as exc:  # lists of several lengths
        raise InvalidDataError(f"{capital(what)} wants one number: {exc}") from exc
    if array.size != 1 or array.dtype.kind not in "fiub":
        raise InvalidDataError(
            f"{capital(what)} wants one number for the batch, the data has shape {array.shape} and dtype "
            f"{array.dtype}."
        )
    floating = spec.dtype is not None and spec.dtype.kind == "f"
    with np.errstate(over="ignore"):
        array = array.reshape(()).astype(spec.dtype if floating else array.dtype)
    if array.dtype.kind == "f" and not np.isfinite(array):
        raise InvalidDataError(f"{capital(what)} is {array}: NaN and infinity cannot be trained on.")
    return array


def _as_sparse(data: Any, spec: TensorSpec, what: str, keep: bool) -> Any:
    """A sparse matrix by rows, or as a dense array if that is not too large."""
    floating = spec.dtype is not None and spec.dtype.kind == "f"
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            made = check_array(
                data, dtype=spec.dtype if floating else "numeric", accept_sparse="csr", input_name=spec.name
            )
    except (TypeError, ValueError) as exc:
        raise InvalidDataError(f"{capital(what)}: {_without_numbers(exc)}") from exc
    _check_shape(made, spec, what)
    if spec.dtype is not None and made.dtype != spec.dtype:
        made = type(made)((_cast(made.data, spec, what), made.indices, made.indptr), shape=made.shape)
    rows = SparseRows(made)
    return rows if keep else dense(rows, what)


def dense(rows: SparseRows, what: str) -> np.ndarray:
    """All of some sparse rows as one array.

    Raises
    ------
    InvalidDataError
        It would take more than 2 GB.
    """
    if rows.nbytes > _DENSE_BYTES:
        raise InvalidDataError(
            f"{capital(what)} is a sparse matrix of {count(len(rows), 'row')}, which take "
            f"{rows.nbytes / 2**30:.1f} GB as dense ones: give fewer rows at a time."
        )
    return rows[:]


def _plain(data: Any, spec: TensorSpec, what: str) -> Any:
    """As an array what scikit-learn's check would not take for one; the rest as it is."""
    if isinstance(data, np.ndarray):
        if data.dtype.kind in "mM":  # scikit-learn's check counts their ticks
            raise InvalidDataError(f"{capital(what)}: {data.dtype} is no type of numbers: convert it.")
        if data.dtype.kind in "US" and data.size:
            raise _text_error(what, data.flat[0])
        return data
    first = data
    while isinstance(first, (list, tuple)) and first:
        first = first[0]
    if isinstance(first, (str, bytes)):
        raise _text_error(what, first)
    if not (is_frame(data) or is_column(data) or hasattr(data, "__array__")):
        return data
    if library(data) == "pandas" and (is_plain(data) or not _are_unique(data)) and not _holds_lists(data):
        return data
    try:
        if not is_frame(data):
            name = getattr(data, "name", None)
            name = None if name in (None, "") else str(name)
            array = _named(name, data)
            return numbers(array, name) if is_column(data) else array
        dtype = spec.dtype if spec.dtype is not None and spec.dtype.kind == "f" else None
        column = column_getter(data)
        return joined({name: _named(name, column(name)) for name in column_names(data)}, dtype)
    except (UnfitError, TypeError, ValueError, RuntimeError) as exc:
        raise InvalidDataError(f"{capital(what)}: {exc}") from exc


def _text_error(what: str, first: Any) -> InvalidDataError:
    return InvalidDataError(f"{capital(what)} is text, such as {str(first)!r}: convert it to numbers first.")


def _are_unique(data: Any) -> bool:
    return not is_frame(data) or len(set(column_names(data))) == len(data.columns)


def _named(name: str | None, column: Any) -> np.ndarray:
    try:
        return as_array(column)
    except UnfitError as exc:
        raise UnfitError(exc.what, exc.row, name) from None


def _holds_lists(data: Any) -> bool:
    """Whether a frame or Series of pandas has lists in its first row."""
    if not len(data):
        return False
    first = data.iloc[0]
    return any(
        isinstance(value, (list, tuple, np.ndarray)) for value in (first if is_frame(data) else [first])
    )


def _checked(data: Any, spec: TensorSpec, what: str, matrix: bool) -> np.ndarray:
    """A finite numeric array in C order, converted once if it is to be floating-point."""
    if _is_ready(data, spec, matrix):  # a batch of a user's own loop: all that follows costs more than a step
        return data
    floating = spec.dtype is not None and spec.dtype.kind == "f"
    try:
        # Numbers too large for the dtype become infinite, which is then an error, not a warning.
        with np.errstate(over="ignore", invalid="ignore"):
            return check_array(
                data,
                dtype=spec.dtype if floating else "numeric",
                order="C",
                allow_nd=True,
                ensure_2d=matrix,
                ensure_min_features=1 if matrix else 0,
                input_name=spec.name if what.startswith("input") else what,
            )
    except TypeError as exc:
        raise _TypeOfDataError(f"{capital(what)}: {exc}") from exc
    except (ValueError, OverflowError) as exc:
        raise InvalidDataError(f"{capital(what)}: {_without_numbers(exc)}") from exc


def _without_numbers(exc: Exception) -> str:
    """What scikit-learn says of data, without all of these."""
    lines = str(exc).splitlines() or [type(exc).__name__]
    return lines[0] if lines[0].startswith("Complex data") else "\n".join(lines)


class _TypeOfDataError(InvalidDataError, TypeError):
    """Objects that are no numbers: scikit-learn's estimators raise a TypeError then."""


def _is_ready(data: Any, spec: TensorSpec, matrix: bool) -> bool:
    """Whether data is an array that :func:`_checked` would return as it is."""
    return (
        type(data) is np.ndarray
        and data.dtype == spec.dtype
        and data.flags.c_contiguous
        and data.ndim >= (2 if matrix else 1)
        and data.size > 0
        and (data.dtype.kind != "f" or all_finite(data))
    )


def _reshaped(array: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """(n,) and (n, 1) are the same column; without a specification a matrix is meant.

    Columns beside each other, as in a table, are as good as pictures or sequences of as many numbers.
    """
    if spec.shape is not None and len(spec.shape) > 2 > array.ndim - 1 and spec.axis == 0 and len(array):
        sizes = [n for n in spec.shape[1:] if isinstance(n, int)]
        fits = len(sizes) == len(spec.shape) - 1 and math.prod(sizes) == array.size // len(array)
        return array.reshape(len(array), *sizes) if fits else array
    if array.ndim == 1 and spec.axis == 1 and spec.shape is not None and len(spec.shape) == 2:
        return array if isinstance(spec.shape[0], int) and spec.shape[0] != 1 else array.reshape(1, -1)
    if array.ndim == 1 and spec.shape is None:
        return array if spec.axis is None else array.reshape(-1, 1)
    if array.ndim == 1 and spec.shape is not None and len(spec.shape) == 2:
        columns = spec.shape[1]
        return array if isinstance(columns, int) and columns != 1 else array.reshape(-1, 1)
    if array.ndim == 2 and array.shape[1] == 1 and spec.rank == 1:
        return array.reshape(-1)
    return array


def _check_shape(array: np.ndarray, spec: TensorSpec, what: str) -> None:
    if spec.shape is None:
        return
    what = capital(what)
    if spec.is_each(array):
        array = array[0]
    if array.ndim != len(spec.shape):
        raise InvalidDataError(
            f"{what} wants {count(len(spec.shape), 'dimension')} {shape_text(spec.shape)}, the data has "
            f"{array.ndim}: {array.shape}."
        )
    for axis, (wanted, found) in enumerate(zip(spec.shape, array.shape, strict=True)):
        if axis == spec.axis or not isinstance(wanted, int) or wanted == found:
            continue
        if spec.axis is None:
            raise InvalidDataError(
                f"{what} is given once a batch, of shape {shape_text(spec.shape)}; the data has "
                f"{array.shape}. If one of its axes holds the rows, say so: "
                f"batch_axis={{{spec.name!r}: ...}}."
            )
        if array.ndim == 2:
            error = ColumnCountError(f"{what} wants {count(wanted, 'column')}, the data has {found}.")
            error.input = spec.name
            raise error
        raise InvalidDataError(
            f"{what} wants the shape {shape_text(spec.shape)}, the data has {array.shape}: dimension {axis} "
            f"is {found} in place of {wanted}."
        )


def _cast(array: np.ndarray, spec: TensorSpec, what: str) -> np.ndarray:
    """To an integer or boolean dtype, if no number changes by it."""
    if spec.dtype is None or array.dtype == spec.dtype:
        return array
    with np.errstate(invalid="ignore", over="ignore"):
        cast = array.astype(spec.dtype)
    changed = cast != array
    if changed.any():
        value = array[changed].flat[0]
        raise InvalidDataError(
            f"{capital(what)} wants {spec.dtype}, the data holds {value!s}, which it cannot represent."
        )
    return cast


def is_named(data: Any) -> bool:
    """Whether data is a dict of tensors; the sparse matrix that is a dict is not."""
    return isinstance(data, Mapping) and not is_sparse(data)


def dimensions(data: Any) -> int:
    """Number of dimensions of data of any kind, 0 if it has no shape."""
    shape = getattr(data, "shape", None)
    try:
        return len(shape) if isinstance(shape, tuple) else np.asarray(data).ndim
    except ValueError:  # rows of several lengths
        return 0
