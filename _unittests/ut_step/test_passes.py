"""Rewriting a step graph changes how fast it runs and nothing else."""

from __future__ import annotations

import itertools
import pickle
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcustom import TrainingStep, optim
from onnxcustom.step.buffers import DoubleBuffer, block_layout

pytest.importorskip("onnxruntime")
ACTIVATIONS = ["Relu", "Tanh", "Sigmoid"]


def network(sizes: list[int], activation: str, dtype: Any, seed: int) -> onnx.ModelProto:
    rng = np.random.default_rng(seed)
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes, tensors, x = [], [], "x"
    for k, (rows, columns) in enumerate(itertools.pairwise(sizes)):
        tensors += [
            onnx.numpy_helper.from_array((rng.normal(size=(rows, columns)) / 2).astype(dtype), f"w{k}"),
            onnx.numpy_helper.from_array(rng.normal(size=columns).astype(dtype), f"b{k}"),
        ]
        nodes.append(onnx.helper.make_node("MatMul", [x, f"w{k}"], [f"z{k}"]))
        x = "y" if k == len(sizes) - 2 else f"a{k}"
        nodes.append(onnx.helper.make_node("Add", [f"z{k}", f"b{k}"], [x]))
        if x != "y":
            nodes.append(onnx.helper.make_node(activation, [x], [f"h{k}"]))
            x = f"h{k}"
    graph = onnx.helper.make_graph(
        nodes,
        "network",
        [onnx.helper.make_tensor_value_info("x", kind, ["N", sizes[0]])],
        [onnx.helper.make_tensor_value_info("y", kind, ["N", sizes[-1]])],
        tensors,
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)


def batch(rows: int, sizes: list[int], dtype: Any, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, sizes[0])).astype(dtype), rng.normal(size=(rows, sizes[-1])).astype(dtype)


def operators(step: TrainingStep) -> list[str]:
    return [node.op_type for node in step.recipe.graph(False).model.graph]


@st.composite
def options(draw: st.DrawFn) -> dict[str, Any]:
    chosen = {
        "wd": draw(st.sampled_from([0.0, 0.1])),
        "l1": draw(st.sampled_from([0.0, 0.0, 0.01])),
        "decoupled_weight_decay": draw(st.booleans()),
        "rescale_grad": draw(st.sampled_from([1.0, 0.5])),
        "clip_gradient": draw(st.sampled_from([None, None, 0.1])),
        "clip_global_norm": draw(st.sampled_from([None, None, 0.5])),
        "lr_mult": draw(st.sampled_from([None, None, {"b*": 2.0}])),
        "accumulate": draw(st.sampled_from([1, 1, 2])),
    }
    return {k: v for k, v in chosen.items() if v is not None}


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    activation=st.sampled_from(ACTIVATIONS),
    loss=st.sampled_from(["squared_error", "absolute_error", "elastic_error"]),
    penalty=st.sampled_from([None, None, "l1", "l2", "elastic"]),
    rule=st.sampled_from(optim.rule_names()),
    shared=options(),
    rows=st.integers(1, 6),
    seed=st.integers(0, 2**16),
)
def test_passes_on_and_off_agree(sizes, activation, loss, penalty, rule, shared, rows, seed):
    model = network(sizes, activation, np.float64, seed)
    on, off = (
        TrainingStep(
            model, loss, optim.create(rule, learning_rate=0.01, **shared), penalty=penalty, passes=passes
        )
        for passes in (True, False)
    )
    for t in range(4):
        x, y = batch(rows, sizes, np.float64, seed + t)
        assert on.run(x, y) == pytest.approx(off.run(x, y), rel=1e-9, abs=1e-12)
    for name, array in off.weights().items():
        np.testing.assert_allclose(on.weights()[name], array, rtol=1e-7, atol=1e-9)
        for s, state in off.state()[name].items():
            np.testing.assert_allclose(on.state()[name][s], state, rtol=1e-7, atol=1e-9)


# -- folding ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "products"),
    [
        (optim.SGD(0.1), 3),
        (optim.SGD(0.1, momentum=0.5), 3),
        (optim.LearningRateSGDNesterov(0.1, momentum=0.5, nesterov=False), 3),
        (optim.SGD(0.1, wd=0.1), 0),
        (optim.SGD(0.1, clip_gradient=1.0), 0),
        (optim.SGD(optim.Exp(0.1, 0.5)), 3),
    ],
    ids=repr,
)
def test_descent_is_part_of_the_products(optimizer, products):
    """No gradient of a matrix is written to memory of its own."""
    step = TrainingStep(network([3, 4, 4, 2], "Relu", np.float32, 0), optimizer=optimizer)
    nodes = list(step.recipe.graph(False).model.graph)
    new = {step.recipe.graph(False).weights[f"w{k}"] for k in range(3)}
    folded = [
        n for n in nodes if n.op_type == "Gemm" and len(n.inputs) == 3 and n.attributes.get_int("transA", 0)
    ]
    assert len(folded) == products
    if not optimizer.get_params().get("momentum") and products:
        assert {n.outputs[0].name for n in folded} == new


def test_a_factor_that_single_precision_lacks_is_not_folded():
    """Attributes are single precision: 0.9 is another number there."""
    step = TrainingStep(network([3, 4, 2], "Relu", np.float64, 0), optimizer=optim.SGD(0.1, momentum=0.9))
    betas = [
        n.attributes.get_float("beta", 1.0)
        for n in step.recipe.graph(False).model.graph
        if n.op_type == "Gemm"
    ]
    assert set(betas) == {1.0}


def test_the_learning_rate_costs_no_pass_over_weights():
    plain, slow = (
        TrainingStep(network([3, 4, 4, 2], "Relu", np.float32, 0), optimizer="sgd", passes=passes)
        for passes in (True, False)
    )
    assert len(operators(plain)) <= len(operators(slow)) - 8


# -- packing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["Adam", "AdaGrad", "RMSProp", "Ftrl", "AdaDelta", "Signum", "FTML"])
def test_many_small_weights_cost_one_update(rule):
    counts = []
    for depth in (2, 12):
        step = TrainingStep(network([3] * depth, "Relu", np.float32, 0), optimizer=optim.create(rule))
        flat = TrainingStep(
            network([3] * depth, "Relu", np.float32, 0), optimizer=optim.create(rule), passes=False
        )
        counts.append((len(operators(step)), len(operators(flat))))
    (few, _), (many, unpacked) = counts
    layers = 10
    assert many - few <= 14 * layers  # forward, backward, and one Reshape each
    assert many < unpacked


@pytest.mark.parametrize("rule", ["LARS", "LAMB", "SGLD"])
def test_rules_that_look_at_whole_weights_are_not_packed(rule):
    step = TrainingStep(network([3, 3, 3], "Relu", np.float32, 0), optimizer=optim.create(rule))
    assert not step.recipe.graph(False).packs


def test_weights_treated_differently_lie_apart():
    rule = optim.Adam(0.1, wd=0.1, lr_mult={"w1": 2.0})
    step = TrainingStep(network([3, 3, 3, 3], "Relu", np.float32, 0), optimizer=rule)
    packs = [names for _, names in step.recipe.graph(False).packs.values()]
    assert ["w0", "w2"] in packs
    assert ["b0", "b1", "b2"] in packs
    assert not any("w1" in names for names in packs)


def test_the_graph_handed_out_has_every_weight_and_state():
    step = TrainingStep(network([3, 3, 3], "Relu", np.float32, 0), optimizer="adam")
    onnx.checker.check_model(step.model, full_check=True)
    outputs = [o.name for o in step.model.graph.output]
    assert {"w0_new", "b0_new", "w0_m_new", "b1_v_new"} <= set(outputs)
    assert not any("packed" in name for name in outputs)


def test_what_is_packed_is_read_written_and_pickled_by_name():
    one = TrainingStep(network([3, 3, 3], "Relu", np.float64, 0), optimizer="adam")
    assert one.recipe.graph(False).packs
    x, y = batch(4, [3, 3], np.float64, 0)
    one.run(x, y)
    other = pickle.loads(pickle.dumps(one))
    again = TrainingStep(network([3, 3, 3], "Relu", np.float64, 1), optimizer="adam", passes=False)
    again.take_over(one)
    for step in (one, other, again):
        step.run(x, y)
    for name, array in one.weights().items():
        np.testing.assert_array_equal(other.weights()[name], array)
        np.testing.assert_allclose(again.weights()[name], array, rtol=1e-9)


def test_layout_of_a_block():
    starts, total = block_layout([3, 16, 17, 1], 16)
    assert starts == [0, 16, 32, 64]
    assert total == 80
    assert block_layout([3, 16, 17, 1]) == ([0, 3, 19, 36], 37)
    assert block_layout([], 4) == ([], 0)


def test_a_pack_is_the_memory_of_its_members():
    from onnxcustom.runtime import parse_device

    arrays = {"a": np.ones((2, 2)), "b": np.full(3, 2.0), "c": np.array(5.0)}
    buffer = DoubleBuffer(arrays, parse_device("cpu"), packs={"both": ["c", "a"]})
    np.testing.assert_array_equal(buffer.read(["both"])[0], [5, 1, 1, 1, 1])
    buffer.write({"both": np.arange(5.0)})
    np.testing.assert_array_equal(buffer.read(["c"])[0], 0)
    np.testing.assert_array_equal(buffer.read(["a"])[0], [[1, 2], [3, 4]])
    np.testing.assert_array_equal(buffer.read(["b"])[0], arrays["b"])


def test_weights_are_numbered_alike_when_some_are_tables():
    """An index names a weight among all, not among those that are packed."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        net (int64[N] i) => (float[N, 2] y)
        <float[3, 2] t = {1, 2, 3, 4, 5, 6}, float[2] a = {1, 2}, float[2] b = {1, 2}, float[2] c = {1, 2}> {
            e = Gather (t, i)  f = Mul (e, a)  g = Mul (f, b)  y = Mul (g, c) }"""
    )
    order = list(TrainingStep(model).weights())
    frozen = order.index("c")
    step = TrainingStep(model, optimizer=optim.Adam(0.1, lr_mult={frozen: 0.0}))
    step.run(np.array([0, 1]), np.zeros((2, 2), np.float32))
    np.testing.assert_array_equal(step.weights()["c"], [1, 2])
    assert not np.array_equal(step.weights()["b"], [1, 2])


def test_half_precision_inside_is_not_prescaled():
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4}> {
            a = Cast <to = 10> (x)  b = Cast <to = 10> (w)  c = MatMul (a, b)  y = Cast <to = 1> (c) }"""
    )
    step = TrainingStep(model, optimizer=optim.SGD(1e-6))
    (rate,) = [n for n in step.model.graph.node if "learning_rate" in n.input]
    assert step.model.graph.output[-1].name in {rate.output[0], "w_new"}
    assert rate.op_type == "Mul"
    assert not any("learning_rate" in n.input for n in step.model.graph.node if n.op_type == "Div")
