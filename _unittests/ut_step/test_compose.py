from __future__ import annotations

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxcustom.exceptions import InvalidModelError
from onnxcustom.gradient.choice import select_engine
from onnxcustom.gradient.interface import form_of
from onnxcustom.graph import Prepared, prepare, to_proto, weights
from onnxcustom.objective import L2LearningPenalty
from onnxcustom.optim import create
from onnxcustom.step.compose import StepOptions, compose_forward, compose_scores, compose_step, trunk
from onnxcustom.step.plan import Plan
from onnxcustom.step.targets import select_targets

ort = pytest.importorskip("onnxruntime")


def run(model, feeds):
    proto = to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    assert {i.name for i in session.get_inputs()} == set(feeds)
    return dict(zip((o.name for o in session.get_outputs()), session.run(None, feeds), strict=True))


def step_of(model, loss="squared_error", rule="adam", penalties=None, weighted=False):
    engine = select_engine("auto", model)
    targets = select_targets(prepare(model), loss)
    plan = Plan(tuple(weights(model)), create(rule))
    own = trunk(form_of(Prepared.of(model), engine), [target.value for target in targets])
    return compose_step(own, engine, targets, penalties or {}, plan, StepOptions(weighted))


# -- forward and scores ------------------------------------------------------------------------


def test_the_trunk_drops_what_values_dont_need(mlp_model):
    model = trunk(prepare(mlp_model([3, 2, 1])), ["m0"])
    assert [n.op_type for n in model.graph] == ["MatMul"]
    assert [v.name for v in model.graph.outputs] == ["m0"]
    assert set(model.graph.initializers) == {"w0", "b0", "w1", "b1"}  # weights all the same


def test_a_tensor_that_is_not_there(mlp_model):
    with pytest.raises(InvalidModelError, match=r"no tensor \['nope'\]"):
        trunk(prepare(mlp_model([3, 1])), ["y", "nope"])


def test_forward(mlp_model):
    proto = mlp_model([3, 2, 1])
    model = compose_forward(prepare(proto), ["y", "h0"], ["b1", "w0"])
    assert [v.name for v in model.graph.inputs] == ["x", "b1", "w0"]
    X, own = np.ones((4, 3), np.float32), weights(proto)
    made = run(model, {"x": X, "b1": own["b1"] + 1, "w0": own["w0"]})
    h = np.tanh(X @ own["w0"] + own["b0"])
    np.testing.assert_allclose(made["h0"], h, rtol=1e-5)
    np.testing.assert_allclose(made["y"], h @ own["w1"] + own["b1"] + 1, rtol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_scores(linear_model, weighted):
    proto = linear_model(3, outputs=2)
    model = prepare(proto)
    model = compose_scores(model, select_targets(model, "squared_error"), ["w"], weighted=weighted)
    X, y, own = np.eye(3, dtype=np.float32), np.ones((3, 2), np.float32), weights(proto)
    feeds = {"x": X, "w": own["w"], "y_expected": y}
    expected = ((X @ own["w"] + own["b"] - y) ** 2 / 2).sum(axis=1)
    if weighted:
        feeds["sample_weight"] = np.array([0, 1, 2], np.float32)
        expected = expected * feeds["sample_weight"]
    (scores,) = run(model, feeds).values()
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


# -- steps -------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
def test_inputs_and_outputs_of_a_step(mlp_model, weighted):
    step = step_of(mlp_model([3, 2, 1]), weighted=weighted)
    graph = step.model.graph
    names = list(step.state["w0"])
    assert names == list(create("adam").state)
    states = [old for w in step.weights for old, _ in step.state[w].values()]
    batch = ["x", "y_expected", *(["sample_weight"] if weighted else [])]
    assert step.batch == batch
    assert [v.name for v in graph.inputs] == [*batch, *step.weights, *states, step.learning_rate, step.step]
    assert [v.name for v in graph.outputs] == [step.loss, *step.whole.values()]
    assert list(step.whole) == [*step.weights, *states]
    assert all(v.dtype == ir.DataType.FLOAT for v in (*graph.inputs, *graph.outputs))
    by_name = {v.name: v for v in (*graph.inputs, *graph.outputs)}
    for old, new in step.whole.items():
        assert list(by_name[old].shape) == list(by_name[new].shape)


def test_the_metadata_says_which_is_which(mlp_model):
    step = step_of(mlp_model([3, 2, 1]))
    said = json.loads(step.model.metadata_props["onnxcustom.step"])
    assert said["inputs"] == ["x"]
    assert said["expected"] == {"y": "y_expected"}
    assert said["sample_weight"] is None
    assert said["weights"] == step.weights
    assert {w: {k: tuple(v) for k, v in s.items()} for w, s in said["state"].items()} == step.state
    assert "onnxcustom.gradient" not in step.model.metadata_props


def test_weighted_and_unweighted_graphs_share_names(mlp_model):
    names = [("sample", "sample_weight"), ("sample_weight_1", "b1")]
    one, other = (step_of(mlp_model([3, 2, 1], names=names), weighted=w) for w in (False, True))
    assert one.whole == other.whole
    assert one.expected == other.expected


def test_a_step_holds_no_learning_rate_and_no_batch_size(linear_model):
    step = step_of(linear_model(2, seed=None), rule="sgd")
    X = np.array([[1, 0], [0, 1], [1, 1]], np.float32)
    for rows in (1, 2, 3):
        for rate in (0.0, 0.5, 1.0):
            made = run(
                step.model,
                {
                    "x": X[:rows],
                    "y_expected": -np.ones((rows, 1), np.float32),
                    "w": np.zeros((2, 1), np.float32),
                    "b": np.zeros(1, np.float32),
                    step.learning_rate: np.array(rate, np.float32),
                    step.step: np.array(1, np.float32),
                },
            )
            assert made[step.loss] == pytest.approx(0.5)
            np.testing.assert_allclose(made[step.weights["b"]], [-rate])
            np.testing.assert_allclose(made[step.weights["w"]], -rate * X[:rows].mean(axis=0)[:, None])


def test_every_output_is_a_tensor_of_its_own(linear_model):
    """Also where nothing changes: a buffer must be written."""
    proto = linear_model(2)
    step = step_of(proto, rule="sgd")
    feeds = {
        "x": np.zeros((1, 2), np.float32),
        "y_expected": weights(proto)["b"].reshape(1, 1),
        **weights(proto),
        step.learning_rate: np.array(0.5, np.float32),
        step.step: np.array(1, np.float32),
    }
    made = run(step.model, feeds)
    assert made[step.loss] == 0
    for old, new in step.weights.items():
        np.testing.assert_array_equal(made[new], feeds[old])
    assert not {v.name for v in step.model.graph.outputs} & {v.name for v in step.model.graph.inputs}


def test_a_loss_and_weights_of_different_dtypes():
    """The model casts: one weight is double, the other float."""
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 18]>
        g (float[N,2] x) => (float[N,1] y) <float[2,2] w = {1, 2, 3, 4}, double[2,1] v = {1, 2}>
        { z = MatMul(x, w) d = Cast <to = 11> (z) e = MatMul(d, v) y = Cast <to = 1> (e) }""")
    step = step_of(proto, rule="sgd", penalties={"w": L2LearningPenalty(0.1), "v": L2LearningPenalty(0.1)})
    types = {v.name: v.dtype for v in (*step.model.graph.inputs, *step.model.graph.outputs)}
    assert types[step.weights["w"]] == ir.DataType.FLOAT
    assert types[step.weights["v"]] == ir.DataType.DOUBLE
    assert types[step.loss] == types[step.learning_rate] == ir.DataType.DOUBLE
    onnx.checker.check_model(to_proto(step.model), full_check=True)


def test_the_same_model_gives_the_same_graph(mlp_model):
    one, other = (
        to_proto(step_of(mlp_model([3, 4, 2])).model).SerializeToString(deterministic=True) for _ in "12"
    )
    assert one == other


def test_an_mlp_step_is_small(mlp_model):
    """Static columns: no shape arithmetic but for the number of rows."""
    graph = step_of(mlp_model([10, 10, 10, 1]), rule="sgd").model.graph
    operators = [n.op_type for n in graph]
    assert operators.count("Shape") == 1
    assert not {"Reshape", "Expand", "Size", "Where"} & set(operators)
    assert len(operators) < 60
