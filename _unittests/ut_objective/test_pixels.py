"""Cross-entropy of pixels: few classes of many positions, whose logarithms are spelled out."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxcustom import TrainingStep


def model(classes: int, floats: str) -> onnx.ModelProto:
    made = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["": 18]>
        net ({floats}[N, 3, 4, 5] x) => ({floats}[N, {classes}, 4, 5] y) {{ y = Conv(x, w) }}""")
    w = np.random.default_rng(0).standard_normal((classes, 3, 1, 1))
    array = w.astype(np.float32 if floats == "float" else np.float64)
    made.graph.initializer.append(onnx.numpy_helper.from_array(array, "w"))
    return made


@pytest.mark.parametrize("classes", [2, 6, 128, 129])
def test_ten_steps_are_those_of_the_formula(classes: int) -> None:
    made = model(classes, "float")
    rng = np.random.default_rng(1)
    # Scores far apart: exponentials that are not centred would overflow.
    X, Y = (40 * rng.standard_normal((2, 3, 4, 5))).astype(np.float32), rng.integers(0, classes, (2, 4, 5))
    step = TrainingStep(made, "cross_entropy", learning_rate=1e-3)
    assert (classes > 128) == ("LogSoftmax" in {node.op_type for node in step.model.graph.node})
    w = onnx.numpy_helper.to_array(made.graph.initializer[0])[:, :, 0, 0].astype(np.float64)
    for _ in range(10):
        scores = np.einsum("kc,ncij->nkij", w, X.astype(np.float64))
        scores -= scores.max(axis=1, keepdims=True)
        p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        hot = np.moveaxis(np.eye(classes)[Y], -1, 1)
        log_p = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        assert step.run(X, Y) == pytest.approx(-(hot * log_p).sum() / Y.size, rel=1e-4)
        w -= 1e-3 * np.einsum("nkij,ncij->kc", p - hot, X.astype(np.float64)) / Y.size
    np.testing.assert_allclose(step.weights()["w"][:, :, 0, 0], w, rtol=1e-4, atol=1e-5)
