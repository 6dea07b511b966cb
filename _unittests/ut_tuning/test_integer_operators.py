"""Operators of onnxruntime that hold weights as integers, against their kernels."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parents[1]))

from quantized_models import run

import onnxcustom
from onnxcustom.exceptions import OnnxCustomError
from onnxcustom.tuning import dequantize

rng = np.random.default_rng(0)
MS = "com.microsoft"


def model(
    op_type: str,
    operands: list[tuple[str, np.ndarray] | None],
    inputs: dict[str, np.ndarray],
    domain: str = MS,
    outputs: int = 1,
    version: int = 17,
    **attributes: Any,
) -> onnx.ModelProto:
    """One node; an operand whose name is that of an input is one."""
    names = ["" if given is None else given[0] for given in operands]
    node = helper.make_node(op_type, names, [f"y{i}" for i in range(outputs)], domain=domain, **attributes)
    held = {k: v for k, v in filter(None, operands) if k not in inputs}
    tensors = [numpy_helper.from_array(v, k) for k, v in held.items()]
    infos = [
        helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for k, v in inputs.items()
    ]
    ends = [helper.make_tensor_value_info(f"y{i}", 1, None) for i in range(outputs)]
    graph = helper.make_graph([node], "g", infos, ends, tensors)
    imports = [helper.make_opsetid("", version), helper.make_opsetid(MS, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def by_kernel(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[Any]:
    """What onnxruntime computes, if it has the kernel, for these bits and operands."""
    try:
        return run(proto, feeds)
    except Exception as error:
        words = ("NOT_IMPLEMENTED", "not a registered", "Unrecognized attribute", "bits", "input size")
        if not any(word in str(error) for word in words):
            raise
        pytest.skip("this onnxruntime has no such kernel")


def same(proto: onnx.ModelProto, feeds: dict[str, np.ndarray], atol: float = 1e-5) -> onnx.ModelProto:
    """The model without integers, after comparing what both compute."""
    floats = dequantize(proto)
    assert len(floats.graph.node) == len({n.op_type for n in floats.graph.node})
    names = {n.op_type for n in floats.graph.node}
    assert names.isdisjoint(n.op_type for n in proto.graph.node)
    expected = by_kernel(proto, feeds)
    for one, other in zip(expected, run(floats, feeds), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=atol * max(1, np.abs(one).max()))
    return floats


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Numbers of a few bits along the last axis, the first in the lowest bits."""
    flags = ((codes[..., None] >> np.arange(bits)) & 1).astype(np.uint8)
    return np.packbits(flags.reshape(*codes.shape[:-1], -1), axis=-1, bitorder="little")


@pytest.mark.parametrize("zeros", ["none", "packed", "numbers"])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("k", [32, 40])
def test_matmul_nbits(k: int, bits: int, zeros: str) -> None:
    n, block = 5, 16
    count = -(-k // block)
    codes = rng.integers(0, 2**bits, (n, count, block))
    scales = rng.uniform(0.01, 0.1, (n, count)).astype(np.float32)
    points = {"none": np.full((n, count), 2.0 ** (bits - 1)), "numbers": rng.uniform(0, 2**bits, (n, count))}
    points["packed"] = rng.integers(0, 2**bits, (n, count))
    x = rng.normal(size=(3, k)).astype(np.float32)
    bias = rng.normal(size=n).astype(np.float32)
    given = points[zeros]
    held = {"none": None, "packed": packed(given.astype(int), bits), "numbers": given.astype(np.float32)}[
        zeros
    ]
    q = packed(codes, bits)
    shape = (n * count,) if zeros == "numbers" else (-1,)
    operands = [
        ("x", x),
        ("w_Q4", q),
        ("s", scales.ravel()),
        None if held is None else ("z", held.reshape(shape)),
    ]
    proto = model(
        "MatMulNBits", [*operands, None, ("b", bias)], {"x": x}, K=k, N=n, bits=bits, block_size=block
    )
    w = ((codes - given[..., None]) * scales[..., None]).reshape(n, -1)[:, :k].T
    floats = dequantize(proto)
    found = onnxcustom.weights(floats)
    np.testing.assert_allclose(found["w"], w, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run(floats, {"x": x})[0], x @ w + bias, rtol=1e-4, atol=1e-4)
    same(proto, {"x": x}, 1e-4)


@pytest.mark.parametrize("kind", [0, 1])
def test_matmul_bnb4(kind: int) -> None:
    k, n, block = 32, 4, 16
    x = rng.normal(size=(3, k)).astype(np.float32)
    q = rng.integers(0, 256, k * n // 2).astype(np.uint8)
    largest = rng.uniform(0.1, 1, k * n // block).astype(np.float32)
    operands = [("x", x), ("w_Bnb4", q), ("s", largest)]
    proto = model("MatMulBnb4", operands, {"x": x}, K=k, N=n, block_size=block, quant_type=kind)
    assert list(onnxcustom.weights(same(proto, {"x": x}))) == ["w"]


@pytest.mark.parametrize("zeros", [False, True])
def test_gather_block_quantized(zeros: bool) -> None:
    codes = rng.integers(0, 16, (6, 32))
    scales = rng.uniform(0.01, 0.1, (6, 2)).astype(np.float32)
    points = rng.integers(0, 16, (6, 2)) if zeros else np.full((6, 2), 8)
    ids = np.array([[0, 5], [3, 3]])
    operands = [("table", packed(codes, 4)), ("ids", ids), ("s", scales)]
    operands += [("z", packed(points, 4))] if zeros else []
    proto = model(
        "GatherBlockQuantized", operands, {"ids": ids}, quantize_axis=1, gather_axis=0, block_size=16, bits=4
    )
    floats = dequantize(proto)
    expected = (codes - points.repeat(16, 1)) * scales.repeat(16, 1)
    np.testing.assert_allclose(onnxcustom.weights(floats)["table"], expected, rtol=1e-5)
    same(proto, {"ids": ids})


def quantized_matrix(*shape: int, columns: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Integers of 7 bits, since products of uint8 and int8 overflow without VNNI; scale and zero point."""
    q = rng.integers(-60, 60, shape).astype(np.int8)
    size = (shape[-1],) if columns else ()
    return q, np.float32(rng.uniform(0.001, 0.01, size)), np.zeros(size, np.int8)


def rounded(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Integers of computed numbers that stand for them within a step of 1/20."""
    return (np.rint(x * 20) + 128).clip(0, 255).astype(np.uint8), np.float32(0.05), np.uint8(128)


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_matmul_integer_to_float(columns: bool, bias: bool) -> None:
    q, scale, zero = quantized_matrix(8, 3, columns=columns)
    a, a_scale, a_zero = rounded(rng.normal(size=(4, 8)))
    operands = [("a", a), ("w", q), ("sa", a_scale), ("sw", scale), ("za", a_zero), ("zw", zero)]
    operands += [("b", np.float32([1, 2, 3]))] if bias else []
    floats = dequantize(model("MatMulIntegerToFloat", operands, {"a": a}))
    expected = by_kernel(model("MatMulIntegerToFloat", operands, {"a": a}), {"a": a})[0]
    np.testing.assert_allclose(run(floats, {"a": a})[0], expected, rtol=1e-4, atol=1e-5)
    assert "w" in onnxcustom.weights(floats)


@pytest.mark.parametrize("columns", [False, True])
def test_dynamic_quantize_matmul(columns: bool) -> None:
    q, scale, zero = quantized_matrix(8, 3, columns=columns)
    x = rng.normal(size=(4, 8)).astype(np.float32)
    x[0, 0], x[0, 1] = -3.0, 3.0  # a step of 6 / 255
    operands = [("x", x), ("w", q), ("s", scale), ("z", zero), ("b", np.float32([1, 2, 3]))]
    proto = model("DynamicQuantizeMatMul", operands, {"x": x})
    floats = dequantize(proto)
    w = onnxcustom.weights(floats)["w"]
    rounding = 0.51 * 6 / 255 * np.abs(w).sum(0)
    assert (np.abs(run(floats, {"x": x})[0] - run(proto, {"x": x})[0]) <= rounding).all()
    kept = dequantize(proto, activations="keep")
    np.testing.assert_allclose(run(kept, {"x": x})[0], run(proto, {"x": x})[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("columns", [False, True])
def test_qattention(columns: bool) -> None:
    q, scale, zero = quantized_matrix(8, 24, columns=columns)
    a, a_scale, a_zero = rounded(rng.normal(size=(2, 4, 8)))
    bias = rng.normal(size=24).astype(np.float32)
    mask = np.array([4, 3], np.int32)
    operands = [
        ("a", a),
        ("w", q),
        ("b", bias),
        ("sa", a_scale),
        ("sw", scale),
        ("m", mask),
        ("za", a_zero),
        ("zw", zero),
    ]
    proto = model("QAttention", operands, {"a": a, "m": mask}, num_heads=2)
    floats = dequantize(proto)
    assert [n.op_type for n in floats.graph.node] == ["DequantizeLinear", "Attention"]
    for one, other in zip(run(proto, {"a": a, "m": mask}), run(floats, {"a": a, "m": mask}), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5)
    assert list(onnxcustom.weights(floats)) == ["w", "b"]


def test_qembed_layer_normalization() -> None:
    ids = np.array([[1, 2, 0], [4, 4, 3]], np.int32)
    segments = np.array([[0, 0, 1], [0, 1, 1]], np.int32)
    mask = np.ones((2, 3), np.int32)
    names = ["words", "places", "kinds", "gamma", "beta"]
    sizes = [(5, 8), (4, 8), (2, 8), (8,), (8,)]
    tables = [(n, rng.integers(0, 256, s).astype(np.uint8)) for n, s in zip(names, sizes, strict=True)]
    scales = [(f"{n}_scale", np.float32(rng.uniform(0.01, 0.1))) for n in names]
    zeros = [(f"{n}_zero", np.uint8(rng.integers(100, 150))) for n in names]
    inputs = {"ids": ids, "segments": segments, "mask": mask}
    operands = [("ids", ids), ("segments", segments), *tables, ("mask", mask), *scales, *zeros]
    proto = model("QEmbedLayerNormalization", operands, inputs, outputs=2, epsilon=1e-5)
    proto.graph.output[1].type.tensor_type.elem_type = 6
    floats = same(proto, inputs)
    assert set(onnxcustom.weights(floats)) == set(names)


@pytest.mark.parametrize("op_type", ["QLinearReduceMean", "QLinearWhere", "QLinearSoftmax", "QLinearConcat"])
def test_qlinear_operators(op_type: str) -> None:
    """Those that quantizers write of no model of the other tests."""
    a, scale, zero = rounded(rng.normal(size=(4, 3)))
    b = a[::-1].copy()
    end = ("t", np.float32(0.03)), ("p", np.uint8(100))
    one = [("a", a), ("s", scale), ("z", zero)]
    condition = rng.integers(0, 2, (4, 3)).astype(bool)
    operands, attributes, inputs = {
        "QLinearReduceMean": ([*one, *end], {"axes": [1], "keepdims": 1}, {"a": a}),
        "QLinearWhere": (
            [("c", condition), *one, ("b", b), *one[1:], *end],
            {},
            {"c": condition, "a": a, "b": b},
        ),
        "QLinearSoftmax": (
            [*one, ("t", np.float32(1 / 256)), ("p", np.uint8(0))],
            {"axis": 1, "opset": 13},
            {"a": a},
        ),
        "QLinearConcat": ([*end, *one, ("b", b), *one[1:]], {"axis": 1}, {"a": a, "b": b}),
    }[op_type]
    proto = model(op_type, operands, inputs, **attributes)
    names = [name for name, _ in (operands[-2:] if op_type != "QLinearConcat" else end)]
    proto.graph.node.append(helper.make_node("DequantizeLinear", ["y0", *names], ["y"]))
    proto.graph.output[0].name = "y"
    step = float(np.float32(dict(operands)[names[0]]))
    expected = by_kernel(proto, inputs)[0]
    for activations in ("clip", "keep"):
        floats = dequantize(proto, activations=activations)
        assert not any("QLinear" in n.op_type for n in floats.graph.node)
        np.testing.assert_allclose(run(floats, inputs)[0], expected, atol=step * 1.01)


def test_what_is_not_known_is_left() -> None:
    """Weights that are computed stay integers, with a warning, and are refused when they are trained."""
    x = rng.normal(size=(3, 16)).astype(np.float32)
    scales = np.ones(2, np.float32)
    operands = [("x", x), ("w", np.ones((2, 1, 8), np.uint8)), ("s", scales)]
    proto = model("MatMulNBits", operands, {"x": x, "s": scales}, K=16, N=2, bits=4, block_size=16)
    with pytest.warns(UserWarning, match="MatMulNBits"):
        floats = dequantize(proto)
    assert [n.op_type for n in floats.graph.node] == ["MatMulNBits"]
    with pytest.raises(OnnxCustomError):
        onnxcustom.TrainingStep(floats)


def test_matmul_nbits_in_groups() -> None:
    """Columns that were put into groups in an order of their own (GPTQ)."""
    k, n, block = 32, 3, 16
    codes = rng.integers(0, 16, (n, 2, block))
    scales = rng.uniform(0.01, 0.1, (n, 2)).astype(np.float32)
    groups = rng.permutation(np.arange(k) // block).astype(np.int32)
    x = rng.normal(size=(3, k)).astype(np.float32)
    operands = [("x", x), ("w", packed(codes, 4)), ("s", scales.ravel()), None, ("g", groups)]
    proto = model("MatMulNBits", operands, {"x": x}, K=k, N=n, bits=4, block_size=block)
    expected = (codes.reshape(n, k) - 8) * scales[:, groups]
    np.testing.assert_allclose(onnxcustom.weights(dequantize(proto))["w"], expected.T, rtol=1e-6)
    same(proto, {"x": x}, 1e-4)
