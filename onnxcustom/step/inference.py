"""Forward passes on weights that live elsewhere: predictions and losses while a model is trained."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxcustom.exceptions import EvaluationError, InvalidDataError, InvalidModelError
from onnxcustom.feed.specs import TensorSpec, of_batch, rows_of, some_rows
from onnxcustom.graph import ModelLike, Prepared, prepare, to_ir, to_proto
from onnxcustom.graph.analysis.operators import normal_domain
from onnxcustom.graph.analysis.traversal import rename_twins
from onnxcustom.graph.files import training_info
from onnxcustom.graph.preparation.guards import guard
from onnxcustom.graph.preparation.opsets import SetIrVersionPass
from onnxcustom.graph.trainable.finding import keep_trained
from onnxcustom.runtime import Device, create_session, ort_limits, run_values, to_ortvalue

from .rows import with_rows

logger = logging.getLogger("onnxcustom")

__all__ = ["Forward", "guarded", "loadable", "run_in_parts", "runnable", "without_numbers"]


def runnable(model: ModelLike | Prepared) -> ir.Model:
    """A model, prepared, in versions that the installed onnxruntime reads."""
    max_opset, max_ir = ort_limits()
    if isinstance(model, Prepared):
        return model.take(max_opset=max_opset, max_ir=max_ir)
    return prepare(model, max_opset=max_opset, max_ir=max_ir)


def without_numbers(model: ir.Model, weights: Iterable[str]) -> ir.Model:
    """A prepared model whose weights are zeros that take no memory, in place: graphs read them as inputs."""
    training_info.drop(model)
    for name in weights:
        value = model.graph.initializers[name]
        keep_trained(value)
        tensor = value.const_value
        assert tensor is not None
        array = np.broadcast_to(np.zeros((), tensor.dtype.numpy()), tensor.shape.numpy())
        value.const_value = ir.Tensor(array, dtype=tensor.dtype, name=name)
    return model


def loadable(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model as it is if the installed onnxruntime reads it, else in versions that it reads.

    A model that cannot be had in these versions is returned as it is. Nodes that share a name have names of
    their own afterwards.
    """
    rename_twins(model)
    max_opset, max_ir = ort_limits()
    opset = max((o.version for o in model.opset_import if not normal_domain(o.domain)), default=1)
    if opset <= max_opset and model.ir_version <= max_ir:
        return model
    try:
        if opset > max_opset:
            return to_proto(prepare(model, max_opset=max_opset, max_ir=max_ir))
        own = to_ir(model)
        SetIrVersionPass(max_ir)(own)
        return to_proto(own)
    except InvalidModelError as exc:
        logger.warning("The trained model stays at opset %d, IR version %d: %s", opset, model.ir_version, exc)
        return model


def guarded(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model to be run as it is: :func:`loadable`, and kept from what ends the process of onnxruntime."""
    made = loadable(model)
    own = to_ir(made)
    return to_proto(own) if guard(own) else made


class Forward:
    """A graph whose weights are inputs, run on whatever weights the caller has.

    One instance may be run from several threads at once.

    Parameters
    ----------
    model : onnx_ir.Model
        The graph, weights among its inputs.
    device : Device
        Where it runs.
    threads : int, optional
        Threads of onnxruntime.

    Attributes
    ----------
    inputs : list of str
        What the graph takes.
    """

    def __init__(self, model: ir.Model, device: Device, threads: int | None = None) -> None:
        self.device = device
        self.inputs = [str(v.name) for v in model.graph.inputs]
        self._outputs = [str(v.name) for v in model.graph.outputs]
        self._session = create_session(model, device, threads=threads, integers=False)

    def run(self, feeds: Mapping[str, Any]) -> list[np.ndarray]:
        """Outputs for OrtValues or arrays by input name; names the graph lacks are ignored."""
        values = {n: to_ortvalue(feeds[n], self.device) for n in self.inputs}
        return [v.numpy() for v in run_values(self._session, values, self._outputs)]


def run_in_parts(
    forward: Forward,
    feeds: Mapping[str, np.ndarray],
    specs: Mapping[str, TensorSpec],
    others: Mapping[str, Any],
    axes: Sequence[int | None],
) -> list[np.ndarray]:
    """Outputs for a batch of any size, also where the model fixes its size.

    Parameters
    ----------
    forward : Forward
        The graph.
    feeds : dict of str to ndarray
        The batch, by input.
    specs : dict of str to TensorSpec
        What each input is to be.
    others : dict of str to OrtValue
        What is the same for every part: weights.
    axes : sequence of int or None
        Those of the rows in the outputs; of several parts, outputs without one are stacked.
    """
    size = next((specs[name].rows for name in feeds if specs[name].rows is not None), None)
    rows = rows_of(feeds, [specs[name] for name in feeds])
    if size is None or rows == size:
        whole = {name: of_batch(array, specs[name]) for name, array in feeds.items()}
        return _run(forward, whole, specs, others)
    if rows % size:
        raise InvalidDataError(
            f"The model takes {size} rows at a time, the data has {rows}: give a multiple, or make that "
            "dimension of the model's inputs dynamic."
        )
    parts = []
    for i in range(0, rows, size):
        part = {n: some_rows(a, specs[n], slice(i, i + size)) for n, a in feeds.items()}
        part = {n: np.ascontiguousarray(of_batch(a, specs[n])) for n, a in part.items()}
        parts.append(_run(forward, part, specs, others))
    return [
        np.stack(arrays) if axis is None else np.concatenate(arrays, axis)
        for axis, arrays in zip(axes, zip(*parts, strict=True), strict=True)
    ]


def _run(
    forward: Forward, feeds: Mapping[str, Any], specs: Mapping[str, TensorSpec], others: Mapping[str, Any]
) -> list[np.ndarray]:
    """Outputs of one run; an error says what was taken for the rows, as it does in training."""
    try:
        return forward.run({**feeds, **others})
    except EvaluationError as exc:
        shapes = {name: ([*np.shape(array)], specs[name].axis) for name, array in feeds.items()}
        raise with_rows(exc, shapes) from exc.__cause__
