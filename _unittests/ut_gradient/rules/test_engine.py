"""The reverse walk: sums of contributions, what carries a gradient, and what it leaves alone."""

from __future__ import annotations

import gc
import tracemalloc

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from bare_gradient import differentiate
from onnx.reference import ReferenceEvaluator

from onnxcustom import gradient_graph
from onnxcustom.exceptions import GradientNotImplementedError, UnknownOperatorError
from onnxcustom.gradient.emit import GradientBuilder
from onnxcustom.gradient.engine import ReverseWalk, captured_values
from onnxcustom.runtime import create_session

HEADER = '<ir_version: 8, opset_import: ["": 18, "d": 3]>'


def parse(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f"{HEADER} {text}")


def gradients(
    text: str, wrt: list[str], feeds: dict[str, np.ndarray], outputs: tuple[str, ...] = ("y",)
) -> dict:
    made = ir.to_proto(differentiate(ir.from_proto(parse(text)), wrt, list(outputs)))
    onnx.checker.check_model(made)
    names = {i.name for i in made.graph.input}
    values = ReferenceEvaluator(made).run(None, {n: v for n, v in feeds.items() if n in names})
    return dict(zip([o.name for o in made.graph.output], values, strict=True))


x, dy = np.array([1.0, -2.0, 3.0]), np.array([0.5, 2.0, -1.0])


def test_contributions_are_added() -> None:
    text = "g (double[3] x) => (double[3] y) { a = Mul(x, x) b = Add(a, x) c = Mul(b, x) y = Add(c, a) }"
    found = gradients(text, ["x"], {"x": x, "y_grad": dy})  # x³ + 2x²
    np.testing.assert_allclose(found["x_grad"], dy * (3 * x**2 + 4 * x))


def test_many_contributions_are_one_sum() -> None:
    text = "g (double[3] x) => (double[3] y) { a = Exp(x) b = Sin(x) c = Tanh(x) y = Sum(a, b, c) }"
    made = differentiate(ir.from_proto(parse(text)), ["x"], ["y"])
    assert [n.op_type for n in made.graph].count("Sum") == 2


def test_input_read_twice_by_one_node() -> None:
    found = gradients("g (double[3] x) => (double[3] y) { y = Mul(x, x) }", ["x"], {"x": x, "y_grad": dy})
    np.testing.assert_allclose(found["x_grad"], 2 * x * dy)


def test_several_outputs() -> None:
    text = "g (double[3] x) => (double[3] y, double[3] z) { y = Mul(x, x) z = Mul(y, x) }"
    found = gradients(text, ["x"], {"x": x, "y_grad": dy, "z_grad": x}, ("y", "z"))
    np.testing.assert_allclose(found["x_grad"], 2 * x * dy + 3 * x**2 * x)


def test_unused_input_gets_zeros() -> None:
    text = "g (double[3] x, double[N] z) => (double[3] y) { y = Tanh(x) }"
    found = gradients(text, ["x", "z"], {"x": x, "z": np.ones(5), "y_grad": dy})
    np.testing.assert_array_equal(found["z_grad"], np.zeros(5))


def test_values_in_between() -> None:
    """The walk differentiates by any value, not inputs alone."""
    proto = parse("g (double[3] x) => (double[3] y) { a = Mul(x, x) b = Exp(a) y = Mul(b, a) }")
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    graph = model.graph
    op = GradientBuilder(18, taken={v.name for n in graph for v in n.outputs})
    a = next(iter(graph)).outputs[0]
    walk = ReverseWalk(op, model.opset_imports)
    found = walk.gradients(list(graph), {graph.outputs[0]: op.input("y_grad", ir.DataType.DOUBLE, [3])}, [a])
    assert list(found) == [a]
    assert found[a].static_shape == (3,)


def test_gradient_stops_at_steps() -> None:
    text = """g (double[3] x) => (double[3] y) {
        b = Greater(x, x)  c = Cast <to = 11> (b)  f = Floor(x)  p = Mul(x, c)  y = Add(p, f) }"""
    found = gradients(text, ["x"], {"x": x, "y_grad": dy})
    np.testing.assert_array_equal(found["x_grad"], np.zeros(3))


def test_nothing_is_emitted_for_what_carries_no_gradient() -> None:
    text = """g (double[3] x, double[3] z) => (double[3] y) {
        a = Exp(z)  b = d.Unknown(a)  c = Tanh(x)  y = Mul(c, b) }"""
    made = differentiate(ir.from_proto(parse(text)), ["x"], ["y"])
    assert [n.op_type for n in made.graph][:4] == ["Exp", "Unknown", "Tanh", "Mul"]


@pytest.mark.parametrize(
    ("node", "error", "words"),
    [
        (
            "d.Unknown(x)",
            UnknownOperatorError,
            ["Unknown", "domain d", "opset 3", "onnxcustom.gradient.rule"],
        ),
        ("com.microsoft.PagedAttention(x)", GradientNotImplementedError, ["PagedAttention", "cache"]),
    ],
)
def test_errors_name_the_node(node: str, error: type[Exception], words: list[str]) -> None:
    with pytest.raises(error) as caught:
        differentiate(
            ir.from_proto(parse(f"g (double[3] x) => (double[3] y) {{ y = {node} }}")), ["x"], ["y"]
        )
    assert all(word in str(caught.value) for word in words)


def test_captured_values() -> None:
    text = """g (double[3] x, double[3] w, bool c) => (double[3] y) {
        y = If (c) <
            then_branch = a () => (double[3] t) {
                q = Mul(x, w)
                t = If (c) <then_branch = b () => (double[3] u) { u = Mul(q, w) },
                            else_branch = e () => (double[3] v) { v = Identity(x) }> },
            else_branch = f () => (double[3] r) { r = Exp(x) }> }"""
    (node,) = ir.from_proto(parse(text)).graph
    assert sorted(v.name for v in captured_values(node)) == ["c", "w", "x"]


@pytest.mark.parametrize("size", ["?", -1])
def test_meaningless_sizes(size: str | int) -> None:
    """Exporters write '?' and -1 for sizes they don't know; they are not all the same."""
    model = parse("g (float[N, 3] x, float[N, 3] z) => (float[N, 3] y) { t = Mul(x, z)  y = Tanh(t) }")
    for value in (*model.graph.input, *model.graph.output):
        dim = value.type.tensor_type.shape.dim[0]
        if isinstance(size, str):
            dim.dim_param = size
        else:
            dim.dim_value = size
    graph = gradient_graph(model, engine="onnx")
    feeds = {"x": np.ones((1, 3)), "z": np.ones((5, 3)), "y_grad": np.ones((5, 3))}
    found = create_session(graph).run(None, {n: v.astype(np.float32) for n, v in feeds.items()})
    assert [v.shape for v in found] == [(1, 3), (5, 3), (5, 3)]
    np.testing.assert_allclose(found[0], np.full((1, 3), 5 * (1 - np.tanh(1) ** 2)), rtol=1e-5)


def test_the_same_graph_every_time() -> None:
    text = """g (float[N, 3] x) => (float[N, 3] y) <float[3] w = {1, 2, 3}> {
        a = Mul(x, w) b = Softmax(a) c = Add(a, b) y = Tanh(c) }"""
    graphs = [
        gradient_graph(parse(text), engine="onnx").SerializeToString(deterministic=True) for _ in range(2)
    ]
    assert graphs[0] == graphs[1]


def test_the_graph_grows_linearly() -> None:
    sizes = []
    for layers in (20, 40, 80):
        lines = [f"v{i + 1} = Tanh(v{i})" for i in range(layers)]
        text = f"g (float[N] v0) => (float[N] y) {{ {' '.join(lines)} y = Exp(v{layers}) }}"
        sizes.append(len(gradient_graph(parse(text), engine="onnx").graph.node))
    assert sizes[2] - sizes[1] == 2 * (sizes[1] - sizes[0])


def test_nothing_keeps_copies_of_weights() -> None:
    big = np.ones((500, 2000), np.float32)  # 4 MB
    model = parse("g (float[N, 500] x) => (float[N, 2000] y) { h = MatMul(x, w) y = Mul(h, s) }")
    model.graph.initializer.append(onnx.numpy_helper.from_array(big, "w"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(2000, np.float32), "s"))
    gradient_graph(model, engine="onnx")
    gc.collect()
    tracemalloc.start()
    try:
        for wrt in (["w"], ["s"]):
            gradient_graph(model, wrt=wrt, inputs=[], engine="onnx")
            gc.collect()
            assert tracemalloc.get_traced_memory()[0] < big.nbytes / 4
    finally:
        tracemalloc.stop()
