"""Version stamps for pickles: a pickle made by an incompatible release is refused with a reason."""

from __future__ import annotations

from typing import Any

from onnxcustom.exceptions import CheckpointError

__all__ = ["PICKLE_FORMAT", "check_version", "stamp_version"]

#: Raised by one whenever the state of a pickled object changes its meaning.
PICKLE_FORMAT = 1

_KEY = "onnxcustom_pickle_format"


def stamp_version(state: dict[str, Any]) -> dict[str, Any]:
    """The state of an object to be pickled, with the format it is written in."""
    return {**state, _KEY: PICKLE_FORMAT}


def check_version(state: dict[str, Any], owner: object) -> dict[str, Any]:
    """The state of a pickled object without its stamp.

    Raises
    ------
    CheckpointError
        If the pickle was made in another format, or is not one of ours.
    """
    found = state.get(_KEY)
    if found != PICKLE_FORMAT:
        raise CheckpointError(
            f"This pickle of {type(owner).__name__} has format {found!r}; this version of onnxcustom reads "
            f"format {PICKLE_FORMAT}. Load it with the version that wrote it and save the trained model with "
            "get_trained_onnx(), which every version reads."
        )
    return {k: v for k, v in state.items() if k != _KEY}
