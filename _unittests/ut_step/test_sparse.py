"""Row-sparse updates: a table that is only gathered from changes in the rows of the batch."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxcustom import TrainingStep, optim
from onnxcustom.exceptions import ConvergenceError, OnnxCustomError

pytest.importorskip("onnxruntime")
ROWS, WIDTH = 7, 2
TABLE = np.random.default_rng(0).normal(size=(ROWS, WIDTH))


def embedding(dtype: Any = np.float64, body: str = "gather", index: int = onnx.TensorProto.INT64):
    """The mean of the rows of a table, times a matrix."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = {
        "gather": [helper.make_node("Gather", ["table", "i"], ["rows"])],
        "twice": [
            helper.make_node("Gather", ["table", "i"], ["a"]),
            helper.make_node("Gather", ["table", "fixed"], ["b"]),
            helper.make_node("Mul", ["a", "b"], ["rows"]),
        ],
        "computed": [
            helper.make_node("Sub", ["i", "one"], ["j"]),
            helper.make_node("Gather", ["table", "j"], ["rows"], axis=0),
        ],
        "also_read": [
            helper.make_node("Gather", ["table", "i"], ["a"]),
            helper.make_node("ReduceSum", ["table"], ["b"], keepdims=0),
            helper.make_node("Add", ["a", "b"], ["rows"]),
        ],
    }[body]
    graph = helper.make_graph(
        [
            *nodes,
            helper.make_node("ReduceMean", ["rows"], ["m"], axes=[1], keepdims=0),
            helper.make_node("MatMul", ["m", "w"], ["y"]),
        ],
        "embedding",
        [helper.make_tensor_value_info("i", index, ["N", 3])],
        [helper.make_tensor_value_info("y", kind, ["N", 1])],
        [
            numpy_helper.from_array(TABLE.astype(dtype), "table"),
            numpy_helper.from_array(np.array([[1], [-2]], dtype), "w"),
            numpy_helper.from_array(np.array([[0, 6, 0]]), "fixed"),
            numpy_helper.from_array(np.array(1, helper.tensor_dtype_to_np_dtype(index)), "one"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def batches(n: int = 5):
    rng = np.random.default_rng(1)
    for _ in range(n):
        # Rows that repeat, rows counted from the end, rows never seen.
        yield rng.choice([0, 1, 1, 3, -2], size=(4, 3)), rng.normal(size=(4, 1))


RULES = [
    ("SGD", {"momentum": 0.9, "wd": 0.1}),
    ("SGD", {}),
    ("Adam", {"wd": 0.1, "clip_gradient": 0.05}),
    ("Adam", {"l1": 0.1, "decoupled_weight_decay": True, "wd": 0.1}),
    ("AdaGrad", {"wd": 0.1}),
    ("Ftrl", {"lamda1": 0.01, "wd": 0.1}),
]


@pytest.mark.parametrize("body", ["gather", "twice", "computed"])
@pytest.mark.parametrize(("rule", "options"), RULES)
def test_rows_of_the_batch_follow_the_rule_and_no_others_move(rule, options, body):
    """Each row against the rule alone, on the gradient that a dense step computes."""
    step = TrainingStep(
        embedding(body=body), optimizer=optim.create(rule, lr=0.1, lazy_update=True, **options)
    )
    alone = optim.create(rule, lr=0.1, **options).init_learning_rate()
    state = alone.create_state(TABLE)
    for t, (i, y) in enumerate(batches(), 1):
        before = step.weights()
        probe = TrainingStep(embedding(body=body), optimizer=optim.SGD(1.0, lazy_update=False))
        probe.set_weights(before)
        probe.run(i, y)
        slope = before["table"] - probe.weights()["table"]
        seen = {"gather": i, "twice": np.append(i, [0, 6]), "computed": i - 1}[body]
        rows = np.unique(seen % ROWS)
        wanted, parts = before["table"].copy(), {s: a[rows] for s, a in state.items()}
        moved = wanted[rows]
        alone.update_weights(0, "cpu", moved, slope[rows], 1, list(parts.values()) or None)
        wanted[rows] = moved
        for s, array in parts.items():
            state[s][rows] = array
        alone.update_learning_rate(t)
        step.run(i, y)
        np.testing.assert_allclose(step.weights()["table"], wanted, rtol=1e-10, atol=1e-12)
        for s, array in state.items():
            np.testing.assert_allclose(step.state()["table"][s], array, rtol=1e-10, atol=1e-12)
    assert not np.array_equal(step.weights()["table"], TABLE)


@pytest.mark.parametrize("index", [onnx.TensorProto.INT32, onnx.TensorProto.INT64])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_plain_descent_is_the_same_by_rows(dtype, index):
    steps = [
        TrainingStep(embedding(dtype, index=index), optimizer=optim.SGD(0.1, lazy_update=lazy))
        for lazy in (True, False)
    ]
    integers = np.int32 if index == onnx.TensorProto.INT32 else np.int64
    for i, y in batches():
        losses = [step.run(i.astype(integers), y.astype(dtype)) for step in steps]
        assert losses[0] == pytest.approx(losses[1], rel=1e-2 if dtype is np.float16 else 1e-5)
    tolerance = {np.float16: 1e-2, np.float32: 1e-5, np.float64: 1e-12}[dtype]
    for name, array in steps[1].weights().items():
        np.testing.assert_allclose(steps[0].weights()[name], array, rtol=tolerance, atol=tolerance)
    i = np.array([[0, 1, 2]], integers)
    np.testing.assert_allclose(steps[0].predict(i)["y"], steps[1].predict(i)["y"], rtol=tolerance)
    np.testing.assert_allclose(
        steps[0].scores(i, np.ones((1, 1), dtype)), steps[1].scores(i, np.ones((1, 1), dtype)), rtol=0.01
    )


def sizes(step: TrainingStep) -> set[int]:
    """First dimensions of what the graph hands out."""
    shapes = (o.type.tensor_type.shape.dim for o in step.model.graph.output)
    return {dims[0].dim_value for dims in shapes if dims}


@pytest.mark.parametrize(
    ("body", "options", "extra"),
    [
        ("also_read", {}, {}),
        ("gather", {"lazy_update": False}, {}),
        ("gather", {"accumulate": 2}, {}),
        ("gather", {}, {"penalty": "l2"}),
    ],
)
def test_what_cannot_be_lazy_is_dense(body, options, extra):
    step = TrainingStep(embedding(body=body), optimizer=optim.SGD(0.1, **options), **extra)
    assert ROWS in sizes(step) or options.get("accumulate")
    assert ROWS not in sizes(TrainingStep(embedding(), optimizer=optim.SGD(0.1)))
    for i, y in batches(2):
        step.run(i, y)
    assert not np.array_equal(step.weights()["table"], TABLE)


def test_nothing_in_the_graph_has_the_size_of_the_table():
    step = TrainingStep(embedding(), optimizer=optim.Adam(0.1))
    inferred = onnx.shape_inference.infer_shapes(step.model)
    inside = [v for v in inferred.graph.value_info if v.type.tensor_type.shape.dim]
    assert inside
    assert not any(d.dim_value == ROWS for v in inside for d in v.type.tensor_type.shape.dim)


def test_a_step_that_fails_leaves_the_table():
    step = TrainingStep(embedding(np.float32), optimizer=optim.SGD(1e18))
    (i, y), *_ = batches(1)
    step.run(i, 1e3 * y)
    before = step.weights()
    with pytest.raises(ConvergenceError):
        step.run(i, 1e3 * y)
    for name, array in step.weights().items():
        np.testing.assert_array_equal(array, before[name])


def test_a_pickle_goes_on():
    one = TrainingStep(embedding(), optimizer=optim.Adam(0.1))
    data = list(batches(4))
    for i, y in data[:2]:
        one.run(i, y)
    other = pickle.loads(pickle.dumps(one))
    for i, y in data[2:]:
        assert one.run(i, y) == other.run(i, y)
    np.testing.assert_array_equal(one.weights()["table"], other.weights()["table"])


def test_the_norm_of_all_gradients_includes_the_rows():
    (i, y), *_ = batches(1)
    moved = []
    for options in ({"lazy_update": True}, {"lazy_update": False}):
        step = TrainingStep(embedding(), optimizer=optim.SGD(0.1, clip_global_norm=1e-3, **options))
        step.run(i, y)
        moved.append(dict(step.weights().items()))
    for name in moved[0]:
        np.testing.assert_allclose(moved[0][name], moved[1][name], rtol=1e-12)


def two_tables():
    """Rows of two tables of different width, the wider one read twice, side by side in a product."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        two (int64[N, 2] i) => (double[N, 1] y) <int64 zero = {0}, int64 one = {1}> {
            a = Gather <axis = 1> (i, zero)  b = Gather <axis = 1> (i, one)
            p = Gather (wide, a)  q = Gather (narrow, b)  r = Gather (wide, b)
            pr = Mul(p, r)  all = Concat <axis = 1> (pr, q)  y = MatMul(all, w)
        }"""
    )
    rng = np.random.default_rng(2)
    for name, shape in {"wide": (6, 3), "narrow": (5, 1), "w": (4, 1)}.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape), name))
    return model


@pytest.mark.parametrize("rule", ["SGD", "AdaGrad"])
def test_several_tables_follow_the_dense_step(rule):
    """For rules that leave a row alone whose gradient is zero."""
    steps = [
        TrainingStep(two_tables(), optimizer=optim.create(rule, lr=0.1, lazy_update=lazy))
        for lazy in (True, False)
    ]
    rng = np.random.default_rng(3)
    for _ in range(4):
        i, y = rng.integers(-5, 5, size=(3, 2)), rng.normal(size=(3, 1))
        for step in steps:
            step.run(i, y)
        for name, array in steps[1].weights().items():
            np.testing.assert_allclose(steps[0].weights()[name], array, rtol=1e-12, atol=1e-14)
        for name, states in steps[1].state().items():
            for s, array in states.items():
                np.testing.assert_allclose(steps[0].state()[name][s], array, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("wrong", [ROWS, -ROWS - 1])
def test_a_row_that_there_is_not_is_an_error_and_changes_nothing(wrong):
    step = TrainingStep(embedding(), optimizer=optim.SGD(0.1))
    with pytest.raises(OnnxCustomError):
        step.run(np.array([[0, 1, wrong]]), np.ones((1, 1)))
    for name, array in {"table": TABLE, "w": np.array([[1], [-2]])}.items():
        np.testing.assert_array_equal(step.weights()[name], array)


def test_rows_at_fixed_positions():
    """A table read at constants, as that of positions is: their places among its rows are constants, too."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[N, 3, 2] x) => (float[N, 3, 2] y)
            <float[4, 2] table = {0.5, 0.5, 1, -1, 2, 3, 0, 1}, int64[1, 3] at = {2, 0, 2}> {
            p = Gather (table, at)
            y = Add (x, p)
        }"""
    )
    x = np.random.default_rng(0).normal(size=(2, 3, 2)).astype(np.float32)
    y, table = 2 * x + 1, numpy_helper.to_array(model.graph.initializer[0])
    step = TrainingStep(model, "squared_error", optim.SGD(0.5, lazy_update=True))
    for _ in range(10):
        step.run(x, y)
        dy = (x + table[[2, 0, 2]] - y).mean(axis=0)
        table = table - 0.5 * np.stack([dy[1], 0 * dy[0], dy[0] + dy[2], 0 * dy[0]])
    np.testing.assert_allclose(step.weights()["table"], table, rtol=1e-5, atol=1e-6)
