"""Rules of images, normalizations and poolings are differentiated by rules again."""

from __future__ import annotations

import numpy as np
import pytest
from rule_cases import Case
from second_order import check_second_order


def r(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape)


def p(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).uniform(0.5, 2, size=shape)


# The reference evaluator knows no negative padding, which gradients of Pad and Slice have: no pads here.
CASES = [
    Case("Conv", [r(2, 2, 4, 4), r(3, 2, 2, 2), r(3)], {"kernel_shape": [2, 2]}, runtime="reference"),
    Case(
        "Conv",
        [r(1, 1, 6, 5), r(1, 1, 3, 2)],
        {"kernel_shape": [3, 2], "strides": [2, 2]},
        "sp",
        runtime="reference",
    ),
    Case(
        "Conv",
        [r(1, 1, 6, 6), r(1, 1, 2, 2)],
        {"kernel_shape": [2, 2], "dilations": [2, 1]},
        "d",
        runtime="reference",
    ),
    Case(
        "ConvTranspose",
        [r(1, 1, 3, 3), r(1, 1, 3, 2)],
        {"kernel_shape": [3, 2]},
        runtime="reference",
    ),
    Case("MaxPool", [r(1, 2, 4, 4)], {"kernel_shape": [2, 2], "strides": [1, 2]}),
    Case("AveragePool", [r(1, 2, 4, 4)], {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1]}, runtime="reference"),
    Case(
        "AveragePool",
        [r(1, 2, 4, 4)],
        {"kernel_shape": [2, 2], "strides": [2, 2]},
        "tile",
        runtime="reference",
    ),
    Case("GlobalAveragePool", [r(1, 2, 3, 3)], runtime="reference"),
    Case("GlobalMaxPool", [r(1, 2, 3, 3)], runtime="reference"),
    Case("LpPool", [p(1, 1, 4, 4)], {"kernel_shape": [2, 3], "p": 3}, runtime="reference"),
    Case(
        "Resize",
        [r(1, 1, 3, 4), None, np.array([1, 1, 1.5, 0.7])],
        {"mode": "linear"},
        constant=[2],
        runtime="reference",
    ),
    Case(
        "Resize",
        [r(1, 1, 3, 4), None, np.array([1, 1, 2, 2.0])],
        {},
        "near",
        constant=[2],
        runtime="reference",
    ),
    Case("BatchNormalization", [r(2, 2, 3), r(2), r(2), r(2), p(2)]),
    Case(
        "BatchNormalization",
        [r(2, 2, 3), r(2), r(2), r(2), p(2)],
        {"training_mode": 1},
        "train",
        runtime="reference",
        wrt=[0, 1, 2],
    ),
    Case("LayerNormalization", [r(3, 4), r(4), r(4)]),
    Case("InstanceNormalization", [r(2, 2, 3), r(2), r(2)], {}, runtime="reference"),
    Case("GroupNormalization", [r(2, 4, 3), r(2), r(2)], {"num_groups": 2}),
    Case("LRN", [p(3, 3, 1, 2)], {"size": 3, "alpha": 0.3}, runtime="reference"),
    Case(
        "GridSample",
        [r(1, 1, 3, 3), np.random.default_rng(0).uniform(-0.8, 0.8, size=(1, 2, 2, 2))],
        {"mode": "linear"},
        opset=20,
    ),
    Case(
        "GridSample",
        [r(1, 1, 4, 4), np.random.default_rng(0).uniform(-0.8, 0.8, size=(1, 2, 2, 2))],
        {"mode": "cubic"},
        "c",
        opset=20,
    ),
    Case("AffineGrid", [r(1, 2, 3), np.array([1, 1, 3, 3])], {}, constant=[1], opset=20),
    Case("CenterCropPad", [r(4, 3), np.array([2, 5])], constant=[1]),
    Case("Dropout", [r(4, 3)]),
]


@pytest.mark.parametrize("shapes", ["static", "dynamic"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_second_order(case: Case, shapes: str) -> None:
    check_second_order(case, shapes)
