"""Operators that read integers with a scale and a zero point each and write them (QLinear...)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.building.builder import Var

from .rewriting import Rewriting, attributes, channels_first, channels_last, integer

__all__: list[str] = []


def _input(node: ir.Node, i: int) -> ir.Value | None:
    return node.inputs[i] if i < len(node.inputs) else None


def _present(node: ir.Node, i: int) -> ir.Value:
    value = _input(node, i)
    assert value is not None
    return value


def _operand(walk: Rewriting, node: ir.Node, i: int, axis: int = 1) -> Var:
    """The numbers of integers, scale and zero point at `i` and behind it."""
    return walk.operand(_present(node, i), _present(node, i + 1), _input(node, i + 2), axis)


def _rounded(walk: Rewriting, y: Var, scale: ir.Value | None, zero: ir.Value | None) -> Var:
    """Integers again: what reads them next takes the numbers from in front of this."""
    assert scale is not None
    dtype = y.dtype
    if scale.dtype is not None and dtype is not None and scale.dtype != dtype:
        y = walk.op.Cast(y, to=scale.dtype)
    return walk.op.QuantizeLinear(y, scale, zero)


def _declare(name: str, emit: Callable[[Rewriting, ir.Node, Var], Var]) -> None:
    """The rule of an operator of one operand."""

    @integer(f"QLinear{name}")
    def rule(walk: Rewriting, node: ir.Node) -> Var:
        y = emit(walk, node, _operand(walk, node, 0))
        return _rounded(walk, y, _input(node, 3), _input(node, 4))


_declare("Sigmoid", lambda walk, node, x: walk.op.Sigmoid(x))
_declare("LeakyRelu", lambda walk, node, x: walk.op.LeakyRelu(x, **attributes(node)))
_declare("Softmax", lambda walk, node, x: _softmax(walk, node, x))
_declare("ReduceMean", lambda walk, node, x: walk.op.ReduceMean(x, **attributes(node)))
_declare("AveragePool", lambda walk, node, x: _pooled(walk, node, x, "AveragePool"))
_declare("GlobalAveragePool", lambda walk, node, x: _pooled(walk, node, x, "GlobalAveragePool"))


def _softmax(walk: Rewriting, node: ir.Node, x: Var) -> Var:
    """Softmax as the opset that the node names has it: from an axis on, before 13."""
    op, axis = walk.op, node.attributes.get_int("axis", -1)
    if node.attributes.get_int("opset", 13) >= 13 or axis in (-1, (x.rank or 0) - 1):
        last = axis == -1 or (x.rank is not None and axis == x.rank - 1)
        return op.Softmax(x, axis=-1 if last and op.opset >= 13 else axis)
    rows = op.Softmax(op.Flatten(x, axis=axis), axis=-1 if op.opset >= 13 else 1)
    return op.Reshape(rows, op.Shape(x))


def _pooled(walk: Rewriting, node: ir.Node, x: Var, op_type: str) -> Var:
    given = attributes(node, "channels_last")
    if not node.attributes.get_int("channels_last", 0):
        return walk.op.call(op_type, x, **given)
    return channels_last(walk.op, walk.op.call(op_type, channels_first(walk.op, x), **given), x.rank)


@integer("QLinearAdd")
def qlinear_add(walk: Rewriting, node: ir.Node) -> Var:
    """C = a + b."""
    return _rounded(walk, _operand(walk, node, 0) + _operand(walk, node, 3), _input(node, 6), _input(node, 7))


@integer("QLinearMul")
def qlinear_mul(walk: Rewriting, node: ir.Node) -> Var:
    """C = a b."""
    return _rounded(walk, _operand(walk, node, 0) * _operand(walk, node, 3), _input(node, 6), _input(node, 7))


@integer("QLinearMatMul", domain="")
@integer("QLinearMatMul")
def qlinear_matmul(walk: Rewriting, node: ir.Node) -> Var:
    """Y = a b: a may have a scale for each row, b for each column."""
    a, b = _operand(walk, node, 0, axis=-2), _operand(walk, node, 3, axis=-1)
    return _rounded(walk, a @ b, _input(node, 6), _input(node, 7))


@integer("QLinearConcat")
def qlinear_concat(walk: Rewriting, node: ir.Node) -> Var:
    """Y = concat(x0, x1 ...), each with a scale of its own."""
    parts = [_operand(walk, node, i) for i in range(2, len(node.inputs), 3)]
    return _rounded(walk, walk.op.Concat(*parts, **attributes(node)), _input(node, 0), _input(node, 1))


@integer("QLinearWhere")
def qlinear_where(walk: Rewriting, node: ir.Node) -> Var:
    """Z = where(condition, x, y)."""
    z = walk.op.Where(_present(node, 0), _operand(walk, node, 1), _operand(walk, node, 4))
    return _rounded(walk, z, _input(node, 7), _input(node, 8))


@integer("QLinearConv", domain="")
@integer("QLinearConv")
def qlinear_conv(walk: Rewriting, node: ir.Node) -> Var:
    """Y = conv(x, w) + b: w has a scale for each filter, b that of x times that of w."""
    op, x, w = walk.op, _operand(walk, node, 0), _operand(walk, node, 3, axis=0)
    bias = _bias(walk, _input(node, 8), _present(node, 1), _present(node, 4))
    given = attributes(node, "channels_last")
    if node.attributes.get_int("channels_last", 0):
        n = x.rank or w.rank
        y = channels_last(op, op.Conv(channels_first(op, x, n), w, bias, **given), n)
    else:
        y = op.Conv(x, w, bias, **given)
    return _rounded(walk, y, _input(node, 6), _input(node, 7))


@integer("QGemm")
def qgemm(walk: Rewriting, node: ir.Node) -> Var:
    """Y = α a b + c: integers if there is a scale for them, else numbers."""
    op, alpha = walk.op, node.attributes.get_float("alpha", 1.0)
    a, b = (
        _operand(walk, node, 0),
        _operand(walk, node, 3, -2 if node.attributes.get_int("transB", 0) else -1),
    )
    c = _bias(walk, _input(node, 6), _present(node, 1), _present(node, 4), alpha)
    y = op.Gemm(a, b, c, **attributes(node))
    return y if _input(node, 7) is None else _rounded(walk, y, _input(node, 7), _input(node, 8))


def _bias(
    walk: Rewriting, q: ir.Value | None, scale: ir.Value, other: ir.Value, factor: float = 1.0
) -> Var | None:
    """Numbers of a bias of int32, whose scale is the product of those of its operator."""
    if q is None:
        return None
    op = walk.op
    array, s, w = walk.constant(q), walk.constant(scale), walk.constant(other)
    if array is None or s is None or w is None:
        size = op.wrap(scale) * op.wrap(other)
        size = size if factor == 1 else size * factor
        return op.Cast(q, to=size.dtype) * size
    size = (s.reshape(()) * w.reshape(-1) * np.float32(factor)).astype(s.dtype)
    key: tuple[Any, ...] = (q, size.tobytes())
    return walk.weight(q, key, lambda: array.astype(s.dtype) * (size if array.ndim else size.reshape(())))
