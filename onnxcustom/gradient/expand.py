"""Operators without a rule, replaced by what they stand for.

An operator that ONNX defines by a function body is replaced by that body, and an operator that model
optimizers leave behind by an expansion written with the builder::

    @expansion("QuickGelu", domain="com.microsoft")
    def quick_gelu(op, node):
        (x,) = node.inputs
        return x * op.Sigmoid(x * node.attr("alpha", 1.702))

until every node left has a rule or carries no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from onnxcustom.exceptions import GradientNotImplementedError, InvalidParameterError, OnnxCustomError
from onnxcustom.graph.analysis.operators import normal_domain, operator_schema
from onnxcustom.graph.analysis.traversal import all_names, all_nodes, unique_name
from onnxcustom.graph.building.builder import Var
from onnxcustom.graph.preparation.checks import check_arity
from onnxcustom.graph.preparation.passes import InferShapesPass

from .carried import untype
from .emit import GradientBuilder
from .node import NodeView
from .registry import find_rule, non_differentiable_reason, refused_reason

__all__ = ["expand", "expandable", "expansion", "expansions", "refusal"]

_EXPANSIONS: dict[tuple[str, str], Callable[..., Any]] = {}
# Bodies call operators that have a body themselves; ONNX nests them two deep.
_ROUNDS = 100
_FUNCTIONS = "onnxcustom.expand"


def expansion(*op_types: str, domain: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as what one or several operators stand for.

    Parameters
    ----------
    op_types : str
        Operators.
    domain : str
        Their domain.

    Notes
    -----
    ``function(op, node)`` emits operators that have rules with the builder `op` and returns the
    outputs of the node, a variable or a sequence of them, None where an optional one is absent.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for op_type in op_types:
            key = (normal_domain(domain), op_type)
            if key in _EXPANSIONS:
                raise InvalidParameterError(f"{op_type} (domain {domain!r}) has an expansion already.")
            _EXPANSIONS[key] = function
        return function

    return decorate


def expansions() -> Iterable[tuple[str, str]]:
    """Domain and type of every operator with an expansion."""
    return tuple(_EXPANSIONS)


def expandable(op_type: str, domain: str, version: int) -> str | None:
    """How an operator is replaced.

    Parameters
    ----------
    op_type, domain, version : str, str, int
        The operator and the version of its domain.

    Returns
    -------
    str or None
        'expansion', 'function', or None where the operator stands for nothing else.
    """
    if (normal_domain(domain), op_type) in _EXPANSIONS:
        return "expansion"
    schema = operator_schema(op_type, version, domain)
    return "function" if schema is not None and _bodies(schema, version) else None


def expand(model: ir.Model) -> set[tuple[str, str]]:
    """Replace every node that has no rule and stands for others, in place.

    Parameters
    ----------
    model : onnx_ir.Model
        Model, changed in place: main graph and subgraphs.

    Returns
    -------
    set of (str, str)
        Domain and type of the operators replaced. A node whose body depends on a type or a rank that
        is unknown stays.
    """
    expanded: set[tuple[str, str]] = set()
    taken: set[str] = set()
    for _ in range(_ROUNDS):
        if not any(_wanted(model, node) for node in all_nodes(model.graph)):
            break
        taken = taken or all_names(model.graph)
        _infer(model)
        # Types flow from expanded nodes to those behind them; where they do not, try without.
        found = _expand_once(model, taken, strict=True) or _expand_once(model, taken, strict=False)
        if not found:
            break
        expanded |= found
    if expanded:  # shapes known beforehand spare the rules nodes
        _infer(model)
    return expanded


def _infer(model: ir.Model) -> None:
    InferShapesPass()(model)
    untype(model.graph)


def _expand_once(model: ir.Model, taken: set[str], strict: bool) -> set[tuple[str, str]]:
    expanded: set[tuple[str, str]] = set()
    for graph in list(model.graphs()):
        for node in list(graph):
            if not _wanted(model, node):
                _infer_types(model, node)
                continue
            if strict and any(v is not None and v.dtype is None for v in node.inputs):
                continue
            key = (node.domain, node.op_type)
            if key in _EXPANSIONS:
                _apply(model, graph, node, taken)
            elif not _call_body(model, node, taken):
                continue
            expanded.add(key)
    if model.functions:
        InlinePass(criteria=lambda function: function.domain == _FUNCTIONS)(model)
    return expanded


def _wanted(model: ir.Model, node: ir.Node) -> bool:
    """Whether a node has no rule, may carry a gradient, and stands for others."""
    if node.domain == _FUNCTIONS:
        return False
    if any(ask(node.op_type, node.domain) is not None for ask in (non_differentiable_reason, refused_reason)):
        return False
    version = _version(model, node.domain)
    if find_rule(node.op_type, node.domain, version) is not None:
        return False
    return expandable(node.op_type, node.domain, version) is not None


# -- expansions ------------------------------------------------------------------------------------


def refusal(node: NodeView, what: str) -> GradientNotImplementedError:
    """The exception that a node as it stands is not expanded, and what to do; for expansions to raise."""
    return GradientNotImplementedError(
        f"Node {node.name!r} ({node.op_type}, domain {node.node.domain or 'ai.onnx'}, opset {node.version}) "
        f"cannot be differentiated: {what}.",
        node=node.name,
        op_type=node.op_type,
        domain=node.node.domain,
        opset=node.version,
    )


def _apply(model: ir.Model, graph: ir.Graph, node: ir.Node, taken: set[str]) -> None:
    op = GradientBuilder(model.opset_imports[""], taken=taken)
    view = NodeView(op, node, _version(model, node.domain), [True] * len(node.inputs))
    try:
        result = _EXPANSIONS[node.domain, node.op_type](op, view)
        for part in op.nodes:
            check_arity(part, _version(model, part.domain))
    except OnnxCustomError:
        raise
    except Exception as exc:
        raise refusal(view, f"its operands or attributes are wrong ({type(exc).__name__}: {exc})") from exc
    made = [result] if isinstance(result, Var) else list(result)
    pairs = [
        (old, new if new.value.producer() in op.nodes else op.Identity(new))
        for old, new in zip(node.outputs, made, strict=False)
        if old.name and new is not None
    ]
    if any(v.name and (v.uses() or v.is_graph_output()) for v in node.outputs[len(made) :]):
        raise refusal(view, f"it has {len(node.outputs)} outputs, and {len(made)} are known")
    for initializer in op.initializers:
        graph.register_initializer(initializer)
    for domain, version in op.domains.items():
        model.opset_imports.setdefault(domain, version)
    for old, new in pairs:
        # The new value's type holds where the old one had none.
        old.type = old.type or new.value.type
    ir.convenience.replace_nodes_and_values(
        graph, node, [node], op.nodes, [old for old, _ in pairs], [new.value for _, new in pairs]
    )


def _infer_types(model: ir.Model, node: ir.Node) -> None:
    """Element types of a node's outputs, as far as its schema gives them from its inputs."""
    if all(v.dtype is not None for v in node.outputs):
        return
    schema = operator_schema(node.op_type, _version(model, node.domain), node.domain)
    if schema is None:
        return
    known = {
        schema.inputs[min(i, len(schema.inputs) - 1)].type_str: v.dtype
        for i, v in enumerate(node.inputs)
        if v is not None and v.dtype is not None
    }
    for i, v in enumerate(node.outputs):
        dtype = known.get(schema.outputs[min(i, len(schema.outputs) - 1)].type_str)
        if v.dtype is None and dtype is not None:
            v.dtype = dtype


# -- function bodies -------------------------------------------------------------------------------


def _call_body(model: ir.Model, node: ir.Node, taken: set[str]) -> bool:
    """Turn a node into a call of its function body, to be inlined; False if it has none as it stands."""
    version = _version(model, node.domain)
    schema = operator_schema(node.op_type, version, node.domain)
    assert schema is not None
    _name_outputs(node, taken)
    _set_defaults(node, schema)
    proto = _body(schema, version, node)
    if proto is None or not _valid_at(proto, model):
        return False
    del proto.output[len(node.outputs) :]
    call = f"{node.op_type}_{len(model.functions)}"
    proto.domain, proto.name = _FUNCTIONS, call
    del proto.opset_import[:]
    proto.opset_import.extend(onnx.helper.make_opsetid(d, v) for d, v in model.opset_imports.items())
    _rename_body(proto, taken, node.name or node.op_type)
    function = ir.serde.deserialize_function(proto)
    model.functions[function.identifier()] = function
    node.domain, node.op_type = _FUNCTIONS, call
    return True


def _body(schema: Any, version: int, node: ir.Node) -> onnx.FunctionProto | None:
    """The newest body that the operator's version has."""
    candidates = _bodies(schema, version)
    context_dependent = schema.has_context_dependent_function
    proto = onnx.FunctionProto()
    if context_dependent:
        types = [_type(v).SerializeToString() for v in node.inputs]
        text = schema.get_context_dependent_function_with_opset_version(
            max(candidates), ir.serde.serialize_node(node).SerializeToString(), types
        )
    else:
        text = schema.get_function_with_opset_version(max(candidates))
    proto.ParseFromString(text)
    return proto if proto.node else None


def _bodies(schema: Any, version: int) -> list[int]:
    """Opsets that a schema has bodies for, not newer than `version`."""
    if schema.has_context_dependent_function:
        opsets = schema.context_dependent_function_opset_versions
    elif schema.has_function:
        opsets = schema.function_opset_versions
    else:
        return []
    return [v for v in opsets if v <= version]


def _type(value: ir.Value | None) -> onnx.TypeProto:
    return onnx.TypeProto() if value is None else ir.serde.serialize_value(value).type


def _name_outputs(node: ir.Node, taken: set[str]) -> None:
    """Outputs left out get a name: the body may read them."""
    for value in node.outputs:
        if not value.name:
            value.name = unique_name(f"{node.op_type}_output", taken)


def _set_defaults(node: ir.Node, schema: Any) -> None:
    """Bodies refer to attributes, and a reference has no default."""
    for name, attribute in schema.attributes.items():
        if name not in node.attributes and attribute.default_value.name:
            node.attributes[name] = ir.serde.deserialize_attribute(attribute.default_value)


def _valid_at(proto: onnx.FunctionProto, model: ir.Model) -> bool:
    """Whether the operators of a body mean the same in the model's opset."""
    written = {normal_domain(i.domain): i.version for i in proto.opset_import}
    for node in proto.node:
        domain = normal_domain(node.domain)
        there = operator_schema(node.op_type, written.get(domain, 1), domain)
        here = operator_schema(node.op_type, _version(model, domain), domain)
        if there is None or here is None or here.deprecated:
            return False
        if here.since_version != there.since_version and (
            len(here.inputs) < len(node.input) or any(a.name not in here.attributes for a in node.attribute)
        ):
            return False
    return True


def _rename_body(proto: onnx.FunctionProto, taken: set[str], prefix: str) -> None:
    """Names of a body become unique in the model, subgraphs included."""
    new: dict[str, str] = {name: name for name in (*proto.input, *proto.output)}

    def rename(nodes: Sequence[onnx.NodeProto]) -> None:
        for node in nodes:
            for i, name in enumerate(node.output):
                if name and name not in new:
                    new[name] = unique_name(f"{prefix}_{name}", taken)
                node.output[i] = new.get(name, name)
            for graph in (a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH):
                for value in graph.input:
                    new[value.name] = unique_name(f"{prefix}_{value.name}", taken)
                    value.name = new[value.name]
                rename(graph.node)
                for value in graph.output:
                    value.name = new.get(value.name, value.name)
            for i, name in enumerate(node.input):
                node.input[i] = new.get(name, name)
            node.name = unique_name(f"{prefix}_{node.op_type}", taken)

    rename(proto.node)


# -- helpers ---------------------------------------------------------------------------------------


def _version(model: ir.Model, domain: str) -> int:
    return model.opset_imports.get(domain, 1)
