"""One model of the gallery, tried in a process of its own: made-up rows, ten steps, what was left out.

python -m benchmarks.gallery_trial model.onnx result.json '{"sizes": {"input": [2, 512]}}'
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxcustom import TrainingStep, gradient_report, load, replace_weights
from onnxcustom.exceptions import OnnxCustomError
from onnxcustom.graph import Prepared
from onnxcustom.graph.shapes.batch_axis import BatchAxes
from onnxcustom.runtime import create_session

from .gallery import GIGABYTES, RIGHT

STEPS, TURNS = 10, 7
ROWS = 2
# Sizes of open dimensions, tried in this order until the model runs.
SIZES = (32, 64, 16, 48, 8, 128, 96, 224, 4, 1, 320, 512, 1280, 4000, 16000)
# Predictions that vary less are as good as constant.
FLAT = 0.05
# A rate so large that what the weights were is below the rounding of what they become.
LARGE = 2.0**20
# Inputs that are one number, known by what they are called.
MIXED = {"sr": 16000, "sampling_rate": 16000, "fmin": 46.875, "fmax": 2093.75}

Feeds = dict[str, np.ndarray]


def trial(path: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the page says of a file.

    Parameters
    ----------
    path : Path
        The model.
    options : mapping
        ``sizes``: shapes of inputs by name, where what is made up does not fit; ``remedy``: names of
        functions of :mod:`onnxcustom.tuning` that are done first; ``batch_axis``: as of TrainingStep;
        ``gradient``: whether it is checked.

    Returns
    -------
    dict
        ``refused`` where it cannot be trained, with the message.
    """
    found: dict[str, Any] = {}
    try:
        model = remedied(load(path), options.get("remedy", ()))
        report = gradient_report(model)
        found["engine"] = report.engine
        found["weights"] = len(report.weights)
        found["numbers"] = sum(int(np.prod(row.shape)) for row in report.weights)
        found["left_out"] = Counter(row.reason for row in report.left_out)
        feeds = rows_for(model, options.get("sizes", {}))
        begun = time.perf_counter()
        settings: dict[str, Any] = {"threads": 1, "batch_axis": options.get("batch_axis")}
        step = TrainingStep(model, "squared_error", "adam", **settings)
        y = targets(step.predict(feeds)[step.targets[0].output])
        losses = [step.run(feeds, y)]
        found["build"] = time.perf_counter() - begun
        losses += [step.run(feeds, y) for _ in range(STEPS - 1)]
        found["losses"] = losses
        found["falls"] = losses[-1] < losses[0]
        found["time"] = ratio(step, model, feeds, y)
        found["gradient"] = (
            gradient_error(model, feeds, y, settings) if options.get("gradient", True) else None
        )
    except OnnxCustomError as error:
        found["refused"] = f"{type(error).__name__}: {error}"
    return found


def remedied(model: onnx.ModelProto, remedies: Any) -> onnx.ModelProto:
    from onnxcustom import tuning

    for name in remedies:
        model = getattr(tuning, name)(model)
    return model


# -- rows ------------------------------------------------------------------------------------------


def rows_for(model: onnx.ModelProto, sizes: Mapping[str, Any]) -> Feeds:
    """Rows that the model runs on, of the first sizes of its open dimensions that it takes."""
    prepared = Prepared.of(model)
    axes = BatchAxes(prepared.model)
    session = create_session(model, threads=1)
    problem: Exception | None = None
    for rows in (ROWS, 1):
        for size in SIZES:
            feeds = {}
            for entry in session.get_inputs():
                shape = sizes.get(entry.name) or [
                    d if isinstance(d, int) else rows if axes.inputs.get(entry.name) == i else size
                    for i, d in enumerate(entry.shape)
                ]
                feeds[entry.name] = made_up(entry.name, entry.type, shape, size)
            try:
                values = session.run(None, feeds)
            except Exception as error:  # whatever a kernel says
                problem = problem or error
                continue
            if all(_sound(v) for v in values if isinstance(v, np.ndarray)):
                return feeds
    raise RuntimeError(f"No rows that fit: {problem}")


def _sound(array: np.ndarray) -> bool:
    return bool(array.size and (array.dtype.kind != "f" or np.isfinite(array).all()))


def made_up(name: str, kind: str, shape: list[int], size: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    kind = kind.removeprefix("tensor(").removesuffix(")")
    if name in MIXED:
        return np.full(shape, MIXED[name], {"float": np.float32}.get(kind, kind))
    if kind in ("float", "double", "float16"):
        dtype = {"float": "float32", "double": "float64"}.get(kind, kind)
        return np.asarray(rng.normal(size=shape) * 0.5).astype(dtype)
    if kind == "bool":
        return np.ones(shape, bool)
    if kind == "string":
        return np.full(shape, "a", object)
    if "mask" in name:
        return np.ones(shape, kind)
    if "len" in name:
        return np.full(shape, size, kind)
    return np.asarray(rng.integers(0, 2, size=shape)).astype(kind)


def targets(prediction: np.ndarray) -> np.ndarray:
    """What the model shall learn: its own prediction with columns exchanged, and a little noise.

    Where it says the same of everything: one column of each row shall be one.
    """
    rng = np.random.default_rng(1)
    noise, spread = rng.normal(size=prediction.shape), float(prediction.std())
    several = prediction.ndim > 1 and prediction.shape[-1] > 1
    if spread < FLAT:
        hot = rng.integers(0, prediction.shape[-1], prediction.shape[:-1]) if several else None
        moved = prediction + 1 if hot is None else np.eye(prediction.shape[-1])[hot]
        spread = 0.1
    else:
        moved = np.roll(prediction, 1, -1) if several else prediction + spread
    return np.asarray(moved + noise * spread / 10).astype(prediction.dtype)


# -- speed and gradients ---------------------------------------------------------------------------


def ratio(step: TrainingStep, model: onnx.ModelProto, feeds: Feeds, y: np.ndarray) -> float:
    """Time of a step against that of inference of the same rows: the fastest of each, in turns."""
    session = create_session(model, threads=1)
    inference, steps = [], []
    for _ in range(TURNS):
        begun = time.perf_counter()
        session.run(None, feeds)
        between = time.perf_counter()
        step.run(feeds, y)
        inference.append(between - begun)
        steps.append(time.perf_counter() - between)
    return min(steps) / min(inference)


def gradient_error(
    model: onnx.ModelProto, feeds: Feeds, y: np.ndarray, settings: Mapping[str, Any]
) -> float | None:
    """All weights moved along the signs of their gradients: how far the difference quotient is off, relative.

    The gradient is what a step of plain descent moves the weights by; the losses are taken in float64 of
    outputs that a bare session computes, of four differences the best: large ones cross corners, small ones
    drown in rounding.
    """
    plain = TrainingStep(model, "squared_error", "sgd", learning_rate=LARGE, **settings)
    before, loss = plain.weights(), plain.run(feeds, y)
    gradient = {n: (np.float64(before[n]) - np.float64(w)) / LARGE for n, w in plain.weights().items()}
    moves = {n: np.sign(g) * np.abs(np.float64(before[n])).mean() for n, g in gradient.items()}
    expected = sum(float((g * moves[n]).sum()) for n, g in gradient.items())
    output = plain.targets[0].output
    if not expected or plain.targets[0].value not in {v.name for v in model.graph.output}:
        return None  # the loss is on scores that a bare session does not give out

    def error(h: float | None) -> float:
        if h is None:
            given = model
        else:
            given = replace_weights(
                model, {n: (before[n] + h * m).astype(before[n].dtype) for n, m in moves.items()}
            )
        (found,) = create_session(given, threads=1).run([output], feeds)
        return float(((np.float64(found) - np.float64(y)) ** 2).sum())

    scale, best = loss / error(None), float("inf")  # half of one over the number of rows
    for h in (1e-3, 1e-4, 1e-5, 1e-2):
        quotient = scale * (error(h) - error(-h)) / (2 * h)
        best = min(best, abs(quotient - expected) / abs(expected))
        if best < RIGHT:
            break
    return best


def limit_memory() -> None:
    """An error rather than a machine that swaps."""
    try:
        import resource
    except ImportError:  # Windows
        return
    size = GIGABYTES << 30
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


if __name__ == "__main__":
    limit_memory()
    given = json.loads(sys.argv[3]) if sys.argv[3:] else {}
    Path(sys.argv[2]).write_text(json.dumps(trial(Path(sys.argv[1]), given), default=str))
