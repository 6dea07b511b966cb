"""Checks and conversions of what a user trains on, before anything of a training changes."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from onnxcustom._parameters import check_count
from onnxcustom._text import count
from onnxcustom.data import Stream
from onnxcustom.data.frames import column_getter, column_names, is_frame
from onnxcustom.data.naming import without_index
from onnxcustom.exceptions import InvalidDataError, UnknownNameError

from .arrays import as_tensor, is_named
from .specs import TensorSpec, row_count

__all__ = [
    "TensorSpec",
    "as_inputs",
    "as_sample_weight",
    "as_targets",
    "check_batch_size",
    "check_in_memory",
    "same_rows",
    "ungrouped",
    "weights_of",
]


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
        spec.name: as_tensor(columns[spec.name], spec, f"input {spec.name!r}", single, sparse)
        for spec in specs
    }
    same_rows({f"input {spec.name!r}": row_count(arrays[spec.name], spec) for spec in specs})
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


def as_targets(y: Any, specs: Sequence[TensorSpec], rows: int | None) -> dict[str, np.ndarray]:
    """The expected values as the arrays that the losses want.

    Parameters
    ----------
    y : array_like, Series, frame or dict of str to array_like
        One array of shape (n,) or (n, ...), or when there are several losses a dict by output name, or a
        frame. Of the kinds that :func:`as_inputs` takes. A loss of several targets takes a tuple or list of
        them, in its order, or their names stand in the dict.
    specs : sequence of TensorSpec
        What the losses want, named like the model's outputs.
    rows : int or None
        Number of rows of the features; None if they are not known.

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
    y = ungrouped(y, specs)
    single = len(specs) == 1 and not isinstance(y, Mapping)
    kind = "target" if any(spec.group for spec in specs) else "trained output"
    columns = {specs[0].name: y} if single else _by_name(y, specs, "y", kind)
    arrays = {
        spec.name: as_tensor(columns[spec.name], spec, "y" if single else f"y of {spec.name!r}")
        for spec in specs
    }
    found = {spec.name: row_count(arrays[spec.name], spec) for spec in specs}
    same_rows({"X": rows, **{"y" if single else f"y of {k!r}": n for k, n in found.items()}})
    return arrays


def ungrouped(y: Any, specs: Sequence[TensorSpec]) -> Any:
    """Expected values by name, where several that one loss takes stand in a tuple, list or dict."""
    groups: dict[str, list[str]] = {}
    for spec in specs:
        if spec.group is not None:
            groups.setdefault(spec.group, []).append(spec.name)
    if not groups:
        return y
    if isinstance(y, (tuple, list)) and len(groups) == 1 == len({spec.group for spec in specs}):
        y = {next(iter(groups)): y}
    if not isinstance(y, Mapping):
        return y
    made: dict[Any, Any] = {}
    for key, value in y.items():
        names = groups.get(key)
        if isinstance(value, Mapping) and names is not None:
            made.update(value)
        elif isinstance(value, (tuple, list)) and names is not None and key not in names:
            if len(value) != len(names):
                raise InvalidDataError(
                    f"The loss of output {key!r} takes {len(names)} targets, {names}: y holds {len(value)}."
                )
            made.update(zip(names, value, strict=True))
        else:
            made[key] = value
    return made


def as_sample_weight(
    sample_weight: Any,
    rows: int,
    dtype: Any = np.float32,
    *,
    part: bool = False,
    labels: np.ndarray | None = None,
    like: str = "X",
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
    like : str, default='X'
        What has these rows.

    Raises
    ------
    InvalidDataError
        Weights that are negative, all zero, not finite or of another length.
    """
    if _is_number(sample_weight):
        sample_weight = np.full(rows, sample_weight)
    by_label = labels is not None and labels.shape != (rows,) and np.shape(sample_weight) == labels.shape
    shape = labels.shape if labels is not None and by_label else (None,)
    spec = TensorSpec("sample_weight", np.dtype(dtype), shape)
    weights = as_tensor(sample_weight, spec, "sample_weight")
    if not by_label:
        same_rows({like: rows, "sample_weight": len(weights)})
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
    size = check_count("batch_size", batch_size)
    for spec in specs:
        fixed = spec.rows
        if fixed is None:
            continue
        if size != fixed if rows is None else min(size, rows) != fixed or rows % fixed:
            data = "" if rows is None else f" and the data has {count(rows, 'row')}"
            raise InvalidDataError(
                f"Input {spec.name!r} takes batches of exactly {count(fixed, 'row')}; batch_size is "
                f"{size}{data}. Use batch_size={fixed} and a multiple of it in rows, or make that "
                "dimension of the model's input dynamic, as onnxcustom.tuning.make_dynamic(model) does."
            )
    return size


def _by_name(data: Any, specs: Sequence[TensorSpec], what: str, kind: str) -> Mapping[str, Any]:
    """Data for several tensors: a dict, or a DataFrame with a column for each."""
    names = [spec.name for spec in specs]
    if isinstance(data, Mapping):
        found = list(data)
    elif is_frame(data):
        data = without_index(data)
        found = column_names(data)
    else:
        group = " or, in their order, a tuple" if what == "y" and len({s.group for s in specs}) == 1 else ""
        raise InvalidDataError(
            f"The model has {len(names)} {kind}s, {names}: {what} must be a dict of arrays or a DataFrame "
            f"with these names{group if specs[0].group else ''}, not {type(data).__name__}."
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


def _is_number(value: Any) -> bool:
    array = value if isinstance(value, np.ndarray) else None
    return isinstance(value, numbers.Real) or (
        array is not None and array.ndim == 0 and array.dtype.kind in "biuf"
    )


def same_rows(lengths: Mapping[str, int | None]) -> None:
    """Compare numbers of rows, by what has them; None for what has none.

    Raises
    ------
    InvalidDataError
        They differ.
    """
    counts = {name: n for name, n in lengths.items() if n is not None}
    if len(set(counts.values())) > 1:
        text = ", ".join(f"{name} has {count(n, 'row')}" for name, n in counts.items())
        raise InvalidDataError(f"Found arrays with inconsistent numbers of samples: {text}.")
