"""Gradients of small whole models, against finite differences and, where installed, PyTorch."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcustom.gradient import gradient_graph
from onnxcustom.runtime import create_session
from onnxcustom.testing import check_gradient

RNG = np.random.default_rng(3)


def build(nodes, inputs, outputs, constants, opset=17):
    """A model from ``(operator, inputs, outputs, attributes)`` and arrays."""
    made = [helper.make_node(op, i.split(), o.split(), **a) for op, i, o, a in nodes]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        made,
        "model",
        [info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        [numpy_helper.from_array(v, n) for n, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def f(*shape):
    return (RNG.normal(size=shape) / np.sqrt(shape[-1])).astype(np.float32)


def lenet(batch="N", opset=17):
    return build(
        [
            ("Conv", "x k1 c1", "a", {"pads": [1, 1, 1, 1]}),
            ("Tanh", "a", "b", {}),
            ("MaxPool", "b", "c", {"kernel_shape": [2, 2], "strides": [2, 2]}),
            ("Conv", "c k2 c2", "d", {}),
            ("BatchNormalization", "d scale shift mean var", "e", {}),
            ("Sigmoid", "e", "h", {}),
            ("AveragePool", "h", "i", {"kernel_shape": [2, 2], "strides": [1, 1], "pads": [1, 1, 0, 0]}),
            ("Flatten", "i", "j", {}),
            ("Gemm", "j w b2", "y", {"transB": 1}),
        ],
        {"x": [batch, 1, 8, 8]},
        {"y": [batch, 3]},
        {
            "k1": f(2, 1, 3, 3),
            "c1": f(2),
            "k2": f(3, 2, 3, 3),
            "c2": f(3),
            "scale": f(3) + 1,
            "shift": f(3),
            "mean": f(3) / 9,
            "var": np.abs(f(3)) + 1,
            "w": f(3, 12),
            "b2": f(3),
        },
        opset,
    )


def attention(batch="N", time="T"):
    return build(
        [
            ("LayerNormalization", "x g1 g2", "n", {}),
            *[("MatMul", f"n w{k}", k, {}) for k in "qkv"],
            ("Transpose", "k", "kt", {"perm": [0, 2, 1]}),
            ("MatMul", "q kt", "s", {}),
            ("Mul", "s half", "s2", {}),
            ("Softmax", "s2", "p", {"axis": -1}),
            ("MatMul", "p v", "o", {}),
            ("Add", "o x", "r", {}),
            ("Erf", "r", "e", {}),
            ("Mul", "e r", "m", {}),
            ("ReduceMean", "m", "y", {"axes": [1], "keepdims": 0}),
        ],
        {"x": [batch, time, 4]},
        {"y": [batch, 4]},
        {
            "g1": f(4) + 1,
            "g2": f(4),
            **{f"w{k}": f(4, 4) for k in "qkv"},
            "half": np.array([0.5], np.float32),
        },
    )


@pytest.mark.parametrize("batch", ["N", 2])
@pytest.mark.parametrize("opset", [13, 17, 21])
def test_lenet(batch, opset):
    result = check_gradient(lenet(batch, opset), {"x": f(2, 1, 8, 8)})
    assert {r.name for r in result.rows} == {"x", "k1", "c1", "k2", "c2", "scale", "shift", "w", "b2"}


@pytest.mark.parametrize(("batch", "time"), [("N", "T"), (2, 3), ("N", 3)])
def test_attention(batch, time):
    result = check_gradient(attention(batch, time), {"x": f(2, 3, 4)})
    assert {r.name for r in result.rows} == {"x", "g1", "g2", "wq", "wk", "wv"}


def test_a_model_deeper_than_recursion():
    nodes = [
        ("Tanh" if k % 2 else "Mul", f"h{k} w" if k % 2 == 0 else f"h{k}", f"h{k + 1}", {})
        for k in range(1200)
    ]
    model = build(nodes, {"h0": ["N", 2]}, {"h1200": ["N", 2]}, {"w": np.array([1.1, 0.9], np.float32)})
    made = gradient_graph(model)
    assert [o.name for o in made.graph.output] == ["h0_grad", "w_grad", "h1200"]


def test_against_torch():
    torch = pytest.importorskip("torch")
    model = lenet()
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    x, seed = f(2, 1, 8, 8), f(2, 3)
    tensors = {n: torch.tensor(v, requires_grad=True) for n, v in {**values, "x": x}.items()}
    functional = torch.nn.functional
    t = tensors
    h = functional.conv2d(t["x"], t["k1"], t["c1"], padding=1).tanh()
    h = functional.conv2d(functional.max_pool2d(h, 2), t["k2"], t["c2"])
    h = functional.batch_norm(h, t["mean"].detach(), t["var"].detach(), t["scale"], t["shift"]).sigmoid()
    padded = functional.pad(h, (1, 0, 1, 0))
    ones = functional.pad(torch.ones_like(h), (1, 0, 1, 0))
    h = functional.avg_pool2d(padded, 2, 1) / functional.avg_pool2d(ones, 2, 1)
    (h.flatten(1) @ t["w"].T + t["b2"]).backward(torch.tensor(seed))
    made = gradient_graph(model)
    session = create_session(made)
    feeds = {i.name: values.get(i.name) for i in session.get_inputs()}
    got = session.run(None, {**feeds, "x": x, "y_grad": seed})
    for info, value in zip(made.graph.output, got, strict=True):
        name = info.name.removesuffix("_grad")
        if name != "y":
            np.testing.assert_allclose(value, t[name].grad.numpy(), rtol=1e-4, atol=1e-5)


def test_opset_and_ir_are_the_lowest_that_serve():
    made = gradient_graph(attention())
    # Rules of engine 'onnx' start at 18.
    assert {o.domain: o.version for o in made.opset_import}[""] == 18
    assert made.ir_version <= 10
    assert {o.domain for o in made.opset_import} == {n.domain for n in made.graph.node}
    onnx.checker.check_model(made)
