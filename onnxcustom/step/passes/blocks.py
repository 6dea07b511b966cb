"""Updates of large tensors block by block: what one node writes is still in the cache when the next reads it.

An update that works number by number is a dozen passes over memory, each as long as the weight. Cut into
blocks of some 65,536 numbers, they all run on one block before the next one is begun: the nodes become the
body of a ``Scan``, which hands blocks of its operands to it, and has it write into blocks of its results,
without a copy.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.analysis.operators import is_op
from onnxcustom.graph.analysis.traversal import all_names, unique_name

from .packing import NUMBER_BY_NUMBER

__all__ = ["in_blocks"]

# Numbers in a block, as far as the size of the tensor has such a divisor.
_BLOCK = 2**16
_MOST = 2**18
# Smaller tensors gain nothing.
_LARGE = 2**18
# Fewer passes are not worth the blocks.
_FEWEST_NODES = 4
_DTYPES = (ir.DataType.FLOAT, ir.DataType.DOUBLE)


def in_blocks(model: ir.Model, results: Collection[str]) -> None:
    """Cut updates into blocks, in place, where that pays; results stay to the bit.

    Parameters
    ----------
    model : onnx_ir.Model
        Step graph, sorted.
    results : collection of str
        Graph outputs whose memory is handed in: such a one may come as a matrix of its blocks.
    """
    graph = model.graph
    if graph.opset_imports.get("", 0) < 9:  # Scan had another form
        return
    taken: set[str] = set()
    for region in _regions([v for v in graph.outputs if v.name in results]):
        taken = taken or all_names(graph)
        _scan(graph, region, taken)


@dataclasses.dataclass
class _Region:
    """Nodes that work number by number on tensors of one shape.

    Attributes
    ----------
    nodes : set of onnx_ir.Node
        None of their results is read outside.
    results : list of onnx_ir.Value
        Graph outputs that they make.
    """

    nodes: set[ir.Node]
    results: list[ir.Value]


def _regions(outputs: Iterable[ir.Value]) -> list[_Region]:
    """What can be cut into blocks, and should be."""
    found: list[_Region] = []
    for value in outputs:
        shape = value.shape
        if shape is None or not shape.is_static() or value.dtype not in _DTYPES:
            continue
        if math.prod(shape.numpy()) < _LARGE or _blocks(math.prod(shape.numpy())) is None:
            continue
        region = _Region(_behind(value), [value])
        for other in [r for r in found if r.nodes & region.nodes]:
            found.remove(other)
            region = _Region(region.nodes | other.nodes, [*other.results, *region.results])
        found.append(region)
    for region in found:
        _closed(region)
    return [r for r in found if len(r.nodes) >= _FEWEST_NODES]


def _behind(value: ir.Value) -> set[ir.Node]:
    """All that a value is made of number by number."""
    found: set[ir.Node] = set()
    todo = [value.producer()]
    while todo:
        node = todo.pop()
        if node is not None and node not in found and _fits(node, value):
            found.add(node)
            todo += [v.producer() for v in node.inputs if v is not None and not _is_number(v)]
    return found


def _fits(node: ir.Node, like: ir.Value) -> bool:
    """Whether a node makes one tensor of a shape, of tensors of the same and of numbers."""
    if not is_op(node, *NUMBER_BY_NUMBER) or len(node.outputs) != 1 or node.outputs[0].shape != like.shape:
        return False
    return all(v is None or v.shape == like.shape or _is_number(v) for v in node.inputs)


def _is_number(value: ir.Value) -> bool:
    return value.shape is not None and (len(value.shape) == 0 or list(value.shape) == [1])


def _closed(region: _Region) -> None:
    """Leave out nodes whose results others read as well: to the region they are then what it is given."""
    while True:
        others = {
            node
            for node in region.nodes
            for value in node.outputs
            if any(user not in region.nodes for user, _ in value.uses())
            or (value.is_graph_output() and value not in region.results)
        }
        if not others:
            region.results = [v for v in region.results if v.producer() in region.nodes]
            return
        region.nodes -= others


def _blocks(size: int) -> int | None:
    """Into how many blocks of one size so many numbers are cut, None if there are no good ones."""
    middle = round(size / _BLOCK)
    counts = sorted(range(-(-size // _MOST), 4 * middle + 1), key=lambda k: abs(k - middle))
    return next((k for k in counts if size % k == 0), None)


def _scan(graph: ir.Graph, region: _Region, taken: set[str]) -> None:
    """Put nodes into a loop over blocks."""
    nodes = [node for node in graph if node in region.nodes]
    size = math.prod(region.results[0].shape.numpy())  # type: ignore[union-attr]
    blocks = _blocks(size)
    assert blocks is not None
    block = ir.Shape([size // blocks])
    inside: dict[ir.Value, ir.Value] = {}
    given = dict.fromkeys(
        v
        for node in nodes
        for v in node.inputs
        if v is not None and not _is_number(v) and v.producer() not in region.nodes
    )
    last, shape = nodes[-1], ir.Shape([blocks, size // blocks])
    target = _shape(graph, [blocks, size // blocks], taken)
    cut = []
    for value in given:
        whole = ir.Value(name=unique_name(f"{value.name}_blocks", taken), type=value.type, shape=shape)
        graph.insert_before(
            last, ir.node("Reshape", [value, target], outputs=[whole], name=f"{whole.name}_node")
        )
        cut.append(whole)
        inside[value] = ir.Value(name=unique_name(f"{value.name}_block", taken), type=value.type, shape=block)
    results = []
    for value in region.results:
        new = ir.Value(name=value.name, type=value.type, shape=shape)
        value.name = unique_name(f"{value.name}_block", taken)
        graph.outputs[list(graph.outputs).index(value)] = new
        results.append(new)
    after = ir.node("Scan", cut, attributes={"num_scan_inputs": len(cut)}, outputs=results)
    after.name = unique_name("update_in_blocks", taken)
    graph.insert_before(last, after)
    graph.remove(nodes)
    for node in nodes:
        for i, operand in enumerate(node.inputs):
            if operand in inside:
                node.replace_input_with(i, inside[operand])
        node.outputs[0].shape = block
    body = ir.Graph(list(inside.values()), region.results, nodes=nodes, name="block")
    after.attributes["body"] = ir.AttrGraph("body", body)


def _shape(graph: ir.Graph, dims: list[int], taken: set[str]) -> ir.Value:
    """Dimensions as a constant."""
    name = "shape_" + "x".join(map(str, dims))
    known = graph.initializers.get(name)
    if known is not None:
        return known
    tensor = ir.Tensor(np.array(dims, np.int64), name=unique_name(name, taken))
    made = ir.Value(
        name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape([2]), const_value=tensor
    )
    graph.register_initializer(made)
    return made
