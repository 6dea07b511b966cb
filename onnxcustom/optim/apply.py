"""Everything that happens to one weight in an update: what rules share, around the rule's formula."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxcustom.graph.building.builder import Builder, Var
from onnxcustom.graph.trainable.roles import Role

from .rule import Rule, State
from .transforms import Unit, clip, is_zero, once_key, proximal_l1, scalar, shrink

__all__ = ["apply_rule"]


def apply_rule(
    rule: Rule,
    op: Builder,
    w: Var,
    g: Var,
    s: State,
    lr: Var,
    t: Var,
    *,
    name: str | None,
    role: Role,
    index: int | None,
    values: Mapping[str, Var],
    prescaled: bool = False,
) -> tuple[Var, dict[str, Var]]:
    """See :meth:`BaseLearningRate.apply`."""
    low = w.dtype
    if "master" in s:
        w, g = s["master"], scalar(op, g, s["master"].dtype)
    lr_mult, wd_mult = rule.multipliers(name, role, index)
    rate = scalar(op, lr, w.dtype)
    lr = rate if lr_mult == 1 else op.once(("times", rate.value, lr_mult), lambda: lr_mult * rate)
    hyper: dict[str, Any] = {k: scalar(op, v, w.dtype) for k, v in values.items()}
    for decay in rule.decays:
        hyper[decay] = _times(op, hyper.get(decay, getattr(rule, decay)), wd_mult)
    wd, l1, decoupled = hyper["wd"], hyper["l1"], rule.decoupled_weight_decay
    if decoupled:
        hyper["wd"] = 0.0
    elif prescaled and not is_zero(wd):
        hyper["wd"] = op.once(("times", lr.value, once_key(wd)), lambda: lr * wd)
    hyper.update(_kept_from_zero(rule, w))
    view = rule.bound(role=role, stream=_stream(name, index), bound_lr_mult=lr_mult, **hyper)

    g = _prepared(view, op, w, g)
    if decoupled:
        w = shrink(op, w, lr, wd)
    factor: Any = Unit() if prescaled else lr
    new, state = view.update(op, w, g, s, factor, t)
    if set(state) != set(rule.state):
        raise ValueError(f"{type(rule).__name__}.update returned state {set(state)}, not {set(rule.state)}.")
    new = proximal_l1(op, new, lr, l1)
    if "master" in s:
        return op.Cast(new, to=low), {**state, "master": new}
    return new, dict(state)


def _kept_from_zero(rule: Rule, w: Var) -> dict[str, float]:
    """Epsilons that are 0 in the weight's dtype, so that 0 / 0 threatens, as its smallest normal number."""
    assert w.dtype is not None
    limits = np.finfo(w.dtype.numpy())
    found = {name: getattr(rule, name) for name in ("epsilon", "eps") if hasattr(rule, name)}
    return {
        name: float(limits.tiny) for name, value in found.items() if value > 0 == limits.dtype.type(value)
    }


def _prepared(view: Rule, op: Builder, w: Var, g: Var) -> Var:
    """The gradient as the formula takes it: rescaled, clipped, decayed in the rule's own order."""
    for what in view.order:
        if what == "rescale" and view.rescale_grad != 1:
            g = view.rescale_grad * g
        elif what == "clip":
            g = clip(op, g, view.clip_gradient)
        elif what == "decay" and not is_zero(view.wd):
            g = g + view.wd * w
    return g


def _times(op: Builder, value: Any, factor: float) -> Any:
    """A number or scalar times a factor, emitted once for all weights that share it."""
    if factor == 0 or not isinstance(value, Var):
        return 0.0 if factor == 0 else value * factor
    return value if factor == 1 else op.once(("times", value.value, factor), lambda: factor * value)


def _stream(name: str | None, index: int | None) -> int:
    """A number of the weight's own, the same in every process."""
    if name is None:
        return 0 if index is None else index
    number = 0
    for byte in name.encode():
        number = (number * 257 + byte) % 2147483629
    return number
