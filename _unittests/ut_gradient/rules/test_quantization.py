from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from bare_gradient import differentiate
from onnx.reference import ReferenceEvaluator

import onnxcustom.gradient.rules.arithmetic
import onnxcustom.gradient.rules.indexing
import onnxcustom.gradient.rules.quantization
import onnxcustom.gradient.rules.reduction
import onnxcustom.gradient.rules.shaping
import onnxcustom.gradient.rules.slicing  # noqa: F401
from onnxcustom.runtime import ort_limits

rng = np.random.default_rng(0)
TYPES = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-(2**15), 2**15 - 1), "uint16": (0, 2**16 - 1)}


def model(
    x: np.ndarray,
    scale: np.ndarray,
    zero: np.ndarray | None,
    shapes: str = "static",
    constant: bool = True,
    opset: int = 21,
    second: np.ndarray | None = None,
    **attributes: int,
) -> onnx.ModelProto:
    """x -> QuantizeLinear -> DequantizeLinear -> y; `second` is a scale of DequantizeLinear's own."""
    tensors = {"x": x, "scale": scale, "zero": zero, "second": second}
    operands = [n for n in ("scale", "zero") if tensors[n] is not None]
    back = ["second", *operands[1:]] if second is not None else operands
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["x", *operands], ["q"], **attributes),
        onnx.helper.make_node("DequantizeLinear", ["q", *back], ["y"], **attributes),
    ]
    inputs, initializers = [], []
    for name, array in tensors.items():
        if array is None:
            continue
        if name != "x" and constant:
            initializers.append(onnx.numpy_helper.from_array(array, name))
            continue
        symbols = [f"{name}{i}" for i in range(array.ndim)]
        dims = {"static": array.shape, "dynamic": symbols, "unranked": None}[shapes]
        elem = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        inputs.append(onnx.helper.make_tensor_value_info(name, elem, dims))
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    graph = onnx.helper.make_graph(nodes, "pair", inputs, [y], initializers)
    imports = [onnx.helper.make_opsetid("", opset)]
    ir_version = onnx.helper.find_min_ir_version_for(imports)  # onnxruntime 1.17 reads up to 9
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=ir_version)


def run(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    import onnxruntime

    newest, _ = ort_limits()
    if proto.opset_import[0].version > newest:
        pytest.skip(f"this onnxruntime reads opsets up to {newest}")
    blocks = any(a.name == "block_size" and a.i for node in proto.graph.node for a in node.attribute)
    if blocks and tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 19):
        pytest.skip("this onnxruntime has no blocks of scales")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    needed = {i.name for i in proto.graph.input}
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=providers)
    values = session.run(None, {k: v for k, v in feeds.items() if k in needed})
    return dict(zip((o.name for o in proto.graph.output), values, strict=True))


def along(scale: np.ndarray, x: np.ndarray, axis: int, block: int) -> np.ndarray:
    if block:
        return np.take(scale, np.arange(x.shape[axis]) // block, axis)
    if scale.size == 1:
        return scale
    return scale.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])


def back(g: np.ndarray, scale: np.ndarray, x: np.ndarray, axis: int, block: int) -> np.ndarray:
    """Sum over all elements that share a scale."""
    index = np.arange(scale.size).reshape(scale.shape)
    places = np.broadcast_to(along(index, x, axis, block), x.shape)
    return np.bincount(places.ravel(), g.ravel(), scale.size).reshape(scale.shape)


CASES = {
    "scalar": (np.float32(0.02), np.int8(0), {}),
    "no-zero": (np.float32(0.02), None, {}),
    "one": (np.float32([0.01]), np.uint8([128]), {"axis": 0}),
    "zero-point": (np.float32(0.01), np.uint8(30), {}),
    "per-axis": (np.float32([0.01, 0.02, 0.03]), np.int8([3, 0, -5]), {"axis": 1}),
    "negative-axis": (np.float32([0.01, 0.02, 0.03, 0.5]), np.int8([3, 0, -5, 1]), {"axis": -1}),
    "first-axis": (np.float32([0.01, 0.02]), np.int8([0, 0]), {"axis": 0}),
    "int16": (np.float32(0.00005), np.int16(7), {}),
    "blocks": (rng.uniform(0.005, 0.03, (2, 3, 2)).astype(np.float32), None, {"axis": 2, "block_size": 2}),
    "blocks-zero": (
        rng.uniform(0.005, 0.03, (2, 2, 4)).astype(np.float32),
        rng.integers(-9, 9, (2, 2, 4)).astype(np.int8),
        {"axis": 1, "block_size": 2},
    ),
}
MODELS = {
    name: model(
        np.zeros((2, 3, 4), np.float32), np.asarray(scale), None if zero is None else np.asarray(zero), **more
    )
    for name, (scale, zero, more) in CASES.items()
}


@pytest.mark.parametrize("name", MODELS)
def test_types_are_inferred(name: str) -> None:
    inferred = onnx.shape_inference.infer_shapes(MODELS[name], strict_mode=True)
    assert [v.type.tensor_type.elem_type for v in inferred.graph.value_info]


@pytest.mark.parametrize("shapes", ["static", "dynamic", "unranked"])
@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_pair(name: str, constant: bool, shapes: str) -> None:
    scale, zero, attributes = CASES[name]
    scale = np.asarray(scale)
    x = (rng.normal(size=(2, 3, 4)) * 2).astype(np.float32)
    dy = rng.normal(size=x.shape).astype(np.float32)
    zero = None if zero is None else np.asarray(zero)
    proto = model(x, scale, zero, shapes, constant, **attributes)
    wrt = ["x"] if constant else ["x", "scale"]
    gradient = ir.to_proto(differentiate(ir.from_proto(proto), wrt, ["y"]))
    if shapes == "static":
        onnx.checker.check_model(gradient)
    found = run(gradient, {"x": x, "scale": scale, "zero": zero, "y_grad": dy})

    axis, block = attributes.get("axis", 1), attributes.get("block_size", 0)
    s = along(scale, x, axis, block).astype(np.float64)
    z = 0 if zero is None else along(zero, x, axis, block).astype(np.float64)
    low, high = TYPES["uint8" if zero is None else zero.dtype.name]
    steps = np.round(x / s) + z
    inside = (steps >= low) & (steps <= high)
    assert inside.any()
    assert not inside.all()
    np.testing.assert_allclose(found["x_grad"], dy * inside, rtol=1e-6)
    if not constant:
        expected = back(dy * (np.clip(steps, low, high) - z - inside * x / s), scale, x, axis, block)
        np.testing.assert_allclose(found["scale_grad"], expected, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("opset", [18, 19, 21])
def test_scales_of_their_own(opset: int) -> None:
    x = np.float32([-3.0, -0.3, 0.2, 0.7, 30.0])
    scale, second = np.array(0.1, np.float32), np.array(0.3, np.float32)
    proto = model(x, scale, np.array(0, np.int8), constant=False, opset=opset, second=second)
    gradient = ir.to_proto(differentiate(ir.from_proto(proto), ["x", "scale", "second"], ["y"]))
    feeds = {"x": x, "scale": scale, "second": second, "zero": np.int8(0), "y_grad": np.ones(5, np.float32)}
    found = run(gradient, {k: np.asarray(v) for k, v in feeds.items()})
    np.testing.assert_allclose(found["x_grad"], [3, 3, 3, 3, 0], rtol=1e-6)
    np.testing.assert_allclose(found["scale_grad"], -3 * x[:4].sum() / 0.1, rtol=1e-5)
    np.testing.assert_allclose(found["second_grad"], -30 - 3 + 2 + 7 + 127, rtol=1e-5)


def test_constant_scale_of_a_tensor_takes_few_nodes() -> None:
    proto = model(np.zeros((2, 3), np.float32), np.array(0.1, np.float32), np.array(0, np.int8))
    gradient = differentiate(ir.from_proto(proto), ["x"], ["y"])
    assert [n.op_type for n in gradient.graph][2:] == ["Clip", "Equal", "Where"]


def test_dynamic_quantization_is_straight_through() -> None:
    text = """<ir_version: 9, opset_import: ["" : 18]> g (float[N] x) => (float[N] y) {
        q, s, z = DynamicQuantizeLinear(x) y = DequantizeLinear(q, s, z) }"""
    gradient = ir.to_proto(differentiate(ir.from_proto(onnx.parser.parse_model(text)), ["x"], ["y"]))
    x, dy = np.float32([1, 2, -3]), np.float32([4, 5, 6])
    np.testing.assert_array_equal(run(gradient, {"x": x, "y_grad": dy})["x_grad"], dy)


@pytest.mark.parametrize("shapes", ["static", "dynamic"])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_scale_of_integer_weights(axis: int, shapes: str) -> None:
    """DequantizeLinear alone: its scale is a weight like any other."""
    q = rng.integers(-9, 9, (3, 3)).astype(np.int8)
    scale, zero = np.float32([0.1, 0.2, 0.3]), np.int8([1, 2, 3])
    dims = "3,3" if shapes == "static" else "M,N"
    text = f"""<ir_version: 9, opset_import: ["" : 18]>
        g (int8[{dims}] q, float[3] s, int8[3] z) => (float[{dims}] y) {{
            y = DequantizeLinear<axis = {axis}>(q, s, z)
        }}"""
    gradient = ir.to_proto(differentiate(ir.from_proto(onnx.parser.parse_model(text)), ["s"], ["y"]))
    dy = rng.normal(size=(3, 3)).astype(np.float32)
    found = run(gradient, {"q": q, "s": scale, "z": zero, "y_grad": dy})["s_grad"]
    steps = q - along(zero, q, axis, 0).astype(np.float64)
    np.testing.assert_allclose(found, back(dy * steps, scale, q, axis, 0), rtol=1e-5)


def test_float8() -> None:
    text = """<ir_version: 9, opset_import: ["" : 19]> g (float[N] x) => (float[N] y) {
        s = Constant<value = float {2.0}>() zf = Constant<value = float {0.0}>() z = Cast<to = 17>(zf)
        q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"""
    gradient = ir.to_proto(differentiate(ir.from_proto(onnx.parser.parse_model(text)), ["x"], ["y"]))
    x, dy = np.float32([895, -890, 1000, 0.1]), np.float32([1, 2, 3, 4])
    found = ReferenceEvaluator(gradient).run(["x_grad"], {"x": x, "y_grad": dy})[0]
    np.testing.assert_array_equal(found, [1, 2, 0, 4])


@pytest.mark.parametrize("per_channel", [False, True])
def test_against_torch(per_channel: bool) -> None:
    torch = pytest.importorskip("torch")
    x = torch.tensor(rng.normal(size=(2, 3, 4)) * 3, dtype=torch.float32, requires_grad=True)
    if per_channel:
        scale, zero = torch.tensor([0.01, 0.02, 0.03]), torch.tensor([0, 5, -7], dtype=torch.int32)
        y = torch.fake_quantize_per_channel_affine(x, scale, zero, 1, -128, 127)
    else:
        scale, zero = torch.tensor(0.02), torch.tensor(3)
        y = torch.fake_quantize_per_tensor_affine(x, 0.02, 3, -128, 127)
    dy = torch.randn(y.shape)
    y.backward(dy)
    array = x.detach().numpy()
    proto = model(array, scale.numpy(), zero.numpy().astype(np.int8), axis=1)
    gradient = ir.to_proto(differentiate(ir.from_proto(proto), ["x"], ["y"]))
    found = run(gradient, {"x": array, "y_grad": dy.numpy()})
    np.testing.assert_allclose(found["y"], y.detach().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["x_grad"], x.grad.numpy(), rtol=1e-6)
