"""Kill a training again and again and compare where it ends; run by test_resuming.py in a process of its own.

    python killed_training.py KILLS SEED

Forks children that train into one checkpoint folder, kills each after a random time, until one comes
through; then the next folder. Prints how many were killed, how many came through, and what those had that
did not end on the bits of a training without checkpoints that was left alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx.parser

from onnxcustom import OnnxRegressor
from onnxcustom.optim import Adam, Cosine
from onnxcustom.training.callbacks import Checkpoint, EarlyStopping, HistoryFile, Score

MODEL = """<ir_version: 8, opset_import: ["": 17]>
net (float[N,3] x) => (float[N,1] y)
<float[3,8] w0, float[8] b0, float[8,1] w1, float ratio = {0.25}> {
    a = MatMul(x, w0)
    b = Add(a, b0)
    c = Tanh(b)
    d = Dropout(c, ratio)
    y = MatMul(d, w1)
}"""


def model():
    made = onnx.parser.parse_model(MODEL)
    rng = np.random.default_rng(0)
    del made.graph.initializer[:]
    arrays = {
        "w0": rng.normal(size=(3, 8)),
        "b0": rng.normal(size=8),
        "w1": rng.normal(size=(8, 1)),
        "ratio": np.array(0.25),
    }
    for name, array in arrays.items():
        made.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    return made


def train(folder):
    """Train to the end; a digest of everything a user sees."""
    rng = np.random.default_rng(1)
    X = rng.normal(size=(120, 3)).astype(np.float32)
    y = (X @ [1.0, -2.0, 3.0]).astype(np.float32)
    callbacks = [EarlyStopping(patience=30), Score("r2", every=2), HistoryFile(folder / "history.csv")]
    if folder.name != "alone":
        callbacks.append(Checkpoint(folder / "checkpoints", batches=1, keep=2))
    reg = OnnxRegressor(
        model(),
        optimizer=Adam(Cosine(0.05, total=200), accumulate=2),
        batch_size=8,
        max_iter=12,
        random_state=7,
        dropout="on",
        validation_fraction=0.2,
        callbacks=callbacks,
        threads=1,
    ).fit(X, y)
    digest = hashlib.sha256()
    for name, array in reg.weights_.items():
        digest.update(name.encode() + array.tobytes())
    for states in reg.step_.state().values():
        for array in states.values():
            digest.update(array.tobytes())
    digest.update(repr((reg.history_, reg.n_iter_, reg.step_.iteration, reg.stop_reason_)).encode())
    return digest.hexdigest()


def in_child(folder, after=None):
    """Train in a child, killed after so many seconds; what it wrote if it came through."""
    result = folder / "result.txt"
    child = os.fork()
    if child == 0:
        try:
            result.write_text(train(folder))
        except BaseException as exc:
            result.write_text(f"{type(exc).__name__}: {exc}")
        os._exit(0)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return None if os.WIFSIGNALED(status) else result.read_text()


def main():
    kills, rng = int(sys.argv[1]), random.Random(int(sys.argv[2]))
    killed, found = 0, []
    with tempfile.TemporaryDirectory() as temporary:
        alone = Path(temporary) / "alone"
        alone.mkdir()
        wanted = in_child(alone)
        whole = Path(temporary) / "whole"
        whole.mkdir()
        begin = time.monotonic()
        found.append(in_child(whole))
        limit = time.monotonic() - begin
        number = 0
        while killed < kills and found[-1] == wanted:
            folder = Path(temporary) / f"run{number}"
            folder.mkdir()
            number += 1
            result = None
            while result is None:
                after = rng.uniform(0, limit) if killed < kills else None
                result = in_child(folder, after)
                killed += result is None
            found.append(result)
    others = [result for result in found if result != wanted]
    print(json.dumps({"killed": killed, "through": len(found), "others": others}))


if __name__ == "__main__":
    main()
