"""Blocks of a stream, whose rows come first, as a model with its rows elsewhere wants them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from onnxcustom.data import Block, Stream
from onnxcustom.data.blocks import Key
from onnxcustom.data.sources import Axes
from onnxcustom.exceptions import InvalidDataError
from onnxcustom.runtime.tensors import PlaceError

from .specs import TensorSpec
from .validation import as_inputs, as_targets, weights_of

__all__ = ["axes_of", "converted", "features", "given_once", "placed", "restored"]


def axes_of(inputs: Sequence[TensorSpec], expected: Sequence[TensorSpec]) -> dict[Key, dict[int, int | None]]:
    """Where the rows of the arrays of a stream are, for a model; empty where they come first everywhere.

    Parameters
    ----------
    inputs, expected : sequence of TensorSpec
        What model and losses want.
    """
    if all(spec.axis == 0 for spec in (*inputs, *expected)):
        return {}
    made: dict[Key, dict[int, int | None]] = {}
    for role, specs in (("X", inputs), ("y", expected)):
        for spec in specs:
            if spec.rank is None:
                continue
            axes = {spec.rank: spec.axis}
            made[Key(role, spec.name)] = axes
            if len(specs) == 1:
                made[Key(role)] = axes
            if spec.weighed and spec.rank > 1:
                made[Key("sample_weight")] = axes
    return made


def restored(block: Block, axes: Axes) -> Block:
    """A block with the rows of its arrays where a model wants them."""

    def moved(key: Key, array: np.ndarray) -> np.ndarray:
        axis = axes.get(key, {}).get(array.ndim, 0)
        return np.moveaxis(array, 0, axis) if axis else array

    return Block({key: moved(key, a) for key, a in block.arrays.items()}) if axes else block


def _unflattened(block: Block, inputs: Sequence[TensorSpec], targets: Sequence[TensorSpec] = ()) -> Block:
    """A block with columns of a table as pictures or sequences, where those are wanted."""
    wanted = {Key(role, s.name): s for role, specs in (("X", inputs), ("y", targets)) for s in specs}
    for role, specs in (("X", inputs), ("y", targets)):
        if len(specs) == 1:
            wanted[Key(role)] = specs[0]

    def shaped(array: np.ndarray, spec: TensorSpec | None) -> np.ndarray:
        if spec is None or spec.of_row is None or array.ndim != 2:
            return array
        fits = len(spec.of_row) > 1 and spec.width == array.shape[1]
        return array.reshape(len(array), *spec.of_row) if fits else array

    return Block({key: shaped(array, wanted.get(key)) for key, array in block.arrays.items()})


def converted(
    block: Block,
    stream: Stream,
    inputs: Sequence[TensorSpec],
    targets: Sequence[TensorSpec],
    encode: Callable[[Any], Any] | None,
    check: Callable[[Mapping[str, np.ndarray]], object] | None,
    weight_dtype: Any,
    weigh: Callable[[Any, Any], Any] | None = None,
) -> list[tuple[Any, TensorSpec]]:
    """Inputs, expected values and weights of a block, checked, each with what it is to be.

    Raises
    ------
    InvalidDataError
        Data that does not fit.
    """
    if block.X is not None and len(inputs) > 1 and not isinstance(block.X, dict):
        names = [spec.name for spec in inputs]
        raise InvalidDataError(
            f"The model has the inputs {names}, the stream one array: say with inputs= of stream() which "
            "columns they are, or give batches with a dict for X."
        )
    if block.y is None:
        raise InvalidDataError(
            "The stream has no expected values: name their column with target=, or give batches (X, y)."
        )
    rows = len(block)
    if stream.source.selection is not None:
        block = _unflattened(block, inputs, targets)
    block = restored(block, stream.source.axes)
    # Rows come with a value each, also of what the model takes once a batch.
    inputs, targets = _for_rows(inputs), _for_rows(targets)
    arrays = list(as_inputs(block.X, inputs).values())
    y = block.y if encode is None else encode(block.y)
    expected = as_targets(y, targets, rows)
    if check is not None:
        check(expected)
    pairs = [*zip([*arrays, *expected.values()], [*inputs, *targets], strict=True)]
    weights = block.sample_weight if weigh is None else weigh(block.y, block.sample_weight)
    if weights is not None:
        pairs.append(weights_of(weights, rows, weight_dtype, targets, expected, part=True))
    return pairs


def _for_rows(specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    return [dataclasses.replace(spec, each=spec.axis is None) for spec in specs]


def features(block: Block, axes: Axes, inputs: Sequence[TensorSpec]) -> Any:
    """Features of a block of a table as a model takes those of a batch."""
    block = restored(_unflattened(block, inputs), axes)
    if not axes or not isinstance(block.X, dict):
        return block.X
    given = as_inputs(block.X, _for_rows(inputs))
    pairs = zip(_for_rows(inputs), inputs, strict=True)
    return {spec.name: given_once(given[spec.name], spec, wanted) for spec, wanted in pairs}


def given_once(array: np.ndarray, spec: TensorSpec, wanted: TensorSpec) -> np.ndarray:
    """What rows of a block have in common, where the model takes it once for all of them.

    Raises
    ------
    InvalidDataError
        They have different values of it.
    """
    if wanted.axis is not None or wanted.each or not spec.is_each(array):
        return array
    if (array != array[:1]).any():
        raise InvalidDataError(
            f"{spec.name!r} is given once a batch, and rows of one batch come with different values of it: "
            "give the same for all, or batches of batch_size rows, unshuffled."
        )
    return array[0, ...]


def placed(error: PlaceError, stream: Stream) -> PlaceError:
    """An error about a row of a block that says where it is in the stream, if that can be told."""

    def holds(key: Key, array: np.ndarray) -> np.ndarray:
        if key.role != "X" or key.name not in (None, error.input):
            return np.zeros(len(array), bool)
        return np.any((array == error.value).reshape(len(array), -1), axis=1)

    found = stream.first_place(holds)
    return error if found is None else error.within(found[0])
