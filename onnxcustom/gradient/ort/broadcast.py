"""Hide shapes from the builder where it would draw wrong conclusions from them.

onnxruntime-training decides while it builds which axes a gradient is summed over. Two dimensions that
are symbolic and differ (or one symbolic and one larger than 1) may be equal or may broadcast: only the
run can tell, and the builder guesses. If it does not know the ranks it leaves the question to the run.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.building.builder import Builder
from onnxcustom.graph.shapes.propagation import infer_with_values

__all__ = ["hide_ambiguous_shapes"]

Dims = list[int | str | None] | None

# Axes at the end of the operands that take no part in broadcasting.
_FIXED_AXES = {**dict.fromkeys(("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow"), 0), "MatMul": 2}


def hide_ambiguous_shapes(graph: ir.Graph, op: Builder) -> dict[str, np.ndarray]:
    """Make operands of unknown rank wherever broadcasting cannot be decided from the graph.

    Parameters
    ----------
    graph : onnx_ir.Graph
        Changed in place; it gets new inputs.
    op : Builder
        The builder of the graph, for its opset and names.

    Returns
    -------
    dict of str to ndarray
        The new inputs and what to feed them with.
    """
    return _Hider(graph, op).run()


class _Hider:
    def __init__(self, graph: ir.Graph, op: Builder) -> None:
        self.graph = graph
        self.opset = op.opset
        self.taken = op.taken
        self.shapes = _shapes(graph)
        self.orders: dict[int, ir.Value] = {}
        self.hidden: dict[tuple[ir.Value, int], ir.Value] = {}
        self.feeds: dict[str, np.ndarray] = {}

    def run(self) -> dict[str, np.ndarray]:
        for node in list(self.graph):
            if node.op_type in ("Where", "Pow"):
                self._expand_operands(node)
            for position in self._ambiguous(node):
                self._hide(node, position)
        return self.feeds

    def shape(self, value: ir.Value | None) -> Dims:
        """Shape of a value as onnxruntime infers it, None if its rank is unknown."""
        return None if value is None else self.shapes.get(value.name or "")

    def _ambiguous(self, node: ir.Node) -> list[int]:
        """Operands that broadcast in a way nobody knows yet."""
        if node.op_type in _FIXED_AXES:
            skip = _FIXED_AXES[node.op_type]
            dims = [self.shape(v) for v in node.inputs]
            return [
                i
                for i, a in enumerate(dims)
                if a is not None
                and any(j != i and b is not None and _unclear(a, b, skip) for j, b in enumerate(dims))
            ]
        # One operand against the result.
        position = {"Gemm": 2, "Expand": 0}.get(node.op_type)
        if position is None or position >= len(node.inputs) or node.inputs[position] is None:
            return []
        a, b = self.shape(node.inputs[position]), self.shape(node.outputs[0])
        return [position] if a is not None and (b is None or _unclear(a, b, 0)) else []

    def _expand_operands(self, node: ir.Node) -> None:
        """The gradients of Where and of the base of Pow have the shape of the result: so must they."""
        positions = (1, 2) if node.op_type == "Where" else (0,)
        result = self.shape(node.outputs[0])
        if node.op_type == "Pow" and self.shape(node.inputs[1]) == []:
            return
        unequal = [k for k in positions if not _equal(self.shape(node.inputs[k]), result)]
        if not unequal:
            return
        op = Builder(opset=self.opset, taken=self.taken)
        twin = op.call(node.op_type, *node.inputs)
        dims = op.Shape(twin)
        self._insert(node, op)
        for k in unequal:
            op = Builder(opset=self.opset, taken=self.taken)
            value = node.inputs[k]
            assert value is not None
            expanded = op.Expand(value, dims)
            self._insert(node, op)
            if self.shape(value) is not None:
                producer = expanded.value.producer()
                assert producer is not None
                self._hide(producer, 0)
            node.replace_input_with(k, expanded.value)

    def _hide(self, node: ir.Node, position: int) -> None:
        """Reshape an operand to its own shape, through indices that the builder does not know."""
        value = node.inputs[position]
        assert value is not None
        key = (value, position)
        if key not in self.hidden:
            rank = len(self.shape(value) or [])
            op = Builder(opset=self.opset, taken=self.taken)
            shape = op.Gather(op.Shape(value), self._order(rank))
            self.hidden[key] = op.Reshape(value, shape).value
            self.hidden[key].type = value.type
            self.hidden[key].shape = None
            self._insert(node, op)
        node.replace_input_with(position, self.hidden[key])

    def _order(self, rank: int) -> ir.Value:
        """An input that will be 0, 1, ..., rank - 1: its length keeps the rank from the builder."""
        if rank not in self.orders:
            op = Builder(opset=self.opset, taken=self.taken)
            made = op.input(op.unique("order"), ir.DataType.INT64, [None]).value
            self.graph.inputs.append(made)
            self.orders[rank] = made
            self.feeds[made.name or ""] = np.arange(rank, dtype=np.int64)
        return self.orders[rank]

    def _insert(self, node: ir.Node, op: Builder) -> None:
        self.graph.insert_before(node, op.nodes)
        for value in op.initializers:
            self.graph.register_initializer(value)


def _unclear(a: list, b: list, skip: int) -> bool:
    """Whether some axis of two shapes may or may not broadcast."""
    pairs = zip(reversed(a[: len(a) - skip]), reversed(b[: len(b) - skip]), strict=False)
    return any(
        not (isinstance(x, int) and isinstance(y, int)) and not _same(x, y) and 1 not in (x, y)
        for x, y in pairs
    )


def _same(x: int | str | None, y: int | str | None) -> bool:
    return x is not None and x == y


def _equal(a: Dims, b: Dims) -> bool:
    """Whether two shapes are certainly the same."""
    if a is None or b is None or len(a) != len(b):
        return False
    return all(_same(x, y) for x, y in zip(a, b, strict=False))


def _shapes(graph: ir.Graph) -> dict[str, list]:
    """Shapes of all values as onnx infers them."""
    made = ir.to_proto(ir.Model(graph, ir_version=9))
    inferred = infer_with_values(made).graph
    shapes: dict[str, list] = {t.name: list(t.dims) for t in inferred.initializer}
    for info in (*inferred.input, *inferred.value_info, *inferred.output):
        if info.type.tensor_type.HasField("shape"):
            shapes[info.name] = [
                d.dim_value if d.HasField("dim_value") else (d.dim_param or None)
                for d in info.type.tensor_type.shape.dim
            ]
    return shapes
