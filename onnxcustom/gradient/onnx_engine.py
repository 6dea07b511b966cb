"""Engine ``"onnx"``: our own rules, standard ONNX operators only, every onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from onnxcustom.exceptions import MissingRuntimeError
from onnxcustom.graph.analysis.operands import is_float
from onnxcustom.graph.analysis.traversal import all_names, subgraphs
from onnxcustom.graph.preparation.checks import check_made

from . import rules  # noqa: F401 - registers every rule
from .carried import active_values, all_reads, carried_values, untype
from .cuda_forms import spell_for_cuda
from .emit import GradientBuilder
from .engine import ReverseWalk
from .expand import expand, expandable
from .flow import Flow
from .graphs import add, clean, name_sizes
from .host import HERE, Host
from .interface import Engine, register_engine
from .known_sizes import fold_sizes
from .node import NodeView
from .registry import find_rule, non_differentiable_reason, refused_reason
from .simplify import fuse_biases
from .verdict import RULE, Verdict

__all__ = ["OnnxEngine"]

# Marks the nodes of the model, which were checked when it came in.
_GIVEN = "onnxcustom.given"


class OnnxEngine(Engine):
    """Gradients by the rules of :mod:`onnxcustom.gradient.rules`."""

    name = "onnx"
    host = HERE

    def on(self, host: Host) -> OnnxEngine:
        """The engine whose rules know where they are going to run."""
        if host == self.host:
            return self
        made = OnnxEngine()
        made.host = host
        return made

    def unavailable(self) -> str | None:
        """Never: building a gradient takes no onnxruntime."""
        return None

    def limits(self) -> tuple[int | None, int | None]:
        """What the installed onnxruntime reads, so that the gradient runs on it."""
        from onnxcustom.runtime import ort_limits

        try:
            return ort_limits()
        except MissingRuntimeError:
            return None, None

    def min_opset(self, model: ir.Model) -> int:
        """Rules are written for opset 18 and newer."""
        return 18

    def verdict(self, model: ir.Model, node: ir.Node, operand: int, outputs: frozenset[int]) -> Verdict:
        """By the registry; a node with subgraphs is as good as the worst node in them."""
        found = _verdict(model, node)
        return _inner_verdict(model, node) or found if found.passes else found

    def forms(self, model: ir.Model, node: ir.Node) -> Mapping[str, str]:
        """As the node's rule says."""
        version = model.opset_imports.get(node.domain, 1)
        rule = find_rule(node.op_type, node.domain, version)
        if rule is None or rule.forms is None:
            return {}
        op = GradientBuilder(model.opset_imports[""])
        # Of tensors of its own: the model stays as it is.
        given = [None if v is None else _alike(v) for v in node.inputs]
        made = [_alike(v) for v in node.outputs]
        alone = ir.node(node.op_type, given, attributes=node.attributes, domain=node.domain, outputs=made)
        view = NodeView(op, alone, version, [True] * len(given))
        view.walk = ReverseWalk(op, model.opset_imports, self.host)
        return rule.forms(op, view)

    def carried(self, node: ir.Node) -> Sequence[ir.Value]:
        return carried_values(node)

    def differentiate(
        self,
        model: ir.Model,
        sources: Sequence[ir.Value],
        seeds: Mapping[ir.Value, ir.Value],
        flow: Flow,
    ) -> dict[ir.Value, ir.Value]:
        """Walk backwards from the seeds to the sources."""
        graph = model.graph
        for node in graph:
            node.meta[_GIVEN] = True
        if name_sizes(model):
            untype(graph)
            for target, seed in seeds.items():
                seed.shape = None if target.shape is None else ir.Shape(list(target.shape))
        if any(verdict.how == "function" for verdict in flow.verdicts.values()):
            seeds = _expand(model, seeds)
        op = GradientBuilder(model.opset_imports[""], taken=all_names(graph))
        fold_sizes(model, op)
        fuse_biases(graph)
        walk = ReverseWalk(op, model.opset_imports, self.host)
        found = walk.gradients(list(graph), {v: op.wrap(s) for v, s in seeds.items()}, list(sources))
        add(model, op)
        return {value: gradient.value for value, gradient in found.items()}

    def finish(self, model: ir.Model) -> None:
        """Fold what rules repeat; what they made of wrong operands does not reach a runtime."""
        if self.host.device == "cuda":
            spell_for_cuda(model)
        clean(model)
        check_made((node for node in model.graph if not node.meta.pop(_GIVEN, False)), model.opset_imports)


def _alike(value: ir.Value) -> ir.Value:
    return ir.Value(name=value.name, type=value.type, shape=value.shape, const_value=value.const_value)


def _verdict(model: ir.Model, node: ir.Node) -> Verdict:
    version = model.opset_imports.get(node.domain, 1)
    reason = non_differentiable_reason(node.op_type, node.domain)
    if reason is not None:
        return Verdict("non-differentiable", reason)
    if find_rule(node.op_type, node.domain, version) is not None:
        return RULE
    reason = refused_reason(node.op_type, node.domain)
    if reason is not None:
        return Verdict("refused", reason)
    how = expandable(node.op_type, node.domain, version)
    if how is not None:
        body = "its ONNX function body" if how == "function" else "the standard operators it stands for"
        return Verdict("function", f"by {body}")
    return Verdict(
        "unknown",
        f"nothing is known of {node.op_type!r} of domain {node.domain or 'ai.onnx'!r}, opset {version}; "
        "register a rule for it with onnxcustom.gradient.rule, or train only weights behind it.",
    )


def _inner_verdict(model: ir.Model, node: ir.Node) -> Verdict | None:
    """What stands in the way, or has to be expanded, inside the subgraphs of a node."""
    found: Verdict | None = None
    for graph in subgraphs(node):
        for inner in _between(graph):
            verdict = _verdict(model, inner)
            if verdict.passes:
                verdict = _inner_verdict(model, inner) or verdict
            if verdict.how in ("refused", "unknown"):
                name = inner.name or inner.op_type
                return Verdict(
                    verdict.how, f"its subgraph holds {name!r} ({inner.op_type}): {verdict.reason}"
                )
            if verdict.how == "function":
                found = verdict
    return found


def _between(graph: ir.Graph) -> list[ir.Node]:
    """Nodes on a way from a floating-point value to a floating-point output of a subgraph."""
    inside = {v for node in graph for v in node.outputs} | set(graph.initializers.values())
    read = {node: all_reads(node) for node in graph}
    outside = {v for values in read.values() for v in values if v not in inside and is_float(v)}
    active = active_values(graph, outside)
    needed = {v for v in graph.outputs if is_float(v)}
    found = []
    for node in reversed(graph):
        smooth = non_differentiable_reason(node.op_type, node.domain) is None
        if smooth and any(v in active for v in read[node]) and any(v in needed for v in node.outputs):
            found.append(node)
            needed.update(v for v in read[node] if is_float(v))
    return found


def _expand(model: ir.Model, seeds: Mapping[ir.Value, ir.Value]) -> dict[ir.Value, ir.Value]:
    """Replace nodes by what they stand for; the seeds of the values that are then the outputs."""
    graph = model.graph
    places = {value: list(graph.outputs).index(value) for value in seeds}
    expand(model)
    untype(graph)
    return {graph.outputs[place]: seeds[value] for value, place in places.items()}


ONNX = register_engine(OnnxEngine())
