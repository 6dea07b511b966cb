from __future__ import annotations

import copy
import json
import pickle
import warnings

import numpy as np
import onnx
import pytest

from onnxcustom.exceptions import (
    CheckpointError,
    ConvergenceError,
    InvalidDataError,
    UnknownNameError,
)
from onnxcustom.graph import load, weights
from onnxcustom.optim import LearningRateSGD, LearningRateSGDNesterov
from onnxcustom.step import program as program_module
from onnxcustom.step import training_step as step_module
from onnxcustom.step.training_step import TrainingStep

ort = pytest.importorskip("onnxruntime")


def batch(n=7, columns=3, outputs=1, dtype=np.float64, seed=1):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, columns)).astype(dtype), rng.normal(size=(n, outputs)).astype(dtype)


# -- the graph in somebody else's runtime ------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_graph_runs_without_us(mlp_model, dtype, weighted):
    X, y = batch(dtype=dtype)
    w = np.linspace(0.5, 1.5, 7).astype(dtype) if weighted else None
    step = TrainingStep(
        mlp_model([3, 2, 1], dtype=dtype),
        optimizer=LearningRateSGDNesterov(0.1),
        penalty="l2",
        sample_weight=weighted,
    )
    model = step.model
    onnx.checker.check_model(model, full_check=True)
    names = json.loads(next(p.value for p in model.metadata_props if p.key == "onnxcustom.step"))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == [
        *names["inputs"],
        *names["expected"].values(),
        *([names["sample_weight"]] if weighted else []),
        *names["weights"],
        *(old for states in names["state"].values() for old, _ in states.values()),
        names["learning_rate"],
        names["step"],
    ]
    tensors = {name: array.copy() for name, array in step.weights().items()}
    for weight, states in step.state().items():
        tensors.update({names["state"][weight][key][0]: array for key, array in states.items()})
    updates = dict(names["weights"])
    updates.update(pair for states in names["state"].values() for pair in states.values())
    outputs = [o.name for o in session.get_outputs()]
    assert outputs == [names["loss"], *updates.values()]
    for t in range(1, 5):
        feeds = {
            names["inputs"][0]: X,
            names["expected"]["y"]: y,
            names["learning_rate"]: np.array(0.1 / t**0.25, dtype=dtype),
            names["step"]: np.array(t, dtype=dtype),
            **tensors,
        }
        if weighted:
            feeds[names["sample_weight"]] = w
        made = dict(zip(outputs, session.run(outputs, feeds), strict=True))
        assert made[names["loss"]].shape == ()
        assert step.run(X, y, w) == pytest.approx(float(made[names["loss"]]), rel=1e-6)
        tensors = {old: made[new] for old, new in updates.items()}
    for name, array in step.weights().items():
        np.testing.assert_allclose(tensors[name], array, rtol=1e-6, atol=1e-7)


def test_no_session_is_made_after_the_first_step(mlp_model, monkeypatch):
    made = []
    original = ort.InferenceSession

    class Counting(original):
        def __init__(self, *args, **kwargs):
            made.append(1)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(ort, "InferenceSession", Counting)
    X, y = batch(dtype=np.float32)
    step = TrainingStep(mlp_model([3, 2, 1]), optimizer="adam")
    step.run(X, y)
    made.clear()
    for rows in (7, 3, 1):  # another number of rows makes none either
        step.run(X[:rows], y[:rows])
    assert not made
    # The weighted graph is another one, and so are those that only look.
    step.run(X, y, np.ones(7)), step.predict(X), step.scores(X, y)
    assert made
    made.clear()
    for _ in range(3):
        step.run(X, y, np.ones(7))
        step.run(X, y)
        step.weights(), step.state(), step.model, step.predict(X), step.scores(X, y)
    assert not made


def test_row_weights_of_1_change_nothing(mlp_model):
    X, y = batch(dtype=np.float32)
    one, other = (TrainingStep(mlp_model([3, 2, 1]), optimizer="adam") for _ in range(2))
    for weights_ in (None, np.ones(7), None, 1):
        one.run(X, y, weights_)
        other.run(X, y)
    for name, array in one.weights().items():
        np.testing.assert_allclose(array, other.weights()[name], rtol=1e-6)


def test_same_steps_same_bits(mlp_model):
    X, y = batch(dtype=np.float32)
    runs = []
    for _ in range(2):
        step = TrainingStep(mlp_model([3, 4, 1]), optimizer="adam", penalty="l2")
        losses = [step.run(X, y) for _ in range(5)]
        runs.append((losses, pickle.dumps(step.weights())))
    assert runs[0] == runs[1]


# -- weights and state -------------------------------------------------------------------------


def test_set_weights_and_state_go_there_and_back(mlp_model):
    X, y = batch(dtype=np.float32)
    one = TrainingStep(mlp_model([3, 2, 1]), optimizer="adam")
    other = TrainingStep(mlp_model([3, 2, 1], seed=7), optimizer="adam")
    for _ in range(3):
        one.run(X, y)
    other.set_weights(one.weights())
    other.set_state(one.state())
    other.iteration = one.iteration
    other.optimizer.update_learning_rate(one.iteration)
    assert [one.run(X, y) for _ in range(3)] == [other.run(X, y) for _ in range(3)]


def test_what_is_handed_out_is_a_copy(mlp_model):
    X, y = batch(dtype=np.float32)
    step = TrainingStep(mlp_model([3, 2, 1]), optimizer="adam")
    weights, state, predicted = step.weights(), step.state(), step.predict(X)["y"].copy()
    kept = copy.deepcopy(weights)
    for array in step.weights().values():
        array[...] = 9
    for states in step.state().values():
        for array in states.values():
            array[...] = 9
    np.testing.assert_array_equal(step.predict(X)["y"], predicted)
    for _ in range(3):
        step.run(X, y)
    for name, array in kept.items():
        np.testing.assert_array_equal(weights[name], array)
    step.set_weights(weights)
    step.set_state(state)
    np.testing.assert_array_equal(step.predict(X)["y"], predicted)
    assert not any(a.any() for states in step.state().values() for a in states.values())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"nope": np.zeros(1)},
            UnknownNameError,
            r"\['nope'\] are not among the trained weights \['w', 'b'\]",
        ),
        ({"w": np.zeros((2, 1))}, InvalidDataError, r"weight 'w' has shape \(3, 1\).*not \(2, 1\)"),
        ({"w": np.zeros((3, 1))}, InvalidDataError, "dtype float32, not .*float64"),
        ({"w": np.full((3, 1), np.nan, np.float32)}, InvalidDataError, "weight 'w' contains NaN"),
    ],
)
def test_bad_weights_change_nothing(linear_model, change, error, message):
    step = TrainingStep(linear_model(3))
    before = step.weights()
    with pytest.raises(error, match=message):
        step.set_weights({"b": np.ones(1, np.float32), **change})
    for name, array in step.weights().items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ({"w": {"velocity": np.zeros((3, 1), np.float32)}}, UnknownNameError, "keeps no state 'velocity'"),
        ({"v": {"m": np.zeros((3, 1), np.float32)}}, UnknownNameError, "no state 'm' for weight 'v'"),
        (
            {"w": {"mean": np.zeros((1, 1), np.float32)}},
            InvalidDataError,
            "state 'mean' of weight 'w' has shape",
        ),
    ],
)
def test_bad_state_changes_nothing(linear_model, state, error, message):
    step = TrainingStep(linear_model(3), optimizer="adam")
    state = {w: {"mean" if k == "mean" else k: a for k, a in s.items()} for w, s in state.items()}
    names = list(step.state()["w"])
    renamed = {w: {names[0] if k == "mean" else k: a for k, a in s.items()} for w, s in state.items()}
    with pytest.raises(error, match=message.replace("'mean'", repr(names[0]))):
        step.set_state({"b": {names[0]: np.ones(1, np.float32)}, **renamed})
    assert not step.state()["b"][names[0]].any()


def test_scalar_weights():
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 18]>
        line (float[N,1] x) => (float[N,1] y) <float w = {2}, float[1,1] v = {1}>
        { z = MatMul(x, v) y = Add(z, w) }""")
    step = TrainingStep(model, learning_rate=0.5)
    x = np.ones((4, 1), np.float32)
    step.run(x, np.zeros(4))
    assert step.weights()["w"].shape == ()
    assert float(step.weights()["w"]) == 0.5
    step.set_weights({"w": np.array(7, np.float32)})
    assert float(step.weights()["w"]) == 7


def test_start_from_takes_weights_that_are_not_trained(mlp_model):
    X, y = batch(dtype=np.float32)
    full = TrainingStep(mlp_model([3, 2, 1]), learning_rate=0.1)
    for _ in range(3):
        full.run(X, y)
    head = TrainingStep(mlp_model([3, 2, 1]), weights=["w1"], optimizer="adam")
    head.start_from(full.weights())
    np.testing.assert_allclose(head.predict(X)["y"], full.predict(X)["y"], rtol=1e-6)
    head.run(X, y)
    trained = weights(head.trained_model())
    np.testing.assert_array_equal(trained["w0"], full.weights()["w0"])
    assert not np.array_equal(trained["w1"], full.weights()["w1"])


def test_the_model_given_is_left_alone(mlp_model):
    X, y = batch(dtype=np.float32)
    model = mlp_model([3, 2, 1])
    before = model.SerializeToString(deterministic=True)
    step = TrainingStep(model, optimizer="adam", penalty="l2")
    step.run(X, y), step.scores(X, y), step.predict(X), step.model, step.trained_model()
    assert model.SerializeToString(deterministic=True) == before


def test_the_trained_model_predicts_the_same_elsewhere(mlp_model):
    X, y = batch(dtype=np.float32)
    step = TrainingStep(mlp_model([3, 2, 1]), learning_rate=0.1)
    for _ in range(5):
        step.run(X, y)
    trained = load(step.trained_model())
    session = ort.InferenceSession(trained.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": X})[0], step.predict(X)["y"], rtol=1e-6)


# -- divergence --------------------------------------------------------------------------------


def test_an_objective_that_is_not_finite_leaves_the_weights(linear_model):
    step = TrainingStep(linear_model(3), learning_rate=1e30)
    X, y = batch(dtype=np.float32)
    step.run(X, y)
    before = step.weights()
    with pytest.raises(ConvergenceError, match=r"objective is inf at step 2 \(learning rate 1e\+30\)"):
        step.run(X, y)
    for name, array in step.weights().items():
        np.testing.assert_array_equal(array, before[name])
    assert step.iteration == 1


def test_the_learning_rate_can_be_changed_on_the_way(linear_model):
    X, y = batch(dtype=np.float64)
    step = TrainingStep(linear_model(3, dtype=np.float64), optimizer=LearningRateSGD(0.5))
    step.run(X, y)
    step.optimizer.set_learning_rate(0.0)
    before = step.weights()
    step.run(X, y)
    np.testing.assert_array_equal(step.weights()["w"], before["w"])


# -- copies ------------------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_copy_goes_on_bit_for_bit(mlp_model, copied, weighted):
    X, y = batch(dtype=np.float32)
    w = np.linspace(1, 2, 7) if weighted else None
    step = TrainingStep(mlp_model([3, 2, 1]), optimizer="adam", penalty="l2", sample_weight=weighted)
    for _ in range(3):
        step.run(X, y, w)
    other = copied(step)
    assert repr(other) == repr(step)
    assert [step.run(X, y, w) for _ in range(4)] == [other.run(X, y, w) for _ in range(4)]
    for name, array in step.weights().items():
        np.testing.assert_array_equal(array, other.weights()[name])
    np.testing.assert_array_equal(step.scores(X, y), other.scores(X, y))


def test_a_copy_is_independent(mlp_model):
    X, y = batch(dtype=np.float32)
    step = TrainingStep(mlp_model([3, 2, 1]))
    other = copy.deepcopy(step)
    other.run(X, y)
    assert step.iteration == 0
    np.testing.assert_array_equal(step.weights()["w0"], TrainingStep(mlp_model([3, 2, 1])).weights()["w0"])


def test_a_pickle_of_another_version_is_refused(mlp_model, monkeypatch):
    step = TrainingStep(mlp_model([3, 2, 1]))
    monkeypatch.setattr("onnxcustom._versioning.PICKLE_FORMAT", 99)
    data = pickle.dumps(step)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"has format 99.*reads format 1"):
        pickle.loads(data)


# -- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        [("loss", "step"), ("learning_rate", "sample_weight")],
        [("y_expected", "w0_new"), ("y_grad", "const")],
        [("layer/0/kernel:0", "layer 0.bias"), ("Ω", "w1_m")],
        [("a", "a_m"), ("a_m_new", "a_v")],
        [("z", "a"), ("Add", "MatMul_node")],
    ],
)
def test_names_of_all_kinds(mlp_model, names):
    X, y = batch(dtype=np.float32)
    odd = TrainingStep(mlp_model([3, 2, 1], names=names), optimizer="adam", penalty="l2")
    plain = TrainingStep(mlp_model([3, 2, 1]), optimizer="adam", penalty="l2")
    assert list(odd.weights()) == [n for pair in names for n in pair]
    for w in (None, np.ones(7), None):
        assert odd.run(X, y, w) == plain.run(X, y, w)
    for array, wanted in zip(odd.weights().values(), plain.weights().values(), strict=True):
        np.testing.assert_array_equal(array, wanted)
    onnx.checker.check_model(odd.model, full_check=True)


def test_repr_is_short(mlp_model):
    text = repr(TrainingStep(mlp_model([3, 2, 1]), penalty="l2"))
    assert text.startswith("TrainingStep(y: SquareLearningLoss() on 'y', optimizer=SGD(")
    assert len(text) < 300


# -- custom losses -----------------------------------------------------------------------------


def test_a_loss_of_ones_own_as_model_and_as_function(linear_model):
    X, y = batch(dtype=np.float32)
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 18]>
        loss (float[N,1] predicted, float[N,1] expected) => (float[N,1] l) <float half = {0.5}>
        { d = Sub(predicted, expected) s = Mul(d, d) l = Mul(s, half) }""")

    def function(op, predicted, expected):
        d = predicted - expected
        return d * d / 2

    losses = [[TrainingStep(linear_model(3), loss).run(X, y)] for loss in ("squared_error", model, function)]
    assert losses[1] == pytest.approx(losses[0])
    assert losses[2] == pytest.approx(losses[0])
    steps = [
        TrainingStep(linear_model(3), loss, learning_rate=0.1) for loss in ("squared_error", model, function)
    ]
    for step in steps:
        for w in (None, np.linspace(1, 2, 7)):
            step.run(X, y, w)
    for step in steps[1:]:
        np.testing.assert_allclose(step.weights()["w"], steps[0].weights()["w"], rtol=1e-5)


# -- models of several kinds -------------------------------------------------------------------


def test_an_embedding_is_trained_where_it_was_read():
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 18]>
        g (int64[N,2] ids) => (float[N,1] y)
        <float[5,3] table = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15}, float[3,1] w = {1,1,1}>
        { rows = Gather <axis = 0> (table, ids) axes = Constant <value = int64[1] {1}> ()
          total = ReduceSum <keepdims = 0> (rows, axes) y = MatMul(total, w) }""")
    step = TrainingStep(model, learning_rate=0.01)
    before = step.weights()["table"]
    step.run(np.array([[0, 2], [2, 2]]), np.zeros(2))
    changed = (step.weights()["table"] != before).any(axis=1)
    assert changed.tolist() == [True, False, True, False, False]
    with pytest.raises(InvalidDataError, match="ids"):
        step.run(np.array([[0.5, 2]]), np.zeros(1))


def test_a_model_of_a_fixed_batch():
    text = """<ir_version: 8, opset_import: ["": 18]>
        g (float[R,3] x) => (float[R,1] y) <float[3,1] w = {1, 2, 3}> { y = MatMul(x, w) }"""
    fixed = TrainingStep(onnx.parser.parse_model(text.replace("R", "2")))
    free = TrainingStep(onnx.parser.parse_model(text))
    X, y = batch(6, dtype=np.float32)
    assert fixed.run(X[:2], y[:2]) == free.run(X[:2], y[:2])
    np.testing.assert_allclose(fixed.predict(X)["y"], free.predict(X)["y"], rtol=1e-6)
    np.testing.assert_allclose(fixed.scores(X, y, np.arange(6)), free.scores(X, y, np.arange(6)), rtol=1e-5)
    with pytest.raises(InvalidDataError, match=r"takes 2 rows at a time, the data has 5"):
        fixed.predict(X[:5])


def test_batch_normalization_keeps_the_statistics_of_the_model():
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 18]>
        g (float[N,2] x) => (float[N,2] y)
        <float[2] scale = {1, 2}, float[2] bias = {0, 1}, float[2] mean = {1, 1}, float[2] var = {4, 4}>
        { y = BatchNormalization <epsilon = 0.0> (x, scale, bias, mean, var) }""")
    step = TrainingStep(model, learning_rate=0.1)
    assert list(step.weights()) == ["scale", "bias"]
    x = np.array([[3, 5]], np.float32)
    assert step.run(x, np.zeros((1, 2))) == pytest.approx((1 + 25) / 2)
    np.testing.assert_allclose(step.weights()["bias"], [-0.1, 0.5], atol=1e-6)


def test_inputs_of_all_kinds(linear_model):
    X, y = batch(dtype=np.float64)
    kinds = [
        (X.astype(np.float32), y.astype(np.float32)),
        (X.tolist(), y.tolist()),
        (np.asfortranarray(X), y[::1].ravel()),
        (np.repeat(X, 2, axis=0)[::2], np.repeat(y, 2, axis=0)[::2]),
        (X.astype(">f8"), y.astype(">f4")),
        ({"x": X}, {"y": y}),
    ]
    X.setflags(write=False)
    kinds.append((X, y))
    losses = [TrainingStep(linear_model(3)).run(*kind) for kind in kinds]
    assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-5)
    ints = [
        TrainingStep(linear_model(3)).run(np.arange(6, dtype=t).reshape(2, 3), [0, 1])
        for t in ("i8", "f4", "u1")
    ]
    assert ints[0] == ints[1] == ints[2]


def test_nothing_is_warned_about(mlp_model):
    X, y = batch(dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TrainingStep(mlp_model([3, 2, 1], end="Sigmoid"), "binary_crossentropy").run(X, y > 0)


def test_a_step_is_one_run(mlp_model, monkeypatch):
    """Per batch: bind the batch, run; no array is made of weights."""
    X, y = batch(dtype=np.float32)
    step = TrainingStep(mlp_model([3, 2, 1]), optimizer="adam")
    values = [step_module.to_ortvalue(v) for v in step.feeds(X, y).values()]
    for _ in range(2):  # once for each set of buffers
        step.run_batch(values)
    calls = []
    binding = program_module.Binding
    monkeypatch.setattr(binding, "bind_output", lambda *a, **k: calls.append("bind_output"))
    original = binding.rebind_inputs
    monkeypatch.setattr(binding, "rebind_inputs", lambda s, n, v: (calls.extend(n), original(s, n, v)))
    execute = binding.execute
    monkeypatch.setattr(binding, "execute", lambda s: (calls.append("run"), execute(s)))
    step.run_batch(values)
    assert calls == ["x", "y_expected", "run"]


@pytest.mark.parametrize("inner", ["d_expected", "sample_weight"])
def test_scores_of_a_model_that_uses_names_of_ours(inner):
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 18]>
        g (double[N, 3] a) => (double[N, 1] d) <double[3, 1] w = {{1, 2, 3}}, double[1] b = {{0}}> {{
            {inner} = MatMul (a, w)  d = Add ({inner}, b) }}"""
    )
    X = np.random.default_rng(0).normal(size=(4, 3))
    step = TrainingStep(model)
    wanted = 0.5 * (X @ [1.0, 2.0, 3.0]) ** 2
    np.testing.assert_allclose(step.scores(X, np.zeros(4)), wanted)
    np.testing.assert_allclose(step.scores(X, np.zeros(4), np.arange(4.0)), np.arange(4) * wanted)
