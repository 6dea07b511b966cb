"""Adapters in files: of onnxruntime, or safetensors."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from onnxcustom.exceptions import InvalidDataError, InvalidParameterError, MissingRuntimeError
from onnxcustom.runtime import require_runtime

from .adapter import Adapter

__all__ = ["load_adapter", "save_adapter"]

_FORMAT = "onnxcustom.adapter"
_SUFFIXES = (".onnx_adapter", ".safetensors")


def save_adapter(adapter: Adapter, path: str | os.PathLike[str]) -> None:
    """Write an adapter as the suffix of a path says: the old file, if there is one, or the new one is there.

    Parameters
    ----------
    adapter : Adapter
        What to write.
    path : str or PathLike
        ``.onnx_adapter``, which onnxruntime from 1.20 on reads and writes, or ``.safetensors``, which knows
        rank, alpha and the fingerprint of the weights that it was trained beside.

    Raises
    ------
    InvalidParameterError
        Another suffix.
    MissingRuntimeError
        An onnxruntime that has no such files.
    """
    target = Path(path)
    write = _writer(adapter) if _suffix(target) == ".onnx_adapter" else _safetensors(adapter)
    part = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        write(part)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise InvalidParameterError(
            f"Adapters are files ending in .onnx_adapter or .safetensors, which {path.name!r} does not."
        )
    return suffix


def _safetensors(adapter: Adapter) -> Callable[[Path], None]:
    tensors = {name: np.ascontiguousarray(array) for name, array in adapter.items()}
    header = {"version": 1, "rank": adapter.rank, "alpha": adapter.alpha, "base": dict(adapter.base)}
    content = safetensors.numpy.save(tensors, {_FORMAT: json.dumps(header)})

    def write(part: Path) -> None:
        part.write_bytes(content)

    return write


def _format() -> Any:
    """The class of onnxruntime that reads and writes its own files."""
    runtime = require_runtime()
    if not hasattr(runtime, "AdapterFormat"):
        raise MissingRuntimeError(
            f"Files ending in .onnx_adapter need onnxruntime 1.20 or newer; this is {runtime.__version__}. "
            "End the path in .safetensors, or use the arrays as inputs."
        )
    return runtime.AdapterFormat


def _writer(adapter: Adapter) -> Callable[[Path], None]:
    made = _format()()
    made.set_adapter_version(1)
    made.set_model_version(_number(adapter))
    of_numpy = require_runtime().OrtValue.ortvalue_from_numpy
    made.set_parameters({name: of_numpy(np.ascontiguousarray(array)) for name, array in adapter.items()})
    return lambda part: made.export_adapter(str(part.absolute()))


def _number(adapter: Adapter) -> int:
    """What the weights that are changed are told by, as an integer: files of onnxruntime hold one."""
    known = [adapter.base.get(weight, "") for weight in adapter.weights]
    return version_of(dict(zip(adapter.weights, known, strict=True))) if all(known) else 0


def version_of(known: Mapping[str, str]) -> int:
    """31 bits of what weights are told by."""
    total = 0
    for name in sorted(known):
        total = (total * 1000003 + int(known[name], 16)) % (2**31 - 1)
    return total + 1


def load_adapter(path: str | os.PathLike[str]) -> Adapter:
    """Read what ``save_adapter`` of a step or an estimator has written.

    Parameters
    ----------
    path : str or PathLike
        A file ending in ``.onnx_adapter`` or ``.safetensors``.

    Returns
    -------
    Adapter
        Arrays by the names of inputs that ``get_trained_onnx(merge=False)`` has.

    Raises
    ------
    InvalidDataError
        The file holds something else.
    InvalidParameterError, MissingRuntimeError
        As for writing.
    FileNotFoundError
        There is none.
    """
    source = Path(path)
    if _suffix(source) == ".onnx_adapter":
        made = _format()
        if not source.exists():
            raise FileNotFoundError(f"There is no file {os.fspath(path)!r}.")
        try:
            file = made.read_adapter(str(source.absolute()))
            tensors = {name: np.array(value.numpy()) for name, value in file.get_parameters().items()}
        except Exception as exc:
            raise InvalidDataError(f"{source.name} is no adapter of onnxruntime: {exc}") from exc
        return Adapter(dict(sorted(tensors.items())), {"": str(file.get_model_version())})
    tensors, header = _read(source)
    return Adapter(dict(sorted(tensors.items())), header.get("base") or {}, header.get("alpha"))


def _read(source: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors of a safetensors file, and what it says of the adapter."""
    content = source.read_bytes()
    try:
        tensors = safetensors.numpy.load(content)
        size = int.from_bytes(content[:8], "little")
        header = json.loads(json.loads(content[8 : 8 + size]).get("__metadata__", {}).get(_FORMAT, "{}"))
        if not isinstance(header, dict) or not isinstance(header.get("base") or {}, dict):
            raise ValueError(f"what it says of itself is {header!r}")
    except (safetensors.SafetensorError, ValueError, AttributeError, KeyError) as exc:
        raise InvalidDataError(f"{source.name} is no file of safetensors with an adapter: {exc}") from exc
    return tensors, header
