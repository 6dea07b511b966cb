"""What is done with a model that came from somewhere: everything a user would."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxcustom import TrainingStep, gradient_graph, gradient_report, load, weights
from onnxcustom.exceptions import OnnxCustomError
from onnxcustom.graph import to_ir, to_proto
from onnxcustom.runtime import create_session, run_values, to_ortvalue
from onnxcustom.step.inference import runnable

__all__ = ["TARGETS", "run_model"]


def _load(content: bytes) -> None:
    load(content)


def _weights(content: bytes) -> None:
    weights(content)


def _report(content: bytes) -> None:
    str(gradient_report(content))


def _gradient(content: bytes) -> None:
    _run(gradient_graph(content, engine="onnx"))


def _run(model: onnx.ModelProto) -> None:
    """A graph that this library made, run on ones."""
    session = create_session(model, threads=1)
    values = to_ir(model).graph
    feeds = {}
    for value in values.inputs:
        shape = None if value.shape is None else [d if isinstance(d, int) else None for d in value.shape]
        if not isinstance(value.type, ir.TensorType) or value.dtype == ir.DataType.STRING:
            return
        feeds[value.name] = to_ortvalue(_batch(shape, value.dtype.numpy()))
    run_values(session, feeds, [v.name for v in values.outputs])


def _forward(content: bytes) -> None:
    _run(to_proto(runnable(content)))


def _step(content: bytes) -> None:
    step = TrainingStep(content, optimizer="adam", engine="onnx", threads=1)
    inputs = {spec.name: _batch(spec.shape, spec.dtype) for spec in step.inputs}
    outputs = {spec.name: _batch(spec.shape, spec.dtype) for spec in step.expected}
    step.run(inputs, outputs)
    step.trained_model()


def _batch(shape: Any, dtype: Any) -> np.ndarray:
    """Two rows of ones for an input."""
    dims = [d if isinstance(d, int) else 2 for d in ((2, 3) if shape is None else shape)]
    if np.prod(np.float64(dims)) > 1e6 or min(dims, default=1) < 0:
        dims = [1] * len(dims)
    return np.full(dims, "a", dtype=object) if np.dtype(dtype).kind in "OSU" else np.ones(dims, dtype)


def _inspect(content: bytes) -> None:
    from onnxcustom.inspect import inspect_model

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(content)
        (Path(folder) / "w.bin").write_bytes(bytes(64))
        inspect_model(path)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "load": _load,
    "weights": _weights,
    "report": _report,
    "forward": _forward,
    "gradient": _gradient,
    "step": _step,
    "inspect": _inspect,
}


def run_model(content: bytes) -> dict[str, str]:
    """What became of each target: 'done' or the name of one of our errors.

    Any other exception goes on its way.
    """
    found = {}
    for name, target in TARGETS.items():
        try:
            target(content)
        except OnnxCustomError as error:
            str(error)
            found[name] = type(error).__name__
        except Exception as error:
            raise Leak(name, error) from error
        else:
            found[name] = "done"
    return found


class Leak(Exception):
    """Another exception than one of ours."""

    def __init__(self, target: str, error: BaseException) -> None:
        super().__init__(f"{target}: {type(error).__name__}: {str(error)[:300]}")
        self.target, self.error = target, error


def parsed(content: bytes) -> onnx.ModelProto | None:
    """The model as protobuf reads it."""
    try:
        return onnx.ModelProto.FromString(content)
    except Exception:
        return None
