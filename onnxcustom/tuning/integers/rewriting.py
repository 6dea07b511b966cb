"""The walk that turns operators on integers into operators on floating-point numbers.

A rule for each operator asks for the numbers that its operands stand for (:meth:`Rewriting.real`) and emits
the operator on them. They are found by going back: from a constant, its numbers are computed; from
QuantizeLinear, what it read is taken; operators that only move numbers are repeated on what they stand for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.analysis.constants import constant_array
from onnxcustom.graph.analysis.integers import MICROSOFT
from onnxcustom.graph.analysis.operators import is_op
from onnxcustom.graph.analysis.traversal import all_names, all_nodes, dependents, subgraphs
from onnxcustom.graph.building.builder import Builder, Var
from onnxcustom.graph.preparation.sites import own_name
from onnxcustom.graph.preparation.unused import RemoveUnusedPass
from onnxcustom.graph.trainable.finding import find_weights

from .steps import BOUNDS, dequantized, quantized

__all__ = [
    "ACTIVATIONS",
    "QUANTIZERS",
    "RULES",
    "Rewriting",
    "attributes",
    "channels_first",
    "channels_last",
    "integer",
    "quantized_type",
    "same",
]

ACTIVATIONS = ("clip", "keep", "remove")

Made = Var | Sequence[Var | None] | None
RULES: dict[tuple[str, str], Callable[[Rewriting, ir.Node], Made]] = {}

# Operators that move numbers, or pick among them, so that integers may stand for any: operands with data.
_MOVES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(
        "DepthToSpace Expand Flatten Gather GatherElements GatherND Identity MaxPool Reshape "
        "Slice SpaceToDepth Split Squeeze Tile Transpose Unsqueeze".split(),
        (0,),
    ),
    "Clip": (0, 1, 2),
    "Pad": (0, 2),
    "Resize": (0,),
    "Where": (1, 2),
}
QUANTIZERS = ("QuantizeLinear", "DynamicQuantizeLinear")
# Types that QuantizeLinear has always had, and the opset from which it has those of 16 bits.
_EIGHT, _SIXTEEN = (ir.DataType.INT8, ir.DataType.UINT8), 21
# What quantizers put behind the name of a weight.
_SUFFIXES = re.compile(r"_quantized$|_Q\d+(G\d+)?$|_Bnb4$|_QuantizeLinear_Output$|_DQ_Q\d$")


def integer(*op_types: str, domain: str = MICROSOFT) -> Callable[[Callable], Callable]:
    """Declare the rule of operators: it returns what stands for their outputs, or None to leave the node."""

    def declare(rule: Callable[[Rewriting, ir.Node], Made]) -> Callable:
        RULES.update({(domain, op_type): rule for op_type in op_types})
        return rule

    return declare


class Rewriting:
    """A model on its way from integers to floating-point numbers.

    Parameters
    ----------
    model : onnx_ir.Model
        In prepared form, with types; changed in place.
    chosen : set of onnx_ir.Value, optional
        Integers that become weights, None: all. Only what depends on them is rewritten.
    activations : str
        What becomes of the rounding of computed tensors.
    """

    def __init__(self, model: ir.Model, chosen: Collection[ir.Value] | None, activations: str) -> None:
        self.model, self.chosen, self.activations = model, chosen, activations
        self.op = Builder(model.opset_imports[""], taken=all_names(model.graph))
        self.bounds: dict[ir.Value, tuple[float, float]] = {}
        self._made: dict[tuple, Var] = {}
        self._names: dict[ir.Value, str] = {}
        self._reached = None if chosen is None else dependents(model.graph, chosen)
        # Sizes that were quantized stay so: 3.99 rows are 4 after rounding, and 3 without.
        live = find_weights(model).live
        self._sizes = {v for node in all_nodes(model.graph) for v in node.outputs if v not in live}
        self._graph: ir.Graph = model.graph

    def run(self) -> None:
        """Rewrite the graph and those in it."""
        graph = self.model.graph
        self._walk(graph)
        for value in self.op.initializers:
            graph.register_initializer(value)
        for domain, version in self.op.domains.items():
            self.model.opset_imports.setdefault(domain, version)
        RemoveUnusedPass()(self.model)
        self._name_weights()

    def _name_weights(self) -> None:
        """Call weights after the integers that they were, whose names are free by now."""
        taken = all_names(self.model.graph)
        for value, name in self._names.items():
            base = _SUFFIXES.sub("", name) or name
            if value.name in self.model.graph.initializers and base not in taken:
                del self.model.graph.initializers[str(value.name)]
                value.name = base
                self.model.graph.register_initializer(value)
                taken.add(base)

    def _walk(self, graph: ir.Graph) -> None:
        for node in list(graph):
            for body in subgraphs(node):
                self._walk(body)
            rule = RULES.get((node.domain, node.op_type))
            if rule is None or not self._wanted(node):
                continue
            self._graph = graph
            made = rule(self, node)
            self._put(graph, node, [made] if isinstance(made, Var) else list(made or ()))

    def _wanted(self, node: ir.Node) -> bool:
        """Whether a node depends on what was chosen."""
        return self._reached is None or any(v in self._reached for v in node.outputs)

    def _put(self, graph: ir.Graph, node: ir.Node, made: list[Var | None]) -> None:
        """Insert what was emitted, and let it stand for the outputs of a node."""
        nodes = self._emitted()
        for old, new in zip(node.outputs, made, strict=False):
            if new is None or not old.name:
                continue
            if old in self._sizes:
                self._sizes.add(new.value)
            if old.is_graph_output():
                self._hand_out(old, new, nodes)
            for use in list(old.uses()):
                use.node.replace_input_with(use.idx, new.value)
        graph.insert_before(node, nodes)

    def _hand_out(self, old: ir.Value, new: Var, nodes: list[ir.Node]) -> None:
        """Let a graph hand out the new value under the name of the old one."""
        fresh = new.value
        if fresh.producer() not in nodes or fresh.is_graph_output():  # it has a name of its own, or two
            fresh = self.op.Identity(new).value
            nodes.extend(self._emitted())
        name = old.name
        old.name, fresh.name = self.op.unique(f"{name}_before"), name
        fresh.type, fresh.shape = old.type, old.shape
        outputs = self._graph.outputs
        for i, value in enumerate(outputs):
            if value is old:
                outputs[i] = fresh

    def _emitted(self) -> list[ir.Node]:
        nodes, self.op.nodes = self.op.nodes, []
        return nodes

    # -- what integers stand for ---------------------------------------------------------------------------

    def operand(
        self, q: ir.Value, scale: ir.Value, zero: ir.Value | None = None, axis: int = 1, block: int = 0
    ) -> Var:
        """The numbers that integers stand for; if nothing is known of them, as DequantizeLinear has them."""
        found = self.real(q, scale, zero, axis, block)
        if found is not None:
            return found
        many = None if scale.shape is None or len(scale.shape) == 0 else axis
        return self.op.DequantizeLinear(q, scale, zero, axis=many, block_size=block or None)

    def real(
        self, q: ir.Value, scale: ir.Value, zero: ir.Value | None = None, axis: int = 1, block: int = 0
    ) -> Var | None:
        """The numbers that integers stand for, None if that is what DequantizeLinear finds when it runs."""
        array = constant_array(q)
        if array is not None:
            return self._weight_of(q, array, scale, zero, axis, block)
        node = q.producer()
        if node is None:
            return None
        if is_op(node, *QUANTIZERS) or (node.domain, node.op_type) == (MICROSOFT, "QuantizeLinear"):
            return self._activation(node, q, scale, zero)
        if block or _count(scale) != 1:
            return None
        if (node.domain, node.op_type) == (MICROSOFT, "NhwcMaxPool"):
            return self._pooled(node, scale, zero)
        places = tuple(range(len(node.inputs))) if node.op_type == "Concat" else _MOVES.get(node.op_type)
        return None if places is None or node.domain else self._moved(node, q, places, scale, zero)

    def quantization(self, q: ir.Value) -> tuple[ir.Value | None, ir.Value | None]:
        """Scale and zero point of integers that are not constant, where they are known."""
        value = self._origin(q)
        node = value.producer()
        if node is None or not is_op(node, *QUANTIZERS):
            return None, None
        if node.op_type == "DynamicQuantizeLinear":
            return (node.outputs[1], node.outputs[2]) if value is node.outputs[0] else (None, None)
        return node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None

    def comes_from_constant(self, q: ir.Value) -> bool:
        """Whether integers were only moved from where they are constant."""
        return constant_array(self._origin(q)) is not None

    def _origin(self, q: ir.Value) -> ir.Value:
        """Where integers come from that were only moved since."""
        while (node := q.producer()) is not None and not node.domain and 0 in _MOVES.get(node.op_type, ()):
            value = node.inputs[0]
            assert value is not None
            q = value
        return q

    def _weight_of(
        self, q: ir.Value, array: np.ndarray, scale: ir.Value, zero: ir.Value | None, axis: int, block: int
    ) -> Var | None:
        """The weight that constant integers stand for."""
        s, z = constant_array(scale), constant_array(zero)
        if s is None or (z is None and zero is not None) or not self.chooses(q):
            return None
        key = (q, s.tobytes(), s.shape, b"" if z is None else z.tobytes(), axis, block)
        return self.weight(q, key, lambda: dequantized(array, s, z, axis, block))

    def constant(self, value: ir.Value | None) -> np.ndarray | None:
        """The numbers of a constant, None of all else."""
        return constant_array(value)

    def chooses(self, q: ir.Value) -> bool:
        """Whether these constant integers are to become a weight, or are a number that goes with any."""
        single = q.const_value is not None and q.const_value.size == 1
        return self.chosen is None or single or q in self.chosen

    def weight(self, q: ir.Value, key: tuple, compute: Callable[[], np.ndarray]) -> Var:
        """An initializer in place of constant numbers, the same for the same key, named after them."""
        if key not in self._made:
            tensor = ir.tensor(np.asarray(compute(), order="C"))
            value = self.op.initializer(self.op.unique(f"{own_name(q)}_weight"), tensor)
            self._names[value] = own_name(q)
            self._made[key] = self.op.wrap(value)
        return self._made[key]

    def _activation(self, node: ir.Node, q: ir.Value, scale: ir.Value, zero: ir.Value | None) -> Var | None:
        """What a node quantized, within the range of its integers."""
        if q is not node.outputs[0]:
            return None
        if self.keeps(node):
            return self._kept(q, scale, zero, node.attributes.get_int("axis", 1))
        x = node.inputs[0]
        assert x is not None
        if node.op_type == "DynamicQuantizeLinear":
            return self.op.wrap(x) if scale is node.outputs[1] and zero is node.outputs[2] else None
        s, z = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
        blocks = node.attributes.get_int("block_size", 0) != 0
        if blocks or not (same(s, scale) and (same(z, zero) or _zeros(z, zero))):
            return None
        return self._clipped(x, s, z, quantized_type(node), node.attributes.get_int("axis", 1))

    def keeps(self, node: ir.Node) -> bool:
        """Whether the rounding of a node that quantizes stays: one to 16 bits needs an opset that has it."""
        if self.activations != "keep" and node.outputs[0] not in self._sizes:
            return False
        return not node.domain or self.op.opset >= _SIXTEEN or quantized_type(node) in _EIGHT

    def _kept(self, q: ir.Value, scale: ir.Value, zero: ir.Value | None, axis: int) -> Var:
        """Rounded numbers."""
        key = (q, scale, zero, axis, self._graph)
        if key not in self._made:
            node = q.producer()
            if node is not None and node.domain:
                q = self.op.QuantizeLinear(*node.inputs, **attributes(node)).value
            many = None if _count(scale) == 1 else axis
            self._made[key] = self.op.DequantizeLinear(q, scale, zero, axis=many)
        return self._made[key]

    def rounded(self, x: ir.Value) -> Var:
        """What an operator quantizes by itself: with its rounding, if that is to be kept."""
        if self.activations != "keep":
            return self.op.wrap(x)
        q, scale, zero = self.op.DynamicQuantizeLinear(x, outputs=3)
        return self.op.DequantizeLinear(q, scale, zero)

    def _clipped(
        self, x: ir.Value, scale: ir.Value | None, zero: ir.Value | None, dtype: ir.DataType | None, axis: int
    ) -> Var | None:
        """A tensor within the range that integers of that type stand for; scales that are computed fit it."""
        assert scale is not None
        numbers, offset = constant_array(scale), constant_array(zero)
        if numbers is None or (zero is not None and offset is None) or dtype not in BOUNDS:
            return self.op.wrap(x) if scale.producer() is not None else None
        array = constant_array(x)
        if array is not None and x not in self._names:
            return self._rounded(x, array, numbers, offset, dtype, axis)
        if array is not None or not np.isfinite(numbers).all():
            # A weight that was rounded before, and is the same weight here; a scale that means nothing.
            return self.op.wrap(x)
        wide = numbers.astype(np.float64)
        start = np.zeros(()) if offset is None else offset.astype(np.float64)
        low, high = ((b - start) * wide for b in BOUNDS[dtype])
        if low.size > 1 and axis >= 0 and x.shape is None and self.activations != "remove":
            return None  # it is not known how many dimensions follow
        key = (x, low.tobytes(), high.tobytes(), self._graph)
        if key not in self._made:
            self._made[key] = self._within(x, low, high, axis, x.dtype or scale.dtype)
        return self._made[key]

    def _rounded(
        self,
        x: ir.Value,
        array: np.ndarray,
        scale: np.ndarray,
        zero: np.ndarray | None,
        dtype: ir.DataType,
        axis: int,
    ) -> Var:
        """A weight of floating-point numbers behind a pair of its own: the numbers that come out of that."""
        key = (x, scale.tobytes(), b"" if zero is None else zero.tobytes(), axis)
        return self.weight(
            x, key, lambda: dequantized(quantized(array, scale, zero, axis, dtype), scale, zero, axis)
        )

    def _within(
        self, x: ir.Value, low: np.ndarray, high: np.ndarray, axis: int, dtype: ir.DataType | None
    ) -> Var:
        op, var = self.op, self.op.wrap(x)
        if self.activations == "remove":
            # A range that ends at 0 is what an activation leaves that the quantizer took into it.
            var = var if low.any() else op.Relu(var)
            return var if high.any() else op.Min(var, op.const(0, dtype))
        if low.size > 1:
            shape = [-1] + [1] * (-axis - 1 if axis < 0 else (var.rank or 0) - axis - 1)
            low, high = low.reshape(shape), high.reshape(shape)
            return op.Min(op.Max(var, op.const(low, dtype)), op.const(high, dtype))
        ends = float(low.item()), float(high.item())
        if self._lies_within(x, ends):
            return var
        made = op.Clip(var, *(op.const(end, dtype) for end in ends))
        self.bounds[made.value] = ends
        return made

    def _lies_within(self, x: ir.Value, ends: tuple[float, float]) -> bool:
        """Whether a tensor was brought within this range before, and only moved since."""
        value: ir.Value | None = x
        while value is not None:
            if value in self.bounds:
                low, high = self.bounds[value]
                return ends[0] <= low and high <= ends[1]
            node = value.producer()
            if node is None or node.op_type == "Resize" or _MOVES.get(node.op_type) != (0,):
                return False
            value = node.inputs[0]
        return False

    def _moved(
        self, node: ir.Node, q: ir.Value, places: Sequence[int], scale: ir.Value, zero: ir.Value | None
    ) -> Var | None:
        """A node that moves integers, on what they stand for."""
        inputs: list[Any] = list(node.inputs)
        for i in places:
            if i < len(inputs) and inputs[i] is not None:
                inputs[i] = self.real(inputs[i], scale, zero)
                if inputs[i] is None:
                    return None
        if node.op_type == "Pad" and node.attributes.get_string("mode", "constant") == "constant":
            inputs = self._padding(inputs, scale, zero)
        key = (node, scale, zero, self._graph)
        if key not in self._made:
            outputs = [str(v.name) for v in node.outputs]
            made = self.op.node(
                node.op_type, *inputs, domain=node.domain, outputs=outputs, **attributes(node)
            )
            self._made.update({(*key, i): var for i, var in enumerate(made)})
            self._made[key] = made[0]
        place = (*key, int(q.index() or 0))
        return self._made[place]

    def _pooled(self, node: ir.Node, scale: ir.Value, zero: ir.Value | None) -> Var | None:
        """MaxPool with channels last, which there is of integers only."""
        q = node.inputs[0]
        assert q is not None
        x = self.real(q, scale, zero)
        if x is None:
            return None
        key = (node, scale, zero, self._graph)
        if key not in self._made:
            pooled = self.op.MaxPool(channels_first(self.op, x), **attributes(node))
            self._made[key] = channels_last(self.op, pooled, x.rank)
        return self._made[key]

    def _padding(self, inputs: list[Any], scale: ir.Value, zero: ir.Value | None) -> list[Any]:
        """Integers are padded with 0, which stands for another number if there is a zero point."""
        if zero is not None and (len(inputs) < 3 or inputs[2] is None) and _count(zero) == 1:
            nothing = self.op.const(np.zeros((), np.int64), dtype=zero.dtype)
            inputs = [*inputs[:2], self.operand(nothing.value, scale, zero), *inputs[3:]]
        return inputs


# -- helpers ----------------------------------------------------------------------------------------------


def attributes(node: ir.Node, *without: str) -> dict[str, Any]:
    """Attributes of a node, as the builder takes them."""
    return {name: a.value for name, a in node.attributes.items() if name not in without}


def quantized_type(node: ir.Node) -> ir.DataType | None:
    """The type that a node quantizes to: that of its zero point, where there is one."""
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if zero is not None:
        return zero.dtype
    wanted = node.attributes.get_int("output_dtype", 0)
    return ir.DataType(wanted) if wanted else ir.DataType.UINT8


def channels_first(op: Builder, x: Var, rank: int | None = None) -> Var:
    """A tensor with its last axis moved behind the rows."""
    n = x.rank or rank or 4
    return op.Transpose(x, perm=[0, n - 1, *range(1, n - 1)])


def channels_last(op: Builder, x: Var, rank: int | None = None) -> Var:
    """What :func:`channels_first` undoes."""
    n = x.rank or rank or 4
    return op.Transpose(x, perm=[0, *range(2, n), 1])


def same(one: ir.Value | None, other: ir.Value | None) -> bool:
    """Whether two values are certainly the same numbers."""
    if one is other:
        return True
    first, second = constant_array(one), constant_array(other)
    if first is None or second is None:
        return False
    return (
        first.dtype == second.dtype
        and first.size == second.size
        and bool((first.ravel() == second.ravel()).all())
    )


def _zeros(one: ir.Value | None, other: ir.Value | None) -> bool:
    """Whether both are zero points of 0, which may be left out."""
    arrays = [constant_array(v) for v in (one, other) if v is not None]
    return all(a is not None and not a.astype(np.float32).any() for a in arrays)


def _count(value: ir.Value | None) -> int | None:
    """How many numbers a tensor has, None if that is not known."""
    shape = None if value is None else value.shape
    if shape is None or not shape.is_static():
        return None
    return math.prod(d for d in shape if isinstance(d, int))
