"""A folder belongs to one run at a time: of this process, of its children, of others."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from onnxcustom.exceptions import CheckpointError
from onnxcustom.training.checkpoints import folder_lock
from onnxcustom.training.checkpoints.folder_lock import LOCK_FILE, locked_folder

# Takes the lock of the folder, says so, and waits for the end of its input.
HOLDER = """
import sys
from pathlib import Path
from onnxcustom.training.checkpoints.folder_lock import locked_folder
with locked_folder(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("end", ["kill", "exit"])
def test_another_process_is_named_and_keeps_the_folder_until_it_ends(tmp_path, end):
    with holder(tmp_path) as process:
        try:
            with (
                pytest.raises(CheckpointError, match=rf"Another process trains.*process {process.pid} on"),
                locked_folder(tmp_path),
            ):
                pass
            if end == "kill":
                process.kill()
            else:
                assert process.stdin is not None
                process.stdin.close()
            process.wait(60)
            with locked_folder(tmp_path) as locked:
                assert locked
        finally:
            process.kill()


def test_this_process_holds_it_once(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    with locked_folder(tmp_path), locked_folder(other):
        with (
            pytest.raises(CheckpointError, match="This process already trains into"),
            locked_folder(tmp_path),
        ):
            pass
        # The one who failed did not let go of it.
        with pytest.raises(CheckpointError, match="This process already"), locked_folder(tmp_path / "."):
            pass
        refused = subprocess.run(
            [sys.executable, "-c", HOLDER, str(tmp_path)],
            input="",
            capture_output=True,
            text=True,
        )
        assert f"(process {os.getpid()} on" in refused.stderr
    with locked_folder(tmp_path):
        pass


def test_threads_are_kept_apart(tmp_path):
    refused: list[CheckpointError] = []

    def take() -> None:
        try:
            with locked_folder(tmp_path):
                pass
        except CheckpointError as exc:
            refused.append(exc)

    with locked_folder(tmp_path):
        threads = [threading.Thread(target=take) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(refused) == 3
    take()
    assert len(refused) == 3


def test_an_error_lets_go_of_it(tmp_path):
    with pytest.raises(KeyError), locked_folder(tmp_path):
        raise KeyError
    with locked_folder(tmp_path):
        pass


# The parent holds the folder and is killed while a child that it has forked lives on.
FORKED = """
import os, sys, time
from pathlib import Path
from onnxcustom.exceptions import CheckpointError
from onnxcustom.training.checkpoints.folder_lock import locked_folder
folder = Path(sys.argv[1])
with locked_folder(folder):
    if os.fork() == 0:
        try:
            with locked_folder(folder):
                said = "taken"
        except CheckpointError as exc:
            said = str(exc)[:15]
        os.write(1, f"{os.getpid()} {said}\\n".encode())
    time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_that_was_forked_neither_has_it_nor_keeps_it(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", FORKED, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        child, said = process.stdout.readline().strip().split(" ", 1)
        process.kill()
        process.wait(60)
        try:
            assert said == "Another process"
            os.kill(int(child), 0)  # it lives on
            with locked_folder(tmp_path) as locked:
                assert locked
        finally:
            os.kill(int(child), signal.SIGKILL)


def test_a_lock_file_that_is_a_link_is_not_followed(tmp_path):
    target = tmp_path / "precious"
    target.write_text("mine")
    (tmp_path / LOCK_FILE).symlink_to(target)
    with pytest.raises(CheckpointError, match="is a link: remove it"), locked_folder(tmp_path):
        pass
    assert target.read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_a_lock_file_that_is_no_file(tmp_path):
    os.mkfifo(tmp_path / LOCK_FILE)
    with pytest.raises(CheckpointError, match="is no plain file: remove it"), locked_folder(tmp_path):
        pass


@pytest.mark.skipif(folder_lock.fcntl is None, reason="locks of Windows")
def test_a_file_system_without_locks_is_warned_about(tmp_path, monkeypatch, caplog):
    def lockf(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folder_lock.fcntl, "lockf", lockf)
    with caplog.at_level(logging.WARNING, "onnxcustom"), locked_folder(tmp_path) as locked:
        assert not locked
        with pytest.raises(CheckpointError, match="This process already"), locked_folder(tmp_path):
            pass
    assert "cannot be locked (No locks available)" in caplog.text


@pytest.mark.parametrize("content", [b"", b"\xff\0", b"process 1 on \x1b[2J", b"x" * 10**5])
def test_what_somebody_else_wrote_into_the_lock_file_is_not_printed(tmp_path, content):
    with holder(tmp_path) as process:
        try:
            (tmp_path / LOCK_FILE).write_bytes(content)
            with (
                pytest.raises(CheckpointError, match=r"Another process trains into '[^']*': wait"),
                locked_folder(tmp_path),
            ):
                pass
        finally:
            process.kill()
