"""SequenceMap over sequences of known length, against finite differences by onnxruntime."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxcustom import gradient_graph
from onnxcustom.exceptions import GradientNotImplementedError
from onnxcustom.runtime import create_session

EXPANSIONS = ["SequenceMap"]

rng = np.random.default_rng(0)

# The nodes of a model with inputs a, b [2, 3] and c [3], all double, and output y.
MODELS = {
    "one": """s = SequenceConstruct(a, b)
        t = SequenceMap <body = m (double[2, 3] e) => (double[2, 3] f) { g = Exp(e) f = Mul(g, e) }> (s)
        y = ConcatFromSequence <axis = 0> (t)""",
    "tensor beside": """s = SequenceConstruct(a, b, a)
        t = SequenceMap <body = m (double[2, 3] e, double[3] d) => (double[2, 3] f) { f = Mul(e, d) }> (s, c)
        y = ConcatFromSequence <axis = 1> (t)""",
    "two sequences": """s = SequenceConstruct(a, b) r = SequenceConstruct(b, b)
        t = SequenceMap <body = m (double[2, 3] e, double[2, 3] d) => (double[2, 3] f) { f = Mul(e, d) }> (s, r)
        i = Constant <value_int = -1> () y = SequenceAt(t, i)""",
    "two outputs": """s = SequenceConstruct(a, b)
        t, u = SequenceMap <body = m (double[2, 3] e) => (double[2, 3] f, double[3] g) {
            f = Tanh(e) x = Constant <value_ints = [0]> () g = ReduceSum <keepdims = 0> (e, x) }> (s)
        v = ConcatFromSequence <axis = 0> (t) w = ConcatFromSequence <axis = 0, new_axis = 1> (u)
        z = Mul(w, c) y = Concat <axis = 0> (v, z)""",
    "captured": """h = Exp(c) s = SequenceConstruct(a, b)
        t = SequenceMap <body = m (double[2, 3] e) => (double[2, 3] f) { f = Mul(e, h) }> (s)
        y = ConcatFromSequence <axis = 0> (t)""",
    "constant in the body": """s = SequenceConstruct(a, b)
        t = SequenceMap <body = m (double[2, 3] e) => (double[2, 3] f) <double[3] k = {1, 2, 3}> { f = Mul(e, k) }> (s)
        y = ConcatFromSequence <axis = 0> (t)""",
    "branch in the body": """s = SequenceConstruct(a, b)
        t = SequenceMap <body = m (double[2, 3] e) => (double[2, 3] f) {
            n = ReduceSum <keepdims = 0> (e) z = CastLike(o, n) p = Greater(n, z)
            f = If (p) <then_branch = yes () => (double[2, 3] j) { j = Mul(e, c) },
                        else_branch = no () => (double[2, 3] l) { l = Exp(e) }> }> (s)
        y = ConcatFromSequence <axis = 0> (t)""",
    "split": """s = SplitToSequence <axis = 0> (a)
        t = SequenceMap <body = m (double[1, 3] e) => (double[1, 3] f) { f = Mul(e, c) }> (s)
        y = ConcatFromSequence <axis = 1> (t)""",
    "map of a map": """s = SequenceConstruct(a, b)
        t = SequenceMap <body = m (double[2, 3] e) => (double[2, 3] f) { f = Exp(e) }> (s)
        u = SequenceMap <body = k (double[2, 3] e) => (double[2, 3] f) { f = Mul(e, c) }> (t)
        y = ConcatFromSequence <axis = 0> (u)""",
    "element itself": """s = SequenceConstruct(a, b)
        t = SequenceMap <body = m (double[2, 3] e) => (double[2, 3] f) { f = Identity(e) }> (s)
        v = ConcatFromSequence <axis = 0> (t) y = Mul(v, c)""",
}


def parse(nodes: str, inputs: str = "double[2, 3] a, double[2, 3] b, double[3] c") -> onnx.ModelProto:
    return onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["": 18]> g ({inputs}) => (double[U, V] y) <float o = {{0}}> {{ {nodes} }}'
    )


@pytest.mark.parametrize("case", MODELS)
def test_gradient(case: str) -> None:
    model = parse(MODELS[case])
    names = [n for n in "abc" if re.search(rf"[(, ]{n}[,)]", MODELS[case])]
    graph = gradient_graph(model, wrt=[], inputs=names, engine="onnx")
    assert not any(node.op_type == "SequenceMap" for node in graph.graph.node)
    feeds = {"a": rng.normal(size=(2, 3)), "b": rng.normal(size=(2, 3)), "c": rng.normal(size=3)}
    forward = create_session(model)
    y = forward.run(None, feeds)[0]
    dy = rng.normal(size=y.shape)
    needed = {i.name for i in graph.graph.input}
    *found, again = create_session(graph).run(
        None, {k: v for k, v in {**feeds, "y_grad": dy}.items() if k in needed}
    )
    np.testing.assert_allclose(again, y)
    for name, gradient in zip(names, found, strict=True):
        direction = rng.normal(size=gradient.shape)
        sides = [
            np.sum(dy * forward.run(None, {**feeds, name: feeds[name] + step * direction})[0])
            for step in (1e-6, -1e-6)
        ]
        np.testing.assert_allclose(
            np.sum(direction * gradient), (sides[0] - sides[1]) / 2e-6, rtol=1e-6, atol=1e-7
        )


def test_unknown_length() -> None:
    model = parse(MODELS["split"], "double[N, 3] a, double[2, 3] b, double[3] c")
    with pytest.raises(GradientNotImplementedError, match=r"how many elements.*Scan") as caught:
        gradient_graph(model, wrt=[], inputs=["a"], engine="onnx")
    assert caught.value.op_type == "SequenceMap"


def test_empty_sequence() -> None:
    """Beside what is differentiated."""
    nodes = """s = SequenceEmpty <dtype = 11> ()
        t = SequenceMap <body = m (double[2, 3] e) => (double[2, 3] f) { f = Mul(e, c) }> (s)
        u = SequenceInsert(t, a) v = ConcatFromSequence <axis = 0> (u) y = Mul(v, c)"""
    graph = gradient_graph(parse(nodes), wrt=[], inputs=["a"], engine="onnx")
    a, c, dy = rng.normal(size=(2, 3)), rng.normal(size=3), rng.normal(size=(2, 3))
    needed = {i.name for i in graph.graph.input}
    feeds = {"a": a, "b": a, "c": c, "y_grad": dy}
    found = create_session(graph).run(None, {k: v for k, v in feeds.items() if k in needed})[0]
    np.testing.assert_allclose(found, dy * c)
