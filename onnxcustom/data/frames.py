"""Columns and frames of pandas, polars and pyarrow as arrays, without importing any of them first."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

__all__ = [
    "UnfitError",
    "as_array",
    "column_getter",
    "column_names",
    "find_unfit",
    "is_column",
    "is_frame",
    "is_plain",
    "joined",
    "library",
    "numbers",
    "refuse_masked",
    "select_columns",
    "slice_rows",
    "text_names",
]


class UnfitError(ValueError):
    """A value that training cannot use; who reads it says where it is.

    Attributes
    ----------
    what : str
        What is wrong with it.
    row : int or None
        Row in the column, from 0.
    column : str or None
        Name of the column.
    """

    def __init__(self, what: str, row: int | None = None, column: str | None = None) -> None:
        super().__init__(what, row, column)
        self.what, self.row, self.column = what, row, column

    def __str__(self) -> str:
        place = [] if self.column is None else [f"column {self.column!r}"]
        place += [] if self.row is None else [f"row {self.row}"]
        return f"{', '.join(place)}: {self.what}" if place else self.what


NO_VALUE = "there is no value (null)"


def _origin(data: Any) -> tuple[str, str]:
    """Package and name of the class of an object, or of the nearest base class from one of these packages."""
    for cls in type(data).__mro__:
        package = cls.__module__.partition(".")[0]
        if package in ("pandas", "polars", "pyarrow"):
            return package, cls.__name__
    return "", ""


def library(data: Any) -> str:
    """The package that data is of: 'pandas', 'polars' or 'pyarrow', and '' of others."""
    return _origin(data)[0]


def is_frame(data: Any) -> bool:
    """Whether data is a table of columns with names: of pandas, polars or pyarrow."""
    return _origin(data)[1] in ("DataFrame", "Table", "RecordBatch")


def is_column(data: Any) -> bool:
    """Whether data is one column of such a table."""
    package, name = _origin(data)
    return name.endswith("Array") if package == "pyarrow" else name == "Series"


def column_names(frame: Any) -> list[str]:
    """Names of the columns of a frame, or of a dict of columns."""
    if isinstance(frame, Mapping):
        return [str(name) for name in frame]
    names = frame.schema.names if library(frame) == "pyarrow" else frame.columns
    return [str(name) for name in names]


def text_names(frame: Any) -> list[str] | None:
    """Names of the columns of a frame, None where pandas has numbers or other things for them."""
    if library(frame) == "pandas" and not all(isinstance(name, str) for name in frame.columns):
        return None
    return column_names(frame)


def select_columns(frame: Any, names: Sequence[str]) -> Any:
    """Some columns of a frame, each of which is there once, in this order."""
    return frame[list(names)] if library(frame) == "pandas" else frame.select(list(names))


def column_getter(frame: Any) -> Callable[[str], Any]:
    """What returns a column of a frame, or of a dict of columns, as it is, for its name."""
    places = {name: place for place, name in enumerate(column_names(frame))}
    if isinstance(frame, Mapping):
        keys = list(frame)
        return lambda name: frame[keys[places[name]]]
    package = library(frame)
    if package == "pyarrow":
        return lambda name: frame.column(places[name])
    if package == "pandas":
        return lambda name: frame.iloc[:, places[name]]
    return lambda name: frame.to_series(places[name])


def slice_rows(data: Any, start: int, stop: int) -> Any:
    """Rows of a frame, a column, an array or a dict of them, without a copy where there is a way."""
    if isinstance(data, Mapping):
        return {name: slice_rows(part, start, stop) for name, part in data.items()}
    package = library(data)
    if package == "pandas":
        return data.iloc[start:stop]
    return data.slice(start, stop - start) if package in ("polars", "pyarrow") else data[start:stop]


def as_array(data: Any) -> np.ndarray:
    """Anything with rows as an array.

    Parameters
    ----------
    data : ndarray, list, Series, pyarrow array, or what has ``__array__``, such as a tensor on the CPU
        One column. Lists of one length, in whatever way the package keeps them, become further dimensions.

    Returns
    -------
    ndarray of shape (n, ...)
        Text as objects of class str.

    Raises
    ------
    UnfitError
        A null, lists of different lengths, a type that is neither numbers nor text.
    """
    refuse_masked(data)
    package = library(data)
    if package == "pyarrow":
        return _from_arrow(data)
    if package == "polars":
        return _from_polars(data)
    array = _from_pandas(data) if package == "pandas" else np.asarray(data)
    if array.dtype.kind == "O" and array.ndim == 1:
        array = _stacked(array)
    if array.dtype.kind in "mMV":
        raise _of_type(array.dtype)
    return array


def refuse_masked(data: Any) -> None:
    """Refuse an array of numpy.ma some of whose values are masked: as a plain one it has numbers there.

    Raises
    ------
    UnfitError
        Naming the row of the first.
    """
    if isinstance(data, np.ma.MaskedArray) and np.ma.is_masked(data):
        row = int(np.argwhere(np.ma.getmaskarray(data))[0][0]) if np.ndim(data) else None
        raise UnfitError("a value is masked, and there is nothing to train on below it: fill it in", row)


def is_plain(data: Any) -> bool:
    """Whether a frame or column of pandas holds numbers of NumPy and nothing else, by its types alone."""
    types = [data.dtype] if is_column(data) else list(data.dtypes)
    return all(isinstance(of, np.dtype) and of.kind in "biuf" for of in types)


def find_unfit(data: Any, dtype: np.dtype | None = None) -> UnfitError | None:
    """Where a frame or column first holds what cannot be trained on, for an error message.

    Parameters
    ----------
    data : frame or column
        Of pandas, polars or pyarrow.
    dtype : dtype, optional
        What its numbers have to be.

    Returns
    -------
    UnfitError or None
        None if nothing is wrong with any value of its own.
    """
    if is_column(data):
        name = getattr(data, "name", None)
        return _unfit_in(data, None if name in (None, "") else str(name), dtype)
    columns = zip(column_names(data), _columns(data), strict=True)
    return next((found for name, column in columns if (found := _unfit_in(column, name, dtype))), None)


def _columns(frame: Any) -> Iterator[Any]:
    """Columns of a frame, of which several may have one name."""
    if library(frame) == "pandas":
        return (frame.iloc[:, i] for i in range(frame.shape[1]))
    return iter(frame.columns if library(frame) == "pyarrow" else frame.get_columns())


def _unfit_in(column: Any, name: str | None, dtype: np.dtype | None) -> UnfitError | None:
    try:
        # Of plain numbers, NaN is told from what is missing.
        plain = library(column) == "pandas" and is_plain(column)
        array = numbers(np.asarray(column) if plain else as_array(column), name)
    except UnfitError as exc:
        return UnfitError(exc.what, exc.row, name)
    if not array.size:
        return None
    with np.errstate(invalid="ignore", over="ignore"):
        cast = array if dtype is None else array.astype(dtype)
        floating = cast.dtype.kind == "f"
        bad = ~np.isfinite(cast) if floating else cast != array
    if not bad.any():
        return None
    place = tuple(np.argwhere(bad)[0])
    value = array[place]
    if not np.isfinite(value):
        return UnfitError(f"there is {'NaN' if np.isnan(value) else 'infinity'}", int(place[0]), name)
    what = "is too large for" if floating else "cannot be represented by"
    return UnfitError(f"{value!s} {what} {dtype}", int(place[0]), name)


def _of_type(name: Any) -> UnfitError:
    return UnfitError(f"{name} is no type for numbers or text: convert it, or leave it out with columns=")


def _stacked(array: np.ndarray) -> np.ndarray:
    """Lists in an array of objects as further dimensions."""
    if not len(array) or not isinstance(array[0], (list, tuple, np.ndarray)):
        return array
    parts = [np.asarray(value) for value in array]
    for row, part in enumerate(parts):
        if part.shape != parts[0].shape:
            raise _ragged(part.shape, parts[0].shape, row)
    return np.stack(parts)


def _ragged(found: Any, first: Any, row: int) -> UnfitError:
    if isinstance(found, tuple) and len(found) == 1 == len(first):
        found, first = found[0], first[0]
    what = "value" if found == 1 else "values"
    text = f"{found} {what}" if not isinstance(found, tuple) else f"shape {found}"
    return UnfitError(f"{text} where row 0 has {first}: lists must have one length", row)


# -- pyarrow ------------------------------------------------------------------------------------------


def _from_arrow(column: Any) -> np.ndarray:
    chunks = getattr(column, "chunks", None)
    if chunks is None:
        return _from_arrow_array(column)
    if len(chunks) == 1:
        return _from_arrow_array(chunks[0])
    made, row = [], 0
    for chunk in chunks:
        if len(chunk):
            made.append(_shifted(chunk, row))
            if made[-1].shape[1:] != made[0].shape[1:]:
                raise _ragged(made[-1].shape[1:], made[0].shape[1:], row)
        row += len(chunk)
    return np.concatenate(made) if made else _from_arrow_array(column.combine_chunks())


def _shifted(chunk: Any, row: int) -> np.ndarray:
    try:
        return _from_arrow_array(chunk)
    except UnfitError as exc:
        raise UnfitError(exc.what, None if exc.row is None else exc.row + row) from None


def _from_arrow_array(array: Any) -> np.ndarray:
    pa = sys.modules["pyarrow"]
    types, of = pa.types, array.type
    if array.null_count:
        missing = array.is_null().to_numpy(zero_copy_only=False)
        raise UnfitError(NO_VALUE, int(np.argmax(missing)))
    if types.is_dictionary(of):
        return _from_arrow_array(array.dictionary_decode())
    if isinstance(of, pa.BaseExtensionType):
        tensors = getattr(array, "to_numpy_ndarray", None)
        return _from_arrow_array(array.storage) if tensors is None else tensors()
    if _is_list(types, of):
        return _from_lists(array, len(array), _arrow_lengths(array))
    if types.is_decimal(of):
        return array.cast(pa.float64()).to_numpy()
    if types.is_integer(of) or types.is_floating(of):
        return array.to_numpy()
    if not (types.is_boolean(of) or types.is_string(of) or types.is_large_string(of) or _is_view(types, of)):
        raise _of_type(of)
    return array.to_numpy(zero_copy_only=False)


def _is_list(types: Any, of: Any) -> bool:
    return types.is_fixed_size_list(of) or types.is_list(of) or types.is_large_list(of)


def _is_view(types: Any, of: Any) -> bool:
    known = getattr(types, "is_string_view", None)  # since 16
    return known is not None and bool(known(of))


def _arrow_lengths(array: Any) -> np.ndarray:
    size = getattr(array.type, "list_size", None)
    if size is not None:
        return np.full(len(array), size)
    return np.diff(array.offsets.to_numpy())


def _from_lists(array: Any, rows: int, lengths: np.ndarray) -> np.ndarray:
    """Lists of one length, of pyarrow or polars, as an array of one more dimension."""
    width = int(lengths[0]) if rows else 0
    if (lengths != width).any():
        row = int(np.argmax(lengths != width))
        raise _ragged(int(lengths[row]), width, row)
    if not width:
        return np.zeros((rows, 0))
    try:
        values = as_array(array.flatten() if hasattr(array, "flatten") else array.explode())
    except UnfitError as exc:
        raise UnfitError(exc.what, None if exc.row is None else exc.row // width) from None
    return values.reshape(rows, width, *values.shape[1:])


# -- polars and pandas --------------------------------------------------------------------------------


def _from_polars(series: Any) -> np.ndarray:
    pl = sys.modules["polars"]
    if series.null_count():
        raise UnfitError(NO_VALUE, int(np.argmax(series.is_null().to_numpy())))
    if series.dtype == pl.Array:
        return _from_lists(series, len(series), np.full(len(series), series.dtype.shape[0]))
    if series.dtype == pl.List:
        return _from_lists(series, len(series), series.list.len().to_numpy())
    if series.dtype in (pl.Categorical, pl.Enum, pl.String):
        return series.cast(pl.String).to_numpy().astype(object)
    if series.dtype == pl.Decimal:
        return series.cast(pl.Float64).to_numpy()
    if not (series.dtype.is_numeric() or series.dtype == pl.Boolean):
        raise _of_type(series.dtype)
    return series.to_numpy()


def _from_pandas(series: Any) -> np.ndarray:
    missing = np.asarray(series.isna())
    if missing.any():
        raise UnfitError(NO_VALUE, int(np.argmax(missing)))
    arrow = getattr(series.dtype, "pyarrow_dtype", None)
    if arrow is not None and hasattr(series, "array"):
        return _from_arrow(series.array.__arrow_array__())
    kept = getattr(series.dtype, "numpy_dtype", None)  # of a column that may hold nulls
    return np.asarray(series) if kept is None else series.to_numpy(dtype=kept)


# -- several columns ----------------------------------------------------------------------------------


def joined(columns: Mapping[str, np.ndarray], dtype: Any = None) -> np.ndarray:
    """Columns side by side.

    Parameters
    ----------
    columns : dict of str to ndarray
        Numbers, of shape (n,) or (n, k); a single one may have more dimensions.
    dtype : dtype, optional
        Dtype of the result, by default one that holds all of them.

    Returns
    -------
    ndarray of shape (n, columns), or of the single column's shape

    Raises
    ------
    UnfitError
        Text, or several columns of which one has more than two dimensions.
    """
    arrays = {name: numbers(array, name) for name, array in columns.items()}
    if len(arrays) == 1:
        (array,) = arrays.values()
        return array.reshape(-1, 1) if array.ndim == 1 else array
    deep = next((name for name, array in arrays.items() if array.ndim > 2), None)
    if deep is not None:
        raise UnfitError(f"values of shape {arrays[deep].shape[1:]} fit beside no other column", None, deep)
    rows = len(next(iter(arrays.values())))
    widths = [array.shape[1] if array.ndim == 2 else 1 for array in arrays.values()]
    wide = np.result_type(*arrays.values()) if dtype is None else dtype
    made, start = np.empty((rows, sum(widths)), wide), 0
    for array, width in zip(arrays.values(), widths, strict=True):
        with np.errstate(over="ignore"):
            made[:, start : start + width] = array.reshape(rows, width)
        start += width
    return made


def numbers(array: np.ndarray, name: str | None) -> np.ndarray:
    """A column of numbers, which may come as objects.

    Raises
    ------
    UnfitError
        Text.
    """
    if array.dtype.kind in "biuf":
        return array
    if array.dtype.kind in "OUS" and array.size:
        for place, value in np.ndenumerate(array):
            if not _is_number(value):
                what = f"{str(value)!r} is no number: encode the column, or leave it out with columns="
                raise UnfitError(what, place[0], name)
        return _as_floats(array, name)
    raise UnfitError(f"{array.dtype} is no type of numbers", None, name)


def _as_floats(array: np.ndarray, name: str | None) -> np.ndarray:
    try:
        return array.astype(np.float64)
    except OverflowError:  # an integer of more than 308 digits
        rows = [row for (row, *_), value in np.ndenumerate(array) if isinstance(value, int)]
        row = next(row for row in rows if abs(array[row]) >= 2**1024) if array.ndim == 1 else None
        raise UnfitError("an integer is too large for float64", row, name) from None


def _is_number(value: Any) -> bool:
    """Whether an object is a number; text that looks like one is none."""
    try:
        return not isinstance(value, (str, bytes)) and float(value) is not None
    except OverflowError:
        return True
    except (TypeError, ValueError):
        return False
