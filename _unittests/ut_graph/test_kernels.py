# ruff: noqa: E501 - a node of ONNX text stays on its line
"""Where the numbers of a weight are in the matrices that operators multiply by."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from onnxcustom.graph import prepare
from onnxcustom.graph.analysis.kernels import kernels, uses

onnxruntime = pytest.importorskip("onnxruntime")


def parse(body: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 18, "com.microsoft": 1]> {body}')


def uses_of(body: str, name: str = "w"):
    model = prepare(parse(body))
    return uses(model.graph.initializers[name], 18)


W23 = "float[2, 3] w = {0, 1, 2, 3, 4, 5}"


def test_a_weight_is_followed_through_what_moves_it():
    (use,) = uses_of(
        f"g (float[N, 3] x) => (float[N, 2] y) <{W23}> {{ a = Identity(w) t = Transpose <perm = [1, 0]> (a) c = Cast <to = 1> (t) y = MatMul(x, c) }}"
    )
    assert (use.node.op_type, use.position) == ("MatMul", 1)
    assert use.index.tolist() == [[0, 3], [1, 4], [2, 5]]
    (kernel,) = kernels(use)
    assert kernel.index.tolist() == [[[0, 1, 2], [3, 4, 5]]]
    assert (kernel.fan_in, kernel.fan_out) == (3, 2)


def test_gates_in_another_order():
    """As PyTorch exports a recurrent cell: the halves of a weight change places on the way."""
    found = uses_of(
        f"g (float[N, 2] x) => (float[N, 3] y) <{W23}, int64[2] s = {{1, 1}}> {{ a, b = Split <axis = 0> (w, s) c = Concat <axis = 0> (b, a) y = MatMul(x, c) }}"
    )
    assert [use.node.op_type for use in found] == ["MatMul", "MatMul"]
    assert sorted(use.index.tolist() for use in found) == [
        [[-1, -1, -1], [0, 1, 2]],
        [[3, 4, 5], [-1, -1, -1]],
    ]


def test_readers_come_in_the_order_of_the_graph():
    found = uses_of(
        f"g (float[N, 2] x) => (float[N, 3] y) <{W23}> {{ a = MatMul(x, w) b = Mul(w, w) c = ReduceSum(b) y = Add(a, c) }}"
    )
    assert [use.node.op_type for use in found] == ["MatMul", "Mul", "Mul"]


def test_what_data_moves_is_not_followed():
    (use,) = uses_of(f"g (int64[2] x) => (float[A, B] y) <{W23}> {{ y = Reshape(w, x) }}")
    assert use.node.op_type == "Reshape"
    assert kernels(use) is None


@pytest.mark.parametrize("operator", ["Add", "Mul", "Softmax"])
def test_what_multiplies_nothing_has_no_kernel(operator):
    operands = "(w)" if operator == "Softmax" else "(x, w)"
    body = f"g (float[2, 3] x) => (float[2, 3] y) <{W23}> {{ z = {operator}{operands} y = Add(x, z) }}"
    assert kernels(uses_of(body)[0]) is None


@given(
    groups=st.integers(1, 3),
    out=st.integers(1, 2),
    inner=st.integers(1, 3),
    window=st.integers(1, 3),
    transposed=st.booleans(),
)
def test_the_rows_of_a_convolution_are_what_its_outputs_sum_up(groups, out, inner, window, transposed):
    """Given a single one among zeros for input, an output is the number of the weight at that place."""
    shape = (groups * inner, out, window) if transposed else (groups * out, inner, window)
    weight = np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)
    operator = "ConvTranspose" if transposed else "Conv"
    node = helper.make_node(operator, ["x", "w"], ["y"], group=groups)
    values = [helper.make_tensor_value_info(n, 1, [None] * 3) for n in "xy"]
    graph = helper.make_graph([node], "g", values[:1], values[1:], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (kernel,) = kernels(uses(prepare(model).graph.initializers["w"], 18)[0])
    assert kernel.index.shape == (groups, out, inner * window)
    assert (kernel.fan_in, kernel.fan_out) == (inner * window, out * window)
    middle = 2 * window
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for group in range(groups):
        x = np.zeros((1, groups * inner, 5 * window), np.float32)
        x[0, group * inner : (group + 1) * inner] = 1
        y = session.run(None, {"x": x})[0]
        sums = weight.reshape(-1)[kernel.index].sum(axis=2)
        np.testing.assert_allclose(y[0, :, middle].reshape(groups, out)[group], sums[group])
        assert not np.delete(y[0].reshape(groups, out, -1), group, axis=0).any()
