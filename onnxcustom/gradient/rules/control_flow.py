"""If, Loop and Scan: the walk is repeated inside their subgraphs.

Backward subgraphs compute their forward part again from the values at the start of an iteration,
which Loop and Scan hand out as further scan outputs. What subgraphs capture from outside, weights
among them, is differentiated like an input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from onnxcustom.exceptions import GradientNotImplementedError
from onnxcustom.graph.analysis.constants import constant_array
from onnxcustom.graph.analysis.operands import is_float
from onnxcustom.graph.analysis.operators import is_op
from onnxcustom.graph.analysis.traversal import all_nodes, subgraphs
from onnxcustom.graph.building.builder import Var

from ..carried import captured_values, is_holder
from ..emit import GradientBuilder
from ..loop_shapes import state_shapes
from ..loop_states import Packed, Stacked, hand_out, pack_states
from ..node import NodeView
from ..registry import rule

__all__: list[str] = []

Captures = dict[ir.Value, Var]


class _Body:
    """A copy of a subgraph with the gradients of some of its values, under construction."""

    def __init__(self, op: GradientBuilder, node: NodeView, graph: ir.Graph) -> None:
        self.node = node
        self.graph = graph.clone(allow_outer_scope_values=True)
        self.op = GradientBuilder(op.opset, taken=op.taken)
        self.op.domains = op.domains
        _rename(self.graph, self.op)

    def gradients(self, seeds: Mapping[ir.Value, Var], wanted: Sequence[ir.Value]) -> list[Var]:
        """Gradients of `wanted`, zeros where nothing depends on them."""
        walk = self.node.walk.inside(self.op)
        # Seeds from outside must not draw what is computed with them outside.
        inside = {value: Var(self.op, seed.value) for value, seed in seeds.items()}
        # What is in a sequence from outside is wanted by itself; the sequence only leads to it.
        holders = [v for v in self.node.captured if is_holder(v)]
        found = walk.gradients(list(self.graph), inside, [*wanted, *holders])
        return [found[v] if v in found else self.op.zeros_like(self.op.wrap(v)) for v in wanted]

    def finish(self, inputs: Sequence[Var | ir.Value], outputs: Sequence[Var]) -> ir.Graph:
        """The subgraph, with these inputs and outputs."""
        # A subgraph's output must be made by the subgraph, once.
        made = [self.op.Identity(v) for v in outputs]
        self.graph.inputs[:] = [self.op.wrap(v).value for v in inputs]
        self.graph.outputs[:] = [v.value for v in made]
        for initializer in self.op.initializers:
            self.graph.register_initializer(initializer)
        self.graph.extend(self.op.nodes)
        self.graph.sort()
        self._refuse_random()
        return self.graph

    def _refuse_random(self) -> None:
        """A gradient that computes the forward part again must not draw other numbers."""
        needed = set(self.graph.outputs)
        for node in reversed(self.graph):
            if not any(v in needed for v in node.outputs):
                continue
            needed.update(v for v in (*node.inputs, *captured_values(node)) if v is not None)
            for inner in (node, *(n for g in subgraphs(node) for n in all_nodes(g))):
                if _is_random(inner):
                    raise self.node.walk.error(
                        GradientNotImplementedError,
                        self.node.node,
                        f"its subgraph draws random numbers ({inner.op_type} node {inner.name!r}), and its "
                        "gradient would draw others; draw them before it and let the subgraph read them",
                    )


_RANDOM = frozenset(
    "Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike".split()
)


def _is_random(node: ir.Node) -> bool:
    """Whether a node draws random numbers; Dropout does in training mode."""
    if node.op_type == "Dropout" and len(node.inputs) > 2 and node.inputs[2] is not None:
        mode = constant_array(node.inputs[2])
        return mode is None or bool(mode)
    return is_op(node, *_RANDOM)


def _tensors(values: Sequence[ir.Value]) -> list[ir.Value]:
    return [v for v in values if not is_holder(v)]


def _rename(graph: ir.Graph, op: GradientBuilder) -> None:
    """Names of a copied subgraph become unique in the whole model."""
    for value in list(graph.initializers.values()):
        # The copy shares its tensor with the original, and would rename it there as well.
        tensor, value.const_value = value.const_value, None
        value.name = op.unique(str(value.name))
        value.const_value = None if tensor is None else ir.Tensor(tensor.numpy(), name=value.name)
    for value in graph.inputs:
        value.name = op.unique(str(value.name))
    for node in graph:
        node.name = op.unique(node.name or node.op_type)
        for value in node.outputs:
            if value.name:
                value.name = op.unique(value.name)
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                _rename(attribute.as_graph(), op)
            elif attribute.type == ir.AttributeType.GRAPHS:
                for inner in attribute.as_graphs():
                    _rename(inner, op)


def _input_like(op: GradientBuilder, name: str, like: Var | ir.Value) -> Var:
    """A subgraph input of the dtype of `like`; its shape is left to the run."""
    dtype = like.dtype
    assert dtype is not None
    return op.input(op.unique(name), dtype, None)


@rule("If")
def if_(op: GradientBuilder, node: NodeView, *dys: Var | None) -> tuple[list[None], Captures]:
    """Gradient of what the branches capture: an If on the same condition, branch by branch."""
    captured = _tensors(node.captured)
    branches: dict[str, Any] = {}
    for name in ("then_branch", "else_branch"):
        body = _Body(op, node, node.node.attributes[name].as_graph())
        seeds = {
            y: dy
            for y, dy in zip(body.graph.outputs, dys, strict=True)
            if dy is not None and is_float(y, unknown=False)
        }
        branches[name] = body.finish([], body.gradients(seeds, captured))
    gradients = op.call("If", node.inputs[0], outputs=[f"{v.name}_part" for v in captured], **branches)
    for value, gradient in zip(captured, gradients, strict=True):
        gradient.value.type = value.type
    return [None], dict(zip(captured, gradients, strict=True))


@rule("Scan", since=9)
def scan(op: GradientBuilder, node: NodeView, *dys: Var | None) -> tuple[list[Var | None], Captures]:
    """A Scan over the same elements the other way round, its state the gradient of the state."""
    body = node.node.attributes["body"].as_graph()
    m = int(node.attr("num_scan_inputs"))
    n = len(node.inputs) - m
    axes_in = _list(node, "scan_input_axes", m, 0)
    turns_in = _list(node, "scan_input_directions", m, 0)
    k = len(body.outputs) - n
    axes_out = _list(node, "scan_output_axes", k, 0)
    turns_out = _list(node, "scan_output_directions", k, 0)
    saved = _save_states(op, node, body, n, axes_out, turns_out)

    states = [i for i in range(n) if is_float(node.inputs[i], unknown=False)]
    elements = [i for i in range(n, n + m) if is_float(node.inputs[i], unknown=False)]
    collected = [j for j in range(k) if n + j < len(dys) and dys[n + j] is not None]
    captured = _tensors(node.captured)

    inner = _Body(op, node, body)
    d_states = [_input_like(inner.op, "d_state", inner.graph.inputs[i]) for i in states]
    sums = [_input_like(inner.op, "d_captured", v) for v in captured]
    d_collected = [_input_like(inner.op, "d_element", inner.graph.outputs[n + j]) for j in collected]
    seeds = _seeds(inner, [*states, *(n + j for j in collected)], [*d_states, *d_collected])
    inputs = list(inner.graph.inputs)
    parts = inner.gradients(seeds, [*(inputs[i] for i in states), *captured, *(inputs[i] for i in elements)])
    s, c = len(states), len(captured)
    outputs = [*parts[:s], *(a + b for a, b in zip(sums, parts[s : s + c], strict=True)), *parts[s + c :]]
    graph = inner.finish([*d_states, *sums, *inputs[:n], *inputs[n:], *d_collected], outputs)

    first = [dys[i] if dys[i] is not None else op.zeros_like(op.wrap(node.node.outputs[i])) for i in states]
    first += [op.zeros_like(op.wrap(v)) for v in captured]
    # States were saved along axis 0 in the order of the run, now read backwards.
    results = op.call(
        "Scan",
        *first,
        *saved,
        *node.inputs[n:],
        *(dys[n + j] for j in collected),
        outputs=["d"] * (s + c + len(elements)),
        body=graph,
        num_scan_inputs=n + m + len(collected),
        scan_input_axes=[0] * n + axes_in + [axes_out[j] for j in collected],
        scan_input_directions=[1] * n + [1 - t for t in turns_in] + [1 - turns_out[j] for j in collected],
        scan_output_axes=[axes_in[i - n] for i in elements],
        scan_output_directions=[1 - turns_in[i - n] for i in elements],
    )
    gradients: list[Var | None] = [None] * len(node.inputs)
    for i, gradient in zip([*states, *elements], [*results[:s], *results[s + c :]], strict=True):
        gradients[i] = gradient
    return gradients, dict(zip(captured, results[s : s + c], strict=True))


def _save_states(
    op: GradientBuilder, node: NodeView, body: ir.Graph, n: int, axes: list[int], turns: list[int]
) -> list[Var]:
    """Make the forward Scan hand out its state at the start of every iteration."""
    saved = hand_out(op, node.node, list(body.inputs[:n]))
    if axes or turns or n:
        node.node.attributes["scan_output_axes"] = ir.AttrInt64s("scan_output_axes", axes + [0] * n)
        node.node.attributes["scan_output_directions"] = ir.AttrInt64s(
            "scan_output_directions", turns + [0] * n
        )
    return saved


def _list(node: NodeView, name: str, n: int, default: int) -> list[int]:
    return [int(v) for v in (node.attr(name) or [default] * n)]


def _seeds(inner: _Body, positions: Sequence[int], gradients: Sequence[Var]) -> dict[ir.Value, Var]:
    """Gradients of body outputs; an output listed twice gets their sum."""
    seeds: dict[ir.Value, Var] = {}
    for position, gradient in zip(positions, gradients, strict=True):
        value = inner.graph.outputs[position]
        seeds[value] = seeds[value] + gradient if value in seeds else gradient
    return seeds


@rule("Loop", since=11)
def loop(op: GradientBuilder, node: NodeView, *dys: Var | None) -> tuple[list[Var | None], Captures]:
    """A Loop over the iterations done, from the last to the first, on the states saved on the way."""
    n = len(node.inputs) - 2
    grown = _grown(node)
    inner = _Body(op, node, node.node.attributes["body"].as_graph())  # before it saves anything
    trips, saved = _save_loop(op, node, n, grown)

    states = [i for i in range(n) if is_float(node.inputs[2 + i], unknown=False)]
    collected = [j for j in range(len(dys) - n) if dys[n + j] is not None]
    captured = _tensors(node.captured)

    inner_op = inner.op
    iteration = inner_op.input(inner_op.unique("iteration"), ir.DataType.INT64, [])
    going = inner_op.input(inner_op.unique("going"), ir.DataType.BOOL, [])
    d_states = [_input_like(inner_op, "d_state", inner.graph.inputs[2 + i]) for i in states]
    sums = [_input_like(inner_op, "d_captured", v) for v in captured]
    t = inner_op.wrap(trips.value) - iteration - 1
    starts = _start_iteration(inner, [t, going, *(state.at(inner_op, t) for state in saved)])
    d_collected = [inner_op.Gather(dys[n + j], t) for j in collected]
    for j, d in zip(collected, d_collected, strict=True):
        d.value.type = inner.graph.outputs[1 + n + j].type
    seeds = _seeds(
        inner, [*(1 + i for i in states), *(1 + n + j for j in collected)], [*d_states, *d_collected]
    )
    parts = inner.gradients(seeds, [*(starts[2 + i] for i in states), *captured])
    s = len(states)
    keep = inner_op.Identity(going)
    outputs = [keep, *parts[:s], *(a + b for a, b in zip(sums, parts[s:], strict=True))]
    graph = inner.finish([iteration, going, *d_states, *sums], outputs)

    first = [dys[i] if dys[i] is not None else op.zeros_like(op.wrap(node.node.outputs[i])) for i in states]
    first += [op.zeros_like(op.wrap(v)) for v in captured]
    results = op.call("Loop", trips, None, *first, outputs=["d"] * len(first), body=graph)
    gradients: list[Var | None] = [None] * len(node.inputs)
    for i, gradient in zip(states, results[:s], strict=True):
        gradients[2 + i] = gradient
    return gradients, dict(zip(captured, results[s:], strict=True))


def _grown(node: NodeView) -> list[int]:
    """The states of a Loop whose shape may change from one iteration to the next."""
    body = node.node.attributes["body"].as_graph()
    for value in body.inputs[2:]:
        if isinstance(value.type, (ir.SequenceType, ir.OptionalType)):
            raise node.walk.error(
                GradientNotImplementedError,
                node.node,
                f"its state {value.name!r} is {value.type}; keep tensors in the states of a Loop, and "
                "collect what it makes in a scan output",
            )
    shapes, reshaped = state_shapes(node.node, node.walk.opsets)
    if reshaped:
        names = ", ".join(repr(body.inputs[2 + i].name) for i in sorted(reshaped))
        raise node.walk.error(
            GradientNotImplementedError,
            node.node,
            f"the number of dimensions of its state {names} changes between iterations; reshape it to one "
            "rank inside the body",
        )
    return [i for i, dims in enumerate(shapes) if dims is None or None in dims]


def _save_loop(
    op: GradientBuilder, node: NodeView, n: int, grown: Sequence[int]
) -> tuple[Var, list[Stacked | Packed]]:
    """Make the forward Loop hand out its states: the number of iterations, and one by one what was saved."""
    packed: dict[int, Packed] = {}
    if grown:
        node.node, made = pack_states(op, node.node, grown)
        packed = dict(zip(grown, made, strict=True))
    body = node.node.attributes["body"].as_graph()
    steady = [i for i in range(n) if i not in packed]
    counts, *stacks = hand_out(op, node.node, [body.inputs[0], *(body.inputs[2 + i] for i in steady)])
    stacked = dict(zip(steady, map(Stacked, stacks), strict=True))
    trips = op.Gather(op.Shape(counts), 0)
    return trips, [packed[i] if i in packed else stacked[i] for i in range(n)]


def _start_iteration(inner: _Body, starts: Sequence[Var]) -> list[ir.Value]:
    """Replace the inputs of a copied Loop body by what they were in one iteration."""
    for value, start in zip(inner.graph.inputs, starts, strict=True):
        if start.value.producer() is not None and value.type is not None:
            start.value.type, start.value.shape = value.type, value.shape
        value.replace_all_uses_with(start.value, replace_graph_outputs=True)
    return [start.value for start in starts]
