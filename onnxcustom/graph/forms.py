"""How operators are written in each version of the operator set, decided in this one place.

Emitters write the newest form, or an older one: constants move between operands and attributes as the version
of the operator has them, and an operator that is younger than the opset becomes what stood for it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxcustom.exceptions import InvalidModelError

if TYPE_CHECKING:
    from .builder import Operand

__all__ = ["operator_schema", "written"]

# Operands that were attributes of another name.
_RENAMED = {("Pad", "constant_value"): "value"}

# Attributes that only matter where a tensor has no elements: before opset 14 a dimension of 0 could not be
# asked for, unless it came first.
_EMPTY_ONLY = frozenset({("Reshape", "allowzero")})

# The opset from which axes may be counted from behind.
_NEGATIVE_AXES = 11


@functools.cache
def operator_schema(op_type: str, version: int, domain: str = "") -> onnx.defs.OpSchema | None:
    """The schema of an operator, None where there is none."""
    try:
        return onnx.defs.get_schema(op_type, version, "" if domain == "ai.onnx" else domain)
    except onnx.defs.SchemaError:
        return None


@functools.cache
def _newest(op_type: str) -> onnx.defs.OpSchema | None:
    return operator_schema(op_type, onnx.defs.onnx_opset_version())


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
        The operator cannot say that in this opset.
    """
    schema, newest = operator_schema(op_type, opset), _newest(op_type)
    operands = list(operands)
    if schema is None or newest is None:
        return operands, attributes
    names, known = ([i.name for i in s.inputs] for s in (schema, newest))
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
    tensor = None if value.is_graph_input() else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


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


def _is_variadic(schema: onnx.defs.OpSchema) -> bool:
    variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
    return bool(schema.inputs) and schema.inputs[-1].option == variadic


def _error(op_type: str, opset: int, what: str) -> InvalidModelError:
    return InvalidModelError(
        f"{op_type} of opset {opset} {what}: convert the model to a newer opset (onnx.version_converter)."
    )
