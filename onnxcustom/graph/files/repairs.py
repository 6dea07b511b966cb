"""What files leave out or get wrong that onnxruntime does without, put right before a model is checked."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import onnx

from onnxcustom._hooks import output_types
from onnxcustom.exceptions import InvalidModelError, MissingRuntimeError
from onnxcustom.graph.analysis.traversal import proto_subgraphs
from onnxcustom.graph.shapes.inference import infer_shapes

from .outline import outline

__all__ = ["repaired", "type_outputs", "untyped"]

logger = logging.getLogger("onnxcustom")

# Before this version every initializer was an input as well.
_INITIALIZERS_ALONE = 4


def repaired(proto: onnx.ModelProto, own: bool) -> tuple[onnx.ModelProto, bool]:
    """The model as the specification has it; types of outputs come later, see :func:`type_outputs`.

    A graph without a name gets one, nodes are put into an order in which they can be computed,
    initializers need not be inputs whatever the IR version, and if they are, the tensor says the type.

    Parameters
    ----------
    proto : ModelProto
        Of any origin.
    own : bool
        Whether it may be changed; if not, it is copied where there is something to change.

    Returns
    -------
    tuple of (ModelProto, bool)
        `proto` itself, or a copy; whether it is other than what came in.
    """
    graph = proto.graph
    held = {tensor.name: tensor for tensor in graph.initializer}
    inputs = {info.name for info in graph.input}
    bare = [k for k, info in enumerate(graph.input) if not _typed(info) and info.name in held]
    old = 0 < proto.ir_version < _INITIALIZERS_ALONE and any(name not in inputs for name in held)
    unordered = _unordered(graph)
    if not (bare or old or unordered or untyped(proto) or not graph.name):
        return proto, False
    if not own:
        made = onnx.ModelProto()
        made.CopyFrom(proto)
        proto, graph = made, made.graph
    graph.name = graph.name or "model"
    for k in bare:
        tensor = held[graph.input[k].name]
        graph.input[k].type.CopyFrom(onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims))
    if old:
        proto.ir_version = _INITIALIZERS_ALONE
    if unordered:
        _order(graph)
    return proto, True


# -- order ----------------------------------------------------------------------------------------


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node reads, those that its subgraphs make themselves included."""
    yield from node.input
    for graph in proto_subgraphs(node):
        yield from (info.name for info in graph.output)
        for inner in graph.node:
            yield from _reads(inner)


def _unordered(graph: onnx.GraphProto) -> bool:
    """Whether a node reads what one behind it makes."""
    later = {name for node in graph.node for name in node.output if name}
    for node in graph.node:
        if any(name in later for name in _reads(node)):
            return True
        later.difference_update(node.output)
    return False


def _order(graph: onnx.GraphProto) -> None:
    """Put the nodes into an order, the one there is where that will do; those of a cycle stay behind."""
    makers = {name: k for k, node in enumerate(graph.node) for name in node.output if name}
    needs = [
        {makers[name] for name in _reads(node) if name in makers} - {k} for k, node in enumerate(graph.node)
    ]
    readers: list[list[int]] = [[] for _ in needs]
    for k, made_by in enumerate(needs):
        for maker in made_by:
            readers[maker].append(k)
    waiting = [len(made_by) for made_by in needs]
    order: list[int] = []
    ready = [k for k in range(len(needs) - 1, -1, -1) if not waiting[k]]
    while ready:
        k = ready.pop()
        order.append(k)
        for reader in readers[k]:
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    done = set(order)
    nodes = [graph.node[k] for k in (*order, *(k for k in range(len(needs)) if k not in done))]
    made = onnx.GraphProto(node=nodes)
    del graph.node[:]
    graph.node.extend(made.node)


# -- types of outputs -----------------------------------------------------------------------------


def untyped(proto: onnx.ModelProto) -> list[str]:
    """Outputs that do not say what they are."""
    return [info.name for info in proto.graph.output if not _typed(info)]


def _typed(info: onnx.ValueInfoProto) -> bool:
    return info.type.WhichOneof("value") is not None


def type_outputs(proto: onnx.ModelProto, label: str) -> None:
    """Give outputs without a type the type that is inferred, in place.

    Parameters
    ----------
    proto : ModelProto
        A model that was checked.
    label : str
        What messages call it.

    Raises
    ------
    InvalidModelError
        If neither onnx nor onnxruntime knows what an output is.
    """
    names = untyped(proto)
    if not names:
        return
    known = {info.name: info.type for info in proto.graph.input}
    for tensor in proto.graph.initializer:
        known[tensor.name] = onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
    try:
        inferred = infer_shapes(_without_numbers(proto)).graph
        known.update((i.name, i.type) for i in (*inferred.value_info, *inferred.output) if _typed(i))
    except Exception as exc:  # onnx has faults of its own; onnxruntime may know better
        logger.info("Shape inference failed: %s", exc)
    if any(name not in known for name in names):
        known.update(_of_the_runtime(proto))
    for info in proto.graph.output:
        if info.name in names:
            if info.name not in known:
                raise InvalidModelError(
                    f"{label}: output {info.name!r} has no type, and none can be inferred: declare it, as "
                    "onnx.helper.make_tensor_value_info does."
                )
            info.type.CopyFrom(known[info.name])


def _without_numbers(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which large initializers are inputs of their shape."""
    made = outline(proto)
    kept = [
        t
        for t, original in zip(made.graph.initializer, proto.graph.initializer, strict=True)
        if t.dims == original.dims
    ]
    known = {t.name for t in kept} | {info.name for info in made.graph.input}
    for tensor in proto.graph.initializer:
        if tensor.name not in known:
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            made.graph.input.append(info)
    tensors = onnx.GraphProto(initializer=kept)
    del made.graph.initializer[:]
    made.graph.initializer.extend(tensors.initializer)
    return made


def _of_the_runtime(proto: onnx.ModelProto) -> dict[str, onnx.TypeProto]:
    """Types of the outputs that onnxruntime makes out, which knows operators that onnx does not."""
    try:
        return output_types(proto)
    except MissingRuntimeError:
        return {}
