"""Ctrl-C and its like: what is done is kept, the command to go on is said, and it does."""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from onnxcustom import weights
from onnxcustom.__main__ import main
from onnxcustom.training.callbacks import Callback
from onnxcustom.training.checkpoints.checkpoint import CheckpointStore

TRAIN = ("train", "house.onnx", "house.parquet", "--target", "price", "--lr", "0.001")
signals = pytest.mark.skipif(os.name == "nt", reason="signals of this kind are those of POSIX")


def interrupted(command: list[str], number: int, *arguments: str, epochs: int = 1) -> tuple[int, str]:
    """Start a command, send a signal after some epochs; exit code and what it said on standard error."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # Where the tests run in the background the signal is ignored, and children would ignore it, too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        told = (line for line in process.stdout if line.startswith("epoch "))
        if len(list(itertools.islice(told, epochs))) < epochs:
            pytest.fail(process.communicate()[1])
        process.send_signal(number)
        _, said = process.communicate()
        return process.returncode, said


@signals
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_with_a_checkpoint(number: int, folder: Path, process, command) -> None:
    options = ("--checkpoint", "my run", "-o", "m.onnx", "--history", "h.csv", "--epochs")
    code, said = interrupted(process, number, *TRAIN, *options, "1000000")
    assert code == 130
    first, second = said.splitlines()
    assert first.startswith("Interrupted after ")
    assert "saved in my run" in first
    typed = shlex.split(second.strip())
    assert typed == ["onnxcustom", *TRAIN, *options, "1000000"]
    left = {p.name for p in folder.iterdir()}
    assert "m.onnx" not in left
    assert not [name for name in left if name.startswith("h.")]

    saved = CheckpointStore(folder / "my run").latest()
    assert saved is not None
    done = saved.state["n_iter"]
    typed[-1] = str(done + 3)
    result = command(*typed[1:])
    assert f"Going on from my run at epoch {done + 1}" in result.output or "is through" in result.output
    # The same bits as a training that nothing happened to.
    command(*TRAIN, "--epochs", str(done + 3), "-o", "straight.onnx")
    found, wanted = weights("m.onnx"), weights("straight.onnx")
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)
    assert len(Path("h.csv").read_text().splitlines()) == done + 4


@signals
def test_without_a_checkpoint(folder: Path, process) -> None:
    before = {p.name for p in folder.iterdir()}
    code, said = interrupted(process, signal.SIGINT, *TRAIN, "--epochs", "1000000", "--history", "h.json")
    assert code == 130
    assert said == "Interrupted. Nothing was saved: --checkpoint FOLDER keeps what is done.\n"
    assert {p.name for p in folder.iterdir()} == before


@signals
def test_killed_outright(folder: Path, process, command) -> None:
    options = ("--checkpoint", "run", "--checkpoint-every", "0.02", "-o", "m.onnx", "--epochs")
    code, _ = interrupted(process, signal.SIGKILL, *TRAIN, *options, "1000000", epochs=2000)
    assert code == -signal.SIGKILL
    saved = CheckpointStore(folder / "run").latest()
    assert saved is not None
    epochs = saved.state["n_iter"] + 2
    command(*TRAIN, *options, epochs)
    command(*TRAIN, "--epochs", epochs, "-o", "straight.onnx")
    for name, array in weights("straight.onnx").items():
        np.testing.assert_array_equal(weights("m.onnx")[name], array)


def test_before_anything_was_saved(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxcustom.cli import training

    class Stop(Callback):
        def check(self, run) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "PrintLog", Stop)
    result = CliRunner().invoke(main, [*TRAIN, "--checkpoint", "run"])
    assert result.exit_code == 130
    assert "before there was anything to save in run" in result.stderr
    assert not Path("house_trained.onnx").exists()


def test_while_reading(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxcustom.cli import training

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "whole", stop)
    result = CliRunner().invoke(main, TRAIN)
    assert result.exit_code == 130
    assert result.stderr.strip() == "Interrupted."


def test_other_options_are_another_training(folder: Path, command, fails) -> None:
    options = ("--checkpoint", "run", "-o", "m.onnx", "--force")
    command(*TRAIN, *options, "--epochs", 2)
    line = fails(*TRAIN, *options, "--epochs", 2, "--batch-size", "7")
    assert "are of another run" in line
    assert "'batch_size'" in line
    line = fails(*TRAIN, *options, "--epochs", 1)
    assert "beyond --epochs 1. Raise --epochs" in line
    assert "Going on from run at epoch 3" in command(*TRAIN, *options, "--epochs", 3).output
    again = command(*TRAIN, *options, "--epochs", 3).output
    assert "The training in run is through: 3 epochs are done" in again
    # What only looks at the training may change.
    command(*TRAIN, *options, "--epochs", 4, "--metric", "r2", "--history", "h.csv", "--quiet")


def test_a_checkpoint_of_something_else(folder: Path, fails) -> None:
    Path("file").write_text("")
    assert "exists and is no folder" in fails(*TRAIN, "--checkpoint", "file")
    assert "there is no folder" in fails(*TRAIN, "--checkpoint", "no/run")


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_a_bar_on_a_terminal_only(folder: Path, process) -> None:
    import fcntl
    import pty
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
    done = subprocess.Popen(
        [*process, *TRAIN, "--epochs", "30", "--early-stopping", "1", "--lr", "0.3"],
        stdout=subprocess.PIPE,
        stderr=slave,
    )
    os.close(slave)
    assert done.stdout is not None
    parts: list[bytes] = []

    def look() -> None:  # while it is drawn: what nobody reads fills the terminal, and the program waits
        with contextlib.suppress(OSError):
            while part := os.read(master, 65536):
                parts.append(part)

    looking = threading.Thread(target=look)
    looking.start()
    told = done.stdout.read().decode()
    looking.join()
    os.close(master)
    drawn = b"".join(parts)
    done.stdout.close()
    assert done.wait() == 0
    assert "epoch 1/30" in drawn.decode()
    assert "rows/s" in drawn.decode()
    assert "epoch" not in told.replace("epochs", "").replace("of epoch", "").replace("(epoch", "")
    assert "stopped: loss has not improved" in told
