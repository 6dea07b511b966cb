"""Rules of convolutions."""

from __future__ import annotations

import numpy as np
import pytest
from rule_cases import Case, check_case

random = np.random.default_rng(0)


def r(*shape: int) -> np.ndarray:
    return random.normal(size=shape)


def conv(x: tuple, w: tuple, label: str, bias: bool = False, **kw: object) -> list[Case]:
    """The case in float64 by the reference and, with kernel_shape, in float32 by onnxruntime."""
    options = {k: kw.pop(k) for k in ("opset", "dynamic", "constant", "wrt", "op", "runtime") if k in kw}
    op, runtime = options.pop("op", "Conv"), options.pop("runtime", "both")
    channels = w[0] if op == "Conv" else w[1] * kw.get("group", 1)
    inputs = [r(*x), r(*w)] + ([r(channels)] if bias else [])
    named = {"kernel_shape": list(w[2:]), **kw}
    cases = []
    if runtime in ("both", "reference"):
        cases.append(Case(op, inputs, named, label, runtime="reference", **options))
    if runtime in ("both", "ort"):
        cases.append(Case(op, inputs, named, label + " float32", dtype=np.float32, runtime="ort", **options))
    return cases


def transposed(x: tuple, w: tuple, label: str, bias: bool = False, **kw: object) -> list[Case]:
    return conv(x, w, label, bias, op="ConvTranspose", **kw)


CASES = [
    *conv((2, 2, 4, 5), (3, 2, 3, 2), "plain", bias=True),
    *conv((2, 1, 5), (2, 1, 3), "1-D", bias=True),
    *conv((1, 2, 3, 3, 3), (2, 2, 2, 2, 2), "3-D", bias=True),
    *conv((1, 1, 4, 4, 5), (1, 1, 2, 3, 2), "3-D strides pads", strides=[2, 1, 2], pads=[1, 0, 1, 0, 1, 1]),
    *conv((2, 2, 4, 4), (3, 2, 1, 1), "1x1"),
    *conv((2, 2, 5, 4), (3, 2, 1, 1), "1x1 strides", strides=[2, 2]),
    *conv((1, 1, 6, 5), (1, 1, 3, 3), "asymmetric pads", pads=[2, 0, 1, 1]),
    *conv((1, 1, 6, 5), (1, 1, 2, 3), "strides", strides=[2, 3]),
    *conv((1, 1, 7, 6), (1, 1, 2, 3), "strides rest pads", strides=[3, 2], pads=[0, 1, 1, 2]),
    *conv((1, 1, 6, 6), (1, 1, 3, 3), "strides rest inside pads", strides=[2, 2], pads=[1, 1, 1, 1]),
    *conv((1, 1, 7, 7), (1, 1, 2, 3), "dilations", dilations=[2, 3]),
    *conv(
        (1, 1, 8, 9),
        (1, 1, 2, 3),
        "dilations strides pads",
        dilations=[3, 2],
        strides=[2, 3],
        pads=[1, 2, 0, 1],
    ),
    *conv((1, 1, 5, 5), (1, 1, 1, 2), "stride over kernel", strides=[3, 3]),
    *conv((2, 4, 4, 3), (6, 2, 2, 2), "group 2", group=2, bias=True, runtime="ort"),
    *conv(
        (2, 4, 5, 3),
        (4, 2, 3, 2),
        "group 2 strides pads",
        group=2,
        strides=[2, 1],
        pads=[1, 0, 0, 1],
        runtime="ort",
    ),
    *conv((2, 3, 4, 4), (3, 1, 3, 3), "depthwise", group=3, pads=[1, 1, 1, 1]),
    *conv(
        (2, 3, 4, 4),
        (6, 1, 3, 3),
        "depthwise multiplier",
        group=3,
        pads=[1, 1, 1, 1],
        bias=True,
        runtime="ort",
    ),
    *conv(
        (2, 3, 5, 6),
        (3, 1, 2, 3),
        "depthwise strides dilations",
        group=3,
        strides=[2, 1],
        dilations=[1, 2],
        pads=[1, 0, 0, 2],
    ),
    *conv((2, 3, 5, 6), (3, 1, 2, 3), "depthwise dilations", group=3, dilations=[1, 2], pads=[1, 4, 0, 2]),
    *conv((2, 3, 4, 4), (3, 1, 2, 2), "depthwise pads over kernel", group=3, pads=[2, 0, 3, 1]),
    *conv((2, 3, 4, 4), (3, 1, 1, 1), "depthwise 1x1", group=3),
    *conv((2, 3, 6), (3, 1, 3), "depthwise 1-D", group=3, strides=[2]),
    *conv((1, 1, 4, 5), (1, 1, 3, 2), "same upper", auto_pad="SAME_UPPER"),
    *conv((1, 1, 4, 5), (1, 1, 2, 2), "same lower", auto_pad="SAME_LOWER"),
    *conv((1, 1, 5, 6), (1, 1, 3, 4), "same upper strides", auto_pad="SAME_UPPER", strides=[2, 3]),
    *conv((1, 1, 5, 6), (1, 1, 3, 4), "same lower strides", auto_pad="SAME_LOWER", strides=[2, 3]),
    *conv(
        (1, 1, 6, 7),
        (1, 1, 1, 2),
        "same upper stride over kernel",
        auto_pad="SAME_UPPER",
        strides=[3, 3],
        runtime="reference",
    ),  # onnxruntime pads by less than nothing
    *conv(
        (1, 1, 7, 6),
        (1, 1, 2, 2),
        "same upper dilations",
        auto_pad="SAME_UPPER",
        strides=[2, 1],
        dilations=[2, 2],
        runtime="reference",
    ),
    *conv((1, 1, 5, 5), (1, 1, 2, 3), "valid", auto_pad="VALID", strides=[2, 1]),
    *conv((1, 8, 4, 4), (2, 8, 3, 3), "wide", wrt=[1], strides=[1, 1], pads=[1, 1, 1, 1]),
    *conv((1, 24, 4), (2, 24, 3), "wide 1-D", wrt=[1]),
    *conv((1, 64, 3), (2, 64, 2), "wide 1-D by rows", wrt=[1]),
    *conv((1, 1, 10, 10), (1, 1, 9, 9), "large kernel", dilations=[1, 1]),
    *conv((2, 2, 10, 10), (2, 1, 9, 9), "large kernel group", group=2, runtime="ort"),
    *conv((1, 1, 4, 4), (1, 1, 2, 2), "constant weight", constant=[1]),
    *conv((1, 1, 5, 4), (1, 1, 2, 2), "constant input", constant=[0], strides=[2, 2]),
    *conv((1, 1, 4, 4), (1, 1, 2, 2), "", opset=22, runtime="reference"),
    *conv((1, 1, 4, 4), (1, 1, 2, 2), "", opset=21, strides=[2, 2]),
    *transposed((2, 2, 3, 2), (2, 3, 3, 2), "plain", bias=True),
    *transposed((2, 1, 4), (1, 2, 3), "1-D", bias=True, runtime="ort"),
    *transposed(
        (1, 2, 2, 2, 2), (2, 2, 2, 2, 2), "3-D", strides=[2, 1, 2], pads=[1, 0, 0, 0, 1, 1], runtime="ort"
    ),
    *transposed((1, 1, 3, 3), (1, 1, 3, 3), "strides pads", strides=[2, 3], pads=[1, 0, 0, 2]),
    *transposed((1, 1, 3, 3), (1, 1, 3, 3), "output padding", strides=[2, 3], output_padding=[1, 2]),
    *transposed(
        (1, 1, 3, 3),
        (1, 1, 3, 3),
        "output padding pads",
        strides=[2, 3],
        output_padding=[1, 2],
        pads=[1, 1, 1, 1],
    ),
    # In two dimensions onnxruntime reads beyond its buffer where output_padding reaches the stride.
    *transposed(
        (1, 1, 3),
        (1, 1, 2),
        "output padding over stride",
        strides=[1],
        dilations=[3],
        output_padding=[2],
        runtime="ort",
    ),
    *transposed(
        (1, 1, 3),
        (1, 1, 2),
        "output padding over stride pads",
        strides=[1],
        dilations=[3],
        output_padding=[2],
        pads=[0, 1],
        runtime="ort",
    ),
    *transposed((1, 1, 3, 3), (1, 1, 2, 2), "dilations", dilations=[2, 3], strides=[2, 1]),
    *transposed((2, 4, 2, 3), (4, 2, 2, 2), "group", group=2, bias=True, runtime="ort"),
    *transposed((2, 3, 2, 3), (3, 1, 2, 2), "depthwise", group=3, strides=[2, 2], runtime="ort"),
    *transposed(
        (1, 1, 3, 3), (1, 1, 3, 2), "same upper", auto_pad="SAME_UPPER", strides=[2, 1], runtime="ort"
    ),
    *transposed(
        (1, 1, 3, 3), (1, 1, 4, 3), "same lower", auto_pad="SAME_LOWER", strides=[1, 2], runtime="ort"
    ),
    *transposed(
        (1, 1, 3, 3), (1, 1, 2, 2), "same upper small", auto_pad="SAME_UPPER", strides=[3, 3], runtime="ort"
    ),
    *transposed((1, 1, 3, 3), (1, 1, 3, 2), "valid", auto_pad="VALID", strides=[2, 1], runtime="ort"),
    *transposed(
        (1, 1, 3, 3), (1, 1, 3, 3), "output shape", output_shape=[6, 5], strides=[2, 2], runtime="ort"
    ),
    *transposed(
        (1, 1, 3, 3),
        (1, 1, 3, 3),
        "output shape upper",
        output_shape=[6, 5],
        strides=[2, 2],
        auto_pad="SAME_UPPER",
        runtime="ort",
    ),
    *transposed((1, 1, 3), (1, 1, 2), "output shape beyond", output_shape=[9], strides=[2], runtime="ort"),
    *transposed(
        (1, 1, 3), (1, 1, 2), "output shape stride beyond", output_shape=[10], strides=[3], runtime="ort"
    ),
    *transposed((1, 1, 3, 3), (1, 1, 2, 2), "", opset=22, runtime="reference"),
    # Without kernel_shape the size of the weight must come from its shape.
    Case("Conv", [r(1, 2, 5, 4), r(2, 2, 3, 2)], {"strides": [2, 1]}, "no kernel_shape", dtype=np.float32),
    Case(
        "Conv",
        [r(1, 2, 5, 4), r(4, 1, 3, 2)],
        {"strides": [2, 1], "group": 2, "pads": [1, 0, 1, 1]},
        "no kernel_shape group",
        dtype=np.float32,
    ),
    Case(
        "Conv",
        [r(1, 1, 5, 6), r(1, 1, 3, 4)],
        {"strides": [2, 3], "auto_pad": "SAME_LOWER"},
        "no kernel_shape same",
        dtype=np.float32,
    ),
    Case(
        "ConvTranspose",
        [r(1, 1, 3, 3), r(1, 1, 3, 2)],
        {"strides": [2, 1], "auto_pad": "SAME_UPPER"},
        "no kernel_shape same",
        dtype=np.float32,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case) -> None:
    check_case(case)
