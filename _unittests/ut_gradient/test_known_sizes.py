"""Sizes that exporters read off tensors are numbers where the shapes say them."""

from __future__ import annotations

import collections

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from onnxcustom import TrainingStep
from onnxcustom.gradient import gradient_graph
from onnxcustom.gradient.known_sizes import fold_sizes
from onnxcustom.graph.building.builder import Builder
from onnxcustom.testing import check_gradient

INTS = (
    "int64 i0 = {0}, int64 i1 = {1}, int64 i2 = {2}, int64[1] v0 = {0}, int64[1] v2 = {2}, int64[1] m = {-1}"
)
# Halves of the last axis, as chunk() is written with a free batch axis; heads, and a scale of their size.
CHUNK = f"""<ir_version: 8, opset_import: ["": 18]>
    net (float[N, 3, 8] x) => (float[N, 3, 4] y) <{INTS}, float one = {{1}}> {{
        h = Mul(x, w) s = Shape(h) d = Gather(s, i2) a = Add(d, i1) b = Div(a, i2)
        e1 = Mul(b, i1) e2 = Mul(b, i2) u1 = Unsqueeze(e1, v0) u2 = Unsqueeze(e2, v0)
        left = Slice(h, v0, u1, v2) right = Slice(h, u1, u2, v2) y = Mul(left, right) }}"""
HEADS = f"""<ir_version: 8, opset_import: ["": 18]>
    net (float[N, 3, 8] x) => (float[N, 3, 8] y) <{INTS}, float one = {{1}}, int64[1] heads = {{2}}> {{
        h = MatMul(x, w) s = Shape(h) n = Gather(s, i0) t = Gather(s, i1)
        un = Unsqueeze(n, v0) ut = Unsqueeze(t, v0)
        split = Concat<axis = 0>(un, ut, heads, m) parts = Reshape(h, split)
        ps = Shape(parts) size = Gather(ps, m) fs = Cast<to = 1>(size) root = Sqrt(fs) scale = Div(one, root)
        scaled = Mul(parts, scale) biased = Add(scaled, bias)
        join = Concat<axis = 0>(un, ut, m) y = Reshape(biased, join) }}"""


def model(text: str, **shapes: tuple[int, ...]) -> onnx.ModelProto:
    made = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        made.graph.initializer.append(
            onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        )
    return made


def counts(proto: onnx.ModelProto) -> collections.Counter:
    return collections.Counter(node.op_type for node in proto.graph.node)


def test_windows_of_known_sizes_are_no_scatters() -> None:
    made = model(CHUNK, w=(8,))
    found = counts(gradient_graph(made, engine="onnx"))
    assert not {"ScatterElements", "Range", "Shape", "Pad", "Div"} & set(found)
    check_gradient(made)


def test_targets_with_names_give_shapes() -> None:
    made = model(HEADS, w=(8, 8), bias=(2, 4))
    found = counts(gradient_graph(made, engine="onnx"))
    # Whether the bias was repeated is known: nothing looks for it when the graph runs.
    assert not {"NonZero", "Equal", "Sqrt"} & set(found)
    check_gradient(made)


def test_what_depends_on_the_batch_stays() -> None:
    text = """<ir_version: 8, opset_import: ["": 18]>
        net (float[N, 3] x) => (float[M, 3] y) <int64[1] v0 = {0}, int64 i0 = {0}, int64 i2 = {2}> {
            h = Mul(x, w) s = Shape(h) n = Gather(s, i0) half = Div(n, i2) u = Unsqueeze(half, v0)
            y = Slice(h, v0, u, v0) }"""
    check_gradient(model(text, w=(3,)))


def folded(text: str) -> ir.Model:
    made = ir.from_proto(onnx.parser.parse_model(text))
    op = Builder(18, taken={v.name or "" for v in made.graph.inputs} | set(made.graph.initializers))
    fold_sizes(made, op)
    return made


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("s = Shape(x) y = Identity(s)", None),  # the batch is unknown
        ("s = Shape<start = 1>(x) y = Neg(s)", [-6, -4]),
        ("s = Shape(x) t = Slice(s, one, far) y = Mul(t, t)", [36, 16]),
        ("s = Shape(x) t = Gather(s, both) p = ReduceProd(t) y = Squeeze(p)", 24),
        ("s = Shape(x) t = Gather(s, both) d = Div(t, four) y = Concat<axis = 0>(d, m)", [1, 1, -1]),
        ("s = Shape(x) e = Equal(s, m) w = Where(e, four, s) g = Gather(w, both) y = Identity(g)", [6, 4]),
        ("s = Shape(x) e = Equal(s, four) c = Cast<to = 7>(e) y = Identity(c)", None),
    ],
)
def test_values(body: str, expected: object) -> None:
    text = f"""<ir_version: 8, opset_import: ["": 18]> net (float[N, 6, 4] x) => (int64[K] z) <
        int64[1] one = {{1}}, int64[1] far = {{99}}, int64[2] both = {{1, 2}}, int64[1] four = {{4}},
        int64[1] m = {{-1}}>
        {{ {body} z = Identity(y) }}"""
    end = folded(text).graph.outputs[0].producer()
    assert end is not None
    source = end.inputs[0]
    assert source is not None
    constant = source.const_value
    assert (None if constant is None else constant.numpy().tolist()) == expected


def test_ten_steps_are_those_of_the_static_model() -> None:
    made = model(HEADS, w=(8, 8), bias=(2, 4))
    fixed = onnx.ModelProto()
    fixed.CopyFrom(made)
    rng = np.random.default_rng(2)
    X, Y = (rng.standard_normal((5, 3, 8)).astype(np.float32) for _ in range(2))
    del fixed.graph.node[:]
    fixed.graph.node.extend(
        onnx.parser.parse_graph("""g (float[N, 3, 8] x) => (float[N, 3, 8] y) {
            h = MatMul(x, w) parts = Reshape(h, split) scaled = Mul(parts, scale) biased = Add(scaled, bias)
            y = Reshape(biased, join) }""").node
    )
    for name, array in {"split": [-1, 3, 2, 4], "join": [-1, 3, 8], "scale": np.float32(0.5)}.items():
        fixed.graph.initializer.append(onnx.numpy_helper.from_array(np.array(array), name))
    steps = [TrainingStep(m, learning_rate=0.1, weights=["w", "bias"], engine="onnx") for m in (made, fixed)]
    for _ in range(10):
        first, second = (step.run(X, Y) for step in steps)
        assert first == pytest.approx(second, rel=1e-6)
    for name, array in steps[0].weights().items():
        np.testing.assert_allclose(array, steps[1].weights()[name], rtol=1e-5, atol=1e-6)


def test_weights_that_a_number_is_computed_of_are_trained() -> None:
    text = """<ir_version: 8, opset_import: ["": 18]>
        net (int64[N] x) => (float[N, 2] y) <int64[1] v0 = {0}> {
            rows = Gather(table, x) root = Sqrt(size) y = Mul(rows, root) }"""
    made = model(text, table=(5, 2))
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.float32([4.0]), "size"))
    step = TrainingStep(made, learning_rate=0.1, weights=["table", "size"], engine="onnx")
    step.run(np.array([0, 1, 1]), np.ones((3, 2), np.float32))
    assert step.weights()["size"] != 4
