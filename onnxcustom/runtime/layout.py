"""The layout that onnxruntime's optimizer puts images into on this machine."""

from __future__ import annotations

import functools

import numpy as np
import onnx

from onnxcustom.graph.analysis.integers import NCHWC

from .sessions import create_session

__all__ = ["channel_block"]

_MOST = 64


@functools.cache
def channel_block() -> int | None:
    """How many channels lie beside each other in it: 8 or 16, by the processor; None without kernels."""
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    shape = [1, _MOST, 1, 2]
    graph = helper.make_graph(
        [helper.make_node("ReorderInput", ["x"], ["y"], domain=NCHWC)],
        "channels",
        [helper.make_tensor_value_info("x", float32, shape)],
        [helper.make_tensor_value_info("y", float32, shape)],
    )
    imports = [helper.make_opsetid("", 14), helper.make_opsetid(NCHWC, 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=7)
    x = np.arange(2 * _MOST, dtype=np.float32).reshape(shape)
    try:
        (y,) = create_session(model).run(None, {"x": x})
    except Exception:  # whatever it says where there is no such layout
        return None
    # Channels of the first pixel come first, then those of the second, which is 1 here.
    return int(np.argmax(y.reshape(-1) == 1))
