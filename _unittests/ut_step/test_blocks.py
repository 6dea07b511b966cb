"""Updates of large weights run block by block, and nothing else about them changes."""

from __future__ import annotations

import itertools
import pickle
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxcustom import TrainingStep, optim
from onnxcustom.exceptions import ConvergenceError
from onnxcustom.graph import to_proto
from onnxcustom.step.passes import blocks, packing
from onnxcustom.step.passes.blocks import in_blocks

from ..ut_optim.test_rules import CASES

ort = pytest.importorskip("onnxruntime")
# One case for each rule: the first one is of its defaults.
FIRST = list({c.name: c for c in reversed(CASES) if not c.rule().stochastic}.values())
# As of 1x1 convolutions, cut into blocks, and of a prime number of numbers.
SHAPES = {"kernel": (8, 12, 1, 1), "matrix": (6, 24), "prime": (101,)}


@pytest.fixture
def small(monkeypatch):
    """Blocks of 16 numbers, of weights from 64 on, none of which is updated together with others."""
    monkeypatch.setattr(blocks, "_LARGE", 64)
    monkeypatch.setattr(blocks, "_BLOCK", 16)
    monkeypatch.setattr(blocks, "_MOST", 64)
    monkeypatch.setattr(packing, "_SMALL", 4)


def model_of(shapes: dict[str, tuple[int, ...]], dtype: Any = np.float64) -> onnx.ModelProto:
    """All weights as one row, plus x: the gradient of squared errors is what that is from y."""
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    rng, total = np.random.default_rng(0), sum(int(np.prod(s)) for s in shapes.values())
    tensors = [onnx.numpy_helper.from_array(np.array([1, -1]), "row")]
    nodes = []
    for name, shape in shapes.items():
        tensors.append(onnx.numpy_helper.from_array(rng.normal(size=shape).astype(dtype), name))
        nodes.append(onnx.helper.make_node("Reshape", [name, "row"], [f"{name}_row"]))
    nodes.append(onnx.helper.make_node("Concat", [f"{name}_row" for name in shapes], ["all"], axis=1))
    nodes.append(onnx.helper.make_node("Add", ["x", "all"], ["y"]))
    values = [onnx.helper.make_tensor_value_info(v, kind, ["N", total]) for v in "xy"]
    graph = onnx.helper.make_graph(nodes, "rows", values[:1], values[1:], tensors)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)


def batches(total: int, dtype: Any = np.float64, steps: int = 10) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [tuple(rng.normal(size=(1, total)).astype(dtype) for _ in range(2)) for _ in range(steps)]


def row(weights: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([w.ravel() for w in weights.values()])


def operators(step: TrainingStep) -> list[str]:
    return [node.op_type for node in step.recipe.graph(False).model.graph]


@pytest.mark.parametrize("case", FIRST, ids=lambda c: c.name)
def test_ten_steps_follow_the_formula(case, small):
    step = TrainingStep(model_of(SHAPES), "squared_error", case.rule(), weights=list(SHAPES))
    w = row(step.weights())
    ends = np.cumsum([0, *(int(np.prod(s)) for s in SHAPES.values())])
    parts = [slice(a, b) for a, b in itertools.pairwise(ends)]
    rate = case.rate if callable(case.rate) else lambda t: case.rate
    own = [
        case.formula(w[p].reshape(s), rate, case.rule().get_params())
        for p, s in zip(parts, SHAPES.values(), strict=True)
    ]
    for formula in own:
        next(formula)
    for x, y in batches(w.size):
        g = (x[0] + w) - y[0]
        found = zip(own, parts, SHAPES.values(), strict=True)
        w = np.concatenate([f.send(g[p].reshape(s)).ravel() for f, p, s in found])
        step.run(x, y)
    np.testing.assert_allclose(row(step.weights()), w, rtol=1e-12, atol=1e-12)
    for name, states in step.state().items():
        like = step.optimizer.create_state(step.weights()[name])
        assert {s: a.shape for s, a in states.items()} == {s: a.shape for s, a in like.items()}


def test_what_is_cut_into_blocks(small):
    step = TrainingStep(model_of(SHAPES), "squared_error", "adam", weights=list(SHAPES))
    assert operators(step).count("Scan") == 2
    whole = {n.op_type for n in step.model.graph.node}
    assert "Scan" not in whole  # for other hosts


def twins(rule: Any, shapes: dict[str, tuple[int, ...]], dtype: Any) -> tuple[TrainingStep, TrainingStep]:
    model = model_of(shapes, dtype)
    return tuple(
        TrainingStep(model, "squared_error", optim.create(rule), weights=list(shapes), passes=passes)
        for passes in (True, False)
    )


@pytest.mark.parametrize("size", [2**16 - 1, 2**16, 2**16 + 1, 2**18 - 1, 2**18, 2**18 + 1])
def test_sizes_around_blocks(size):
    fast, plain = twins("adam", {"w": (size,)}, np.float32)
    assert ("Scan" in operators(fast)) == (size >= 2**18)
    for x, y in batches(size, np.float32, 3):
        fast.run(x, y)
        plain.run(x, y)
    np.testing.assert_allclose(row(fast.weights()), row(plain.weights()), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "options", [{}, {"accumulate": 2}, {"clip_global_norm": 0.1}, {"clip_gradient": 0.1}]
)
@pytest.mark.parametrize("average", [None, "ema"])
def test_whatever_is_done_beside_it(options, average, small):
    model, data = model_of(SHAPES), batches(341)
    steps = [
        TrainingStep(
            model, "squared_error", optim.Adam(**options), weights=list(SHAPES), passes=p, average=average
        )
        for p in (True, False)
    ]
    assert "Scan" in operators(steps[0])
    for x, y in data:
        losses = [step.run(x, y) for step in steps]
        np.testing.assert_allclose(*losses, rtol=1e-12)
    tensors = [step.state_dict()[0] for step in steps]
    assert {k: a.shape for k, a in tensors[0].items()} == {k: a.shape for k, a in tensors[1].items()}
    for name, array in tensors[0].items():
        np.testing.assert_allclose(array, tensors[1][name], rtol=1e-12, atol=1e-14, err_msg=name)


def test_state_goes_out_and_comes_back(small):
    model, data = model_of(SHAPES, np.float32), batches(341, np.float32)
    through = TrainingStep(model, "squared_error", "adam", weights=list(SHAPES))
    again = TrainingStep(model, "squared_error", "adam", weights=list(SHAPES))
    pickled = TrainingStep(model, "squared_error", "adam", weights=list(SHAPES))
    for k, (x, y) in enumerate(data):
        for step in (through, again, pickled):
            step.run(x, y)
        if k == 4:
            saved = again.state_dict()
            again = TrainingStep(model, "squared_error", "adam", weights=list(SHAPES))
            again.load_state_dict(*saved)
            pickled = pickle.loads(pickle.dumps(pickled))
    for step in (again, pickled):
        for name, array in through.state_dict()[0].items():
            np.testing.assert_array_equal(step.state_dict()[0][name], array)


@pytest.mark.parametrize("rule", ["adagrad", "adam"])
def test_infinity_in_the_last_number_of_the_last_block(rule, small):
    """A state overflows where the weight does not show it, or the weight itself; the loss stays finite."""
    step = TrainingStep(model_of({"w": (96,)}, np.float32), "squared_error", rule, weights=["w"])
    x, y = batches(96, np.float32, 1)[0]
    step.run(x, y)
    states = step.state()["w"]
    if rule == "adagrad":  # h + g g
        (h,) = states.values()
        h[-1], y[0, -1] = 3.4e38, 3e18
    else:  # m / (0 + epsilon), once the gradient is 0
        states["m"][-1], states["v"][-1] = 1e38, 0
        y[0, -1] = x[0, -1] + step.weights()["w"][-1]
    step.set_state({"w": states})
    before = step.state_dict()[0]
    with pytest.raises(ConvergenceError, match=r"The objective is [0-9]"):
        step.run(x, y)
    for name, kept in step.state_dict()[0].items():
        np.testing.assert_array_equal(kept, before[name])


# -- the pass ------------------------------------------------------------------------------------------


def cut(body: str, outputs: str, results: set[str], shape: str = "8, 12") -> list[str]:
    text = f"""<ir_version: 8, opset_import: ["": 18]> g (float[{shape}] a, float[{shape}] b, float s,
        float[12] v) => ({outputs}) {{ {body} }}"""
    proto = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text), strict_mode=True)
    model = ir.from_proto(proto)
    in_blocks(model, results)
    made = to_proto(model)
    onnx.checker.check_model(made, full_check=True)
    rng = np.random.default_rng(0)
    feeds = {"a": rng.normal(size=(8, 12)), "b": rng.normal(size=(8, 12)), "s": 0.5, "v": rng.normal(size=12)}
    found = []
    for graph in (proto, made):
        session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
        asked = {i.name: np.asarray(feeds[i.name], np.float32) for i in session.get_inputs()}
        found.append(
            {o.name: a for o, a in zip(session.get_outputs(), session.run(None, asked), strict=True)}
        )
    for name, array in found[0].items():
        np.testing.assert_array_equal(found[1][name].ravel(), array.ravel(), err_msg=name)
    return [node.op_type for node in model.graph]


FOUR = "c = Mul(a, s) d = Add(c, b) e = Mul(d, d)"


@pytest.mark.parametrize(
    ("body", "outputs", "results", "left"),
    [
        (f"{FOUR} y = Sub(e, a)", "float[8, 12] y", {"y"}, ["Reshape", "Reshape", "Scan"]),
        # Two results, of which one reads the other.
        (f"{FOUR} y = Sub(e, d)", "float[8, 12] y, float[8, 12] d", {"y", "d"}, ["Reshape"] * 2 + ["Scan"]),
        # Memory that nobody hands in keeps its shape.
        (f"{FOUR} y = Sub(e, a)", "float[8, 12] y", set(), ["Mul", "Add", "Mul", "Sub"]),
        # What others read as well is made outside.
        (
            "c = Mul(a, s) d = Add(c, b) n = ReduceSum <keepdims = 0> (d) "
            "e = Mul(d, d) f = Neg(e) h = Abs(f) y = Sub(h, n)",
            "float[8, 12] y",
            {"y"},
            ["Mul", "Add", "ReduceSum", "Reshape", "Scan"],
        ),
        # Rows that are broadcast are not number by number; too few nodes.
        ("c = Mul(a, v) y = Add(c, b)", "float[8, 12] y", {"y"}, ["Mul", "Add"]),
        ("c = Add(a, v) d = Mul(c, s) e = Add(d, b) f = Neg(e) y = Abs(f)", "float[8, 12] y", {"y"},
         ["Add", "Reshape", "Reshape", "Scan"]),
    ],
)  # fmt: skip
def test_the_pass(body, outputs, results, left, small):
    assert sorted(cut(body, outputs, results)) == sorted(left)


@pytest.mark.parametrize(("size", "count"), [(2**18, 4), (10**6, 16), (10**7, 125), (2**18 + 3, None)])
def test_blocks_are_of_one_size(size, count):
    found = blocks._blocks(size)
    assert (found is None) == (count is None)
    if found is not None:
        assert size % found == 0
        assert 2**14 <= size // found <= 2**18
