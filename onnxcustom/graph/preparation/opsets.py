"""Versions: of the operator set, converted node by node, and of the file format."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx
import onnx_ir as ir
from onnx import version_converter

from onnxcustom.exceptions import InvalidModelError
from onnxcustom.graph.analysis.constants import constant_array
from onnxcustom.graph.analysis.operators import operator_schema
from onnxcustom.graph.analysis.traversal import all_nodes, unique_name, value_names

__all__ = ["ConvertOpsetPass", "SetIrVersionPass"]

# Meaning changed at that version although the signature did not (Split only gained an attribute, but
# one that it now needs): always through the converter.
_CHANGED = {"Softmax": 13, "LogSoftmax": 13, "Hardmax": 13, "Split": 18, "GridSample": 20}

# onnx's converter passes these on unchanged (or has no adapter) although their meaning changed.
_REFUSED = {"GroupNormalization": 21, "RoiAlign": 16, "PRelu": 7}

# Attribute values that are younger than the attribute they are values of.
_YOUNG_VALUES = {
    ("Pad", "mode", "wrap"): 19,
    ("Resize", "coordinate_transformation_mode", "half_pixel_symmetric"): 19,
    ("ScatterElements", "reduction", "max"): 18,
    ("ScatterElements", "reduction", "min"): 18,
    ("ScatterND", "reduction", "max"): 18,
    ("ScatterND", "reduction", "min"): 18,
}

# An adapter reads the values of shapes and axes; anything larger is data.
_SMALL = 1024

_FLOAT = ir.TensorType(ir.DataType.FLOAT)


class ConvertOpsetPass(ir.passes.InPlacePass):
    """Convert the operators of the default domain to another version.

    A node whose definition did not change, or changed by additions that the node makes no use of,
    stays as it is. Any other goes through onnx's version converter, outside the graph: names,
    metadata, types, other domains and the tensors themselves are out of its reach.

    Parameters
    ----------
    target : int
        Version to convert to, up or down.

    Attributes
    ----------
    rewritten : bool
        Whether nodes had to be; if not, only the import of the domain is another.
    """

    def __init__(self, target: int) -> None:
        super().__init__()
        self.target = target
        self.rewritten = False

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Convert in place; nothing is changed if a node cannot be converted."""
        source = model.opset_imports[""]
        if source == self.target:
            return ir.passes.PassResult(model, modified=False)
        if self.target > onnx.defs.onnx_opset_version():
            raise InvalidModelError(
                f"Opset {self.target} is unknown to the installed onnx, which goes up to "
                f"{onnx.defs.onnx_opset_version()}."
            )
        taken = value_names(model)
        nodes = [
            node
            for node in all_nodes(model.graph)
            if node.domain == "" and not _unchanged(node, source, self.target)
        ]
        self.rewritten = bool(nodes)
        if nodes:
            converted = _convert(nodes, source, self.target)
            results: list[list[ir.Value]] = [[] for _ in nodes]
            for value in converted.outputs:
                results[int((value.name or "").partition("_")[0][1:])].append(value)
            converted.outputs.clear()
            for i, node in enumerate(nodes):
                _splice(f"i{i}_", node, results[i], model.graph, taken)
        for graph in model.graphs():
            graph.opset_imports[""] = self.target
        return ir.passes.PassResult(model, modified=True)


class SetIrVersionPass(ir.passes.InPlacePass):
    """Set the file format's version: at least what the opset is released with, at most `max_ir`.

    Parameters
    ----------
    max_ir : int, default=None
        Highest version allowed; None: no limit.
    """

    def __init__(self, max_ir: int | None = None) -> None:
        super().__init__()
        self.max_ir = max_ir

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Set in place."""
        before = model.ir_version
        # Initializers that are not inputs need version 4.
        wanted = max(before, _first_ir_version(model.opset_imports.get("", 1)), 4)
        if self.max_ir is not None and wanted > self.max_ir:
            needed, reason = _needed_ir_version(model)
            if needed > self.max_ir:
                raise InvalidModelError(
                    f"The model needs IR version {needed} because of {reason}; at most {self.max_ir} is "
                    "possible here (what the installed onnxruntime reads)."
                )
            wanted = self.max_ir
        model.ir_version = wanted
        return ir.passes.PassResult(model, modified=wanted != before)


# -- nodes -----------------------------------------------------------------------------------


def _unchanged(node: ir.Node, source: int, target: int) -> bool:
    """Whether `node` means the same in both versions as it stands."""
    old, new = operator_schema(node.op_type, source), operator_schema(node.op_type, target)
    if old is None:
        return True  # not an operator of the standard: nothing is known of it
    if new is None:
        raise _failure(node, source, target, "it does not exist there")
    if old.since_version == new.since_version:
        return True
    low, high = sorted((source, target))
    if low < _REFUSED.get(node.op_type, 0) <= high:
        raise _failure(node, source, target, f"its meaning changed in opset {_REFUSED[node.op_type]}")
    if low < _CHANGED.get(node.op_type, 0) <= high or new.deprecated:
        return False
    for (op_type, name, value), since in _YOUNG_VALUES.items():
        attribute = node.attributes.get(name)
        if op_type == node.op_type and attribute is not None and attribute.value == value and target < since:
            raise _failure(node, source, target, f"{name}={value!r} came with opset {since}")
    return _same_signature(node, old, new) and _types_allowed(node, new)


def _same_signature(node: ir.Node, old: onnx.defs.OpSchema, new: onnx.defs.OpSchema) -> bool:
    """Whether the operands and attributes that `node` uses are the same in both schemas."""
    used = range(len(node.inputs))
    if [_operand(old, i) for i in used] != [_operand(new, i) for i in used]:
        return False
    if len(node.outputs) > new.max_output or len(node.inputs) < new.min_input:
        return False
    for name, attribute in old.attributes.items():
        if name in node.attributes:
            if name not in new.attributes or new.attributes[name].type != attribute.type:
                return False
        elif name in new.attributes and _default(attribute) != _default(new.attributes[name]):
            return False
    return all(name in old.attributes or not a.required for name, a in new.attributes.items())


def _operand(schema: onnx.defs.OpSchema, index: int) -> str | None:
    """What operand `index` is called, without regard for mere renamings."""
    if not schema.inputs:
        return None
    if index >= len(schema.inputs):
        last = schema.inputs[-1]
        return "..." if last.option == onnx.defs.OpSchema.FormalParameterOption.Variadic else None
    operand = schema.inputs[index]
    if operand.option == onnx.defs.OpSchema.FormalParameterOption.Variadic:
        return "..."
    return "first" if index == 0 else operand.name.lower().removeprefix("input_")


def _default(attribute: onnx.defs.OpSchema.Attribute) -> bytes | None:
    return attribute.default_value.SerializeToString() if attribute.default_value.name else None


def _types_allowed(node: ir.Node, schema: onnx.defs.OpSchema) -> bool:
    """Whether the types of the operands, where known, are among those of the schema."""
    for i, value in enumerate(node.inputs):
        if value is None or not isinstance(value.type, ir.TensorType) or not schema.inputs:
            continue
        if value.dtype == ir.DataType.UNDEFINED:
            continue
        operand = schema.inputs[min(i, len(schema.inputs) - 1)]
        if operand.types and f"tensor({_type_name(value.type.dtype)})" not in operand.types:
            return False
    return True


def _type_name(dtype: ir.DataType) -> str:
    return onnx.helper.tensor_dtype_to_string(int(dtype)).removeprefix("TensorProto.").lower()


def _failure(node: ir.Node, source: int, target: int, reason: str) -> InvalidModelError:
    return InvalidModelError(
        f"Node {node.name!r} ({node.op_type}) cannot be converted from opset {source} to {target}: {reason}. "
        "Export the model with that opset, or leave the opset alone."
    )


def _convert(nodes: Sequence[ir.Node], source: int, target: int) -> ir.Graph:
    """A graph with what takes the places of `nodes`.

    Operand j of node i is called ``i<i>_<j>`` there and result j ``o<i>_<j>``. All go through one
    call, since the converter takes milliseconds to set itself up; if that fails each is tried alone.
    """
    inputs, initializers, twins = [], [], []
    for i, node in enumerate(nodes):
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            raise _failure(node, source, target, "its branches would have to be rewritten")
        # Every value of a valid model has a type; where none is known, nothing depends on it.
        some = next((v.type for v in (*node.inputs, *node.outputs) if v is not None and v.type), _FLOAT)
        operands = [None if v is None else _stand_in(f"i{i}_{j}", v, some) for j, v in enumerate(node.inputs)]
        initializers += [v for v in operands if v is not None and v.const_value is not None]
        inputs += [v for v in operands if v is not None and v.const_value is None]
        results = [
            ir.Value(name=f"o{i}_{j}" if v.name else "", type=v.type or some, shape=v.shape)
            for j, v in enumerate(node.outputs)
        ]
        twins.append(
            ir.Node("", node.op_type, operands, list(node.attributes.values()), outputs=results, name=f"n{i}")
        )
    outputs = [v for twin in twins for v in twin.outputs if v.name]
    graph = ir.Graph(
        inputs, outputs, nodes=twins, initializers=initializers, opset_imports={"": source}, name="nodes"
    )
    try:
        proto = ir.to_proto(ir.Model(graph, ir_version=_first_ir_version(max(source, target))))
        converted = version_converter.convert_version(proto, target)
        # Shapes the converter makes up for what it inserts are wrong.
        del converted.graph.value_info[:]
        for info in (*converted.graph.input, *converted.graph.output):
            info.type.tensor_type.shape.SetInParent()  # the checker misses the shape that is unknown
        onnx.checker.check_model(converted)
    except Exception as exc:
        if len(nodes) > 1:
            for node in nodes:
                _convert([node], source, target)
        raise _failure(nodes[0], source, target, f"onnx's converter says {str(exc).splitlines()[0]}") from exc
    made = ir.from_proto(converted).graph
    if source <= 10 < target:
        _keep_asymmetric(made)
    return made


def _stand_in(name: str, value: ir.Value, some: ir.TypeProtocol) -> ir.Value:
    """A value like `value` outside its graph; small constants go with it, adapters read them."""
    constant = constant_array(value)
    if constant is None or constant.size > _SMALL or constant.dtype.kind in "OS":
        return ir.Value(name=name, type=value.type or some, shape=value.shape)
    tensor = ir.tensor(constant, name=name)
    shape = ir.Shape(constant.shape)
    return ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)


def _keep_asymmetric(graph: ir.Graph) -> None:
    """Write out how Resize sampled before opset 11, where the defaults changed: the converter forgets."""
    for node in graph:
        if node.op_type == "Resize":
            node.attributes["coordinate_transformation_mode"] = ir.AttrString(
                "coordinate_transformation_mode", "asymmetric"
            )
            node.attributes["nearest_mode"] = ir.AttrString("nearest_mode", "floor")


def _splice(prefix: str, node: ir.Node, ends: list[ir.Value], main: ir.Graph, taken: set[str]) -> None:
    """Move what computes `ends` to the place of `node`; new constants go to the main graph.

    `prefix` is what the names of stand-ins for the operands of `node` begin with.
    """
    base = next((v.name for v in node.outputs if v.name), node.op_type)
    nodes = _producers(ends)
    if nodes and nodes[0].graph is not None:
        nodes[0].graph.remove(nodes)
    for value in dict.fromkeys(v for made in nodes for v in made.inputs if v is not None):
        if value.producer() is not None:
            continue
        if value.name and value.name.startswith(prefix):
            old = node.inputs[int(value.name.removeprefix(prefix))]
            assert old is not None
        else:
            tensor = value.const_value
            assert tensor is not None
            old = ir.Value(
                name=unique_name(f"{base}_{value.name}", taken), type=ir.TensorType(tensor.dtype),
                shape=ir.Shape(tensor.shape.numpy()), const_value=tensor,
            )  # fmt: skip
            main.register_initializer(old)
        value.replace_all_uses_with(old)
    for made in nodes:
        same = made.op_type == node.op_type
        made.name = node.name if same else None
        made.metadata_props.update(node.metadata_props if same else {})
        for value in made.outputs:
            # Types and shapes are those the node had; what the converter says of them may be made up.
            value.type = value.shape = None
            if value.name and value not in ends:
                value.name = unique_name(f"{base}_{value.name}", taken)
    assert node.graph is not None
    ir.convenience.replace_nodes_and_values(
        node.graph, node, [node], nodes, [v for v in node.outputs if v.name], ends
    )


def _producers(ends: Sequence[ir.Value]) -> list[ir.Node]:
    """Everything computed for `ends`, in an order in which it can be computed."""
    nodes: dict[ir.Node, None] = {}

    def visit(value: ir.Value | None) -> None:
        node = None if value is None else value.producer()
        if node is not None and node not in nodes:
            for operand in node.inputs:
                visit(operand)
            nodes[node] = None

    for end in ends:
        visit(end)
    return list(nodes)


# -- IR version ------------------------------------------------------------------------------


def _first_ir_version(opset: int) -> int:
    """The IR version that came with `opset`."""
    try:
        return onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
    except ValueError:
        return onnx.IR_VERSION


# Types younger than IR version 4, with the version that brought them.
_TYPE_IR_VERSION = {
    "FLOAT8E4M3FN": 9, "FLOAT8E4M3FNUZ": 9, "FLOAT8E5M2": 9, "FLOAT8E5M2FNUZ": 9,
    "UINT4": 10, "INT4": 10, "FLOAT4E2M1": 11, "FLOAT8E8M0": 12, "UINT2": 13, "INT2": 13,
}  # fmt: skip


def _needed_ir_version(model: ir.Model) -> tuple[int, str]:
    """The lowest IR version the content allows, and what in it asks for that."""
    needed, reason = 4, "initializers that are not inputs"
    if model.functions:
        needed, reason = 8, "functions"
    for value in _values(model):
        version = _TYPE_IR_VERSION.get(value.dtype.name if value.dtype is not None else "", 4)
        if version > needed:
            needed, reason = version, f"value {value.name!r} of type {value.dtype}"
    return needed, reason


def _values(model: ir.Model) -> Iterable[ir.Value]:
    for graph in model.graphs():
        yield from graph.inputs
        yield from graph.initializers.values()
        for node in graph:
            yield from node.outputs
