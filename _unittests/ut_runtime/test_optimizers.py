"""Sessions of large graphs without the optimizers that find nothing in them."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime

from onnxcustom.graph import to_ir
from onnxcustom.runtime import create_session
from onnxcustom.runtime.optimizers import idle_optimizers


def _chain(nodes: int) -> onnx.ModelProto:
    lines = [f"v{i + 1} = {'Tanh' if i % 2 else 'Neg'}(v{i})" for i in range(nodes)]
    text = f"net (float[N, 3] v0) => (float[N, 3] v{nodes}) {{ {' '.join(lines)} }}"
    return onnx.parser.parse_model('<ir_version: 8, opset_import: ["": 17]> ' + text)


def test_only_of_many_nodes() -> None:
    assert idle_optimizers(_chain(10)) == []
    assert idle_optimizers(_chain(1000).SerializeToString()) == []


def test_those_that_have_something_to_do_stay() -> None:
    model = _chain(1000)
    found = idle_optimizers(model)
    assert "QuickGeluFusion" in found
    assert "FastGeluFusion" not in found
    assert idle_optimizers(to_ir(model)) == found
    model.graph.node[1].op_type = "Sigmoid"
    assert "QuickGeluFusion" not in idle_optimizers(model)


def test_the_results_are_those_of_all_optimizers() -> None:
    model, x = _chain(1000), np.array([[0.5, -1, 2]], np.float32)
    plain = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (wanted,) = plain.run(None, {"v0": x})
    np.testing.assert_array_equal(create_session(model, threads=1).run(None, {"v0": x})[0], wanted)
