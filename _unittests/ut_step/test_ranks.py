"""Scalars get the rank of what they meet where that ends in axes of one number."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxcustom import TrainingStep
from onnxcustom.graph import to_proto
from onnxcustom.step.passes.ranks import widen_scalars

from .test_blocks import batches, model_of, operators

ort = pytest.importorskip("onnxruntime")


def widened(body: str, inputs: str, output: str, fed: tuple[str, ...] = ()) -> ir.Model:
    """A graph rewritten; it gives the same bits as before."""
    text = f"""<ir_version: 8, opset_import: ["": 18]> g ({inputs}) => ({output}) <float k = {{0.5}},
        float[1] one = {{0.5}}, int64[1] all = {{-1}}> {{ {body} }}"""
    proto = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text), strict_mode=True)
    model = ir.from_proto(proto)
    widen_scalars(model, fed)
    made = to_proto(model)
    onnx.checker.check_model(made, full_check=True)
    rng, results = np.random.default_rng(0), []
    x = {
        v.name: rng.random([d.dim_value or 3 for d in v.type.tensor_type.shape.dim])
        for v in proto.graph.input
    }
    for graph in (proto, made):
        session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
        feeds = {i.name: x[i.name].astype(np.float32) for i in session.get_inputs()}
        for i in session.get_inputs():
            feeds[i.name] = feeds[i.name].reshape([d if isinstance(d, int) else 3 for d in i.shape])
        results.append(session.run(None, feeds)[0])
    np.testing.assert_array_equal(results[1], results[0])
    assert results[0].shape == results[1].shape
    return model


def ranks(model: ir.Model) -> list[list[int]]:
    return [[len(v.shape or ()) for v in node.inputs if v is not None] for node in model.graph]


@pytest.mark.parametrize(
    "op", ["Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Greater", "LessOrEqual"]
)
@pytest.mark.parametrize(
    ("shape", "wide"),
    [
        ("40, 8, 1, 1", True),
        ("40, 8, 1", True),
        ("400, 1", True),
        ("N, 8, 1, 1", True),
        ("40, 8", False),
        ("1, 1, 40, 8", False),
        ("40, 1, 8", False),
        ("1, 1", False),
        ("40", False),
    ],
)
def test_constants(op, shape, wide):
    kind = "bool" if op in ("Greater", "LessOrEqual") else "float"
    for body in (f"y = {op} (x, k)", f"y = {op} (k, x)", f"y = {op} (x, one)"):
        model = widened(body, f"float[{shape}] x", f"{kind}[{shape}] y")
        rank = shape.count(",") + 1
        assert max(ranks(model)[0]) == rank
        assert (min(ranks(model)[0]) == rank) == (wide or (rank == 1 and "one" in body))


def test_where_and_what_is_computed():
    x, y = "float[40, 8, 1, 1] x, float s", "float[40, 8, 1, 1] y"
    model = widened("c = Greater(x, k) y = Where(c, x, s)", x, y)
    assert [node.op_type for node in model.graph] == ["Greater", "Reshape", "Where"]
    model = widened("t = Sqrt(s) a = Mul(t, x) b = Mul(t, a) y = Add(s, b)", x, y)
    assert [node.op_type for node in model.graph] == ["Sqrt", "Reshape", "Mul", "Mul", "Reshape", "Add"]
    # Clip wants a scalar, and is quick with one.
    assert ranks(widened("y = Clip(x, k, s)", x, y)) == [[4, 0, 0]]
    # A node is not worth few numbers.
    model = widened("y = Mul(x, s)", "float[N, 1] x, float s", "float[N, 1] y")
    assert [node.op_type for node in model.graph] == ["Mul"]


def test_who_feeds_a_scalar_gives_it_axes():
    x, y = "float[N, 1] x, float s", "float[N, 1] y"
    model = widened("y = Mul(x, s)", x, y, fed=("s",))
    assert ranks(model) == [[2, 2]]
    # Read elsewhere, it stays.
    model = widened("t = Sqrt(s) a = Mul(x, s) y = Mul(a, t)", x, y, fed=("s",))
    assert model.graph.inputs[1].shape == []


def test_inside_of_subgraphs():
    body = """y = If (c) <then_branch = yes () => (float[40, 8, 1] a) { a = Mul(x, s) },
        else_branch = no () => (float[40, 8, 1] b) { b = Add(x, k) }>"""
    text = f"""<ir_version: 8, opset_import: ["": 18]> g (bool c, float[40, 8, 1] x, float s) =>
        (float[40, 8, 1] y) <float k = {{0.5}}> {{ {body} }}"""
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))
    widen_scalars(model)
    made = to_proto(model)
    onnx.checker.check_model(made, full_check=True)
    session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.ones((40, 8, 1), np.float32)
    for yes, wanted in ((True, 3.0), (False, 1.5)):
        got = session.run(None, {"c": np.array(yes), "x": x, "s": np.array(3.0, np.float32)})[0]
        np.testing.assert_array_equal(got, np.full_like(x, wanted))


@pytest.mark.parametrize("shape", [(40, 8, 1, 1), (320, 1)])
@pytest.mark.parametrize("rule", ["adam", "sgd", "lamb"])
def test_no_step_has_such_a_scalar(rule, shape, monkeypatch):
    """Not one that trains, and not the one for other hosts."""
    from onnxcustom.step.passes import packing

    monkeypatch.setattr(packing, "_SMALL", 4)
    model = model_of({"w": shape}, np.float32)
    step = TrainingStep(model, "squared_error", rule, weights=["w"])
    twin = TrainingStep(model, "squared_error", rule, weights=["w"], passes=False)
    for x, y in batches(320, np.float32, 3):
        np.testing.assert_allclose(step.run(x, y), twin.run(x, y), rtol=1e-5)
    np.testing.assert_allclose(step.weights()["w"], twin.weights()["w"], rtol=1e-5, atol=1e-6)
    assert "Mul" in operators(step)
    for graph in (step.recipe.graph(False).model.graph, ir.from_proto(step.model).graph):
        for node in graph:
            shapes = [v.shape for v in node.inputs if v is not None and v.shape is not None]
            if node.op_type in ("Mul", "Add", "Sub", "Div") and any(s == shape for s in shapes):
                assert {len(s) for s in shapes} == {len(shape)}
