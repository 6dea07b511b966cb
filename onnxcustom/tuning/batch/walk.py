"""A graph, node by node, on blocks of rows alone and on all of them together."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxcustom.exceptions import InvalidModelError
from onnxcustom.graph.analysis.integers import REMEDY, computes_integers
from onnxcustom.graph.analysis.traversal import reads, subgraphs, unique_name
from onnxcustom.graph.building.builder import Builder

from .case import Case, Known, Repair
from .layouts import close, find_layout, joined
from .repairs import is_shaping, repairs
from .trials import FAILURES, Trial, proto_of

__all__ = ["RefusedError", "Walk"]

# Results that say nothing about the numbers they are of.
_OF_SIZES = frozenset({"Shape", "Size"})
_MESSAGE = 300


class RefusedError(InvalidModelError):
    """A node that does not take rows together."""


class Walk:
    """Runs nodes in both ways and repairs those that give something else for rows together.

    Parameters
    ----------
    model : onnx_ir.Model
        Changed in place.
    given : mapping of onnx_ir.Value to Known
        Inputs, and the number of rows.
    rows : onnx_ir.Value
        The number of rows.
    block, count : int
        Rows in a block, and blocks.
    taken : set of str
        Names that there are.
    declared : bool
        Whether the file says that any number of rows may come.
    leading, lifting : bool
        As :class:`~onnxcustom.tuning.batch.case.Case` has it.
    """

    def __init__(
        self,
        model: ir.Model,
        given: Mapping[ir.Value, Known],
        rows: ir.Value,
        block: int,
        count: int,
        taken: set[str],
        declared: bool,
        leading: bool = False,
        lifting: bool = False,
    ) -> None:
        self.model, self.rows, self.block, self.count = model, rows, block, count
        self.taken, self.declared = taken, declared
        self.leading, self.lifting = leading, lifting
        self.known: dict[ir.Value, Known] = dict(given)
        self.repaired: list[str] = []
        self.opsets = dict(model.opset_imports.items())

    def graph(self, graph: ir.Graph) -> None:
        """Every node of a graph whose inputs are known."""
        for value in graph.initializers.values():
            if value not in self.known and value.const_value is not None:
                array = value.const_value.numpy()
                self.known[value] = Known("same", [array], array)
        for node in list(graph):
            if node.op_type == "If":
                self._branches(node)
            else:
                self._node(node)

    # -- one node ------------------------------------------------------------------------------------

    def _node(self, node: ir.Node) -> None:
        operands = list(dict.fromkeys(reads(node)))
        wanted = [v for v in node.outputs if v.name and (v.uses() or v.is_graph_output())]
        if not wanted:
            return
        known = {v: self.known[v] for v in operands}
        depends = [k for k in known.values() if k.kind == "rows"]
        kinds = {k.kind for k in known.values()}
        names = [str(v.name) for v in wanted]
        trial = self._trial([proto_of(node)], known, names, node)
        alone = 1 if kinds <= {"same"} else self.count
        results = [trial.run(_feeds(known, i)) for i in range(alone)]
        outputs = [list(blocks) for blocks in zip(*results, strict=True)]
        if depends and node.op_type not in _OF_SIZES:
            self._compare(node, known, wanted, outputs, trial)
            return
        kind = "same" if kinds <= {"same"} else "sized"
        try:
            batch = results[0] if kind == "same" else trial.run(_feeds(known, None))
        except FAILURES as exc:  # a constant of the size that the file has, with sizes that follow the rows
            made = self._repaired(node, known, wanted, outputs)
            if made is None:
                raise RefusedError(_refusal(node, known, self.block, _short(exc))) from exc
            for held in made.values():
                held.kind, held.layout = "sized", None
            self.known.update(made)
            return
        for value, blocks, whole in zip(wanted, outputs, batch, strict=True):
            self.known[value] = Known(kind, blocks, whole)

    def _trial(
        self,
        nodes: Sequence[onnx.NodeProto],
        known: Mapping[ir.Value, Known],
        outputs: Sequence[str],
        node: ir.Node,
    ) -> Trial:
        values = {str(v.name): k.batch for v, k in known.items()}
        other = next((n for n, v in values.items() if not isinstance(v, np.ndarray)), None)
        if other is not None:
            raise InvalidModelError(
                f"{_named(node)} reads {other!r}, which is no tensor: its rows are not known."
            )
        constant = [str(v.name) for v, k in known.items() if k.kind == "same"]
        # Some operators want to know how many sizes there are.
        shaped = [str(v.name) for v, k in known.items() if k.kind == "sized" and k.shape == np.shape(k.batch)]
        free = [str(v.name) for v, k in known.items() if k.layout is not None and k.layout.lifted]
        return Trial(nodes, values, constant, outputs, self.opsets, shaped, free)

    def _compare(
        self,
        node: ir.Node,
        known: Mapping[ir.Value, Known],
        wanted: Sequence[ir.Value],
        outputs: Sequence[Sequence[Any]],
        trial: Trial,
    ) -> None:
        """Take what a node gives for rows together, if it is what they give alone, or repair it."""
        found, reason = self._as_it_is(known, outputs, trial)
        # Rows that are all alike may be so by accident: what has an axis for them goes before.
        apart = found is not None and all(k.layout is not None for k in found)
        pure = apart and all(map(self._pure, found or []))
        if found is not None and (pure or (apart and not is_shaping(node))):
            self.known.update(zip(wanted, found, strict=True))
            return
        made = self._repaired(node, known, wanted, outputs, found is not None, apart)
        if made is None and found is None and node.op_type in ("Loop", "Scan"):
            self._body(node, known)
            known = {v: self.known[v] for v in dict.fromkeys(reads(node))}
            trial = self._trial([proto_of(node)], known, [str(v.name) for v in wanted], node)
            found, reason = self._as_it_is(known, outputs, trial)
            made = None if found else self._repaired(node, known, wanted, outputs)
        if made is None and found is None:
            raise RefusedError(_refusal(node, known, self.block, reason))
        self.known.update(made or dict(zip(wanted, found or [], strict=True)))

    def _as_it_is(
        self, known: Mapping[ir.Value, Known], outputs: Sequence[Sequence[Any]], trial: Trial
    ) -> tuple[list[Known] | None, str]:
        """What a node as it is gives for rows together, and why that will not do."""
        try:
            found = self._fitting(outputs, trial.run(_feeds(known, None)))
        except FAILURES as exc:
            return None, _short(exc)
        return found, "" if found is not None else "rows together do not give what they give alone"

    def _pure(self, known: Known) -> bool:
        return known.layout is not None and known.layout.pure(known.shape, self.block)

    def _fitting(self, outputs: Sequence[Sequence[Any]], batch: Sequence[Any]) -> list[Known] | None:
        """What is known of results, None if the rows are not found in one of them."""
        found: list[Known] = []
        for blocks, whole in zip(outputs, batch, strict=True):
            if not isinstance(whole, np.ndarray):
                return None
            layout = find_layout(blocks, whole, self.block)
            if layout is not None:
                # Exact, so that no rounding is carried along.
                found.append(Known("rows", list(blocks), joined(blocks, layout), layout))
            elif all(close(whole, block) for block in blocks):
                found.append(Known("rows", list(blocks), whole))
            else:
                return None
        return found

    # -- repairs -------------------------------------------------------------------------------------

    def _repaired(
        self,
        node: ir.Node,
        known: Mapping[ir.Value, Known],
        wanted: Sequence[ir.Value],
        outputs: Sequence[Sequence[Any]],
        only_apart: bool = False,
        only_pure: bool = False,
    ) -> dict[ir.Value, Known] | None:
        """Change the node so that it takes rows together; its results, and what is known of them."""
        case = Case(
            node,
            known,
            outputs,
            self.block,
            self.rows,
            self.opsets.get("", 1),
            self.taken,
            self.declared,
            self.leading,
            self.lifting,
        )
        known = {**known, self.rows: self.known[self.rows]}
        for repair in repairs(case):
            if repair.instead is not None and len(wanted) > 1:
                continue
            found = self._try(node, known, wanted, outputs, repair)
            if found is None or (only_apart and any(k.layout is None for k in found)):
                continue
            if only_pure and not all(map(self._pure, found)):
                continue
            self.repaired.append(_named(node))
            return dict(zip(self._apply(node, wanted, repair), found, strict=True))
        return None

    def _try(
        self,
        node: ir.Node,
        known: Mapping[ir.Value, Known],
        wanted: Sequence[ir.Value],
        outputs: Sequence[Sequence[Any]],
        repair: Repair,
    ) -> list[Known] | None:
        nodes, names = [proto_of(n) for n in repair.op.nodes], [str(v.name) for v in wanted]
        if repair.instead is None:
            changed = proto_of(node)
            for index, value in repair.operands.items():
                changed.input[index] = str(value.name)
            nodes.append(changed)
        else:
            names = [str(repair.instead.name)]
        made = {v: Known("same", [a], a) for v in repair.op.initializers for a in [v.const_value.numpy()]}  # type: ignore[union-attr]
        try:
            trial = self._trial(nodes, {**known, **made}, names, node)
            return self._fitting(outputs, trial.run(_feeds({**known, **made}, None)))
        except FAILURES:
            return None

    def _apply(self, node: ir.Node, wanted: Sequence[ir.Value], repair: Repair) -> list[ir.Value]:
        """Put a repair into the graph; the values that hold the results then."""
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        graph.insert_before(node, repair.op.nodes)
        self._keep(repair.op)
        for index, value in repair.operands.items():
            node.replace_input_with(index, value)
        if repair.instead is None:
            return list(wanted)
        (old,) = wanted
        new, name = repair.instead, old.name
        old.name, new.name = self._free(f"{name}_before"), name
        new.type, new.shape = old.type, old.shape
        ir.convenience.replace_all_uses_with([old], [new], replace_graph_outputs=True)
        graph.remove(node, safe=True)
        return [new]

    def _keep(self, op: Builder) -> None:
        """Put constants of a repair into the model."""
        for value in op.initializers:
            assert value.const_value is not None
            self.model.graph.register_initializer(value)
            array = value.const_value.numpy()
            self.known[value] = Known("same", [array], array)

    def _free(self, name: str) -> str:
        return unique_name(name, self.taken)

    # -- graphs inside -------------------------------------------------------------------------------

    def _branches(self, node: ir.Node) -> None:
        """An If: both of its branches, of which one gives the results."""
        condition = node.inputs[0]
        assert condition is not None
        chosen = self.known[condition]
        values = {bool(np.all(block)) for block in (*chosen.blocks, chosen.batch)}
        branches = {
            a.name: a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH
        }
        if len(values) > 1 or chosen.layout is not None:
            self._by_row(node, chosen, branches)
            return
        (taken,) = values
        main = branches["then_branch" if taken else "else_branch"]
        other = branches["else_branch" if taken else "then_branch"]
        self.graph(main)
        for value, result in zip(node.outputs, main.outputs, strict=True):
            self.known[value] = self.known[result]
        try:  # of the other one nothing is known if it does not run on the same data
            self.graph(other)
        except RefusedError:
            raise
        except FAILURES:
            return

    def _by_row(self, node: ir.Node, chosen: Known, branches: Mapping[str, ir.Graph]) -> None:
        """An If that takes another branch for another row: both are computed, and each row has its own."""
        where = f"{_named(node)} takes another branch for another row"
        if chosen.layout is None or chosen.batch.size != self.block * self.count or self.block > 1:
            raise RefusedError(f"{where} or size of the batch: that is no choice of rows.")
        results: list[list[ir.Value]] = []
        for name in ("then_branch", "else_branch"):
            graph = branches[name]
            self.graph(graph)
            results.append(list(graph.outputs))
        op = Builder(self.opsets.get("", 1), prefix="rows_", taken=self.taken)
        made: list[ir.Value] = []
        for value, first, second in zip(node.outputs, *results, strict=True):
            a, b = self.known[first], self.known[second]
            if a.layout is None or a.layout != b.layout or a.shape != b.shape or not self._pure(a):
                raise RefusedError(f"{where}, and its output {value.name!r} has not the same rows in both.")
            place = a.layout.axis
            shape = np.array([-1 if i == place else 1 for i in range(len(a.shape))], np.int64)
            picked = op.Where(op.Reshape(op.wrap(node.inputs[0]), shape), op.wrap(first), op.wrap(second))  # type: ignore[arg-type]
            blocks = [x if c.all() else y for c, x, y in zip(chosen.blocks, a.blocks, b.blocks, strict=True)]
            self.known[picked.value] = Known("rows", blocks, joined(blocks, a.layout), a.layout)
            made.append(picked.value)
        self._unfold(node, list(branches.values()), op, made)
        self.repaired.append(_named(node))

    def _unfold(
        self, node: ir.Node, graphs: Sequence[ir.Graph], op: Builder, made: Sequence[ir.Value]
    ) -> None:
        """Put the nodes of branches, and what picks from them, in the place of an If."""
        outer = node.graph
        assert isinstance(outer, ir.Graph)
        times = Counter(v.name for g in self.model.graphs() for v in _made_in(g))
        for graph in graphs:
            nodes = list(graph)
            graph.outputs.clear()
            graph.remove(nodes)
            for inner in nodes:
                for value in inner.outputs:
                    if value.name and times[value.name] > 1:
                        value.name = self._free(value.name)
            outer.insert_before(node, nodes)
            for value in list(graph.initializers.values()):
                del graph.initializers[str(value.name)]
                if times[value.name] > 1:
                    value.name = self._free(str(value.name))
                self.model.graph.register_initializer(value)
        outer.insert_before(node, op.nodes)
        self._keep(op)
        for old, new in zip(node.outputs, made, strict=True):
            name, old.name = old.name, self._free(f"{old.name}_before")
            new.name, new.type, new.shape = name, old.type, old.shape
            ir.convenience.replace_all_uses_with([old], [new], replace_graph_outputs=True)
        outer.remove(node, safe=True)

    def _body(self, node: ir.Node, known: Mapping[ir.Value, Known]) -> None:
        """The first turn of a Loop or a Scan."""
        (body,) = subgraphs(node)
        given = [None if v is None else known[v] for v in node.inputs]
        if node.op_type == "Loop":
            first = [Known("same", [a], a) for a in (np.array(0, np.int64), np.array(True))]
            entering: list[Known | None] = [*first, *given[2:]]
        else:
            scanned = node.attributes.get_int("num_scan_inputs", 0)
            states = len(given) - scanned
            axes = node.attributes.get_ints("scan_input_axes", [0] * scanned)
            entering = [*given[:states], *map(_first_of, given[states:], axes)]
        for value, held in zip(body.inputs, entering, strict=True):
            if held is None:
                return
            self.known[value] = held
        self.graph(body)
        for value in (*body.inputs, *body.outputs):  # they are declared for the size of the file
            value.shape = None if value.shape is None or len(value.shape) else value.shape


def _made_in(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.initializers.values(), *(v for node in graph for v in node.outputs)]


def _first_of(known: Known | None, axis: int) -> Known | None:
    """What a Scan sees first of an operand."""
    if known is None or (known.layout is not None and known.layout.axis == axis % len(known.shape)):
        return None
    layout, axis = known.layout, axis % len(known.shape)
    if layout is not None and layout.axis > axis:
        layout = dataclasses.replace(layout, axis=layout.axis - 1)
    blocks = [block.take(0, axis=axis) for block in known.blocks]
    return Known(known.kind, blocks, known.batch.take(0, axis=axis), layout)


def _feeds(known: Mapping[ir.Value, Known], block: int | None) -> dict[str, np.ndarray]:
    """Arrays by name: of a block, or of all rows."""
    return {
        str(v.name): k.batch if block is None else k.blocks[block if len(k.blocks) > 1 else 0]
        for v, k in known.items()
    }


def _named(node: ir.Node) -> str:
    return f"Node {node.name!r} ({node.op_type})"


def _short(exc: BaseException) -> str:
    text = " ".join(str(exc).split())
    return text if len(text) <= _MESSAGE else f"{text[:_MESSAGE]}..."


def _refusal(node: ir.Node, known: Mapping[ir.Value, Known], block: int, reason: str) -> str:
    shapes = ", ".join(f"{v.name!r} of shape {list(k.shape)}" for v, k in known.items())
    return (
        f"{_named(node)} does not take the batch in any other size than {block}: {reason}. It reads {shapes}."
        f"{f' {REMEDY}.' if computes_integers(node) else ''}"
    )
