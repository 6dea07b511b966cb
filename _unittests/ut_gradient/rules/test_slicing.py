from __future__ import annotations

import itertools

import numpy as np
import pytest
from rule_cases import Case, check_case
from second_order import check_second_order

import onnxcustom.gradient.rules.arithmetic
import onnxcustom.gradient.rules.indexing
import onnxcustom.gradient.rules.reduction
import onnxcustom.gradient.rules.slicing  # noqa: F401

normal = np.random.default_rng(0).normal
FAR, BIG = 2**63 - 1, 2**31 - 1


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def r(*shape: int) -> np.ndarray:
    return normal(size=shape)


def slices(label: str, x: np.ndarray, *operands: object, **options: object) -> list[Case]:
    """The case with constant operands and with operands that are inputs."""
    arrays = [None if o is None else ints(*np.atleast_1d(o)) for o in operands]
    return [
        Case("Slice", [x, *arrays], label=f"{label}-{kind}", constant=constant, **options)
        for kind, constant in (("constant", range(1, 5)), ("run-time", ()))
    ]


SLICE = [
    *slices("middle", r(6), 1, 4),
    *slices("no-axes", r(4, 5), [1, 0], [3, 4]),
    *slices("axis", r(4, 5), 1, 3, 1),
    *slices("negative-axis", r(4, 5), 1, 3, -1),
    *slices("both-axes", r(4, 5), [1, 2], [4, 5], [1, 0]),
    *slices("from-start", r(4, 5), 0, 2, 1),
    *slices("to-end", r(4, 5), 2, FAR, 0),
    *slices("to-end-int32", r(4, 5), 2, BIG, 0),
    *slices("all", r(4, 5), 0, FAR, 0),
    *slices("from-end", r(6), -2, FAR, 0),
    *slices("negative-both", r(6), -4, -1, 0),
    *slices("trim", r(6), 1, -1, 0),
    *slices("negative-start-positive-end", r(6), -4, 5, 0),
    *slices("start-beyond", r(3, 2), 5, 9, 0),
    *slices("start-far-below", r(3, 2), -9, 2, 0),
    *slices("end-beyond", r(3, 2), 1, 9, 0),
    *slices("empty", r(3, 2), 2, 1, 0),
    *slices("trim-to-nothing", r(1, 2), 1, -1, 0),
    *slices("of-empty", r(0, 2), 1, FAR, 0),
    *slices("of-empty-trim", r(0, 2), 1, -1, 0),
    *slices("step2", r(7), 0, FAR, 0, 2),
    *slices("step2-from1", r(7), 1, FAR, 0, 2),
    *slices("step3-end", r(3, 8), 1, 6, 1, 3),
    *slices("step3-trim", r(3, 8), 2, -1, -1, 3),
    *slices("step-huge", r(5), 1, FAR, 0, 9),
    *slices("step-from-end", r(7), -5, FAR, 0, 2),
    *slices("step-both-axes", r(2, 4, 6), [1, 0], [FAR, FAR], [1, 2], [2, 2]),
    *slices("step-mixed", r(4, 6), [1, 3], [3, 0], [0, 1], [1, -1]),
    *slices("step-empty", r(5), 3, 2, 0, 2),
    *slices("flip", r(2, 5), -1, -FAR, 1, -1),
    *slices("flip-int32", r(2, 5), BIG, -BIG, 1, -1),
    *slices("flip-both", r(2, 5), [-1, -1], [-FAR, -FAR], [0, 1], [-1, -1]),
    *slices("flip-part", r(6), 4, 1, 0, -1),
    *slices("flip-step2", r(6), -1, -FAR, 0, -2),
    *slices("flip-step2-from", r(7), 4, -FAR, 0, -2),
    *slices("flip-step3", r(2, 7), 5, 0, -1, -3),
    *slices("flip-empty", r(6), 1, 4, 0, -1),
    *slices("int32", r(6), 1, 4, 0, 1, opset=21),
]


def pads(
    label: str, x: np.ndarray, widths: list[int], axes: list[int] | None = None, **options
) -> list[Case]:
    """Every kind of operand, for one border."""
    attributes = options.pop("attributes", {})
    arrays = [x, ints(*widths), *([] if axes is None else [None, ints(*axes)])]
    mode = attributes.get("mode", "constant")
    return [
        Case("Pad", arrays, attributes, f"{mode}-{label}-{kind}", constant=constant, **options)
        for kind, constant in (("constant", (1, 2, 3)), ("run-time", ()))
    ]


PAD = [
    *pads("simple", r(2, 3), [1, 0, 2, 1]),
    *pads("axes", r(2, 3), [1, 2], [1]),
    *pads("negative-axes", r(2, 3), [1, 2, 0, 1], [-1, -2]),
    *pads("crop", r(4, 3), [-1, 0, -2, 0]),
    *pads("crop-and-pad", r(4, 3), [-1, 2, 3, -1]),
    *pads("crop-all", r(3), [-1, -2]),
    *pads("nothing", r(2, 3), [0, 0, 0, 0]),
    *pads("empty", r(0, 3), [1, 0, 2, 1]),
    *pads("opset19", r(2, 3), [1, 0, 2, 1], opset=19),
    *pads("opset21", r(2, 3), [1, 0, 2, 1], opset=21),
    *(
        Case(
            "Pad",
            [r(*shape), ints(*widths), value, *axes],
            label=f"value-{label}-{constant}",
            constant=constant,
        )
        for label, shape, widths, value, axes in (
            ("scalar", (2, 3), (1, 0, 2, 1), np.array(0.7), []),
            ("crop", (4, 3), (-1, 2, 3, -1), np.array(0.7), []),
            ("axes", (2, 3), (1, 2), np.array(-0.7), [ints(1)]),
            ("nothing", (2,), (0, 0), np.array(-0.7), [ints(0)]),
        )
        for constant in ([1, 3], [])
    ),
    *itertools.chain.from_iterable(
        pads(label, x, widths, axes, attributes={"mode": mode}, opset=opset)
        for mode, opset in (
            ("reflect", 18),
            ("edge", 18),
            ("wrap", 19),
            ("reflect", 21),
            ("edge", 21),
            ("wrap", 21),
        )
        for label, x, widths, axes in (
            ("simple", r(4), [2, 1], None),
            ("apart", r(2, 7), [0, 2, 0, 3], None),
            ("touching", r(6), [1, 3], None),
            ("widest", r(3, 4), [2, 0, 2, 3], None),
            ("2d", r(1, 2, 3, 4), [0, 0, 1, 2, 0, 0, 2, 3], None),
            ("axes", r(3, 3), [1, 2], [-1]),
            ("before", r(3), [2, 0], None),
            ("after", r(3), [0, 2], None),
            ("crop", r(5), [-1, 2], None),
            ("nothing", r(2), [0, 0], None),
        )
    ),
    *pads("single", r(1, 2), [3, 0, 2, 0], attributes={"mode": "edge"}),
    *pads("full-turn", r(3), [3, 3], attributes={"mode": "wrap"}, opset=19),
    *pads("two-turns", r(2), [3, 4], attributes={"mode": "reflect"}, runtime="reference", dynamic=False),
]
NEWEST = [
    Case(
        "Pad",
        c.inputs,
        c.attributes,
        c.label,
        opset=23,
        constant=c.constant,
        runtime="reference",
        dynamic=False,
    )
    for c in PAD
    if c.opset == 21 and "run-time" not in c.label and "crop" not in c.label
]
CASES = SLICE + PAD + NEWEST


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case) -> None:
    check_case(case)


@pytest.mark.parametrize(
    "case",
    [c for c in CASES if "constant" in c.label and c.opset == 18 and "two-turns" not in c.label],
    ids=str,
)
def test_second_order(case: Case) -> None:
    check_second_order(case)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (slices("", r(6), 1, 4)[0], ["Pad"]),
        (slices("", r(6), -1, -FAR, 0, -1)[0], ["Slice"]),
        (slices("", r(6), 0, FAR, 0, 2)[0], ["Unsqueeze", "ConstantOfShape", "Concat", "Reshape"]),
        (pads("", r(2, 3), [1, 0, 2, 1])[0], ["Slice"]),
        (pads("", r(2, 3), [1, -1, 2, 1])[0], ["Pad"]),
    ],
    ids=str,
)
def test_static_gradients_are_small(case: Case, expected: list[str]) -> None:
    nodes = [n.op_type for n in case.gradient("static", ["x0"]).graph.node]
    nodes.remove(case.op_type)  # the forward node itself, an output of the gradient graph
    assert [n for n in nodes if n != "Identity"] == expected
