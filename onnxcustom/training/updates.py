"""The update part of a step graph: what becomes of the gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.builder import Builder, Var
from onnxcustom.graph.roles import Role
from onnxcustom.optim import BaseLearningRate, State
from onnxcustom.optim.transforms import global_norm_factor, scalar

from .sparse import RowGradient

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
    state : dict of str to dict of str to (Var, Var)
        Weight -> state -> (input, new value or, for row gradients, its new rows).
    rows : dict of str to Var
        New rows of the weights that have row gradients.
    """

    weights: dict[str, Var] = dataclasses.field(default_factory=dict)
    state: dict[str, dict[str, tuple[Var, Var]]] = dataclasses.field(default_factory=dict)
    rows: dict[str, Var] = dataclasses.field(default_factory=dict)


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
    optimizer: BaseLearningRate,
    weights: Mapping[str, Var],
    gradients: Mapping[str, Var],
    sparse: Mapping[str, RowGradient],
    roles: Mapping[str, Role],
    scalars: Scalars,
    born: Mapping[str, int],
) -> Updates:
    """Emit new weight and new state of every weight.

    The step of a weight is counted from when it joined, after `born` updates: what a rule divides a
    moment by depends on how many gradients are in it.
    """
    updates = Updates()
    gradients, sparse = _clipped(op, optimizer, gradients, sparse)
    for index, (name, w) in enumerate(weights.items()):
        state = {
            s: op.input(op.unique(f"{name}_{s}"), ir.DataType.from_numpy(like.dtype), like.shape)
            for s, like in state_layout(optimizer, w).items()
        }
        rows = sparse.get(name)
        age = born.get(name, 0)
        step = scalars.step if age == 0 else op.once(("step", age), lambda age=age: scalars.step - age)  # type: ignore[misc]
        read = state if rows is None else {s: rows.take(v) for s, v in state.items()}
        new, new_state = optimizer.apply(
            op,
            w if rows is None else rows.take(w),
            gradients[name] if rows is None else rows.gradient,
            State(read),
            scalars.learning_rate,
            step,
            name=name,
            role=roles.get(name, "unknown"),
            index=index,
            values=scalars.hyper,
        )
        (updates.weights if rows is None else updates.rows)[name] = new
        updates.state[name] = {s: (state[s], new_state[s]) for s in state}
    return updates


def state_layout(optimizer: BaseLearningRate, w: Var) -> dict[str, np.ndarray]:
    """Arrays that look like the state of a weight; their content means nothing."""
    assert w.dtype is not None
    assert w.static_shape is not None
    return optimizer.create_state(np.broadcast_to(np.zeros((), w.dtype.numpy()), w.static_shape))


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
