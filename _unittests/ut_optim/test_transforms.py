"""Transforms that are spelled differently in early opsets."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from onnxcustom.graph.building.builder import Builder
from onnxcustom.optim import transforms

X = np.array([-3.0, -0.7, -0.1, 0.0, 1e-20, 0.1, 0.7, 3.0])
OPSETS = pytest.mark.parametrize("opset", [7, 8, 9, 11, 18])


def evaluate(emit, *arrays, opset=18):
    op = Builder(opset)
    inputs = [op.input(f"x{i}", ir.DataType.from_numpy(a.dtype), a.shape) for i, a in enumerate(arrays)]
    made = emit(op, *inputs)
    model = ir.to_proto(ir.Model(op.graph(inputs, [made]), ir_version=8))
    return ReferenceEvaluator(model).run(None, {f"x{i}": a for i, a in enumerate(arrays)})[0]


@OPSETS
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("limit", [0.7, 0.3, 1e-3])
def test_clip(opset, dtype, limit):
    x = np.array([*X, -np.inf, np.inf], dtype)
    got = evaluate(lambda op, v: transforms.clip(op, v, limit), x, opset=opset)
    assert got.dtype == dtype
    np.testing.assert_allclose(got, np.clip(x, -limit, limit), rtol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("opset", [7, 8, 9, 11, 12, 18])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_sign(opset, dtype):
    smallest = np.finfo(dtype).smallest_normal
    x = np.array([*X, -smallest, smallest, np.finfo(dtype).max, -np.inf], dtype)
    got = evaluate(transforms.sign, x, opset=opset)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, np.sign(x))


@OPSETS
@pytest.mark.parametrize("lr", [0.0, 0.5, 10.0])
def test_l1_moves_towards_zero_and_stops_there(opset, lr):
    got = evaluate(lambda op, w, r: transforms.proximal_l1(op, w, r, 0.4), X, np.array(lr), opset=opset)
    np.testing.assert_allclose(got, np.sign(X) * np.maximum(np.abs(X) - lr * 0.4, 0), rtol=1e-15)


@OPSETS
@pytest.mark.parametrize(
    ("norms", "wanted"), [((3.0, 2.0), 1.5), ((0.0, 2.0), 1.0), ((3.0, 0.0), 1.0), ((0.0, 0.0), 1.0)]
)
def test_trust_ratio(opset, norms, wanted):
    got = evaluate(
        lambda op, a, b: transforms.trust_ratio(op, a, b, a, b), *map(np.array, norms), opset=opset
    )
    assert got == wanted
