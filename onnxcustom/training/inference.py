"""Forward passes on weights that live elsewhere: predictions and losses while a model is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcustom.runtime import Device, create_session, run_values, to_ortvalue

__all__ = ["Forward"]


class Forward:
    """A graph whose weights are inputs, run on whatever weights the caller has.

    One instance may be run from several threads at once.

    Parameters
    ----------
    model : onnx_ir.Model
        The graph, weights among its inputs.
    device : Device
        Where it runs.
    threads : int, optional
        Threads of onnxruntime.
    """

    def __init__(self, model: ir.Model, device: Device, threads: int | None = None) -> None:
        self.device = device
        self._inputs = [str(v.name) for v in model.graph.inputs]
        self._outputs = [str(v.name) for v in model.graph.outputs]
        self._session = create_session(model, device, threads=threads)

    def run(self, feeds: Mapping[str, Any]) -> list[np.ndarray]:
        """Outputs for OrtValues or arrays by input name; names the graph lacks are ignored."""
        values = {n: to_ortvalue(feeds[n], self.device) for n in self._inputs}
        return [v.numpy() for v in run_values(self._session, values, self._outputs)]
