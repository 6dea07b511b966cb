"""If, Loop and Scan against finite differences, and second derivatives through them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest
from bare_gradient import differentiate

from onnxcustom.exceptions import GradientNotImplementedError
from onnxcustom.gradient import gradient_graph
from onnxcustom.testing import check_gradient
from onnxcustom.training.ortgradient import OrtGradientForwardBackward

HEADER = '<ir_version: 8, opset_import: ["": 18]>'

IF = """
g (double[N, 3] x, double[3] w, bool c) => (double[N, 3] y) {
  y = If (c) <
    then_branch = a () => (double[N, 3] t) { u = Mul(x, w)  t = Tanh(u) },
    else_branch = b () => (double[N, 3] e) { v = Mul(x, x)  e = Add(v, w) }
  >
}"""

IF_CONSTANT_BRANCH = """
g (double[N, 3] x, double[3] w, bool c) => (double[N, 3] y) {
  z = If (c) <
    then_branch = a () => (double[N, 3] t) { t = Identity(x) },
    else_branch = b () => (double[N, 3] e) { e = Mul(x, w) }
  >
  y = Mul(z, z)
}"""

NESTED_IF = """
g (double[N, 3] x, double[3] w, bool c) => (double[N, 3] y) {
  y = If (c) <
    then_branch = a () => (double[N, 3] t) {
      q = Mul(x, w)
      t = If (c) <
        then_branch = aa () => (double[N, 3] tt) { tt = Mul(q, x) },
        else_branch = bb () => (double[N, 3] ee) { ee = Identity(q) }
      >
    },
    else_branch = b () => (double[N, 3] e) { e = Mul(x, w) }
  >
}"""

SCAN = """
g (double[3] h0, double[T, 3] x, double[3, 3] w) => (double[3] h, double[T, 3] hs) {
  h, hs = Scan <num_scan_inputs = 1, body = step (double[3] s, double[3] e) => (double[3] s2, double[3] o) {
      p = MatMul(s, w)  q = Add(p, e)  s2 = Tanh(q)  o = Mul(s2, e)
  }> (h0, x)
}"""

SCAN_AXES = """
g (double[3] h0, double[3, T] x, double[T, 3] z, double[3] w) => (double[3] h, double[3, T] hs) {
  h, hs = Scan <num_scan_inputs = 2, scan_input_axes = [1, 0], scan_input_directions = [1, 0],
                scan_output_axes = [1], scan_output_directions = [1],
                body = step (double[3] s, double[3] e, double[3] f) => (double[3] s2, double[3] o) {
      q = Mul(s, w)  r = Add(q, e)  s2 = Tanh(r)  o = Mul(r, f)
  }> (h0, x, z)
}"""

LOOP = """
g (double[3] h0, int64 n, double[3] w) => (double[3] h, double[T, 3] hs) {
  yes = Constant <value = bool {1}> ()
  h, hs = Loop (n, yes, h0) <body = step (int64 i, bool c, double[3] s) => (bool c2, double[3] s2, double[3] o) {
      c2 = Identity(c)  q = Mul(s, w)  s2 = Tanh(q)  o = Mul(s2, w)
  }>
}"""

LOOP_CONDITION = """
g (double[3] h0, double[3] w) => (double[3] h) {
  yes = Constant <value = bool {1}> ()
  limit = Constant <value = double {20.0}> ()
  h = Loop ("", yes, h0) <body = step (int64 i, bool c, double[3] s) => (bool c2, double[3] s2) {
      d = CastLike(i, s)  q = Mul(s, w)  r = Add(q, d)  s2 = Add(r, s)
      total = ReduceSum <keepdims = 0> (s2)  c2 = Less(total, limit)
  }>
}"""

LOOP_PASSING = """
g (double[3] h0, int64 n, double[3] w) => (double[3] h, double[3] k) {
  yes = Constant <value = bool {1}> ()
  h, k = Loop (n, yes, h0, w) <body = step (int64 i, bool c, double[3] s, double[3] r) => (bool c, double[3] s2, double[3] r) {
      s2 = Mul(s, r)
  }>
}"""

LOOP_GROWING = """
g (double[N] h0, double[3] w) => (double[M] h) {
  yes = Constant <value = bool {1}> ()
  limit = Constant <value = double {20.0}> ()
  h = Loop ("", yes, h0) <body = step (int64 i, bool c, double[P] s) => (bool c2, double[R] s2) {
      t = Tanh(s)  u = Concat <axis = 0> (t, w)  s2 = Add(u, u)
      q = Mul(s2, s2)  total = ReduceSum <keepdims = 0> (q)  c2 = Less(total, limit)
  }>
}"""

# The body declares the shape of the first iteration, as exporters do.
LOOP_GROWING_DECLARED = (
    """
g (double[2, 3] h0, int64[1, 3] ids, int64 n, double[7, 3] w) => (double[M, 3] h, double[T] sums, double[2, 3] k) {
  yes = Constant <value = bool {1}> ()
  h, last, k, sums = Loop (n, yes, h0, ids, h0) <body = step
      (int64 i, bool c, double[2, 3] s, int64[1, 3] d, double[2, 3] r) =>
      (bool c2, double[2, 3] s2, int64[1, 3] d2, double[2, 3] r2, double o) {
      c2 = Identity(c)  row = Gather(w, d)  one = ReduceSum <keepdims = 0> (row, zero)  t = Mul(s, row_sum)
      s2 = Concat <axis = 0> (t, one)  d2 = Concat <axis = 0> (d, d)
      p = Mul(r, r)  r2 = Tanh(p)  o = ReduceSum <keepdims = 0> (t)
  }>
}""".replace("row_sum", "scale")
    .replace("t = Mul", "scale = ReduceMax <keepdims = 0> (row)  t = Mul")
    .replace("yes = Constant", "zero = Constant <value = int64[1] {0}> ()  yes = Constant")
)

# From one row to as many as w has, by broadcasting in the first iteration.
LOOP_BROADCASTING = """
g (double[1, 3] h0, int64 n, double[4, 3] w) => (double[K, 3] h) {
  yes = Constant <value = bool {1}> ()
  h = Loop (n, yes, h0) <body = step (int64 i, bool c, double[1, 3] s) => (bool c2, double[1, 3] s2) {
      c2 = Identity(c)  q = Mul(s, w)  s2 = Tanh(q)
  }>
}"""

LOOP_GROWING_NESTED = """
g (double[N] h0, int64 n, double[2] w) => (double[M] h) {
  yes = Constant <value = bool {1}> ()
  h = Loop (n, yes, h0) <body = outer (int64 i, bool c, double[P] s) => (bool c2, double[R] s2) {
      c2 = Identity(c)
      s2 = Loop (n, c, s) <body = inner (int64 j, bool e, double[P2] a) => (bool e2, double[R2] b) {
          e2 = Identity(e)  f = Tanh(a)  m = Mul(w, w)  b = Concat <axis = 0> (f, m)
      }>
  }>
}"""

LOOP_NESTED = """
g (double[3] h0, int64 n, double[3] w) => (double[3] h) {
  yes = Constant <value = bool {1}> ()
  h = Loop (n, yes, h0) <body = outer (int64 i, bool c, double[3] s) => (bool c2, double[3] s2) {
      c2 = Identity(c)
      s2 = Loop (n, c, s) <body = inner (int64 j, bool e, double[3] a) => (bool e2, double[3] b) {
          e2 = Identity(e)  f = Tanh(a)  b = Mul(f, w)
      }>
  }>
}"""

IF_IN_SCAN = """
g (double[3] h0, double[T, 3] x, double[3] w) => (double[3] h, double[T] o) {
  zero = Constant <value = double {0.0}> ()
  h, o = Scan <num_scan_inputs = 1, body = step (double[3] s, double[3] e) => (double[3] s2, double p) {
      p = ReduceSum <keepdims = 0> (e)  up = Greater(p, zero)
      s2 = If (up) <
        then_branch = a () => (double[3] t) { q = Mul(s, w)  t = Tanh(q) },
        else_branch = b () => (double[3] u) { u = Mul(s, e) }
      >
  }> (h0, x)
}"""

SCAN_IN_LOOP = """
g (double[3] h0, double[4, 3] x, int64 n, double[3] w) => (double[3] h) {
  yes = Constant <value = bool {1}> ()
  h = Loop (n, yes, h0) <body = outer (int64 i, bool c, double[3] s) => (bool c2, double[3] s2) {
      c2 = Identity(c)
      s2 = Scan <num_scan_inputs = 1, body = step (double[3] a, double[3] e) => (double[3] a2) {
          m = Mul(a, w)  k = Mul(m, e)  a2 = Tanh(k)
      }> (s, x)
  }>
}"""

IF_SEQUENCE = """
g (double[N, 3] x, double[3] w, bool c) => (double[N, 3] y) {
  first = Constant <value = int64 {0}> ()  last = Constant <value = int64 {1}> ()
  p = Mul(x, x)  s = SequenceConstruct(p, w)
  y = If (c) <
    then_branch = a () => (double[N, 3] t) { q = SequenceAt(s, first)  t = Mul(q, x) },
    else_branch = b () => (double[N, 3] e) { k = SequenceAt(s, last)  e = Mul(x, k) }
  >
}"""

rng = np.random.default_rng(0)
x23, w3 = rng.normal(size=(2, 3)), rng.normal(size=3)
CASES = {
    "if-then": (IF, {"x": x23, "w": w3, "c": np.array(True)}, ["x", "w"]),
    "if-else": (IF, {"x": x23, "w": w3, "c": np.array(False)}, ["x", "w"]),
    "if-identity": (IF_CONSTANT_BRANCH, {"x": x23, "w": w3, "c": np.array(True)}, ["x", "w"]),
    "if-identity-else": (IF_CONSTANT_BRANCH, {"x": x23, "w": w3, "c": np.array(False)}, ["x", "w"]),
    "nested-if": (NESTED_IF, {"x": x23, "w": w3, "c": np.array(True)}, ["x", "w"]),
    "if-sequence-then": (IF_SEQUENCE, {"x": x23, "w": w3, "c": np.array(True)}, ["x", "w"]),
    "if-sequence-else": (IF_SEQUENCE, {"x": x23, "w": w3, "c": np.array(False)}, ["x", "w"]),
    "if-in-scan": (
        IF_IN_SCAN,
        {"h0": w3, "x": rng.normal(size=(4, 3)), "w": rng.normal(size=3)},
        ["h0", "x", "w"],
    ),
    "scan-in-loop": (
        SCAN_IN_LOOP,
        {"h0": w3, "x": rng.normal(size=(4, 3)), "n": np.array(2), "w": rng.normal(size=3)},
        ["h0", "x", "w"],
    ),
    # The size of the inner result is not certain.
    "loop-nested-changing": (LOOP_NESTED, {"h0": w3, "n": np.array(3), "w": rng.normal(size=3)}, ["h0", "w"]),
    "scan": (SCAN, {"h0": w3, "x": rng.normal(size=(4, 3)), "w": rng.normal(size=(3, 3))}, ["h0", "x", "w"]),
    "scan-axes": (
        SCAN_AXES,
        {"h0": w3, "x": rng.normal(size=(3, 4)), "z": rng.normal(size=(4, 3)), "w": rng.normal(size=3)},
        ["h0", "x", "z", "w"],
    ),
    "loop": (LOOP, {"h0": w3, "n": np.array(4), "w": rng.normal(size=3)}, ["h0", "w"]),
    "loop-once": (LOOP, {"h0": w3, "n": np.array(1), "w": rng.normal(size=3)}, ["h0", "w"]),
    "loop-condition": (LOOP_CONDITION, {"h0": abs(w3), "w": abs(rng.normal(size=3))}, ["h0", "w"]),
    "loop-none": (LOOP, {"h0": w3, "n": np.array(0), "w": rng.normal(size=3)}, ["h0", "w"]),
    "loop-growing": (LOOP_GROWING, {"h0": rng.normal(size=2), "w": rng.normal(size=3)}, ["h0", "w"]),
    "loop-growing-from-nothing": (LOOP_GROWING, {"h0": np.zeros(0), "w": rng.normal(size=3)}, ["w"]),
    "loop-growing-declared": (
        LOOP_GROWING_DECLARED,
        {"h0": x23, "ids": np.array([[4, 0, 4]]), "n": np.array(3), "w": rng.normal(size=(7, 3))},
        ["h0", "w"],
    ),
    "loop-growing-none": (
        LOOP_GROWING_DECLARED,
        {"h0": x23, "ids": np.array([[4, 0, 4]]), "n": np.array(0), "w": rng.normal(size=(7, 3))},
        ["h0", "w"],
    ),
    "loop-broadcasting": (
        LOOP_BROADCASTING,
        {"h0": rng.normal(size=(1, 3)), "n": np.array(3), "w": rng.normal(size=(4, 3))},
        ["h0", "w"],
    ),
    "loop-growing-nested": (
        LOOP_GROWING_NESTED,
        {"h0": rng.normal(size=1), "n": np.array(2), "w": rng.normal(size=2)},
        ["h0", "w"],
    ),
    "loop-passing": (LOOP_PASSING, {"h0": w3, "n": np.array(3), "w": rng.normal(size=3)}, ["h0", "w"]),
}


def run(model: onnx.ModelProto, feeds: dict) -> list:
    # This optimization puts a kernel in place of float64 products that exists for float32 only.
    session = onnxruntime.InferenceSession(
        model.SerializeToString(),
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["MatmulTransposeFusion"],
    )
    names = {i.name for i in session.get_inputs()}
    return session.run(None, {k: v for k, v in feeds.items() if k in names})


def check(model: onnx.ModelProto, feeds: dict, wrt: list[str], name: str = "{}_grad") -> onnx.ModelProto:
    """The gradient graph of all outputs, compared with directional finite differences."""
    outputs = [o.name for o in model.graph.output]
    gradient = ir.to_proto(differentiate(ir.from_proto(model), wrt, outputs, name.format))
    onnx.checker.check_model(gradient)
    generator = np.random.default_rng(1)
    seeds = {
        name.format(o): generator.normal(size=v.shape)
        for o, v in zip(outputs, run(model, feeds), strict=True)
    }
    found = dict(zip(wrt, run(gradient, {**feeds, **seeds}), strict=False))
    for name in wrt:
        direction, step = generator.normal(size=feeds[name].shape), 1e-6
        sides = [
            sum(
                np.sum(s * y)
                for s, y in zip(
                    seeds.values(), run(model, {**feeds, name: feeds[name] + h * direction}), strict=True
                )
            )
            for h in (step, -step)
        ]
        assert np.sum(found[name] * direction) == pytest.approx(
            (sides[0] - sides[1]) / (2 * step), rel=1e-6, abs=1e-8
        )
    return gradient


@pytest.mark.parametrize("case", CASES)
def test_control_flow(case: str) -> None:
    text, feeds, wrt = CASES[case]
    check(onnx.parser.parse_model(HEADER + text), feeds, wrt)


CHANGING = [case for case in CASES if any(word in case for word in ("growing", "broadcasting", "changing"))]


@pytest.mark.parametrize("case", [case for case in CASES if case not in CHANGING])
def test_second_derivative(case: str) -> None:
    text, feeds, wrt = CASES[case]
    model = onnx.parser.parse_model(HEADER + text)
    gradient = check(model, feeds, wrt)
    generator = np.random.default_rng(2)
    values = zip(model.graph.output, run(model, feeds), strict=True)
    seeds = {f"{o.name}_grad": generator.normal(size=v.shape) for o, v in values}
    check(gradient, {**feeds, **seeds}, [*wrt, *seeds], "{}_second")


@pytest.mark.parametrize("case", CHANGING)
def test_second_derivative_of_a_changing_shape_is_refused(case: str) -> None:
    text, _, wrt = CASES[case]
    outputs = [o.name for o in onnx.parser.parse_model(HEADER + text).graph.output]
    model = differentiate(ir.from_proto(onnx.parser.parse_model(HEADER + text)), wrt, outputs)
    with pytest.raises(GradientNotImplementedError, match="ConcatFromSequence"):
        differentiate(model, wrt, [f"{name}_grad" for name in wrt], "{}_second".format)


@pytest.mark.parametrize("case", CASES)
def test_only_changing_shapes_take_sequences(case: str) -> None:
    text, feeds, wrt = CASES[case]
    model = check(onnx.parser.parse_model(HEADER + text), feeds, wrt)
    packs = any(node.op_type == "SequenceInsert" for node in ir.from_proto(model).graph.all_nodes())
    assert packs == (case in CHANGING)


RANK = """
g (double[3] x, double[3] w, int64 n) => (double[M] y) {
  yes = Constant <value = bool {1}> ()  first = Constant <value = int64[1] {0}> ()
  flat = Constant <value = int64[1] {-1}> ()
  s = Loop (n, yes, x) <body = b (int64 i, bool c, double[3] a) => (bool c2, double[3] a2) {
      c2 = Identity(c)  k = Mul(a, w)  a2 = Unsqueeze(k, first)
  }>
  y = Reshape(s, flat)
}"""

SEQUENCE_STATE = """
g (double[3] x, double[3] w, int64 n) => (double[3] z) {
  yes = Constant <value = bool {1}> ()  s0 = SequenceConstruct(x)
  z, s = Loop (n, yes, x, s0) <body = b (int64 i, bool c, double[3] a, seq(double[3]) q) => (bool c2, double[3] a2, seq(double[3]) q2) {
      c2 = Identity(c)  a2 = Mul(a, w)  q2 = SequenceInsert(q, a2)
  }>
}"""

RANDOM = """
g (double[3] x, double[3] w, int64 n) => (double[3] y) {
  yes = Constant <value = bool {1}> ()
  y = Loop (n, yes, x) <body = b (int64 i, bool c, double[3] a) => (bool c2, double[3] a2) {
      c2 = Identity(c)  k = RandomNormalLike(a)  j = Mul(k, w)  a2 = Mul(a, j)
  }>
}"""

DROPOUT = """
g (double[3] x, double[3] w, bool c) => (double[3] y) {
  ratio = Constant <value = double {0.5}> ()
  y = If (c) <
    then_branch = a () => (double[3] t) { m = Mul(x, w)  t = Dropout(m, ratio, c) },
    else_branch = b () => (double[3] e) { e = Mul(x, w) }
  >
}"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RANK, "number of dimensions of its state 'a' changes"),
        (SEQUENCE_STATE, "its state 'q' is"),
        (RANDOM, "draws random numbers .RandomNormalLike"),
        (DROPOUT, "draws random numbers .Dropout"),
    ],
    ids=["rank", "sequence", "random", "dropout"],
)
def test_refused_before_anything_runs(text: str, message: str) -> None:
    model = onnx.parser.parse_model(HEADER + text)
    with pytest.raises(GradientNotImplementedError, match=message):
        gradient_graph(model, engine="onnx")


def test_random_numbers_that_the_gradient_does_not_read() -> None:
    text = RANDOM.replace("j = Mul(k, w)", "j = Add(k, w)").replace("a2 = Mul(a, j)", "a2 = Add(a, j)")
    graph = ir.from_proto(gradient_graph(onnx.parser.parse_model(HEADER + text), engine="onnx")).graph
    assert sum(node.op_type == "RandomNormalLike" for node in graph.all_nodes()) == 1


def test_forward_and_backward_with_a_growing_state() -> None:
    """The states cross from one graph to the other as tensors."""
    model = onnx.parser.parse_model(
        HEADER
        + LOOP_GROWING.replace(", double[3] w)", ")").replace(
            "{\n  yes", "<double[3] w = {1, 1, 1}> {\n  yes", 1
        )
    )
    feeds, (h0, w) = CASES["loop-growing"][1], (CASES["loop-growing"][1][k] for k in ("h0", "w"))
    whole = gradient_graph(model, engine="onnx")
    function = OrtGradientForwardBackward(model, engine="onnx").new_instance()
    y = function.forward([h0, w], training=True)[0].numpy()
    seed = np.random.default_rng(3).normal(size=y.shape)
    found = [v.numpy() for v in function.backward([seed])]
    for one, other in zip(found, run(whole, {**feeds, "h_grad": seed}), strict=False):
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_second_derivative_of_a_loop_without_inferred_shapes() -> None:
    """The condition of a Loop stays a scalar, which onnxruntime insists on."""
    model = onnx.parser.parse_model(
        HEADER
        + """
    g (double[N, 3] h0, int64 n) => (double[N, 3] y) <double[3, 3] w = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9}> {
      y = Loop (n, , h0) <body = b (int64 i, bool c, double[N, 3] h) => (bool d, double[N, 3] k) {
        d = Identity(c)  m = MatMul(h, w)  k = Tanh(m) }>
    }"""
    )
    gradient = gradient_graph(model)
    graphs = [gradient.graph]
    for graph in graphs:
        del graph.value_info[:]
        graphs += [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    check_gradient(gradient, {"n": np.array(2), "h0": np.full((2, 3), 0.3), "y_grad": np.ones((2, 3))})
