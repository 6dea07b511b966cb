"""Shape inference that computes with values, as far as they are few.

onnx keeps an entry for every element of a vector that one of a few operators reads, whatever it holds. What
matters to shapes are vectors as long as a shape; one of millions, which a Range of two numbers or a Concat of
itself makes, takes seconds and gigabytes. Which vectors are short follows from shapes that are known without
values; operators that read others are hidden from onnx while it computes with values.
"""

from __future__ import annotations

import functools
from collections import ChainMap
from collections.abc import Collection, Iterator, MutableMapping, Sequence
from typing import Any

import onnx
from onnx import GraphProto, ModelProto, NodeProto

from onnxcustom.graph.analysis.operators import normal_domain, operator_schema
from onnxcustom.graph.analysis.traversal import proto_nodes, proto_subgraphs

__all__ = ["infer_with_values"]

# Elements of the longest vector that values are kept of, and of all of them together.
_LONG = 2**10
_TOGETHER = 2**17
_LARGEST_RANK = 32
# How often what was hidden is looked at again, with the sizes that others gave it.
_ROUNDS = 3
_HIDDEN = "onnxcustom.hidden"
# Names of sizes that onnx makes up start like this.
_MADE_UP = "unk__"

# The same shapes, and values are not propagated.
_TWINS = dict.fromkeys(("Add", "Sub", "Mul"), "Div")
_ELEMENTWISE = frozenset(_TWINS)
_READ = {"Shape": 0, "Size": 0, "Cast": 1, "Gather": 2, **dict.fromkeys(_TWINS, 2)}

# Elements of a scalar or a vector; none of a tensor that is certainly neither; None if nobody knows.
_Length = int | None
_Known = MutableMapping[str, _Length]


def infer_with_values(proto: ModelProto, check_type: bool = False, strict_mode: bool = False) -> ModelProto:
    """Types and shapes as onnx infers them with ``data_prop=True``, in bounded memory.

    Parameters
    ----------
    proto : ModelProto
        The model, small enough for one message.
    check_type, strict_mode : bool, default=False
        As :func:`onnx.shape_inference.infer_shapes` has them.

    Returns
    -------
    ModelProto

    Raises
    ------
    onnx.shape_inference.InferenceError
        As onnx has it.
    """
    infer = functools.partial(
        onnx.shape_inference.infer_shapes, check_type=check_type, strict_mode=strict_mode
    )
    if not _hidden(proto):
        return infer(proto, data_prop=True)
    known = infer(proto, data_prop=False)
    if proto.functions:  # of their operands nothing is known
        return known
    own = {dim.dim_param for dim in _dims(proto.graph)}
    before: list[int] | None = None
    for _ in range(_ROUNDS):
        hidden = _hidden(known)
        if hidden == before:
            break
        _forget_names(known, own)
        if not hidden:
            return infer(known, data_prop=True)
        before = hidden
        known = _inferred_without(known, hidden, infer)
        _forget_names(known, own)
        known = infer(known, data_prop=False)
    return known


def _forget_names(proto: ModelProto, own: Collection[str]) -> None:
    """Drop the names of sizes that onnx made up, so that what is known of them later can take their place."""
    for dim in _dims(proto.graph):
        if dim.dim_param.startswith(_MADE_UP) and dim.dim_param not in own:
            dim.ClearField("dim_param")


def _dims(graph: GraphProto) -> Iterator[onnx.TensorShapeProto.Dimension]:
    """Sizes of all values, those of subgraphs included."""
    for info in (*graph.input, *graph.value_info, *graph.output):
        yield from info.type.tensor_type.shape.dim
    for node in graph.node:
        for inner in proto_subgraphs(node):
            yield from _dims(inner)


def _inferred_without(proto: ModelProto, hidden: Sequence[int], infer: Any) -> ModelProto:
    """What is inferred with values where some nodes are not what they are."""
    made = ModelProto()
    made.CopyFrom(proto)
    nodes = list(proto_nodes(made.graph.node))
    kept = [(i, nodes[i].op_type, nodes[i].domain) for i in hidden]
    for i in hidden:
        twin = _TWINS.get(nodes[i].op_type)
        nodes[i].op_type = twin or nodes[i].op_type
        nodes[i].domain = nodes[i].domain if twin else _HIDDEN
    made.opset_import.add(domain=_HIDDEN, version=1)
    found: ModelProto = infer(made, data_prop=True)
    nodes = list(proto_nodes(found.graph.node))
    for i, op_type, domain in kept:
        nodes[i].op_type, nodes[i].domain = op_type, domain
    del found.opset_import[-1]
    return found


def _hidden(proto: ModelProto) -> list[int]:
    """Numbers of the nodes that read, or make, vectors that are not known to be short."""
    return _Lengths(_opset(proto)).walk(proto.graph)


def _opset(proto: ModelProto) -> int:
    return next((o.version for o in proto.opset_import if not normal_domain(o.domain)), 1)


class _Lengths:
    """Lengths of vectors, as far as they follow from types and from a few operators."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.number = -1
        self.left = _TOGETHER
        self.hidden: list[int] = []
        self.fixed: set[str] = set()

    def walk(self, graph: GraphProto, known: _Known | None = None) -> list[int]:
        """The nodes to be hidden, those of subgraphs included."""
        known = {} if known is None else known
        for info in (*graph.input, *graph.value_info, *graph.output):
            known[info.name] = _length(info.type)
        for tensor in graph.initializer:
            known[tensor.name] = _of_dims(list(tensor.dims))
        self.fixed.update(t.name for t in graph.initializer)
        self.fixed.update(n.output[0] for n in graph.node if n.op_type == "Constant" and n.output)
        for node in graph.node:
            self.number += 1
            number = self.number
            read = [known.get(name) for name in _values_of(node, self.opset) if name]
            for inner in proto_subgraphs(node):
                self.walk(inner, ChainMap({}, known))
            made = _made(node, [known.get(name) for name in node.input])
            if made is not None and len(node.output) == 1 and known.get(node.output[0]) is None:
                known[node.output[0]] = made
            fits = self._affordable([*read, *(known.get(name) for name in node.output)]) if read else True
            # onnx takes a computed bound of a Slice that it does not know for 0.
            if not fits or (_is_slice(node) and not self.fixed.issuperset(filter(None, node.input[1:]))):
                self.hidden.append(number)
        return self.hidden

    def _affordable(self, lengths: Sequence[_Length]) -> bool:
        """Whether there is room for vectors; then it is taken."""
        sizes = [n for n in lengths if n is not None]
        if len(sizes) < len(lengths) or max(sizes) > _LONG or sum(sizes) > self.left:
            return False
        self.left -= sum(sizes)
        return True


def _is_slice(node: NodeProto) -> bool:
    return node.op_type == "Slice" and not normal_domain(node.domain)


@functools.cache
def _propagates(op_type: str, opset: int) -> bool:
    """Whether onnx computes with values of an operator's operands, or of those inside of its body."""
    schema = operator_schema(op_type, opset)
    if schema is None:
        return False
    body = schema.has_function or schema.has_context_dependent_function
    inferred = schema.has_type_and_shape_inference_function
    return bool(schema.has_data_propagation_function or (body and not inferred))


def _values_of(node: NodeProto, opset: int) -> Sequence[str]:
    """Operands whose values onnx would keep."""
    if normal_domain(node.domain) or not _propagates(node.op_type, opset):
        return ()
    return node.input[: _READ.get(node.op_type, len(node.input))]


def _length(kind: onnx.TypeProto) -> _Length:
    field = kind.WhichOneof("value")
    if field != "tensor_type":
        return None if field is None else 0
    if not kind.tensor_type.HasField("shape"):
        return None
    dims = [d.dim_value if d.HasField("dim_value") else None for d in kind.tensor_type.shape.dim]
    return _of_dims(dims)


def _of_dims(dims: Sequence[int | None]) -> _Length:
    return 0 if len(dims) > 1 else dims[0] if dims else 1


def _made(node: NodeProto, lengths: Sequence[_Length]) -> _Length:
    """Elements of a result at most, by those of operands."""
    if normal_domain(node.domain) or not lengths:
        return _constant(node)
    first, op_type = lengths[0], node.op_type
    if op_type == "Shape":
        return _LARGEST_RANK
    if op_type == "Size":
        return 1
    if op_type in ("Cast", "Identity", "Slice") or (op_type == "Unsqueeze" and first is not None):
        return first
    if op_type == "Squeeze":
        return first or None  # of a matrix of one column it makes a vector
    if op_type == "Gather" and first and len(lengths) > 1:
        return lengths[1]
    if op_type == "Concat" or op_type in _ELEMENTWISE:
        if 0 in lengths:
            return 0
        sizes = [n for n in lengths if n is not None]
        return None if len(sizes) < len(lengths) else (sum if op_type == "Concat" else max)(sizes)
    return None


def _constant(node: NodeProto) -> _Length:
    """Elements of a Constant."""
    for attribute in node.attribute if node.op_type == "Constant" else ():
        if attribute.name == "value":
            return _of_dims(list(attribute.t.dims))
        if attribute.name in ("value_ints", "value_floats", "value_strings"):
            return max(len(attribute.ints), len(attribute.floats), len(attribute.strings))
        if attribute.name in ("value_int", "value_float", "value_string"):
            return 1
    return None
