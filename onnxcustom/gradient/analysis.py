"""Finding out where gradients flow, and what stands in the way.

Nothing here depends on how an engine builds a gradient, only on its verdicts.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from onnxcustom.graph.analysis.integers import computes_integers
from onnxcustom.graph.analysis.operands import is_float, is_opaque
from onnxcustom.graph.analysis.stops import is_stopped

from .flow import Flow, Reach, operands
from .interface import Engine
from .verdict import INTEGERS, STEP, Verdict

__all__ = ["analyse"]


def analyse(model: ir.Model, targets: Iterable[ir.Value], engine: Engine) -> Flow:
    """Walk the graph backwards from the targets, asking the engine about every edge on the way.

    Parameters
    ----------
    model : onnx_ir.Model
        Prepared, in topological order.
    targets : iterable of onnx_ir.Value
        The floating-point values that are differentiated.
    engine : Engine
        Whose verdicts count.

    Returns
    -------
    Flow
    """
    flow = Flow({value: Reach(live=True) for value in targets})
    for node in reversed(model.graph):
        after = Reach()
        known = False
        for value in node.outputs:
            if value in flow.reach:
                known = True
                after.merge(flow.reach[value])
        if not known:
            continue
        live = frozenset(
            k
            for k, v in enumerate(node.outputs)
            if v in flow.reach and _carries(flow.reach[v]) and is_float(v) and not is_stopped(node)
        )
        beside = ((-1, value) for value in engine.carried(node))
        for position, value in (*operands(node), *beside):
            _edge(model, engine, flow, node, position, value, live, after)
    return flow


def _carries(reach: Reach) -> bool:
    return reach.live or reach.refusal is not None


def _edge(
    model: ir.Model,
    engine: Engine,
    flow: Flow,
    node: ir.Node,
    position: int,
    value: ir.Value,
    live: frozenset[int],
    after: Reach,
) -> None:
    """Note what the node means for one of its operands."""
    reach = flow.reach.setdefault(value, Reach())
    if not is_float(value):
        reach.blocked = reach.blocked or after.blocked or (node, _INTEGER)
        return
    if not live:
        # Where numbers become places or labels says more than what is done with those afterwards.
        smooth = any(is_float(v) and v in flow.reach for v in node.outputs)
        step = (node, INTEGERS if computes_integers(node) else STEP)
        if reach.blocked is None or is_opaque(reach.blocked[0]):
            reach.blocked = (after.blocked or step) if smooth else step
        return
    verdict = flow.verdicts.get((node, position))
    if verdict is None:
        verdict = flow.verdicts[node, position] = engine.verdict(model, node, position, live)
    if verdict.passes:
        reach.merge(after)
    elif verdict.stops:
        reach.blocked = reach.blocked or (node, verdict)
    else:
        reach.refusal = reach.refusal or (node, verdict)


_INTEGER = Verdict("non-differentiable", "the operand is not a floating-point tensor")
