"""If, Loop and Scan against finite differences, and second derivatives through them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest
from bare_gradient import differentiate

from onnxcustom.gradient.rules import activation, arithmetic, control_flow, linear, reduction  # noqa: F401

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

rng = np.random.default_rng(0)
x23, w3 = rng.normal(size=(2, 3)), rng.normal(size=3)
CASES = {
    "if-then": (IF, {"x": x23, "w": w3, "c": np.array(True)}, ["x", "w"]),
    "if-else": (IF, {"x": x23, "w": w3, "c": np.array(False)}, ["x", "w"]),
    "if-identity": (IF_CONSTANT_BRANCH, {"x": x23, "w": w3, "c": np.array(True)}, ["x", "w"]),
    "if-identity-else": (IF_CONSTANT_BRANCH, {"x": x23, "w": w3, "c": np.array(False)}, ["x", "w"]),
    "nested-if": (NESTED_IF, {"x": x23, "w": w3, "c": np.array(True)}, ["x", "w"]),
    "scan": (SCAN, {"h0": w3, "x": rng.normal(size=(4, 3)), "w": rng.normal(size=(3, 3))}, ["h0", "x", "w"]),
    "scan-axes": (
        SCAN_AXES,
        {"h0": w3, "x": rng.normal(size=(3, 4)), "z": rng.normal(size=(4, 3)), "w": rng.normal(size=3)},
        ["h0", "x", "z", "w"],
    ),
    "loop": (LOOP, {"h0": w3, "n": np.array(4), "w": rng.normal(size=3)}, ["h0", "w"]),
    "loop-once": (LOOP, {"h0": w3, "n": np.array(1), "w": rng.normal(size=3)}, ["h0", "w"]),
    "loop-condition": (LOOP_CONDITION, {"h0": abs(w3), "w": abs(rng.normal(size=3))}, ["h0", "w"]),
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


@pytest.mark.parametrize("case", ["if-then", "if-else", "nested-if"])
def test_second_derivative_of_if(case: str) -> None:
    text, feeds, wrt = CASES[case]
    model = onnx.parser.parse_model(HEADER + text)
    gradient = check(model, feeds, wrt)
    seeds = {"y_grad": np.random.default_rng(2).normal(size=(2, 3))}
    check(gradient, {**feeds, **seeds}, [*wrt, "y_grad"], "{}_second")
