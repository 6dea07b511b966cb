"""gradient_report: said beforehand, and true."""

from __future__ import annotations

import onnx
import pytest

from onnxcustom.exceptions import DifferentiationError, UnknownNameError
from onnxcustom.gradient import gradient_graph, gradient_report
from onnxcustom.graph import weights

HEAD = '<ir_version: 8, opset_import: ["": 17]>\n'


def report(text, engine="ort"):
    return gradient_report(onnx.parser.parse_model(HEAD + text), engine=engine)


MIXED = """g (float[N,2] x) => (float[N,2] y, int64[N,1] k) <float[2] w = {1, 2}> {
    s = Shape(x)  a = Mul(x, w)  b = Elu(a)  f = Floor(b)  c = Sinh(b)  d = Add(c, f)
    y = Reshape(d, s)  k = ArgMax<axis=1>(y) }"""


def test_every_node_is_judged():
    how = {row.op_type: row.how for row in report(MIXED)}
    assert how == {
        "Shape": "not needed",
        "Mul": "rule",
        "Elu": "function",
        "Floor": "non-differentiable",
        "Sinh": "refused",
        "Add": "rule",
        "Reshape": "rule",
        "ArgMax": "not needed",
    }


def test_refused_nodes_say_why_and_what_to_do():
    (row,) = report(MIXED).refused
    assert (row.op_type, row.domain, row.opset) == ("Sinh", "", 17)
    assert "another engine" in row.reason
    assert row.node


def test_table():
    made = report(MIXED)
    made.problem = None
    lines = str(made).splitlines()
    assert lines[0].split() == ["node", "operator", "opset", "how", "reason"]
    assert len(lines) == 2 + 8 + 1
    assert "1 refused" in lines[-1]
    made.problem = "not here"
    assert str(made).splitlines()[-1].endswith("not here")
    assert "1 refused" in repr(report(MIXED))


@pytest.mark.ort
@pytest.mark.parametrize(
    "text",
    [
        "g (float[N,2] x) => (float[N,2] y) <float[2] w = {1, 2}> { z = Mul(x, w) y = Softplus(z) }",
        "g (float[N,3,A,B] x) => (float[N,2,C,D] y) <float[2,3,1,1] w = {1,2,3,4,5,6}>"
        " { y = Conv<auto_pad='SAME_UPPER'>(x, w) }".replace("'", '"'),
        "g (float[N,2] x) => (float[N,2] y) <float[2] w = {1, 2}> {"
        ' z = Mul(x, w) y = Einsum<equation="ij->ij">(z) }',
    ],
)
def test_the_report_foretells_what_happens(text):
    refused = report(text).refused
    model = onnx.parser.parse_model(HEAD + text)
    if refused:
        with pytest.raises(DifferentiationError, match=refused[0].op_type):
            gradient_graph(model, engine="ort")
    else:
        gradient_graph(model, engine="ort")


def test_loops_and_branches():
    text = """g (float[N] x, bool flag) => (float[N] y) <float[2] v = {1, 2}> {
        z = Mul(x, v)
        y = If (flag) <then_branch = t () => (float[N] a) { a = Tanh(z) },
                       else_branch = e () => (float[N] b) { b = Exp(z) }> }"""
    assert {row.op_type: row.how for row in report(text)} == {"Mul": "rule", "If": "refused"}


def test_unknown_engine():
    with pytest.raises(UnknownNameError, match="'ort'"):
        report(MIXED, engine="best")


def test_auto_says_which_engine_and_why():
    made = report(MIXED, engine="auto")
    assert (made.engine, made.why) == ("onnx", "the first choice, and it covers the model")
    assert report(MIXED).why == ""


def test_auto_falls_back_to_an_engine_that_says_why():
    unknown = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18, "my.domain": 1]>
        g (float[N,2] x) => (float[N,2] y) <float[2] w = {1, 2}> { z = Mul(x, w) y = my.domain.Magic(z) }"""
    )
    made = gradient_report(unknown)
    assert made.engine == "onnx"
    assert "no engine covers the whole model" in made.why
    assert "Magic" in made.why
    assert not made.trainable


def test_operators_are_counted():
    made = report(MIXED.replace("Reshape(d, s)", "Reshape(m, s)").replace("y = Re", "m = Mul(d, w)  y = Re"))
    counts = {row.op_type: len(row.nodes) for row in made.operators}
    assert counts["Mul"] == 2
    assert made.operators[0].op_type == "Mul"
    assert sum(counts.values()) == len(made)


@pytest.mark.parametrize("engine", ["onnx", "ort"])
def test_weights(engine):
    text = """g (float[N,2] x) => (float[N,2] y) <float[2] a = {1, 2}, float[1,2] b = {3, 4},
        float[2] c = {5, 6}, float[2] d = {7, 8}> {
        p = Mul(x, a)  q = Floor(p)  r = Add(q, b)  s = Mul(r, c)  t = Sinh(d)  y = Add(s, t) }"""
    model = onnx.parser.parse_model(HEAD + text)
    made = gradient_report(model, engine=engine)
    assert [w.name for w in made.weights] == list(weights(model))
    found = {w.name: w for w in made.weights}
    assert {n: (w.shape, w.dtype, w.size) for n, w in found.items()} == {
        n: (v.shape, v.dtype.name, v.size) for n, v in weights(model).items()
    }
    # Floor has a gradient of zeros in engine 'onnx', none in 'ort'.
    assert found["b"].how == found["c"].how == "trained"
    assert found["d"].how == {"onnx": "trained", "ort": "refused"}[engine]
    if engine == "ort":
        assert "Sinh" in found["d"].reason
        assert found["a"].how == "non-differentiable"
        assert "Floor" in found["a"].reason
    assert not made.trainable or engine == "onnx"


def test_scores_behind_dictionaries():
    """A classifier that skl2onnx ends in ZipMap has no floating-point output, and can be trained."""
    text = """<ir_version: 8, opset_import: ["": 17, "ai.onnx.ml": 3]>
        g (float[N,2] x) => (seq(map(int64, float)) y) <float[2,3] w = {1, 2, 3, 4, 5, 6}> {
        z = MatMul(x, w)  p = Softmax(z)  y = ai.onnx.ml.ZipMap<classlabels_int64s = [0, 1, 2]>(p) }"""
    made = gradient_report(onnx.parser.parse_model(text), engine="onnx")
    assert {row.op_type: row.how for row in made} == {
        "MatMul": "rule", "Softmax": "not needed", "ZipMap": "not needed"
    }  # fmt: skip
    assert made.trainable


def test_a_model_without_weights_cannot_be_trained():
    made = gradient_report(onnx.parser.parse_model(HEAD + "g (float[N] x) => (float[N] y) { y = Tanh(x) }"))
    assert made.weights == []
    assert not made.trainable
