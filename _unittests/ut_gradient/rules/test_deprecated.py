"""Operators that newer opsets have dropped: models with them are converted on the way to their gradient."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxcustom import gradient_graph, gradient_report
from onnxcustom.runtime import create_session

rng = np.random.default_rng(0)

MODELS = {
    "Scatter 9": (9, """g (float[3, 4] x, float[2, 4] u) => (float[3, 4] y) <int64[2, 4] i = {0, 1, 2, 0, 2, 0, 1, 1}> {
        s = Scatter <axis = 0> (x, i, u) y = Mul(s, s) }"""),
    "Scatter 10": (10, """g (float[N, 4] x, float[N, 2] u) => (float[N, 4] y)
        <int64[3, 2] i = {0, 1, 2, 0, 3, 1}> { s = Scatter <axis = 1> (x, i, u) y = Mul(s, s) }"""),
    "Upsample 7": (7, """g (float[1, 2, 3, 4] x) => (float[1, 2, 6, 12] y) {
        t = Mul(x, x) y = Upsample <mode = "nearest", scales = [1.0, 1.0, 2.0, 3.0]> (t) }"""),
    "Upsample 8": (8, """g (float[N, 2, 3, 4] x) => (float[N, 2, A, B] y) {
        t = Mul(x, x) y = Upsample <mode = "nearest", scales = [1.0, 1.0, 2.0, 2.0]> (t) }"""),
    "Upsample 9": (9, """g (float[1, 2, 3, 4] x) => (float[1, 2, 6, 12] y) <float[4] s = {1, 1, 2, 3}> {
        t = Mul(x, x) y = Upsample <mode = "nearest"> (t, s) }"""),
    "Upsample 9 linear": (9, """g (float[1, 2, 3, 4] x) => (float[1, 2, 6, 8] y) <float[4] s = {1, 1, 2, 2}> {
        t = Mul(x, x) y = Upsample <mode = "linear"> (t, s) }"""),
}  # fmt: skip


@pytest.mark.parametrize("case", MODELS)
def test_gradient(case: str) -> None:
    opset, text = MODELS[case]
    model = onnx.parser.parse_model(f'<ir_version: 4, opset_import: ["": {opset}]> {text}')
    onnx.checker.check_model(model)
    graph = gradient_graph(model, wrt=[], engine="onnx")
    names = [i.name for i in model.graph.input]
    assert [o.name for o in graph.graph.output] == [*(f"{n}_grad" for n in names), "y"]
    assert not gradient_report(model, engine="onnx").refused
    sizes = {"Upsample": [(1, 2, 3, 4)], "Scatter 9": [(3, 4), (2, 4)], "Scatter 10": [(3, 4), (3, 2)]}
    shapes = next(s for start, s in sizes.items() if case.startswith(start))
    feeds = {n: rng.normal(size=s).astype(np.float32) for n, s in zip(names, shapes, strict=True)}
    forward = create_session(model)
    y = forward.run(None, feeds)[0]
    dy = rng.normal(size=y.shape).astype(np.float32)
    *found, again = create_session(graph).run(None, {**feeds, "y_grad": dy})
    np.testing.assert_allclose(again, y, rtol=1e-5)
    for name, gradient in zip(names, found, strict=True):
        direction = rng.normal(size=gradient.shape).astype(np.float32)
        sides = [
            np.sum(
                np.float64(dy)
                * forward.run(None, {**feeds, name: feeds[name] + np.float32(step) * direction})[0]
            )
            for step in (1e-2, -1e-2)
        ]  # of a quadratic function, so that a large step is exact
        along = np.sum(np.float64(direction) * gradient)
        assert abs(along - (sides[0] - sides[1]) / 2e-2) < 1e-3 * max(1, np.linalg.norm(gradient)), name
