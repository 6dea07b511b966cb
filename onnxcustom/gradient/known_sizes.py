"""Sizes that exporters compute when the graph runs although they are in its shapes.

With a free batch axis an exporter reads every size off the tensor: Shape, Gather, Div, Mul, then Slice. What
comes of sizes that are known becomes a constant, so that rules see windows, targets and scales as numbers;
and a Reshape to sizes of which some are known by name only has a shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.analysis.constants import constant_array
from onnxcustom.graph.building.builder import Builder
from onnxcustom.graph.preparation.passes import InferShapesPass

from .carried import untype

__all__ = ["fold_sizes"]

# Elements of the largest tensor that is computed here: shapes, windows, permutations, not tables.
_FEW = 2**10
_MADE_UP = "unk__"
# Shapes give sizes, and sizes shapes: how often.
_ROUNDS = 4
# Any: None is only what an operator does without.
Operands = list[Any]


def fold_sizes(model: ir.Model, op: Builder, weights: Collection[str] = ()) -> None:
    """Replace what is computed from known sizes alone, in place.

    Parameters
    ----------
    model : onnx_ir.Model
        Its main graph in topological order; subgraphs are left alone.
    op : Builder
        Makes the constants, which are added to the graph.
    weights : collection of str, default=()
        Initializers that are no constants: they are going to be trained.
    """
    graph = model.graph
    trained = {graph.initializers[name] for name in weights if name in graph.initializers}
    for _ in range(_ROUNDS):
        known: dict[ir.Value, np.ndarray] = {}
        shaped = False
        for node in graph:
            if node.domain or len(node.outputs) != 1 or not trained.isdisjoint(node.inputs):
                continue
            found = _computed(node, known)
            if found is not None and found.size <= _FEW:
                known[node.outputs[0]] = found
            elif node.op_type in _TARGETS:
                shaped |= _take_shape(node, _TARGETS[node.op_type](node, known))
        if not _replace(known, op) and not shaped:
            break
        for initializer in op.initializers:
            graph.register_initializer(initializer)
        op.initializers.clear()
        _forget_names(graph)
        InferShapesPass()(model)
        untype(graph)


def _forget_names(graph: ir.Graph) -> None:
    """Drop the names that onnx made up for sizes: what is known of them by now can take their place."""
    for value in (v for node in graph for v in node.outputs):
        dims = [] if value.shape is None else _dims(value.shape)
        if any(isinstance(d, str) and d.startswith(_MADE_UP) for d in dims):
            value.shape = ir.Shape([None if str(d).startswith(_MADE_UP) else d for d in dims])


def _replace(known: dict[ir.Value, np.ndarray], op: Builder) -> bool:
    """Let constants take the place of what is known; whether there was something."""
    replaced = False
    for value, array in known.items():
        if array.dtype == object or value.is_graph_output() or not _read_elsewhere(value, known):
            continue
        if value.dtype is not None and array.dtype != value.dtype.numpy():
            continue
        constant = op.const(array).value
        constant.shape = ir.Shape(list(array.shape))
        value.replace_all_uses_with(constant)
        replaced = True
    return replaced


def _take_shape(node: ir.Node, sizes: list[Any] | None) -> bool:
    """Give the result of a node the shape that its target says, and whether that is news."""
    y = node.outputs[0]
    if sizes is None:
        return False
    old = [None] * len(sizes) if y.shape is None else [d if isinstance(d, int) else d.value for d in y.shape]
    if len(old) != len(sizes):
        return False
    # A name that is not the target's own was made up; a number always holds.
    new = [
        o if n is None or (isinstance(o, int) and not isinstance(n, int)) else n
        for n, o in zip(sizes, old, strict=True)
    ]
    y.shape = ir.Shape(new)
    return new != old


def _reshaped(node: ir.Node, known: dict[ir.Value, np.ndarray]) -> list[Any] | None:
    """Shape of the result of a Reshape."""
    x, target = node.inputs[0], _operand(node.inputs[1], known)
    if target is None or target.ndim != 1 or x is None or node.attributes.get_int("allowzero", 0) == 1:
        return None
    sizes = [n if n is None or isinstance(n, str) else int(n) for n in target]
    if 0 in sizes:
        if x.shape is None:
            return None
        sizes = [_dims(x.shape)[i] if n == 0 else n for i, n in enumerate(sizes)]
    rest = _rest(x.shape, [n for n in sizes if n != -1]) if -1 in sizes else None
    return [rest if n == -1 else n for n in sizes]


def _expanded(node: ir.Node, known: dict[ir.Value, np.ndarray]) -> list[Any] | None:
    """Shape of the result of an Expand."""
    x, target = node.inputs[0], _operand(node.inputs[1], known)
    if x is None or x.shape is None or target is None or target.ndim != 1:
        return None
    sizes = [n if n is None or isinstance(n, str) else int(n) for n in target]
    given = _dims(x.shape)
    rank = max(len(sizes), len(given))
    pairs = zip([1] * (rank - len(given)) + given, [1] * (rank - len(sizes)) + sizes, strict=True)
    # Of two that are neither 1 nor the same by name, the number is the larger one.
    return [
        b if a in (1, b) else a if b == 1 or isinstance(a, int) else b if isinstance(b, int) else None
        for a, b in pairs
    ]


_TARGETS = {"Reshape": _reshaped, "Expand": _expanded}


def _dims(shape: ir.Shape) -> list[int | str | None]:
    return [d if isinstance(d, int) else d.value for d in shape]


def _rest(shape: ir.Shape | None, others: list[Any]) -> int | None:
    """The size that is left of a shape beside others, if names on both sides are the same."""
    if shape is None or None in others:
        return None
    given = [d if isinstance(d, int) else d.value for d in shape]
    names, numbers = (
        [sorted(n for n in v if isinstance(n, str)) for v in (given, others)],
        [math.prod(n for n in v if isinstance(n, int)) for v in (given, others)],
    )
    if None in given or names[0] != names[1] or not numbers[1] or numbers[0] % numbers[1]:
        return None
    return numbers[0] // numbers[1]


def _read_elsewhere(value: ir.Value, known: dict[ir.Value, np.ndarray]) -> bool:
    """Whether something reads a value that is not computed here itself."""
    made = (out for use in value.uses() for out in use.node.outputs)
    return any(v not in known or known[v].dtype == object or v.is_graph_output() for v in made)


def _computed(node: ir.Node, known: dict[ir.Value, np.ndarray]) -> np.ndarray | None:
    """Value of a node's output, in it names or None for open sizes; None if it is not computed of sizes."""
    if node.op_type == "Shape":
        return _shape(node)
    operands = [_operand(v, known) for v in node.inputs]
    function = _FUNCTIONS.get(node.op_type)
    if function is None or any(
        o is None and v is not None for o, v in zip(operands, node.inputs, strict=True)
    ):
        return None
    present = [o for o in operands if o is not None]
    if node.op_type not in _MOVE and any(o.dtype == object for o in present):
        return None
    try:
        with np.errstate(all="ignore"):
            made = function(node, operands)
            kept = any(o.dtype == object for o in present) and node.op_type != "Equal"
            found = np.array(made, dtype=object) if kept else np.asarray(made)
    except (TypeError, ValueError, IndexError, ZeroDivisionError, OverflowError):
        return None  # what is wrong with it the runtime says
    if found.dtype.kind == "f" and found.size != 1:
        return None  # numbers rather than sizes
    return _typed(found)


def _typed(found: np.ndarray) -> np.ndarray:
    """Without sizes that have a name or none integers again."""
    if found.dtype == object and all(isinstance(n, (int, np.integer)) for n in found.flat):
        return found.astype(np.int64)
    return found


def _shape(node: ir.Node) -> np.ndarray | None:
    value = node.inputs[0]
    if value is None or value.shape is None:
        return None
    start, end = node.attributes.get_int("start", 0), node.attributes.get("end")
    dims = [d if isinstance(d, int) else d.value for d in value.shape]
    return _typed(np.array(dims[start : None if end is None else end.as_int()], dtype=object))


def _operand(value: ir.Value | None, known: dict[ir.Value, np.ndarray]) -> np.ndarray | None:
    if value is None:
        return None
    if value in known:
        return known[value]
    if value.shape is not None and any(not isinstance(d, int) or d > _FEW for d in value.shape):
        return None
    array = constant_array(value)
    return None if array is None or array.size > _FEW or array.dtype.kind not in "iufb" else array


# -- operators ----------------------------------------------------------------------------------------


def _ints(array: np.ndarray | None) -> list[int] | None:
    return None if array is None else [int(n) for n in array.ravel()]


def _gather(node: ir.Node, operands: Operands) -> np.ndarray:
    return np.take(operands[0], operands[1].astype(np.int64), axis=node.attributes.get_int("axis", 0))


def _unsqueeze(node: ir.Node, operands: Operands) -> np.ndarray:
    return np.expand_dims(operands[0], tuple(_ints(operands[1]) or ()))


def _squeeze(node: ir.Node, operands: Operands) -> np.ndarray:
    axes = _ints(operands[1]) if len(operands) > 1 else None
    return np.squeeze(operands[0], None if axes is None else tuple(axes))


def _concat(node: ir.Node, operands: Operands) -> np.ndarray:
    return np.concatenate(operands, axis=node.attributes.get_int("axis", 0))


def _slice(node: ir.Node, operands: Operands) -> np.ndarray:
    x = operands[0]
    starts, ends, *rest = (_ints(o) for o in operands[1:])
    axes, steps = ([*rest, None, None])[:2]
    window = [slice(None)] * x.ndim
    for i, (start, end) in enumerate(zip(starts or (), ends or (), strict=True)):
        step = steps[i] if steps else 1
        if step < 1:
            raise ValueError("from last to first")
        window[axes[i] if axes else i] = slice(start, end, step)
    return x[tuple(window)]


def _cast(node: ir.Node, operands: Operands) -> np.ndarray:
    if operands[0].dtype == object:
        if node.attributes["to"].as_int() != ir.DataType.INT64:
            raise TypeError("open sizes are int64")
        return operands[0]
    return operands[0].astype(ir.DataType(node.attributes["to"].as_int()).numpy())


def _div(node: ir.Node, operands: Operands) -> np.ndarray:
    a, b = operands
    if a.dtype.kind == "f":
        return a / b
    if not b.all() or (a < 0).any() or (b < 0).any():
        raise ValueError("rounded towards zero")
    return a // b


def _mod(node: ir.Node, operands: Operands) -> np.ndarray:
    if operands[0].dtype.kind == "f" or not operands[1].all():
        raise ValueError("of integers")
    return np.mod(*operands)


def _reshape(node: ir.Node, operands: Operands) -> np.ndarray:
    target = _ints(operands[1]) or []
    if 0 in target:
        raise ValueError("means another size")
    return operands[0].reshape(target)


def _constant_of_shape(node: ir.Node, operands: Operands) -> np.ndarray:
    fill = node.attributes.get_tensor("value")
    one = np.zeros(1, np.float32) if fill is None else fill.numpy()
    shape = _ints(operands[0]) or []
    if np.prod(shape, dtype=np.float64) > _FEW:
        raise ValueError("large")
    return np.full(shape, one.ravel()[0], one.dtype)


def _range(node: ir.Node, operands: Operands) -> np.ndarray:
    start, limit, step = (o.ravel()[0] for o in operands)
    if not step or abs((limit - start) / step) > _FEW:
        raise ValueError("large")
    return np.arange(start, limit, step, dtype=operands[0].dtype)


def _expand(node: ir.Node, operands: Operands) -> np.ndarray:
    shape = np.broadcast_shapes(operands[0].shape, tuple(_ints(operands[1]) or ()))
    if np.prod(shape, dtype=np.float64) > _FEW:
        raise ValueError("large")
    return np.broadcast_to(operands[0], shape).copy()


def _reduce_prod(node: ir.Node, operands: Operands) -> np.ndarray:
    axes = _ints(operands[1]) if len(operands) > 1 and operands[1] is not None else None
    keep = bool(node.attributes.get_int("keepdims", 1))
    return np.prod(
        operands[0], axis=None if axes is None else tuple(axes), keepdims=keep, dtype=operands[0].dtype
    )


def _equal(node: ir.Node, operands: Operands) -> np.ndarray:
    a, b = operands
    if object not in (a.dtype, b.dtype):
        return np.equal(a, b)
    a, b = np.broadcast_arrays(a, b)
    return np.array([_same(*pair) for pair in zip(a.flat, b.flat, strict=True)]).reshape(a.shape)


def _same(a: Any, b: Any) -> bool:
    """Whether two sizes are the same: one that has a name is none below zero."""
    unknown = [n for n in (a, b) if n is None or isinstance(n, str)]
    known = [n for n in (a, b) if not (n is None or isinstance(n, str))]
    if unknown and not (known and known[0] < 0):
        raise ValueError("known when the graph runs")
    return not unknown and bool(a == b)


def _plain(function: Callable[..., Any]) -> Callable[[ir.Node, Operands], Any]:
    return lambda _, operands: function(*operands)


def _reduced(function: Callable[..., Any]) -> Callable[[ir.Node, Operands], Any]:
    def apply(_: ir.Node, operands: Sequence[np.ndarray]) -> Any:
        result = operands[0]
        for other in operands[1:]:
            result = function(result, other)
        return result

    return apply


_FUNCTIONS: dict[str, Callable[[ir.Node, Operands], Any]] = {
    "Gather": _gather,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Concat": _concat,
    "Slice": _slice,
    "Cast": _cast,
    "Identity": _plain(lambda x: x),
    "Reshape": _reshape,
    "Div": _div,
    "Mod": _mod,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "Expand": _expand,
    "ReduceProd": _reduce_prod,
    "Add": _plain(np.add),
    "Sub": _plain(np.subtract),
    "Mul": _plain(np.multiply),
    "Neg": _plain(np.negative),
    "Sqrt": _plain(np.sqrt),
    "Reciprocal": _plain(np.reciprocal),
    "Floor": _plain(np.floor),
    "Ceil": _plain(np.ceil),
    "Min": _reduced(np.minimum),
    "Max": _reduced(np.maximum),
    "Equal": _equal,
    "Greater": _plain(np.greater),
    "Less": _plain(np.less),
    "Not": _plain(np.logical_not),
    "Where": _plain(np.where),
}
# They move sizes, open ones too, without reading them.
_MOVE = {"Gather", "Unsqueeze", "Squeeze", "Concat", "Slice", "Cast", "Identity", "Reshape", "Where", "Equal"}
