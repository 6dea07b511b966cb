"""A file for batches of one size, made to take any."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxcustom.exceptions import InvalidModelError, InvalidParameterError
from onnxcustom.graph.analysis.traversal import all_names
from onnxcustom.graph.building.builder import Builder
from onnxcustom.graph.files.io import ModelLike, load, to_ir, to_proto
from onnxcustom.graph.preparation.passes import InlineFunctionsPass
from onnxcustom.runtime import ort_limits

from .batch.case import Known
from .batch.examples import Examples, find_examples
from .batch.guesses import Guess, guesses
from .batch.layouts import Layout, close
from .batch.trials import FAILURES, quiet_session, run_quietly
from .batch.walk import Walk

__all__ = ["make_dynamic"]

_LOGGER = logging.getLogger("onnxcustom")
# Blocks of rows that are compared, and numbers of rows that the result is tried with.
_BLOCKS = 3
_SIZES = (1, 3, 8)
# How much more rounding there is in a whole model than in one node.
_ROUNDING = 20
# With which axis rows are made one, and whether one that is dropped stays in front of the others.
_WAYS = ((False, False), (True, False), (False, True))


def make_dynamic(
    model: ModelLike,
    batch: str = "N",
    *,
    example: Mapping[str, Any] | None = None,
    batch_axis: Mapping[str, int | None] | None = None,
) -> onnx.ModelProto:
    """Let a model take any number of rows whose file was written for a fixed one.

    Every node is run on rows alone, as the file has it, and on several together. Where these differ, the
    node holds the number of rows: shapes of Reshape, Expand, Resize and Slice, initial states of recurrent
    layers, constants that were repeated for every row, a batch axis that was squeezed away. It is changed
    until they agree. What cannot be changed so is refused. In the end the whole model is run on 1, 3 and 8
    rows and compared with the file given, row by row.

    Parameters
    ----------
    model : str, path, bytes, file object, onnx.ModelProto or onnx_ir.Model
        The model in any form. It is not changed.
    batch : str, default='N'
        Name of the batch axis in inputs and outputs.
    example : dict of str to array_like, optional
        Rows of inputs, one or more, to run the model on. By default numbers are drawn, integers from 1 to 99,
        or smaller ones if the model does not run on these, and sizes that the file leaves open are such that
        it runs.
    batch_axis : dict of str to int or None, optional
        Where the rows of an input are; None for an input without rows. By default axis 0 of the first input
        with dimensions, or axis 1 if that is the one of a single row, and for other inputs the first axis of
        that size.

    Returns
    -------
    onnx.ModelProto
        Functions inlined. What the file calls its nodes and tensors, they are called.

    Raises
    ------
    InvalidModelError
        A node does not take several rows together, or mixes them: it is named, with the tensors that it
        reads and their shapes. Or onnxruntime does not run the model.
    InvalidParameterError, UnknownNameError
        `batch` is the name of another dimension; `batch_axis` or `example` name no input.

    Examples
    --------
    >>> import onnx.parser
    >>> import onnxcustom
    >>> model = onnx.parser.parse_model('''
    ...     <ir_version: 8, opset_import: ["": 17]>
    ...     m (float[1, 2, 3] x) => (float[1, 4] y) <int64[2] s = {1, 6}, float[6, 4] w = {
    ...         1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24}> {
    ...         flat = Reshape(x, s)
    ...         y = MatMul(flat, w)
    ...     }''')
    >>> free = make_dynamic(model)
    >>> [d.dim_param or d.dim_value for d in free.graph.output[0].type.tensor_type.shape.dim]
    ['N', 4]
    """
    proto = _runnable(load(model))
    inputs = _inputs(to_ir(proto))
    _check_name(batch)
    refused: Exception | None = None
    for guess in guesses(inputs, dict(batch_axis or {})):
        try:
            return _freed(proto, guess, batch, example)
        except (InvalidModelError, InvalidParameterError) as exc:
            refused = refused or exc
    assert refused is not None
    raise refused


def _check_name(batch: Any) -> None:
    if not isinstance(batch, str) or not batch:
        raise InvalidParameterError(f"batch must be the name of a dimension, not {batch!r}.")


def _runnable(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model in a version of the format that onnxruntime reads."""
    newest = ort_limits()[1]
    if proto.ir_version > newest:
        made = onnx.ModelProto()
        made.CopyFrom(proto)
        made.ir_version = newest
        return made
    return proto


def _inputs(model: ir.Model) -> list[ir.Value]:
    return [v for v in model.graph.inputs if v.name not in model.graph.initializers]


def _freed(
    proto: onnx.ModelProto, guess: Guess, batch: str, example: Mapping[str, Any] | None
) -> onnx.ModelProto:
    """The model for any number of rows, if they are where that guess says."""
    inputs = _inputs(to_ir(proto))
    _check_free(inputs, guess, batch)
    block = guess.block
    wanted = max(_BLOCKS * block, -(-max(_SIZES) // block) * block)
    several = find_examples(proto, inputs, guess.axes, block, wanted, example)
    refused: InvalidModelError | None = None
    # Sizes may hide what others show: one element where there may be two. What rows are made one with, too.
    for examples, way in itertools.product(several, _WAYS):
        edited = to_ir(proto)
        InlineFunctionsPass()(edited)
        try:
            walk = _walked(edited, guess, examples, way)
            axes = _output_axes(edited, walk)
            _declare(edited, walk, guess, batch)
            _drop_unread(edited)
            made = to_proto(edited)
            for proof in several:
                _prove(proto, made, proof, axes, 1 if guess.declared else block)
        except InvalidModelError as exc:
            refused = refused or exc
            continue
        for name in dict.fromkeys(walk.repaired):
            _LOGGER.info("%s takes any number of rows now.", name)
        return made
    assert refused is not None
    raise refused


def _walked(model: ir.Model, guess: Guess, examples: Examples, way: tuple[bool, bool]) -> Walk:
    """The model with its nodes repaired, and what is known of its values."""
    inputs, block = _inputs(model), guess.block
    taken = all_names(model.graph)
    op = Builder(model.opset_imports.get("", 1), prefix="rows_", taken=taken)
    lead = next(v for v in inputs if v.name == guess.lead)
    axis = guess.axes[guess.lead]
    assert axis is not None
    rows = op.Slice(op.Shape(op.wrap(lead)), [axis], [axis + 1], [0]).value
    given = _given(inputs, examples, guess)
    sizes = [np.array([block], np.int64)] * _BLOCKS
    given[rows] = Known("sized", sizes, np.array([block * _BLOCKS], np.int64))
    walk = Walk(model, given, rows, block, _BLOCKS, taken, guess.declared, *way)
    walk.graph(model.graph)
    if rows.uses():
        model.graph.insert_before(model.graph[0], op.nodes)
        for value in op.initializers:
            model.graph.register_initializer(value)
    return walk


def _check_free(inputs: Sequence[ir.Value], guess: Guess, batch: str) -> None:
    for value in inputs:
        for i, dim in enumerate(value.shape or ()):
            if i != guess.axes[str(value.name)] and getattr(dim, "value", dim) == batch:
                raise InvalidParameterError(
                    f"batch={batch!r} is the name of axis {i} of input {value.name!r}: give another one."
                )


def _given(inputs: Sequence[ir.Value], examples: Examples, guess: Guess) -> dict[ir.Value, Known]:
    """What is known of the inputs."""
    block, count = guess.block, _BLOCKS
    alone = [examples.rows(i * block, (i + 1) * block) for i in range(count)]
    together = examples.rows(0, count * block)
    found = {}
    for value in inputs:
        name = str(value.name)
        axis = guess.axes[name]
        layout = None if axis is None else Layout(axis)
        kind = "sized" if axis is None else "rows"
        found[value] = Known(kind, [a[name] for a in alone], together[name], layout)
    return found


# -- outputs and declared shapes ----------------------------------------------------------------------------


def _output_axes(model: ir.Model, walk: Walk) -> dict[str, int | None]:
    """Batch axis of every output.

    Raises
    ------
    InvalidModelError
        An output has rows on an axis together with something else.
    """
    axes: dict[str, int | None] = {}
    for value in model.graph.outputs:
        known = walk.known[value]
        layout = known.layout
        if layout is not None and not layout.pure(known.shape, walk.block):
            node = value.producer()
            where = "" if node is None else f" of node {node.name!r} ({node.op_type})"
            raise InvalidModelError(
                f"Output {value.name!r}{where} has no axis for the batch: for {walk.block} rows its shape is "
                f"{list(known.shape)}, for {walk.block * walk.count} it would be {list(known.batch.shape)}."
            )
        axes[str(value.name)] = None if layout is None else layout.axis
    if all(axis is None for axis in axes.values()):
        raise InvalidModelError(f"None of the outputs {list(axes)} depends on the rows.")
    return axes


def _declare(model: ir.Model, walk: Walk, guess: Guess, batch: str) -> None:
    """Have inputs, outputs and what is declared in between carry the name of the batch axis."""
    for value in model.graph.inputs:
        axis = guess.axes.get(str(value.name))
        if axis is not None and value.shape is not None:
            value.shape = _named(list(value.shape), axis, batch)
    outputs = set(model.graph.outputs)
    for graph in model.graphs():
        for node in graph:
            for value in node.outputs:
                if not isinstance(value.type, ir.TensorType):  # a shape without a type says nothing
                    value.shape = None if value.type is None else value.shape
                    continue
                known = walk.known.get(value)
                if graph is not model.graph or known is None or known.layout is None:
                    value.shape = value.shape if value in outputs and known is not None else None
                elif value in outputs or value.shape is not None:
                    value.shape = _shape(value.shape, known, walk.block, batch)


def _named(dims: list[Any], axis: int, batch: str) -> ir.Shape:
    return ir.Shape([batch if i == axis else d for i, d in enumerate(dims)])


def _shape(declared: ir.Shape | None, known: Known, block: int, batch: str) -> ir.Shape | None:
    """Shape of a tensor with rows; sizes that a file declares against what it computes are dropped."""
    layout, rank = known.layout, len(known.shape)
    assert layout is not None
    if not layout.pure(known.shape, block):
        return None
    dims: list[Any] = [None] * rank if declared is None or len(declared) != rank else list(declared)
    dims = [None if isinstance(d, int) and d != s else d for d, s in zip(dims, known.shape, strict=True)]
    return _named(dims, layout.axis, batch)


def _drop_unread(model: ir.Model) -> None:
    """Drop constants that nothing reads since their nodes read others."""
    for graph in model.graphs():
        for value in list(graph.initializers.values()):
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                del graph.initializers[str(value.name)]
        for node in reversed(list(graph)):
            if node.op_type == "Constant" and not any(v.uses() or v.is_graph_output() for v in node.outputs):
                graph.remove(node, safe=True)


# -- the proof ----------------------------------------------------------------------------------------------


def _prove(
    proto: onnx.ModelProto,
    made: onnx.ModelProto,
    examples: Examples,
    axes: Mapping[str, int | None],
    block: int,
) -> None:
    """Compare rows together with rows alone.

    Raises
    ------
    InvalidModelError
        Naming the first output that differs.
    """
    before, after = quiet_session(proto), quiet_session(made)
    blocks = -(-max(_SIZES) // block)
    alone = [run_quietly(before, examples.rows(i * block, (i + 1) * block)) for i in range(blocks)]
    for size in _SIZES:
        try:
            found = run_quietly(after, examples.rows(0, size))
        except FAILURES as exc:
            text = " ".join(str(exc).split())[:300]
            raise InvalidModelError(f"The model does not run with {size} rows: {text}") from exc
        for i, (name, axis) in enumerate(axes.items()):
            if axis is None:
                continue
            rows = np.concatenate([results[i] for results in alone], axis=axis)
            if not close(found[i], np.take(rows, range(size), axis=axis), _ROUNDING):
                raise InvalidModelError(
                    f"Output {name!r} of {size} rows together is not that of these rows alone: the model "
                    "mixes them."
                )
