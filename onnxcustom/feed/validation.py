"""Checks and conversions of what a user trains on, before anything of a training changes."""

from __future__ import annotations

import contextlib
import numbers
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from sklearn.utils.validation import check_array

from onnxcustom.data import Stream
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
    refuse_masked,
)
from onnxcustom.data.frames import numbers as numbers_of
from onnxcustom.data.naming import ColumnCountError, in_order, naming, without_index
from onnxcustom.data.sparse import SparseRows, is_sparse
from onnxcustom.exceptions import InvalidDataError, UnknownNameError
from onnxcustom.graph import to_ir
from onnxcustom.graph.analysis.lookups import Places, lookups
from onnxcustom.graph.files.feature_names import read_feature_names
from onnxcustom.graph.trainable.finding import all_finite
from onnxcustom.runtime.bfloat16 import WAY_OUT

from .tensors import check_places

__all__ = [
    "TensorSpec",
    "as_inputs",
    "as_sample_weight",
    "as_targets",
    "check_batch_size",
    "check_in_memory",
    "count",
    "dense",
    "dimensions",
    "input_specs",
    "is_named",
    "of_batch",
    "ordered",
    "row_count",
    "rows_of",
    "some_rows",
    "tensor_specs",
    "weights_of",
    "with_axis",
    "with_limits",
]


# What sparse rows may take as dense ones where all of them are needed at once.
_DENSE_BYTES = 2**31


@dataclass(frozen=True)
class TensorSpec:
    """What a graph input wants.

    Parameters
    ----------
    name : str
        Its name, for messages.
    dtype : dtype, optional
        Its dtype; None leaves the data's own.
    shape : tuple, optional
        Its dimensions, int where they are fixed; None leaves them free.
    axis : int or None, default=0
        Axis of the rows. Without one, it is given once a batch, as it is.
    each : bool, default=False
        Whether, without such an axis, data may have one of it for each row, along an axis in front:
        where the model takes a single row at a time.
    weighed : bool, default=False
        Whether weights may have its shape rather than one number a row.
    columns : tuple of str, optional
        Names of the columns, if the model knows them: a frame has these, in any order.
    places : Places, optional
        The integers that it may hold, where they are looked up in a table.
    """

    name: str
    dtype: np.dtype | None = None
    shape: tuple[int | str | None, ...] | None = None
    axis: int | None = 0
    each: bool = False
    weighed: bool = False
    columns: tuple[str, ...] | None = None
    places: Places | None = None

    @property
    def rank(self) -> int | None:
        """Number of dimensions, None if free."""
        return None if self.shape is None else len(self.shape)

    @property
    def rows(self) -> int | None:
        """Number of rows, where the model fixes it."""
        size = self.shape[self.axis] if self.shape and self.axis is not None else None
        return size if isinstance(size, int) else None

    def is_each(self, array: Any) -> bool:
        """Whether an array holds one of it for each row."""
        return self.each and self.rank is not None and array.ndim == self.rank + 1


def with_axis(spec: TensorSpec, axis: int | None, fixed: int | None) -> TensorSpec:
    """A specification with its rows on an axis, of a model that fixes the rows of a batch, or not."""
    return replace(spec, axis=axis, each=axis is None and fixed == 1)


def row_count(array: Any, spec: TensorSpec) -> int | None:
    """Rows of an array, None if it is given once a batch."""
    if spec.is_each(array):
        return len(array)
    return None if spec.axis is None else array.shape[spec.axis]


def rows_of(arrays: Mapping[str, Any], specs: Iterable[TensorSpec]) -> int:
    """Rows of a batch: 1 if none of its arrays has an axis of rows."""
    counts = (row_count(arrays[spec.name], spec) for spec in specs)
    return next((n for n in counts if n is not None), 1)


def some_rows(array: Any, spec: TensorSpec, rows: Any) -> Any:
    """Some of the rows, a slice or indices, of an array; all of what is given once a batch."""
    if spec.is_each(array):
        return array[rows]
    return array if spec.axis is None else array[(slice(None),) * spec.axis + (rows,)]


def of_batch(array: Any, spec: TensorSpec) -> Any:
    """An array of the rows of one batch as the model takes it.

    Raises
    ------
    InvalidDataError
        It holds one of it for each of several rows.
    """
    if not spec.is_each(array):
        return array
    if len(array) != 1:
        raise InvalidDataError(
            f"The model takes one row at a time; {spec.name!r} has {len(array)}: give one row, or call fit."
        )
    return array[0, ...]


def tensor_specs(values: Iterable[ir.Value]) -> list[TensorSpec]:
    """Specifications of graph inputs or outputs."""
    specs = []
    for value in values:
        dtype = None if value.dtype is None or value.dtype == ir.DataType.UNDEFINED else value.dtype.numpy()
        shape = (
            None if value.shape is None else tuple(d if isinstance(d, int) else d.value for d in value.shape)
        )
        specs.append(TensorSpec(str(value.name), None if dtype is None else np.dtype(dtype), shape))
    return specs


def input_specs(model: onnx.ModelProto | ir.Model) -> list[TensorSpec]:
    """Specifications of the inputs of a model that are not initializers."""
    made = model if isinstance(model, ir.Model) else to_ir(model)
    specs = tensor_specs(v for v in made.graph.inputs if v.name not in made.graph.initializers)
    return with_limits(specs, read_feature_names(made), lookups(made))


def with_limits(
    specs: Iterable[TensorSpec], names: Mapping[str, tuple[str, ...]], places: Mapping[str, Places]
) -> list[TensorSpec]:
    """Specifications with names of columns and with what is looked up, by tensor."""
    return [replace(s, columns=names.get(s.name), places=places.get(s.name)) for s in specs]


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


def as_inputs(X: Any, specs: Sequence[TensorSpec], *, sparse: bool = False) -> dict[str, Any]:
    """The features as the arrays that a model's inputs want.

    Parameters
    ----------
    X : array_like, frame or dict of str to array_like
        One array of shape (n, ...) for a model of one input, or a frame of pandas, polars or pyarrow with its
        columns; for several inputs a dict by input name, or a frame whose columns are called like them. In
        place of an array lists, Series, columns of pyarrow, sparse matrices of scipy and what has
        ``__array__``, such as tensors on the CPU. Columns may hold lists of one length.
    specs : sequence of TensorSpec
        The model's inputs.
    sparse : bool, default=False
        Leave sparse matrices as they are, as :class:`~onnxcustom.data.sparse.SparseRows`, rather than make
        all their rows dense.

    Returns
    -------
    dict of str to ndarray
        C-contiguous arrays of the inputs' dtypes, in the inputs' order, with as many rows each. What fits
        already is not copied.

    Raises
    ------
    InvalidDataError
        Empty data, wrong dimensions or lengths, NaN or infinity, numbers that the dtype cannot hold;
        sparse rows that would take more than 2 GB as dense ones.

    Examples
    --------
    >>> as_inputs([[1, 2]], [TensorSpec("x", np.dtype(np.float32), (None, 2))])
    {'x': array([[1., 2.]], dtype=float32)}
    """
    check_in_memory(X)
    single = len(specs) == 1 and not is_named(X)
    columns = {specs[0].name: X} if single else _by_name(X, specs, "X", "input")
    arrays = {
        spec.name: _as_tensor(columns[spec.name], spec, f"input {spec.name!r}", single, sparse)
        for spec in specs
    }
    _same_rows({f"input {spec.name!r}": row_count(arrays[spec.name], spec) for spec in specs})
    return arrays


def check_in_memory(X: Any) -> None:
    """Refuse a stream where all rows are needed at once.

    Raises
    ------
    InvalidDataError
        Saying how to go through its blocks.
    """
    if isinstance(X, Stream):
        raise InvalidDataError(
            "The rows are needed at once, and a stream gives them block by block: go through "
            "rows.blocks(), as in [net.predict(block.X) for block in rows.blocks()]; a block has X, y and "
            "sample_weight."
        )


def as_targets(y: Any, specs: Sequence[TensorSpec], rows: int) -> dict[str, np.ndarray]:
    """The expected values as the arrays that the losses want.

    Parameters
    ----------
    y : array_like, Series, frame or dict of str to array_like
        One array of shape (n,) or (n, ...), or when there are several losses a dict by output name, or a
        frame. Of the kinds that :func:`as_inputs` takes.
    specs : sequence of TensorSpec
        What the losses want, named like the model's outputs.
    rows : int
        Number of rows of the features.

    Returns
    -------
    dict of str to ndarray
        C-contiguous arrays; (n,) and (n, 1) become what the loss wants of the two.

    Raises
    ------
    InvalidDataError
        As for :func:`as_inputs`, or another number of rows than the features have.
    """
    if y is None:
        raise InvalidDataError(
            "Training requires y to be passed, but the target y is None: give the expected values."
        )
    single = len(specs) == 1 and not isinstance(y, Mapping)
    columns = {specs[0].name: y} if single else _by_name(y, specs, "y", "trained output")
    arrays = {
        spec.name: _as_tensor(columns[spec.name], spec, "y" if single else f"y of {spec.name!r}")
        for spec in specs
    }
    found = {spec.name: row_count(arrays[spec.name], spec) for spec in specs}
    _same_rows({"X": rows, **{"y" if single else f"y of {k!r}": n for k, n in found.items()}})
    return arrays


def as_sample_weight(
    sample_weight: Any,
    rows: int,
    dtype: Any = np.float32,
    *,
    part: bool = False,
    labels: np.ndarray | None = None,
) -> np.ndarray:
    """The weights of the rows as an array of shape (n,), or those of labels as one of their shape.

    Parameters
    ----------
    sample_weight : number or array_like of shape (n,) or (n, 1), or of the labels' shape
        Weights, not negative and not all zero. A number counts for every row.
    rows : int
        Number of rows.
    dtype : dtype, default=float32
        Dtype of the result.
    part : bool, default=False
        Whether there are more rows than these, so that all of them may have weight zero.
    labels : ndarray, optional
        Labels, several a row, that may have a weight each.

    Raises
    ------
    InvalidDataError
        Weights that are negative, all zero, not finite or of another length.
    """
    if isinstance(sample_weight, numbers.Real):
        sample_weight = np.full(rows, sample_weight)
    by_label = labels is not None and labels.shape != (rows,) and np.shape(sample_weight) == labels.shape
    shape = labels.shape if labels is not None and by_label else (None,)
    spec = TensorSpec("sample_weight", np.dtype(dtype), shape)
    weights = _as_tensor(sample_weight, spec, "sample_weight")
    if not by_label:
        _same_rows({"X": rows, "sample_weight": len(weights)})
    if (weights < 0).any():
        row = int(np.argmax(weights < 0)) if not by_label else 0
        where = "there is" if part or by_label else f"row {row} has"
        raise InvalidDataError(f"sample_weight must not be negative: {where} {weights[weights < 0][0]:g}.")
    if not part and not weights.any():
        raise InvalidDataError("sample_weight is zero for every row: nothing would be learned from.")
    return weights


def weights_of(
    sample_weight: Any,
    rows: int,
    dtype: Any,
    specs: Iterable[TensorSpec],
    expected: Mapping[str, np.ndarray],
    *,
    part: bool = False,
) -> tuple[np.ndarray, TensorSpec]:
    """The weights of the rows or of labels as an array, and what they are laid out like.

    Parameters
    ----------
    sample_weight, rows, dtype, part
        As :func:`as_sample_weight` takes them.
    specs : iterable of TensorSpec
        What the losses want.
    expected : dict of str to ndarray
        The expected values, converted.
    """
    like = next((spec for spec in specs if spec.weighed), None)
    labels = None if like is None else expected[like.name]
    weights = as_sample_weight(sample_weight, rows, dtype, part=part, labels=labels)
    by_label = labels is not None and weights.shape == labels.shape != (rows,)
    return weights, like if like is not None and by_label else TensorSpec("sample_weight", shape=(None,))


def check_batch_size(batch_size: Any, rows: int | None, specs: Sequence[TensorSpec] = ()) -> int:
    """The batch size as an int.

    Parameters
    ----------
    batch_size : int
        Rows in a batch.
    rows : int or None
        Rows of the data, None if that is not known.
    specs : sequence of TensorSpec, optional
        The model's inputs.

    Raises
    ------
    ValueError
        Not an integer of at least 1, or not what the model fixes.
    """
    try:
        size = operator.index(batch_size)
    except TypeError:
        size = 0
    if size < 1 or isinstance(batch_size, bool):
        raise ValueError(f"batch_size must be an integer of at least 1, not {batch_size!r}.")
    for spec in specs:
        fixed = spec.rows
        if fixed is None:
            continue
        if size != fixed if rows is None else min(size, rows) != fixed or rows % fixed:
            data = "" if rows is None else f" and the data has {count(rows, 'row')}"
            raise InvalidDataError(
                f"Input {spec.name!r} takes batches of exactly {count(fixed, 'row')}; batch_size is "
                f"{size}{data}. Use batch_size={fixed} and a multiple of it in rows, or make that "
                "dimension of the model's input dynamic."
            )
    return size


# -- one tensor --------------------------------------------------------------------------------


def _by_name(data: Any, specs: Sequence[TensorSpec], what: str, kind: str) -> Mapping[str, Any]:
    """Data for several tensors: a dict, or a DataFrame with a column for each."""
    names = [spec.name for spec in specs]
    if isinstance(data, Mapping):
        found = list(data)
    elif is_frame(data):
        data = without_index(data)
        found = column_names(data)
    else:
        raise InvalidDataError(
            f"The model has {len(names)} {kind}s, {names}: {what} must be a dict of arrays or a DataFrame "
            f"with these names, not {type(data).__name__}."
        )
    missing = [n for n in names if n not in found]
    unknown = [n for n in found if n not in names]
    if missing or unknown:
        raise UnknownNameError(
            f"{what} has the names {found}, the model has the {kind}s {names}"
            + (f"; {missing} missing" if missing else "")
            + (f"; {unknown} unknown" if unknown else "")
            + "."
        )
    return (
        data if isinstance(data, Mapping) else dict(zip(found, map(column_getter(data), found), strict=True))
    )


def _as_tensor(data: Any, spec: TensorSpec, what: str, whole: bool = False, sparse: bool = False) -> Any:
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
        raise type(exc)(f"{_capital(what)}: {found}.") from exc


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
        raise InvalidDataError(f"{_capital(what)}: {exc}") from exc


def _as_number(data: Any, spec: TensorSpec, what: str) -> np.ndarray:
    """A tensor without dimensions."""
    try:
        array = np.asarray(data)
    except ValueError as exc:  # lists of several lengths
        raise InvalidDataError(f"{_capital(what)} wants one number: {exc}") from exc
    if array.size != 1 or array.dtype.kind not in "fiub":
        raise InvalidDataError(
            f"{_capital(what)} wants one number for the batch, the data has shape {array.shape} and dtype "
            f"{array.dtype}."
        )
    floating = spec.dtype is not None and spec.dtype.kind == "f"
    with np.errstate(over="ignore"):
        array = array.reshape(()).astype(spec.dtype if floating else array.dtype)
    if array.dtype.kind == "f" and not np.isfinite(array):
        raise InvalidDataError(f"{_capital(what)} is {array}: NaN and infinity cannot be trained on.")
    return array


def _as_sparse(data: Any, spec: TensorSpec, what: str, keep: bool) -> Any:
    """A sparse matrix by rows, or as a dense array if that is not too large."""
    floating = spec.dtype is not None and spec.dtype.kind == "f"
    try:
        with np.errstate(over="ignore"):
            made = check_array(
                data, dtype=spec.dtype if floating else "numeric", accept_sparse="csr", input_name=spec.name
            )
    except (TypeError, ValueError) as exc:
        raise InvalidDataError(f"{_capital(what)}: {exc}") from exc
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
            f"{_capital(what)} is a sparse matrix of {count(len(rows), 'row')}, which take "
            f"{rows.nbytes / 2**30:.1f} GB as dense ones: give fewer rows at a time."
        )
    return rows[:]


def _plain(data: Any, spec: TensorSpec, what: str) -> Any:
    """As an array what scikit-learn's check would not take for one; the rest as it is."""
    if isinstance(data, np.ndarray):
        if data.dtype.kind in "mM":  # scikit-learn's check counts their ticks
            raise InvalidDataError(f"{_capital(what)}: {data.dtype} is no type of numbers: convert it.")
        return data
    if not (is_frame(data) or is_column(data) or hasattr(data, "__array__")):
        return data
    if _is_pandas(data) and (is_plain(data) or not _are_unique(data)) and not _holds_lists(data):
        return data
    try:
        if not is_frame(data):
            name = getattr(data, "name", None)
            name = None if name in (None, "") else str(name)
            array = _named(name, data)
            return numbers_of(array, name) if is_column(data) else array
        dtype = spec.dtype if spec.dtype is not None and spec.dtype.kind == "f" else None
        column = column_getter(data)
        return joined({name: _named(name, column(name)) for name in column_names(data)}, dtype)
    except (UnfitError, TypeError, ValueError, RuntimeError) as exc:
        raise InvalidDataError(f"{_capital(what)}: {exc}") from exc


def _is_pandas(data: Any) -> bool:
    return type(data).__module__.partition(".")[0] == "pandas" and (is_frame(data) or is_column(data))


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
        with np.errstate(over="ignore"):
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
        raise _TypeOfDataError(f"{_capital(what)}: {exc}") from exc
    except (ValueError, OverflowError) as exc:
        raise InvalidDataError(f"{_capital(what)}: {exc}") from exc


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
    """(n,) and (n, 1) are the same column; without a specification a matrix is meant."""
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
    what = _capital(what)
    if spec.is_each(array):
        array = array[0]
    if array.ndim != len(spec.shape):
        raise InvalidDataError(
            f"{what} wants {count(len(spec.shape), 'dimension')} {_text(spec.shape)}, the data has "
            f"{array.ndim}: {array.shape}."
        )
    for axis, (wanted, found) in enumerate(zip(spec.shape, array.shape, strict=True)):
        if axis == spec.axis or not isinstance(wanted, int) or wanted == found:
            continue
        if spec.axis is None:
            raise InvalidDataError(
                f"{what} is given once a batch, of shape {_text(spec.shape)}; the data has {array.shape}. If "
                f"one of its axes holds the rows, say so: batch_axis={{{spec.name!r}: ...}}."
            )
        if array.ndim == 2:
            error = ColumnCountError(f"{what} wants {count(wanted, 'column')}, the data has {found}.")
            error.input = spec.name
            raise error
        raise InvalidDataError(
            f"{what} wants the shape {_text(spec.shape)}, the data has {array.shape}: dimension {axis} is "
            f"{found} in place of {wanted}."
        )


def _capital(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}"


def count(number: int, noun: str) -> str:
    """A number of things, in words.

    Examples
    --------
    >>> count(1, "row"), count(2, "row")
    ('1 row', '2 rows')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _text(shape: Sequence[int | str | None]) -> str:
    return f"({', '.join('?' if d is None else str(d) for d in shape)})"


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
            f"{_capital(what)} wants {spec.dtype}, the data holds {value!s}, which it cannot represent."
        )
    return cast


def _same_rows(lengths: Mapping[str, int | None]) -> None:
    counts = {name: n for name, n in lengths.items() if n is not None}
    if len(set(counts.values())) > 1:
        text = ", ".join(f"{name} has {count(n, 'row')}" for name, n in counts.items())
        raise InvalidDataError(f"Found arrays with inconsistent numbers of samples: {text}.")
