"""Rules of Col2Im, RoiAlign and MaxRoiPool."""

from __future__ import annotations

import numpy as np
import pytest
from rule_cases import Case, check_case

from onnxcustom.exceptions import GradientNotImplementedError

random = np.random.default_rng(0)


def r(*shape: int) -> np.ndarray:
    return random.normal(size=shape)


# No two elements closer than a step of finite differences, so that none overtakes the largest.
SPREAD = random.permutation(2 * 2 * 5 * 6).reshape(2, 2, 5, 6) / 30.0 - 2.0
ROIS = np.array([[0.3, 0.4, 4.1, 3.2], [1.1, 0.2, 2.6, 4.9], [-2.3, 1.1, 9.2, 2.4]])
COL2IM = [
    ("plain", (2, 4, 12), [4, 5], [2, 2], {}),
    ("strides", (1, 8, 4), [4, 4], [2, 2], {"strides": [2, 2]}),
    ("strides rest", (1, 4, 4), [5, 5], [2, 2], {"strides": [2, 2]}),
    ("dilations", (1, 4, 6), [4, 5], [2, 2], {"dilations": [2, 2]}),
    ("pads", (1, 6, 16), [4, 4], [2, 3], {"pads": [1, 0, 0, 2]}),
    ("1-D", (1, 6, 4), [6], [3], {}),
    ("3-D", (1, 8, 12), [2, 3, 4], [1, 2, 2], {}),
]
CASES = [
    *[
        Case(
            "Col2Im",
            [r(*x), np.array(image), np.array(block)],
            attributes,
            label,
            dtype=np.float32,
            runtime="ort",
            constant=[1, 2],
        )
        for label, x, image, block, attributes in COL2IM
    ],
    *[
        Case(
            "RoiAlign",
            [r(2, 2, 5, 6), ROIS, np.array([0, 1, 0])],
            {
                "output_height": 2,
                "output_width": 3,
                "sampling_ratio": ratio,
                "coordinate_transformation_mode": mode,
                "spatial_scale": scale,
            },
            f"{mode} ratio={ratio} scale={scale}",
            opset=opset,
            wrt=[0],
            runtime="ort",
        )
        for mode in ("half_pixel", "output_half_pixel")
        for ratio in (0, 1, 2)
        for scale, opset in ((1.0, 18), (0.7, 21))
    ],
    *[
        Case(
            "RoiAlign",
            [SPREAD, ROIS, np.array([0, 1, 0])],
            {
                "mode": "max",
                "output_height": 2,
                "output_width": 3,
                "sampling_ratio": ratio,
                "coordinate_transformation_mode": mode,
            },
            f"max {mode} ratio={ratio}",
            opset=opset,
            wrt=[0],
            runtime="ort",
        )
        for mode, opset in (("half_pixel", 18), ("output_half_pixel", 21))
        for ratio in (0, 1, 3)
    ],
    *[
        Case(
            "MaxRoiPool",
            [100 * SPREAD, np.concatenate([np.array([[0.0], [1], [0], [1]]), rois], axis=1)],
            {"pooled_shape": pooled, "spatial_scale": scale},
            f"{label} {pooled} scale={scale}",
            wrt=[0],
            dtype=np.float32,
            runtime="ort",
        )
        for label, rois in {
            "inside": np.array([[0.0, 0, 3, 3], [1, 2, 4, 4], [2, 1, 5, 2], [0, 0, 5, 4]]),
            "halves": np.array([[0.5, 1.5, 3.5, 2.5], [1.5, 0.5, 4.5, 4], [3, 3, 3, 3], [4, 4, 1, 1]]),
            "outside": np.array([[-2.5, -1, 3, 3], [1, 2, 9, 7], [7, 8, 9, 9], [-4.5, -3.5, -1.5, -1]]),
        }.items()
        for pooled, scale in (([2, 3], 1.0), ([3, 2], 0.7), ([1, 1], 0.5))
    ],
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case) -> None:
    check_case(case)


@pytest.mark.parametrize(
    "case",
    [
        Case("RoiAlign", [SPREAD, ROIS, np.array([0, 1, 0])]),
        Case("MaxRoiPool", [SPREAD, np.ones((2, 5))], {"pooled_shape": [2, 2]}, dtype=np.float32),
    ],
    ids=str,
)
def test_regions_have_no_gradient(case: Case) -> None:
    with pytest.raises(GradientNotImplementedError, match="leave them out"):
        case.gradient("static", ["x1"])


@pytest.mark.parametrize("attributes", [{}, {"mode": "max"}, {"mode": "max", "sampling_ratio": 2}], ids=str)
def test_no_region(attributes: dict) -> None:
    """A detector that finds nothing: the gradient is 0."""
    case = Case(
        "RoiAlign", [SPREAD, np.zeros((0, 4)), np.zeros(0, dtype=np.int64)], attributes, runtime="ort"
    )
    for shapes in ("static", "dynamic"):
        proto = case.gradient(shapes, ["x0"])
        feeds = {**case.feeds(), "y0_grad": np.zeros((0, 2, 1, 1))}
        needed = {i.name for i in proto.graph.input}
        found = case.evaluate(proto, {k: v for k, v in feeds.items() if k in needed})[0]
        np.testing.assert_array_equal(found, np.zeros_like(SPREAD))


def test_largest_of_equal_elements() -> None:
    """All of dy goes to the first."""
    regions = np.array([[0.0, 0, 0, 2, 2]])
    case = Case("MaxRoiPool", [np.ones((1, 1, 3, 3)), regions], {"pooled_shape": [1, 1]}, dtype=np.float32)
    proto = case.gradient("static", ["x0"])
    feeds = {**case.feeds(), "y0_grad": np.full((1, 1, 1, 1), 5.0, dtype=np.float32)}
    needed = {i.name for i in proto.graph.input}
    found = case.evaluate(proto, {k: v for k, v in feeds.items() if k in needed})[0]
    expected = np.zeros((1, 1, 3, 3))
    expected[0, 0, 0, 0] = 5
    np.testing.assert_array_equal(found, expected)
