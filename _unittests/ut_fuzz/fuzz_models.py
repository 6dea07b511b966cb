# ruff: noqa: E501 - a node of ONNX text stays on its line
"""Valid models to start from: small, each of another kind."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import onnx.parser
from onnx import helper, numpy_helper

__all__ = ["MODELS", "model"]

TEXTS = {
    "mlp": """<ir_version: 8, opset_import: ["": 18]> mlp (float[N, 3] x) => (float[N, 2] y)
        <float[3, 4] w0, float[4] b0, float[4, 2] w1, float[2] b1> {
            z = MatMul(x, w0)  a = Add(z, b0)  h = Relu(a)  y = Gemm(h, w1, b1)
        }""",
    "classifier": """<ir_version: 8, opset_import: ["": 13]> mlp (float[N, 3] x) => (int64[N] label, float[N, 3] p)
        <float[3, 3] w0, float[3] b0> {
            z = Gemm <transB = 1> (x, w0, b0)  p = Softmax <axis = -1> (z)  label = ArgMax <axis = 1, keepdims = 0> (p)
        }""",
    "conv": """<ir_version: 8, opset_import: ["": 17]> conv (float[N, 2, 6, 6] x) => (float[N, 3] y)
        <float[4, 2, 3, 3] k, float[4] c, float[4] scale, float[4] shift, float[4] mean, float[4] var = {1, 1, 1, 1},
         float[4, 1, 2, 2] k2, float[16, 3] w, float[3] b> {
            a = Conv <pads = [1, 1, 1, 1], strides = [1, 1]> (x, k, c)
            n = BatchNormalization <epsilon = 0.001> (a, scale, shift, mean, var)
            r = LeakyRelu <alpha = 0.1> (n)
            m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
            d = Conv <group = 4, auto_pad = "VALID"> (m, k2)
            f = Flatten <axis = 1> (d)
            y = Gemm(f, w, b)
        }""",
    "image": """<ir_version: 8, opset_import: ["": 18]> image (float[1, 2, 4, 4] x) => (float[1, 2] y)
        <float[2, 2, 2, 2] k, float[4] scales = {1, 1, 2, 2}, int64[8] pads = {0, 0, 1, 1, 0, 0, 1, 1}, float zero = {0},
         int64[2] axes = {2, 3}, int64[1] st = {1}, int64[1] en = {5}, int64[1] ax = {2}> {
            scale2 = Constant <value_floats = [1.0, 2.0]> ()
            shift2 = Constant <value = float[2] {0.5, -0.5}> ()
            a = Pad <mode = "constant"> (x, pads, zero)
            t = ConvTranspose <strides = [2, 2]> (a, k)
            s = Slice(t, st, en, ax)
            r = Resize <mode = "linear", coordinate_transformation_mode = "half_pixel"> (s, , scales)
            v = AveragePool <kernel_shape = [3, 3], count_include_pad = 1, ceil_mode = 1> (r)
            i = InstanceNormalization(v, scale2, shift2)
            q = HardSwish(i)
            y = ReduceMean <keepdims = 0> (q, axes)
        }""",
    "attention": """<ir_version: 8, opset_import: ["": 17]> attention (int64[N, 4] ids) => (float[N, 4, 6] y)
        <float[8, 6] table, float[6] g, float[6] be, float[6, 18] qkv, float[6, 6] o, int64[5] heads = {0, 4, 3, 2, 3}, int64[3] back = {0, 4, 6},
         int64 i0 = {0}, int64 i1 = {1}, int64 i2 = {2}, float s = {0.57}> {
            e = Gather(table, ids)
            n = LayerNormalization <axis = -1> (e, g, be)
            p = MatMul(n, qkv)
            h = Reshape(p, heads)
            t = Transpose <perm = [2, 0, 3, 1, 4]> (h)
            q = Gather <axis = 0> (t, i0)  k = Gather <axis = 0> (t, i1)  v = Gather <axis = 0> (t, i2)
            kt = Transpose <perm = [0, 1, 3, 2]> (k)
            qk = MatMul(q, kt)  sc = Mul(qk, s)  a = Softmax <axis = -1> (sc)
            c = MatMul(a, v)  ct = Transpose <perm = [0, 2, 1, 3]> (c)  m = Reshape(ct, back)
            r = MatMul(m, o)  y = Add(e, r)
        }""",
    "shapes": """<ir_version: 8, opset_import: ["": 18]> shapes (float[N, 6] x) => (float[N, 6] y, float[M] u)
        <float[1, 6] w, int64[1] one = {1}, int64[1] zero = {0}, int64[1] six = {6}, int64[2] split = {2, 4}, float half = {0.5}, float lo = {-3}, float hi = {3}> {
            reps = Constant <value_ints = [1, 1]> ()
            half2 = Constant <value_float = 2.0> ()
            ax = Constant <value_int = 1> ()
            i0 = Constant <value_int = 0> ()  i1 = Constant <value_int = 6> ()  i2 = Constant <value_int = 2> ()
            s = Shape(x)  n = Slice(s, zero, one)  t = Concat <axis = 0> (n, six)
            e = Expand(w, t)  a = Mul(x, e)
            l, r = Split <axis = 1> (a, split)
            c = Concat <axis = -1> (r, l)
            f = ConstantOfShape <value = float[1] {0.25}> (t)
            d = Sub(c, f)  p = Pow(d, half2)  k = Clip(p, lo, hi)
            q = Unsqueeze(k, one)  z = Squeeze(q, one)
            g = Tile(z, reps)
            cum = CumSum(g, ax)
            cond = Greater(g, half)
            y = Where(cond, cum, g)
            ran = Range(i0, i1, i2)
            u1 = Gather <axis = 1> (y, ran)
            u = ReduceSum <keepdims = 0> (u1, one)
        }""",
    "branches": """<ir_version: 8, opset_import: ["": 16]> branches (float[N, 3] x) => (float[N, 3] y)
        <float[3, 3] w, float zero = {0}> {
            s = ReduceMean <keepdims = 0> (x)  c = Greater(s, zero)
            y = If (c) <
                then_branch = then_graph () => (float[N, 3] t) <float[3] b = {1, 2, 3}> { m = MatMul(x, w)  t = Add(m, b) },
                else_branch = else_graph () => (float[N, 3] e) { k = Constant <value = float[3] {1, 2, 3}> ()  e = Mul(x, k) }
            >
        }""",
    "loop": """<ir_version: 8, opset_import: ["": 16]> loop (float[N, 3] x) => (float[N, 3] y, float[K, N, 3] all)
        <float[3, 3] w, int64 trips = {3}, bool go = {1}> {
            y, all = Loop (trips, go, x) <
                body = body (int64 i, bool c, float[N, 3] h) => (bool d, float[N, 3] o, float[N, 3] s) {
                    d = Identity(c)  m = MatMul(h, w)  o = Tanh(m)  s = Identity(o)
                }>
        }""",
    "scan": """<ir_version: 8, opset_import: ["": 16]> scan (float[T, N, 3] x, float[N, 2] h0) => (float[N, 2] hn, float[T, N, 2] ys)
        <float[3, 2] w, float[2, 2] u, float[2] b> {
            hn, ys = Scan (h0, x) <num_scan_inputs = 1,
                body = body (float[N, 2] h, float[N, 3] xt) => (float[N, 2] o, float[N, 2] s) {
                    a = MatMul(xt, w)  r = MatMul(h, u)  z = Add(a, r)  zb = Add(z, b)  o = Sigmoid(zb)  s = Identity(o)
                }>
        }""",
    "functions": """<ir_version: 8, opset_import: ["": 17, "local": 1]> main (float[N, 3] x) => (float[N, 3] y)
        <float[3, 3] w0, float[3] b0, float[3, 3] w1, float[3] b1> {
            h = local.layer <alpha = 0.3> (x, w0, b0)  g = local.twice(h)  y = local.layer(g, w1, b1)
        }
        <opset_import: ["": 17], domain: "local"> layer <alpha: float = 0.1> (a, w, b) => (c) {
            m = MatMul(a, w)  s = Add(m, b)  c = LeakyRelu <alpha: float = @alpha> (s)
        }
        <opset_import: ["": 17, "local": 1], domain: "local"> twice (a) => (c) {
            k = Constant <value = float[3] {1, 2, 3}> ()  b = Mul(a, k)  c = Tanh(b)
        }""",
    "quantized": """<ir_version: 8, opset_import: ["": 17]> quantized (float[N, 4] x) => (float[N, 2] y)
        <float sx = {0.1}, uint8 zx = {128}, int8[4, 2] wq = {1, 2, 3, 4, 5, 6, 7, 8}, float[2] sw = {0.5, 0.25}, int8[2] zw = {0, 0}, float[2] b> {
            q = QuantizeLinear(x, sx, zx)  d = DequantizeLinear(q, sx, zx)
            w = DequantizeLinear <axis = 1> (wq, sw, zw)
            m = MatMul(d, w)  y = Add(m, b)
        }""",
    "microsoft": """<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]> microsoft (float[N, 4, 6] x) => (float[N, 4, 6] y)
        <float[6, 18] w, float[18] b, float[6] g, float[6] be, float[6, 6] m, float[6] c> {
            a = com.microsoft.Attention <num_heads = 2> (x, w, b)
            s = com.microsoft.SkipLayerNormalization <epsilon = 0.00001> (a, x, g, be)
            f = com.microsoft.FusedMatMul <transB = 1, alpha = 0.5> (s, m)
            h = com.microsoft.BiasGelu(f, c)
            q = com.microsoft.QuickGelu(h)
            y = com.microsoft.Gelu(q)
        }""",
    "linear": """<ir_version: 8, opset_import: ["": 17, "ai.onnx.ml": 3]> linear (float[N, 2] x) => (int64[N] label, seq(map(int64, float)) p) {
            s = ai.onnx.ml.Scaler <offset = [0.5, 0.5], scale = [2.0, 3.0]> (x)
            n = ai.onnx.ml.Normalizer <norm = "L2"> (s)
            label, q = ai.onnx.ml.LinearClassifier <classlabels_ints = [3, 4, 5], coefficients = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
                intercepts = [0.1, 0.2, 0.3], multi_class = 1, post_transform = "SOFTMAX"> (n)
            p = ai.onnx.ml.ZipMap <classlabels_int64s = [3, 4, 5]> (q)
        }""",
    "regressor": """<ir_version: 8, opset_import: ["": 17, "ai.onnx.ml": 1]> regressor (float[N, 2] x) => (float[N, 2] y) {
            y = ai.onnx.ml.LinearRegressor <coefficients = [1.0, 2.0, 3.0, 4.0], intercepts = [0.5, -0.5], targets = 2> (x)
        }""",
    "old": """<ir_version: 3, opset_import: ["": 9]> old (float[N, 3, 4] x, float[3] w) => (float[N, 12] y)
        <float[3] w = {1, 2, 3}> {
            u = Unsqueeze <axes = [0, 2]> (w)  p = Mul(x, u)  k = Clip <min = -2.0, max = 2.0> (p)
            r = ReduceSum <axes = [1], keepdims = 1> (k)  s = Softmax(r)  e = Add(k, s)
            d, mask = Dropout <ratio = 0.5> (e)  f = Flatten <axis = 1> (d)  y = Slice <axes = [1], starts = [0], ends = [12]> (f)
        }""",
    "ngrams": """<ir_version: 8, opset_import: ["": 17]> ngrams (int64[N, 6] words) => (float[N, 2] y) <float[4, 2] w, float[2] b> {
            c = TfIdfVectorizer <mode = "TF", min_gram_length = 1, max_gram_length = 2, max_skip_count = 1, ngram_counts = [0, 2],
                ngram_indexes = [0, 1, 2, 3], pool_int64s = [1, 2, 1, 2, 2, 1]> (words)
            y = Gemm(c, w, b)
        }""",
    "text": """<ir_version: 10, opset_import: ["": 21]> text (string[N] words, float[N, 2] x) => (float[N, 2] y, string[N] same)
        <float[2, 2] w> {
            m = MatMul(x, w)  y = Gelu <approximate = "tanh"> (m)  same = Identity(words)
            k = Constant <value_strings = ["a", "b"]> ()  t = Constant <value_string = "c"> ()
        }""",
}

RECURRENT = {"lstm": ("LSTM", 4), "gru": ("GRU", 3), "rnn": ("RNN", 1)}


def _filled(made: onnx.ModelProto) -> onnx.ModelProto:
    """Weights without values, which the parser takes for types of values in between, get some."""
    rng = np.random.default_rng(0)
    for info in made.graph.value_info:
        shape = [d.dim_value for d in info.type.tensor_type.shape.dim]
        array = rng.normal(size=shape).astype(np.float32)
        made.graph.initializer.append(numpy_helper.from_array(array, info.name))
    made.graph.ClearField("value_info")
    return made


def _recurrent(op_type: str, gates: int) -> onnx.ModelProto:
    """A bidirectional recurrent layer, its last state and a Gemm."""
    rng = np.random.default_rng(0)
    shapes = {"w": (2, gates * 2, 3), "r": (2, gates * 2, 2), "b": (2, gates * 4), "v": (4, 2), "c": (2,)}
    tensors = [numpy_helper.from_array(rng.normal(size=s).astype(np.float32), n) for n, s in shapes.items()]
    tensors.append(numpy_helper.from_array(np.array([0, -1], dtype=np.int64), "shape"))
    nodes = [
        helper.make_node("Transpose", ["x"], ["turned"], perm=[1, 0, 2]),
        helper.make_node(
            op_type,
            ["turned", "w", "r", "b"],
            ["s", "h"],
            hidden_size=2,
            direction="bidirectional",
            name="recurrent",
        ),
        helper.make_node("Transpose", ["h"], ["t"], perm=[1, 0, 2]),
        helper.make_node("Reshape", ["t", "shape"], ["f"]),
        helper.make_node("Gemm", ["f", "v", "c"], ["y"]),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "recurrent", [info("x", 1, ["N", 3, 3])], [info("y", 1, ["N", 2])], tensors
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=7)


def _sparse() -> onnx.ModelProto:
    """A sparse weight in the graph, and another in a Constant."""
    made = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]> sparse (float[N, 3] x) => (float[N, 3] y)'
        "<float[3] b = {1, 2, 3}> { s = Constant()  m = Mul(x, w)  a = MatMul(m, s)  y = Add(a, b) }"
    )

    def sparse(name: str, values: list[float], indices: object, dims: list[int]) -> onnx.SparseTensorProto:
        return helper.make_sparse_tensor(
            numpy_helper.from_array(np.array(values, dtype=np.float32), name),
            numpy_helper.from_array(np.array(indices, dtype=np.int64), f"{name}_indices"),
            dims,
        )

    made.graph.sparse_initializer.append(sparse("w", [2.0, 3.0], [0, 2], [3]))
    made.graph.node[0].attribute.append(
        helper.make_attribute("sparse_value", sparse("", [1.0, 4.0], [[0, 1], [2, 2]], [3, 3]))
    )
    return made


def _sklearn(kind: str) -> onnx.ModelProto:
    """A pipeline of scikit-learn, converted."""
    import skl2onnx
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    rng = np.random.default_rng(0)
    X = rng.normal(size=(20, 3)).astype(np.float32)
    y = np.where(X[:, 0] > 0, "yes", "no")
    versions = {"": 17, "ai.onnx.ml": 3}
    model, options = {
        "logistic": (LogisticRegression(max_iter=5, tol=1.0), {}),
        "mlp": (MLPRegressor(hidden_layer_sizes=[4], max_iter=1, tol=1e9, n_iter_no_change=1), {}),
        "forest": (RandomForestClassifier(2, max_depth=2, random_state=0), {"zipmap": False}),
        "svm": (SVC(kernel="rbf", probability=False), {"zipmap": False}),
    }[kind]
    pipeline = make_pipeline(StandardScaler(), model)
    pipeline.fit(X, X.sum(axis=1) if kind == "mlp" else y)
    return skl2onnx.to_onnx(
        pipeline, X[:1], target_opset=versions, options={id(model): options} if options else None
    )


_BUILDERS = {
    **{
        name: functools.partial(lambda text: _filled(onnx.parser.parse_model(text)), text)
        for name, text in TEXTS.items()
    },
    **{name: functools.partial(_recurrent, *given) for name, given in RECURRENT.items()},
    "sparse": _sparse,
    **{f"sklearn_{kind}": functools.partial(_sklearn, kind) for kind in ("logistic", "mlp", "forest", "svm")},
}

MODELS = tuple(_BUILDERS)
"""Names of the models."""


@functools.cache
def model(name: str) -> bytes:
    """A model as bytes."""
    return _BUILDERS[name]().SerializeToString()
