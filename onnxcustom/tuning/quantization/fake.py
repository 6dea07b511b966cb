"""Rounding to integers within a graph of floats: what training sees of quantization."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.analysis.operators import is_op
from onnxcustom.graph.analysis.stops import stop
from onnxcustom.graph.building.builder import Builder, Var

from .sites import Product, moved_from

__all__ = [
    "Bits",
    "Learned",
    "Rounding",
    "cast",
    "is_computed",
    "names_of",
    "observed",
    "round_activation",
    "round_weight",
]

_TINY = float(np.finfo(np.float32).tiny)


@dataclasses.dataclass(frozen=True)
class Bits:
    """Integers of some type.

    Attributes
    ----------
    count : int
        Bits, 2 to 8.
    signed : bool
        Whether they are symmetric around 0, without the lowest one.
    """

    count: int
    signed: bool

    @property
    def low(self) -> int:
        """The lowest one that is used."""
        return -(2 ** (self.count - 1)) + 1 if self.signed else 0

    @property
    def high(self) -> int:
        """The highest one."""
        return 2 ** (self.count - 1) - 1 if self.signed else 2**self.count - 1

    @property
    def steps(self) -> int:
        """How many steps there are between them."""
        return self.high - self.low

    @property
    def dtype(self) -> np.dtype:
        """The type of eight bits that holds them."""
        return np.dtype(np.int8 if self.signed else np.uint8)


@dataclasses.dataclass(frozen=True)
class Learned:
    """Scales of a tensor that are trained.

    Attributes
    ----------
    name : str
        Of the tensor that is trained.
    factor : float
        What it is multiplied by: the scale's own gradient is as small as LSQ has it.
    """

    name: str
    factor: float


@dataclasses.dataclass(frozen=True)
class Rounding:
    """A tensor that is rounded.

    Attributes
    ----------
    tensor : str
        Name of the tensor.
    scale, zero : str
        Names of what holds its scale and zero point.
    """

    tensor: str
    scale: str
    zero: str


def names_of(tensor: str) -> tuple[str, str]:
    """What the scale and the zero point of a tensor are called."""
    return f"{tensor}_scale", f"{tensor}_zero_point"


def observed(products: Sequence[Product], outputs: Collection[ir.Value]) -> dict[ir.Value, ir.Value]:
    """Tensors that are rounded -> the one whose steps they have, itself or what it was moved from.

    What products read is rounded; and what they compute, behind a Relu or Clip that alone reads it, unless
    the model hands it out: integer kernels want both.
    """
    computed = {}
    for product in products:
        value = _behind(product.node)
        if value not in outputs:
            computed[value] = value
    found = dict(computed)
    for product in products:
        source = moved_from(product.data)
        found[product.data] = source if source in computed else product.data
    return found


def cast(op: Builder, value: Var, dtype: ir.DataType | None) -> Var:
    """Emit a value in another type, unless it has it: rounding is done in float32."""
    return value if dtype is None or value.dtype == dtype else op.Cast(value, to=dtype)


def is_computed(value: ir.Value, products: Sequence[Product]) -> bool:
    """Whether a value is what a product computes, so that everybody reads it rounded."""
    return any(value is _behind(product.node) for product in products)


def _behind(node: ir.Node) -> ir.Value:
    """What a product computes, behind its activation if integer kernels have that inside."""
    value = node.outputs[0]
    readers = [use.node for use in value.uses()]
    if len(readers) == 1 and is_op(readers[0], "Relu", "Clip") and not value.is_graph_output():
        return readers[0].outputs[0]
    return value


def round_activation(op: Builder, value: Var, scale: Var, zero: Var, bits: Bits, learned: bool) -> Var:
    """Emit x rounded to its steps and clipped to its range, by one scale.

    The gradient goes straight through where x rounds to one of the steps, as in PyTorch's
    ``fake_quantize_per_tensor_affine``; of `learned` scales where it lies between the ends, as in LSQ. Eight
    bits are QuantizeLinear and DequantizeLinear alone.
    """
    if bits.count == 8:
        return op.DequantizeLinear(op.QuantizeLinear(value, scale, zero), scale, zero)
    beyond = 0.0 if learned else 0.5
    middle = 0.0 if bits.signed else float(2 ** (bits.count - 1))  # so that signed bytes hold the steps
    offset = op.Cast(zero, to=ir.DataType.FLOAT) - middle
    low, high = bits.low - middle, bits.high - middle
    steps = op.Clip(value / scale + offset, low - beyond, high + beyond)
    one, none = op.const(1.0, ir.DataType.FLOAT), op.const(np.zeros((), np.int8))
    rounded = op.DequantizeLinear(op.QuantizeLinear(steps, one, none), one, none)
    if beyond:  # what lies half a step beyond may have rounded away
        rounded = op.Clip(rounded, low, high)
    return (rounded - offset) * scale


def round_weight(op: Builder, weight: Var, axis: int | None, bits: Bits, scale: Var | None) -> Var:
    """Emit a weight rounded to symmetric steps: one scale in all, or one for each index of an axis.

    Without a `scale` it is what the largest number there is needs, a constant for the gradient.
    """
    rank = weight.rank or 0
    if scale is None:
        others = [a for a in range(rank) if a != axis]
        largest = op.ReduceMax(op.Abs(weight), others, keepdims=0)
        scale = op.Max(largest, _TINY * bits.high) / float(bits.high)
        stop(op.nodes[-1])
        scale.value.shape = ir.Shape([] if axis is None else [weight.shape[axis] if weight.shape else None])
        scale.value.dtype = weight.dtype
        return _by_kernel(op, weight, axis, scale)
    if bits.count == 8:
        return _by_kernel(op, weight, axis, scale)
    shape = [1] * rank
    if axis is not None:
        shape[axis] = -1
    wide = scale if axis is None else op.Reshape(scale, shape)
    steps = op.Clip(weight / wide, float(bits.low), float(bits.high))
    one, none = op.const(1.0, ir.DataType.FLOAT), op.const(np.zeros((), np.int8))
    return op.DequantizeLinear(op.QuantizeLinear(steps, one, none), one, none) * wide


def _by_kernel(op: Builder, weight: Var, axis: int | None, scale: Var) -> Var:
    if axis is None:
        zero: Var = op.const(np.zeros((), np.int8))
        return op.DequantizeLinear(op.QuantizeLinear(weight, scale, zero), scale, zero)
    size = weight.shape[axis] if weight.shape is not None else None
    if isinstance(size, int):
        zero = op.const(np.zeros(size, np.int8))
    else:
        zero = op.Expand(op.const(np.zeros(1, np.int8)), op.Shape(scale))
    return op.DequantizeLinear(op.QuantizeLinear(weight, scale, zero, axis=axis), scale, zero, axis=axis)
