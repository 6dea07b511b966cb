"""Roles of weights, by what reads them."""

from __future__ import annotations

import onnx
import pytest

from onnxcustom.graph import prepare, weight_roles

NETS = {
    "through layouts": (
        """{ t = Transpose <perm = [1, 0]> (w)  c = MatMul (x, t)  r = Identity (b)  s = Add (c, r)
             u = Reshape (g, shape)  y = Mul (s, u) }""",
        {"w": "weight", "b": "bias", "g": "unknown"},
    ),
    "multiplied and added": (
        "{ z = MatMul (x, w)  a = Add (z, w)  s = Sub (a, b)  y = Sub (g, s) }",
        {"w": "weight", "b": "bias", "g": "bias"},
    ),
    "read by nobody": ("{ y = MatMul (x, w) }", {"w": "weight", "b": "unknown", "g": "unknown"}),
    "normalized": (
        "{ z = MatMul (x, w)  y = LayerNormalization (z, g, b) }",
        {"w": "weight", "b": "bias", "g": "normalization"},
    ),
    "a branch": (
        """{ c = Constant <value = bool {1}> ()
             y = If (c) <then_branch = g1 () => (float[N, 2] p) { p = MatMul (x, w) },
                         else_branch = g2 () => (float[N, 2] q) { q = Add (x, b) }> }""",
        {"w": "weight", "b": "bias", "g": "unknown"},
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_roles(name):
    body, wanted = NETS[name]
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 2] x) => (float[N, 2] y)
        <float[2, 2] w = {{1, 2, 3, 4}}, float[2] b = {{1, 2}}, float[2] g = {{3, 4}}, int64[1] shape = {{2}}>
        {body}"""
    )
    assert weight_roles(prepare(model), ["w", "b", "g"]) == wanted


def test_names_that_are_no_tensor_are_unknown():
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> net (float[N] x) => (float[N] y) { y = Relu (x) }'
    )
    assert weight_roles(prepare(model), ["nothing"]) == {"nothing": "unknown"}
