"""DeformConv: its expansion against onnx's reference and a transcription of its definition, and its gradient."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from bare_gradient import differentiate
from onnx.reference import ReferenceEvaluator
from rule_cases import Case
from second_order import check_second_order

from onnxcustom import gradient_graph
from onnxcustom.exceptions import GradientNotImplementedError
from onnxcustom.gradient.expand import expand
from onnxcustom.runtime import create_session

random = np.random.default_rng(0)

EXPANSIONS = ["DeformConv"]


def r(*shape: int) -> np.ndarray:
    return random.normal(size=shape)


def by_definition(
    x: np.ndarray, w: np.ndarray, offset: np.ndarray, b: Any = None, mask: Any = None, **given: Any
) -> np.ndarray:
    """Every output on its own, for any number of spatial axes."""
    n = x.ndim - 2
    kernel, output = w.shape[2:], offset.shape[2:]
    strides, dilations = given.get("strides", [1] * n), given.get("dilations", [1] * n)
    pads, group, parts = given.get("pads", [0] * 2 * n), given.get("group", 1), given.get("offset_group", 1)
    offset = offset.reshape(len(x), parts, *kernel, n, *output)
    mask = np.ones((len(x), parts, *kernel, *output)) if mask is None else mask
    mask = mask.reshape(len(x), parts, *kernel, *output)
    y = np.zeros((len(x), len(w), *output), dtype=x.dtype)
    for image, m, o in itertools.product(range(len(x)), range(len(w)), np.ndindex(*output)):
        for i, k in itertools.product(range(w.shape[1]), np.ndindex(*kernel)):
            c = m // (len(w) // group) * w.shape[1] + i
            part = c // (x.shape[1] // parts)
            at = [
                o[a] * strides[a] + k[a] * dilations[a] - pads[a] + offset[(image, part, *k, a, *o)]
                for a in range(n)
            ]
            value = linear(x[image, c], at) * mask[(image, part, *k, *o)]
            y[(image, m, *o)] += w[(m, i, *k)] * value
    return y if b is None else y + b.reshape(-1, *[1] * n)


def linear(x: np.ndarray, at: list[float]) -> float:
    """Linear interpolation between the elements of x, 0 outside."""
    total = 0.0
    for corner in itertools.product(*((int(np.floor(p)), int(np.floor(p)) + 1) for p in at)):
        if all(0 <= i < size for i, size in zip(corner, x.shape, strict=True)):
            share = np.prod([1 - abs(p - i) for p, i in zip(at, corner, strict=True)])
            total += share * x[corner]
    return total


CASES = [
    Case("DeformConv", [r(2, 2, 4, 5), r(3, 2, 2, 3), r(2, 12, 3, 3)], {}, "plain", opset=19),
    Case("DeformConv", [r(1, 2, 4, 4), r(2, 2, 2, 2), r(1, 8, 3, 3), r(2), r(1, 4, 3, 3)],
         {"kernel_shape": [2, 2]}, "bias and mask", opset=19),
    Case("DeformConv", [r(1, 2, 4, 4), r(2, 2, 2, 2), r(1, 8, 3, 3), None, r(1, 4, 3, 3)], {}, "mask", opset=22),
    Case("DeformConv", [r(2, 4, 4, 4), r(4, 2, 2, 2), r(2, 8, 3, 3), r(4)], {"group": 2}, "groups", opset=19),
    Case("DeformConv", [r(1, 4, 4, 4), r(2, 4, 2, 2), r(1, 16, 3, 3), None, r(1, 8, 3, 3)],
         {"offset_group": 2}, "groups of offsets", opset=19),
    Case("DeformConv", [r(1, 6, 4, 4), r(4, 3, 2, 1), r(1, 12, 3, 4), r(4), r(1, 6, 3, 4)],
         {"offset_group": 3, "group": 2}, "both groups", opset=22),
    Case("DeformConv", [r(1, 1, 6, 5), r(2, 1, 3, 2), r(1, 12, 3, 4), r(2), r(1, 6, 3, 4)],
         {"strides": [2, 1], "pads": [1, 0, 1, 0], "dilations": [1, 1]}, "strides and pads", opset=19),
    Case("DeformConv", [r(1, 2, 5, 5), r(2, 2, 2, 2), r(1, 8, 4, 3)],
         {"dilations": [2, 3], "pads": [0, 1, 1, 0]}, "dilations", opset=19),
    Case("DeformConv", [r(1, 1, 3, 3), r(1, 1, 2, 2), 3 * r(1, 8, 2, 2)], {}, "far outside", opset=19),
]  # fmt: skip
# onnx's reference evaluator does images only, of more than one row and column.
OTHERS = [
    Case("DeformConv", [r(2, 2, 5), r(2, 2, 3), r(2, 3, 3), r(2)], {"kernel_shape": [3]}, "1-D", opset=19),
    Case("DeformConv", [r(1, 1, 3, 3, 2), r(2, 1, 2, 2, 1), r(1, 12, 2, 2, 2), None, r(1, 4, 2, 2, 2)],
         {"strides": [1, 1, 1]}, "3-D", opset=22),
    Case("DeformConv", [r(1, 2, 1, 4), r(2, 2, 1, 2), r(1, 4, 1, 3)], {}, "one row", opset=19),
]  # fmt: skip


def forward(case: Case, *inputs: Any) -> np.ndarray:
    geometry = {k: v for k, v in case.attributes.items() if k != "kernel_shape"}
    return by_definition(*(inputs or case.inputs), **geometry)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_definition(case: Case) -> None:
    """The transcription above agrees with onnx's own."""
    found = ReferenceEvaluator(case.model()).run(None, case.feeds())[0]
    np.testing.assert_allclose(forward(case), found, atol=1e-5)  # it interpolates in float32


@pytest.mark.parametrize("shapes", ["static", "dynamic", "unranked"])
@pytest.mark.parametrize("case", CASES + OTHERS, ids=str)
def test_gradient(case: Case, shapes: str) -> None:
    model = case.model(shapes)
    made = ir.from_proto(model)
    if shapes == "unranked" and not {"kernel_shape", "strides", "dilations", "pads"} & set(case.attributes):
        with pytest.raises(GradientNotImplementedError, match="kernel_shape"):
            expand(made)
        return
    assert expand(made) == {("", "DeformConv")}
    names = case.differentiable()
    proto = ir.to_proto(differentiate(made, names, ["y0"]))
    if shapes != "unranked":
        onnx.checker.check_model(proto, full_check=True)
    run = case.evaluator(proto)
    feeds = case.feeds()
    y = forward(case)
    dy = np.random.default_rng(1).normal(size=y.shape)
    needed = {i.name for i in proto.graph.input}
    *gradients, again = run({k: v for k, v in {**feeds, "y0_grad": dy}.items() if k in needed})
    np.testing.assert_allclose(again, y, rtol=1e-9, atol=1e-9)
    generator = np.random.default_rng(2)
    for name, gradient in zip(names, gradients, strict=True):
        assert gradient.shape == feeds[name].shape
        direction = generator.normal(size=gradient.shape)
        i = int(name[1:])
        sides = []
        for step in (1e-6, -1e-6):
            inputs = list(case.inputs)
            inputs[i] = inputs[i] + step * direction
            sides.append(np.sum(dy * forward(case, *inputs)))
        expected = (sides[0] - sides[1]) / 2e-6
        assert abs(np.sum(direction * gradient) - expected) <= 1e-6 * max(1, np.linalg.norm(gradient)), name


def test_second_order() -> None:
    check_second_order(CASES[1])


MODEL = """<ir_version: 9, opset_import: ["" : 19]>
g (float[N, 2, H, W] x) => (float[N, A, B, C] y)
    <float[8, 2, 2, 2] v, float[8] u, float[3, 2, 2, 2] w, float[3] b> {
  o = Conv(x, v, u)
  y = DeformConv(x, w, o, b)
}"""


def test_trains_offsets_from_zero() -> None:
    """All weights, those behind the offsets among them, as deformable networks start: with offsets of 0."""
    model = onnx.parser.parse_model(MODEL)
    weights = {"v": np.zeros((8, 2, 2, 2)), "u": np.zeros(8), "w": r(3, 2, 2, 2), "b": r(3)}
    del model.graph.initializer[:]
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()
    )
    graph = gradient_graph(model, inputs=[], engine="onnx")
    assert [o.name for o in graph.graph.output] == ["v_grad", "u_grad", "w_grad", "b_grad", "y"]
    feeds = {"x": r(2, 2, 4, 5), **weights, "y_grad": r(2, 3, 3, 4)}
    session = create_session(graph)
    found = dict(
        zip(
            [o.name for o in graph.graph.output],
            session.run(None, {k: v.astype(np.float32) for k, v in feeds.items()}),
            strict=True,
        )
    )

    def loss(u: np.ndarray) -> float:
        offset = np.broadcast_to(u.reshape(1, 8, 1, 1), (2, 8, 3, 4))
        return float(np.sum(feeds["y_grad"] * by_definition(feeds["x"], weights["w"], offset, weights["b"])))

    for i in range(8):  # to the right of the kink, as torchvision does
        step = 1e-6 * np.eye(8)[i]
        np.testing.assert_allclose(
            found["u_grad"][i], (loss(step) - loss(0 * step)) / 1e-6, rtol=1e-3, atol=1e-4
        )
