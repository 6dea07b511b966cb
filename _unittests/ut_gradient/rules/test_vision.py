"""Rules of Col2Im and RoiAlign."""

from __future__ import annotations

import numpy as np
import pytest
from rule_cases import Case, check_case

from onnxcustom.exceptions import GradientNotImplementedError

random = np.random.default_rng(0)


def r(*shape: int) -> np.ndarray:
    return random.normal(size=shape)


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
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case) -> None:
    check_case(case)


@pytest.mark.parametrize(
    ("attributes", "wrt", "reason"), [({"mode": "max"}, "x0", "mode"), ({}, "x1", "regions")], ids=str
)
def test_what_has_no_gradient_is_refused(attributes: dict, wrt: str, reason: str) -> None:
    case = Case("RoiAlign", [r(2, 2, 5, 6), ROIS, np.array([0, 1, 0])], attributes)
    with pytest.raises(GradientNotImplementedError, match=reason):
        case.gradient("static", [wrt])
