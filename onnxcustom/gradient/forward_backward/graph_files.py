"""Write the ONNX graphs an object owns, under names that tell where they come from."""

from __future__ import annotations

import os
import warnings
from typing import Any

import onnx

from onnxcustom.graph import save

__all__ = ["save_graphs"]


def save_graphs(
    graphs: dict[str, onnx.ModelProto],
    class_name: str,
    folder: str | os.PathLike | type[bytes],
    prefix: str | None,
    suffix: str | None,
) -> dict[str, Any]:
    """Write graphs as ``<prefix><Class><suffix>.<attribute>.onnx``, or return their bytes."""
    if folder is bytes:
        return {name: model.SerializeToString() for name, model in graphs.items()}
    where = os.fspath(folder)  # type: ignore[arg-type]
    if not os.path.isdir(where):
        raise FileNotFoundError(f"Folder {where!r} does not exist.")
    saved = {}
    for name, model in graphs.items():
        path = os.path.join(where, f"{prefix or ''}{class_name}{suffix or ''}.{name}.onnx")
        if os.path.exists(path):
            warnings.warn(f"File {path!r} exists and is overwritten.", stacklevel=3)
        save(model, path)
        saved[name] = path
    return saved
