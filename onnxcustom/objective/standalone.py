"""A loss on its own: its ONNX model, and the sessions that run it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import onnx
import onnx_ir as ir

from onnxcustom.exceptions import InvalidDataError
from onnxcustom.graph.building.builder import Builder
from onnxcustom.graph.preparation.unused import RemoveUnusedPass

from .rows import shaped

__all__ = ["loss_model", "make_model", "run_loss"]

Spec = tuple[ir.DataType, Any]  # dtype and shape


class Evaluated(Protocol):
    """What is asked of a loss, or of what mixes several, to evaluate it alone."""

    opset: int

    @property
    def depends_on_columns(self) -> bool:
        """Whether the graph depends on the number of columns."""

    @property
    def class_axis(self) -> int | None:
        """Axis of the classes in a prediction, None for the second."""

    def build(self, op: Builder, predicted: Any, expected: Any, weight: Any = None) -> Any:
        """Emit the loss."""

    def target(self, dtype: ir.DataType, rank: int | None, shape: Sequence | None = None) -> Any:
        """Dtype and shape of what is expected."""

    def check_expected(self, expected: np.ndarray, columns: int | None = None) -> None:
        """Refuse values that no prediction can be compared with."""


def make_model(op: Builder, inputs: Sequence, outputs: Sequence[tuple[str, Any]], name: str) -> ir.Model:
    """A model of what `op` holds, dead nodes removed.

    `outputs` are pairs of name and variable; where no type is known, it is that of the first input.
    """
    values = []
    for output, var in outputs:
        value = op.Identity(var).value if var.value.producer() is None or var.value in values else var.value
        value.name = output
        values.append(value)
        if value.dtype is None:
            value.dtype = inputs[0].dtype
    graph = op.graph(inputs, [op.wrap(v) for v in values], name=name)
    version = onnx.helper.find_min_ir_version_for(
        [onnx.helper.make_opsetid(domain, number) for domain, number in op.opset_imports().items()],
        ignore_unknown=True,
    )
    # Before version 4 initializers had to be inputs, too.
    model = ir.Model(graph, ir_version=max(4, version), producer_name="onnxcustom")
    RemoveUnusedPass()(model)
    return model


def loss_model(
    loss: Evaluated,
    predicted: Spec,
    expected: Spec,
    weight: Spec | None = None,
    outputs: Sequence[str] = ("loss", "gradient"),
    opset: int | None = None,
) -> onnx.ModelProto:
    """The ONNX model of a loss; see :meth:`onnxcustom.objective.Loss.to_onnx`."""
    op = Builder(opset or loss.opset, taken=["expected", "predicted", "weight", "loss", "gradient", "scores"])
    y = op.input("expected", *_named(expected))
    p = op.input("predicted", *_named(predicted))
    inputs = [y, p]
    w = None
    if weight is not None:
        w = op.input("weight", *_named(weight))
        inputs.append(w)
    order = _classes_second(loss, p.rank)
    terms = loss.build(op, _transposed(op, p, order), y, w)
    if "gradient" in outputs:
        back = [order.index(a) for a in range(len(order))]
        terms = dataclasses.replace(terms, gradient=_transposed(op, terms.gradient, back))
    named = [(name, op.wrap(getattr(terms, name))) for name in outputs]
    for _, var in named:
        var.value.dtype = predicted[0]
    return ir.to_proto(make_model(op, inputs, named, type(loss).__name__))


def _classes_second(loss: Evaluated, rank: int | None) -> list[int]:
    """Axes of a prediction in the order that :meth:`Loss.build` wants, the classes second.

    Raises
    ------
    InvalidDataError
        A prediction of so many dimensions does not have the axis of the classes, or its rows are there.
    """
    axes, given = list(range(rank or 0)), loss.class_axis
    if given is None or rank is None:
        return axes
    axis = given + rank if given < 0 else given
    if not 0 < axis < rank:
        raise InvalidDataError(
            f"class_axis={given} of {type(loss).__name__} is no axis of classes: the prediction has {rank} "
            "dimensions, the first of which holds the rows."
        )
    axes.insert(1, axes.pop(axis))
    return axes


def _transposed(op: Builder, var: Any, order: Sequence[int]) -> Any:
    if list(order) == sorted(order):
        return var
    return shaped(
        op.Transpose(var, perm=list(order)), None if var.shape is None else [var.shape[a] for a in order]
    )


def _named(spec: Spec) -> tuple[ir.DataType, list | None]:
    """Axis 0, the batch, is never fixed."""
    dtype, shape = spec
    return dtype, None if shape is None else [f"d{i}" if i == 0 else d for i, d in enumerate(shape)]


def run_loss(
    loss: Evaluated, device: Any, expected: Any, predicted: Any, weight: Any, outputs: tuple[str, ...]
) -> Sequence[Any]:
    """Run a loss; sessions are kept on it, one for each device and combination of dtypes and ranks."""
    from onnxcustom.runtime import Binding, create_session, parse_device, run_values, to_ortvalue

    where = parse_device(device)
    feeds = {"expected": to_ortvalue(expected, where), "predicted": to_ortvalue(predicted, where)}
    if weight is not None:
        feeds["weight"] = to_ortvalue(weight, where)
    order = _classes_second(loss, len(feeds["predicted"].shape()))
    _check(loss, feeds, order)
    fixed = [1] * loss.depends_on_columns
    specs = {name: _spec(value, fixed) for name, value in feeds.items()}
    specs["predicted"] = _spec(feeds["predicted"], order[1:2] if fixed else [])
    key = (where.name, outputs, repr(specs))
    sessions = loss.__dict__.setdefault("_sessions", {})
    if key not in sessions:
        model = loss_model(loss, specs["predicted"], specs["expected"], specs.get("weight"), outputs=outputs)
        sessions[key] = create_session(model, where)
    if where.type == "cpu":
        return run_values(sessions[key], feeds, outputs)
    # Outputs stay on the device; a binding belongs to one call, so that threads may share the loss.
    bound = Binding(sessions[key], where)
    for name, value in feeds.items():
        bound.bind_input(name, value)
    for name in outputs:
        bound.bind_output(name)
    return bound.run()


def _spec(value: Any, fixed: Sequence[int]) -> Spec:
    """Dtype and rank of an OrtValue; the sizes of axes that the graph depends on, and of a single column."""
    shape = value.shape()
    return ir.DataType(value.element_type()), [
        d if i in fixed or (i == 1 and d == 1) else None for i, d in enumerate(shape)
    ]


def _check(loss: Evaluated, feeds: dict[str, Any], order: Sequence[int]) -> None:
    """Refuse what would fail inside onnxruntime, or worse, broadcast."""
    shapes = {name: list(value.shape()) for name, value in feeds.items()}
    shape = [shapes["predicted"][axis] for axis in order]
    dtype = ir.DataType(feeds["predicted"].element_type())
    if not dtype.is_floating_point():
        raise InvalidDataError(
            f"predicted is a tensor of {dtype}: losses are taken on floating-point numbers."
        )
    if not shape:
        raise InvalidDataError("predicted is a scalar: the first axis of a batch holds its rows.")
    for name, other in shapes.items():
        if not other or other[0] != shape[0]:
            raise InvalidDataError(
                f"{name} has shape {other}, predicted has shape {shape}: they differ in the number of rows."
            )
    target = loss.target(dtype, len(shape), shape)
    if not _fits(shapes["expected"], shape, target, loss.depends_on_columns):
        raise InvalidDataError(
            f"expected has shape {shapes['expected']}, but for predictions of shape {shape} "
            f"{type(loss).__name__} takes shape {target.shape}."
        )
    if "weight" in shapes and int(np.prod(shapes["weight"], dtype=np.int64)) != shape[0]:
        raise InvalidDataError(
            f"weight has shape {shapes['weight']}: one weight is needed for each of the {shape[0]} rows."
        )
    if feeds["expected"].device_name().lower() == "cpu":
        columns = shape[-1] if target.kind == "own" else shape[1] if len(shape) > 1 else None
        loss.check_expected(feeds["expected"].numpy(), columns)


def _fits(shape: Sequence[int], predicted: Sequence[int], target: Any, columns: bool) -> bool:
    """Whether expected values have a shape that goes with predictions."""
    if target.shape is None:
        return True
    if target.kind == "own":
        wanted = target.shape
        return (
            math.prod(shape) == shape[0]
            if len(wanted) == 1
            else len(shape) == len(wanted)
            and all(a == b or not isinstance(b, int) for a, b in zip(shape, wanted, strict=True))
        )
    allowed = {math.prod(predicted)}
    if columns and len(predicted) > 1:
        allowed.add(math.prod([predicted[0], *predicted[2:]]))
    return math.prod(shape) in allowed
