"""The reverse walk: gradients of values with respect to values, one rule per node.

It knows nothing of any operator: rules come from :mod:`onnxcustom.gradient.registry`, and what
is common to all of them (which values carry gradients, sums of contributions, sums over broadcast
dimensions) is done here, once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir

from onnxcustom.exceptions import (
    DifferentiationError,
    GradientNotImplementedError,
    OnnxCustomError,
    UnknownOperatorError,
)
from onnxcustom.graph.building.builder import Var

from .carried import active_values, captured_values
from .emit import GradientBuilder
from .expand import expandable
from .gates import Gate, find_gates
from .host import HERE, Host
from .node import NodeView
from .registry import Rule, find_rule, refused_reason

__all__ = ["ReverseWalk"]


class ReverseWalk:
    """Differentiates a list of nodes.

    Parameters
    ----------
    op : GradientBuilder
        Where gradients are emitted.
    opsets : dict of str to int
        Versions of the domains.
    host : Host, optional
        Where the graph is going to run.
    """

    def __init__(self, op: GradientBuilder, opsets: Mapping[str, int], host: Host = HERE) -> None:
        self.op = op
        self.opsets = dict(opsets)
        self.host = host

    def inside(self, op: GradientBuilder) -> ReverseWalk:
        """A walk over a subgraph, whose gradients another builder emits."""
        return ReverseWalk(op, self.opsets, self.host)

    # -- which values carry gradients --------------------------------------------------------------

    def active(self, nodes: Iterable[ir.Node], wanted: Iterable[ir.Value]) -> set[ir.Value]:
        """`wanted` and every floating-point value that depends differentiably on one of them."""
        return active_values(nodes, wanted)

    # -- the walk ----------------------------------------------------------------------------------

    def gradients(
        self, nodes: Sequence[ir.Node], seeds: Mapping[ir.Value, Var], wanted: Sequence[ir.Value]
    ) -> dict[ir.Value, Var]:
        """Gradients of sum(seed · value) with respect to `wanted`.

        Parameters
        ----------
        nodes : sequence of onnx_ir.Node
            In topological order.
        seeds : dict of onnx_ir.Value to Var
            Gradient of each output.
        wanted : sequence of onnx_ir.Value
            Values to differentiate by: inputs of the graph, weights or anything in between.

        Returns
        -------
        dict of onnx_ir.Value to Var
            Without an entry for values that no seed depends on.

        Raises
        ------
        DifferentiationError
            A node on the way has no rule, or its rule is wrong.
        """
        active = self.active(nodes, wanted)
        gates = find_gates(nodes, set(wanted))
        contributions: dict[ir.Value, list[Var]] = {v: [dv] for v, dv in seeds.items() if v in active}
        total: dict[ir.Value, Var] = {}
        for node in reversed(nodes):
            dys = [self._total(v, contributions, total) for v in node.outputs]
            if all(dy is None for dy in dys):
                continue
            if node in gates:
                if gates[node].x in active:
                    gradient = self._through(gates[node], dys[0])
                    contributions.setdefault(gates[node].x, []).append(gradient)
                continue
            needs = [v is not None and v in active for v in node.inputs]
            captured = [v for v in captured_values(node) if v in active]
            if any(needs) or captured:
                for value, gradient in self._differentiate(node, dys, needs, captured):
                    contributions.setdefault(value, []).append(gradient)
        found = {v: self._total(v, contributions, total) for v in wanted}
        return {v: dv for v, dv in found.items() if dv is not None}

    def _through(self, gate: Gate, dy: Var | None) -> Var:
        """Gradient of x through several nodes at once; y is computed as that does."""
        assert dy is not None
        y, dx = gate.gradient(self.op, dy)
        NodeView(self.op, gate.node, self._version(gate.node), [True]).replace_output(0, y)
        _take_type(dx, gate.x)
        return dx

    def _total(
        self, value: ir.Value, contributions: dict[ir.Value, list[Var]], total: dict[ir.Value, Var]
    ) -> Var | None:
        """The sum of all contributions to the gradient of a value."""
        if value not in total:
            parts = contributions.pop(value, [])
            if not parts:
                return None
            total[value] = parts[0] if len(parts) == 1 else self._sum(parts)
            _take_type(total[value], value)
        return total[value]

    def _sum(self, parts: list[Var]) -> Var:
        return parts[0] + parts[1] if len(parts) == 2 else self.op.Sum(*parts)

    def _differentiate(
        self, node: ir.Node, dys: Sequence[Var | None], needs: Sequence[bool], captured: Sequence[ir.Value]
    ) -> list[tuple[ir.Value, Var]]:
        """Apply the node's rule: pairs of an input and a contribution to its gradient."""
        rule = self.find(node)
        try:
            return self._apply(rule, node, dys, needs, captured)
        except OnnxCustomError:
            raise
        except Exception as exc:  # operands or attributes that its operator cannot have
            raise self.error(
                DifferentiationError,
                node,
                f"its rule fails on it ({type(exc).__name__}: {exc}); check its operands and attributes",
            ) from exc

    def _apply(
        self,
        rule: Rule,
        node: ir.Node,
        dys: Sequence[Var | None],
        needs: Sequence[bool],
        captured: Sequence[ir.Value],
    ) -> list[tuple[ir.Value, Var]]:
        view = NodeView(self.op, node, self._version(node), needs)
        view.walk, view.captured = self, tuple(captured)  # for rules of nodes with subgraphs
        result = rule.function(self.op, view, *dys)
        by_capture: Mapping[ir.Value, Var] = {}
        if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict):
            result, by_capture = result
        gradients = self._check(node, result)
        pairs = [
            (value, self._fit(gradient, view.inputs[i], rule))
            for i, (value, gradient) in enumerate(zip(node.inputs, gradients, strict=True))
            if value is not None and gradient is not None and needs[i]
        ]
        pairs += [(v, dv) for v, dv in by_capture.items() if v in captured]
        for value, gradient in pairs:
            self._check_type(node, gradient, value)
            _take_type(gradient, value)
        return pairs

    def _fit(self, gradient: Var, x: Var | None, rule: Rule) -> Var:
        return self.op.sum_to(gradient, x) if rule.broadcasts and x is not None else gradient

    def _check(self, node: ir.Node, result: object) -> list[Var | None]:
        """The rule's gradients, one per input."""
        if isinstance(result, Var) or result is None:
            gradients: list[Var | None] = [result]
        else:
            gradients = list(result)  # type: ignore[call-overload]
        n = len(node.inputs)
        if not isinstance(result, (Var, type(None))) and len(gradients) != n:
            raise self.error(
                DifferentiationError,
                node,
                f"its rule returned {len(gradients)} gradients for {n} inputs: correct the rule to return "
                "one per input, None where there is none",
            )
        bad = [g for g in gradients if g is not None and not isinstance(g, Var)]
        if bad:
            raise self.error(
                DifferentiationError,
                node,
                f"its rule returned {bad[0]!r}, which is no variable of the builder",
            )
        return gradients + [None] * (n - len(gradients))

    def _check_type(self, node: ir.Node, gradient: Var, value: ir.Value) -> None:
        """A gradient that cannot be its tensor's is a mistake of the rule."""
        one, other = gradient.value, value
        if None not in (one.dtype, other.dtype) and one.dtype != other.dtype:
            what = f"dtype {one.dtype} for input {value.name!r} of dtype {other.dtype}"
        elif _contradict(one.shape, other.shape):
            what = f"shape {one.shape} for input {value.name!r} of shape {other.shape}"
        else:
            return
        raise self.error(
            DifferentiationError,
            node,
            f"its rule returned a gradient of {what}: correct the rule (broadcasts=True sums a gradient of "
            "the output's shape to the input's)",
        )

    # -- rules and errors --------------------------------------------------------------------------

    def find(self, node: ir.Node) -> Rule:
        """The rule of a node.

        Raises
        ------
        GradientNotImplementedError
            The operator is refused, or its version has no rule.
        UnknownOperatorError
            Nothing is known of the operator.
        """
        rule = find_rule(node.op_type, node.domain, self._version(node))
        if rule is not None:
            return rule
        reason = refused_reason(node.op_type, node.domain)
        if reason is not None:
            raise self.error(GradientNotImplementedError, node, reason)
        if expandable(node.op_type, node.domain, self._version(node)) is not None:
            raise self.error(
                GradientNotImplementedError,
                node,
                "what it stands for depends on the type or the rank of an input, and that is unknown; "
                "declare the shapes of the model's inputs, or infer them (onnx.shape_inference)",
            )
        raise self.error(
            UnknownOperatorError,
            node,
            "this library knows no gradient for it; register one with onnxcustom.gradient.rule, leave what "
            "depends on it out of the weights, or replace the node",
        )

    def _version(self, node: ir.Node) -> int:
        return self.opsets.get(node.domain, 1)

    def error(self, kind: type[DifferentiationError], node: ir.Node, what: str) -> DifferentiationError:
        """An exception that names the node."""
        version = self._version(node)
        name = node.name or node.outputs[0].name
        domain = node.domain or "ai.onnx"
        return kind(
            f"Node {name!r} ({node.op_type}, domain {domain}, opset {version}) cannot be differentiated: "
            f"{what}.",
            node=name,
            op_type=node.op_type,
            domain=node.domain,
            opset=version,
        )


def _contradict(one: ir.Shape | None, other: ir.Shape | None) -> bool:
    """Whether two shapes cannot be the same."""
    if one is None or other is None:
        return False
    if len(one) != len(other):
        return True
    pairs = zip(one, other, strict=True)
    return any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs)


def _take_type(gradient: Var, value: ir.Value) -> None:
    """A gradient has the dtype and the shape of what it is the gradient of."""
    if gradient.value.dtype is None and value.dtype is not None:
        gradient.value.type = ir.TensorType(value.dtype)
    shape = gradient.value.shape
    if value.shape is not None and (shape is None or any(not isinstance(d, int) for d in shape)):
        gradient.value.shape = value.shape
