"""Many small weights updated as one: their memory lies side by side, so one node serves them all.

The forward and backward pass read every weight by itself, from its place in the block; only the update
sees the block as one vector. Gradients are gathered into a vector of the same layout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcustom.graph.building.builder import Builder, Var
from onnxcustom.graph.trainable.roles import Role
from onnxcustom.optim import BaseLearningRate, State

__all__ = ["NUMBER_BY_NUMBER", "concatenate", "plan_packs"]

# Above, a pass over memory costs more than the node that makes it.
_SMALL = 2**14
# Below, gathering the gradients costs more than it saves.
_FEWEST_NODES = 3
_DTYPES = (ir.DataType.FLOAT, ir.DataType.DOUBLE)
#: Operators of which every number of a result depends on the numbers at its place alone.
NUMBER_BY_NUMBER = frozenset(
    "Add Sub Mul Div Neg Sqrt Pow Exp Log Abs Sign Max Min Clip Where Cast Identity Relu Reciprocal "
    "Greater Less GreaterOrEqual LessOrEqual Equal And Or Not".split()
)
# Of :func:`_number_by_number`, by rule and options: making the graphs is a third of composing a small step.
_VERDICTS: dict[tuple[Any, ...], bool] = {}
_MOST_VERDICTS = 256
_ROLES: tuple[Role, ...] = ("weight", "bias", "normalization", "unknown")


def plan_packs(
    optimizer: BaseLearningRate,
    weights: Mapping[str, ir.TensorProtocol],
    roles: Mapping[str, Role],
    ages: Mapping[str, int],
    index: Mapping[str, int],
) -> list[list[str]]:
    """Which weights are updated together: small ones that the rule treats alike.

    Parameters
    ----------
    optimizer : BaseLearningRate
        Update rule. Only one that works number by number can see several weights as one; its graph
        tells.
    weights : mapping of str to onnx_ir.TensorProtocol
        Weights that have a gradient of their own shape.
    roles : mapping of str to Role
        What each is to the model.
    ages : mapping of str to int
        Updates done when it joined.
    index : mapping of str to int
        Index of each weight among all that are trained.

    Returns
    -------
    list of list of str
    """
    if optimizer.stochastic or optimizer.multi_precision:
        return []
    decays = any(getattr(optimizer, name) != 0 for name in optimizer.decays)
    groups: dict[tuple, list[str]] = {}
    for name, w in weights.items():
        if w.dtype not in _DTYPES or not 0 < w.size <= _SMALL:
            continue
        lr_mult, wd_mult = optimizer.multipliers(name, roles.get(name, "unknown"), index[name])
        key = (w.dtype, lr_mult, wd_mult if decays else 0.0, ages.get(name, 0))
        groups.setdefault(key, []).append(name)
    packs = [members for members in groups.values() if len(members) > 1]
    return packs if packs and _number_by_number(optimizer) else []


def _number_by_number(optimizer: BaseLearningRate) -> bool:
    """Whether the formula works on each number by itself, alike for every role, in some nodes."""
    options = [(name, type(v), v) for name, v in sorted(vars(optimizer).items()) if name[0] != "_"]
    if not all(v is None or isinstance(v, (bool, int, float, str)) for *_, v in options):
        return _tried(optimizer)  # schedules and tables may change
    key = (type(optimizer), type(optimizer).update, *options)
    verdict = _VERDICTS.get(key)
    if verdict is None:
        verdict = _tried(optimizer)
        if len(_VERDICTS) >= _MOST_VERDICTS:
            _VERDICTS.clear()
        _VERDICTS[key] = verdict
    return verdict


def _tried(optimizer: BaseLearningRate) -> bool:
    """:func:`_number_by_number`, by the graph that the formula makes for each role."""
    seen = set()
    for role in _ROLES:
        op = Builder(18)
        w, g = op.input("w", ir.DataType.FLOAT, [2, 3]), op.input("g", ir.DataType.FLOAT, [2, 3])
        like = optimizer.create_state(np.zeros((2, 3), np.float32))
        if any(array.shape != (2, 3) or array.dtype != np.float32 for array in like.values()):
            return False
        state = State({s: op.input(s, ir.DataType.FLOAT, [2, 3]) for s in like})
        lr, t = op.input("lr", ir.DataType.FLOAT, []), op.input("t", ir.DataType.FLOAT, [])
        values = {name: op.input(f"{name}_", ir.DataType.FLOAT, []) for name in optimizer.scheduled}
        optimizer.bound(role=role, **values).update(op, w, g, state, lr, t)
        large = [n for n in op.nodes if any(v is not None and not _is_scalar(v) for v in n.inputs)]
        if any(n.op_type not in NUMBER_BY_NUMBER for n in large):
            return False
        seen.add(tuple(node.op_type for node in op.nodes))
    return len(seen) == 1 and len(large) >= _FEWEST_NODES


def _is_scalar(value: ir.Value) -> bool:
    return value.shape is not None and len(value.shape) == 0


def concatenate(op: Builder, gradients: Sequence[Var], shapes: Sequence[tuple[int, ...]]) -> Var:
    """Gradients of these shapes one behind the other, as their weights lie in memory."""
    parts: list[Var] = []
    for g, shape in zip(gradients, shapes, strict=True):
        flat = g if len(shape) == 1 else op.Reshape(g, [-1])
        flat.value.shape = ir.Shape([math.prod(shape)])
        parts.append(flat)
    joined = op.Concat(*parts, axis=0)
    joined.value.shape = ir.Shape([sum(map(math.prod, shapes))])
    return joined
