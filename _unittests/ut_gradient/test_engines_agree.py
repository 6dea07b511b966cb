"""Engine 'onnx' against engine 'ort' on small whole models: every input, every weight.

Each is the other's oracle: the one walks by our own rules, the other is onnxruntime-training.
"""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, numpy_helper

from onnxcustom import gradient_graph, weights
from onnxcustom.gradient import GradientNames
from onnxcustom.runtime import create_session

pytestmark = pytest.mark.ort

BATCH = 3


@dataclasses.dataclass(frozen=True)
class Network:
    """A model as ONNX text, in which REAL stands for the floating-point type and N for the batch.

    Parameters
    ----------
    inputs, outputs, body : str
        ``"REAL[N, 4] x"``, separated by commas; the nodes.
    shapes : dict of str to tuple
        Weights, drawn at random.
    declared : str
        Initializers that are no weights.
    integers : dict of str to int
        Integer inputs, and the number that their elements stay below.
    opset : int
        The opset.
    positive : tuple of str
        Weights that must be greater than 0.
    double : bool
        Whether onnxruntime has all kernels for float64, engine 'ort' those of the gradient too.
    """

    inputs: str
    outputs: str
    body: str
    shapes: dict[str, tuple[int, ...]]
    declared: str = ""
    integers: dict[str, int] = dataclasses.field(default_factory=dict)
    opset: int = 18
    positive: tuple[str, ...] = ()
    double: bool = True

    def model(self, dtype: type, batch: str) -> onnx.ModelProto:
        """The model in a type, for a batch of any size or of 3."""
        text = f"g ({self.inputs}) => ({self.outputs}) <{self.declared}> {{ {self.body} }}"
        text = text.replace("REAL", "float" if dtype == np.float32 else "double")
        if batch == "static":
            text = text.replace("[N", f"[{BATCH}")
        made = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {self.opset}]> {text}')
        rng = np.random.default_rng(0)
        for name, shape in self.shapes.items():
            values = rng.normal(size=shape) / np.sqrt(max(np.prod(shape[1:]), 2))
            values = np.abs(values) + 0.5 if name in self.positive else values
            made.graph.initializer.append(numpy_helper.from_array(values.astype(dtype), name))
        return made


def mlp(
    activation: str, *, opset: int = 18, fused: bool = False, double: bool = True, **attributes: object
) -> Network:
    """Two hidden layers; `fused` writes them with Gemm."""
    options = ", ".join(f"{k} = {v}" for k, v in attributes.items())
    body, last = "", "x"
    for i in range(3):
        end = "y" if i == 2 else f"h{i}"
        if fused:
            body += f"{end} = Gemm({last}, w{i}, b{i}) "
        else:
            body += f"p{i} = MatMul({last}, w{i}) {end} = Add(p{i}, b{i}) "
        if i < 2:
            body += f"r{i} = {activation} {f'<{options}>' if options else ''} (h{i}) "
            last = f"r{i}"
    shapes = {"w0": (4, 6), "b0": (6,), "w1": (6, 5), "b1": (5,), "w2": (5, 2), "b2": (2,)}
    return Network("REAL[N, 4] x", "REAL[N, 2] y", body, shapes, opset=opset, double=double)


def gemm(attributes: str, a: str, b: tuple[int, int], c: tuple[int, ...] | None) -> Network:
    """One Gemm between two activations."""
    operands, shapes = "t, w, c" if c is not None else "t, w", {"u": (4, 4), "w": b}
    if c is not None:
        shapes["c"] = c
    body = f"p = MatMul(x, u) s = Tanh(p) {a} g = Gemm <{attributes}> ({operands}) y = Sigmoid(g)"
    return Network("REAL[N, 4] x", "REAL[N, K] y", body, shapes)


NETWORKS: dict[str, Network] = {
    **{
        f"mlp {name}": mlp(name)
        for name in (
            "Relu", "Sigmoid", "Tanh", "Elu", "Selu", "Softplus", "Softsign", "HardSigmoid", "HardSwish",
            "Mish", "Exp",
        )
    },
    "mlp Celu": mlp("Celu", double=False, alpha=2.0),
    "mlp Erf": mlp("Erf", double=False),
    "mlp LeakyRelu": mlp("LeakyRelu", double=False, alpha=0.1),
    "mlp Gelu": mlp("Gelu", opset=20, double=False),
    "mlp Gelu by tanh": mlp("Gelu", opset=20, double=False, approximate='"tanh"'),
    "mlp of Gemm": mlp("Relu", fused=True),
    "gemm both transposed": gemm(
        "transA = 1, transB = 1", "t = Transpose <perm = [1, 0]> (s)", (5, 4), (5,)
    ),
    "gemm scaled": gemm("alpha = 0.5, beta = 2.0", "t = Neg(s)", (4, 5), (1, 5)),
    "gemm without bias": gemm("alpha = -1.5", "t = Neg(s)", (4, 5), None),
    "gemm, one bias for all": gemm("transB = 1", "t = Neg(s)", (5, 4), (1,)),
    "classifier": Network(
        "REAL[N, 4] x", "REAL[N, 3] y, REAL[N, 3] z",
        "p = MatMul(x, w) h = Add(p, b) y = LogSoftmax <axis = 1> (h) z = Softmax <axis = 1> (h)",
        {"w": (4, 3), "b": (3,)},
    ),
    "weights used twice": Network(
        "REAL[N, 4] x", "REAL[N, 4] y",
        """p = MatMul(x, w) h = Tanh(p) q = MatMul(h, w) k = Tanh(q) v = Transpose <perm = [1, 0]> (w)
        r = MatMul(k, v) y = Add(r, x)""",
        {"w": (4, 4)},
    ),
    "recurrent by hand": Network(
        "REAL[N, 3, 2] x", "REAL[N, 4] h3",
        " ".join(
            f"""s{k} = Slice(x, i{k}, i{k + 1}, axis) x{k} = Squeeze(s{k}, axis) a{k} = MatMul(x{k}, w)
            {f"r{k} = MatMul(h{k}, u) c{k} = Add(a{k}, r{k})" if k else f"c{k} = Identity(a{k})"}
            d{k} = Add(c{k}, b) h{k + 1} = Tanh(d{k})"""
            for k in range(3)
        ),
        {"w": (2, 4), "u": (4, 4), "b": (4,)},
        "int64[1] axis = {1}, int64[1] i0 = {0}, int64[1] i1 = {1}, int64[1] i2 = {2}, int64[1] i3 = {3}",
    ),
    "lenet": Network(
        "REAL[N, 1, 10, 10] x", "REAL[N, 3] y",
        """c = Conv <pads = [1, 1, 1, 1]> (x, k0, b0) r = Relu(c)
        m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r) d = Conv(m, k1, b1) s = Tanh(d)
        a = AveragePool <kernel_shape = [2, 2], strides = [1, 1]> (s) f = Flatten(a) y = Gemm(f, w, b2)""",
        {"k0": (2, 1, 3, 3), "b0": (2,), "k1": (3, 2, 3, 3), "b1": (3,), "w": (12, 3), "b2": (3,)},
        double=False,
    ),
    "residual": Network(
        "REAL[N, 3, 5, 4] x", "REAL[N, 3, 5, 4] y",
        """c = Conv <pads = [1, 1, 1, 1]> (x, k0) e = BatchNormalization(c, s0, b0, mean, var) r = Relu(e)
        d = Conv <pads = [1, 1, 1, 1]> (r, k1, b1) f = BatchNormalization(d, s1, b2, mean, var)
        t = Add(f, x) y = Relu(t)""",
        {"k0": (3, 3, 3, 3), "s0": (3,), "b0": (3,), "k1": (3, 3, 3, 3), "b1": (3,), "s1": (3,), "b2": (3,)},
        "REAL[3] mean = {0.1, -0.2, 0.3}, REAL[3] var = {0.5, 1.5, 2.0}",
        double=False,
    ),
    "squeeze and excitation": Network(
        "REAL[N, 4, 6, 6] x", "REAL[N, 2] y",
        """d = Conv <group = 4, pads = [1, 1, 1, 1], strides = [2, 2]> (x, k) g = GlobalAveragePool(d)
        u = Conv(g, down, b0) r = Relu(u) v = Conv(r, up, b1) s = Sigmoid(v) m = Mul(d, s)
        a = ReduceMean <keepdims = 0> (m, spatial) y = Gemm(a, w)""",
        {
            "k": (4, 1, 3, 3), "down": (2, 4, 1, 1), "b0": (2,), "up": (4, 2, 1, 1), "b1": (4,), "w": (4, 2),
        },
        "int64[2] spatial = {2, 3}",
        double=False,
    ),
    "convolution of a sequence": Network(
        "REAL[N, 2, 9] x", "REAL[N, 3] y",
        """c = Conv <dilations = [2], pads = [2, 2]> (x, k, b) r = LeakyRelu(c)
        d = Conv <strides = [2]> (r, l) y = ReduceMean <keepdims = 0> (d, last)""",
        {"k": (4, 2, 3), "b": (4,), "l": (3, 4, 2)},
        "int64[1] last = {2}",
        double=False,
    ),
    "inverted residual": Network(
        "REAL[N, 2, 5, 5] x", "REAL[N, 2, 5, 5] y",
        """c = Conv(x, wide, b0) r = Clip(c, zero, six) d = Conv <group = 4, pads = [1, 1, 1, 1]> (r, k, b1)
        s = Clip(d, zero, six) e = Conv(s, narrow) y = Add(e, x)""",
        {"wide": (4, 2, 1, 1), "b0": (4,), "k": (4, 1, 3, 3), "b1": (4,), "narrow": (2, 4, 1, 1)},
        "REAL zero = {0}, REAL six = {0.6}",
        double=False,
    ),
    "attention": Network(
        "REAL[N, 4, 6] x", "REAL[N, 4, 6] y",
        """n = LayerNormalization(x, g, e) q = MatMul(n, wq) k = MatMul(n, wk) v = MatMul(n, wv)
        q4 = Reshape(q, split) k4 = Reshape(k, split) v4 = Reshape(v, split)
        qt = Transpose <perm = [0, 2, 1, 3]> (q4) kt = Transpose <perm = [0, 2, 3, 1]> (k4)
        vt = Transpose <perm = [0, 2, 1, 3]> (v4) qk = MatMul(qt, kt) s = Mul(qk, scale)
        p = Softmax <axis = -1> (s) a = MatMul(p, vt) at = Transpose <perm = [0, 2, 1, 3]> (a)
        aj = Reshape(at, join) o = MatMul(aj, wo) y = Add(x, o)""",
        {"g": (6,), "e": (6,), "wq": (6, 6), "wk": (6, 6), "wv": (6, 6), "wo": (6, 6)},
        "int64[4] split = {0, 4, 2, 3}, int64[3] join = {0, 4, 6}, REAL scale = {0.577}",
    ),
    "feed forward": Network(
        "REAL[N, 3, 4] x", "REAL[N, 3, 4] y",
        """n = LayerNormalization(x, g, e) u = MatMul(n, w0) v = Add(u, b0) r = Relu(v) d = MatMul(r, w1)
        f = Add(d, b1) y = Add(x, f)""",
        {"g": (4,), "e": (4,), "w0": (4, 8), "b0": (8,), "w1": (8, 4), "b1": (4,)},
    ),
    "causal attention": Network(
        "REAL[N, 4, 3] x", "REAL[N, 4, 3] y",
        """t = Transpose <perm = [0, 2, 1]> (x) s = MatMul(x, t) m = Where(mask, s, low)
        p = Softmax <axis = -1> (m) a = MatMul(p, x) y = MatMul(a, w)""",
        {"w": (3, 3)},
        "bool[4, 4] mask = {1,0,0,0, 1,1,0,0, 1,1,1,0, 1,1,1,1}, REAL[1] low = {-1e4}",
    ),
    "embedding": Network(
        "int64[N, 5] ids", "REAL[N, 2] y",
        "e = Gather(table, ids) m = ReduceMean <keepdims = 0> (e, one) t = Tanh(m) y = Gemm(t, w, b)",
        {"table": (7, 4), "w": (4, 2), "b": (2,)},
        "int64[1] one = {1}",
        {"ids": 7},
    ),
    "branches": Network(
        "REAL[N, 6] x", "REAL[N, 3] y",
        """a, b, c = Split <axis = 1> (x, parts) p = MatMul(a, w0) r = Relu(p) q = MatMul(b, w1)
        s = Sigmoid(q) j = Concat <axis = 1> (r, s, c) y = MatMul(j, w2)""",
        {"w0": (2, 3), "w1": (3, 2), "w2": (6, 3)},
        "int64[3] parts = {2, 3, 1}",
    ),
    "gates": Network(
        "REAL[N, 4] x", "REAL[N, 3] y",
        """p = MatMul(x, w) a, b = Split <axis = -1, num_outputs = 2> (p) s = Sigmoid(b) t = Tanh(a)
        m = Mul(s, t) o = Sub(one, s) n = Mul(o, h) y = Add(m, n)""",
        {"w": (4, 6), "h": (3,)},
        "REAL one = {1}",
    ),
    "several inputs and outputs": Network(
        "REAL[N, 3] x, REAL[N, 2] u, REAL[3] v", "REAL[N, 4] y, REAL[N, 3] z, REAL s",
        """p = MatMul(x, w) q = MatMul(u, k) a = Add(p, q) y = Tanh(a) m = Mul(x, v) z = Exp(m)
        b = Mul(y, y) s = ReduceSum <keepdims = 0> (b)""",
        {"w": (3, 4), "k": (2, 4)},
    ),
    "two towers": Network(
        "REAL[N, 4] left, REAL[N, 4] right", "REAL[N, 1] y",
        """a = MatMul(left, w) b = MatMul(right, w) c = Tanh(a) d = Tanh(b) m = Mul(c, d) n = Mul(c, c)
        o = Mul(d, d) r = ReduceSum(m, last) s = ReduceSum(n, last) t = ReduceSum(o, last) u = Sqrt(s)
        v = Sqrt(t) l = Mul(u, v) y = Div(r, l)""",
        {"w": (4, 3)},
        "int64[1] last = {1}",
    ),
    "reductions": Network(
        "REAL[N, 3, 4] x", "REAL[N, 3] y, REAL[N, 1, 4] z, REAL[3, 4] s",
        """m = Mul(x, w) y = ReduceLogSumExp <keepdims = 0> (m, last) a = Tanh(m) z = ReduceMean(a, mid)
        b = Mul(a, a) s = ReduceSum <keepdims = 0> (b, first)""",
        {"w": (3, 4)},
        "int64[1] last = {2}, int64[1] mid = {1}, int64[1] first = {0}",
    ),
    "extremes": Network(
        "REAL[N, 4] x", "REAL[N, 4] y",
        "m = Mul(x, w) a = Max(m, x) b = Min(a, v) c = Abs(b) y = Max(c, low)",
        {"w": (4,), "v": (4,)},
        "REAL low = {0.1}",
    ),
    "trigonometry": Network(
        "REAL[N, 4] x", "REAL[N, 4] y",
        "m = Mul(x, w) s = Sin(m) c = Cos(m) a = Mul(s, x) y = Sub(a, c)",
        {"w": (4,)},
        double=False,
    ),
    "elementary functions": Network(
        "REAL[N, 4] x", "REAL[N, 4] y",
        """a = Mul(x, x) b = Add(a, w) c = Log(b) d = Sqrt(b) e = Pow(b, exponent) f = Div(c, d)
        g = Reciprocal(e) h = Exp(x) l = Sum(f, g, h) y = Neg(l)""",
        {"w": (4,)},
        "REAL exponent = {1.5}",
        positive=("w",),
    ),
    "broadcasting": Network(
        "REAL[N, 1, 4] x, REAL[3, 1] v", "REAL[N, 3, 4] y",
        "a = Add(x, w) b = Mul(a, v) c = Sub(b, s) d = Div(c, t) y = Sigmoid(d)",
        {"w": (3, 4), "s": (4,), "t": (3, 1)},
        positive=("t",),
    ),
    "changes of shape": Network(
        "REAL[N, 2, 6] x", "REAL[N, 3, 5] y",
        """r = Reshape(x, cut) t = Transpose <perm = [0, 2, 1]> (r) u = Unsqueeze(t, one)
        e = Expand(u, wide) f = Mul(e, w) s = ReduceSum <keepdims = 0> (f, one)
        p = Pad(s, pads) y = Slice(p, first, end, last)""",
        {"w": (2, 3, 4)},
        """int64[3] cut = {0, 4, 3}, int64[1] one = {1}, int64[4] wide = {1, 2, 1, 1}, int64[6] pads =
        {0, 0, 1, 0, 0, 1}, int64[1] first = {1}, int64[1] end = {6}, int64[1] last = {2}""",
    ),
    "indices": Network(
        "REAL[N, 5] x, int64[N, 2] places", "REAL[N, 2] y",
        """m = Mul(x, w) g = GatherElements <axis = 1> (m, places) k = Gather <axis = 1> (m, two)
        y = Mul(g, k)""",
        {"w": (5,)},
        "int64[2] two = {3, 0}",
        {"places": 5},
    ),
    "autoencoder": Network(
        "REAL[N, 5] x", "REAL l",
        """p = Gemm(x, w, b) h = Sigmoid(p) q = Gemm <transB = 1> (h, w, c) d = Sub(q, x) s = Mul(d, d)
        l = ReduceMean <keepdims = 0> (s)""",
        {"w": (5, 2), "b": (2,), "c": (5,)},
    ),
}  # fmt: skip


def feeds_of(model: onnx.ModelProto, integers: dict[str, int], dtype: type) -> dict[str, np.ndarray]:
    """Random numbers for every input."""
    rng, feeds = np.random.default_rng(1), {}
    for value in model.graph.input:
        shape = [d.dim_value or BATCH for d in value.type.tensor_type.shape.dim]
        if value.type.tensor_type.elem_type == TensorProto.INT64:
            feeds[value.name] = rng.integers(0, integers[value.name], size=shape)
        else:
            feeds[value.name] = rng.normal(size=shape).astype(dtype)
    return feeds


def gradients(model: onnx.ModelProto, engine: str, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Gradients by the name of what they belong to, and the model's own outputs."""
    graph = gradient_graph(model, engine=engine)
    names, session = GradientNames.of(graph), create_session(graph)
    own = create_session(model).run(None, feeds)
    rng, seeds = np.random.default_rng(2), {}
    for output, value in zip(model.graph.output, own, strict=True):
        if output.name in names.seeds:
            seeds[names.seeds[output.name]] = np.asarray(rng.normal(size=value.shape), dtype=value.dtype)
    values = {k: v for k, v in weights(model).items() if k in names.weights}
    found = session.run(None, {**feeds, **values, **seeds})
    by_output = dict(zip([o.name for o in session.get_outputs()], found, strict=True))
    known = {output: source for source, output in names.gradients.items()}
    return {known.get(name, f"output {name}"): value for name, value in by_output.items()}


def compare(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> None:
    """Both engines differentiate by the same tensors, with the same result."""
    ours, theirs = (gradients(model, engine, feeds) for engine in ("onnx", "ort"))
    wanted = {k for k, v in feeds.items() if v.dtype.kind == "f"} | set(weights(model))
    assert wanted <= set(ours)
    assert set(ours) == set(theirs)
    for name, value in ours.items():
        assert value.shape == theirs[name].shape, name
        if value.dtype.kind == "f":
            # Attributes, and in engine 'ort' the factor of a mean, have the precision of float32.
            relative = 1e-4 if value.dtype == np.float32 else 1e-6
            scale = max(np.abs(value).max(), 1e-3)
            np.testing.assert_allclose(theirs[name], value, rtol=0, atol=relative * scale, err_msg=name)
            if not name.startswith("output "):
                assert value.any(), f"the gradient of {name} is zero: nothing was compared"


@pytest.mark.parametrize("batch", ["dynamic", "static"])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [(n, t) for n, net in NETWORKS.items() for t in (np.float32, np.float64)[: 1 + net.double]],
)
def test_networks(name: str, dtype: type, batch: str) -> None:
    network = NETWORKS[name]
    model = network.model(dtype, batch)
    compare(model, feeds_of(model, network.integers, dtype))


@pytest.mark.parametrize("batch", ["dynamic", "static"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_mlp_has_fewer_nodes(dtype: type, batch: str) -> None:
    model = NETWORKS["mlp Relu"].model(dtype, batch)
    ours, theirs = (gradient_graph(model, inputs=[], engine=e).graph.node for e in ("onnx", "ort"))
    assert len(ours) < len(theirs)
    assert {node.domain for node in ours} == {""}


# -- converted from scikit-learn -------------------------------------------------------------------


def estimator(name: str) -> object:
    """A fitted estimator."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
    from sklearn.neural_network import MLPClassifier, MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 4))
    target, classes = x @ rng.normal(size=4), rng.integers(0, 3, size=30)
    small = {"hidden_layer_sizes": (5, 3), "max_iter": 3, "random_state": 0}
    makers = {
        "linear regression": lambda: LinearRegression().fit(x, target),
        "several targets": lambda: Ridge().fit(x, np.stack([target, target**2], axis=1)),
        "logistic regression": lambda: LogisticRegression().fit(x, classes),
        "binary logistic regression": lambda: LogisticRegression().fit(x, classes > 0),
        **{
            f"MLPClassifier {kind}": lambda kind=kind: MLPClassifier(activation=kind, **small).fit(x, classes)
            for kind in ("relu", "tanh", "logistic", "identity")
        },
        "binary MLPClassifier": lambda: MLPClassifier(**small).fit(x, classes > 0),
        "MLPRegressor": lambda: MLPRegressor(**small).fit(x, target),
        "scaled MLPRegressor": lambda: make_pipeline(StandardScaler(), MLPRegressor(**small)).fit(x, target),
        "scaled logistic regression": lambda: make_pipeline(StandardScaler(), LogisticRegression()).fit(
            x, classes
        ),
        "components": lambda: make_pipeline(StandardScaler(), PCA(2), LinearRegression()).fit(x, target),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # three iterations don't converge
        return makers[name]()


ESTIMATORS = [
    "linear regression", "several targets", "logistic regression", "binary logistic regression",
    "MLPClassifier relu", "MLPClassifier tanh", "MLPClassifier logistic", "MLPClassifier identity",
    "binary MLPClassifier", "MLPRegressor", "scaled MLPRegressor", "scaled logistic regression", "components",
]  # fmt: skip


@pytest.mark.parametrize("batch", ["dynamic", "static"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_scikit_learn(name: str, dtype: type, batch: str) -> None:
    skl2onnx = pytest.importorskip("skl2onnx")
    types = skl2onnx.common.data_types
    kind = types.FloatTensorType if dtype == np.float32 else types.DoubleTensorType
    fitted = estimator(name)
    options = {"zipmap": False} if hasattr(fitted, "classes_") else None
    model = skl2onnx.to_onnx(
        fitted,
        initial_types=[("x", kind([None if batch == "dynamic" else BATCH, 4]))],
        target_opset={"": 18, "ai.onnx.ml": 3},
        options=options,
    )
    model.ir_version = 8
    compare(model, feeds_of(model, {}, dtype))
