"""The part of a model that no trained weight has a say in, cut off: the same of a row in every epoch."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.analysis.row_mixing import ROWS, SIZES, SOMEWHERE, RowState, row_states
from onnxcustom.graph.analysis.traversal import all_names, all_nodes, dependents, reads, sort_nodes
from onnxcustom.graph.building.builder import Builder, Var
from onnxcustom.graph.preparation.passes import InferShapesPass
from onnxcustom.graph.preparation.unused import RemoveUnusedPass

__all__ = ["Crossing", "FrozenPart", "NoFrozenPartError"]

_RANDOM = frozenset(
    "Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike".split()
)


class NoFrozenPartError(Exception):
    """Why nothing of a model can be computed once for all epochs."""


@dataclasses.dataclass(frozen=True)
class Crossing:
    """A tensor that goes from the frozen part, or around it, into the trained one.

    Attributes
    ----------
    name : str
        What it is called in the whole model.
    axis : int or None
        Where its rows are; None without rows, -1 where the graph does not tell.
    given : bool
        Whether it is an input of the model, as it is.
    """

    name: str
    axis: int | None
    given: bool


class FrozenPart:
    """What of a model depends on the data and on no trained weight.

    Parameters
    ----------
    model : onnx_ir.Model
        Prepared model whose outputs are what losses are taken on; it is not modified.
    trained : collection of str
        Names of the weights that are trained.
    axes : mapping of str to int or None
        Where the rows of the inputs are.
    shapes : mapping of str to tuple of int
        Shapes of the data, by input.
    changing : mapping of str to str
        Operators that do not compute the same in every step, and why.

    Attributes
    ----------
    crossing : list of Crossing
        What the trained part reads of the frozen one, and of the data themselves: as little as there is.

    Raises
    ------
    NoFrozenPartError
        There is none, it does not compute the same in every step, or it mixes rows.
    """

    def __init__(
        self,
        model: ir.Model,
        trained: Collection[str],
        axes: Mapping[str, int | None],
        shapes: Mapping[str, tuple[int, ...]],
        changing: Mapping[str, str],
    ) -> None:
        self._model = model
        self._axes = axes
        known = _specialised(model, axes, shapes)
        self._shapes = {name: value.shape for name, value in _by_name(known.graph).items()}
        graph = model.graph
        self._weights = [v for name, v in graph.initializers.items() if name in trained]
        self._trained = dependents(graph, self._weights)
        self._of_data = dependents(graph, graph.inputs)
        self._states = self._follow(known)
        found, self._moved = self._cross()
        self.crossing = [self._crossing(value) for value in found]
        if not self.computed:
            raise NoFrozenPartError("the first trained weight meets the data as they are")
        self._values = {c.name: v for c, v in zip(self.crossing, found, strict=True)}
        _check_the_same(self.frozen(), changing)

    @property
    def computed(self) -> list[Crossing]:
        """Tensors that the frozen part computes."""
        return [c for c in self.crossing if not c.given]

    # -- what crosses --------------------------------------------------------------------------------

    def _is_frozen(self, value: ir.Value) -> bool:
        return value in self._of_data and value not in self._trained

    def _follow(self, known: ir.Model) -> dict[str, RowState]:
        """Where rows are in everything that is frozen."""
        frozen = {str(v.name) for node in self._model.graph for v in node.outputs if self._is_frozen(v)}
        nodes = [node for node in known.graph if any(v.name in frozen for v in node.outputs)]
        axes = {v: self._axes.get(str(v.name)) for v in known.graph.inputs}
        states = row_states(nodes, axes, known.opset_imports.get("", 18))
        return {str(value.name): state for value, state in states.items()}

    def _state(self, value: ir.Value) -> RowState:
        return self._states.get(str(value.name), RowState())

    def _cross(self) -> tuple[list[ir.Value], list[ir.Node]]:
        """What the trained part reads; nodes of the frozen one that only know how many rows a batch has.

        The latter compute another thing for another batch, so they go along with the trained part.
        """
        graph = self._model.graph
        wanted = dict.fromkeys(v for v in graph.outputs if self._is_frozen(v))
        for node in graph:
            if any(v in self._trained for v in node.outputs):
                wanted.update((v, None) for v in reads(node) if self._is_frozen(v))
        sizes = self._sized()
        crossing: dict[ir.Value, None] = {}
        moved: dict[ir.Node, None] = {}
        waiting = list(wanted)
        while waiting:
            value = waiting.pop(0)
            maker = value.producer()
            if value not in sizes or maker is None:
                crossing[value] = None
            elif maker not in moved:
                moved[maker] = None
                if not self._measures(maker):
                    waiting += [v for v in reads(maker) if self._is_frozen(v)]
        order = {v: i for i, v in enumerate((*graph.inputs, *(v for node in graph for v in node.outputs)))}
        return sorted(crossing, key=lambda v: order[v]), list(moved)

    def _measures(self, node: ir.Node) -> bool:
        """Whether a node says how many rows a batch has."""
        return node.domain == "" and node.op_type in SIZES and self._state_of_first(node).axis is not None

    def _state_of_first(self, node: ir.Node) -> RowState:
        return RowState() if node.inputs[0] is None else self._state(node.inputs[0])

    def _sized(self) -> set[ir.Value]:
        """Values without rows of their own that depend on how many there are."""
        found: set[ir.Value] = set()
        for node in self._model.graph:
            sized = self._measures(node) or any(v in found for v in reads(node))
            found.update(v for v in node.outputs if sized and self._is_frozen(v) and self._is_free(v))
        return found

    def _is_free(self, value: ir.Value) -> bool:
        state = self._state(value)
        return state.axis is None and state.mixed is None

    def _crossing(self, value: ir.Value) -> Crossing:
        state, name = self._state(value), str(value.name)
        if state.mixed is not None:
            raise NoFrozenPartError(
                f"{name!r}, which it computes, mixes rows of the batch (by {state.mixed}): it is another for "
                "every batch"
            )
        if not isinstance(value.type, ir.TensorType) or value.dtype in (None, *_UNKEPT):
            raise NoFrozenPartError(f"{name!r}, which it computes, is no tensor of numbers ({value.type})")
        return Crossing(name, state.axis, value.producer() is None)

    # -- both parts ----------------------------------------------------------------------------------

    def frozen(self) -> ir.Model:
        """The model that computes :attr:`computed`, in this order, of those inputs that it needs."""
        model = self._model.clone()
        graph = model.graph
        values = _by_name(graph)
        graph.outputs[:] = [values[c.name] for c in self.computed]
        RemoveUnusedPass()(model)
        graph.inputs[:] = [v for v in graph.inputs if v.uses()]
        return model

    def trained(self, shapes: Mapping[str, ir.Shape], axes: Mapping[str, int | None]) -> ir.Model:
        """The rest of the model, whose inputs are :attr:`crossing`.

        Parameters
        ----------
        shapes : mapping of str to onnx_ir.Shape
            Of what crosses, where the model itself does not know their rank.
        axes : mapping of str to int or None
            Where the rows of what crosses are; by none that has some its rows are counted.
        """
        model = self._model.clone()
        graph, values = model.graph, _by_name(model.graph)
        op = Builder(model.opset_imports[""], taken=all_names(graph))
        cut = {c.name: _input(op, values[c.name], shapes.get(c.name)) for c in self.crossing}
        self._measure(op, values, cut, axes)
        ends = list(graph.outputs)
        for name, value in cut.items():
            old = values[name]
            old.name = op.unique(f"{name}_cut")
            if old in ends:  # the loss is taken on it: an output is computed
                value.name, made = op.unique(f"{name}_given"), op.Identity(op.wrap(value)).value
                made.name, made.type, made.shape = name, value.type, value.shape
                old.replace_all_uses_with(made, replace_graph_outputs=True)
            else:
                value.name = name
                old.replace_all_uses_with(value)
        graph.inputs[:] = list(cut.values())
        for node in op.nodes:
            graph.append(node)
        for initializer in op.initializers:
            graph.register_initializer(initializer)
        sort_nodes(graph)
        weights = [graph.initializers[str(v.name)] for v in self._weights]
        RemoveUnusedPass()(model)
        for value in weights:  # one that nothing reads is still a weight
            graph.initializers.setdefault(str(value.name), value)
        return model

    def names(self, model: ir.Model) -> dict[str, str]:
        """Names of :attr:`crossing` among the inputs of :meth:`trained`."""
        return {c.name: str(v.name) for c, v in zip(self.crossing, model.graph.inputs, strict=True)}

    def _measure(
        self,
        op: Builder,
        values: Mapping[str, ir.Value],
        cut: Mapping[str, ir.Value],
        axes: Mapping[str, int | None],
    ) -> None:
        """Say how many rows there are by a tensor that crosses, where a node measures one that does not."""
        carrier = next((name for name in cut if axes.get(name) is not None), None)
        rows: Var | None = None
        for node in self._moved:
            if not self._measures(node):
                continue
            assert node.inputs[0] is not None
            name = str(node.inputs[0].name)
            if name in cut:  # it is there to be measured
                continue
            axis, shape = self._state(node.inputs[0]).axis, self._shapes.get(name)
            if node.op_type not in ("Shape", "Size") or not _is_known(shape, axis):
                raise NoFrozenPartError(
                    f"node {node.name!r} ({node.op_type}) measures {name!r}, whose shape is not known"
                )
            if rows is None:
                rows = _counted(op, cut, carrier, axes)
            assert shape is not None
            dims = [rows if i == axis else op.const([d], ir.DataType.INT64) for i, d in enumerate(shape)]
            made = _sizes(op, node, dims)
            values[str(node.outputs[0].name)].replace_all_uses_with(made.value, replace_graph_outputs=True)


_UNKEPT = (ir.DataType.STRING, ir.DataType.UNDEFINED, ir.DataType.BFLOAT16)


def _by_name(graph: ir.Graph) -> dict[str, ir.Value]:
    return {str(v.name): v for v in (*graph.inputs, *(v for node in graph for v in node.outputs))}


def _input(op: Builder, like: ir.Value, shape: ir.Shape | None) -> ir.Value:
    shape = like.shape if like.shape is not None else shape
    return ir.Value(name=op.unique(f"{like.name}_input"), type=like.type, shape=shape)


def _is_known(shape: ir.Shape | None, axis: int | None) -> bool:
    """Whether all dimensions but that of the rows are numbers."""
    return (
        shape is not None
        and axis not in (None, SOMEWHERE)
        and all(isinstance(d, int) for i, d in enumerate(shape) if i != axis)
    )


def _counted(
    op: Builder, cut: Mapping[str, ir.Value], carrier: str | None, axes: Mapping[str, int | None]
) -> Var:
    """Rows of a batch, of shape (1,)."""
    if carrier is None:
        raise NoFrozenPartError("nothing of what it computes has rows")
    return op.Gather(op.Shape(op.wrap(cut[carrier])), op.const([axes[carrier]], ir.DataType.INT64))


def _sizes(op: Builder, node: ir.Node, dims: Sequence[Var]) -> Var:
    """What a Shape or Size says of a tensor of these dimensions."""
    shape = op.Concat(*dims, axis=0) if dims else op.const(np.zeros(0, np.int64))
    if node.op_type == "Size":
        return op.ReduceProd(shape, keepdims=0)
    start, end = (node.attributes.get(name) for name in ("start", "end"))
    first, last, _ = slice(start and start.value, end and end.value).indices(len(dims))
    return op.Concat(*dims[first:last], axis=0) if last > first else op.const(np.zeros(0, np.int64))


def _specialised(
    model: ir.Model, axes: Mapping[str, int | None], shapes: Mapping[str, tuple[int, ...]]
) -> ir.Model:
    """A copy with the shapes of all values for data of these shapes, whatever number of rows a batch has."""
    made = model.clone()
    for value in made.graph.inputs:
        shape = shapes.get(str(value.name))
        if shape is not None:
            axis = axes.get(str(value.name))
            fixed = value.shape is not None and axis is not None and isinstance(value.shape[axis], int)
            value.shape = ir.Shape([ROWS if i == axis and not fixed else d for i, d in enumerate(shape)])
    for node in made.graph:
        for value in node.outputs:
            value.shape = None
    InferShapesPass()(made)
    return made


def _check_the_same(frozen: ir.Model, changing: Mapping[str, str]) -> None:
    """Refuse what is another in every step."""
    for node in all_nodes(frozen.graph):
        if node.domain == "" and node.op_type in _RANDOM:
            raise NoFrozenPartError(f"node {node.name!r} ({node.op_type}) draws random numbers in every step")
        if node.domain == "" and node.op_type in changing:
            raise NoFrozenPartError(f"node {node.name!r} ({node.op_type}) {changing[node.op_type]}")
