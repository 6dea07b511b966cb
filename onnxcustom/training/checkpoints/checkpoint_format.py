"""What the files of a checkpoint hold, as bytes: arrays as safetensors, all else as JSON."""

from __future__ import annotations

import hashlib
import json
import math
import reprlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from onnxcustom._plain import to_plain
from onnxcustom._version import __version__
from onnxcustom.exceptions import CheckpointError

__all__ = [
    "Document",
    "NewerCheckpointError",
    "decoded_document",
    "decoded_tensors",
    "encoded_document",
    "encoded_tensors",
    "json_state",
]

FORMAT, VERSION = "onnxcustom checkpoint", 1
_KEYS = frozenset({"format", "version", "library", "file", "tensors", "state", "checksum"})
_NATIVE = frozenset("bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64".split())
# Of ml_dtypes: written as the integers that have their bits.
_FOREIGN = frozenset(
    "bfloat16 float8_e3m4 float8_e4m3 float8_e4m3fn float8_e4m3fnuz float8_e4m3b11fnuz float8_e5m2 "
    "float8_e5m2fnuz float8_e8m0fnu float6_e2m3fn float6_e3m2fn float4_e2m1fn int2 int4 uint2 uint4".split()
)
# A name that safetensors keeps for itself.
_RESERVED = "__metadata__"
# What files that were not written here lead to.
_UNREADABLE = (
    AttributeError,
    KeyError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
    safetensors.SafetensorError,
)


class NewerCheckpointError(CheckpointError):
    """The checkpoint is intact, but of a later version of the format."""


class Spec(NamedTuple):
    """A tensor as it is written."""

    dtype: np.dtype
    shape: tuple[int, ...]
    key: str

    @property
    def stored(self) -> np.dtype:
        """Dtype in the file."""
        return self.dtype if self.dtype.name in _NATIVE else np.dtype(f"u{self.dtype.itemsize}")

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Document(NamedTuple):
    """What the JSON of a checkpoint says, checked: size and SHA-256 are of the file of tensors."""

    state: dict[str, Any]
    tensors: dict[str, Spec]
    size: int
    sha256: str


# -- state -------------------------------------------------------------------------------------------


def json_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a state as JSON gives it back.

    Raises
    ------
    TypeError, ValueError
        Something that JSON cannot hold, named by its place.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"state must be a mapping, not {reprlib.repr(state)}.")
    plain: dict[str, Any] = to_plain(state, "state")
    return plain


# -- writing -----------------------------------------------------------------------------------------


def encoded_tensors(tensors: Mapping[str, np.ndarray]) -> tuple[bytes, dict[str, Any], dict[str, Any]]:
    """The file of tensors, and what the JSON says of it and of each of them.

    Raises
    ------
    TypeError, ValueError
        A name or an array that cannot be written, named.
    """
    if not isinstance(tensors, Mapping):
        raise TypeError(f"tensors must be a mapping, not {reprlib.repr(tensors)}.")
    arrays, specs = {}, {}
    for name, value in tensors.items():
        array = _little(name, value)
        key = _key(name, tensors)
        spec = Spec(array.dtype, array.shape, key)
        arrays[key] = array.view(spec.stored)
        specs[name] = {"dtype": array.dtype.name, "shape": list(array.shape)}
        if key != name:
            specs[name]["key"] = key
    data = safetensors.numpy.save(arrays)
    return data, {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}, specs


def _little(name: Any, value: Any) -> np.ndarray:
    """A contiguous array, little end first, of a dtype that can be written."""
    if not isinstance(name, str):
        raise TypeError(f"A tensor is called {name!r}: names are texts.")
    try:
        name.encode()
    except UnicodeEncodeError as exc:
        raise ValueError(f"A tensor is called {name!r}, which is no Unicode text.") from exc
    array = np.asarray(value, order="C")  # not ascontiguousarray, which makes vectors of scalars
    if array.dtype.name not in _NATIVE | _FOREIGN:
        raise TypeError(f"The tensor {name!r} has dtype {array.dtype}, which cannot be written.")
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _key(name: str, others: Mapping[str, Any]) -> str:
    """The name of a tensor in the file."""
    if name != _RESERVED:
        return name
    while name in others:
        name += "_"
    return name


def encoded_document(state: dict[str, Any], specs: dict[str, Any], file: dict[str, Any]) -> bytes:
    """The JSON of a checkpoint."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "library": __version__,
        "file": file,
        "tensors": specs,
        "state": state,
    }
    return json.dumps({**document, "checksum": _checksum(document)}).encode()


def _checksum(document: Mapping[str, Any]) -> str:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


# -- reading -----------------------------------------------------------------------------------------


def decoded_document(content: bytes) -> Document:
    """What the JSON of a checkpoint says.

    Raises
    ------
    CheckpointError
        It was not written by this library, has changed since, or describes tensors that cannot be.
    """
    try:
        document = json.loads(content.decode("ascii"))
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise CheckpointError(
                f"its state is not of the format {FORMAT!r}: it was not written by onnxcustom."
            )
        checksum = document.pop("checksum", None)
        if checksum != _checksum(document):
            raise CheckpointError("its state has changed since it was written: the checksum differs.")
        return _checked(document)
    except CheckpointError:
        raise
    except _UNREADABLE as exc:
        raise CheckpointError(f"its state is torn or foreign: {_short(exc)}.") from exc


def _checked(document: dict[str, Any]) -> Document:
    """A document whose checksum is right: only what was made up to look so is refused."""
    version = document["version"]
    if type(version) is not int or version < 1:
        raise CheckpointError(f"its format has version {version!r}; this onnxcustom reads version {VERSION}.")
    if version > VERSION:
        raise NewerCheckpointError(
            f"it was written by onnxcustom {document.get('library')!s:.40} in version {version!s:.20} of the "
            f"format, this one reads up to {VERSION}: install that onnxcustom, or train into another folder."
        )
    if set(document) != _KEYS - {"checksum"} or not isinstance(document["state"], dict):
        raise CheckpointError(f"its state must have {sorted(_KEYS)}, it has {sorted(document)}.")
    tensors = {name: _spec(name, entry) for name, entry in document["tensors"].items()}
    size, sha256 = document["file"]["size"], document["file"]["sha256"]
    if type(size) is not int or not isinstance(sha256, str):
        raise CheckpointError(f"its file of tensors has size {size!r} and SHA-256 {sha256!r}.")
    needed = sum(spec.nbytes for spec in tensors.values())
    if not needed <= size - 8 <= needed + _header_limit(tensors):
        raise CheckpointError(f"its tensors take {needed} bytes, the file is said to have {size}.")
    return Document(document["state"], tensors, size, sha256)


def _header_limit(tensors: Mapping[str, Spec]) -> int:
    """More than the header of the file of tensors can take."""
    return 1024 + sum(200 + 6 * len(spec.key.encode()) + 25 * len(spec.shape) for spec in tensors.values())


def _spec(name: str, entry: Mapping[str, Any]) -> Spec:
    dtype, shape = entry["dtype"], entry["shape"]
    if dtype not in _NATIVE | _FOREIGN:
        raise CheckpointError(f"its tensor {name!r} has dtype {dtype!r}.")
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**63 for n in shape):
        raise CheckpointError(f"its tensor {name!r} has shape {shape!r}.")
    return Spec(_dtype(dtype), tuple(shape), str(entry.get("key", name)))


def _dtype(name: str) -> np.dtype:
    if name in _NATIVE:
        return np.dtype(name)
    import ml_dtypes

    return np.dtype(getattr(ml_dtypes, name))


def decoded_tensors(content: bytes, document: Document) -> dict[str, np.ndarray]:
    """The arrays in a file of tensors.

    Raises
    ------
    CheckpointError
        It is not the file that the document describes.
    """
    if hashlib.sha256(content).hexdigest() != document.sha256:
        raise CheckpointError("its tensors have changed since they were written: the SHA-256 differs.")
    try:
        found = safetensors.numpy.load(content)
    except _UNREADABLE as exc:
        raise CheckpointError(f"its tensors cannot be read: {_short(exc)}.") from exc
    specs = document.tensors
    if sorted(found) != sorted(spec.key for spec in specs.values()):
        raise CheckpointError("its tensors are not those that its state names.")
    arrays = {}
    for name, spec in specs.items():
        array = found[spec.key]
        if (array.dtype, array.shape) != (spec.stored, spec.shape):
            raise CheckpointError(
                f"its tensor {name!r} is {array.dtype} {array.shape}, not {spec.dtype} {spec.shape}."
            )
        own = array if array.flags.writeable else array.copy()
        arrays[name] = own.view(spec.dtype)
    return arrays


def _short(exc: Exception) -> str:
    return f"{type(exc).__name__}: {str(exc)[:200].rstrip('.')}"
