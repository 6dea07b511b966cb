"""Ranges of what a model computes, measured on rows of the data before they are rounded."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxcustom.exceptions import InvalidDataError
from onnxcustom.feed.specs import TensorSpec, of_batch, rows_of, some_rows
from onnxcustom.graph import Prepared
from onnxcustom.runtime import Device
from onnxcustom.tuning.quantization.calibration import Ranges
from onnxcustom.tuning.quantization.options import Quantized

from .forward import trunk
from .inference import Forward, runnable
from .recipe import Recipe

__all__ = ["measured", "rounded_by"]

_ROWS = 32  # that are run at a time


def rounded_by(recipe: Recipe) -> Quantized | None:
    """What of a recipe needs ranges, if anything does."""
    return next((c for c in recipe.changes if isinstance(c, Quantized) and c.roundings), None)


def measured(
    recipe: Recipe,
    change: Quantized,
    tensors: Mapping[str, np.ndarray],
    arrays: Mapping[str, np.ndarray],
    device: Device,
) -> dict[str, np.ndarray]:
    """Scales and zero points of what is rounded, by name.

    Parameters
    ----------
    recipe : Recipe
        What is trained.
    change : Quantized
        How it is rounded.
    tensors : mapping of str to ndarray
        Its constants that have changed.
    arrays : mapping of str to ndarray
        Rows of the data, by input.
    device : Device
        Where to compute.

    Raises
    ------
    InvalidDataError
        No rows, or numbers that are not finite.
    """
    model = change.plain.clone()
    for name, array in tensors.items():
        value = model.graph.initializers.get(name)
        if value is not None:
            value.const_value = ir.Tensor(np.asarray(array), dtype=value.dtype, name=name)
    names = [*change.measured]
    forward = Forward(runnable(Prepared(trunk(model, names))), device)
    ranges = Ranges(names)
    for part in _parts(arrays, recipe.inputs, change.change.rows):
        ranges.see(dict(zip(names, forward.run(part), strict=True)))
    return change.calibrated(ranges)


def _parts(
    arrays: Mapping[str, np.ndarray], inputs: list[TensorSpec], most: int
) -> list[dict[str, np.ndarray]]:
    """Batches of the first rows."""
    rows = min(rows_of(arrays, inputs), most)
    if not rows:
        raise InvalidDataError("There are no rows to measure the ranges of tensors on.")
    fixed = next((spec.rows for spec in inputs if spec.rows is not None), None)
    size = 1 if any(spec.is_each(arrays[spec.name]) for spec in inputs) else fixed or _ROWS
    parts = []
    for start in range(0, rows - rows % size if fixed else rows, size):
        some = {s.name: some_rows(arrays[s.name], s, slice(start, min(start + size, rows))) for s in inputs}
        parts.append({s.name: np.ascontiguousarray(of_batch(some[s.name], s)) for s in inputs})
    return parts
