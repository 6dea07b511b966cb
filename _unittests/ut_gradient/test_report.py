"""gradient_report: said beforehand, and true."""

from __future__ import annotations

import onnx
import pytest

from onnxcustom.exceptions import DifferentiationError, UnknownNameError
from onnxcustom.gradient import gradient_graph, gradient_report

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
    text = str(report(MIXED))
    lines = text.splitlines()
    assert lines[0].split() == ["node", "operator", "opset", "how", "reason"]
    assert len(lines) == 2 + 8 + 1
    assert "1 refused" in lines[-1]
    assert "1 refused" in repr(report(MIXED))


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


def test_auto_falls_back_to_an_engine_that_says_why():
    assert report(MIXED, engine="auto").engine
