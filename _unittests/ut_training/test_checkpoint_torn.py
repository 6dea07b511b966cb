"""Checkpoints that are not what was written: the one before, or an error that says what is wrong."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcustom.exceptions import CheckpointError
from onnxcustom.training.checkpoints import checkpoint, checkpoint_format

from .checkpoint_cases import FILES, filled, is_checkpoint, state, tensors


def rewritten(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the JSON of a checkpoint, and its checksum with it."""
    document = json.loads((path / "state.json").read_text())
    change(document)
    document.pop("checksum")
    document["checksum"] = checkpoint_format._checksum(document)
    (path / "state.json").write_text(json.dumps(document))


def truncate(name: str, size: int) -> Callable[[Path], Any]:
    return lambda path: os.truncate(path / name, size)


def flip(name: str, position: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        data = bytearray((path / name).read_bytes())
        data[position] ^= 0x10
        (path / name).write_bytes(data)

    return change


def link(name: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        outside = path.parent.parent / f"outside {path.name}"
        os.rename(path / name, outside)
        (path / name).symlink_to(outside)

    return change


def remove(name: str) -> Callable[[Path], None]:
    return lambda path: (path / name).unlink()


def replace(name: str, make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        (path / name).unlink()
        make(path / name)

    return change


def oversized(path: Path) -> None:
    with open(path / "state.json", "r+b") as file:
        file.truncate((1 << 26) + 1)  # a hole in the file takes no room


TORN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no state": (remove("state.json"), "No such file or directory.*state.json"),
    "no tensors": (remove("tensors.safetensors"), "No such file or directory.*tensors.safetensors"),
    "nothing": (lambda path: [remove(name)(path) for name in FILES], "No such file"),
    "empty state": (truncate("state.json", 0), "its state is torn or foreign: JSONDecodeError"),
    "half a state": (truncate("state.json", 100), "its state is torn or foreign"),
    "empty tensors": (truncate("tensors.safetensors", 0), r"tensors.safetensors has 0 bytes, not \d+"),
    "half the tensors": (truncate("tensors.safetensors", 50), "tensors.safetensors has 50 bytes"),
    "longer tensors": (
        truncate("tensors.safetensors", 10**12),
        "tensors.safetensors has 1000000000000 bytes",
    ),
    "a bit of the tensors": (flip("tensors.safetensors", -9), "tensors have changed.*SHA-256 differs"),
    "a bit of the header": (flip("tensors.safetensors", 0), "tensors have changed.*SHA-256 differs"),
    "a bit of the state": (flip("state.json", 60), "its state"),
    "a large state": (oversized, "state.json has 67108865 bytes, not at most 67108864"),
    "a link to a state": (link("state.json"), "state.json is a symbolic link"),
    "a link to tensors": (link("tensors.safetensors"), "tensors.safetensors is a symbolic link"),
    "a folder": (replace("state.json", Path.mkdir), "Is a directory|is no plain file"),
    "older": (
        lambda path: rewritten(path, lambda d: d.update(version=0)),
        "version 0; this onnxcustom reads",
    ),
    "foreign": (lambda path: (path / "state.json").write_text('{"format": "pt"}'), "not of the format"),
    "pickle": (lambda path: (path / "state.json").write_bytes(pickle.dumps({})), "torn or foreign"),
}
if hasattr(os, "mkfifo"):
    TORN["a pipe"] = (replace("tensors.safetensors", os.mkfifo), "tensors.safetensors is no plain file")


@pytest.mark.parametrize(("change", "message"), TORN.values(), ids=TORN)
def test_a_torn_checkpoint_is_passed_over_with_a_warning(tmp_path, caplog, change, message):
    store = filled(tmp_path / "run", 2)
    change(store.paths()[-1])
    with caplog.at_level(logging.WARNING, "onnxcustom"):
        assert is_checkpoint(store.latest(), 1)
    assert len(caplog.messages) == 1
    assert re.search(rf"(?s)00000002 cannot be read and is passed over: .*({message})", caplog.text)
    # Going on from the one before, the next has a number of its own.
    assert store.save(tensors(3), state(3)).name == "00000003"
    assert is_checkpoint(store.latest(), 3)


@pytest.mark.parametrize(("change", "message"), TORN.values(), ids=TORN)
def test_no_silent_restart(tmp_path, change, message):
    store = filled(tmp_path / "run", 2)
    for path in store.paths():
        change(path)
    with pytest.raises(
        CheckpointError, match=rf"(?s)None of the checkpoints.*00000002: .*({message})"
    ) as caught:
        store.latest()
    assert "00000001: " in str(caught.value)
    assert "move them away to start anew" in str(caught.value)


def test_files_of_two_checkpoints_exchanged(tmp_path):
    store = filled(tmp_path, 3)
    one, two, three = store.paths()
    shutil.copy(two / "tensors.safetensors", three)
    assert is_checkpoint(store.latest(), 2)
    shutil.copy(one / "state.json", two)
    assert is_checkpoint(store.latest(), 1)


def test_a_newer_checkpoint_is_not_passed_over(tmp_path):
    store = filled(tmp_path, 2)
    rewritten(store.paths()[-1], lambda d: d.update(version=7, library="3.2.1"))
    with pytest.raises(CheckpointError, match=r"00000002: it was written by onnxcustom 3\.2\.1 in version 7"):
        store.latest()


def test_a_checkpoint_larger_than_memory(tmp_path, monkeypatch):
    store = filled(tmp_path, 2)
    original = checkpoint.decoded_tensors

    def decoded(data: bytes, document: Any) -> Any:
        if document.state["epoch"] == 2:
            raise MemoryError
        return original(data, document)

    monkeypatch.setattr(checkpoint, "decoded_tensors", decoded)
    assert is_checkpoint(store.latest(), 1)


def test_files_that_may_not_be_read(tmp_path):
    if not hasattr(os, "geteuid") or os.geteuid() == 0:
        pytest.skip("everything may be read here")
    store = filled(tmp_path, 2)
    (store.paths()[-1] / "state.json").chmod(0)
    assert is_checkpoint(store.latest(), 1)


# -- thousands of changes ---------------------------------------------------------------------------------


class Bench:
    """Two checkpoints, the newer of which is changed, and put right again."""

    def __init__(self, folder: Path) -> None:
        self.store = filled(folder, 2)
        self.folder = folder
        self.whole = {
            path.name: {name: (path / name).read_bytes() for name in FILES} for path in self.store.paths()
        }

    def put(self, files: dict[str, bytes]) -> Any:
        path = self.folder / "00000002"
        for name in FILES:
            (path / name).write_bytes(files[name])
        return self.store.latest()


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    return Bench(tmp_path_factory.mktemp("fuzz"))


@st.composite
def mutations(draw: Any) -> list[tuple[str, str, float, bytes]]:
    """Some changes: file, kind, place in [0, 1), bytes."""
    kinds = st.sampled_from(["flip", "cut", "insert", "overwrite", "delete", "repeat"])
    places = st.floats(0, 1, exclude_max=True)
    change = st.tuples(st.sampled_from(FILES), kinds, places, st.binary(min_size=1, max_size=8))
    return draw(st.lists(change, min_size=1, max_size=3))


def mutated(data: bytes, kind: str, place: float, new: bytes) -> bytes:
    i = int(place * len(data))
    if kind == "flip" and data:
        return data[:i] + bytes([data[i] ^ (1 << new[0] % 8)]) + data[i + 1 :]
    if kind == "cut":
        return data[:i]
    if kind == "insert":
        return data[:i] + new + data[i:]
    if kind == "overwrite":
        return data[:i] + new + data[i + len(new) :]
    if kind == "delete":
        return data[:i] + data[i + len(new) :]
    return data[:i] + data[i:] * (1 + new[0] % 3)


@given(mutations())
@settings(max_examples=300)
def test_bytes_that_were_changed(bench, changes):
    files = dict(bench.whole["00000002"])
    for name, kind, place, new in changes:
        files[name] = mutated(files[name], kind, place, new)
    logging.disable(logging.WARNING)
    try:
        saved = bench.put(files)
    finally:
        logging.disable(logging.NOTSET)
    assert is_checkpoint(saved, 2) or is_checkpoint(saved, 1)
    if files == bench.whole["00000002"]:
        assert is_checkpoint(saved, 2)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10) | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in plain data."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(p for k, v in inner for p in places(v, (*path, k)))]


def edited(document: Any, path: tuple[Any, ...], kind: str, new: Any) -> Any:
    """Plain data with one change."""
    if not path:
        return new
    *outer, last = path
    inner = document
    for key in outer:
        inner = inner[key]
    if kind == "delete":
        del inner[last]
    elif kind == "rename" and isinstance(inner, dict):
        inner[str(new)] = inner.pop(last)
    else:
        inner[last] = new
    return document


@given(st.data())
@settings(max_examples=300)
def test_documents_that_were_edited(bench, data):
    """With the checksum put right, or not: only errors of ours, or a checkpoint."""
    files = dict(bench.whole["00000002"])
    document = json.loads(files["state.json"])
    for _ in range(data.draw(st.integers(1, 2))):
        if not isinstance(document, dict):
            break
        path = data.draw(st.sampled_from(places(document)))
        document = edited(
            document, path, data.draw(st.sampled_from(["put", "delete", "rename"])), data.draw(JSON)
        )
    right = data.draw(st.booleans()) and isinstance(document, dict)
    if right:
        document.pop("checksum", None)
        document["checksum"] = checkpoint_format._checksum(document)
    files["state.json"] = json.dumps(document).encode()
    logging.disable(logging.WARNING)
    try:
        saved = bench.put(files)
    except CheckpointError:
        assert right
        assert document["version"] > 1
        return
    finally:
        logging.disable(logging.NOTSET)
    if not right:
        assert is_checkpoint(saved, 2) or is_checkpoint(saved, 1)
    assert isinstance(saved.state, dict)
    assert all(isinstance(array, np.ndarray) for array in saved.tensors.values())
