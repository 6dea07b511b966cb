"""How operators are written in each version of the operator set, decided in this one place.

Emitters write the newest form, or an older one: constants move between operands and attributes as the version
of the operator has them, and an operator that is younger than the opset becomes what stood for it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxcustom.exceptions import InvalidModelError
from onnxcustom.graph.analysis.constants import constant_array
from onnxcustom.graph.analysis.operands import is_float
from onnxcustom.graph.analysis.operators import operator_schema

from .variables import Operand, Operators, Var

__all__ = ["stand_in", "written"]

# Operands that were attributes of another name.
_RENAMED = {("Pad", "constant_value"): "value"}

# Attributes that only matter where a tensor has no elements: before opset 14 a dimension of 0 could not be
# asked for, unless it came first.
_EMPTY_ONLY = frozenset({("Reshape", "allowzero")})

# The opset from which axes may be counted from behind.
_NEGATIVE_AXES = 11


@functools.cache
def _newest(op_type: str) -> onnx.defs.OpSchema | None:
    return operator_schema(op_type, onnx.defs.onnx_opset_version())


@functools.cache
def _signature(op_type: str, opset: int) -> tuple[list[str], frozenset[str]]:
    """Names of the operands and attributes of an operator that there is."""
    schema = operator_schema(op_type, opset)
    assert schema is not None
    return [i.name for i in schema.inputs], frozenset(schema.attributes)


def written(
    op_type: str, opset: int, operands: Sequence[Operand], attributes: dict[str, Any]
) -> tuple[list[Operand], dict[str, Any]]:
    """Operands and attributes of an ONNX operator as an opset has them.

    Parameters
    ----------
    op_type : str
        Operator of the default domain.
    opset : int
        Version of the operator set.
    operands : sequence of Var, onnx_ir.Value, number, array or None
        Operands as any version has them.
    attributes : dict
        Attributes as any version has them.

    Raises
    ------
    InvalidModelError
        The operator cannot say that in this opset, or is newer.
    """
    schema, newest = operator_schema(op_type, opset), _newest(op_type)
    operands = list(operands)
    if newest is None:
        return operands, attributes
    if schema is None:
        raise _error(op_type, opset, "does not exist")
    names, has = _signature(op_type, opset)
    if opset >= _NEGATIVE_AXES and len(operands) <= len(names) and has.issuperset(attributes):
        return operands, attributes  # nearly always
    known = [i.name for i in newest.inputs]
    attributes = dict(attributes)
    while len(operands) > len(names) and not _is_variadic(schema):
        operand = operands.pop()
        if operand is not None:
            name = known[len(operands)] if len(operands) < len(known) else "operand"
            _to_attribute(op_type, opset, schema, name, operand, attributes)
    for name in [n for n in attributes if n not in schema.attributes]:
        value = attributes.pop(name)
        if name in names:
            i = names.index(name)
            operands += [None] * (i + 1 - len(operands))
            operands[i] = np.asarray(value)
        elif not _means_nothing(newest, name, value):
            raise _error(op_type, opset, f"has no {name!r}")
    if opset < _NEGATIVE_AXES:
        _count_from_the_front(op_type, operands, attributes)
    return operands, attributes


def _to_attribute(
    op_type: str,
    opset: int,
    schema: onnx.defs.OpSchema,
    name: str,
    operand: Operand,
    attributes: dict[str, Any],
) -> None:
    """Say with an attribute what newer versions say with an operand."""
    array = _constant(operand)
    name = next(
        (n for n in (name, name.lower(), _RENAMED.get((op_type, name))) if n in schema.attributes), name
    )
    if name not in schema.attributes:
        if name == "steps" and array is not None and (array == 1).all():
            return
        raise _error(op_type, opset, f"has no {name!r}")
    if array is None:
        raise _error(op_type, opset, f"has {name!r} as an attribute, so that it must be a constant")
    kinds = onnx.defs.OpSchema.AttrType
    kind = schema.attributes[name].type
    flat = [v.item() for v in array.reshape(-1)]
    attributes[name] = flat if kind in (kinds.INTS, kinds.FLOATS) else flat[0]


def _constant(operand: Operand) -> np.ndarray | None:
    value = getattr(operand, "value", operand)
    if not isinstance(value, ir.Value):
        return np.asarray(operand)
    return constant_array(value)


def _means_nothing(newest: onnx.defs.OpSchema, name: str, value: Any) -> bool:
    """Whether an attribute that an older version lacks says what that version does anyway."""
    if (newest.name, name) in _EMPTY_ONLY:
        return True
    attribute = newest.attributes.get(name)
    if attribute is None or not attribute.default_value.name:
        return False
    default = onnx.helper.get_attribute_value(attribute.default_value)
    return bool(value == (default.decode() if isinstance(default, bytes) else default))


def _count_from_the_front(op_type: str, operands: Sequence[Operand], attributes: dict[str, Any]) -> None:
    """Negative axes, where the rank is known: early versions have none."""
    value = operands[0] if operands else None
    shape = getattr(value, "shape", None)
    if shape is None or isinstance(value, np.ndarray):
        return
    for name in ("axis", "axes"):
        axes = attributes.get(name)
        if isinstance(axes, int):
            attributes[name] = axes % len(shape) if axes < 0 and len(shape) else axes
        elif axes is not None:
            rank = len(shape) + (len(axes) if op_type == "Unsqueeze" else 0)
            attributes[name] = [int(a) % rank if a < 0 else int(a) for a in axes]


# -- operators that are younger than the opset -----------------------------------------------------


def stand_in(op: Operators, op_type: str) -> Callable[..., Any] | None:
    """What emits an operator, as it is from some opset on, in the older opset of a builder.

    Parameters
    ----------
    op : Operators
        Builder.
    op_type : str
        Operator of the default domain.

    Returns
    -------
    callable or None
        ``function(op, *operands, **attributes)``; None where the operator is there itself.
    """
    since, function = _STAND_INS.get(op_type, (0, None))
    return function if op.opset < since else None


def _typed(op: Operators, *operands: Operand) -> list[Var]:
    """Variables, of which numbers take the dtype of the first that has one."""
    like = next(op.wrap(v) for v in operands if _is_variable(v))  # type: ignore[arg-type]
    return [op.wrap(v) if _is_variable(v) else op.const(v, like=like) for v in operands]  # type: ignore[arg-type]


def _is_variable(operand: Operand) -> bool:
    return isinstance(operand, ir.Value) or isinstance(getattr(operand, "value", None), ir.Value)


def _sign(op: Operators, x: Var) -> Var:
    return op.Cast(op.Greater(x, 0), to=x.dtype) - op.Cast(op.Less(x, 0), to=x.dtype)


def _where(op: Operators, condition: Var, a: Operand, b: Operand) -> Var:
    """The sum of both, each brought to 0 where it is not chosen; NaN stays."""
    one, other = _typed(op, a, b)
    chosen = op.Cast(condition, to=one.dtype)
    if one.dtype is not None and one.dtype.is_integer():
        return one * chosen + other * (1 - chosen)
    made = []
    for part, left_out in ((one, 1 - chosen), (other, chosen)):
        bound = op.Reciprocal(left_out) - 1  # infinite where it is chosen, else 0
        made.append(op.Min(op.Max(part, -bound), bound))
    return made[0] + made[1]


def _extreme(op_type: str) -> Callable[..., Var]:
    """Max or Min, which did not broadcast, and had kernels for single precision only: by a reduction."""

    def emit(op: Operators, *operands: Operand) -> Var:
        result, *rest = _typed(op, *operands)
        for other in rest:
            # Not added: onnxruntime drops an addition of 1e-300, which it takes for 0.
            both = [result - _zeros(op, other), other - _zeros(op, result)]
            shape = both[0].value.shape
            stacked = op.Concat(*(op.Unsqueeze(v, [0]) for v in both), axis=0)
            if op_type == "Max":
                result = op.ReduceMax(stacked, [0], keepdims=0)
            else:
                result = -op.ReduceMax(-stacked, [0], keepdims=0)
            result.value.shape = shape
        return result

    return emit


def _zeros(op: Operators, like: Var, dtype: ir.DataType | None = None) -> Var:
    """Zeros of a tensor's shape, whatever it holds: that something is and is not so is true nowhere."""
    some = op.Cast(like, to=ir.DataType.BOOL)
    return op.Cast(op.And(some, op.Not(some)), to=like.dtype if dtype is None else dtype)


def _zeros_of_shape(op: Operators, shape: Operand, dtype: ir.DataType | None, what: str) -> Var:
    """Zeros of a shape that is the one of another tensor."""
    node = op.wrap(shape).value.producer() if _is_variable(shape) else None  # type: ignore[arg-type]
    if node is None or node.op_type != "Shape" or node.inputs[0] is None:
        raise _error(what, op.opset, "does not exist")
    return _zeros(op, op.wrap(node.inputs[0]), dtype)


def _expand(op: Operators, x: Operand, shape: Operand) -> Var:
    (value,) = _typed(op, x)
    return value - _zeros_of_shape(op, shape, value.dtype, "Expand")


def _constant_of_shape(op: Operators, shape: Operand, *, value: ir.TensorProtocol | None = None) -> Var:
    tensor = ir.tensor(np.zeros(1, np.float32)) if value is None else value
    one = op.const(tensor.numpy().reshape(()), tensor.dtype)
    array = _constant(shape)
    if array is not None:
        return op.const(np.full(array.tolist(), one.value.const_value.numpy()), tensor.dtype)  # type: ignore[union-attr]
    return op.Expand(one, shape)


def _scatter_elements(op: Operators, x: Var, indices: Var, updates: Var, *, axis: int = 0) -> Var:
    """Scatter; before, and where there is one index along the axis, a choice element by element."""
    if op.opset >= 9:
        made: Var = op.node("Scatter", x, indices, updates, axis=axis)
    else:
        made = op.Where(op.Equal(indices, _places(op, x, indices, axis, "ScatterElements")), updates, x)
    made.value.shape = x.value.shape
    return made


def _places(op: Operators, x: Var, indices: Var, axis: int, what: str) -> Var:
    """Places along an axis, to be compared with one index along it."""
    shape = indices.shape
    if x.rank is None or x.shape is None or shape is None or shape[axis] != 1:
        raise _error(what, op.opset, "does not exist")
    axis %= x.rank
    size = x.shape[axis]
    if isinstance(size, int):
        places = op.const(np.arange(size), ir.DataType.INT64)
    else:
        places = op.Range(0, op.Squeeze(op.Slice(op.Shape(x), [axis], [axis + 1], [0]), [0]), 1)
    return op.Reshape(places, np.array([-1 if i == axis else 1 for i in range(x.rank)]))


def _greater_or_equal(op: Operators, a: Operand, b: Operand) -> Var:
    return op.Or(op.Greater(a, b), op.Equal(a, b))


def _less_or_equal(op: Operators, a: Operand, b: Operand) -> Var:
    return op.Or(op.Less(a, b), op.Equal(a, b))


def _equal(op: Operators, a: Operand, b: Operand) -> Var:
    """Equal of floating-point numbers, two NaN of which are equal here."""
    one, other = _typed(op, a, b)
    if not is_float(one, unknown=False):
        return op.node("Equal", one, other)
    return op.Not(op.Or(op.Less(one, other), op.Greater(one, other)))


def _compared(op_type: str) -> Callable[..., Var]:
    """Less or Greater of integers, as numbers that hold those below 2**53."""

    def emit(op: Operators, a: Operand, b: Operand) -> Var:
        one, other = _typed(op, a, b)
        if not is_float(one):
            one, other = (op.Cast(v, to=ir.DataType.DOUBLE) for v in (one, other))
        return op.node(op_type, one, other)

    return emit


def _clip(
    op: Operators,
    x: Var,
    low: Operand = None,
    high: Operand = None,
    *,
    min: Any = None,
    max: Any = None,
) -> Var:
    """Bounds were attributes of single precision, and there was no kernel for others."""
    low, high = min if low is None else low, max if high is None else high
    bounds = {"min": low, "max": high}
    fixed = [b for b in bounds.values() if b is not None]
    if x.dtype == ir.DataType.FLOAT and op.opset < 11 and not any(map(_is_variable, fixed)):
        numbers: dict[str, Any] = {k: float(np.asarray(b)) for k, b in bounds.items() if b is not None}
        return op.node("Clip", x, **numbers)
    if x.dtype == ir.DataType.FLOAT and op.opset >= 11:
        return op.node("Clip", x, low, high)
    x = x if low is None else op.Max(x, low)
    return x if high is None else op.Min(x, high)


def _softmax(logarithm: bool) -> Callable[..., Var]:
    """Softmax or LogSoftmax along one axis: early ones took all from there on together."""
    op_type = "LogSoftmax" if logarithm else "Softmax"

    def emit(op: Operators, x: Var, *, axis: int = -1) -> Var:
        if x.rank is not None and axis % x.rank == x.rank - 1:
            return op.node(op_type, x, axis=x.rank - 1)
        if x.rank is None and axis == -1 and op.opset >= _NEGATIVE_AXES:
            return op.node(op_type, x, axis=-1)
        if x.rank is not None:
            axis %= x.rank
        below = x - op.ReduceMax(x, [axis], keepdims=1)
        exponential = op.Exp(below)
        total = op.ReduceSum(exponential, [axis], keepdims=1)
        made = below - op.Log(total) if logarithm else exponential / total
        made.value.shape = x.value.shape
        return made

    return emit


def _gather_elements(op: Operators, x: Var, indices: Var, *, axis: int = 0) -> Var:
    """Where there is one index along the axis: the sum of the elements, all others 0."""
    places = _places(op, x, indices, axis, "GatherElements")
    made = op.ReduceSum(op.Where(op.Equal(indices, places), x, 0), [axis % (x.rank or 1)], keepdims=1)
    made.value.shape = indices.value.shape
    return made


def _arg_max(op: Operators, x: Var, *, axis: int = 0, keepdims: int = 1) -> Var:
    """In double precision, for which there was no kernel: the first place of the maximum."""
    if x.dtype != ir.DataType.DOUBLE or x.rank is None:
        return op.node("ArgMax", x, axis=axis, keepdims=keepdims)
    axis %= x.rank
    best = op.ReduceMax(x, [axis], keepdims=1)
    column = ir.Value(shape=ir.Shape([1 if i == axis else None for i in range(x.rank)]))
    places = op.Cast(_places(op, x, op.wrap(column), axis, "ArgMax"), to=x.dtype)
    less = op.Cast(op.Less(x, best), to=x.dtype)
    far = op.ReduceMax(places, keepdims=0) + 1
    first = -op.ReduceMax(-(places + less * far), [axis], keepdims=keepdims)
    return op.Cast(first, to=ir.DataType.INT64)


def _range(op: Operators, start: Operand, limit: Operand, delta: Operand) -> Var:
    """By the places of ones, of which there are as many as numbers, all integers."""
    if op.opset < 9:
        raise _error("Range", op.opset, "does not exist")
    first, last, step = _typed(op, start, limit, delta)
    if (_constant(start), _constant(delta)) == (0, 1):
        return op.Reshape(op.NonZero(op.ConstantOfShape(op.Reshape(last, [1]), value=_ONE)), [-1])
    count = op.Div(last - first + step - 1, step)
    places = op.Reshape(op.NonZero(op.ConstantOfShape(op.Reshape(count, [1]), value=_ONE)), [-1])
    return first + step * places


def _mod(op: Operators, a: Operand, b: Operand) -> Var:
    """Of integers that are not negative, by a division that drops the rest."""
    one, other = _typed(op, a, b)
    return one - other * op.Div(one, other)


_ONE = ir.tensor(np.ones(1, np.int64))

# Operator -> the opset it is there from, as it is now, and what emits it before.
_STAND_INS: dict[str, tuple[int, Callable[..., Any]]] = {
    "ArgMax": (11, _arg_max),
    "Clip": (12, _clip),
    "ConstantOfShape": (9, _constant_of_shape),
    "Equal": (11, _equal),
    "Expand": (8, _expand),
    "GatherElements": (11, _gather_elements),
    "Greater": (9, _compared("Greater")),
    "GreaterOrEqual": (12, _greater_or_equal),
    "Less": (9, _compared("Less")),
    "LessOrEqual": (12, _less_or_equal),
    "LogSoftmax": (13, _softmax(True)),
    "Max": (8, _extreme("Max")),
    "Min": (8, _extreme("Min")),
    "Mod": (10, _mod),
    "Range": (11, _range),
    "ScatterElements": (11, _scatter_elements),
    "Sign": (9, _sign),
    "Softmax": (13, _softmax(False)),
    "Where": (9, _where),
}


def _is_variadic(schema: onnx.defs.OpSchema) -> bool:
    variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
    return bool(schema.inputs) and schema.inputs[-1].option == variadic


def _error(op_type: str, opset: int, what: str) -> InvalidModelError:
    return InvalidModelError(
        f"{op_type} of opset {opset} {what}: convert the model to a newer opset (onnx.version_converter)."
    )
