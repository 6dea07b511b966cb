"""The update of one weight as an ONNX model and as an ONNX function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxcustom._parameters import check_number, is_count
from onnxcustom.exceptions import InvalidDataError, InvalidParameterError
from onnxcustom.graph.analysis.traversal import sort_nodes
from onnxcustom.graph.building.builder import Builder, Var
from onnxcustom.graph.trainable.roles import Role

from .rule import Rule, State

__all__ = ["State", "build_update", "onnx_function", "update_model"]


def update_model(
    optimizer: Rule,
    shape: Sequence[int | str] | None = None,
    dtype: Any = np.float32,
    opset: int = 18,
) -> onnx.ModelProto:
    """The update of one weight as an ONNX model, for any runtime.

    Parameters
    ----------
    optimizer : BaseLearningRate
        Update rule.
    shape : sequence of int, optional
        Shape of weight and gradient; by default any, of any rank: runtimes take such a model,
        ``onnx.checker`` asks for a shape.
    dtype : dtype, default=float32
        Their dtype.
    opset : int, default=18
        Version of the ONNX domain.

    Returns
    -------
    onnx.ModelProto
        Inputs ``weight``, ``gradient``, the state, ``learning_rate`` (a scalar of the weight's dtype), ``t``
        (the step counted from 1, a double) and one scalar for every other hyper-parameter that has a
        schedule; outputs ``new_weight`` and ``new_<state>``.

    Raises
    ------
    InvalidDataError
        A dtype that is not floating-point.
    ValueError
        An opset that there is not.

    Examples
    --------
    >>> import numpy as np
    >>> from onnx.reference import ReferenceEvaluator
    >>> from onnxcustom import optim
    >>> model = optim.update_model(optim.SGD(momentum=0.9), shape=(2,))
    >>> [i.name for i in model.graph.input]
    ['weight', 'gradient', 'momentum', 'learning_rate', 't']
    >>> f = np.float32
    >>> feeds = {"weight": f([1, 2]), "gradient": f([1, 1]), "momentum": f([0, 1])}
    >>> feeds.update(learning_rate=f(0.5), t=np.float64(1))
    >>> ReferenceEvaluator(model).run(None, feeds)[0]
    array([0.5, 0.6], dtype=float32)
    """
    shape = ["n"] if shape is None else shape  # a model has to declare one
    return ir.to_proto(build_update(optimizer, dtype, shape, opset))


def onnx_function(optimizer: Rule, dtype: Any = np.float32, opset: int = 18) -> onnx.FunctionProto:
    """The update of one weight as a function of domain ``onnxcustom``, to be called from other graphs.

    Parameters
    ----------
    optimizer : BaseLearningRate
        Update rule; its class names the function.
    dtype : dtype, default=float32
        Dtype of the weights it updates: the constants of the formula have it.
    opset : int, default=18
        Version of the ONNX domain.

    Returns
    -------
    onnx.FunctionProto
        Inputs and outputs as those of :func:`update_model`.

    Raises
    ------
    InvalidDataError, ValueError
        As :func:`update_model`.
    """
    model = ir.to_proto(build_update(optimizer, dtype, None, opset))
    graph = model.graph
    constants = [onnx.helper.make_node("Constant", [], [t.name], value=t) for t in graph.initializer]
    return onnx.helper.make_function(
        "onnxcustom",
        type(optimizer).__name__,
        [v.name for v in graph.input],
        [v.name for v in graph.output],
        [*constants, *graph.node],
        opset_imports=list(model.opset_import),
    )


def build_update(
    rule: Rule,
    dtype: Any,
    shape: Sequence[int | str] | None,
    opset: int,
    *,
    divided: bool = False,
    name: str | None = None,
    role: Role = "unknown",
    index: int | None = None,
) -> ir.Model:
    """The update of one weight; `divided` has the gradient divided by an input ``batch_size``."""
    newest = onnx.defs.onnx_opset_version()
    check_number("opset", opset, f"[7, {newest}]", integral=True)
    dtype, kind = _checked(rule, dtype, shape)
    op = Builder(opset)
    w = op.input("weight", kind, shape)
    g = op.input("gradient", kind, shape)
    states = _state_inputs(op, rule, dtype, shape)
    lr = op.input("learning_rate", update_dtype(rule, kind), [])
    t = op.input("t", ir.DataType.DOUBLE, [])
    values = {n: op.input(f"{n}_value", update_dtype(rule, kind), []) for n in rule.scheduled}
    rows = [op.input("batch_size", kind, [])] if divided else []
    new, new_state = rule.apply(
        op, w, g / rows[0] if rows else g, State(states), lr, t,
        name=name, role=role, index=index, values=values,
    )  # fmt: skip
    outputs = [_output(op, "weight", new, shape)]
    for state in states:
        outputs.append(_output(op, state, new_state[state], states[state].shape))
    inputs = [w, g, *states.values(), lr, t, *values.values(), *rows]
    graph = op.graph(inputs, outputs, name=f"{type(rule).__name__}_update")
    sort_nodes(graph)  # what is emitted once may be emitted late
    ir_version = onnx.helper.find_min_ir_version_for(
        [onnx.helper.make_opsetid(d, v) for d, v in op.opset_imports().items()], ignore_unknown=True
    )
    # Before version 4 initializers had to be inputs, too.
    return ir.Model(graph, ir_version=max(4, ir_version), producer_name="onnxcustom")


def _checked(rule: Any, dtype: Any, shape: Any) -> tuple[np.dtype, ir.DataType]:
    """The dtype of a weight, for NumPy and for ONNX; refuses what is no rule, dtype or shape."""
    if not isinstance(rule, Rule):
        raise InvalidParameterError(f"optimizer must be an update rule, not {rule!r:.80}.")
    try:
        dtype = np.dtype(dtype)
        kind = ir.DataType.from_numpy(dtype)
    except (TypeError, ValueError) as exc:
        raise InvalidParameterError(f"dtype must be that of a weight, not {dtype!r:.80}.") from exc
    if not kind.is_floating_point():
        raise InvalidDataError(f"Only floating-point weights can be updated, not {dtype}.")
    dims = shape if isinstance(shape, (list, tuple)) else [None]
    if shape is not None and not all(isinstance(d, str) or is_count(d) for d in dims):
        raise InvalidParameterError(f"shape must be a list of sizes and names of sizes, not {shape!r:.80}.")
    return dtype, kind


def update_dtype(rule: Rule, dtype: ir.DataType) -> ir.DataType:
    """The dtype in which a weight of `dtype` is updated, and its scalars are."""
    return ir.DataType.FLOAT if rule.multi_precision and dtype == ir.DataType.FLOAT16 else dtype


def _state_inputs(
    op: Builder, rule: Rule, dtype: np.dtype, shape: Sequence[int | str] | None
) -> dict[str, Var]:
    """One input for each state, of the dtype that the rule starts it with."""
    probe = (2, 3) if shape is None else tuple(d if isinstance(d, int) else 3 for d in shape)
    states = rule.create_state(np.zeros(probe, dtype))
    # Of the weight's shape, known or not, but for what is a scalar whatever the weight is.
    return {
        name: op.input(
            name, ir.DataType.from_numpy(state.dtype), shape if state.shape == probe else state.shape
        )
        for name, state in states.items()
    }


def _output(op: Builder, name: str, var: Var, shape: Sequence | None) -> Var:
    """The output of a new value, computed by a node of its own."""
    if var.value.producer() is None or (var.value.name or "").startswith("new_"):
        var = op.Identity(var)
    var.value.name = op.unique(f"new_{name}")
    if shape is not None:
        var.value.shape = ir.Shape(shape)
    return var
