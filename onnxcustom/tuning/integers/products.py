"""Products of integers, as dynamic quantization writes them: MatMulInteger or ConvInteger, Cast, Mul.

Behind DynamicQuantizeLinear integers are x / s + z with a scale s that the graph computes. Their product with
the integers of a weight, times s and the scale of the weight, is the product of x and the weight.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.analysis.constants import constant_array
from onnxcustom.graph.analysis.operands import FLOATS
from onnxcustom.graph.analysis.operators import is_op
from onnxcustom.graph.building.builder import Var

from .casts import written_out
from .rewriting import Rewriting, attributes, integer, same
from .steps import spread, steps

__all__: list[str] = []

_PRODUCTS = ("MatMulInteger", "ConvInteger")


@dataclasses.dataclass(frozen=True)
class _Operand:
    """An operand of a product of integers.

    Attributes
    ----------
    q, zero : onnx_ir.Value
        Integers and zero point.
    array : ndarray, optional
        Steps from the zero point, of constant integers.
    scale : onnx_ir.Value, optional
        What makes numbers of the integers, where it is known.
    """

    q: ir.Value
    zero: ir.Value | None
    array: np.ndarray | None
    scale: ir.Value | None


@integer("Mul", domain="")
def scaled_product(walk: Rewriting, node: ir.Node) -> Var | None:
    """Cast(a b) s  of integers a and b;  (Cast(a) - zero) s  of constant integers a."""
    if (made := written_out(walk, node)) is not None:
        return made
    for i in (0, 1):
        product = _product_behind(node.inputs[i])
        if product is not None:
            return _scaled(walk, product, node.inputs[1 - i], _type(node.inputs[i]))
    return None


@integer("Cast", domain="")
def product_as_number(walk: Rewriting, node: ir.Node) -> Var | None:
    """Cast(a b) of integers that no Mul behind makes numbers of."""
    product = _product_behind(node.outputs[0])
    if product is None:
        return None
    readers = [use.node for use in node.outputs[0].uses()]
    if not node.outputs[0].is_graph_output() and all(
        is_op(reader, "Mul") and _plan(walk, product, _other(reader, node.outputs[0])) is not None
        for reader in readers
    ):
        return None
    operands = _operands(walk, product, [])
    found = _emit(walk, product, operands, _Plan(np.ones((), np.float32), []), _type(node.outputs[0]))
    for operand in operands:
        if operand.scale is not None:
            scale = walk.op.wrap(operand.scale)
            found = found / (scale if scale.dtype == found.dtype else walk.op.Cast(scale, to=found.dtype))
    return found


def _other(node: ir.Node, value: ir.Value) -> ir.Value | None:
    return node.inputs[1] if node.inputs[0] is value else node.inputs[0]


def _product_behind(value: ir.Value | None) -> ir.Node | None:
    """The product of integers that a value is, as floating-point numbers."""
    cast = None if value is None else value.producer()
    if cast is None or not is_op(cast, "Cast") or cast.attributes.get_int("to", 0) not in FLOATS:
        return None
    node = cast.inputs[0].producer() if cast.inputs[0] is not None else None
    return node if is_op(node, *_PRODUCTS) else None


def _type(value: ir.Value | None) -> int:
    """The type that Cast makes."""
    assert value is not None
    node = value.producer()
    assert node is not None
    return node.attributes.get_int("to", 1)


def _operands(walk: Rewriting, node: ir.Node, factors: list[ir.Value]) -> list[_Operand]:
    return [_operand(walk, node, i, factors) for i in (0, 1)]


def _operand(walk: Rewriting, node: ir.Node, i: int, factors: list[ir.Value]) -> _Operand:
    """Operand i of a product that is multiplied by `factors`."""
    q, zero = node.inputs[i], node.inputs[i + 2] if len(node.inputs) > i + 2 else None
    assert q is not None
    array, offset = constant_array(q), constant_array(zero)
    if array is not None and (zero is None or offset is not None):
        if offset is not None and offset.size > 1:
            # One for each column of a matrix b, each row of a, each filter of a convolution.
            axis = 0 if node.op_type == "ConvInteger" else (-2, -1)[i]
            offset = spread(offset, array.shape, axis) if offset.ndim == 1 else offset
        return _Operand(q, zero, steps(array, offset), None)
    scale, point = walk.quantization(q)
    if scale is None and walk.comes_from_constant(q):
        # Rows of a table, say: the scales of both operands are multiplied in this order.
        constants = [f for f in factors if constant_array(f) is not None]
        scale, point = (constants[i], zero) if len(constants) == 2 else (None, None)
    return _Operand(q, zero, None, scale if scale is not None and same(point, zero) else None)


def _factors(value: ir.Value | None) -> list[ir.Value]:
    """What is multiplied to compute a value."""
    assert value is not None
    node = value.producer()
    if is_op(node, "Mul"):
        assert node is not None
        return [f for v in node.inputs for f in _factors(v)]
    if is_op(node, "Cast", "Identity"):  # scales of a model of float16
        assert node is not None
        behind = _factors(node.inputs[0])
        return behind if all(f.dtype in FLOATS for f in behind) else [value]
    return [value]


@dataclasses.dataclass(frozen=True)
class _Plan:
    """How a product of numbers is scaled: by constants, and by what else the graph computes."""

    constant: np.ndarray
    computed: list[ir.Value]


def _plan(walk: Rewriting, product: ir.Node, scale: ir.Value | None) -> tuple[list[_Operand], _Plan] | None:
    """What is left of a scale once those of the operands are taken out, None if they are not in it."""
    factors = _factors(scale)
    operands = _operands(walk, product, factors)
    constant = np.ones((), dtype=np.float32)
    for operand in operands:
        if operand.scale is None:
            continue
        found = next((i for i, f in enumerate(factors) if f is operand.scale), None)
        number = constant_array(operand.scale)
        if found is not None:
            del factors[found]
        elif number is not None and number.size == 1:
            constant = constant / number.reshape(())
        else:
            return None
    computed = []
    for factor in factors:
        array = constant_array(factor)
        if array is None:
            computed.append(factor)
        else:
            constant = array if constant.size == 1 and constant == 1 else constant * array
    return operands, _Plan(constant, computed)


def _scaled(walk: Rewriting, product: ir.Node, scale: ir.Value | None, dtype: Any) -> Var | None:
    found = _plan(walk, product, scale)
    return None if found is None else _emit(walk, product, *found, dtype)


def _emit(walk: Rewriting, product: ir.Node, operands: list[_Operand], plan: _Plan, dtype: Any) -> Var:
    """The product of the numbers that the operands stand for."""
    constant, taken = plan.constant, False
    numbers: list[Var] = []
    for i in (1, 0):  # the scale goes into the right operand rather than the left one
        operand = operands[i]
        if operand.array is None:
            numbers.append(_computed(walk, operand, dtype))
            continue
        factor = None if taken else _fitting(constant, operand.array, product.op_type, i)
        numbers.append(_weight(walk, operand, factor, dtype))
        taken = taken or factor is not None
    op = walk.op
    kind = product.op_type.removesuffix("Integer")
    found: Var = op.call(kind, *reversed(numbers), **attributes(product))
    if not taken and not (constant.size == 1 and constant == 1):
        found = found * op.const(constant, like=found)
    for value in plan.computed:
        scale = op.wrap(value)
        found = found * (scale if scale.dtype in (None, found.dtype) else op.Cast(scale, to=found.dtype))
    return found


def _computed(walk: Rewriting, operand: _Operand, dtype: Any) -> Var:
    """A computed operand as numbers."""
    op = walk.op
    if operand.scale is not None:
        found = walk.operand(operand.q, operand.scale, operand.zero)
        return found if found.dtype == dtype else op.Cast(found, to=dtype)
    found = op.Cast(operand.q, to=dtype)
    return found if operand.zero is None else found - op.Cast(operand.zero, to=dtype)


def _weight(walk: Rewriting, operand: _Operand, factor: np.ndarray | None, dtype: Any) -> Var:
    array = operand.array
    assert array is not None
    if not walk.chooses(operand.q):
        return _integers(walk, operand, factor, dtype)
    wide = ir.DataType(dtype).numpy()
    numbers = array if factor is None else array * factor
    key = (operand.q, *(() if factor is None else (factor.tobytes(), factor.shape)))
    return walk.weight(operand.q, key, lambda: numbers.astype(wide))


def _integers(walk: Rewriting, operand: _Operand, factor: np.ndarray | None, dtype: Any) -> Var:
    """Constant integers that stay so, behind a DequantizeLinear."""
    op, zero = walk.op, constant_array(operand.zero)
    scale = np.ones((), np.float32) if factor is None else np.squeeze(factor).astype(np.float32)
    if zero is not None and zero.size != scale.size:
        shape = np.broadcast_shapes(np.shape(np.squeeze(zero)), scale.shape)
        scale, zero = np.broadcast_to(scale, shape), np.broadcast_to(np.squeeze(zero), shape)
    assert operand.array is not None
    axis = None
    if scale.size > 1:
        axis = 0 if factor is not None and factor.ndim == operand.array.ndim else operand.array.ndim - 1
    point = None if zero is None else op.const(np.asarray(zero, order="C").reshape(scale.shape))
    found = op.DequantizeLinear(operand.q, op.const(np.asarray(scale, order="C")), point, axis=axis)
    return found if found.dtype == dtype else op.Cast(found, to=dtype)


def _fitting(constant: np.ndarray, array: np.ndarray, op_type: str, i: int) -> np.ndarray | None:
    """Scales in the shape in which they can be multiplied into a weight, None if they cannot."""
    if constant.size == 1:
        return constant.reshape(())
    if op_type == "ConvInteger":
        filters = array.shape[0]
        fits = i == 1 and constant.size == filters and constant.ndim == array.ndim
        fits = fits and constant.shape[1] == filters
        return constant.reshape([filters] + [1] * (array.ndim - 1)) if fits else None
    # A scale for each column, in front of which there may be ones.
    if i == 1 and array.ndim >= 2 and constant.shape[-1] == constant.size == array.shape[-1]:
        return constant.reshape(-1)
    return None


# -- operators of onnxruntime that do all of that ----------------------------------------------------------


@integer("DynamicQuantizeMatMul")
def dynamic_quantize_matmul(walk: Rewriting, node: ir.Node) -> Var:
    """Y = a b + bias, a rounded before."""
    a, b, scale = node.inputs[:3]
    zero, bias = (node.inputs[i] if len(node.inputs) > i else None for i in (3, 4))
    assert a is not None
    assert b is not None
    assert scale is not None
    op = walk.op
    y = op.MatMul(walk.rounded(a), walk.operand(b, scale, zero, axis=-1))
    return y if bias is None else y + op.wrap(bias)


@integer("MatMulIntegerToFloat")
def matmul_integer_to_float(walk: Rewriting, node: ir.Node) -> Var:
    """Y = a b + bias."""
    a, b, a_scale, b_scale = node.inputs[:4]
    a_zero, b_zero, bias = (node.inputs[i] if len(node.inputs) > i else None for i in (4, 5, 6))
    assert a is not None
    assert b is not None
    assert a_scale is not None
    assert b_scale is not None
    op = walk.op
    y = op.MatMul(walk.operand(a, a_scale, a_zero, axis=-2), walk.operand(b, b_scale, b_zero, axis=-1))
    return y if bias is None else y + op.wrap(bias)
