"""Sessions of step graphs: their settings, and what memory a step takes beside them."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxcustom import TrainingStep
from onnxcustom.runtime import session_options
from onnxcustom.step import program
from onnxcustom.step.inference import without_numbers

pytest.importorskip("onnxruntime")


def batch(rows: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(rows, 3)).astype(np.float32), rng.normal(size=(rows, 1)).astype(np.float32)


# -- settings ---------------------------------------------------------------------------------------------


def test_settings_are_used_as_they_are(mlp_model, tmp_path):
    options = session_options(1)
    options.optimized_model_filepath = str(tmp_path / "step.onnx")
    step = TrainingStep(mlp_model([3, 2, 1]), threads=2, sess_options=options)
    assert not (tmp_path / "step.onnx").exists()
    step.run(*batch())
    assert onnx.load(tmp_path / "step.onnx").graph.node
    assert options.intra_op_num_threads == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda step: pickle.loads(pickle.dumps(step))])
def test_settings_come_along(mlp_model, copied):
    step = TrainingStep(mlp_model([3, 2, 1]), sess_options=session_options(1))
    step.run(*batch())
    other = copied(step)
    assert other._sess_options.intra_op_num_threads == step._sess_options.intra_op_num_threads == 1
    assert other.run(*batch()) == step.run(*batch())


@pytest.mark.parametrize(("rows", "pattern"), [(5, True), (5000, False)])
def test_small_graphs_only_have_a_memory_pattern(mlp_model, rows, pattern, monkeypatch):
    made = []
    create = program.create_session
    monkeypatch.setattr(
        program, "create_session", lambda *a, **k: made.append(k["memory_pattern"]) or create(*a, **k)
    )
    step = TrainingStep(mlp_model([3, 20, 1]), passes=True)
    for _ in range(3):
        step.run(*batch(rows))
    assert made == [pattern]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("a = Exp(x) y = Add(a, x)", 2 * 4 * 3 * 7),
        ("a = MatMul(x, w) y = Add(a, a)", 2 * 4 * 3 * 5),
        ("a = NonZero(x) b = Cast <to = 1> (a) y = ReduceSum(b)", math.inf),
    ],
)
def test_bytes_of_intermediate_results(body, expected):
    proto = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 18]>
        g (float[N, 7] x) => (y) <float[7, 5] w> {{ {body} }}"""
    )
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    assert program.intermediate_bytes(model, 3) == expected


# -- memory ---------------------------------------------------------------------------------------------


def test_numbers_of_trained_weights_are_in_the_buffers_only(mlp_model):
    step = TrainingStep(mlp_model([3, 2, 1]), weights=["w0", "b0"])
    held = {name: v.const_value.numpy() for name, v in step.recipe.base.graph.initializers.items()}
    assert {name for name, array in held.items() if not any(array.strides)} >= {"w0", "b0"}
    given = {t.name: onnx.numpy_helper.to_array(t) for t in mlp_model([3, 2, 1]).graph.initializer}
    np.testing.assert_array_equal(held["w1"], given["w1"])
    np.testing.assert_array_equal(step.weights()["w0"], given["w0"])
    for model in (step.recipe.graph(False).model, step.recipe.compose(False, lean=False).model):
        assert not {"w0", "b0"} & set(model.graph.initializers)


def test_graphs_made_later_are_the_same(mlp_model):
    """After what makes a step forget its graphs: predictions, scores, losses."""
    model = mlp_model([3, 2, 1])
    one, two = (TrainingStep(model, weights=["w0", "b0"], learning_rate=0.1) for _ in range(2))
    x, y = batch()
    one.run(x, y)
    two.run(x, y)
    two._set_up(two._recipe, two._state)
    np.testing.assert_array_equal(one.predict(x)["y"], two.predict(x)["y"])
    np.testing.assert_array_equal(one.scores(x, y), two.scores(x, y))
    assert one.run(x, y, np.ones(5)) == two.run(x, y, np.ones(5))
    two.start_from({"w1": np.full((2, 1), 0.5, np.float32)})
    np.testing.assert_array_equal(two.recipe.base.graph.initializers["w1"].const_value.numpy(), 0.5)


def test_without_numbers():
    model = ir.from_proto(
        onnx.parser.parse_model(
            """<ir_version: 8, opset_import: ["": 18]>
            g (double[N, 2] x) => (double[N, 2] y) <double[2] a = {1, 2}, double[2] b = {3, 4}> {
                z = Mul(x, a) y = Add(z, b) }"""
        )
    )
    made = without_numbers(model, ["a"]).graph.initializers
    assert made["a"].const_value.numpy().tolist() == [0, 0]
    assert made["a"].const_value.dtype == ir.DataType.DOUBLE
    assert made["b"].const_value.numpy().tolist() == [3, 4]


def test_the_back_set_is_untouched_memory(mlp_model):
    step = TrainingStep(mlp_model([3, 2, 1]), optimizer="adam")
    back = step._state.kept._sets[1]
    assert not any(array.any() for array in back.arrays.values())
    assert any(array.any() for array in step._state.kept._sets[0].arrays.values())
    step.run(*batch())
    assert all(array.any() for name, array in back.arrays.items() if name in step.weights())
