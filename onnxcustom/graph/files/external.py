"""Tensors in files beside the model: only there, only whole, and never larger than they say."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import PureWindowsPath

from onnx import TensorProto
from onnx.external_data_helper import uses_external_data

from onnxcustom.exceptions import InvalidModelError
from onnxcustom.graph.files.limits import shown, size_of

__all__ = ["check_external", "read_external"]

_KEYS = ("location", "offset", "length")
# Reading a pipe would wait for ever; a link or another file may have taken the place of the one checked.
_FLAGS = os.O_RDONLY
for _flag in ("O_NONBLOCK", "O_NOFOLLOW", "O_BINARY"):
    _FLAGS |= getattr(os, _flag, 0)


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where the bytes of a tensor are.

    Attributes
    ----------
    path : str
        The file, links resolved.
    offset, nbytes : int
        Which part of it.
    """

    path: str
    offset: int
    nbytes: int


def check_external(tensors: Iterable[TensorProto], folder: str | None, label: str) -> list[TensorProto]:
    """Check where the tensors of a model are that are not in the model itself.

    Parameters
    ----------
    tensors : iterable of TensorProto
        Tensors of a model.
    folder : str or None
        The model's folder; None if it is unknown.
    label : str
        What messages call the model.

    Returns
    -------
    list of TensorProto
        Those with external data.

    Raises
    ------
    InvalidModelError
        Data is outside of the folder, missing, no plain file, shorter than a tensor claims, or of an unknown
        folder.
    """
    external = [t for t in tensors if uses_external_data(t)]
    if external and folder is None:
        raise InvalidModelError(
            f"Tensor {shown(external[0].name)} of {label} is in an external file, and it is unknown in which "
            "folder: give the path of the model."
        )
    sizes: dict[str, int] = {}
    for tensor in external:
        assert folder is not None
        place = _place(tensor, folder, label)
        if place.path not in sizes:
            sizes[place.path] = os.stat(place.path).st_size
        _check_extent(tensor, place, sizes[place.path], label)
    return external


def read_external(tensors: Sequence[TensorProto], folder: str, label: str) -> None:
    """Read external data into tensors that :func:`check_external` found, in place."""
    for tensor in tensors:
        place = _place(tensor, folder, label)
        try:
            descriptor = os.open(place.path, _FLAGS)
            with os.fdopen(descriptor, "rb") as file:
                found = os.fstat(descriptor)
                if not stat.S_ISREG(found.st_mode):
                    raise OSError("it is no plain file")
                _check_extent(tensor, place, found.st_size, label)
                file.seek(place.offset)
                data = file.read(place.nbytes)
        except OSError as exc:
            raise InvalidModelError(f"External data of {label} cannot be read: {exc}") from exc
        if len(data) != place.nbytes:
            raise InvalidModelError(f"External data of {label} cannot be read: the file became shorter.")
        tensor.raw_data = data
        tensor.ClearField("data_location")
        tensor.ClearField("external_data")


def _check_extent(tensor: TensorProto, place: _Place, size: int, label: str) -> None:
    if place.offset + place.nbytes > size:
        raise InvalidModelError(
            f"Tensor {shown(tensor.name)} of {label} cannot be read: bytes {place.offset:,} to "
            f"{place.offset + place.nbytes:,} of {shown(os.path.basename(place.path))}, which has {size:,}."
        )


def _place(tensor: TensorProto, folder: str, label: str) -> _Place:
    found: dict[str, str] = {}
    for entry in tensor.external_data:
        if entry.key in _KEYS and found.setdefault(entry.key, entry.value) != entry.value:
            raise InvalidModelError(f"Tensor {shown(tensor.name)} of {label} has two places.")
    nbytes = size_of(tensor.dims, tensor.data_type)
    offset = _number(tensor, found.get("offset", "0"), "offset", label)
    length = _number(tensor, found.get("length") or str(nbytes), "length", label)
    if length != nbytes:
        raise InvalidModelError(
            f"Tensor {shown(tensor.name)} of {label} cannot be read: it has {length:,} bytes in another "
            f"file, and its shape asks for {nbytes:,}."
        )
    return _Place(_inside(found.get("location", ""), folder, label), offset, nbytes)


def _number(tensor: TensorProto, text: str, what: str, label: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise InvalidModelError(
            f"Tensor {shown(tensor.name)} of {label} has {what} {shown(text)}: no such place in a file."
        )
    return int(text)


def _inside(location: str, folder: str, label: str) -> str:
    """The file that a location means, which is in the folder, links resolved."""
    root = os.path.realpath(folder)
    where = None
    if location and "\0" not in location:
        where = os.path.realpath(os.path.join(root, location))
    named = shown(location)
    absolute = os.path.isabs(location) or PureWindowsPath(location).anchor
    if where is None or absolute or os.path.commonpath([root, where]) != root:
        raise InvalidModelError(f"{label} refers to external data {named}, outside its own folder: refused.")
    try:
        mode = os.stat(where).st_mode
    except OSError:
        raise InvalidModelError(f"{label} refers to external data {named}, which is missing.") from None
    if not stat.S_ISREG(mode):
        raise InvalidModelError(f"{label} refers to external data {named}, which is no plain file.")
    return where
