"""Checkpoints in a folder: whole or not at all, whatever is done to the process and the disk."""

from __future__ import annotations

import copy
import errno
import logging
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxcustom.exceptions import CheckpointError
from onnxcustom.training.checkpoints import checkpoint
from onnxcustom.training.checkpoints.checkpoint import CheckpointStore

from .checkpoint_cases import FILES, content, filled, is_checkpoint, names, state, tensors

# -- the plain course of things --------------------------------------------------------------------------


def test_what_is_saved_is_read(tmp_path):
    store = CheckpointStore(tmp_path / "a" / "b")
    assert store.latest() is None
    assert store.paths() == []
    assert not (tmp_path / "a").exists()
    path = store.save(tensors(1), state(1))
    assert path == tmp_path / "a" / "b" / "00000001"
    assert sorted(os.listdir(path)) == FILES
    saved = store.latest()
    assert is_checkpoint(saved, 1)
    assert saved.path == path
    assert is_checkpoint(CheckpointStore(str(tmp_path / "a" / "b")).latest(), 1)


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_the_last_ones_are_kept(tmp_path, keep):
    store = filled(tmp_path, 4, keep=keep)
    kept = range(max(1, 5 - keep), 5)
    assert store.paths() == [tmp_path / f"{k:08d}" for k in kept]
    assert is_checkpoint(store.latest(), 4)
    assert names(tmp_path) == {f"{k:08d}" for k in kept}


def test_numbers_go_on_and_may_grow(tmp_path):
    store = filled(tmp_path, 1, keep=2)
    os.rename(tmp_path / "00000001", tmp_path / "99999999")
    assert store.save(tensors(2), state(2)).name == "100000000"
    assert [path.name for path in store.paths()] == ["99999999", "100000000"]
    assert is_checkpoint(store.latest(), 2)


def test_numbers_that_are_used_up(tmp_path):
    (tmp_path / "999999999999").mkdir()
    with pytest.raises(CheckpointError, match="no number left"):
        CheckpointStore(tmp_path).save({}, {})
    assert names(tmp_path) == {"999999999999"}


def test_an_empty_checkpoint(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save({}, {})
    saved = store.latest()
    assert (saved.tensors, saved.state) == ({}, {})


def test_what_is_handed_out_may_be_changed(tmp_path):
    store = filled(tmp_path, 1)
    first = store.latest()
    first.tensors["weights/w"] += 1
    first.state["epoch"] = 9
    assert is_checkpoint(store.latest(), 1)


@pytest.mark.parametrize(
    ("keep", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (None, TypeError)]
)
def test_a_bad_number_to_keep(tmp_path, keep, error):
    with pytest.raises(error, match="keep must be"):
        CheckpointStore(tmp_path, keep)


def test_a_path_that_is_a_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(CheckpointError, match="is a file: checkpoints go into a folder"):
        CheckpointStore(path)
    store = CheckpointStore(tmp_path / "later")
    (tmp_path / "later").write_text("mine")
    for call in (store.latest, store.paths, lambda: store.save({}, {}), lambda: store.lock().__enter__()):
        with pytest.raises(CheckpointError, match="is a file"):
            call()
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("arrays", "values", "error", "message"),
    [
        ({"w": np.array([None])}, {}, TypeError, "'w' has dtype object"),
        ({}, {"loss": {1, 2}}, TypeError, r"state\['loss'\]"),
        ({}, {"text": "x" * 100}, ValueError, "more than 50"),
    ],
)
def test_what_cannot_be_written_leaves_no_trace(tmp_path, monkeypatch, arrays, values, error, message):
    if message == "more than 50":
        monkeypatch.setattr(checkpoint, "_LARGEST_JSON", 50)
    with pytest.raises(error, match=message):
        CheckpointStore(tmp_path / "new").save(arrays, values)
    assert os.listdir(tmp_path) == []


def test_copies_and_pickles(tmp_path):
    store = filled(tmp_path, 1, keep=7)
    with store.lock():
        for other in (copy.deepcopy(store), pickle.loads(pickle.dumps(store))):
            assert repr(other) == repr(store) == f"CheckpointStore({str(tmp_path)!r}, keep=7)"
            assert is_checkpoint(other.latest(), 1)
            with pytest.raises(CheckpointError, match="This process already"):
                other.save({}, {})


# -- one run at a time -----------------------------------------------------------------------------------


def test_a_run_that_holds_the_folder_is_the_only_one_that_writes(tmp_path):
    store, other = CheckpointStore(tmp_path), CheckpointStore(tmp_path)
    with store.lock():
        store.save(tensors(1), state(1))
        with pytest.raises(CheckpointError, match="This process already trains into"):
            other.save(tensors(2), state(2))
        with pytest.raises(CheckpointError, match="This process already trains into"), store.lock():
            pass
        store.save(tensors(3), state(3))
        assert is_checkpoint(other.latest(), 3)  # reading is everyone's
    other.save(tensors(4), state(4))
    assert is_checkpoint(store.latest(), 4)


def test_threads_that_share_a_store_wait_for_each_other(tmp_path):
    store, failed = CheckpointStore(tmp_path, keep=100), []

    def save() -> None:
        try:
            for _ in range(5):
                store.save(tensors(1), state(1))
        except Exception as exc:
            failed.append(exc)

    threads = [threading.Thread(target=save) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(store.paths()) == 20


def test_reading_while_another_process_removes(tmp_path, monkeypatch):
    """Between the look at the folder and that at a checkpoint, it is replaced by newer ones."""
    store = filled(tmp_path, 2, keep=2)
    read, calls = checkpoint._read, []

    def late(path: Path) -> Any:
        if not calls:
            for k in (3, 4, 5):
                store.save(tensors(k), state(k))
        calls.append(path.name)
        return read(path)

    monkeypatch.setattr(checkpoint, "_read", late)
    assert is_checkpoint(CheckpointStore(tmp_path).latest(), 5)
    assert calls == ["00000002", "00000005"]


# -- a disk that takes no more -----------------------------------------------------------------------------


def failing(monkeypatch: pytest.MonkeyPatch, name: str, at: int, error: int = errno.ENOSPC) -> list[int]:
    """Let the call number `at` of a function of the system fail."""
    original, calls = getattr(os, name), []

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == at:
            raise OSError(error, os.strerror(error))
        return original(*args, **kwargs)

    monkeypatch.setattr(checkpoint.os, name, call)
    return calls


# How often each function is called for one checkpoint, with an old one to remove and the folder held; what
# removes it opens folders, too.
CALLS = {"mkdir": 1, "open": 4, "write": 2, "fsync": 4, "rename": 2}


def test_how_often_the_system_is_called(tmp_path, monkeypatch):
    store = filled(tmp_path, 1, keep=1)
    with store.lock():
        calls = {name: failing(monkeypatch, name, 0) for name in CALLS if name != "open"}
        store.save(tensors(2), state(2))
    assert {name: len(made) for name, made in calls.items()} == {
        k: n for k, n in CALLS.items() if k != "open"
    }


@pytest.mark.parametrize(("name", "at"), [(name, k + 1) for name, n in CALLS.items() for k in range(n)])
def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch, name, at):
    store = filled(tmp_path, 2, keep=1)
    with store.lock():
        before = content(tmp_path)
        with monkeypatch.context() as patch:
            failing(patch, name, at)
            if (name, at) == ("rename", 2):  # the new one is there, the old one only stays
                store.save(tensors(3), state(3))
            else:
                with pytest.raises(OSError, match="No space left on device"):
                    store.save(tensors(3), state(3))
        assert not [n for n in names(tmp_path) if n.startswith(".")]
        # The last call is for the name: the new one is there, though perhaps not on the disk.
        if (name, at) in {("rename", 2), ("fsync", 4), ("open", 4)}:
            assert is_checkpoint(store.latest(), 3)
        else:
            assert content(tmp_path) == before
            assert is_checkpoint(store.latest(), 2)
        store.save(tensors(4), state(4))
        assert is_checkpoint(store.latest(), 4)
        assert len(names(tmp_path)) == 1


@pytest.mark.parametrize("sizes", [[1], [7, 1, 100]])
def test_files_written_bit_by_bit(tmp_path, monkeypatch, sizes):
    original, turn = os.write, iter(range(10**6))
    monkeypatch.setattr(
        checkpoint.os, "write", lambda file, data: original(file, data[: sizes[next(turn) % len(sizes)]])
    )
    store = filled(tmp_path, 1)
    assert is_checkpoint(store.latest(), 1)


@pytest.mark.parametrize("after", [0, 1])
def test_a_disk_that_fills_up_within_a_file(tmp_path, monkeypatch, after):
    store = filled(tmp_path, 1)
    original, calls = os.write, []

    def write(file: int, data: Any) -> int:
        calls.append(1)
        if len(calls) > 2 * after + 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(file, data[: len(data) // 2 + 1])

    monkeypatch.setattr(checkpoint.os, "write", write)
    with pytest.raises(OSError, match="No space left"), store.lock():
        store.save(tensors(2), state(2))
    assert names(tmp_path) == {"00000001"}
    assert is_checkpoint(store.latest(), 1)


def test_an_interrupt_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    store = filled(tmp_path, 1)

    def fsync(file: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.os, "fsync", fsync)
    with pytest.raises(KeyboardInterrupt):
        store.save(tensors(2), state(2))
    assert names(tmp_path) == {"00000001"}


def test_an_old_checkpoint_that_cannot_be_removed_is_no_error(tmp_path, monkeypatch, caplog):
    store = filled(tmp_path, 1, keep=1)

    def rmtree(path: Any, ignore_errors: bool = False) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(checkpoint.shutil, "rmtree", rmtree)
    with caplog.at_level(logging.WARNING, "onnxcustom"):
        store.save(tensors(2), state(2))
    assert "00000001 could not be removed: [Errno 13] Permission denied" in caplog.text
    monkeypatch.undo()
    assert [path.name for path in store.paths()] == ["00000002"]
    store.save(tensors(3), state(3))  # what was left under a temporary name goes now
    assert names(tmp_path) == {"00000003"}


# -- leftovers, foreign files --------------------------------------------------------------------------------

LEFT = [".tmp-1-0123abcd", ".old-99999-ffffffff"]
FOREIGN = [
    ".tmp-1-0123abc",
    ".tmp-x-0123abcd",
    "tmp-1-0123abcd",
    ".tmp-1-0123abcd.bak",
    "notes",
    "1",
    "0000001",
]
NO_NUMBERS = ["0000000001", "00000001.bak", "٠٠٠٠٠٠٠١", "1234567890123"]


def test_leftovers_of_killed_writers_go_and_foreign_ones_stay(tmp_path):
    store = filled(tmp_path, 1)
    for name in [*LEFT, *FOREIGN, *NO_NUMBERS]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "tensors.safetensors").write_text("half")
    (tmp_path / ".tmp-2-0123abcd").write_text("a file")
    (tmp_path / ".tmp-3-0123abcd").symlink_to(tmp_path / "notes")
    assert is_checkpoint(store.latest(), 1)
    assert names(tmp_path) >= set(LEFT)  # reading changes nothing
    store.save(tensors(2), state(2))
    kept = {*FOREIGN, *NO_NUMBERS, ".tmp-2-0123abcd", ".tmp-3-0123abcd", "00000001", "00000002"}
    assert names(tmp_path) == kept
    for name in [*FOREIGN, *NO_NUMBERS]:
        assert (tmp_path / name / "tensors.safetensors").read_text() == "half"


def test_without_locks_only_old_leftovers_go(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def lockf(*args: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    for name in LEFT:
        (tmp_path / name).mkdir()
    os.utime(tmp_path / LEFT[0], (0, 0))
    filled(tmp_path, 1)
    assert names(tmp_path) == {LEFT[1], "00000001"}


def test_foreign_things_that_are_called_like_checkpoints(tmp_path):
    (tmp_path / "00000003").write_text("a file")
    (tmp_path / "00000004").symlink_to(tmp_path)
    photos = tmp_path / "00000001"
    photos.mkdir()
    (photos / "state.json").write_text("{}")
    (photos / "me.png").write_text("precious")
    store = CheckpointStore(tmp_path, keep=1)
    assert store.paths() == [photos]
    with pytest.raises(
        CheckpointError, match=r"None of the checkpoints.*00000001: its state is not of the format"
    ):
        store.latest()
    for k in (5, 6):
        assert store.save(tensors(k), state(k)).name == f"{k:08d}"
    assert names(tmp_path) == {"00000001", "00000003", "00000004", "00000006"}
    assert (photos / "me.png").read_text() == "precious"


# -- killed at any moment -----------------------------------------------------------------------------------

# A process that has loaded the library starts writers, kills each at some moment, and looks at what it left.
KILLS = """
import os, random, signal, sys, time
import numpy as np
from onnxcustom.training.checkpoints.checkpoint import CheckpointStore

folder, kills = sys.argv[1], int(sys.argv[2])

def write(pipe, first):
    store = CheckpointStore(folder, keep=2)
    with store.lock():
        for n in range(first, 10**9):
            size = 1 + n * 7919 % 3000
            arrays = {"w": np.full(size, n), "v": np.full((2, size), n, np.float32)}
            store.save(arrays, {"n": n, "size": size})
            os.write(pipe, n.to_bytes(8, "little"))

rng = random.Random(0)
known = left = 0
for _ in range(kills):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            write(writer, known + 1)
        finally:
            os._exit(1)
    os.close(writer)
    first = os.read(reader, 8)
    if rng.random() < 0.9:
        time.sleep(rng.random() * 0.02)
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status), status
    while data := os.read(reader, 8):
        first = data
    os.close(reader)
    acknowledged = int.from_bytes(first, "little")
    left += any(name.startswith((".tmp-", ".old-")) for name in os.listdir(folder))
    store = CheckpointStore(folder, keep=2)
    saved = store.latest()
    n = saved.state["n"]
    assert n in (acknowledged, acknowledged + 1), (n, acknowledged)
    assert saved.state["size"] == saved.tensors["w"].size
    assert (saved.tensors["w"] == n).all() and (saved.tensors["v"] == n).all()
    assert 2 <= len(store.paths()) <= 3 or n == 1
    known = n
CheckpointStore(folder, keep=2).save({}, {"n": known + 1})
assert not any(name.startswith((".tmp-", ".old-")) for name in os.listdir(folder)), os.listdir(folder)
print(kills, known, left)
"""


def script(text: str, *arguments: str) -> str:
    """What a script prints that must succeed."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", text, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_killed_at_any_moment(tmp_path):
    kills, saved, left = map(int, script(KILLS, str(tmp_path), "50").split())
    assert kills == 50
    assert saved >= 50
    assert left > 0  # or none of the kills fell into a save


# A store that holds the folder is copied into a process that is forked.
FORKED = """
import os, sys
from onnxcustom.exceptions import CheckpointError
from onnxcustom.training.checkpoints.checkpoint import CheckpointStore
store = CheckpointStore(sys.argv[1])
with store.lock():
    store.save({}, {"n": 1})
    if os.fork() == 0:
        try:
            store.save({}, {"n": 2})
        except CheckpointError as exc:
            print(str(exc)[:22], store.latest().state["n"], flush=True)
        os._exit(0)
    os.wait()
    store.save({}, {"n": 3})
print(store.latest().state["n"])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_copy_in_a_forked_process_does_not_write(tmp_path):
    assert script(FORKED, str(tmp_path)) == "Another process trains 1\n3\n"


# The system itself refuses to let a file grow.
LIMITED = """
import resource, sys
import numpy as np
from onnxcustom.training.checkpoints.checkpoint import CheckpointStore
store = CheckpointStore(sys.argv[1])
store.save({"w": np.ones(10)}, {"n": 1})
resource.setrlimit(resource.RLIMIT_FSIZE, (10000, resource.RLIM_INFINITY))
for tensors, state in (({"w": np.ones(10000)}, {"n": 2}), ({}, {"n": 2, "text": "x" * 10000})):
    try:
        store.save(tensors, state)
    except OSError as exc:
        print(exc.strerror)
store.save({"w": np.ones(20)}, {"n": 3})
saved = store.latest()
print(saved.state["n"], len(saved.tensors["w"]))
"""


@pytest.mark.skipif(os.name == "nt", reason="no limits")
def test_a_limit_on_the_size_of_files(tmp_path):
    assert script(LIMITED, str(tmp_path)) == "File too large\nFile too large\n3 20\n"
    assert names(tmp_path) == {"00000001", "00000002"}
