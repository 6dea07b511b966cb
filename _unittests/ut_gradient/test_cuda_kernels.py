"""Gradients that are made for a GPU: onnxruntime has a CUDA kernel for each of their nodes."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from onnxcustom.exceptions import InvalidModelError
from onnxcustom.gradient import gradient_graph
from onnxcustom.gradient.cuda_forms import spell_for_cuda
from onnxcustom.runtime import create_session

from ..cuda_kernels import kernels, kernels_of_page, missing, releases
from .operator_cases import CASES, Case

PAGE = """
## Operators implemented by CPUExecutionProvider
|Sinh|*in* x|9+|**T** = tensor(float)|
## Operators implemented by CUDAExecutionProvider
|Op Name|Parameters|OpSet Version|Types Supported|
|**Operator Domain:** *ai.onnx*||||
|Cast|*in* x:**T1**|19+|**T1** = tensor(float), tensor(float8e5m2)<br/> **T2** = seq(tensor(s)), tensor(bool)|
|||[9, 18]|**T1** = tensor(float16)|
|||8|**T1** = tensor(int64)|
| |
|**Operator Domain:** *com.microsoft*||||
|Gelu|*in* X:**T**|1+|**T** = tensor(bfloat16)|
## Operators implemented by DmlExecutionProvider
|Tan|*in* x|7+|**T** = tensor(float)|
"""


def crossing(case: Case, opset: int, dtype: type, shapes: str) -> set[str]:
    """Why nodes of the gradient have no kernel, those left out that the model itself has."""
    model = case.model(opset, dtype, shapes)
    own = {name for node in model.graph.node for name in node.output}
    made = gradient_graph(model, [], engine="onnx", device="cuda")
    found = (missing(made, release) for release in releases())
    return {why for rows in found for node, why in rows if not own & {*node.output}}


@pytest.mark.parametrize("op", sorted({case.op for case in CASES}))
def test_every_node_of_a_gradient_has_a_kernel(op: str) -> None:
    cases = [case for case in CASES if case.op == op]
    assert not {why for case in cases for why in crossing(case, [*case.opsets()][-1], np.float32, "static")}


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_every_node_has_one_in_every_opset(case: Case) -> None:
    kinds = ((dtype, shapes) for dtype in (np.float32, np.float64) for shapes in ("static", "dynamic"))
    for dtype, shapes in kinds:
        for opset in case.opsets():
            try:
                onnx.shape_inference.infer_shapes(case.model(opset, dtype, shapes), True, strict_mode=True)
                found = crossing(case, opset, dtype, shapes)
            except (onnx.shape_inference.InferenceError, InvalidModelError):  # the operator has no such type
                continue
            assert not found


SIZES = (2, 3, 4, 6)


@pytest.mark.parametrize(
    ("node", "sizes"),
    [
        ("Cosh (x)", SIZES),
        ("Sinh (x)", SIZES),
        ("MaxPool <kernel_shape=[2, 2], strides=[2, 2]> (x)", (2, 3, 2, 3)),
    ],
)
def test_what_is_made_for_a_gpu_is_the_same(node: str, sizes: tuple[int, ...]) -> None:
    text = f"g (float[2, 3, 4, 6] x) => (float[{', '.join(map(str, sizes))}] y) {{ y = {node} }}"
    given = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    here, there = (gradient_graph(given, device=device) for device in ("cpu", "cuda"))
    assert {n.op_type for n in there.graph.node}.isdisjoint({"Cosh", "Sinh", "MaxUnpool"})
    random = np.random.default_rng(0)
    x, dy = (random.normal(size=n).astype(np.float32) for n in (SIZES, sizes))
    x[0, 0, 0, :4] = 1e-6, 88.8, -88.8, 0  # where exp(x) is infinite already
    both = (create_session(graph, threads=1).run(None, {"x": x, "y_grad": dy}) for graph in (here, there))
    for wanted, found in zip(*both, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-5)


PADDED = """<ir_version: 8, opset_import: ["": 17]> g (int64[4, 3] k, float[4, 3] x)
=> (int64[a, b] p, int64[4] first, int64[1, 3] kept) <int64[4] pads = {0, 1, 0, 2}, int64 filled = {-7}> {
    p = Pad (k, pads, filled)  first = ArgMax <axis = 1, keepdims = 0> (x)  kept = ArgMax (x) }"""


def test_whole_numbers_and_places_stay() -> None:
    given = onnx.parser.parse_model(PADDED)
    made = ir.from_proto(given)
    spell_for_cuda(made)
    spelled = ir.to_proto(made)
    assert not [why for release in releases() for _, why in missing(spelled, release)]
    x = np.array([[1, 3, 3], [2, 2, 2], [0, -1, 0], [5, 6, 7]], np.float32)
    feeds = {"x": x, "k": np.arange(12).reshape(4, 3) + 2**40}
    padded, first, kept = create_session(spelled, threads=1).run(None, feeds)
    np.testing.assert_array_equal(padded, np.pad(feeds["k"], ((0, 0), (1, 2)), constant_values=-7))
    np.testing.assert_array_equal(first, x.argmax(axis=1))
    np.testing.assert_array_equal(kept, x.argmax(axis=0, keepdims=True))


def test_the_table_says_what_is_missing() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[N, 3] x, int64[N] k) => (float[N, 3] y) {
        s = Shape (x)  u = Unique (s)  a = Sinh (x)  i = ArgMax (a)  v = Unique (k)  y = Sign (a) }"""
    rows = [[why for _, why in missing(onnx.parser.parse_model(text), r)] for r in ("1.19.2", "1.25.0")]
    without = ["Sinh: no kernel", "ArgMax: none of opset 13", "Unique: no kernel"]
    assert rows == [without, [without[0], without[2]]]


def test_the_page_is_read() -> None:
    assert [*kernels_of_page(PAGE)] == [
        "ai.onnx Cast 19- T1=f T2=b",
        "ai.onnx Cast 9-18 T1=h",
        "ai.onnx Cast 8-8 T1=i64",
        "com.microsoft Gelu 1- T=g",
    ]
    for release in releases():
        assert len(kernels(release)) > 150
        assert ("", "Col2Im") not in kernels(release)
