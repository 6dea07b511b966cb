"""What would end the process is an error, or has the result that it has by definition."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxcustom.exceptions import OnnxCustomError
from onnxcustom.graph import prepare, to_proto
from onnxcustom.runtime import create_session, run_values, to_ortvalue


def session(op: str, dtype: type, divisor: np.ndarray | None = None):
    """y = a op d, both inputs unless the divisor is given."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    inputs = [helper.make_tensor_value_info("a", kind, ["N", 3])]
    inputs += [helper.make_tensor_value_info("d", kind, [3])] if divisor is None else []
    tensors = [] if divisor is None else [onnx.numpy_helper.from_array(divisor, "d")]
    y = helper.make_tensor_value_info("y", kind, ["N", 3])
    graph = helper.make_graph([helper.make_node(op, ["a", "d"], ["y"], name="n")], "g", inputs, [y], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return create_session(to_proto(prepare(model)), threads=1)


def run(made, **feeds: np.ndarray) -> np.ndarray:
    return run_values(made, {n: to_ortvalue(v) for n, v in feeds.items()}, ["y"])[0].numpy()


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("op", ["Div", "Mod"])
def test_division_of_integers(op, dtype):
    made = session(op, dtype)
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    a = np.array([[low, high, 7], [-7, low + 1, 0]], dtype)
    rows = [[int(v) for v in row] for row in a]
    by = [3, 5, -1]
    if op == "Div":
        wanted = [
            [abs(x) // abs(d) * (1 if x * d > 0 else -1) for x, d in zip(r, by, strict=False)] for r in rows
        ]
    else:
        wanted = [[x % d for x, d in zip(r, by, strict=False)] for r in rows]
    assert run(made, a=a, d=np.array(by, dtype)).tolist() == wanted
    assert run(made, a=a[:0], d=np.array(by, dtype)).shape == (0, 3)
    with pytest.raises(OnnxCustomError, match="integer division by zero"):
        run(made, a=a, d=np.array([1, 0, 1], dtype))
    by_minus_one = np.array([-1, 1, 1], dtype)
    if op == "Div":
        with pytest.raises(OnnxCustomError, match="overflow"):
            run(made, a=a, d=by_minus_one)
    else:
        assert run(made, a=a, d=by_minus_one)[0, 0] == 0


@pytest.mark.parametrize("op", ["Div", "Mod"])
def test_constants(op):
    with pytest.raises(OnnxCustomError, match=r"division by zero|out of data bounds"):
        # Some onnxruntime compute what is constant when the session is made.
        run(session(op, np.int64, np.array([2, 0, 1])), a=np.ones((2, 3), np.int64))
    text = f"g (int64[N] a) => (int64[N] y) <int64 d = {{2}}> {{ y = {op}(a, d) }}"
    plain = prepare(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}'))
    assert [node.op_type for node in plain.graph] == [op]


def test_lower_bound_before_quantization():
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[N] x) => (uint8[N] y)
        <float low = {0}, float s = {0.1}, uint8 z = {0}> { c = Clip(x, low) y = QuantizeLinear(c, s, z) }"""
    )
    made = create_session(to_proto(prepare(model)), threads=1)
    assert run(made, x=np.array([-1, 2, 7, np.inf], np.float32)).tolist() == [0, 20, 70, 255]
