"""Engine 'onnx' behind the public functions.

User rules, function bodies, what cannot be differentiated, second derivatives.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx.reference
import pytest
from whole_models import Differentiated, double, evaluator

from onnxcustom import gradient_graph, gradient_report
from onnxcustom.exceptions import (
    DifferentiationError,
    GradientNotImplementedError,
    InvalidModelError,
    NonDifferentiableError,
    UnknownOperatorError,
)
from onnxcustom.gradient import GradientNames, registry
from onnxcustom.gradient.registry import elementwise, rule
from onnxcustom.runtime import create_session, ort_limits

HEADER = '<ir_version: 8, opset_import: ["" : 18, "my.domain" : 1, "com.microsoft" : 1]>'


def parse(text: str, header: str = HEADER) -> onnx.ModelProto:
    return onnx.parser.parse_model(f"{header} {text}")


def weighted(text: str, header: str = HEADER, seed: int = 0, **shapes: tuple[int, ...]) -> onnx.ModelProto:
    """A model with random float32 weights."""
    model, rng = parse(text, header), np.random.default_rng(seed)
    for name, shape in shapes.items():
        fan = np.sqrt(np.prod(shape[1:]) if len(shape) > 1 else 4)
        model.graph.initializer.append(
            onnx.numpy_helper.from_array((rng.normal(size=shape) / fan).astype(np.float32), name)
        )
    return model


@pytest.fixture
def rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers does not stay."""
    for name in ("_RULES", "_NON_DIFFERENTIABLE", "_REFUSED"):
        kept = {k: list(v) if isinstance(v, list) else v for k, v in getattr(registry, name).items()}
        monkeypatch.setattr(registry, name, kept)


# -- operators of other domains --------------------------------------------------------------------

CUBE = "g (double[N, 3] x, double[3] w) => (double[N, 3] y) { t = Mul(x, w) y = my.domain.Cube(t) }"


def cube(op: Any, node: Any, dy: Any) -> Any:
    return 3 * node.inputs[0] * node.inputs[0] * dy


def gradients_by_reference(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Gradients by onnx's reference evaluator, of a graph with an operator of the tests' own."""

    class Cube(onnx.reference.op_run.OpRun):
        op_domain = "my.domain"

        def _run(self, x):  # type: ignore[no-untyped-def]
            return (x**3,)

    values = onnx.reference.ReferenceEvaluator(model, new_ops=[Cube]).run(None, feeds)
    return dict(zip([o.name for o in model.graph.output], values, strict=True))


@pytest.mark.usefixtures("rules")
@pytest.mark.parametrize("how", ["rule", "elementwise"])
def test_user_rule(how: str) -> None:
    if how == "rule":
        rule("Cube", domain="my.domain")(cube)
    else:
        elementwise("Cube", lambda op, x, y: 3 * x * x, domain="my.domain")
    graph = gradient_graph(parse(CUBE), engine="onnx")
    rng = np.random.default_rng(0)
    x, w, dy = rng.normal(size=(2, 3)), rng.normal(size=3), rng.normal(size=(2, 3))
    found = gradients_by_reference(graph, {"x": x, "w": w, "y_grad": dy})
    np.testing.assert_allclose(found["x_grad"], 3 * (x * w) ** 2 * w * dy)
    np.testing.assert_allclose(found["w_grad"], (3 * (x * w) ** 2 * x * dy).sum(axis=0))
    assert [row.how for row in gradient_report(parse(CUBE), engine="onnx")] == ["rule", "rule"]


def test_unknown_operator_on_the_way() -> None:
    with pytest.raises(UnknownOperatorError) as caught:
        gradient_graph(parse(CUBE), inputs=["x"], engine="onnx")
    for word in ("'x'", "Cube", "my.domain", "opset 1", "onnxcustom.gradient.rule"):
        assert word in str(caught.value)
    assert (caught.value.op_type, caught.value.domain, caught.value.opset) == ("Cube", "my.domain", 1)
    assert caught.value.node
    assert [row.how for row in gradient_report(parse(CUBE), engine="onnx").refused] == ["unknown"]


def test_unknown_operator_beside_the_way() -> None:
    text = """g (double[N, 3] x, double[3] z) => (double[N, 3] y, double[3] c) {
        c = my.domain.Cube(z)  t = Tanh(x)  y = Mul(t, t) }"""
    graph = gradient_graph(parse(text), inputs=["x"], outputs=["y"], engine="onnx")
    x, dy = np.ones((2, 3)), np.ones((2, 3))
    found = gradients_by_reference(graph, {"x": x, "z": np.ones(3), "y_grad": dy})
    np.testing.assert_allclose(found["x_grad"], 2 * np.tanh(1) * (1 - np.tanh(1) ** 2) * dy)


# -- rules that are wrong --------------------------------------------------------------------------

WRONG = {
    "too few": (lambda op, node, dy: [dy], "returned 1 gradients for 2 inputs"),
    "too many": (lambda op, node, dy: [dy, dy, None], "returned 3 gradients for 2 inputs"),
    "no variable": (lambda op, node, dy: [dy, 1.0], "1.0"),
    "dtype": (lambda op, node, dy: [dy, op.Cast(dy, to=onnx.TensorProto.FLOAT)], "dtype"),
    "shape": (lambda op, node, dy: [dy, dy], "shape"),
}


@pytest.mark.usefixtures("rules")
@pytest.mark.parametrize("what", WRONG)
def test_wrong_rule(what: str) -> None:
    function, message = WRONG[what]
    rule("Both", domain="my.domain")(function)
    text = "g (double[2, 3] x, double[3] z) => (double[2, 3] y) { y = my.domain.Both(x, z) }"
    model = parse(text)
    with pytest.raises(DifferentiationError, match=r"correct the rule|no variable") as caught:
        gradient_graph(model, inputs=["x", "z"], engine="onnx")
    assert message in str(caught.value)
    assert caught.value.op_type == "Both"
    assert not isinstance(
        caught.value, (GradientNotImplementedError, NonDifferentiableError, UnknownOperatorError)
    )


# -- what has no gradient, and what is no model ----------------------------------------------------


@pytest.mark.usefixtures("rules")
def test_refused_operator() -> None:
    registry.refuse("Cube", domain="my.domain", reason="it is too cubic; use Pow")
    with pytest.raises(GradientNotImplementedError, match="too cubic; use Pow") as caught:
        gradient_graph(parse(CUBE), inputs=["x"], engine="onnx")
    assert (caught.value.op_type, caught.value.domain, caught.value.opset) == ("Cube", "my.domain", 1)


def test_step_function() -> None:
    text = "g (float[N, 3] x) => (float[N, 3] y) { b = Greater(x, x)  y = Cast <to = 1> (b) }"
    with pytest.raises(NonDifferentiableError, match=r"'x'.*Greater.*only places, labels or truth values"):
        gradient_graph(parse(text), inputs=["x"], engine="onnx")


@pytest.mark.parametrize(
    "text",
    [
        "g (string[N] x) => (string[N] y) { y = Identity(x) }",
        "g (float[N] x) => (seq(float[N]) y) { y = SequenceConstruct(x, x) }",
        "g (float[N] x) => (int64[1] y) { y = ArgMax(x) }",
    ],
    ids=["string", "sequence", "integer"],
)
def test_output_without_gradient(text: str) -> None:
    for outputs in (None, ["y"]):
        with pytest.raises(NonDifferentiableError, match="y"):
            gradient_graph(parse(text), outputs=outputs, engine="onnx")


@pytest.mark.parametrize(
    "text",
    [
        "g (float[N, 3] x) => (float[N, 2] y) { y = Tanh(z) }",
        "g (float[N, 3] x) => (float[N, 3] y) { y = NoSuchOperator(x) }",
        "g (float[N, 3] x) => (float[N, 3] y) { y = Tanh(x, x) }",
    ],
    ids=["dangling", "no operator", "too many inputs"],
)
def test_invalid_graph(text: str) -> None:
    with pytest.raises(InvalidModelError):
        gradient_graph(parse(text), engine="onnx")


def test_shape_mismatch() -> None:
    text = "g (float[2, 3] x, float[4, 5] z) => (float[2, 5] y) { y = MatMul(x, z) }"
    with pytest.raises((InvalidModelError, DifferentiationError)):
        create_session(gradient_graph(parse(text), engine="onnx"))


# -- function bodies and fused operators -----------------------------------------------------------


def test_function_body() -> None:
    header = '<ir_version: 8, opset_import: ["" : 18]>'
    fused = weighted(
        """g (float[N, 4] x) => (float[N, 6] y) {
            t = com.microsoft.FusedMatMul <transB = 1> (x, w)
            y = com.microsoft.QuickGelu <alpha = 1.5> (t) }""",
        w=(6, 4),
    )
    plain = weighted(
        """g (float[N, 4] x) => (float[N, 6] y) < float a = {1.5} > {
            v = Transpose <perm = [1, 0]> (w)  t = MatMul(x, v)
            u = Mul(t, a)  s = Sigmoid(u)  y = Mul(t, s) }""",
        header,
        w=(6, 4),
    )
    assert [row.how for row in gradient_report(fused, engine="onnx")] == ["function", "function"]
    rng = np.random.default_rng(1)
    feeds = {"x": rng.normal(size=(3, 4)), "w": rng.normal(size=(6, 4)), "y_grad": rng.normal(size=(3, 6))}
    feeds = {name: v.astype(np.float32) for name, v in feeds.items()}
    graphs = [gradient_graph(model, engine="onnx") for model in (fused, plain)]
    one, other = (create_session(graph).run(["x_grad", "w_grad", "y"], feeds) for graph in graphs)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_attention() -> None:
    text = """g (float[1, 4, 2, 8] q, float[1, 4, 2, 8] k) => (float[1, 4, 2, 8] y) {
        y = Attention(q, k, k) }"""
    model = parse(text, '<ir_version: 10, opset_import: ["" : 23]>')
    limit, _ = ort_limits()
    if limit < 23:
        with pytest.raises(InvalidModelError, match="opset"):
            gradient_graph(model, inputs=["q", "k"], engine="onnx")
    else:
        graph = gradient_graph(model, inputs=["q", "k"], engine="onnx")
        assert {"q_grad", "k_grad"} <= {o.name for o in graph.graph.output}


# -- subgraphs -------------------------------------------------------------------------------------

BRANCHES = """g (float[N, 3] x, bool c) => (float[N, 3] y) {
    y = If (c) <then_branch = a () => (float[N, 3] t) { t = %s },
                else_branch = b () => (float[N, 3] e) { u = Mul(x, x) e = Mul(u, w) }> }"""


def test_weights_in_branches() -> None:
    made = Differentiated(weighted(BRANCHES % "Tanh(x)", w=(3,)))
    x = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    for condition in (True, False):
        gradients, _ = made.check({"x": x, "c": np.array(condition)}, step=1e-6)
        assert gradients["w"].any() != condition


def test_unknown_operator_in_a_branch() -> None:
    model = weighted(BRANCHES % "my.domain.Cube(x)", w=(3,))
    with pytest.raises(UnknownOperatorError, match="Cube"):
        gradient_graph(model, inputs=["x"], engine="onnx")
    assert [row.op_type for row in gradient_report(model, engine="onnx").refused] == ["If"]
    # What is computed beside the way may be anything.
    ends = """g (float[N, 3] x, bool c) => (float[N, 3] y) {
        z = If (c) <then_branch = a () => (bool[N, 3] t) { k = my.domain.Cube(x) t = Greater(k, x) },
                    else_branch = b () => (bool[N, 3] e) { e = Less(x, x) }>
        m = Cast <to = 1> (z)  y = Mul(x, m) }"""
    assert gradient_graph(parse(ends), inputs=["x"], engine="onnx").graph.output[0].name == "x_grad"


# -- second derivatives ----------------------------------------------------------------------------

TWICE = {
    "mlp": (
        """g (float[N, 4] x) => (float[N, 2] y) {
            p = MatMul(x, w0)  h = Add(p, b0)  t = Tanh(h)  q = Gemm(t, w1, b1)  y = Softplus(q) }""",
        {"w0": (4, 5), "b0": (5,), "w1": (5, 2), "b1": (2,)},
        (3, 4),
    ),
    "steps": (
        """g (float[N, 5] x) => (float[N, 5] y) {
            p = Gemm(x, w0, b0)  r = Relu(p)  q = Gemm(r, w1)  l = LeakyRelu(q)  t = PRelu(l, s)
            u = Mul(t, l)  h = HardSigmoid(u)  y = Mul(h, r) }""",
        {"w0": (5, 5), "b0": (5,), "w1": (5, 5), "s": (5,)},
        (3, 5),
    ),
    "conv net": (
        """g (float[N, 2, H, W] x) => (float[N, 3] y) {
            c = Conv <pads = [1, 1, 1, 1]> (x, k0, b0)  t = Sigmoid(c)
            m = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (t)
            d = Conv <strides = [2, 2]> (m, k1)  s = Elu(d)
            a = GlobalAveragePool(s)  f = Flatten(a)  y = Gemm(f, w)  }""",
        {"k0": (3, 2, 3, 3), "b0": (3,), "k1": (4, 3, 2, 2), "w": (4, 3)},
        (2, 2, 9, 8),
    ),
    "transformer block": (
        """g (float[N, T, 6] x) => (float[N, T, 6] y) <
            int64[4] split = {0, 0, 2, 3}, int64[3] join = {0, 0, 6}, float scale = {0.577} > {
            n = LayerNormalization (x, g1, e1)
            q = MatMul(n, wq)  k = MatMul(n, wk)  v = MatMul(n, wv)
            q4 = Reshape(q, split)  k4 = Reshape(k, split)  v4 = Reshape(v, split)
            qt = Transpose <perm = [0, 2, 1, 3]> (q4)  kt = Transpose <perm = [0, 2, 3, 1]> (k4)
            vt = Transpose <perm = [0, 2, 1, 3]> (v4)
            qk = MatMul(qt, kt)  s = Mul(qk, scale)  p = Softmax <axis = -1> (s)  a = MatMul(p, vt)
            at = Transpose <perm = [0, 2, 1, 3]> (a)  aj = Reshape(at, join)  o = MatMul(aj, wo)
            y = Add(x, o) }""",
        {"g1": (6,), "e1": (6,), "wq": (6, 6), "wk": (6, 6), "wv": (6, 6), "wo": (6, 6)},
        (2, 4, 6),
    ),
}


@pytest.mark.parametrize("name", TWICE)
def test_second_derivatives(name: str) -> None:
    """d/dw <v, dL/dw> = H v, against finite differences of the gradient in float64."""
    text, shapes, size = TWICE[name]
    first = gradient_graph(weighted(text, **shapes), engine="onnx")
    names = GradientNames.of(first)
    second = gradient_graph(
        first, wrt=[], outputs=list(names.gradients.values()), inputs=list(names.gradients), engine="onnx"
    )
    twice = GradientNames.of(second)
    onnx.checker.check_model(second, full_check=True)
    run, run_first = evaluator(double(second)), evaluator(double(first))
    rng = np.random.default_rng(0)
    feeds = {n: rng.normal(size=s) * 0.7 for n, s in {"x": size, **shapes}.items()}
    outputs = [o.name for o in first.graph.output]
    shape = run_first_shape(first, feeds, names)
    feeds[names.seeds["y"]] = rng.normal(size=shape)
    vectors = {twice.seeds[g]: rng.normal(size=feeds[n].shape) for n, g in names.gradients.items()}
    product = dict(zip([o.name for o in second.graph.output], run({**feeds, **vectors}), strict=True))
    for source in names.gradients:
        direction, step, sides = rng.normal(size=feeds[source].shape), 1e-5, []
        for sign in (1, -1):
            moved = dict(
                zip(
                    outputs,
                    run_first({**feeds, source: feeds[source] + sign * step * direction}),
                    strict=True,
                )
            )
            sides.append(sum(np.sum(moved[g] * vectors[twice.seeds[g]]) for g in names.gradients.values()))
        expected = (sides[0] - sides[1]) / (2 * step)
        found = np.sum(product[twice.gradients[source]] * direction)
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6), source


def run_first_shape(first: onnx.ModelProto, feeds: dict, names: GradientNames) -> tuple[int, ...]:
    from whole_models import only

    return evaluator(double(only(first, names.outputs)))(feeds)[0].shape


def test_second_derivative_runs_on_onnxruntime() -> None:
    text, shapes, size = TWICE["mlp"]
    first = gradient_graph(weighted(text, **shapes), engine="onnx")
    names = GradientNames.of(first)
    second = gradient_graph(first, outputs=list(names.gradients.values()), engine="onnx")
    session = create_session(second)
    rng = np.random.default_rng(0)
    shapes_of = {"x": size, **shapes, "y_grad": (3, 2)}
    feeds = {
        i.name: rng.normal(size=shapes_of.get(i.name) or shapes_of[i.name.removesuffix("_grad_grad")]).astype(
            np.float32
        )
        for i in session.get_inputs()
    }
    assert all(np.isfinite(v).all() for v in session.run(None, feeds))


# -- training mode ---------------------------------------------------------------------------------

DROPOUT = """g (float[N, 50] x) => (float[N, 50] y) <float ratio = {0.4}, bool training = {1}> {
    p = Mul(x, w)  d = Dropout <seed = 7> (p, ratio, training)  y = Identity(d) }"""


def test_dropout_uses_one_mask() -> None:
    graph = gradient_graph(weighted(DROPOUT, w=(50,)), engine="onnx")
    session = create_session(graph)
    x, w, dy = (
        np.random.default_rng(k).normal(size=s).astype(np.float32)
        for k, s in enumerate([(4, 50), 50, (4, 50)])
    )
    for _ in range(3):
        dx, dw, y = session.run(["x_grad", "w_grad", "y"], {"x": x, "w": w, "y_grad": dy})
        mask = np.where(y == 0, 0, 1 / 0.6)
        assert 0.2 < (y == 0).mean() < 0.6
        np.testing.assert_allclose(dx, mask * dy * w, rtol=1e-5)
        np.testing.assert_allclose(dw, (mask * dy * x).sum(axis=0), rtol=1e-4, atol=1e-5)


def test_batch_normalization_in_training() -> None:
    text = """g (float[N, 3, 5] x) => (float[N, 3, 5] y, float[3] m2, float[3] v2)
        <float[3] m = {0, 1, 2}, float[3] v = {1, 2, 3}> {
        y, m2, v2 = BatchNormalization <training_mode = 1, momentum = 0.8> (x, s, b, m, v) }"""
    graph = gradient_graph(weighted(text, s=(3,), b=(3,)), outputs=["y"], engine="onnx")
    names = GradientNames.of(graph)
    rng = np.random.default_rng(0)
    x, s, b, dy = (rng.normal(size=z) for z in ((4, 3, 5), 3, 3, (4, 3, 5)))
    feeds = {"x": x, "s": s, "b": b, "y_grad": dy}
    single = {k: v.astype(np.float32) for k, v in feeds.items()}
    session = create_session(graph)
    found = dict(zip([o.name for o in session.get_outputs()], session.run(None, single), strict=True))
    mean = x.mean(axis=(0, 2))
    np.testing.assert_allclose(found["m2"], 0.8 * np.arange(3) + 0.2 * mean, rtol=1e-4, atol=1e-5)
    assert found["v2"].shape == (3,)

    def loss(values: dict[str, np.ndarray]) -> float:
        x = values["x"]
        mean, var = x.mean(axis=(0, 2), keepdims=True), x.var(axis=(0, 2), keepdims=True)
        y = (x - mean) / np.sqrt(var + 1e-5) * values["s"][:, None] + values["b"][:, None]
        return float(np.sum(y * dy))

    for name in ("x", "s", "b"):
        direction = rng.normal(size=feeds[name].shape)
        sides = [loss({**feeds, name: feeds[name] + h * direction}) for h in (1e-6, -1e-6)]
        along = np.sum(found[names.gradients[name]] * direction)
        assert along == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-3, abs=1e-3), name


# -- dtypes ----------------------------------------------------------------------------------------


def typed(model: onnx.ModelProto, dtype: int) -> onnx.ModelProto:
    """The model in another floating-point type."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for tensor in made.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(
                onnx.helper.make_tensor(tensor.name, dtype, values.shape, values.ravel().tolist())
            )
    for value in (*made.graph.input, *made.graph.output):
        value.type.tensor_type.elem_type = dtype
    return made


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, "FLOAT16") for name in TWICE), ("mlp", "BFLOAT16"), ("transformer block", "BFLOAT16")],
)
def test_half_precision(name: str, dtype: str) -> None:
    text, shapes, size = TWICE[name]
    text = text.replace("Softplus", "Sigmoid")  # the former takes no bfloat16
    number = onnx.TensorProto.DataType.Value(dtype)
    model = typed(weighted(text, **shapes), number)
    graph = gradient_graph(model, engine="onnx")
    onnx.checker.check_model(graph)
    inferred = onnx.shape_inference.infer_shapes(graph, check_type=True, strict_mode=True).graph
    kinds = {v.type.tensor_type.elem_type for v in (*inferred.input, *inferred.output)}
    assert kinds == {number}
    scales = {n.input[2] for n in graph.graph.node if n.op_type == "Resize"}  # float32 by definition
    constants = {t.data_type for t in graph.graph.initializer if t.name not in scales}
    assert constants <= {number, onnx.TensorProto.INT64, onnx.TensorProto.BOOL}
    if dtype == "FLOAT16":
        rng = np.random.default_rng(0)
        single = create_session(gradient_graph(weighted(text, **shapes), engine="onnx"))
        seed = (3, 2) if name == "mlp" else (2, 3) if name == "conv net" else size
        feeds = {n: rng.normal(size=s) * 0.5 for n, s in {"x": size, **shapes, "y_grad": seed}.items()}
        expected = single.run(None, {n: v.astype(np.float32) for n, v in feeds.items()})
        found = create_session(graph).run(None, {n: v.astype(np.float16) for n, v in feeds.items()})
        for a, b in zip(expected, found, strict=True):
            assert b.dtype == np.float16
            np.testing.assert_allclose(b, a, rtol=0.05, atol=0.05 * np.abs(a).max())


# -- gradients through integers and sequences -------------------------------------------------------------------------


def test_quantization_aware_training() -> None:
    """Straight through the integers, to the weight and to the input."""
    model = weighted(
        """g (float[N, 3] x) => (float[N, 3] y) <float s = {0.1}, int8 z = {0}> {
            a = QuantizeLinear(w, s, z)  b = DequantizeLinear(a, s, z)
            c = QuantizeLinear(x, s, z)  d = DequantizeLinear(c, s, z)  y = Mul(b, d) }""",
        '<ir_version: 8, opset_import: ["" : 18]>',
        w=(3,),
    )
    graph = gradient_graph(model, engine="onnx")
    names = GradientNames.of(graph)
    assert set(names.gradients) == {"x", "w"}
    x, w, dy = (np.array(v, np.float32) for v in ([[1, -20, 0.34]], [0.5, 1, -2], [[1, 2, 3]]))
    found = create_session(graph).run(list(names.gradients.values()), {"x": x, "w": w, "y_grad": dy})
    clipped = np.clip(np.round(x / np.float32(0.1)), -128, 127) * 0.1
    np.testing.assert_allclose(found[0], dy * w * (np.abs(x) < 12.8), rtol=1e-5)
    np.testing.assert_allclose(found[1], (dy * clipped)[0], rtol=1e-5)


def test_weights_through_a_sequence() -> None:
    text = """g (float[N, 3] x) => (float[N, 3] y) {
        i = Constant <value_int = 0> ()  t = Mul(x, w)  s = SequenceConstruct(t, x)  y = SequenceAt(s, i) }"""
    made = Differentiated(weighted(text, w=(3,)))
    gradients, _ = made.check({"x": np.ones((2, 3), np.float32)}, step=1e-6)
    assert set(gradients) == {"x", "w"}
