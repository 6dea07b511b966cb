"""Computing activations again changes what is kept and nothing else."""

from __future__ import annotations

import itertools
import pickle
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcustom import TrainingStep
from onnxcustom.graph import to_proto
from onnxcustom.step.passes.recompute import _sink_side, recompute

ort = pytest.importorskip("onnxruntime")
# Tanh where gelu has Erf, which onnxruntime has in single precision only.
GELU = (
    "{y}q = Div({x}, root) {y}e = Tanh({y}q) {y}o = Add({y}e, one) {y}m = Mul({x}, {y}o) {y} = Mul({y}m, a)"
)
SILU = "{y}s = Sigmoid({x}) {y} = Mul({x}, {y}s)"
ACTIVATIONS = {
    "gelu": GELU,
    "silu": SILU,
    "tanh": "{y} = Tanh({x})",
    "relu": "{y} = Relu({x})",
    "softmax": "{y} = Softmax <axis = -1> ({x})",
    "norm": "{y} = LayerNormalization({x}, scale)",
    "exp": "{y}n = Neg({x}) {y}e = Exp({y}n) {y}p = Add({y}e, one) {y} = Div({x}, {y}p)",
    "drop": "{y} = Dropout({x}, a)",
    "transposed": "{y}t = Transpose ({x}) {y}h = Tanh({y}t) {y} = Transpose ({y}h)",
}
WIDTH = 4


def network(layers: list[list[str]], residual: bool, seed: int = 0) -> onnx.ModelProto:
    """Products with a chain of activations behind each."""
    rng = np.random.default_rng(seed)
    lines, last = [], "x"
    for k, chain in enumerate(layers):
        start, value = last, f"z{k}"
        lines.append(f"p{k} = MatMul({last}, w{k}) {value} = Add(p{k}, b{k})")
        for i, name in enumerate(chain):
            lines.append(ACTIVATIONS[name].format(x=value, y=f"a{k}_{i}"))
            value = f"a{k}_{i}"
        if residual:
            lines.append(f"r{k} = Add({value}, {start})")
            value = f"r{k}"
        last = value
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 18]>
        net (double[N, {WIDTH}] x) => (double[N, 1] y) <double root = {{1.4142135}}, double one = {{1}},
        double a = {{0.5}}, double[{WIDTH}] scale = {{1, 2, 0.5, 1}}> {{
        {" ".join(lines)} y = MatMul({last}, v) }}"""
    )
    shapes = {"v": (WIDTH, 1)}
    for k in range(len(layers)):
        shapes |= {f"w{k}": (WIDTH, WIDTH), f"b{k}": (WIDTH,)}
    for name, shape in shapes.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(rng.normal(size=shape) / 2, name))
    return model


def batch(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, WIDTH)), rng.normal(size=(rows, 1))


def pair(model: onnx.ModelProto, **options: Any) -> list[TrainingStep]:
    return [TrainingStep(model, learning_rate=0.05, recompute=again, **options) for again in (True, False)]


def again(step: TrainingStep) -> list[ir.Node]:
    return [n for n in step.recipe.graph(False).model.graph if (n.name or "").endswith("_again")]


def kept(step: TrainingStep) -> set[str]:
    """What the part of the graph that depends on the expected values reads of the rest."""
    graph = step.recipe.graph(False).model.graph
    late: set[ir.Value] = {v for v in graph.inputs if v.name == "y_expected"}
    read: set[ir.Value] = set()
    for node in graph:
        if any(v in late for v in node.inputs):
            late.update(node.outputs)
            read.update(v for v in node.inputs if v is not None and v not in late and v.producer())
    return {str(v.name) for v in read if v.dtype != ir.DataType.INT64}


@settings(deadline=None, max_examples=15)
@given(
    layers=st.lists(st.lists(st.sampled_from(sorted(ACTIVATIONS)), max_size=3), min_size=1, max_size=3),
    residual=st.booleans(),
    optimizer=st.sampled_from(["sgd", "adam"]),
    penalty=st.sampled_from([None, "l2"]),
    passes=st.booleans(),
    rows=st.integers(1, 5),
    seed=st.integers(0, 2**16),
)
def test_the_same_training(layers, residual, optimizer, penalty, passes, rows, seed):
    model = network(layers, residual, seed=seed)
    dropout = "on" if any("drop" in chain for chain in layers) else "off"
    steps = pair(model, optimizer=optimizer, penalty=penalty, passes=passes, dropout=dropout, seed=seed)
    for t in range(3):
        x, y = batch(rows, seed=seed + t)
        losses = [step.run(x, y) for step in steps]
        assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    for name, array in steps[1].weights().items():
        np.testing.assert_allclose(steps[0].weights()[name], array, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("chain", [["gelu"], ["gelu", "silu"], ["silu", "tanh", "exp"]])
def test_only_what_products_give_is_kept(chain):
    step, plain = pair(network([chain] * 3, residual=False), passes=True)
    assert kept(step) == {"z0", "z1", "z2", "y"}
    assert len(kept(plain)) >= 3 * len(chain) + 3


def test_residual_connections_are_kept():
    """The chain of all layers would be computed again, and kept, when the backward pass begins."""
    step, _ = pair(network([["gelu"]] * 4, residual=True))
    assert {"r0", "r1", "r2"} <= kept(step)
    assert not {f"r{k}_again" for k in range(3)} & {v.name for n in again(step) for v in n.outputs}


def test_every_copy_waits_for_a_gradient():
    step, _ = pair(network([["gelu", "norm", "silu"]] * 3, residual=True))
    late = {v for v in step.recipe.graph(False).model.graph.inputs if v.name == "y_expected"}
    copies = again(step)
    assert copies
    for node in step.recipe.graph(False).model.graph:
        if any(v in late for v in node.inputs):
            late.update(node.outputs)
    assert all(set(node.outputs) <= late for node in copies)


def test_copies_of_a_layer_wait_for_the_gradient_of_that_layer():
    """Those of the first layer come after the product that gives the gradient of the second."""
    step, _ = pair(network([["gelu"]] * 3, residual=False))
    graph = step.recipe.graph(False).model.graph
    behind: dict[ir.Value, set[ir.Node]] = {}
    for node in graph:
        found = {node}.union(*(behind.get(v, set()) for v in node.inputs if v is not None))
        behind.update(dict.fromkeys(node.outputs, found))
    products = [
        {n for n in behind[copy.outputs[0]] if n.op_type == "Gemm" and n.attributes.get_int("transB", 0)}
        for copy in again(step)
        if copy.op_type == "Sigmoid"  # what a gelu by Tanh becomes
    ]
    assert sorted(len(found) for found in products) == [0, 1, 2]


def test_onnxruntime_does_not_merge_them(tmp_path):
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    step, _ = pair(network([["gelu", "silu"]] * 2, residual=False), sess_options=options)
    step.run(*batch(3))
    left = {n.name for n in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert {n.name for n in again(step)} <= left


def test_nothing_to_compute_again():
    step, plain = pair(network([[], []], residual=False))
    assert not again(step)
    assert len(step.recipe.graph(False).model.graph) == len(plain.recipe.graph(False).model.graph)


def test_masks_are_kept_as_booleans():
    """A mask costs a byte a number, and drawing it again more than any activation."""
    step, _ = pair(network([["drop", "gelu"]], residual=False), dropout="on")
    values = {v.name: v for n in step.recipe.graph(False).model.graph for v in n.outputs}
    read = [values[name] for name in kept(step) if name in values]
    assert any(v.dtype == ir.DataType.BOOL for v in read)
    assert not any(n.op_type == "Mod" for n in again(step))


def test_subgraphs_read_what_they_read():
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]>
        net (double[N, 2] x) => (double[N, 2] y)
        <double[2, 2] w = {1, 2, 3, 4}, double[2, 2] u = {1, 0, 2, 1}, double zero = {0}> {
            total = ReduceSum <keepdims = 0> (x) c = Greater(total, zero)
            z = MatMul(x, w) t = Tanh(z) s = Sigmoid(t)
            h = If (c) <then_branch = a () => (double[N, 2] p) { p = Mul(s, t) },
                else_branch = b () => (double[N, 2] q) { q = Mul(s, s) }>
            y = MatMul(h, u) }"""
    )
    rng = np.random.default_rng(0)
    x, y = rng.uniform(size=(3, 2)), rng.normal(size=(3, 2))
    steps = pair(model)
    for sign in (1, -1):
        losses = [step.run(sign * x, y) for step in steps]
        assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    for name, array in steps[1].weights().items():
        np.testing.assert_allclose(steps[0].weights()[name], array, rtol=1e-12)


def test_the_graph_handed_out_computes_again_too():
    step, _ = pair(network([["gelu"]] * 2, residual=False))
    onnx.checker.check_model(step.model, full_check=True)
    assert any(n.name.endswith("_again") for n in step.model.graph.node)


def test_pickled():
    step = pair(network([["gelu"]] * 2, residual=False))[0]
    step.run(*batch(3))
    other = pickle.loads(pickle.dumps(step))
    assert len(again(other)) == len(again(step)) > 0
    assert other.run(*batch(2, seed=1)) == step.run(*batch(2, seed=1))


# -- the cut ------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(
    sizes=st.lists(st.integers(1, 20), min_size=2, max_size=7),
    data=st.data(),
)
def test_the_fewest_bytes(sizes, data):
    """Against all sets of tensors of graphs of few nodes."""
    n = len(sizes)
    reads = [
        data.draw(st.lists(st.integers(0, i - 1), max_size=2, unique=True)) if i else [] for i in range(n)
    ]
    expensive = {0, *data.draw(st.sets(st.integers(0, n - 1), max_size=2))}
    needed = data.draw(st.sets(st.integers(0, n - 1), min_size=1))
    edges = {(2 * i, 2 * i + 1): size for i, size in enumerate(sizes)}
    for i in range(n):
        if i in expensive:
            edges[2 * n, 2 * i] = 10_000
        else:
            edges |= {(2 * j + 1, 2 * i): 10_000 for j in reads[i]}
    edges |= {(2 * i + 1, 2 * n + 1): 10_000 for i in needed}
    near = _sink_side(edges, 2 * n, 2 * n + 1)
    found = {i for i in range(n) if 2 * i not in near and 2 * i + 1 in near}

    def follows(held: set[int]) -> bool:
        known = set(held)
        for i in range(n):
            if i not in expensive and set(reads[i]) <= known:
                known.add(i)
        return needed <= known

    best = min(
        sum(sizes[i] for i in held)
        for k in range(n + 1)
        for held in itertools.combinations(range(n), k)
        if follows(set(held))
    )
    assert follows(found)
    assert sum(sizes[i] for i in found) == best


def test_alone():
    """On a graph of ours: a seed, and what was computed before."""
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]>
        g (float[N, 2] x, float[N, 2] s, float[2, 2] w) => (float[N, 2] y, float[N, 2] d) {
            z = MatMul(x, w) e = Exp(z) t = Tanh(e) y = Abs(t) a = Mul(s, t) c = Mul(a, e) d = Add(c, z) }"""
    )
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    assert recompute(model, [model.graph.inputs[1]]) == 2
    made = to_proto(model)
    onnx.checker.check_model(made, full_check=True)
    by_output = {v: n for n in made.graph.node for v in n.output}
    assert by_output["a"].input[1] == "t_again"
    assert by_output["c"].input[1] == by_output["t_again"].input[0] == "e_again"
    assert by_output["d"].input[1] == "z"
    feeds = {n: np.random.default_rng(0).normal(size=(2, 2)).astype(np.float32) for n in "xsw"}
    results = [
        ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)
        for m in (proto, made)
    ]
    for one, two in zip(*results, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("again", [False, True])
def test_strings_on_the_way(again: bool) -> None:
    """A model that turns categories into strings and those into numbers: a string has no size in bytes."""
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17, "ai.onnx.ml": 3]>
        g (int64[N, 2] c) => (float[N, 1] y) <float[2, 3] w = {1, 2, 3, 4, 5, 6}, float[3, 1] v = {1, 1, 1}> {
            s = ai.onnx.ml.LabelEncoder<keys_int64s = [0, 1], values_strings = ["a", "b"]>(c)
            f = ai.onnx.ml.LabelEncoder<keys_strings = ["a", "b"], values_floats = [0.1, 0.2]>(s)
            z = MatMul(f, w) t = Tanh(z) q = Mul(t, t) y = MatMul(q, v) }"""
    )
    rows = np.array([[0, 1], [1, 1], [1, 0]])
    step = TrainingStep(proto, learning_rate=0.1, recompute=again)
    # The same on floats, without strings.
    numbers = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 2] f) => (float[N, 1] y) <float[2, 3] w = {1, 2, 3, 4, 5, 6}, float[3, 1] v = {1, 1, 1}> {
            z = MatMul(f, w) t = Tanh(z) q = Mul(t, t) y = MatMul(q, v) }"""
    )
    other = TrainingStep(numbers, learning_rate=0.1)
    target = np.ones((3, 1), np.float32)
    for _ in range(3):
        found = step.run(rows, target)
        assert found == pytest.approx(other.run(np.float32([0.1, 0.2])[rows], target), rel=1e-6)
