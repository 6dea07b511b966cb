# ruff: noqa: E501 - a node of ONNX text stays on its line
"""Small models that stand for large tensors: what is made of them beforehand is counted in bytes."""

import tracemalloc

import numpy as np
import onnx.parser
import pytest

from onnxcustom import gradient_graph, gradient_report
from onnxcustom.exceptions import OnnxCustomError
from onnxcustom.graph import Limits, prepare, use_limits
from onnxcustom.graph.analysis import kernels
from onnxcustom.graph.trainable.initialize import initialize_weights

W = "float[4] w = {1, 2, 3, 4}"
MANY = 300_000_000
BOMBS = {
    "Tile": f"z = Add(x, w)  k = Tile(w, n)  s = ReduceSum(k)  y = Mul(z, s) | {W}, int64[1] n = {{{MANY}}}",
    "Expand": f"z = Add(x, w)  k = Expand(w, n)  s = ReduceSum(k)  y = Mul(z, s) | {W}, int64[2] n = {{{MANY}, 4}}",
    "ConstantOfShape": f"z = Add(x, w)  k = ConstantOfShape(n)  s = ReduceSum(k)  y = Mul(z, s) | {W}, int64[1] n = {{{MANY * 4}}}",
    "Range": f"z = Add(x, w)  k = Range(a, n, b)  c = Cast <to = 1> (k)  s = ReduceSum(c)  y = Mul(z, s) | {W}, int64 a = {{0}}, int64 b = {{1}}, int64 n = {{{MANY}}}",
    "Pad": f"z = Add(x, w)  k = Pad(w, n)  s = ReduceSum(k)  y = Mul(z, s) | {W}, int64[2] n = {{0, {MANY}}}",
    "Resize": f"z = Add(x, w)  k = Resize(w, , , n)  s = ReduceSum(k)  y = Mul(z, s) | {W}, int64[1] n = {{{MANY}}}",
    "OneHot": f"z = Add(x, w)  k = OneHot(i, n, v)  s = ReduceSum(k)  y = Mul(z, s) | {W}, int64[2] i = {{0, 1}}, int64[1] n = {{{MANY}}}, float[2] v = {{0, 1}}",
    "EyeLike": f"z = Add(x, w)  c = ConstantOfShape(n)  k = EyeLike(c)  s = ReduceSum(k)  y = Mul(z, s) | {W}, int64[2] n = {{20000, 20000}}",
    "Concat": "c0 = Identity(w)  " + "".join(f"c{i + 1} = Concat <axis = 0> (c{i}, c{i})  " for i in range(26)) + f"z = Add(x, w)  s = ReduceSum(c26)  y = Mul(z, s) | {W}",
    "Tile of Tile": f"z = Add(x, w)  k = Tile(w, n)  l = Tile(k, n)  s = ReduceSum(l)  y = Mul(z, s) | {W}, int64[1] n = {{20000}}",
    "Loop": f"z = Add(x, w)  q, k = Loop(n, , a) <body = b (int64 i, bool c, float[4] h) => (bool d, float[4] o, float[4] p) {{ d = Identity(c)  o = Add(h, w)  p = Identity(o) }}>  s = ReduceSum(k)  y = Mul(z, s) | {W}, int64 n = {{{MANY}}}, float[4] a = {{0, 0, 0, 0}}",
    "Gather": f"e = Expand(x, n)  k = Gather <axis = 1> (e, i)  s = ReduceSum(k)  z = Add(x, w)  y = Mul(z, s) | {W}, int64[2] n = {{{MANY}, 4}}, int64[2] i = {{3, 1}}",
    "Gather of places": f"e = Expand(t, n)  m = Mul(e, e)  k = Gather(m, i)  s = ReduceSum(k)  z = Add(x, w)  y = Mul(z, s) | {W}, int64[1] n = {{{MANY}}}, int64[2] i = {{7, 3}}, float[1] t = {{1}}",
    "shape arithmetic": f"s0 = Shape(w)  s1 = Mul(s0, n)  s2 = Mul(s1, n)  k = ConstantOfShape(s2)  a = Add(k, k)  s = ReduceSum(a)  z = Add(x, w)  y = Mul(z, s) | {W}, int64[1] n = {{9000}}",
}  # fmt: skip


def model(name):
    nodes, _, data = BOMBS[name].partition(" | ")
    return onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> g (float[N, 4] x) => (float[A, B] y) <{data}> {{ {nodes} }}'
    )


def peak(function):
    """Most bytes that Python and NumPy hold at a time while a function runs; our errors are welcome."""
    tracemalloc.start()
    try:
        function()
    except OnnxCustomError:
        pass
    finally:
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return most


@pytest.mark.parametrize("name", BOMBS)
def test_nothing_large_is_made_beforehand(name):
    made = model(name)
    with use_limits(Limits(folded_bytes=2**24)):
        prepare(made)  # what is imported and cached
        for function in (
            lambda: prepare(made),
            lambda: gradient_report(made),
            lambda: gradient_graph(made, engine="onnx"),
            lambda: initialize_weights(made, seed=0),
        ):
            assert peak(function) < 2**27


@pytest.mark.parametrize("name", ["Tile", "Range", "ConstantOfShape", "Expand", "Pad", "Resize", "OneHot"])
def test_the_limit_of_a_tensor_is_asked_first(name):
    with use_limits(Limits(tensor_bytes=2**28, folded_bytes=2**24)):
        with pytest.raises(OnnxCustomError, match="tensor_bytes"):
            gradient_report(model(name))
        assert peak(lambda: gradient_report(model(name))) < 2**27


def test_a_weight_is_followed_through_few_operators(monkeypatch):
    """Every reader of a reader is one path: there are 2**26 of them in a chain of doublings."""
    made = prepare(model("Concat"))
    steps = []
    original = kernels.ReferenceEvaluator

    def counted(*args, **kwargs):
        steps.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(kernels, "ReferenceEvaluator", counted)
    with use_limits(Limits(folded_bytes=2**24)):
        found = kernels.uses(made.graph.initializers["w"], 17)
    assert 0 < len(steps) <= 2**24 // kernels._LEAST
    assert {use.node.op_type for use in found} <= {"Add", "Concat", "ReduceSum"}


def test_a_long_chain_of_moves():
    nodes = "".join(f"c{i + 1} = Transpose (c{i})  " for i in range(1500))
    made = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N, 4] x) => (float[A, B] y) <float[4, 4] w>'
        f"{{ c0 = Neg(w)  {nodes} y = MatMul(x, c1500) }}"
    )
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32), "w"))
    made.graph.node[0].op_type = "Identity"
    del made.graph.value_info[:]
    prepared = prepare(made)
    (use,) = kernels.uses(prepared.graph.initializers["w"], 17)
    assert use.node.op_type == "MatMul"
    np.testing.assert_array_equal(use.index, np.arange(16).reshape(4, 4))
