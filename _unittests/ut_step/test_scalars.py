"""Scalars computed beside a step graph are those that the graph computed."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxcustom import TrainingStep, optim
from onnxcustom.graph import to_proto
from onnxcustom.step.passes.scalars import plan_scalars

ort = pytest.importorskip("onnxruntime")
SOURCES = {"rate": "hyper['learning_rate']", "t": "step", "n": "rows", "part": "share"}


def planned(body: str, hoist: bool = True):
    text = f"""<ir_version: 8, opset_import: ["": 18]>
        step (float[N, 2] x, float rate, float t, float n, float part) => (float loss, float[N, 2] y)
        <float half = {{0.5}}, double one = {{1}}, double beta = {{0.9}}, float[1] vector = {{2}}> {{
        {body} }}"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    inferred = ir.from_proto(onnx.shape_inference.infer_shapes(to_proto(model), strict_mode=True))
    before = to_proto(inferred)
    return before, inferred, plan_scalars(inferred, "loss", SOURCES, hoist)


def run(proto: onnx.ModelProto, feeds: dict) -> list[np.ndarray]:
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    known = [i.name for i in session.get_inputs()]
    return session.run(None, {k: np.asarray(feeds.get(k, np.nan), np.float32) for k in known})


@pytest.mark.parametrize(
    ("body", "left", "by"),
    [
        ("a = Div(rate, n) y = Mul(a, x) s = ReduceSum <keepdims = 0> (x) loss = Div(s, n)", 2, "rows"),
        ("y = Mul(rate, x) s = ReduceSum <keepdims = 0> (x) h = Mul(half, s) loss = Sub(h, t)", 2, ""),
        (
            """d = Cast <to = 11> (t) p = Pow(beta, d) q = Sub(one, p) c = Cast <to = 1> (q) r = Sqrt(c)
            m = Mul(rate, r) y = Mul(m, x) loss = ReduceSum <keepdims = 0> (x)""",
            2,
            "step",
        ),
        ("a = Mul(rate, part) y = Mul(a, x) loss = ReduceSum <keepdims = 0> (x)", 2, "share"),
        ("e = Exp(rate) l = Log(t) a = Neg(e) b = Reciprocal(l) c = Add(a, b) y = Mul(c, x)"
         " loss = ReduceSum <keepdims = 0> (y)", 2, "step"),
        # Not one scalar: two sums, of which the loss is made; a vector; an operator Python lacks.
        ("y = Mul(rate, x) s = ReduceSum <keepdims = 0> (x) q = ReduceL1 <keepdims = 0> (x) loss = Add(s, q)",
         4, ""),
        ("a = Mul(rate, vector) y = Mul(a, x) loss = ReduceSum <keepdims = 0> (x)", 3, ""),
        ("a = Floor(rate) y = Mul(a, x) loss = ReduceSum <keepdims = 0> (x)", 3, ""),
    ],
)  # fmt: skip
def test_against_the_graph_as_it_was(body, left, by):
    before, model, plan = planned(body)
    assert len(model.graph) == left
    assert {w for w in ("step", "share", "rows") if getattr(plan, f"by_{w}")} == {by} - {""}
    x = np.array([[1, 2], [3, 5], [7, 11]], np.float32)
    wanted = run(before, {"x": x, "rate": 0.3, "t": 4, "n": 3, "part": 0.25})
    given = ({"learning_rate": 0.3}, 4, 0.25, 3, [])
    feeds = dict(zip(plan.names, plan.feeds(*given), strict=True))
    raw, y = run(to_proto(model), {"x": x, **feeds})
    np.testing.assert_allclose(y, wanted[1], rtol=1e-6)
    np.testing.assert_allclose(plan.loss(float(raw), *given), wanted[0], rtol=1e-6)


def test_as_it_is():
    before, model, plan = planned(
        "a = Div(rate, n) y = Mul(a, x) s = ReduceSum <keepdims = 0> (x) loss = Div(s, n)", hoist=False
    )
    assert [n.op_type for n in model.graph] == [n.op_type for n in before.graph.node]
    assert plan.feeds({"learning_rate": 0.5}, 1, 1.0, 3, []) == (0.5, 3)
    assert plan.loss(7.0, {}, 1, 1.0, 3, []) == 7.0
    assert set(plan.names) == {"rate", "n"}  # the graph does not read the others


@pytest.mark.parametrize(
    ("rate", "rows", "loss"), [(0.0, 0, math.nan), (1.0, 0, math.nan), (-1.0, 2, 0.0), (0.0, 2, 0.0)]
)
def test_where_python_raises_and_onnx_does_not(rate, rows, loss):
    before, model, plan = planned(
        """a = Div(rate, n) b = Sqrt(a) c = Log(b) y = Mul(c, x)
        s = ReduceSum <keepdims = 0> (x) loss = Div(s, n)"""
    )
    x = np.zeros((1, 2), np.float32)
    wanted = run(before, {"x": x, "rate": rate, "t": 1, "n": rows, "part": 1})
    given = ({"learning_rate": rate}, 1, 1.0, rows, [])
    raw, y = run(to_proto(model), {"x": x, **dict(zip(plan.names, plan.feeds(*given), strict=True))})
    np.testing.assert_array_equal(y, wanted[1])
    np.testing.assert_array_equal(plan.loss(float(raw), *given), wanted[0])
    np.testing.assert_array_equal(wanted[0], np.float32(loss))


@pytest.mark.parametrize("rule", ["Adam", "AdamW", "LAMB", "FTML", "AdaMax"])
def test_no_arithmetic_of_scalars_is_left(rule, mlp_model):
    step = TrainingStep(mlp_model([3, 2, 1]), optimizer=optim.create(rule), passes=True)
    graph = step.recipe.graph(False)
    scalars = {v for v in graph.model.graph.inputs if v.shape is not None and not len(v.shape)}
    for node in graph.model.graph:
        assert not {v for v in node.inputs if v is not None} <= scalars | set(
            graph.model.graph.initializers.values()
        ), node


def test_the_graph_handed_out_needs_none_of_it(mlp_model):
    step = TrainingStep(mlp_model([3, 2, 1]), optimizer="adam", passes=True)
    operators = [n.op_type for n in step.model.graph.node]
    assert {"Shape", "Pow"} <= set(operators)
    assert len(operators) > len(step.recipe.graph(False).model.graph) + 10


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_batches_of_any_size_in_turn(optimizer, mlp_model):
    """What depends on the rows, ones among it, follows the batch."""
    rng = np.random.default_rng(0)
    on, off = (
        TrainingStep(
            mlp_model([3, 40, 2], dtype=np.float64), optimizer=optimizer, learning_rate=0.01, passes=passes
        )
        for passes in (True, False)
    )
    for rows in (5, 5, 2, 5, 1, 1, 7, 2):
        x, y = rng.normal(size=(rows, 3)), rng.normal(size=(rows, 2))
        assert on.run(x, y) == pytest.approx(off.run(x, y), rel=1e-12)
    for name, array in off.weights().items():
        np.testing.assert_allclose(on.weights()[name], array, rtol=1e-10)
