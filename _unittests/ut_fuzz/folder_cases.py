"""Folders of checkpoints, damaged, foreign and failing, and a training that finds them."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import numpy as np
import onnx.parser

from onnxcustom import OnnxRegressor
from onnxcustom.training.callbacks import Checkpoint, EarlyStopping

__all__ = ["FOLDERS", "mutate_folder", "resume"]

MODEL = """<ir_version: 8, opset_import: ["": 17]>
g (float[N, 3] x) => (float[N, 1] y) <float[3, 2] w = {1, 0, 0, 1, 1, 1}, float[2, 1] v = {1, -1}> {
    h = MatMul(x, w)  r = Relu(h)  y = MatMul(r, v) }"""
# What a folder is made by: a rule with state and callbacks, one without.
FOLDERS: dict[str, dict[str, Any]] = {
    "adam": {"optimizer": "adam", "early": True},
    "sgd": {"optimizer": "sgd", "early": False},
}
VALUES = (
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**63,
    2**70,
    1.5,
    float("nan"),
    "",
    "x",
    [],
    {},
    [[]],
    {"tensor": "step/w"},
)
ERRORS = (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO, errno.EPERM, errno.ENOENT, errno.EMFILE)
CALLS = ("open", "mkdir", "rename", "scandir", "stat", "listdir", "fsync", "write", "ftruncate")

_Files = dict[str, bytes]


def _regressor(name: str, folder: str | os.PathLike[str], epochs: int) -> OnnxRegressor:
    words = FOLDERS[name]
    more = [EarlyStopping("val_loss", patience=50)] if words["early"] else []
    return OnnxRegressor(
        onnx.parser.parse_model(MODEL), optimizer=words["optimizer"], max_iter=epochs, batch_size=4,
        random_state=0, engine="onnx", validation_fraction=0.2 if more else None,
        callbacks=[*more, Checkpoint(folder, batches=2)],
    )  # fmt: skip


def _fit(regressor: OnnxRegressor) -> None:
    X = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    regressor.fit(X, X @ np.float32([1.0, 2.0, 3.0]))


@functools.cache
def _files(name: str) -> _Files:
    """What is in the folder of a training that was not ended."""
    with tempfile.TemporaryDirectory() as folder:
        _fit(_regressor(name, folder, 2))
        paths = sorted(p for p in Path(folder).rglob("*") if p.is_file())
        return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


# -- damage --------------------------------------------------------------------------------------------


def mutate_folder(name: str, random: Random) -> bytes:
    """The files of a damaged folder, as JSON; bytes are written as Latin-1."""
    files = dict(_files(name))
    for _ in range(random.choice((1, 1, 2, 3))):
        random.choice(MUTATIONS)(files, random)
    return json.dumps({k: v.decode("latin-1") for k, v in files.items()}).encode()


def _file(files: _Files, random: Random, end: str = "") -> str:
    return random.choice([n for n in files if n.endswith(end)] or ["00000009/state.json"])


def _change_bytes(files: _Files, random: Random) -> None:
    name = _file(files, random)
    made = bytearray(files.get(name, b"{}"))
    at = random.randrange(len(made) + 1)
    how = random.randrange(4)
    if how == 0:
        del made[at:]
    elif how == 1:
        made[at:at] = random.randbytes(random.choice((1, 8, 300)))
    elif how == 2:
        del made[at : at + random.choice((1, 8))]
    elif made:
        made[at % len(made)] ^= 1 << random.randrange(8)
    files[name] = bytes(made)


def _remove(files: _Files, random: Random) -> None:
    files.pop(_file(files, random), None)


def _exchange(files: _Files, random: Random) -> None:
    a, b = _file(files, random), _file(files, random)
    files[a], files[b] = files.get(b, b""), files.get(a, b"")


def _strangers(files: _Files, random: Random) -> None:
    """Names that look like checkpoints, and are none."""
    names = """00000099/state.json 99999999/x 999999999999/state.json 0000000a/y .tmp-1-00000000/z
        .old-1-ffffffff/z 00000098 .onnxcustom.lock é/x 00000003/more""".split()
    name = random.choice(names)
    if not any(n.startswith(f"{name}/") or name.startswith(f"{n}/") for n in files):
        files[name] = random.choice((b"", b"{}", b"\xff" * 20, *files.values()))


def _foreign(files: _Files, random: Random) -> None:
    """Checkpoints of a training with other settings: all there are, or some of them among ours."""
    other = random.choice([_files(name) for name in FOLDERS])
    if random.random() < 0.5:
        files.clear()
    files.update((name, other[name]) for name in other if random.random() < 0.7)


def _edit(files: _Files, random: Random) -> None:
    """Another state, with the checksum that belongs to it: written by somebody who knows the format."""
    name = _file(files, random, "state.json")
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        document = json.loads(files[name])
        place, key = _place(document if random.random() < 0.2 else document["state"], random)
        how = random.randrange(3)
        if how == 0:
            del place[key]
        else:
            place[key] = random.choice(VALUES) if how == 1 else _near(place[key], random)
        files[name] = _signed(document)


def _edit_tensors(files: _Files, random: Random) -> None:
    """Other numbers, NaN among them, with the checksum that belongs to them."""
    tensors = _file(files, random, "tensors.safetensors")
    state = tensors.replace("tensors.safetensors", "state.json")
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        made = bytearray(files[tensors])
        at = len(made) - 4 * random.randrange(1, 8)
        made[at : at + 4] = random.choice((b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff" * 4, b"\0" * 4))
        document = json.loads(files[state])
        document["file"] = {"size": len(made), "sha256": hashlib.sha256(made).hexdigest()}
        files[tensors], files[state] = bytes(made), _signed(document)


def _place(value: Any, random: Random) -> tuple[Any, Any]:
    """A container somewhere in a document, and a key of it."""
    while True:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = random.choice(keys)
        inner = value[key]
        if not isinstance(inner, (dict, list)) or not inner or random.random() < 0.2:
            return value, key
        value = inner


def _near(value: Any, random: Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return random.choice((value + 1, -value, value * 1000, float(value)))
    if isinstance(value, str):
        return random.choice((value[:-1], value + "x", value.upper()))
    return [*value, *value] if isinstance(value, list) else {**value, "more": 1}


def _signed(document: dict[str, Any]) -> bytes:
    document.pop("checksum", None)
    plain = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    document["checksum"] = hashlib.sha256(plain.encode()).hexdigest()
    return json.dumps(document).encode()


MUTATIONS: tuple[Callable[[_Files, Random], None], ...] = (
    _change_bytes, _remove, _exchange, _strangers, _foreign, _edit, _edit, _edit, _edit_tensors,
)  # fmt: skip


# -- what is done with it ------------------------------------------------------------------------------


def resume(name: str, content: bytes, random: Random) -> None:
    """Go on with the training that a folder is of."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "run"
        for file, text in json.loads(content).items():
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode("latin-1"))
        folder.mkdir(exist_ok=True)
        _links(folder, random)
        try:
            with _faults(folder, random):
                _fit(_regressor(name, folder, random.choice((2, 4))))
        finally:
            for path in (folder, *folder.rglob("*")):
                if path.is_dir() and not path.is_symlink():
                    path.chmod(0o700)


def _links(folder: Path, random: Random) -> None:
    """Links, pipes and folders where files are, and rights that are missing."""
    paths = [p for p in sorted(folder.rglob("*")) if random.random() < 0.05]
    for path in paths[:2]:
        how = random.randrange(4)
        with contextlib.suppress(OSError):
            if how == 3:
                path.chmod(random.choice((0, 0o400, 0o500)))
                continue
            if not path.is_dir():
                path.unlink()
            if how == 0:
                path.symlink_to(random.choice(("/dev/zero", "/etc/hostname", "nowhere", path.name, "..")))
            elif how == 1:
                os.mkfifo(path)
            else:
                path.mkdir()
    if random.random() < 0.1:
        folder.chmod(random.choice((0, 0o500)))


@contextlib.contextmanager
def _faults(folder: Path, random: Random) -> Iterator[None]:
    """In half of the cases a call of the system fails, once or from then on; or nothing can be written."""
    if random.random() < 0.5:
        yield
        return
    if random.random() < 0.2:
        with _read_only(folder, random.choice((errno.EROFS, errno.EACCES, errno.ENOSPC))):
            yield
        return
    name, number = random.choice(CALLS), random.choice(ERRORS)
    at, once = random.randrange(12), random.random() < 0.5
    original, count = getattr(os, name), 0

    def failing(path: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal count
        if isinstance(path, int) or str(path).startswith(str(folder)):
            count += 1
            if count > at and not (once and count > at + 1):
                raise OSError(number, os.strerror(number), str(path))
        return original(path, *args, **kwargs)

    with mock.patch.object(os, name, failing):
        yield


@contextlib.contextmanager
def _read_only(folder: Path, number: int) -> Iterator[None]:
    """Whatever would write to the folder fails, for root as well, to whom rights of files mean nothing."""

    def refusing(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **kwargs: Any) -> Any:
            reads = original is opened and not (args and args[0] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            if not reads and str(path).startswith(str(folder)):
                raise OSError(number, os.strerror(number), str(path))
            return original(path, *args, **kwargs)

        return call

    opened = os.open
    with contextlib.ExitStack() as stack:
        for name in ("open", "mkdir", "rename", "replace", "unlink", "rmdir"):
            stack.enter_context(mock.patch.object(os, name, refusing(getattr(os, name))))
        yield
