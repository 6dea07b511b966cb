"""A graph as boxes and arrows, whatever draws them."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import onnx_ir as ir

from onnxcustom._text import count, listed, shorten
from onnxcustom.exceptions import OnnxCustomError
from onnxcustom.graph import weights as weights_of
from onnxcustom.graph.analysis.constants import constant_tensor
from onnxcustom.graph.analysis.operands import is_float
from onnxcustom.graph.analysis.operators import is_op
from onnxcustom.graph.analysis.traversal import all_nodes, reads, subgraphs

from .phases import PHASES, Phase, Roles, node_phases

__all__ = ["DETAILS", "Arrow", "Box", "Detail", "Diagram", "Frame", "draw_diagram"]

Detail = Literal["full", "outline", "summary"]
DETAILS: tuple[Detail, ...] = ("full", "outline", "summary")

_LINES = 5  # in a box: more weights than an LSTM reads at once
_OPERATORS = 8  # named in a box that stands for many nodes
_LONG = 200  # characters of a name in a tooltip
_TENSORS = 12  # named in a tooltip


@dataclasses.dataclass
class Box:
    """A node, an input or output of the graph, or several nodes in one.

    Attributes
    ----------
    key : str
        Unlike that of every other box.
    phase : {'forward', 'loss', 'backward', 'update'}
        What the node is there for, or what reads the input or makes the output.
    title : str
        Operator or name.
    lines : list of str
        What else is written in the box.
    tooltip : str
        What is known of it.
    data : bool
        Whether it is an input or output.
    count : collections.Counter
        Operators of the nodes, where it stands for several.
    """

    key: str
    phase: Phase
    title: str
    lines: list[str] = dataclasses.field(default_factory=list)
    tooltip: str = ""
    data: bool = False
    count: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)


@dataclasses.dataclass
class Frame:
    """Boxes and frames inside a frame: a node with its subgraphs, or one subgraph."""

    title: str
    phase: Phase
    parts: list[Part] = dataclasses.field(default_factory=list)


Part = Box | Frame


@dataclasses.dataclass
class Arrow:
    """A tensor that goes from one box to another.

    Attributes
    ----------
    tail, head : str
        Keys of boxes.
    phase : {'forward', 'loss', 'backward', 'update'}
        Of what reads it.
    names : list of str
        Tensors.
    up : bool
        Whether the head is drawn above the tail: the forward pass goes down, gradients come back up beside
        it, so that a layer and its gradient are neighbours.
    """

    tail: str
    head: str
    phase: Phase
    names: list[str]
    up: bool


@dataclasses.dataclass
class Diagram:
    """What is drawn.

    Attributes
    ----------
    title : str
        Of the picture.
    note : str
        What was left out, empty if nothing was.
    detail : {'full', 'outline', 'summary'}
        How much is drawn.
    parts : list of Box and Frame
        In the order of the graph.
    arrows : list of Arrow
        Between boxes, also those inside frames.
    """

    title: str
    note: str
    detail: Detail
    parts: list[Part]
    arrows: list[Arrow]

    @property
    def boxes(self) -> list[Box]:
        """All boxes, those inside frames included."""
        return _boxes(self.parts)

    @property
    def phases(self) -> list[Phase]:
        """The phases that nodes of the picture have, in the order in which they run."""
        found = {box.phase for box in self.boxes if not box.data}
        return [phase for phase in PHASES if phase in found]


def draw_diagram(
    model: ir.Model, detail: Detail | None = None, max_nodes: int = 300, weights: bool = True
) -> Diagram:
    """Make boxes and arrows of a graph.

    Parameters
    ----------
    model : onnx_ir.Model
        Any model; not changed.
    detail : {'full', 'outline', 'summary'}, optional
        A box for each node; one for each weight's update and for each node with subgraphs; one for each
        phase. None: the first of them with no more than `max_nodes` boxes.
    max_nodes : int, default=300
        See above.
    weights : bool, default=True
        Whether boxes name the weights, optimizer states and numbers they read and the results they make.

    Returns
    -------
    Diagram
    """
    roles = Roles.of(model)
    phases = node_phases(model, roles)
    total = sum(not _constant(node) for node in all_nodes(model.graph))
    if detail is None:
        detail = "full" if total <= max_nodes else "outline"
        drawing = _Drawing(model, roles, phases, detail, weights)
        if drawing.nodes > max_nodes:
            detail = "summary"
    drawing = _Drawing(model, roles, phases, detail, weights)
    note = ""
    if drawing.nodes < total:
        what = {"outline": "each weight's update and each subgraph", "summary": "each part"}[detail]
        note = f"{total:,} nodes; {what} is one box"
    return Diagram(_title(model, roles), note, detail, drawing.parts, list(drawing.arrows.values()))


class _Drawing:
    """Boxes and arrows while they are made."""

    def __init__(
        self,
        model: ir.Model,
        roles: Roles,
        phases: Mapping[ir.Node, Phase],
        detail: Detail,
        weights: bool,
    ) -> None:
        self.roles, self.phases, self.detail, self.weights = roles, phases, detail, weights
        self.parts: list[Part] = []
        self.boxes: dict[str, Box] = {}
        self.arrows: dict[tuple[str, str], Arrow] = {}
        self.nodes = 0
        # Boxes that a tensor comes from: those of each branch, for what an If gives.
        self.origin: dict[ir.Value, list[str]] = {}
        self.kept = {name for names in roles.kept.values() for name in names} | set(roles.statistics)
        self.kept |= set(roles.scalars)
        self.made = {name for names in roles.made.values() for name in names}
        self.made |= set(roles.statistics.values())
        self.trainable: set[str] = set()
        if weights and roles.kind == "model":
            with contextlib.suppress(OnnxCustomError):  # what cannot be trained can be drawn
                self.trainable = set(weights_of(model))
        self._main(model.graph)

    def _main(self, graph: ir.Graph) -> None:
        for value in graph.inputs:
            if value.name not in self.kept:
                self._tensor(value, "forward")
        self.hidden = self._factors() if self.detail == "outline" else set()
        self.groups = self._groups()
        for node in graph:
            if not _constant(node) and node not in self.hidden:
                self._node(node, self.phases[node], self.parts)
        for box in self.boxes.values():
            if box.count:
                box.lines += _counted(box.count, self.detail)
                box.tooltip = ", ".join(f"{number} {name}" for name, number in box.count.most_common())
        for value in graph.outputs:
            sources = self.origin.get(value)
            if sources and value.name not in self.made:
                phase = self.boxes[sources[0]].phase
                self._connect(sources, self._tensor(value, phase, output=True), value)
        self._place_inputs()

    # -- boxes ---------------------------------------------------------------------------------

    def _add(self, box: Box, parts: list[Part]) -> Box:
        self.boxes[box.key] = box
        parts.append(box)
        self.nodes += not box.data
        return box

    def _tensor(self, value: ir.Value, phase: Phase, output: bool = False) -> Box:
        key = f"{'out' if output else 'in'}{len(self.boxes)}"
        box = Box(key, phase, shorten(value.name or ""), data=True, tooltip=_typed(value))
        text = _shape(value)
        if self.weights and text:
            box.lines.append(text)
        if not output:
            self.origin[value] = [key]
        return self._add(box, self.parts)

    def _node(self, node: ir.Node, phase: Phase, parts: list[Part]) -> None:
        inner = subgraphs(node)
        if node in self.groups:
            key, title = self.groups[node]
            box = self.boxes.get(key) or self._add(Box(key, phase, title), parts)
            box.count[node.op_type] += 1 + sum(map(_size, inner))
            self._read(reads(node), box)
        elif inner and self.detail == "full":
            self._frame(node, phase, parts, inner)
            return
        else:
            box = self._add(self._box(node, phase), parts)
            if inner and self.weights:
                box.lines.append(f"{sum(map(_size, inner)):,} nodes inside")
            self._read(reads(node), box)
        for value in node.outputs:
            self.origin[value] = [box.key]
        self._results(node, box)

    def _box(self, node: ir.Node, phase: Phase) -> Box:
        return Box(f"n{len(self.boxes)}", phase, shorten(node.op_type), tooltip=_describe(node, phase))

    def _frame(self, node: ir.Node, phase: Phase, parts: list[Part], inner: Sequence[ir.Graph]) -> None:
        """A node around its subgraphs: what they read comes to them, what they make leaves from them."""
        names = [a.name for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
        names += [""] * (len(inner) - len(names))
        frame = Frame(names[0] if len(inner) == 1 else "", phase)
        parts.append(frame)
        header = self._add(self._box(node, phase), frame.parts)
        self._read((v for v in node.inputs if v is not None), header)
        for graph, name in zip(inner, names, strict=True):
            body = Frame(name, phase) if len(inner) > 1 else frame
            if body is not frame:
                frame.parts.append(body)
            for value in graph.inputs:
                self.origin[value] = [header.key]
            for child in graph:
                if not _constant(child):
                    self._node(child, phase, body.parts)
        for k, value in enumerate(node.outputs):
            results = [g.outputs[i] for g in inner if (i := k + (node.op_type == "Loop")) < len(g.outputs)]
            found = [key for v in results for key in self._inside(v, inner)]
            self.origin[value] = list(dict.fromkeys(found)) or [header.key]
        self._results(node, header)

    def _inside(self, value: ir.Value, inner: Sequence[ir.Graph]) -> list[str]:
        """Where a result of a subgraph comes from, if a node of it makes it."""
        node = value.producer()
        return self.origin.get(value, []) if node is not None and node.graph in inner else []

    # -- arrows and lines ------------------------------------------------------------------------

    def _read(self, values: Iterable[ir.Value], box: Box) -> None:
        """Arrows from other boxes; what is no box is named in this one."""
        for value in values:
            sources = self.origin.get(value)
            if sources:
                self._connect(sources, box, value)
            else:
                self._line(box, self._kept_text(value))

    def _kept_text(self, value: ir.Value) -> str:
        if value.name in self.kept:
            return _sized(value.name, _shape(value))
        tensor = constant_tensor(value)
        if tensor is None or not is_float(tensor, unknown=False):
            return ""
        if tensor.size > 1 or value.name in self.trainable:
            return _sized(value.name or "", "×".join(map(str, tensor.shape)))
        return f"{float(tensor.numpy().reshape(-1)[0]):.4g}" if tensor.size else ""

    def _results(self, node: ir.Node, box: Box) -> None:
        for value in node.outputs:
            if value.name in self.made and value.is_graph_output():
                self._line(box, f"→ {shorten(value.name)}")

    def _line(self, box: Box, text: str) -> None:
        if not text or not self.weights or text in box.lines or box.count:
            return
        if len(box.lines) < _LINES:
            box.lines.append(text)
        elif box.lines[-1] != "…":
            box.lines.append("…")

    def _connect(self, tails: Iterable[str], head: Box, value: ir.Value) -> None:
        for tail in tails:
            if tail == head.key:
                continue
            if (tail, head.key) not in self.arrows:
                source = self.boxes[tail]
                self.arrows[tail, head.key] = Arrow(tail, head.key, head.phase, [], _goes_up(source, head))
            self.arrows[tail, head.key].names.append(_typed(value))

    def _place_inputs(self) -> None:
        """Inputs that only the loss or the backward pass reads belong to them."""
        readers: dict[str, set[Phase]] = {}
        for arrow in self.arrows.values():
            readers.setdefault(arrow.tail, set()).add(arrow.phase)
        for box in self.boxes.values():
            if box.data and box.key in readers:
                box.phase = min(readers[box.key], key=PHASES.index)
        for arrow in self.arrows.values():
            arrow.up = _goes_up(self.boxes[arrow.tail], self.boxes[arrow.head])

    # -- several nodes in one box ------------------------------------------------------------------

    def _groups(self) -> dict[ir.Node, tuple[str, str]]:
        """Key and title of the box of each node that shares one with others."""
        if self.detail == "full":
            return {}
        if self.detail == "summary":
            return {node: (phase, phase.capitalize()) for node, phase in self.phases.items()}
        owner = {name: w for w, names in self.roles.made.items() for name in names}
        serves: dict[ir.Node, frozenset[str]] = {}
        for node in reversed(list(self.phases)):
            if self.phases[node] == "update":
                own = {owner[v.name] for v in node.outputs if v.name in owner}
                after = [serves[n] for v in node.outputs for n in v.consumers() if n in serves]
                serves[node] = frozenset(own).union(*after)
        boxes: dict[frozenset[str], tuple[str, str]] = {}
        for names in serves.values():
            what = f"of {shorten(min(names))}" if len(names) == 1 else f"of {len(names)} weights"
            boxes.setdefault(names, (f"g{len(boxes)}", f"Update {what}" if names else "Other updates"))
        return {node: boxes[names] for node, names in serves.items()}

    def _factors(self) -> set[ir.Node]:
        """Nodes that only do arithmetic of learning rate, step and constants: every update reads them."""
        found: set[ir.Node] = set()
        for node, phase in self.phases.items():
            if phase == "update" and all(
                v.producer() in found
                if v.producer()
                else v.name in self.roles.scalars or not v.is_graph_input()
                for v in reads(node)
            ):
                found.add(node)
        return found


def _goes_up(tail: Box, head: Box) -> bool:
    return head.phase in ("backward", "update") and tail.phase != "forward"


def _boxes(parts: Iterable[Part]) -> list[Box]:
    found: list[Box] = []
    for part in parts:
        found += [part] if isinstance(part, Box) else _boxes(part.parts)
    return found


def _constant(node: ir.Node) -> bool:
    return is_op(node, "Constant")


def _size(graph: ir.Graph) -> int:
    return sum(not _constant(node) for node in all_nodes(graph))


# -- text -----------------------------------------------------------------------------------------


def _title(model: ir.Model, roles: Roles) -> str:
    name = shorten(model.graph.name or "")
    kind = {"model": "", "gradient": "Gradient of", "step": "Training step of"}[roles.kind]
    return f"{kind} {name or 'a model'}".strip() if kind else name


def _counted(found: collections.Counter[str], detail: Detail) -> list[str]:
    total = sum(found.values())
    lines = [count(total, "node")]
    if detail == "summary":
        common = found.most_common(_OPERATORS)
        lines += [f"{number:,} {shorten(name)}" for name, number in common]
        if len(found) > len(common):
            lines.append(f"{total - sum(n for _, n in common):,} others")
    return lines


def _sized(name: str, shape: str) -> str:
    return f"{shorten(name)} ({shape})" if shape else shorten(name)


def _shape(value: ir.Value) -> str:
    if value.shape is None:
        return ""
    sizes = (getattr(d, "value", d) for d in value.shape)
    return shorten("×".join("?" if d is None else str(d) for d in sizes))


def _typed(value: ir.Value) -> str:
    dtype = "" if value.dtype is None else value.dtype.name.lower()
    return f"{shorten(value.name or '', _LONG)}: {dtype} {_shape(value)}".rstrip(": ")


def _describe(node: ir.Node, phase: Phase) -> str:
    operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    names = [
        listed((shorten(v.name, _LONG) if v and v.name else "-" for v in values), _TENSORS, quoted=False)
        for values in (node.inputs, node.outputs)
    ]
    title = shorten(f"{operator} {node.name or ''}".strip(), _LONG)
    lines = [title, phase, f"{names[0]} → {names[1]}"]
    lines += [f"{a.name} = {shorten(_attribute(a))}" for a in node.attributes.values()]
    return "\n".join(lines + [_typed(v) for v in node.outputs[:_TENSORS] if v.shape is not None])


def _attribute(attribute: ir.Attr) -> str:
    kinds = ir.AttributeType
    if attribute.type in (kinds.GRAPH, kinds.GRAPHS, kinds.TENSOR, kinds.TENSORS, kinds.SPARSE_TENSOR):
        return attribute.type.name.lower()
    return str(attribute.value)
