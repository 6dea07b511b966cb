"""What was built for a step, kept in a folder: the prepared model and the graphs, found by fingerprint.

An entry is a header, JSON and a protobuf message, with a checksum over both. Nothing in it is executed:
numbers that are computed beside a graph are arithmetic, which is looked at before it is used.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import os
import pickle
import platform
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxcustom._version import __version__
from onnxcustom._warnings import warn_user
from onnxcustom.exceptions import InvalidParameterError
from onnxcustom.gradient.registry import registered
from onnxcustom.graph import Prepared, to_proto
from onnxcustom.graph.files.conversion import PROTOBUF_LIMIT, represented
from onnxcustom.graph.files.io import load_own
from onnxcustom.graph.preparation.sites import marks_of, with_marks
from onnxcustom.runtime import require_runtime

from .passes.scalars import ScalarPlan
from .step_graph import ComposedStep

__all__ = ["BuiltSteps", "prepared_by", "prepared_in"]

logger = logging.getLogger("onnxcustom")

_MAGIC, _SUFFIX = b"onnxcustom built 1\n", ".step"
# Bytes of all entries: beyond, those that were not used for longest are removed.
_ROOM = 2**31
# Seconds after which a file that a process has not finished is left over.
_LEFT_OVER = 86400
# Packages whose classes and functions change with their versions only, which the fingerprint holds.
_KNOWN = frozenset(
    "onnxcustom onnx onnx_ir numpy builtins copyreg collections enum functools _codecs".split()
)


class BuiltSteps:
    """A folder of what was built.

    Parameters
    ----------
    folder : path
        Made if it is not there. Several processes may use one.

    Raises
    ------
    ValueError, TypeError
        No folder's name.
    """

    def __init__(self, folder: Any) -> None:
        if not isinstance(folder, (str, os.PathLike)) or not os.fspath(folder):
            raise InvalidParameterError(f"cache_dir must be a folder, not {folder!r}.")
        self.folder = Path(os.fspath(folder))
        if self.folder.exists() and not self.folder.is_dir():
            raise InvalidParameterError(f"cache_dir={str(self.folder)!r} is no folder.")
        self._warned = False

    def get(self, key: str, read: Callable[[Any, onnx.ModelProto], Any]) -> Any:
        """What `read` makes of the JSON and the model of an entry; None if there is none that is whole."""
        path = self.folder / (key + _SUFFIX)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        try:
            made = read(*_unpacked(content))
        except Exception as exc:  # whatever was in the file
            warn_user(f"{str(path)!r} in cache_dir is damaged, and built anew: {exc}", UserWarning)
            return None
        logger.info("Read from cache_dir: %s", path.name)
        with contextlib.suppress(OSError):
            os.utime(path)
        return made

    def put(self, key: str, about: Any, model: onnx.ModelProto) -> None:
        """Keep an entry; where that is not possible, say so once."""
        try:
            body = json.dumps(about).encode()
            content = model.SerializeToString(deterministic=True)
            head = _MAGIC + len(body).to_bytes(8, "little")
            check = hashlib.sha256(body + content).digest()
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(".part", ".", self.folder)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(b"".join([head, check, body, content]))
                os.replace(name, self.folder / (key + _SUFFIX))
            except BaseException:
                with contextlib.suppress(OSError):
                    os.remove(name)
                raise
            self._trim()
        except (OSError, ValueError, TypeError) as exc:
            if not self._warned:
                warn_user(f"Nothing is kept in cache_dir={str(self.folder)!r}: {exc}", UserWarning)
            self._warned = True

    def _trim(self) -> None:
        """Remove entries that were not used for longest, and what other processes have not finished."""
        kept, total = [], 0
        for path in self.folder.iterdir():
            with contextlib.suppress(OSError):
                found = path.stat()
                if path.name.startswith(".") and path.suffix == ".part":
                    if time.time() - found.st_mtime > _LEFT_OVER:
                        path.unlink()
                elif path.suffix == _SUFFIX:
                    kept.append((found.st_mtime, found.st_size, path))
                    total += found.st_size
        for _, size, path in sorted(kept)[:-1]:
            if total <= _ROOM:
                break
            with contextlib.suppress(OSError):
                path.unlink()
            total -= size

    def graph(self, recipe: Any, key: Any, compose: Callable[[], ComposedStep]) -> ComposedStep:
        """A graph of a recipe, read or composed and kept."""
        name = _recipe_key(recipe, key)
        found = None if name is None else self.get(name, _composed)
        if found is None:
            found = compose()
            if name is not None:
                self.put(name, _about(found), to_proto(found.model))
        return found


def prepared_in(folder: Any, model: Any) -> Prepared:
    """:func:`prepared_by` a folder, or None."""
    return prepared_by(None if folder is None else BuiltSteps(folder), model)


def prepared_by(cache: BuiltSteps | None, model: Any) -> Prepared:
    """A model in any form, prepared: read or made and kept; errors are those of :meth:`Prepared.of`."""
    if cache is None or isinstance(model, Prepared):
        return Prepared.of(model)
    proto = load_own(model)
    if proto.ByteSize() > PROTOBUF_LIMIT:
        return Prepared.of(proto)
    key = _digest("prepared", proto.SerializeToString(deterministic=True))
    own = {tensor.name: tensor for tensor in proto.graph.initializer}

    def read(about: Any, small: onnx.ModelProto) -> Prepared:
        same = set(about["same"])
        for tensor in small.graph.initializer:
            if tensor.name in same:
                tensor.CopyFrom(own[tensor.name])
        return Prepared(with_marks(represented(small), about["marks"]), proto)

    made = cache.get(key, read)
    if made is None:
        made = Prepared.of(proto)
        marks, small, same = marks_of(made.model), to_proto(made.model), []
        for tensor in small.graph.initializer:  # numbers are in the user's model
            if tensor.HasField("raw_data") and own.get(tensor.name) == tensor:
                same.append(tensor.name)
                tensor.ClearField("raw_data")
        if marks is not None:
            cache.put(key, {"marks": marks, "same": same}, small)
    made.fingerprint = key
    return made


# -- fingerprints ----------------------------------------------------------------------------------


def _digest(*parts: Any) -> str:
    """Of what an entry is made of, and of what makes it."""
    versions = (__version__, onnx.__version__, ir.__version__, np.__version__, platform.python_version())
    digest = hashlib.sha256(repr((*versions, require_runtime().__version__)).encode())
    for part in parts:
        digest.update(part if isinstance(part, bytes) else repr(part).encode())
    return digest.hexdigest()


def _recipe_key(recipe: Any, key: Any) -> str | None:
    """Fingerprint of a graph of a recipe; None of one that holds what may change from run to run unseen."""
    prepared = recipe.prepared.fingerprint
    if prepared is None or recipe.moved or not all(_is_known(rule.function) for rule in registered()):
        return None
    fields = {f.name: getattr(recipe, f.name) for f in dataclasses.fields(recipe)}
    for name in ("prepared", "engine", "moved", "columns"):
        del fields[name]
    buffer = io.BytesIO()
    try:
        _Known(buffer).dump((fields, key))
    except Exception:  # a function of the user's, and whatever else is no value
        return None
    return _digest("graph", prepared, recipe.engine.name, buffer.getvalue())


class _Known(pickle.Pickler):
    """Writes values to bytes, for their fingerprint alone; refuses classes and functions of users."""

    def reducer_override(self, value: Any) -> Any:
        """Refuse what is known by its name alone, and not by a version."""
        if isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)) and not _is_known(value):
            raise pickle.PicklingError(f"{value!r} has no version.")
        return NotImplemented


def _is_known(value: Any) -> bool:
    return (getattr(value, "__module__", None) or "").partition(".")[0] in _KNOWN


# -- entries ---------------------------------------------------------------------------------------


def _unpacked(content: bytes) -> tuple[Any, onnx.ModelProto]:
    """The JSON and the model of an entry."""
    start = len(_MAGIC)
    if content[:start] != _MAGIC:
        raise ValueError("it is no entry of this version.")
    size = int.from_bytes(content[start : start + 8], "little")
    check, rest = content[start + 8 : start + 40], content[start + 40 :]
    if hashlib.sha256(rest).digest() != check:
        raise ValueError("its checksum is another.")
    model = onnx.ModelProto()
    model.ParseFromString(rest[size:])
    return json.loads(rest[:size]), model


_APART = ("model", "scalars")


def _about(composed: ComposedStep) -> dict[str, Any]:
    """What a step graph is, but for the graph."""
    names = {f.name: getattr(composed, f.name) for f in dataclasses.fields(composed) if f.name not in _APART}
    names["shown"] = sorted(composed.shown)
    return {"names": names, "scalars": composed.scalars.parts}


def _composed(about: Any, model: onnx.ModelProto) -> ComposedStep:
    """A step graph of an entry."""
    names, parts = dict(about["names"]), about["scalars"]
    names["shown"] = set(names["shown"])
    names["state"] = {w: {s: tuple(v) for s, v in pairs.items()} for w, pairs in names["state"].items()}
    for name in ("packs", "accumulated"):
        names[name] = {k: tuple(v) for k, v in names[name].items()}
    texts, lines, loss, constants = parts
    for text in (*texts.values(), *lines.values(), loss):
        _check_arithmetic(text)
    for name in (*texts, *lines, *constants):
        if not isinstance(name, str):
            raise ValueError(f"{name!r} is no name.")
    for name in lines:
        if not name.isidentifier():
            raise ValueError(f"{name!r} is no name.")
    if not all(isinstance(number, (int, float)) for number in constants.values()):
        raise ValueError("its constants are no numbers.")
    return ComposedStep(model=represented(model), scalars=ScalarPlan(texts, lines, loss, constants), **names)


_ALLOWED = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.USub, ast.Call, ast.Name,
    ast.Load, ast.Constant, ast.Subscript,
)  # fmt: skip
_FUNCTIONS = frozenset("power sqrt exp log least most".split())


def _check_arithmetic(text: str) -> None:
    """Refuse what is more than arithmetic of names and numbers."""
    for node in ast.walk(ast.parse(text, mode="eval")):
        called = isinstance(node, ast.Call) and not (
            isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS and not node.keywords
        )
        if called or not isinstance(node, _ALLOWED):
            raise ValueError(f"{text!r:.60} is no arithmetic.")
