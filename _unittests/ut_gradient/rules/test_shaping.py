from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from bare_gradient import differentiate
from rule_cases import Case, check_case
from second_order import check_second_order

import onnxcustom.gradient.rules.arithmetic
import onnxcustom.gradient.rules.indexing
import onnxcustom.gradient.rules.reduction
import onnxcustom.gradient.rules.shaping
import onnxcustom.gradient.rules.slicing  # noqa: F401

normal = np.random.default_rng(0).normal


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def r(*shape: int) -> np.ndarray:
    return normal(size=shape)


RESHAPE = [
    Case("Reshape", [r(2, 3, 4), ints(6, 4)], constant=[1]),
    Case("Reshape", [r(2, 3, 4), ints(0, -1)], label="copied", constant=[1]),
    Case("Reshape", [r(2, 3, 4), ints(0, 3, 2, 2)], label="rank-up", constant=[1]),
    Case("Reshape", [r(2, 3, 4), ints(4, 6)], label="run-time"),
    Case("Reshape", [r(0, 3), ints(0, 5)], {"allowzero": 1}, label="allowzero", constant=[1]),
    Case("Reshape", [r(0, 3), ints(3, 0)], {"allowzero": 1}, label="empty", constant=[1], opset=21),
    Case("Reshape", [r(1), ints()], label="to-scalar", constant=[1]),
    Case("Reshape", [r(), ints(1, 1)], label="scalar", constant=[1]),
    *(Case("Reshape", [r(4, 3), ints(-1)], constant=[1], opset=o) for o in (19, 21)),
    Case("Reshape", [r(4, 3), ints(-1)], constant=[1], opset=23, runtime="reference"),
    Case("Flatten", [r(2, 3, 4)]),
    *(Case("Flatten", [r(2, 3, 4)], {"axis": a}, label=f"axis{a}") for a in (0, 2, 3, -1)),
    Case("Flatten", [r(3)], label="1d"),
    Case("Flatten", [r(2, 3, 2)], opset=21),
    Case("Transpose", [r(2, 3, 4)]),
    Case("Transpose", [r(2, 3, 4)], {"perm": [1, 2, 0]}, label="cycle"),
    Case("Transpose", [r(2, 3)], {"perm": [0, 1]}, label="identity"),
    Case("Transpose", [r(2, 3, 1, 2)], {"perm": [3, 0, 2, 1]}, label="4d", opset=21),
    Case("Transpose", [r()], label="scalar"),
    Case("Squeeze", [r(1, 3, 1, 2), ints(0, 2)], constant=[1]),
    Case("Squeeze", [r(1, 3, 1, 2), ints(-2)], label="negative", constant=[1]),
    Case("Squeeze", [r(1, 3, 1, 2), ints(2, 0)], label="run-time"),
    Case("Squeeze", [r(1, 3, 1, 2)], label="no-axes"),
    Case("Squeeze", [r(1, 1)], label="to-scalar", opset=21),
    Case("Unsqueeze", [r(3, 2), ints(0, 2)], constant=[1]),
    Case("Unsqueeze", [r(3, 2), ints(-1, 0)], label="negative", constant=[1]),
    Case("Unsqueeze", [r(3, 2), ints(1)], label="run-time"),
    Case("Unsqueeze", [r(), ints(0)], label="scalar", constant=[1], opset=21),
]
REPEAT = [
    Case("Expand", [r(3, 1), ints(2, 1, 4)], constant=[1]),
    Case("Expand", [r(3, 1), ints(3, 4)], label="run-time"),
    Case("Expand", [r(3, 4), ints(1)], label="smaller", constant=[1]),
    Case("Expand", [r(), ints(2, 3)], label="scalar", constant=[1]),
    Case("Expand", [r(1, 2), ints(0, 2)], label="empty", constant=[1]),
    Case("Tile", [r(2, 3), ints(2, 3)], constant=[1]),
    Case("Tile", [r(2, 3), ints(1, 2)], label="one-axis", constant=[1]),
    Case("Tile", [r(2, 3), ints(1, 1)], label="once", constant=[1]),
    Case("Tile", [r(2, 1, 3), ints(2, 1, 2)], label="run-time"),
    Case("Tile", [r(3), ints(4)], label="1d", constant=[1]),
    Case("Tile", [r(2, 3), ints(0, 2)], label="empty", constant=[1]),
]
JOIN = [
    Case("Concat", [r(2, 3), r(2, 1), r(2, 2)], {"axis": 1}),
    Case("Concat", [r(2, 3), r(4, 3)], {"axis": 0}, label="two"),
    Case("Concat", [r(2, 3), r(2, 2), r(2, 4)], {"axis": -1}, label="negative"),
    Case("Concat", [r(2, 3)], {"axis": 0}, label="one"),
    Case("Concat", [r(2, 3), r(0, 3), r(1, 3)], {"axis": 0}, label="empty-part"),
    Case("Concat", [r(2, 1), r(2, 2), r(2, 3)], {"axis": 1}, label="constant-first", constant=[0]),
    Case("Concat", [r(2, 1), r(2, 2), r(2, 3)], {"axis": 1}, label="constant-ends", constant=[0, 2]),
    Case("Concat", [r(2, 1), r(2, 2), r(2, 3)], {"axis": -1}, label="constant-two", constant=[0, 1]),
    Case("Concat", [r(2, 1), r(2, 2)], {"axis": 1}, label="constant-last", constant=[1]),
    Case("Split", [r(5, 2), ints(2, 3)], outputs=2, constant=[1]),
    Case("Split", [r(2, 6), ints(1, 2, 3)], {"axis": -1}, label="axis", outputs=3, constant=[1]),
    Case("Split", [r(5, 2), ints(4, 1)], label="run-time", outputs=2),
    Case("Split", [r(5, 2), ints(0, 5)], label="empty-part", outputs=2, constant=[1]),
    Case("Split", [r(5, 2)], {"num_outputs": 3}, label="uneven", outputs=3),
    Case("Split", [r(2, 4)], {"num_outputs": 2, "axis": 1}, label="even", outputs=2, opset=21),
    Case("Split", [r(2, 4)], {"num_outputs": 1}, label="one", outputs=1),
]
BLOCKS = [
    *(
        Case(
            "Trilu", [r(3, 4), *([] if k is None else [np.array(k)])], {"upper": u}, f"{k}-{u}", constant=[1]
        )
        for k in (None, 0, 1, -2, 5)
        for u in (0, 1)
    ),
    Case("Trilu", [r(2, 3, 2), np.array(-1)], label="run-time"),
    *(Case("DepthToSpace", [r(2, 8, 2, 3)], {"blocksize": 2, "mode": m}, m) for m in ("DCR", "CRD")),
    Case("DepthToSpace", [r(1, 4, 1, 2)], {"blocksize": 2}, "no-mode"),
    Case("DepthToSpace", [r(1, 9, 2, 1)], {"blocksize": 3, "mode": "CRD"}, "three"),
    Case("SpaceToDepth", [r(2, 3, 4, 2)], {"blocksize": 2}),
    Case("SpaceToDepth", [r(1, 1, 3, 6)], {"blocksize": 3}, "three"),
    Case("ReverseSequence", [r(3, 2, 2), ints(1, 3)]),
    Case("ReverseSequence", [r(3, 4), ints(1, 3, 4)], {"batch_axis": 0, "time_axis": 1}, "batch-first"),
]
MAKE = [
    Case("Range", [np.array(0.5), np.array(3.2), np.array(0.6)]),
    Case("Range", [np.array(3.0), np.array(-1.3), np.array(-0.9)], label="down"),
    Case("Range", [np.array(3.0), np.array(2.0), np.array(1.0)], label="empty"),
    Case("Range", [np.array(0.5), np.array(3.2), np.array(0.6)], label="f32", dtype=np.float32),
]
# Opsets that onnxruntime 1.19 does not read: the operators are as before, with more types.
NEWEST = [
    Case(
        c.op_type,
        c.inputs,
        c.attributes,
        c.label,
        c.outputs,
        opset=23,
        constant=c.constant,
        runtime="reference",
    )
    for c in (*RESHAPE, *REPEAT, *JOIN, *BLOCKS)
    if c.opset == 18 and c.op_type in ("Flatten", "Transpose", "Squeeze", "Unsqueeze", "Concat", "Split")
]
CASES = RESHAPE + REPEAT + JOIN + BLOCKS + MAKE + NEWEST


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case) -> None:
    check_case(case)


@pytest.mark.parametrize("case", [c for c in CASES if c.runtime == "auto" and c.dtype == np.float64], ids=str)
def test_second_order(case: Case) -> None:
    if 0 in np.shape(case.inputs[0]) or case.label == "empty":
        pytest.skip("onnxruntime's ReduceSum reduces an empty tensor though no axis is given")
    check_second_order(case)


@pytest.mark.parametrize(
    ("shape", "target"),
    [("B,S,6", "0,0,2,3"), ("B,6", "-1,2,3"), ("B,S,6", "-1,6"), ("B,S,2,3", "0,0,6")],
)
def test_unknown_sizes_that_stay_need_no_shape(shape: str, target: str) -> None:
    wanted = list(map(int, target.split(",")))
    symbols = ["abcd"[i] if d == -1 else str(d) if d else "BS"[i] for i, d in enumerate(wanted)]
    n = len(wanted)
    model = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 18]> g (double[{shape}] x) => (double[{",".join(symbols)}] y)
        {{ t = Constant<value = int64[{n}] {{ {target} }}>() y = Reshape(x, t) }}"""
    )
    dims = [2 if d == "B" else 4 if d == "S" else int(d) for d in shape.split(",")]
    x = r(*dims)
    gradient = ir.to_proto(differentiate(ir.from_proto(model), ["x"], ["y"]))
    ops = [node.op_type for node in gradient.graph.node]
    flat = shape == "B,S,6" and target == "-1,6"
    assert ("Shape" in ops) == flat, ops
    y = np.reshape(x, [d if d else dims[i] for i, d in enumerate(wanted)])
    case = Case("Reshape", [])
    found = case.evaluate(gradient, {"x": x, "y_grad": y})[0]
    np.testing.assert_array_equal(found, x)


@pytest.mark.parametrize(
    "case",
    [
        Case("Concat", [r(2, 3), r(2, 1)], {"axis": 1}),
        Case("Split", [r(5, 2)], {"num_outputs": 2}, outputs=2),
        Case("Tile", [r(2, 3), ints(2, 3)]),
        Case("Slice", [r(6), ints(1), ints(6), ints(0), ints(2)], constant=[1, 2, 3, 4]),
        Case("Slice", [r(6), ints(1), ints(6), ints(0), ints(2)]),
        Case("Pad", [r(3), ints(1, 2)], {"mode": "reflect"}, constant=[1]),
        Case("Trilu", [r(3, 4)]),
        Case("DepthToSpace", [r(1, 4, 1, 2)], {"blocksize": 2}),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_dtypes(case: Case, dtype: type) -> None:
    narrow = Case(case.op_type, case.inputs, case.attributes, outputs=case.outputs, constant=case.constant)
    narrow.dtype = dtype
    results = []
    for each in (case, narrow):
        names = each.differentiable()
        proto = each.gradient("dynamic", names)
        feeds = each.feeds()
        values = each.evaluate(each.model(), feeds)
        seeds = {f"y{i}_grad": np.ones_like(v) for i, v in enumerate(values)}
        needed = {i.name for i in proto.graph.input}
        results.append(
            each.evaluate(proto, {k: v for k, v in {**feeds, **seeds}.items() if k in needed})[: len(names)]
        )
    for wide, half in zip(*results, strict=True):
        assert half.dtype == dtype
        np.testing.assert_array_equal(half, wide)
