"""What an updater writes of its weights, read back: bytes in the safetensors format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from onnxcustom.exceptions import CheckpointError

from .rule import Rule

__all__ = ["FORMAT", "VERSION", "Index", "parsed", "restored"]

FORMAT = "onnxcustom.updater"
VERSION = 1
Index = int | str


def restored(
    rule: Rule, header: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> tuple[dict[Index, dict[str, Any]], dict[Index, int], dict[Index, tuple[int, np.ndarray]]]:
    """States, counts and mean gradients by index, of what :func:`parsed` has read.

    Raises
    ------
    CheckpointError
        They are of another rule.
    """
    if header["rule"] != type(rule).__name__:
        raise CheckpointError(f"These are states of {header['rule']}, not of {type(rule).__name__}.")
    kept: dict[Index, dict[str, Any]] = {}
    counts: dict[Index, int] = {}
    means: dict[Index, tuple[int, np.ndarray]] = {}
    for k, (index, count, names, seen) in enumerate(header["entries"]):
        if names is not None:
            if not set(rule.state) <= set(names) <= {*rule.state, "master"}:
                raise CheckpointError(
                    f"The state of {index!r} holds {names}; {type(rule).__name__} with these options "
                    f"keeps {list(rule.state)}."
                )
            kept[index] = {name: tensors[f"{k}.{name}"] for name in names}
            counts[index] = count
        if seen:
            means[index] = (seen, tensors[f"{k}:mean"])
    return kept, counts, means


def parsed(states: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and tensors of saved states.

    Raises
    ------
    CheckpointError
        Something else, or of a newer version.
    """
    try:
        if not isinstance(states, (bytes, bytearray, memoryview)):
            raise TypeError(f"bytes are needed, not {type(states).__name__}")
        states = bytes(states)
        tensors = safetensors.numpy.load(states)
        size = int.from_bytes(states[:8], "little")
        metadata = json.loads(states[8 : 8 + size]).get("__metadata__", {})
        if FORMAT not in metadata:
            raise ValueError(f"their metadata have no {FORMAT!r}")
        header = json.loads(metadata[FORMAT])
        if header["version"] > VERSION:
            raise ValueError(
                f"they have version {header['version']!r}, made by a newer onnxcustom; this one reads up to "
                f"{VERSION}"
            )
        _check_entries(header, tensors)
    except KeyError as exc:
        raise CheckpointError(f"These are no saved states of an updater: {exc} is missing.") from exc
    except (safetensors.SafetensorError, TypeError, ValueError, AttributeError) as exc:
        raise CheckpointError(f"These are no saved states of an updater: {exc}.") from exc
    return {"optimizer": None, "skipped": 0, **header}, tensors


def _check_entries(header: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    """Refuse a header that does not describe the tensors."""
    if not isinstance(header["rule"], str):
        raise ValueError(f"their rule is {header['rule']!r}")
    _check_counts("skipped", header.get("skipped", 0))
    indices = [entry[0] for entry in header["entries"]]
    if len(set(indices)) < len(indices):
        raise ValueError(f"an index is there twice: {indices}")
    for k, (index, count, names, seen) in enumerate(header["entries"]):
        if type(index) not in (int, str):
            raise ValueError(f"entry {k} has index {index!r}")
        _check_counts(f"entry {k}", count, seen)
        wanted = [f"{k}.{name}" for name in names or ()] + ([f"{k}:mean"] if seen else [])
        if missing := [name for name in wanted if name not in tensors]:
            raise ValueError(f"the tensors {missing} of {index!r} are missing")


def _check_counts(what: str, *counts: Any) -> None:
    if any(type(count) is not int or count < 0 for count in counts):
        raise ValueError(f"{what} has counts {counts}")
