"""Reading and writing models: every form a user may hold, checked, and files replaced atomically."""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
import tempfile
from pathlib import Path
from typing import IO, Any, NamedTuple, Union

import onnx
import onnx_ir as ir
from onnx.external_data_helper import uses_external_data

from onnxcustom.exceptions import InvalidModelError
from onnxcustom.graph.files.conversion import PROTOBUF_LIMIT, copied, represented, to_proto
from onnxcustom.graph.files.external import check_external, read_external
from onnxcustom.graph.files.limits import Contents, Limits, current_limits, data_size, survey
from onnxcustom.graph.files.outline import outline
from onnxcustom.graph.files.repairs import repaired, type_outputs
from onnxcustom.graph.files.wire import count_parts

__all__ = ["ModelLike", "load", "load_both", "save", "to_ir", "to_proto"]

ModelLike = Union[str, "os.PathLike[str]", bytes, onnx.ModelProto, ir.Model, IO[bytes]]

_LARGEST_FILE = 2**31
# Names, attributes and whatever else a model and a node have, at most.
_PARTS, _PARTS_OF_A_NODE = 10_000, 32

# Shapes and axes stay in the model file: shape inference does not read external data.
EXTERNAL_TENSOR_BYTES = 256

# Bytes of tensors from which a model is checked without them, whose sizes were looked at before.
_LARGE = 2**20


class _MissingModelError(InvalidModelError, FileNotFoundError):
    """No file of that name: also a FileNotFoundError, which is what callers of open() expect."""


# -- public functions ------------------------------------------------------------------------


def load(model: ModelLike, *, limits: Limits | None = None) -> onnx.ModelProto:
    """Load a model and check it.

    A model may come from anywhere: nothing in it is executed, no file outside of its folder is read, and
    what it claims is compared with what it holds and with `limits` before memory is taken.

    Parameters
    ----------
    model : str, path, bytes, file object, onnx.ModelProto or onnx_ir.Model
        The model in any form. External data is read from the folder of the file (or of the
        file object's name), and only from there.
    limits : Limits, default=None
        The largest model that is read; None: those of :func:`onnxcustom.graph.use_limits`, else the
        defaults of :class:`onnxcustom.graph.Limits`.

    Returns
    -------
    onnx.ModelProto
        The model, its external data included. A ModelProto that needs no loading is returned as
        it is, not copied.

    Raises
    ------
    InvalidModelError
        Not ONNX, empty, truncated, no such file, external data missing or outside the model's
        folder, tensors without the data that their shapes ask for, beyond the limits, or a graph that
        breaks the rules of the specification.

    Examples
    --------
    >>> import onnx.parser
    >>> model = onnx.parser.parse_model(
    ...     '<ir_version: 8, opset_import: ["": 18]> g (float[N] x) => (float[N] y) { y = Relu(x) }'
    ... )
    >>> load(model.SerializeToString()).graph.node[0].op_type
    'Relu'
    """
    read = _read(model, limits or current_limits())
    if read.external:
        assert read.folder is not None
        read_external(read.external, read.folder, read.label)
    return read.proto


def load_own(model: ModelLike) -> onnx.ModelProto:
    """Load a model that its owner may change afterwards: as :func:`load`, but always a copy."""
    proto = load(model)
    return copy.deepcopy(proto) if proto is model else proto


def to_ir(model: ModelLike, *, trusted: bool = False) -> ir.Model:
    """Turn a model into a private ``onnx_ir.Model`` that the caller may change.

    Parameters
    ----------
    model : str, path, bytes, file object, onnx.ModelProto or onnx_ir.Model
        The model in any form. External data stays on disk and is mapped when it is read.
    trusted : bool, default=False
        Whether it is a ModelProto that this library made, which is not checked as a stranger's is.

    Returns
    -------
    onnx_ir.Model
        A copy. The arrays behind its tensors may be shared with `model`, which is never changed
        through them; graphs, nodes, values and tensor names are its own.

    Raises
    ------
    InvalidModelError
        As for :func:`load`. A ``onnx_ir.Model`` is not checked.
    """
    if isinstance(model, ir.Model):
        return copied(model)
    if trusted and isinstance(model, onnx.ModelProto):
        return represented(model)
    read = _read(model, current_limits())
    return represented(read.proto, read.folder, read.label, bool(read.contents.sparse))


def load_both(model: ModelLike) -> tuple[onnx.ModelProto, ir.Model]:
    """What :func:`load_own` and :func:`to_ir` give, checked once: the second is made of the first.

    Large tensors are in the first only, which is not to be changed: the second reads them when it is asked.
    """
    read = _read(model, current_limits())
    if read.external:
        assert read.folder is not None
        read_external(read.external, read.folder, read.label)
    proto = copy.deepcopy(read.proto) if read.proto is model else read.proto
    return proto, represented(proto, None, read.label, bool(read.contents.sparse), kept=True)


def save(model: ModelLike, path: str | os.PathLike[str], external_data: bool | str | None = None) -> None:
    """Save a model; a failure leaves what was there before.

    Parameters
    ----------
    model : str, path, bytes, file object, onnx.ModelProto or onnx_ir.Model
        The model in any form; checked first.
    path : str or path
        File to write; an existing one is replaced.
    external_data : bool or str, default=None
        None writes the tensors to a second file ``<name>.data`` beside the model only if it would
        not fit into one protobuf file (2 GB); True always; a string gives the name of that
        second file, relative to the model's folder; False never.

    Raises
    ------
    InvalidModelError
        The model is invalid, or too large for one file and `external_data` is False, or the name
        of the second file leads out of the model's folder.
    FileNotFoundError, IsADirectoryError
        The folder does not exist, or `path` is one.

    Examples
    --------
    >>> import onnx.parser
    >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["": 18]>
    ... g (float[N] x) => (float[N] y) { y = Relu(x) }''')
    >>> save(model, "relu.onnx")
    >>> load("relu.onnx") == model
    True
    """
    target = Path(os.path.realpath(os.fspath(path)))
    if target.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file in it.")
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"Folder {target.parent} does not exist; create it before saving {target.name}."
        )
    data_name = _data_name(target, external_data)
    proto = load(model)
    if external_data is None and sum(map(data_size, survey(proto, "the model").tensors)) > PROTOBUF_LIMIT:
        external_data = True
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        part = Path(folder) / target.name
        pairs = [(part, target)]
        if external_data:
            ir.save(to_ir(proto), part, external_data=data_name, size_threshold_bytes=EXTERNAL_TENSOR_BYTES)
            if proto.training_info:  # which onnx_ir does not write
                written = onnx.ModelProto.FromString(part.read_bytes())
                written.training_info.extend(proto.training_info)
                part.write_bytes(_serialize(written, target))
            data = Path(folder) / data_name
            if data.exists():
                pairs.insert(0, (data, target.parent / data_name))
        else:
            part.write_bytes(_serialize(proto, target))
        _replace_all(pairs, Path(folder))


# -- reading ---------------------------------------------------------------------------------


class _Read(NamedTuple):
    """A checked model, its external data still outside.

    Attributes
    ----------
    proto : ModelProto
        The model.
    folder : str or None
        Where its external data is, if that is known.
    label : str
        What messages call it.
    contents : Contents
        Its tensors.
    external : list of TensorProto
        Those with external data.
    """

    proto: onnx.ModelProto
    folder: str | None
    label: str
    contents: Contents
    external: list[onnx.TensorProto]


def _read(model: ModelLike, limits: Limits) -> _Read:
    """The checked model."""
    label, folder, path = "the model", None, None
    source: bytes | str | None = None
    if isinstance(model, ir.Model):
        proto = to_proto(model)
    elif isinstance(model, onnx.ModelProto):
        proto = model
        if not proto.HasField("graph"):
            raise InvalidModelError("The ModelProto is empty: it holds no graph.")
    else:
        content, path, label = _content(model)
        proto = _parsed(content, label, limits)
        folder = None if path is None else os.path.dirname(os.path.abspath(path))
        source = content
    contents = survey(proto, label, limits)
    proto, changed = repaired(proto, own=proto is not model)
    if changed:
        contents = survey(proto, label, limits)
    external = check_external(contents.tensors, folder, label)
    if external:
        source = path
    _check(source, proto, contents, label, changed)
    type_outputs(proto, label)
    return _Read(proto, folder, label, contents, external)


def _parsed(content: bytes, label: str, limits: Limits) -> onnx.ModelProto:
    """What the bytes of a model say."""
    if not content:
        raise InvalidModelError(f"{label} is empty: an ONNX model was expected.")
    most = _PARTS + _PARTS_OF_A_NODE * limits.nodes
    # A part takes two bytes: what is short cannot have too many.
    if len(content) > 2 * most and count_parts(content, most) > most:
        raise InvalidModelError(
            f"{label} has more than {most:,} names, attributes and other parts: refused, Limits.nodes is "
            f"{limits.nodes:,} (see onnxcustom.graph.use_limits)."
        )
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
    except Exception as exc:
        raise InvalidModelError(
            f"{label} is not an ONNX model, or a truncated one ({len(content)} bytes): {exc}."
        ) from exc
    if not proto.HasField("graph"):
        raise InvalidModelError(f"{label} is not an ONNX model, or a truncated one: it holds no graph.")
    return proto


def _content(model: Any) -> tuple[bytes, str | None, str]:
    """Bytes of a model, the file they are from if known, a name for messages."""
    if isinstance(model, (bytes, bytearray, memoryview)):
        return bytes(model), None, "The model given as bytes"
    if isinstance(model, (str, os.PathLike)):
        path = os.fspath(model)
        try:
            if os.path.getsize(path) > _LARGEST_FILE:
                raise ValueError("no protobuf file is larger than 2 GB")
            return Path(path).read_bytes(), path, f"File {path!r}"
        except FileNotFoundError:
            raise _MissingModelError(f"There is no file {path!r}.") from None
        except (OSError, ValueError) as exc:
            what = "is a folder, not a model" if os.path.isdir(path) else f"cannot be read: {exc}"
            raise InvalidModelError(f"{path!r} {what}.") from exc
    if hasattr(model, "read"):
        content = model.read()
        if not isinstance(content, bytes):
            raise InvalidModelError(
                f"Reading {model!r} gave {type(content).__name__}, not bytes: open the file in mode 'rb'."
            )
        name = getattr(model, "name", None)
        path = name if isinstance(name, str) and os.path.exists(name) else None
        return content, path, f"File {name!r}" if path else "The file object"
    raise InvalidModelError(
        "A model is given as a path, bytes, a binary file object, an onnx.ModelProto or an "
        f"onnx_ir.Model, not as {type(model).__name__}."
        + (_ESTIMATOR if hasattr(model, "fit") and hasattr(model, "get_params") else "")
    )


_ESTIMATOR = (
    " onnxcustom.training.from_sklearn.from_sklearn(estimator, X) makes an estimator of a fitted one of "
    "scikit-learn."
)


def _check(
    source: bytes | str | None, proto: onnx.ModelProto, contents: Contents, label: str, changed: bool
) -> None:
    """Run onnx.checker on a model, through its bytes or its file if these are at hand and say the same."""
    size = sum(map(data_size, contents.tensors))
    if not isinstance(source, str) and size > PROTOBUF_LIMIT:
        return  # The checker reads serialized models only, and this one cannot be.
    shapeless = [info.name for info in (*proto.graph.input, *proto.graph.output) if _shapeless(info)]
    try:
        checked: onnx.ModelProto | bytes | str = source if source is not None else proto
        if not isinstance(source, str) and size > _LARGE:
            checked = proto = outline(proto)
        if shapeless or changed:
            # The checker wants a type and a shape where onnxruntime and the specification want none.
            checked = onnx.ModelProto()
            checked.CopyFrom(proto)
            for info in checked.graph.output:
                if info.type.WhichOneof("value") is None:
                    info.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
                    info.type.tensor_type.shape.SetInParent()
            for info in (*checked.graph.input, *checked.graph.output):
                if info.name in shapeless:
                    info.type.tensor_type.shape.SetInParent()
            for tensor in survey(checked, label).tensors:
                if uses_external_data(tensor):  # looked for beside a file, which this copy has none of
                    tensor.CopyFrom(onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=[0]))
        onnx.checker.check_model(checked)
    except Exception as exc:
        raise InvalidModelError(f"{label} is not a valid ONNX model: {exc}") from exc


def _shapeless(info: onnx.ValueInfoProto) -> bool:
    return info.type.HasField("tensor_type") and not info.type.tensor_type.HasField("shape")


# -- writing ---------------------------------------------------------------------------------


def _data_name(target: Path, external_data: bool | str | None) -> str:
    """Name of the second file, checked to be in the folder of the model and not the model itself."""
    name = external_data if isinstance(external_data, str) else f"{target.name}.data"
    if not name or Path(name).name != name or name in (".", "..", target.name):
        raise InvalidModelError(
            f"external_data={name!r}: a file name other than the model's, without folder, was expected."
        )
    return name


def _serialize(proto: onnx.ModelProto, target: Path) -> bytes:
    try:
        return proto.SerializeToString()
    except Exception as exc:
        raise InvalidModelError(
            f"The model does not fit into one file {target.name} (2 GB): save it with external_data=True."
        ) from exc


def _replace_all(pairs: list[tuple[Path, Path]], folder: Path) -> None:
    """Move each file to its place, all or none; `folder` is for the copies that undo needs."""
    done: list[tuple[Path | None, Path]] = []
    try:
        for i, (part, target) in enumerate(pairs):
            backup = None
            # The last move is atomic by itself: nothing after it can fail.
            if target.exists() and i + 1 < len(pairs):
                backup = folder / f"backup{i}"
                try:
                    os.link(target, backup)
                except OSError:
                    shutil.copy2(target, backup)
            os.replace(part, target)
            done.append((backup, target))
    except BaseException:
        for backup, target in reversed(done):
            with contextlib.suppress(OSError):
                if backup is None:
                    target.unlink()
                else:
                    os.replace(backup, target)
        raise
