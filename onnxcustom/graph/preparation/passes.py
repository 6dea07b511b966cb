"""The steps of ``prepare`` that ``onnx_ir.passes.common`` does not have, each one small pass.

None of them changes what the model computes, its inputs or its outputs.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterable

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, LiftConstantsToInitializersPass

from onnxcustom.exceptions import InvalidModelError
from onnxcustom.graph.analysis.constants import constant_array, keeps_shape
from onnxcustom.graph.analysis.operands import FLOATS
from onnxcustom.graph.analysis.operators import is_op
from onnxcustom.graph.analysis.traversal import all_nodes, unique_name, value_names
from onnxcustom.graph.files.limits import check_values, current_limits
from onnxcustom.graph.preparation.sites import OWN, site_of
from onnxcustom.graph.shapes.inference import infer_shapes

__all__ = [
    "BypassIdentityPass",
    "BypassReshapePass",
    "DeclareOptionalOutputsPass",
    "FoldConstantsPass",
    "InferShapesPass",
    "InlineFunctionsPass",
    "LiftConstantsPass",
    "MergeSharedConstantsPass",
    "NameRowsPass",
    "SeparateOutputsPass",
    "UniqueNamesPass",
    "bypass_identities",
]

logger = logging.getLogger("onnxcustom")


# NumPy below version 2 has no more dimensions.
_LARGEST_RANK = 32


class InlineFunctionsPass(ir.passes.InPlacePass):
    """Inline every model-local function; errors become :class:`InvalidModelError`."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Inline in place."""
        if not model.functions:
            return ir.passes.PassResult(model, modified=False)
        try:
            InlinePass()(model)
        except Exception as exc:
            reason: BaseException = exc
            while reason.__cause__ is not None:
                reason = reason.__cause__
            raise InvalidModelError(f"The model's functions cannot be inlined: {reason}") from exc
        model.functions.clear()  # those nobody calls
        return ir.passes.PassResult(model, modified=True)


class FoldConstantsPass(ir.passes.InPlacePass):
    """Write constants in the one form that can be lifted: a ``Constant`` with a tensor.

    ``ConstantOfShape`` of a constant shape is folded, and strings are encoded as UTF-8.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold in place."""
        modified = False
        self._left = current_limits().folded_bytes
        for node in all_nodes(model.graph):
            if node.domain != "":
                continue
            if node.op_type == "ConstantOfShape":
                modified |= self._fold(node)
            elif node.op_type == "Constant":
                modified |= self._encode(node)
        return ir.passes.PassResult(model, modified=modified)

    def _fold(self, node: ir.Node) -> bool:
        """Put a tensor in the place of the node, unless no room is left: then it is memory to be filled."""
        shape = constant_array(node.inputs[0])
        fill = node.attributes.get_tensor("value")
        one = np.zeros(1, dtype=np.float32) if fill is None else fill.numpy().reshape(-1)
        if shape is None or shape.ndim != 1 or shape.min(initial=0) < 0 or one.size != 1:
            return False
        sizes = [int(d) for d in shape]
        nbytes = math.prod(max(d, 1) for d in sizes) * one.itemsize
        if nbytes > self._left or len(sizes) > _LARGEST_RANK:
            return False
        self._left -= nbytes
        tensor = ir.tensor(np.full(sizes, one[0], dtype=one.dtype))
        node.resize_inputs(0)
        node.op_type = "Constant"
        node.attributes.clear()
        node.attributes["value"] = ir.AttrTensor("value", tensor)
        return True

    def _encode(self, node: ir.Node) -> bool:
        for name in ("value_string", "value_strings"):
            attribute = node.attributes.get(name)
            if attribute is None or attribute.is_ref():
                continue
            texts = [attribute.value] if name == "value_string" else list(attribute.value)
            data = [t if isinstance(t, bytes) else t.encode("utf-8") for t in texts]
            shape = ir.Shape([] if name == "value_string" else [len(data)])
            del node.attributes[name]
            node.attributes["value"] = ir.AttrTensor("value", ir.StringTensor(data, shape=shape))
            return True
        return False


class LiftConstantsPass(ir.passes.InPlacePass):
    """Turn every ``Constant`` node, whatever its size and attribute, into an initializer."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Lift in place."""
        return LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)


class SeparateOutputsPass(ir.passes.InPlacePass):
    """Put an ``Identity`` between a constant and the graph output it is, so that it can be lifted.

    An output of the model keeps its name and the constant gets a new one; in a branch, whose outputs
    are known by position, it is the reverse.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Insert in place."""
        taken = value_names(model)
        modified = False
        for graph in list(model.graphs()):
            for value in dict.fromkeys(graph.outputs):
                node = value.producer()
                constant = is_op(node, "Constant")
                if value.is_graph_input() or not (constant or value.is_initializer()):
                    continue
                name = value.name or "value"
                output = self._copy(graph, value)
                if graph is model.graph:
                    value.name = unique_name(f"{name}_value", taken)
                    output.name = name
                else:
                    output.name = unique_name(f"{name}_output", taken)
                modified = True
        return ir.passes.PassResult(model, modified=modified)

    @staticmethod
    def _copy(graph: ir.Graph, value: ir.Value) -> ir.Value:
        """Make a copy of `value` the output in its place."""
        identity = ir.node("Identity", [value])
        output = identity.outputs[0]
        output.type, output.shape, output.doc_string = value.type, value.shape, value.doc_string
        for i, old in enumerate(graph.outputs):
            if old is value:
                graph.outputs[i] = output
        graph.append(identity)
        return output


class BypassIdentityPass(ir.passes.InPlacePass):
    """Let readers of an ``Identity`` read what it copies; a copy that is a graph output stays."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Bypass in place."""
        return ir.passes.PassResult(model, modified=bypass_identities(all_nodes(model.graph)))


def bypass_identities(nodes: Iterable[ir.Node], rename: bool = False) -> bool:
    """Let readers of an ``Identity`` read what it copies, in place; whether there was one.

    The common elimination pass hands one value out twice where two outputs are copies of it, renames a value
    of the user's, and fails on a branch that returns a value of the graph around it.

    Parameters
    ----------
    nodes : iterable of onnx_ir.Node
        Of a graph, in which they may be removed.
    rename : bool, default=False
        Whether a copy that is a graph output goes, too, and what it copies takes its name, if that is no
        input, constant or output itself: not in a model whose names are the user's.
    """
    modified = False
    for node in nodes:
        if not is_op(node, "Identity"):
            continue
        source, copy, name = node.inputs[0], node.outputs[0], node.outputs[0].name
        graph = node.graph
        if source is None or graph is None:
            continue
        handed_out = copy.is_graph_output()
        if handed_out:
            inside = source.graph is graph and copy in graph.outputs
            if not rename or not inside or source.producer() is None or source.is_graph_output():
                continue
            source.type, source.shape = copy.type, copy.shape
        else:
            source.type = source.type or copy.type
            source.shape = copy.shape if source.shape is None else source.shape  # a scalar's is falsy
        copy.replace_all_uses_with(source, replace_graph_outputs=handed_out)
        graph.remove(node, safe=True)
        source.name = name if handed_out else source.name
        modified = True
    return modified


class MergeSharedConstantsPass(ir.passes.InPlacePass):
    """Keep one initializer of those that are the same constant of a function called several times.

    Otherwise training would drive the copies apart and the function could not be written back.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Merge in place."""
        first: dict[object, ir.Value] = {}
        modified = False
        for name, value in list(model.graph.initializers.items()):
            site = site_of(value)
            if site is None or first.setdefault(site, value) is value or value.is_graph_output():
                continue
            value.replace_all_uses_with(first[site])
            del model.graph.initializers[name]
            modified = True
        return ir.passes.PassResult(model, modified=modified)


class UniqueNamesPass(ir.passes.InPlacePass):
    """Give every value and node a name of its own in the whole model, branches included.

    Inputs, outputs and initializers of the main graph keep theirs. Unlike the common pass this
    one leaves omitted optional outputs, whose name is empty, omitted.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rename in place."""
        graph = model.graph
        fixed = [*graph.inputs, *graph.outputs, *graph.initializers.values()]
        seen: set[ir.Value] = set(fixed)
        taken = {v.name for v in fixed if v.name}
        nodes: set[str] = set()
        counters: dict[str, int] = {}
        modified = False

        def name_value(value: ir.Value) -> None:
            nonlocal modified
            if value in seen or not value.name:
                return
            seen.add(value)
            if value.name in taken:
                value.name = unique_name(value.name, taken, counters)
                modified = True
            taken.add(value.name)

        def enter(entered: ir.Graph | ir.Function | ir.GraphView) -> None:
            for value in entered.inputs:
                name_value(value)

        for node in ir.traversal.RecursiveGraphIterator(graph, enter_graph=enter):
            if not node.name or node.name in nodes:
                node.name = unique_name(node.name or node.op_type, nodes, counters)
                modified = True
            nodes.add(node.name)
            for value in node.outputs:
                name_value(value)
        return ir.passes.PassResult(model, modified=modified)


class RenameIntegersPass(ir.passes.InPlacePass):
    """Give constants of the main graph that are no floats names that nobody else makes.

    onnxruntime's fusions call shapes and axes of their own by fixed names and look for these among the nodes
    only: a model that it has optimized has constants of these names. Floats keep theirs, by which they are
    asked for.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rename in place."""
        graph = model.graph
        taken = value_names(model)
        found = [
            value
            for value in graph.initializers.values()
            if not (value.is_graph_input() or value.is_graph_output())
            and value.const_value is not None
            and value.const_value.dtype not in FLOATS
            and not str(value.name).endswith(OWN)
        ]
        for value in found:
            del graph.initializers[str(value.name)]
            value.name = unique_name(f"{value.name}{OWN}", taken)
            graph.register_initializer(value)
        return ir.passes.PassResult(model, modified=bool(found))


class DeclareOptionalOutputsPass(ir.passes.InPlacePass):
    """Declare the statistics of LayerNormalization and the mask of Dropout.

    Engine ``ort`` differentiates these operators only where the optional outputs are there. Nobody
    reads them, and the results stay as they are.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Declare in place."""
        opset = model.opset_imports.get("", 1)
        taken = value_names(model)
        modified = False
        for node in all_nodes(model.graph):
            if node.domain != "":
                continue
            if node.op_type == "LayerNormalization":
                number = node.attributes.get_int("stash_type", 1)
                if number not in FLOATS:
                    raise InvalidModelError(
                        f"Node {node.name!r} (LayerNormalization): stash_type {number} is no float."
                    )
                dtype = ir.DataType(number)
                modified |= self._declare(node, [("mean", dtype), ("inv_std_dev", dtype)], taken)
            elif node.op_type == "Dropout":
                # The mask was of the data's own type before opset 10.
                mask = ir.DataType.BOOL if opset >= 10 else node.outputs[0].dtype
                modified |= self._declare(node, [("mask", mask)], taken)
        return ir.passes.PassResult(model, modified=modified)

    @staticmethod
    def _declare(node: ir.Node, extra: list[tuple[str, ir.DataType | None]], taken: set[str]) -> bool:
        base = node.outputs[0].name
        node_outputs = len(node.outputs)
        if node_outputs < 1 + len(extra):
            node.resize_outputs(1 + len(extra))
        modified = False
        for output, (suffix, dtype) in zip(node.outputs[1:], extra, strict=True):
            if not output.name or node_outputs == 1:
                output.name = unique_name(f"{base}_{suffix}", taken)
                output.type = None if dtype is None else ir.TensorType(dtype)
                modified = True
        return modified


class InferShapesPass(ir.passes.InPlacePass):
    """Infer types and shapes with onnx; what cannot be inferred stays unknown, and nothing is an error.

    The common pass takes sequences for tensors and fails on the maps that ``ZipMap`` gives. Large
    initializers are left out of what onnx gets to see, which is their type and shape.

    Parameters
    ----------
    strict : bool, default=False
        Whether operators that contradict their operands are an error: what onnxruntime would refuse.
    """

    def __init__(self, strict: bool = False) -> None:
        super().__init__()
        self.strict = strict

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Infer in place; declared types of inputs and outputs stay, unless the graph contradicts them."""
        graph = model.graph
        large = [
            v for v in graph.initializers.values() if v.const_value is None or v.const_value.nbytes > 1024
        ]
        own = list(graph.inputs)
        try:
            for value in large:
                del graph.initializers[value.name or ""]
                graph.inputs.append(value)
            proto = ir.to_proto(model)
        finally:
            graph.inputs[:] = own
            for value in large:
                graph.initializers.add(value)
        given = {v.name for v in proto.graph.input}
        for output in proto.graph.output:
            # Exporters declare wrong shapes, which onnxruntime only warns about; inputs are right.
            if output.type.HasField("tensor_type") and output.name not in given:
                output.type.tensor_type.ClearField("shape")
        try:
            inferred = infer_shapes(proto, self.strict)
        except Exception as exc:
            if self.strict:
                raise InvalidModelError(f"The model contradicts itself: {exc}") from exc
            logger.info("Shape inference failed: %s", exc)
            return ir.passes.PassResult(model, modified=False)
        if self.strict:
            check_values((*inferred.graph.value_info, *inferred.graph.output), "the model")
        _take_types(graph, inferred.graph)
        return ir.passes.PassResult(model, modified=True)


class NameRowsPass(ir.passes.InPlacePass):
    """Give the rows of a batch a name where they have neither that nor a size.

    Shape inference carries a name on, but takes two dimensions that have none for different ones.

    Parameters
    ----------
    name : str, optional
        The first input with rows, by default the first one.
    axis : int, default=0
        Where its rows are.
    """

    def __init__(self, name: str | None = None, axis: int = 0) -> None:
        super().__init__()
        self.input, self.axis = name, axis

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Name it and infer shapes again, in place."""
        graph = model.graph
        found = next((v for v in graph.inputs if self.input in (v.name, None)), None)
        if found is None or not found.shape or _is_known(found.shape[self.axis]):
            return ir.passes.PassResult(model, modified=False)
        made = [v for node in graph for v in node.outputs]
        taken = {_name_of(d) for v in (*graph.inputs, *made) for d in v.shape or ()}
        name = unique_name("rows", {name for name in taken if name})
        found.shape = ir.Shape([name if i == self.axis else d for i, d in enumerate(found.shape)])
        before = {v: v.shape for v in made}
        for value in made:
            value.shape = None  # names of unknown dimensions would stay
        InferShapesPass()(model)
        for value, shape in before.items():
            value.shape = _merged(value.shape, shape)
        return ir.passes.PassResult(model, modified=True)


def _is_known(size: int | ir.SymbolicDim) -> bool:
    return isinstance(size, int) or size.value is not None


def _name_of(size: int | ir.SymbolicDim) -> str | None:
    return None if isinstance(size, int) else size.value


def _merged(new: ir.Shape | None, old: ir.Shape | None) -> ir.Shape | None:
    """A shape with the sizes of both, and the names of the first."""
    if new is None or old is None or len(new) != len(old):
        return old if new is None else new
    return ir.Shape([b if isinstance(b, int) else a for a, b in zip(new, old, strict=True)])


class BypassReshapePass(ir.passes.InPlacePass):
    """A Reshape to the shape that a tensor has is an Identity.

    Converters put one behind a model, (rows, 1) to (-1, 1).
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace in place."""
        modified = False
        for node in model.graph:
            if not is_op(node, "Reshape") or len(node.inputs) != 2:
                continue
            x, target = node.inputs
            sizes = constant_array(target)
            if x is None or sizes is None or sizes.ndim != 1 or not keeps_shape(x.shape, sizes.tolist()):
                continue
            node.op_type = "Identity"
            node.attributes.clear()
            node.resize_inputs(1)
            node.outputs[0].shape = x.shape
            modified = True
        return ir.passes.PassResult(model, modified=modified)


def _contradicts(declared: ir.Shape, kind: onnx.TypeProto) -> bool:
    """Whether the shape that was inferred cannot be the one declared."""
    if not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return False
    dims = [d.dim_value if d.HasField("dim_value") else None for d in kind.tensor_type.shape.dim]
    if len(dims) != len(declared):
        return True
    return any(isinstance(a, int) and b is not None and a != b for a, b in zip(declared, dims, strict=True))


def _take_types(graph: ir.Graph, proto: onnx.GraphProto) -> None:
    """Give the values of `graph` the types of its twin `proto`, branches included."""
    infos = {info.name: info.type for info in (*proto.value_info, *proto.output)}
    for node, twin in zip(graph, proto.node, strict=True):
        for value in node.outputs:
            kind = infos.get(value.name or "")
            if kind is None or (
                value.is_graph_output()
                and value.type is not None
                and value.shape is not None
                and not _contradicts(value.shape, kind)
            ):
                continue
            field = kind.WhichOneof("value")
            if field not in ("tensor_type", "sequence_type", "optional_type"):
                continue
            with contextlib.suppress(Exception):  # a sequence of maps, which onnx_ir does not know
                value.type = value.type or ir.serde.deserialize_type_proto_for_type(kind)
                shape = ir.serde.deserialize_type_proto_for_shape(kind)
                value.shape = value.shape if shape is None else shape
        attributes = {a.name: a for a in twin.attribute}
        for name, attribute in node.attributes.items():
            if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
                _take_types(attribute.as_graph(), attributes[name].g)
            elif attribute.type == ir.AttributeType.GRAPHS and not attribute.is_ref():
                for inner, inner_proto in zip(attribute.as_graphs(), attributes[name].graphs, strict=True):
                    _take_types(inner, inner_proto)
