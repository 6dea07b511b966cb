"""Checkpoints that the tests of the store share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from onnxcustom.training.checkpoints.checkpoint import CheckpointStore
from onnxcustom.training.checkpoints.folder_lock import LOCK_FILE

FILES = ["state.json", "tensors.safetensors"]


def tensors(k: int) -> dict[str, np.ndarray]:
    return {"weights/w": np.full((2, 3), k, np.float32), "é/0": np.array(k), "none": np.zeros((0, 2), bool)}


def state(k: int) -> dict[str, Any]:
    return {"epoch": k, "loss": [0.1 * k, float("nan")], "nested": {"a": [None, True, "é"]}}


def filled(folder: Path, n: int, **options: Any) -> CheckpointStore:
    """A store with the checkpoints 1 to n."""
    store = CheckpointStore(folder, **options)
    for k in range(1, n + 1):
        store.save(tensors(k), state(k))
    return store


def is_checkpoint(saved: Any, k: int) -> bool:
    wanted = tensors(k)
    return (
        saved is not None
        and list(saved.tensors) == list(wanted)
        and all(saved.tensors[n].tobytes() == a.tobytes() for n, a in wanted.items())
        and all(saved.tensors[n].dtype == a.dtype for n, a in wanted.items())
        and repr(saved.state) == repr(state(k))
    )


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def names(folder: Path) -> set[str]:
    return set(os.listdir(folder)) - {LOCK_FILE}
