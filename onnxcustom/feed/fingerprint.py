"""What tells one training from another: text that is the same from process to process."""

from __future__ import annotations

import functools
import hashlib
import os
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxcustom.data.fingerprints import hash_array
from onnxcustom.graph import load
from onnxcustom.graph.files.conversion import PROTOBUF_LIMIT

__all__ = ["describe", "differences", "hash_arrays", "hash_model"]

# Characters of a value that are shown.
_LINE = 80


def hash_model(model: Any) -> str:
    """SHA-256 of a model with its weights.

    Parameters
    ----------
    model : path, bytes, onnx.ModelProto or onnx_ir.Model
        The model.
    """
    proto = load(model)
    if proto.ByteSize() < PROTOBUF_LIMIT:
        return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()
    digest = hashlib.sha256()
    shell = onnx.ModelProto()
    shell.CopyFrom(proto)
    for tensor in shell.graph.initializer:  # one by one: a message of more than 2 GB has no bytes
        digest.update(tensor.SerializeToString(deterministic=True))
    del shell.graph.initializer[:]
    digest.update(shell.SerializeToString(deterministic=True))
    return digest.hexdigest()


def hash_arrays(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Dtype, shape and SHA-256 of arrays, by name."""
    return {name: hash_array(array, whole=True) for name, array in arrays.items()}


def describe(value: Any) -> str:
    """A parameter as text: values for what has some, name and hash for functions, names for classes.

    Examples
    --------
    >>> describe({"a": [1, 2.5], "b": None})
    "{'a': [1, 2.5], 'b': None}"
    >>> describe(dict)
    'builtins.dict'
    """
    if value is None or isinstance(value, (bool, int, float, str, np.generic)):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k!r}: {describe(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(describe, value)) + "]"
    if isinstance(value, (set, frozenset)):
        return "{" + ", ".join(sorted(map(describe, value))) + "}"
    if isinstance(value, np.ndarray):
        return hash_array(np.atleast_1d(value), whole=True)
    if isinstance(value, (bytes, onnx.ModelProto, ir.Model)):
        return f"model {hash_model(value)[:16]}"
    if isinstance(value, os.PathLike):
        return repr(str(Path(value)))
    if isinstance(value, types.FunctionType):
        closed = [cell.cell_contents for cell in value.__closure__ or ()]
        return f"{_name(value)}({_code(value.__code__)}, {describe(closed)}, {describe(value.__defaults__)})"
    if isinstance(value, functools.partial):
        return f"partial({describe(value.func)}, {describe(value.args)}, {describe(value.keywords)})"
    name = _name(value) if callable(value) and hasattr(value, "__qualname__") else _name(type(value))
    if hasattr(value, "get_params") and not isinstance(value, type):
        return f"{name}({describe(value.get_params(deep=False))})"
    if hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
        fields = {f: getattr(value, f) for f in value.__dataclass_fields__ if not f.startswith("_")}
        return f"{name}({describe(fields)})"
    return name


def _code(code: types.CodeType) -> str:
    """Hash of what a function does, as far as its own code says."""
    digest = hashlib.sha256(code.co_code)
    for constant in code.co_consts:
        digest.update((_code(constant) if isinstance(constant, types.CodeType) else repr(constant)).encode())
    digest.update(" ".join(code.co_names).encode())
    return digest.hexdigest()[:16]


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{value.__qualname__}"


def differences(saved: Mapping[str, Any], present: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two fingerprints, in words."""
    found = []
    for key in dict.fromkeys([*saved, *present]):
        old, new = saved.get(key), present.get(key)
        name = f"{prefix} {key!r}" if prefix else key
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, key)
        elif old != new:
            was, now = _excerpts(*("nothing" if v is None else str(v) for v in (old, new)))
            found.append(f"{name} was {was}, is {now}")
    return found


def _excerpts(old: str, new: str) -> tuple[str, str]:
    """Two texts that differ, each cut to what fits on a line around the first place where they do."""
    pairs = enumerate(zip(old, new, strict=False))
    place = next((i for i, (a, b) in pairs if a != b), min(len(old), len(new)))
    # From the name of the option on, or of the element of a list.
    start = max(old.rfind(", ", 0, place) + 2, old.rfind("{", 0, place) + 1, place - 40)
    start = 0 if place < 40 or max(len(old), len(new)) <= _LINE else start
    return _cut(old, start), _cut(new, start)


def _cut(text: str, start: int) -> str:
    part = text[start:]
    part = part if len(part) <= _LINE else part[: _LINE - 3] + "..."
    return f"...{part}" if start else part
