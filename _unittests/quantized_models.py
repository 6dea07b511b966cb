"""Small models of floating-point numbers, and onnxruntime's quantizers run on them."""

from __future__ import annotations

import functools
import logging
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

MLP = """m (float[N, 6] x) => (float[N, 3] y) {
    h = Gemm(x, w1, b1)  r = Relu(h)  y = Gemm<transB = 1>(r, w2, b2) }"""
PRODUCTS = """m (float[N, 6] x) => (float[N, 3] y) {
    h = MatMul(x, w1)  a = Add(h, b1)  r = Relu(a)  p = MatMul(r, w2)  y = Add(p, b2) }"""
CNN = """m (float[N, 3, 8, 8] x) => (float[N, 4] y) {
    a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)  r = Relu(a)
    m = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r)
    c = Conv<pads = [1, 1, 1, 1], group = 4>(m, w2, b2)  s = Sigmoid(c)  d = Mul(c, s)  e = Add(d, m)
    l = LeakyRelu<alpha = 0.1>(e)  v = AveragePool<kernel_shape = [2, 2]>(l)  cc = Concat<axis = 1>(v, v)
    g = GlobalAveragePool(cc)  f = Flatten(g)  y = Gemm<transB = 1>(f, w3, b3) }"""
LSTM = """m (float[T, N, 5] x) => (float[T, N, 2] y) {
    a, h, c = LSTM<hidden_size = 6, direction = "bidirectional">(x, w, r, b)
    p = Transpose<perm = [0, 2, 1, 3]>(a)  q = Reshape(p, size)  o = MatMul(q, w2)  y = Add(o, b2) }"""
TRANSFORMER = """m (int64[N, T] ids) => (float[N, T, 3] y) {
    e = Gather(table, ids)
    q0 = MatMul(e, wq)  q1 = Add(q0, bq)  k0 = MatMul(e, wk)  v0 = MatMul(e, wv)
    q2 = Reshape(q1, heads)  k2 = Reshape(k0, heads)  v2 = Reshape(v0, heads)
    q = Transpose<perm = [0, 2, 1, 3]>(q2)  k = Transpose<perm = [0, 2, 3, 1]>(k2)
    v = Transpose<perm = [0, 2, 1, 3]>(v2)
    s0 = MatMul(q, k)  s = Div(s0, two)  p = Softmax<axis = -1>(s)  a = MatMul(p, v)
    a1 = Transpose<perm = [0, 2, 1, 3]>(a)  a2 = Reshape(a1, rows)  o = MatMul(a2, wo)  r = Add(e, o)
    n = LayerNormalization<axis = -1>(r, gamma, beta)
    f = MatMul(n, w1)  g = Relu(f)  h = MatMul(g, w2)  r2 = Add(n, h)  y = MatMul(r2, w3) }"""
SIZES: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {
    "mlp": (MLP, {"w1": (6, 8), "b1": (8,), "w2": (3, 8), "b2": (3,)}),
    "products": (PRODUCTS, {"w1": (6, 8), "b1": (8,), "w2": (8, 3), "b2": (3,)}),
    "cnn": (
        CNN,
        {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 2, 3, 3), "b2": (8,), "w3": (4, 16), "b3": (4,)},
    ),
    "lstm": (LSTM, {"w": (2, 24, 5), "r": (2, 24, 6), "b": (2, 48), "w2": (12, 2), "b2": (2,)}),
    "transformer": (
        TRANSFORMER,
        {
            **{"table": (20, 8), "wq": (8, 8), "bq": (8,), "wk": (8, 8), "wv": (8, 8), "wo": (8, 8)},
            **{"gamma": (8,), "beta": (8,), "w1": (8, 16), "w2": (16, 8), "w3": (8, 3)},
        },
    ),
}
OTHERS = {
    "lstm": {"size": np.array([0, 0, 12])},
    "transformer": {"heads": np.array([0, 0, 2, 4]), "rows": np.array([0, 0, 8]), "two": np.float32(2)},
}
INPUTS = {
    "mlp": (64, 6),
    "products": (64, 6),
    "cnn": (16, 3, 8, 8),
    "lstm": (7, 4, 5),
    "transformer": (16, 5),
}


@functools.cache
def original(kind: str) -> onnx.ModelProto:
    """A model of floating-point numbers."""
    rng = np.random.default_rng(1)
    text, sizes = SIZES[kind]
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    arrays: dict[str, Any] = {
        name: (rng.normal(size=size) / max(1, np.prod(size[1:])) ** 0.5).astype(np.float32)
        for name, size in sizes.items()
    }
    if "gamma" in arrays:
        arrays["gamma"] += 1
    for name, array in {**arrays, **OTHERS.get(kind, {})}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return model


@functools.cache
def batch(kind: str) -> dict[str, np.ndarray]:
    """Data for a model."""
    rng = np.random.default_rng(2)
    if kind == "transformer":
        return {"ids": rng.integers(0, 20, INPUTS[kind])}
    return {"x": rng.normal(size=INPUTS[kind]).astype(np.float32)}


@functools.cache
def quantized(kind: str, how: str, **options: Any) -> onnx.ModelProto:
    """What onnxruntime's quantizers write of a model: `how` is "dynamic", "QDQ" or "QOperator"."""
    from onnxruntime import quantization as q

    class Data(q.CalibrationDataReader):
        def __init__(self) -> None:
            self.rows = iter([batch(kind)])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.rows, None)

    types = {name: getattr(q.QuantType, kind) for name, kind in options.items() if name.endswith("_type")}
    options = {**options, **types}
    if not hasattr(onnx, "mapping"):  # which the quantizers of onnxruntime 1.17 ask for
        known = {e: onnx.helper.tensor_dtype_to_np_dtype(e) for e in (1, 2, 3, 6)}
        onnx.mapping = SimpleNamespace(TENSOR_TYPE_TO_NP_TYPE=known)  # type: ignore[attr-defined]
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with tempfile.TemporaryDirectory() as folder:
            source, target = (str(Path(folder) / name) for name in ("source.onnx", "target.onnx"))
            onnx.save(original(kind), source)
            if how == "dynamic":
                q.quantize_dynamic(source, target, **options)
            else:
                q.quantize_static(source, target, Data(), quant_format=q.QuantFormat[how], **options)
            return onnx.load(target)
    except IndexError:
        pytest.skip("this onnxruntime's quantizer fails here: vectors have no channels")
    finally:
        logging.disable(before)


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray], level: str = "ORT_DISABLE_ALL") -> list[Any]:
    """Outputs by bare onnxruntime, as the graph is written."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)


def optimized(model: onnx.ModelProto, level: str = "ORT_ENABLE_ALL") -> onnx.ModelProto:
    """What onnxruntime's optimizer writes of a model on this machine."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = path = str(Path(folder) / "optimized.onnx")
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(path)
