"""Integers that quantizers wrote become the weights that they stand for."""

from __future__ import annotations

import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parents[1]))

from quantized_models import batch, optimized, original, quantized, run

import onnxcustom
from onnxcustom import gradient_report
from onnxcustom.exceptions import UnknownNameError
from onnxcustom.tuning import dequantize

rng = np.random.default_rng(0)
# Without VNNI, onnxruntime's products of uint8 and int8 overflow unless there are 7 bits (reduce_range).
WAYS = {
    "dynamic int8": ("dynamic", {"weight_type": "QInt8", "reduce_range": True}),
    "dynamic uint8 per channel": ("dynamic", {"weight_type": "QUInt8", "per_channel": True}),
    "QDQ U8U8": ("QDQ", {"activation_type": "QUInt8", "weight_type": "QUInt8"}),
    "QDQ S8S8 per channel": (
        "QDQ",
        {"activation_type": "QInt8", "weight_type": "QInt8", "per_channel": True},
    ),
    "QDQ U8S8 7 bits": ("QDQ", {"activation_type": "QUInt8", "weight_type": "QInt8", "reduce_range": True}),
    "QOperator U8U8": ("QOperator", {"activation_type": "QUInt8", "weight_type": "QUInt8"}),
    "QOperator S8S8 per channel": (
        "QOperator",
        {"activation_type": "QInt8", "weight_type": "QInt8", "per_channel": True},
    ),
}
# Kernels that onnxruntime lacks, or has wrong: ConvInteger of int8, QLinearSoftmax of int8 up to 1.19.
BROKEN = {("cnn", "dynamic int8"), ("transformer", "QOperator S8S8 per channel")}


def integer_nodes(model: onnx.ModelProto) -> list[str]:
    words = ("uant", "Integer", "QLinear", "QGemm", "NBits")
    return [n.op_type for n in model.graph.node if any(word in n.op_type for word in words)]


# One of each operator in both formats and signs; the rest is the same code on other numbers.
SELDOM = {(kind, way) for kind in ("mlp", "products", "lstm") for way in list(WAYS)[1::2]}
CHOSEN = [
    pytest.param(kind, way, marks=[pytest.mark.exhaustive] if (kind, way) in SELDOM else [])
    for kind in ("mlp", "products", "cnn", "lstm", "transformer")
    for way in WAYS
]


@pytest.mark.parametrize(("kind", "way"), CHOSEN)
def test_quantizers(kind: str, way: str) -> None:
    how, options = WAYS[way]
    model, feeds = quantized(kind, how, **options), batch(kind)
    before = model.SerializeToString()
    floats = dequantize(model)
    assert model.SerializeToString() == before
    assert not integer_nodes(floats)
    source = onnxcustom.weights(original(kind))
    found = {name.removesuffix("_Transposed"): w for name, w in onnxcustom.weights(floats).items()}
    assert set(found) == set(source)
    for name, array in source.items():
        other = found[name]
        # Gemm becomes MatMulInteger of the transposed matrix where weights are not constant otherwise.
        other = other.T if other.shape != array.shape else other
        step = np.ptp(array) / (127 if options.get("reduce_range") else 254)
        np.testing.assert_allclose(other, array, atol=1.01 * step)
    expected = run(original(kind), feeds)[0]
    size = np.abs(expected).max()
    np.testing.assert_allclose(run(floats, feeds)[0], expected, atol=0.08 * size)
    assert gradient_report(floats).trainable
    if (kind, way) not in BROKEN:
        integers = run(model, feeds)[0]
        np.testing.assert_allclose(run(floats, feeds)[0], integers, atol=0.05 * size)
        kept = dequantize(model, activations="keep")
        # The same roundings at the same places: but for ties, the same numbers.
        np.testing.assert_allclose(run(kept, feeds)[0], integers, atol=0.02 * size)
        inside = (kind, how) == ("lstm", "dynamic")  # what is rounded in an operator is not any more
        assert inside or np.mean(np.abs(run(kept, feeds)[0] - integers)) < 1e-3 * size
        assert gradient_report(kept).trainable


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        ("mlp", "dynamic int8"),
        ("cnn", "QDQ U8U8"),
        ("cnn", "QOperator S8S8 per channel"),
        ("lstm", "QDQ U8S8 7 bits"),
        ("transformer", "dynamic uint8 per channel"),
        ("transformer", "QOperator U8U8"),
    ],
)
def test_optimized_by_onnxruntime(kind: str, way: str) -> None:
    """Fused operators of integers, and the layout of images, at the highest level."""
    how, options = WAYS[way]
    model, feeds = optimized(quantized(kind, how, **options)), batch(kind)
    floats = dequantize(model)
    assert not integer_nodes(floats)
    assert not any(n.domain == "com.microsoft.nchwc" for n in floats.graph.node)
    assert gradient_report(floats).trainable
    expected = run(original(kind), feeds)[0]
    np.testing.assert_allclose(run(floats, feeds)[0], expected, atol=0.05 * np.abs(expected).max())


def one_layer(
    q: np.ndarray,
    scale: np.ndarray,
    zero: np.ndarray | None,
    opset: int = 21,
    dtype: int | None = None,
    **more: int,
) -> onnx.ModelProto:
    """DequantizeLinear alone, its result an output, so that onnxruntime says what the weights are."""
    tensors = [numpy_helper.from_array(scale, "s")]
    elem = helper.np_dtype_to_tensor_dtype(q.dtype) if dtype is None else dtype
    for name, array in (("q", q), ("z", zero)):
        if array is not None:
            tensors.append(
                helper.make_tensor(name, elem, array.shape, array.astype(np.float32).ravel().tolist())
            )
            if q.dtype.kind in "iu":
                tensors[-1] = numpy_helper.from_array(array, name)
    back = helper.make_node(
        "DequantizeLinear", ["q", "s"] + (["z"] if zero is not None else []), ["w"], **more
    )
    out = helper.np_dtype_to_tensor_dtype(scale.dtype)
    graph = helper.make_graph(
        [back, helper.make_node("Mul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", out, q.shape)],
        [helper.make_tensor_value_info("y", out, q.shape), helper.make_tensor_value_info("w", out, q.shape)],
        tensors,
    )
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=helper.find_min_ir_version_for(imports))


def ints(low: int, high: int, dtype: str, shape: tuple[int, ...] = (4, 6)) -> np.ndarray:
    return rng.integers(low, high, shape).astype(dtype)


def few(dtype: type) -> np.ndarray:
    return rng.normal(size=(4, 6)).astype(dtype)


def positive(*shape: int, dtype: str = "float32") -> np.ndarray:
    return rng.uniform(0.001, 0.1, shape).astype(dtype)


I4, E4, E5 = TensorProto.INT4, TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2
BLOCKS = {"axis": 1, "block_size": 2}
CASES = {
    "int8": (ints(-128, 128, "int8"), positive(), np.int8(3), {"opset": 17}),
    "int8 no zero": (ints(-128, 128, "int8"), positive(), None, {"opset": 10}),
    "uint8 columns": (ints(0, 256, "uint8"), positive(6), ints(0, 256, "uint8", (6,)), {"opset": 13}),
    "int8 rows": (ints(-128, 128, "int8"), positive(4), ints(-9, 9, "int8", (4,)), {"opset": 13, "axis": 0}),
    "int8 last": (ints(-128, 128, "int8"), positive(6), None, {"opset": 17, "axis": -1}),
    "int32": (ints(-(2**30), 2**30, "int32"), positive(), None, {"opset": 17}),
    "int16": (ints(-(2**15), 2**15, "int16"), positive(4), ints(-99, 99, "int16", (4,)), {"axis": 0}),
    "float16": (ints(-128, 128, "int8"), positive(4, dtype="float16"), None, {"opset": 19, "axis": 0}),
    "int4": (ints(-8, 8, "int8"), positive(4), None, {"axis": 0, "dtype": I4}),
    "uint4": (ints(0, 16, "uint8"), positive(), np.uint8(7), {"dtype": TensorProto.UINT4}),
    "blocks": (ints(-8, 8, "int8"), positive(4, 3), ints(-8, 8, "int8", (4, 3)), {**BLOCKS, "dtype": I4}),
    "uneven blocks": (ints(-128, 128, "int8"), positive(2, 6), None, {"axis": 0, "block_size": 3}),
    "float8": (few(ml_dtypes.float8_e4m3fn), positive(), None, {"opset": 19, "dtype": E4}),
    "float8 rows": (few(ml_dtypes.float8_e5m2), positive(4), None, {"opset": 19, "axis": 0, "dtype": E5}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_numbers_of_weights(case: str) -> None:
    """Number for number what DequantizeLinear computes."""
    q, scale, zero, options = CASES[case]
    model = one_layer(q, np.asarray(scale), None if zero is None else np.asarray(zero), **options)
    if "int" in q.dtype.name and options.get("dtype") is not None:
        # Of 4 bits, as onnx packs them.
        for tensor, array in zip(model.graph.initializer, (None, q, zero), strict=False):
            if array is not None:
                packed = helper.make_tensor(
                    tensor.name, options["dtype"], np.shape(array), np.ravel(array).tolist()
                )
                tensor.CopyFrom(packed)
    floats = dequantize(model)
    weights = onnxcustom.weights(floats)
    assert list(weights) == ["q"]
    dtype = weights["q"].dtype
    x = np.ones(q.shape, dtype)
    try:
        expected = run(model, {"x": x})[1]
    except Exception as error:  # no kernel of that type or opset in this onnxruntime
        if not any(
            word in str(error)
            for word in ("NOT_IMPLEMENTED", "opset", "IR version", "Unrecognized attribute")
        ):
            raise
        from onnx.reference import ReferenceEvaluator

        expected = ReferenceEvaluator(model).run(None, {"x": x})[1]
    assert dtype == expected.dtype == scale.dtype
    np.testing.assert_array_equal(weights["q"], expected)
    assert not integer_nodes(floats)


CHOICE = """<ir_version: 8, opset_import: ["": 17]>
m (float[N, 2] x) => (float[N, 2] y) <int8[2, 2] a_quantized = {1, 2, 3, 4}, int8[2, 2] b = {5, 6, 7, 8},
float s = {0.5}, int8 z = {1}, float t = {0.1}, int8 p = {0}> {
    a = DequantizeLinear(a_quantized, s, z)
    h = MatMul(x, a)
    q = QuantizeLinear(h, t, p)
    r = DequantizeLinear(q, t, p)
    w = DequantizeLinear(b, s, z)
    y = MatMul(r, w)
}"""


def test_chosen_weights() -> None:
    model = onnx.parser.parse_model(CHOICE)
    assert list(onnxcustom.weights(dequantize(model))) == ["a", "b"]
    last = dequantize(model, "b")
    assert list(onnxcustom.weights(last)) == ["b"]
    assert integer_nodes(last) == ["DequantizeLinear", "QuantizeLinear", "DequantizeLinear"]
    first = dequantize(model, ["a_quantized"])
    assert list(onnxcustom.weights(first)) == ["a"]
    assert integer_nodes(first) == ["DequantizeLinear"]
    with pytest.raises(UnknownNameError, match=r"no integers 'c'.*\['a_quantized', 'b'\]"):
        dequantize(model, "c")
    with pytest.raises(UnknownNameError, match="activations"):
        dequantize(model, activations="float")


def test_activations() -> None:
    model = onnx.parser.parse_model(CHOICE)
    kinds = {
        how: [n.op_type for n in dequantize(model, activations=how).graph.node]
        for how in ("clip", "keep", "remove")
    }
    assert kinds["clip"] == ["MatMul", "Clip", "MatMul"]
    assert kinds["keep"] == ["MatMul", "QuantizeLinear", "DequantizeLinear", "MatMul"]
    assert kinds["remove"] == ["MatMul", "MatMul"]
    x = np.float32([[100, -3], [0.1, 7]])
    integers = run(model, {"x": x})[0]
    np.testing.assert_array_equal(run(dequantize(model, activations="keep"), {"x": x})[0], integers)
    rounding = 0.5 * 0.1 * np.abs(onnxcustom.weights(dequantize(model))["b"]).sum(0)
    assert (np.abs(run(dequantize(model), {"x": x})[0] - integers) <= rounding * 1.001).all()


def test_a_model_of_floats_stays() -> None:
    model = original("mlp")
    assert set(onnxcustom.weights(dequantize(model))) == set(onnxcustom.weights(model))
