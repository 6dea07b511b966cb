"""Pickles of training steps as they were before recipe and state were two things."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxcustom.graph import Prepared, constants

from .plan import Origin
from .recipe import Recipe

__all__ = ["as_written_now"]


def as_written_now(state: Mapping[str, Any]) -> dict[str, Any]:
    """What such a pickle holds, as a training step writes it today."""
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
