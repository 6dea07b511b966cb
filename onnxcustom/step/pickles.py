"""What pickles of training steps hold, today and before recipe and state were two things."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from onnxcustom.graph import Prepared, constants
from onnxcustom.runtime import Device

from .checkpoint import leave_out_older
from .plan import Origin
from .recipe import Recipe
from .state import State

__all__ = ["as_written_now", "read_back", "written"]

_COUNTS = ("iteration", "skipped", "pending", "pending_rows")


def written(recipe: Recipe, state: State) -> dict[str, Any]:
    """Recipe and state in a pickle."""
    at = state.position
    return {
        "recipe": recipe,
        "arrays": state.read(),
        "counts": tuple(getattr(at, name) for name in _COUNTS),
        "units": at.pending_units,
        "window": at.window,
        "clock": copy.copy(state.clock),  # a shallow copy of a step is made by this, too
        "origin": state.origin,
        "penalties_apart": True,
    }


def read_back(pickled: Mapping[str, Any], device: Device) -> tuple[Recipe, State]:
    """Recipe and state of what :func:`written` gave, in this version or an older one."""
    recipe, clock = pickled["recipe"], pickled.get("clock")
    origin = pickled.get("origin") or recipe.older_origin
    if clock is None:  # from an older version, where the rule had it
        clock = recipe.rule.clock
        recipe = recipe.replace(rule=recipe.rule.formula())
    state = State(recipe, device, pickled["arrays"], clock, origin)
    counts = dict(zip(_COUNTS, pickled["counts"], strict=True))
    state.count(**counts, pending_units=pickled.get("units"), window=pickled.get("window"))
    if "penalties_apart" not in pickled:
        leave_out_older(recipe, state)
    return recipe, state


def as_written_now(state: Mapping[str, Any]) -> dict[str, Any]:
    """What a pickle of a step holds, as it is written today."""
    if "recipe" in state:
        return {**state}
    device, prepared = state["device"], Prepared.of(state["_proto"])
    recipe = Recipe(
        prepared,
        tuple(state["_weights"]),
        tuple(state["targets"]),
        state["optimizer"],
        state["_penalties"],
        state["engine"],
        modes=state["modes"],
        batch_axis=state.get("_batch_axis"),
        passes=state["passes"],
        recompute=state["recompute"],
        weighted=state["_weighted"],
        host=device.type == "cpu",
        moved=constants(prepared, state.get("_moved", ())),
        columns=state.get("_columns", {}),
    )
    return {
        "recipe": recipe,
        "origin": Origin.of(state["_born"], vars(state["modes"])["seed"]),
        "arrays": tuple(state["_saved"]),
        "counts": (state["iteration"], state["skipped"], state["_pending"], state["_pending_rows"]),
        "device": device,
        "threads": state["threads"],
        "sess_options": state.get("_sess_options"),
    }
