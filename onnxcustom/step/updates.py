"""The update part of a step graph: what becomes of the gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.building.builder import Builder, Var
from onnxcustom.optim import BaseLearningRate, State
from onnxcustom.optim.averaging import AVERAGE
from onnxcustom.optim.transforms import global_norm_factor, scalar
from onnxcustom.step.passes.packing import concatenate
from onnxcustom.step.passes.sparse import RowGradient

from .plan import Plan

__all__ = ["Scalars", "Updates", "compose_accumulation", "compose_updates", "state_layout"]


@dataclasses.dataclass
class Scalars:
    """Scalar inputs of a step graph that the update reads.

    Attributes
    ----------
    learning_rate, step : Var
        Learning rate and step counted from 1.
    hyper : dict of str to Var
        Other hyper-parameters that have a schedule.
    """

    learning_rate: Var
    step: Var
    hyper: dict[str, Var]


@dataclasses.dataclass
class Updates:
    """What an update reads beside weights and scalars, and what it writes.

    Attributes
    ----------
    weights : dict of str to Var
        New weights, those of row gradients left out.
    state : dict of str to dict of str to (Var, Var or None)
        Weight -> state -> (input, new value or, for row gradients, its new rows).
    rows : dict of str to Var
        New rows of the weights that have row gradients.
    packs : list of (Var, Var, list of str)
        Vectors in which several weights, or one state of each, lie side by side: input, new value, and
        names of what lies in it. Their members have no new value of their own.
    """

    weights: dict[str, Var] = dataclasses.field(default_factory=dict)
    state: dict[str, dict[str, tuple[Var, Var | None]]] = dataclasses.field(default_factory=dict)
    rows: dict[str, Var] = dataclasses.field(default_factory=dict)
    packs: list[tuple[Var, Var, list[str]]] = dataclasses.field(default_factory=list)


def compose_accumulation(
    op: Builder, optimizer: BaseLearningRate, gradients: Mapping[str, Var], share: Var
) -> dict[str, tuple[Var, Var]]:
    """The mean gradient over the rows seen since the last update: weight -> (input, new value).

    Each batch moves the mean by its share of the rows, so that batches of different sizes count
    like one large batch.
    """
    means = {}
    for name, g in gradients.items():
        dtype = _precise(optimizer, g.dtype)
        assert dtype is not None
        old = op.input(op.unique(f"{name}_accumulated"), dtype, g.shape)
        part = scalar(op, share, dtype)
        rest = op.once(("rest", dtype), lambda part=part: 1 - part)  # type: ignore[misc]
        means[name] = (old, rest * old + part * scalar(op, g, dtype))
    return means


def compose_updates(
    op: Builder,
    plan: Plan,
    weights: Mapping[str, Var],
    gradients: Mapping[str, Var],
    sparse: Mapping[str, RowGradient],
    scalars: Scalars,
) -> Updates:
    """Emit new weight and new state of every weight, as a plan says.

    The step of a weight is counted from when it joined: what a rule divides a moment by depends on how many
    gradients are in it.
    """
    updates, optimizer = Updates(), plan.rule
    gradients, sparse = _clipped(op, optimizer, gradients, sparse)
    index = {name: k for k, name in enumerate(weights)}
    states = {name: _state_inputs(op, plan, name, w) for name, w in weights.items()}

    def apply(name: str, w: Var, g: Var, state: dict[str, Var]) -> tuple[Var, dict[str, Var]]:
        age = plan.ages.get(name, 0)
        step = scalars.step if age == 0 else op.once(("step", age), lambda: scalars.step - age)
        about = {"name": name, "role": plan.roles.get(name, "unknown"), "index": index[name]}
        given = {"values": scalars.hyper, "prescaled": plan.prescaled}
        own = State({s: v for s, v in state.items() if s != AVERAGE})
        new, made = optimizer.apply(op, w, g, own, scalars.learning_rate, step, **about, **given)  # type: ignore[arg-type]
        if plan.average is not None:  # of what it is in full precision
            whole, done = made.get("master", new), float(optimizer.begin_num_update)
            made[AVERAGE] = plan.average.update(op, state[AVERAGE], whole, scalars.step, done)
        return new, made

    for members in plan.packs:
        shapes = [weights[name].static_shape or () for name in members]
        g = concatenate(op, [gradients[name] for name in members], shapes)
        _pack(op, updates, members, g, states, apply)
    for name, w in weights.items():
        if name in updates.state:
            continue
        rows, state = sparse.get(name), states[name]
        if rows is None:
            updates.weights[name], new_state = apply(name, w, gradients[name], state)
        else:
            taken = {s: rows.take(v) for s, v in state.items()}
            updates.rows[name], new_state = apply(name, rows.take(w), rows.gradient, taken)
        updates.state[name] = {s: (state[s], new_state[s]) for s in state}
    return updates


def _state_inputs(op: Builder, plan: Plan, name: str, w: Var) -> dict[str, Var]:
    """Graph inputs for the state of a weight, its average among it."""
    likes = state_layout(plan.rule, w)
    if plan.average is not None:
        likes[AVERAGE] = plan.average.first(_like(w))
    return {
        s: op.input(op.unique(f"{name}_{s}"), ir.DataType.from_numpy(like.dtype), like.shape)
        for s, like in likes.items()
    }


def _pack(
    op: Builder,
    updates: Updates,
    members: Sequence[str],
    g: Var,
    states: Mapping[str, dict[str, Var]],
    apply: Callable[[str, Var, Var, dict[str, Var]], tuple[Var, dict[str, Var]]],
) -> None:
    """Update weights as one vector."""
    assert g.dtype is not None
    w = op.input(op.unique("packed_weights"), g.dtype, g.shape)
    state = {s: op.input(op.unique(f"packed_{s}"), g.dtype, g.shape) for s in states[members[0]]}
    new, new_state = apply(members[0], w, g, state)
    updates.packs.append((w, new, list(members)))
    for s, old in state.items():
        inside = [str(states[name][s].value.name) for name in members]
        updates.packs.append((old, new_state[s], inside))
    for name in members:
        updates.state[name] = {s: (old, None) for s, old in states[name].items()}


def state_layout(optimizer: BaseLearningRate, w: Var) -> dict[str, np.ndarray]:
    """Arrays that look like the state of a weight; their content means nothing."""
    return optimizer.create_state(_like(w))


def _like(w: Var) -> np.ndarray:
    assert w.dtype is not None
    assert w.static_shape is not None
    return np.broadcast_to(np.zeros((), w.dtype.numpy()), w.static_shape)


def _clipped(
    op: Builder,
    optimizer: BaseLearningRate,
    gradients: Mapping[str, Var],
    sparse: Mapping[str, RowGradient],
) -> tuple[Mapping[str, Var], Mapping[str, RowGradient]]:
    """All gradients scaled by one factor where their norm is too large."""
    limit = optimizer.clip_global_norm
    if limit is None:
        return gradients, sparse
    everything = [*gradients.values(), *(rows.gradient for rows in sparse.values())]
    double = any(g.dtype == ir.DataType.DOUBLE for g in everything)
    dtype = ir.DataType.DOUBLE if double else ir.DataType.FLOAT
    factor = global_norm_factor(op, everything, limit, dtype)

    def scaled(g: Var) -> Var:
        precise = scalar(op, g, _precise(optimizer, g.dtype))
        return scalar(op, factor, precise.dtype) * precise

    return (
        {name: scaled(g) for name, g in gradients.items()},
        {name: dataclasses.replace(r, gradient=scaled(r.gradient)) for name, r in sparse.items()},
    )


def _precise(optimizer: BaseLearningRate, dtype: ir.DataType | None) -> ir.DataType | None:
    """The dtype in which a gradient is processed."""
    half = optimizer.multi_precision and dtype == ir.DataType.FLOAT16
    return ir.DataType.FLOAT if half else dtype
