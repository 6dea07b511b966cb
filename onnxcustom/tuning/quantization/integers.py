"""The model of integers that training leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxcustom._warnings import warn_user
from onnxcustom.graph.analysis.operators import is_op
from onnxcustom.graph.analysis.traversal import all_names, sort_nodes
from onnxcustom.graph.building.builder import Builder, Var
from onnxcustom.graph.files.io import to_proto
from onnxcustom.graph.preparation.prepare import Prepared
from onnxcustom.graph.preparation.unused import RemoveUnusedPass
from onnxcustom.graph.trainable.finding import array_of
from onnxcustom.tuning.integers.steps import quantized, spread

from .fake import Bits, Learned, Rounding, cast, is_computed, observed
from .kernels import FOUR_BITS, reads_four_bits
from .sites import Product, numbers_of, products_of

__all__ = ["with_integers"]


def with_integers(
    plain: ir.Model,
    left: frozenset[str],
    options: Any,
    roundings: Sequence[Rounding],
    learned: Mapping[str, Learned],
    tensors: Mapping[str, np.ndarray],
    like: onnx.ModelProto,
) -> onnx.ModelProto:
    """A model whose weights are integers, and whose tensors are rounded, by the scales that were trained.

    Parameters
    ----------
    plain : onnx_ir.Model
        The model without rounding.
    left : frozenset of str
        Nodes that stay as they are.
    options : Quantization
        How it was trained.
    roundings, learned
        Tensors with a range, and scales that were trained.
    tensors : mapping of str to ndarray
        Everything that training has changed.
    like : onnx.ModelProto
        The user's model, whose metadata the result has.
    """
    model = plain.clone()
    for name, array in tensors.items():
        value = model.graph.initializers.get(name)
        if value is not None:
            value.const_value = ir.Tensor(np.asarray(array), dtype=value.dtype, name=name)
    made = _Integers(model, left, options, roundings, learned, tensors)
    made.run()
    if options.weight_bits.count <= 4:
        model = _in_four_bits(model, made.stored)
    proto = to_proto(model)
    del proto.metadata_props[:]
    proto.metadata_props.extend(like.metadata_props)
    return proto


class _Integers:
    """Puts integers into a model, in place."""

    def __init__(
        self,
        model: ir.Model,
        left: frozenset[str],
        options: Any,
        roundings: Sequence[Rounding],
        learned: Mapping[str, Learned],
        tensors: Mapping[str, np.ndarray],
    ) -> None:
        self.model, self.options, self.learned, self.tensors = model, options, learned, tensors
        self.op = Builder(model.opset_imports[""], taken=all_names(model.graph))
        self.products = [p for p in products_of(model) if p.node.name not in left]
        self._grids = {r.tensor: r for r in roundings}
        self.stored: list[str] = []  # names of integers of weights

    def run(self) -> None:
        """Weights, then biases and what is computed."""
        numbers = numbers_of(self.model, [p.weight for p in self.products])
        rounded = (
            {} if self.options.activations is None else observed(self.products, set(self.model.graph.outputs))
        )
        for product in self.products:
            self._weight(product, numbers[product.weight], rounded)
        self._activations(rounded)
        graph = self.model.graph
        graph.extend(self.op.nodes)
        for value in self.op.initializers:
            graph.register_initializer(value)
        sort_nodes(graph)
        RemoveUnusedPass()(self.model)

    # -- weights ---------------------------------------------------------------------------------

    def _weight(self, product: Product, array: np.ndarray, rounded: Mapping[ir.Value, ir.Value]) -> None:
        array = array.astype(np.float32)  # as training rounds it
        axis = product.channels(self.options.per_channel)
        bits: Bits = self.options.weight_bits
        scale = self._weight_scale(product, array, axis, bits)
        integers = self._rounded(array, scale, axis, bits, product.key(axis) in self.learned)
        made = self.op.once(
            ("weight", product.weight, axis),
            lambda: cast(self.op, self._stored(product.name, integers, scale, axis), product.weight.dtype),
        )
        if rounded and self.options.activation_bits.count == 8:  # else no kernel of integers runs it
            self._bias(product, self._scale_of(rounded[product.data]) * scale)
        product.node.replace_input_with(product.position, made.value)

    def _weight_scale(self, product: Product, array: np.ndarray, axis: int | None, bits: Bits) -> np.ndarray:
        """The scale that the weight was rounded by, operation for operation as the graph of training."""
        learned = self.learned.get(product.key(axis))
        if learned is not None:
            raw = np.asarray(self.tensors[learned.name], dtype=np.float32)
            return np.maximum(raw * np.float32(learned.factor), np.float32(1e-12))
        others = tuple(a for a in range(array.ndim) if a != axis)
        least = np.float32(float(np.finfo(np.float32).tiny) * bits.high)
        return np.maximum(np.abs(array).max(axis=others), least) / np.float32(bits.high)

    @staticmethod
    def _rounded(
        array: np.ndarray, scale: np.ndarray, axis: int | None, bits: Bits, learned: bool
    ) -> np.ndarray:
        if learned and bits.count < 8:
            steps = np.clip(array / spread(scale, array.shape, axis or 0), bits.low, bits.high)
            return np.rint(steps).astype(np.int8)
        return quantized(array, scale, None, axis or 0, ir.DataType.INT8)

    def _stored(self, name: str, integers: np.ndarray, scale: np.ndarray, axis: int | None) -> Var:
        """Integers, and DequantizeLinear."""
        op = self.op
        own = op.unique(f"{name}_quantized")
        q = op.wrap(op.initializer(own, ir.tensor(integers, name=own)))
        zeros = op.unique(f"{name}_zero_point")  # which kernels of integers want to see
        zero = ir.tensor(np.zeros(scale.shape, np.int8), name=zeros)
        self.stored += [own, zeros]
        by = self._constant(f"{name}_scale", scale)
        return op.DequantizeLinear(q, by, op.wrap(op.initializer(zeros, zero)), axis=axis)

    def _bias(self, product: Product, scale: np.ndarray) -> None:
        """The bias of a product as integers by the product of both scales, as kernels of integers add it."""
        node = product.node
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is None or bias.const_value is None or len(bias.shape or ()) != 1:
            return
        if is_op(node, "Gemm") and (
            node.attributes.get_float("alpha", 1.0),
            node.attributes.get_float("beta", 1.0),
        ) != (1, 1):
            return
        array = array_of(bias)
        steps = np.rint(array.astype(np.float64) / np.broadcast_to(scale, array.shape))
        limit = 2**31 - 1
        own = self.op.unique(f"{bias.name}_quantized")
        integers = np.clip(steps, -limit, limit).astype(np.int32)
        q = self.op.initializer(own, ir.tensor(integers, name=own))
        by = (
            np.broadcast_to(scale, array.shape).astype(np.float32) if scale.ndim else scale.astype(np.float32)
        )
        made = self.op.DequantizeLinear(
            self.op.wrap(q), self._constant(f"{bias.name}_scale", by), None, axis=0 if by.ndim else None
        )
        node.replace_input_with(2, cast(self.op, made, bias.dtype).value)

    # -- what is computed ------------------------------------------------------------------------

    def _activations(self, rounded: Mapping[ir.Value, ir.Value]) -> None:
        op, bits = self.op, self.options.activation_bits
        readers = {p.node for p in self.products}
        for value, source in rounded.items():
            ours = value is source and is_computed(value, self.products)
            uses = [u for u in value.uses() if ours or u.node in readers]
            scale = self._constant(f"{source.name}_scale", self._scale_of(source))
            # One that is 0 has not changed.
            zero_array = np.asarray(self.tensors.get(self._grids[str(source.name)].zero, 0)).astype(
                bits.dtype
            )
            zero = self._constant(f"{source.name}_zero_point", zero_array)
            x = cast(op, op.wrap(value), ir.DataType.FLOAT)
            if bits.count < 8:
                offset, step = float(zero_array), float(self._scale_of(source))
                x = op.Clip(
                    x, np.float32((bits.low - offset) * step), np.float32((bits.high - offset) * step)
                )
            made = cast(op, op.DequantizeLinear(op.QuantizeLinear(x, scale, zero), scale, zero), value.dtype)
            for node, index in uses:
                node.replace_input_with(index, made.value)

    def _scale_of(self, source: ir.Value) -> np.ndarray:
        rounding = self._grids[str(source.name)]
        array = np.asarray(self.tensors[rounding.scale], dtype=np.float32)
        learned = self.learned.get(rounding.tensor)
        if learned is None:
            return array
        return np.maximum(array * np.float32(learned.factor), np.float32(1e-12))

    def _constant(self, name: str, array: np.ndarray) -> Var:
        def make() -> Var:
            own = self.op.unique(name)
            return self.op.wrap(self.op.initializer(own, ir.tensor(np.asarray(array), name=own)))

        array = np.asarray(array)  # a weight that is read along two axes has two
        return self.op.once(("constant", name, array.shape, array.tobytes()), make)


def _in_four_bits(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """The model with initializers of bytes stored in four bits, if onnxruntime reads that."""
    if not reads_four_bits():
        warn_user(
            "Weights of four bits or fewer are handed out as bytes, which hold the same numbers: the "
            "installed onnxruntime does not read INT4. Releases from 1.19 on do.",
            UserWarning,
        )
        return model
    model = Prepared(model, lambda: to_proto(model)).take(opset=FOUR_BITS)
    for name in names:
        value = model.graph.initializers[name]
        array = array_of(value).astype(ir.DataType.INT4.numpy())
        value.const_value = ir.Tensor(array, dtype=ir.DataType.INT4, name=name)
        value.dtype = ir.DataType.INT4
    return model
