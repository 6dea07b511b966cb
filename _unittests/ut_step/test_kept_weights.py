"""What a step holds of the weights of its model: the user's proto, and two sets of buffers."""

import gc
import pickle
import tracemalloc

import numpy as np
import onnx
import pytest

from onnxcustom import TrainingStep

SIZE = 512


def model_of(raw=True):
    rng = np.random.default_rng(0)
    w = (rng.standard_normal((SIZE, SIZE)) / SIZE).astype(np.float32)
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]>
        line (float[N,{SIZE}] x) => (float[N,{SIZE}] y) {{ y = MatMul(x, w) }}"""
    )
    tensor = onnx.numpy_helper.from_array(w, "w")
    if not raw:
        tensor = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, w.shape, w.ravel().tolist())
    model.graph.initializer.append(tensor)
    return model, w


@pytest.fixture
def traced():
    gc.collect()
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.parametrize("freeze", [None, "a"])
def test_prepared_model_has_no_copy(freeze, traced):
    """Python and NumPy hold two sets of the trained weight, and nothing of the frozen one."""
    model, w = model_of()
    if freeze:
        first = np.eye(SIZE, dtype=np.float32) + w
        model.graph.initializer.append(onnx.numpy_helper.from_array(first, "a"))
        model.graph.node[0].input[0] = "h"
        model.graph.node.insert(0, onnx.helper.make_node("MatMul", ["x", "a"], ["h"]))
        del first
    content = model.SerializeToString()
    TrainingStep(model_of()[0].SerializeToString(), threads=1)  # whatever is made once
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    step = TrainingStep(content, threads=1, freeze=freeze)
    gc.collect()
    assert tracemalloc.get_traced_memory()[0] - before < 2.5 * w.nbytes
    assert set(step.weights()) == {"w"}


@pytest.mark.parametrize("raw", [True, False])
def test_the_model_of_the_user_may_change(raw):
    model, w = model_of(raw)
    x = np.random.default_rng(1).standard_normal((4, SIZE)).astype(np.float32)
    y = np.zeros((4, SIZE), np.float32)
    step, same = (TrainingStep(model, threads=1, learning_rate=1e-3) for _ in range(2))
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.zeros_like(w), "w"))
    np.testing.assert_array_equal(step.weights()["w"], w)
    again = pickle.loads(pickle.dumps(step))
    expected = w.astype(np.float64)
    for _ in range(10):
        losses = [one.run(x, y) for one in (step, same, again)]
        assert losses[0] == losses[1] == losses[2]
        expected -= 1e-3 * x.T.astype(np.float64) @ (x @ expected) / len(x)
    np.testing.assert_allclose(step.weights()["w"], expected, rtol=1e-4, atol=1e-6)
    trained = step.trained_model().graph.initializer[0]
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(trained), step.weights()["w"])
