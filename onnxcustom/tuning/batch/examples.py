"""Inputs that a model is run on to find its rows: sizes of open dimensions, numbers of every type."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxcustom.exceptions import InvalidDataError, InvalidModelError, UnknownNameError

from .trials import FAILURES, quiet_session, run_quietly

__all__ = ["Examples", "find_examples"]

# Sizes for dimensions that a file leaves open: models that halve images or sounds want large ones.
_SIZES = (64, 48, 96, 32, 128, 224, 256, 320, 16, 512, 8, 640, 1024, 4, 2, 1, 2048, 4096, 8192, 16000)
# Numbers in a row, of floating point and of integers, up to which a large size is tried as well.
_LARGE, _LONG = 20000, 256
# Bounds of integers: indices of tokens, lengths, switches.
_INTEGERS = ((1, 99), (1, 9), (1, 2), (0, 1), (1, 1), (0, 0), (16000, 16000))


class Examples:
    """Rows for every input.

    Parameters
    ----------
    arrays : dict of str to ndarray
        Inputs of so many rows.
    axes : dict of str to int or None
        Where the rows of an input are.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], axes: Mapping[str, int | None]) -> None:
        self.arrays, self.axes = dict(arrays), dict(axes)

    def rows(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Some of the rows."""
        return {
            name: array if axis is None else _some(array, axis, start, stop)
            for (name, array), axis in zip(self.arrays.items(), self.axes.values(), strict=True)
        }


def _some(array: np.ndarray, axis: int, start: int, stop: int) -> np.ndarray:
    return np.ascontiguousarray(np.take(array, range(start, stop), axis=axis))


def find_examples(
    proto: onnx.ModelProto,
    inputs: Sequence[ir.Value],
    axes: Mapping[str, int | None],
    block: int,
    rows: int,
    given: Mapping[str, Any] | None,
) -> list[Examples]:
    """Inputs that onnxruntime runs the model on, of the usual and, if there are open sizes, of large ones.

    Parameters
    ----------
    proto : ModelProto
        The model as it is.
    inputs : sequence of onnx_ir.Value
        Its inputs.
    axes : dict of str to int or None
        Where the rows are.
    block, rows : int
        Rows that the file takes at once, and rows that are wanted.
    given : mapping of str to array_like, optional
        Rows of inputs that the user gives.

    Raises
    ------
    InvalidModelError
        The model runs on nothing that was tried.
    """
    session = quiet_session(proto)
    reason = ""
    found: list[Examples] = []
    free = [v for v in inputs if v.name not in (given or {})]
    for sizes in _sizes(free, axes):
        for arrays in _tried(inputs, axes, rows, given or {}, sizes):
            tried = Examples(arrays, axes)
            try:
                run_quietly(session, tried.rows(0, block))
            except FAILURES as exc:
                reason = reason or str(exc)[:300]
                continue
            found.append(tried)
            break
        if not found:
            break
    if not found:
        raise InvalidModelError(
            f"onnxruntime runs the model on none of the inputs that were tried: {reason} Give some, as "
            "example={'input': array}."
        )
    return found


def _sizes(inputs: Sequence[ir.Value], axes: Mapping[str, int | None]) -> list[Sequence[int]]:
    """Sizes to try for dimensions that are open: the usual ones, and large ones."""
    most = max(_SIZES)
    some = False
    for value in inputs:
        inner = [d for i, d in enumerate(value.shape or ()) if i != axes[str(value.name)]]
        times = sum(not isinstance(d, int) for d in inner)
        if times:
            whole = value.dtype is None or not value.dtype.is_floating_point()
            fixed = int(np.prod([d for d in inner if isinstance(d, int)]))
            most = min(most, int(((_LONG if whole else _LARGE) / max(fixed, 1)) ** (1 / times)))
            some = True
    if not some:
        return [_SIZES[:1]]
    return [_SIZES, sorted((s for s in _SIZES if _SIZES[0] < s <= most), reverse=True)]


def _tried(
    inputs: Sequence[ir.Value],
    axes: Mapping[str, int | None],
    rows: int,
    given: Mapping[str, Any],
    sizes: Sequence[int],
) -> Iterator[dict[str, np.ndarray]]:
    names = [str(v.name) for v in inputs]
    unknown = [name for name in given if name not in names]
    if unknown:
        raise UnknownNameError(f"example names {unknown}; the inputs of the model are {names}.")
    ready = {n: _repeated(n, np.asarray(a), axes[n], rows) for n, a in given.items()}
    free = [v for v in inputs if v.name not in ready]
    whole = any(v.dtype is not None and v.dtype.is_integer() for v in free)
    for bounds, size in itertools.product(_INTEGERS if whole else _INTEGERS[:1], sizes):
        rng = np.random.default_rng(0)
        yield {
            str(v.name): ready[str(v.name)]
            if v.name in ready
            else _drawn(rng, v, axes[str(v.name)], rows, size, bounds)
            for v in inputs
        }


def _drawn(
    rng: np.random.Generator, value: ir.Value, axis: int | None, rows: int, size: int, bounds: tuple[int, int]
) -> np.ndarray:
    if value.shape is None or value.dtype is None:
        raise InvalidModelError(
            f"Input {value.name!r} has no shape: give an example, as example={{{value.name!r}: array}}."
        )
    shape = [rows if i == axis else d if isinstance(d, int) else size for i, d in enumerate(value.shape)]
    dtype = np.dtype(value.dtype.numpy())
    if dtype.kind == "f":
        return np.asarray(rng.normal(size=shape) * 0.5, dtype)
    if dtype.kind == "b":
        return np.asarray(rng.integers(0, 2, size=shape), dtype)
    if dtype.kind in "iu":
        return np.asarray(rng.integers(bounds[0], bounds[1] + 1, size=shape), dtype)
    return np.full(shape, "a", dtype=object)


def _repeated(name: str, array: np.ndarray, axis: int | None, rows: int) -> np.ndarray:
    """As many rows as are wanted of those that there are, each time turned along the last axis."""
    if axis is None:
        return array
    if axis >= array.ndim or not array.shape[axis]:
        raise InvalidDataError(
            f"example[{name!r}] has shape {array.shape}: there are no rows along axis {axis}."
        )
    times = -(-rows // array.shape[axis])
    turned = [np.roll(array, i, axis=-1) if array.ndim - 1 != axis else array for i in range(times)]
    return _some(np.concatenate(turned, axis=axis), axis, 0, rows)
