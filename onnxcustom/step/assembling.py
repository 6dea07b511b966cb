"""The last part of composing a step: inputs, outputs and what they are called, and the graph in order."""

from __future__ import annotations

import onnx_ir as ir

from onnxcustom.gradient.names import METADATA_KEY as GRADIENT_KEY
from onnxcustom.graph.building.builder import Builder, Var
from onnxcustom.step.passes.scalars import NOTHING

from .cut import Cut
from .forward import extend
from .gradients import Gradients
from .step_graph import ComposedStep
from .updates import Updates

__all__ = ["assemble", "scalar_sources"]


def assemble(part: Gradients, cut: Cut, updated: Updates, hyper: dict[str, Var]) -> ComposedStep:
    """Put everything into the graph, in topological order and without dead nodes.

    It comes from the batch to the gradients, from the cut there to new weights and states, and reads `hyper`,
    the hyper-parameters that have a schedule.
    """
    assert part.loss is not None
    outputs = _Outputs(part.op)
    reads, batch = part.reads_batch, part.batch
    inputs = [n for n in part.names.inputs if n not in part.modes.inputs | part.gathered] if reads else []
    weight = batch.sample_weight
    composed = ComposedStep(
        model=part.model,
        inputs=inputs,
        predicted=part.predicted,
        expected={output: _name(v) for output, v in batch.expected.items()} if reads else {},
        sample_weight=_name(weight) if weight is not None and reads else None,
        learning_rate=_name(part.learning_rate),
        step=_name(part.step),
        hyper={name: _name(v) for name, v in hyper.items()},
        share=None if cut.share is None else _name(cut.share),
        counts={output: _name(v) for output, v in batch.counts.items()},
        more={name: _name(v) for name, v in batch.more.items()} if reads else {},
        loss=outputs.add("loss", part.loss),
        heads=_heads(part, outputs),
        finite=None if part.finite is None else outputs.add("finite", part.finite),
        checked=part.checked,
        weights=_new_weights(part, updated, outputs),
        state=_new_state(part, updated, outputs),
        packs=_packs(updated, outputs),
        statistics=_statistics(part, outputs),
        accumulated={
            w: (_name(old), None if new is None else outputs.add(f"{w}_accumulated_new", new, old))
            for w, (old, new) in cut.accumulated.items()
        },
        rows={
            w: outputs.add(f"{w}_indices", part.sparse[w].indices) for w in part.sparse if w in updated.rows
        },
        ones={},
        scalars=NOTHING,
        batch_axis={n: part.axes.inputs[n] for n in inputs} | (batch.axes if reads else {}),
        gradients=_handed_on(cut, outputs),
    )
    part.graph.inputs[:] = _inputs(part, cut, updated, hyper, composed)
    part.graph.outputs[:] = outputs.values
    extend(composed.model, part.op)
    del composed.model.metadata_props[GRADIENT_KEY]
    return composed


def scalar_sources(part: Gradients, cut: Cut, hyper: dict[str, Var]) -> dict[str, str]:
    """Scalar graph inputs and what they are: see :func:`~onnxcustom.step.passes.scalars.plan_scalars`."""
    scalars = {"step": part.step, "share": cut.share, "rows": part.rows}
    places = {output: i for i, output in enumerate(part.predicted)}
    scalars |= {f"counts[{places[output]}]": v for output, v in part.batch.counts.items()}
    numbers = {"learning_rate": part.learning_rate, **hyper}
    found = {_name(v): f"hyper[{key!r}]" for key, v in numbers.items()}
    return found | {_name(v): text for text, v in scalars.items() if v is not None}


def _heads(part: Gradients, outputs: _Outputs) -> str | None:
    """The losses of several outputs side by side."""
    if len(part.heads) < 2:
        return None
    op = part.op
    return outputs.add("losses", op.Concat(*(op.Reshape(v, [1]) for v in part.heads), axis=0))


def _new_weights(part: Gradients, updated: Updates, outputs: _Outputs) -> dict[str, str]:
    new = {w: outputs.add(f"{w}_new", v, part.weights[w]) for w, v in updated.weights.items()}
    new.update({w: outputs.add(f"{w}_new_rows", v) for w, v in updated.rows.items()})
    return {w: new[w] for w in part.weights if w in new}


def _new_state(
    part: Gradients, updated: Updates, outputs: _Outputs
) -> dict[str, dict[str, tuple[str, str | None]]]:
    named: dict[str, dict[str, tuple[str, str | None]]] = {}
    for w, states in updated.state.items():
        rows = w in updated.rows
        named[w] = {}
        for s, (old, new) in states.items():
            suffix = "_new_rows" if rows else "_new"
            made = None if new is None else outputs.add(f"{w}_{s}{suffix}", new, None if rows else old)
            named[w][s] = (_name(old), made)
    return {w: named[w] for w in part.weights if w in named}


def _packs(updated: Updates, outputs: _Outputs) -> dict[str, tuple[str, list[str]]]:
    return {
        _name(old): (outputs.add(f"{_name(old)}_new", new, old), names) for old, new, names in updated.packs
    }


def _statistics(part: Gradients, outputs: _Outputs) -> dict[str, str]:
    new = part.modes.statistics
    return {
        name: outputs.add(f"{name}_new", part.op.wrap(part.values[new[name]]), old)
        for name, old in part.statistics.items()
    }


def _handed_on(cut: Cut, outputs: _Outputs) -> dict[str, str]:
    """Gradients that the graph hands out, or takes."""
    made = {w: outputs.add(f"{w}_gradient", g) for w, g in cut.given.items()}
    return made | {w: _name(g) for w, g in cut.taken.items()}


def _inputs(
    part: Gradients, cut: Cut, updated: Updates, hyper: dict[str, Var], composed: ComposedStep
) -> list[ir.Value]:
    """What the graph reads: batch, weights, state, statistics, gradients, scalars."""
    pairs = [pair for w in part.weights for pair in updated.state.get(w, {}).values()]
    states = [old for old, new in pairs if new is not None]
    states += [old for old, _, _ in updated.packs]
    means = [old for old, _ in cut.accumulated.values()]
    kept = [*part.weights.values(), *states, *part.statistics.values(), *means, *cut.taken.values()]
    scalars = [part.learning_rate, part.step, *hyper.values()]
    scalars += part.batch.counts.values()
    batch = part.batch.inputs if part.reads_batch else []
    added = [*batch, *kept, *scalars, *(v for v in (cut.share, part.rows) if v is not None)]
    return [part.values[n] for n in composed.inputs] + [v.value for v in added]


class _Outputs:
    """Graph outputs: each a tensor of its own, computed by a node of ours and named by us."""

    def __init__(self, op: Builder) -> None:
        self.op = op
        self.values: list[ir.Value] = []
        self._ours = {v for node in op.nodes for v in node.outputs}

    def add(self, name: str, var: Var, like: Var | None = None) -> str:
        value = var.value
        if value not in self._ours or value in self.values:
            value = self.op.Identity(var).value
        value.name = self.op.unique(name)
        if like is not None:
            value.shape = like.value.shape
        self.values.append(value)
        return value.name


def _name(var: Var) -> str:
    assert var.value.name is not None
    return var.value.name
