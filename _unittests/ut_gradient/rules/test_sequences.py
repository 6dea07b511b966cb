from __future__ import annotations

import re

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from bare_gradient import differentiate

import onnxcustom.gradient.rules.arithmetic
import onnxcustom.gradient.rules.indexing
import onnxcustom.gradient.rules.sequences
import onnxcustom.gradient.rules.shaping
import onnxcustom.gradient.rules.slicing  # noqa: F401
from onnxcustom.exceptions import GradientNotImplementedError

PROVIDERS = ["CPUExecutionProvider"]
HEADER = '<ir_version: 9, opset_import: ["" : 18]> g ({inputs}) => (double y)'

# Body, shape of the inputs; @1 stands for a constant.
MODELS = {
    "construct-at": ("s = SequenceConstruct(a, b) p = @1 y = SequenceAt(s, p)", (2, 3)),
    "negative": ("s = SequenceConstruct(a, b) p = @-2 y = SequenceAt(s, p)", (2, 3)),
    "used-twice": (
        "s = SequenceConstruct(a, b, a) p = @0 q = @2 "
        "u = SequenceAt(s, p) v = SequenceAt(s, q) y = Mul(u, v)",
        (2, 3),
    ),
    "concat": ("s = SequenceConstruct(a, b, a) y = ConcatFromSequence<axis = 1>(s)", (2, 3)),
    "concat-one": ("s = SequenceConstruct(a) t = ConcatFromSequence<axis = 1>(s) y = Mul(t, b)", (2, 3)),
    "concat-negative": ("s = SequenceConstruct(a, b) y = ConcatFromSequence<axis = -2>(s)", (2, 3)),
    "stack": ("s = SequenceConstruct(a, b, a) y = ConcatFromSequence<axis = 1, new_axis = 1>(s)", (2, 3)),
    "insert": (
        "p = @1 s = SequenceConstruct(a, a) t = SequenceInsert(s, b, p) "
        "u = SequenceInsert(t, b) y = ConcatFromSequence<axis = 0>(u)",
        (2, 3),
    ),
    "from-empty": (
        "p = @0 e = SequenceEmpty<dtype = 11>() s = SequenceInsert(e, b) "
        "t = SequenceInsert(s, a, p) y = ConcatFromSequence<axis = 0>(t)",
        (2, 3),
    ),
    "erase": (
        "p = @0 s = SequenceConstruct(a, b, a) t = SequenceErase(s, p) "
        "u = SequenceErase(t) y = SequenceAt(u, p)",
        (2, 3),
    ),
    "split-ones": (
        "p = @1 s = SplitToSequence<axis = 1>(a) u = SequenceAt(s, p) y = Mul(u, b)",
        (2, 3),
    ),
    "split-squeezed": (
        "p = @1 s = SplitToSequence<axis = 0, keepdims = 0>(a) u = SequenceAt(s, p) y = Mul(u, b)",
        (2, 3),
    ),
    "split-stacked": (
        "s = SplitToSequence<axis = 0, keepdims = 0>(a) u = ConcatFromSequence<axis = 1, new_axis = 1>(s) "
        "v = Transpose<perm = [1, 0]>(u) y = Mul(v, b)",
        (2, 3),
    ),
    "split-chunks": (
        "n = @2 p = @1 s = SplitToSequence<axis = 1>(a, n) u = SequenceAt(s, p) y = Mul(u, b)",
        (1, 3),
    ),
    "split-last-chunk": (
        "n = @2 p = @-1 s = SplitToSequence<axis = 1>(a, n) u = SequenceAt(s, p) y = Mul(u, b)",
        (1, 3),
    ),
    "split-sizes": (
        "n = Constant<value = int64[3] {2, 1, 2}>() p = @1 "
        "s = SplitToSequence<axis = -1>(a, n) u = SequenceAt(s, p) y = Mul(u, b)",
        (1, 5),
    ),
    "split-joined": (
        "n = Constant<value = int64[2] {2, 3}>() p = @0 "
        "s = SplitToSequence<axis = 1>(a, n) t = SequenceInsert(s, b, p) y = ConcatFromSequence<axis = 1>(t)",
        (2, 5),
    ),
    "split-chunks-joined": (
        "n = @2 s = SplitToSequence<axis = 1>(a, n) u = ConcatFromSequence<axis = 1>(s) y = Mul(u, b)",
        (2, 5),
    ),
    "identity": (
        "s = SequenceConstruct(a, b) t = Identity(s) p = @1 y = SequenceAt(t, p)",
        (2, 3),
    ),
    "optional": ("o = Optional(a) u = OptionalGetElement(o) y = Mul(u, b)", (2, 3)),
    "optional-tensor": ("u = OptionalGetElement(a) y = Mul(u, b)", (2, 3)),
    "optional-sequence": (
        "s = SequenceConstruct(a, b) o = Optional(s) t = OptionalGetElement(o) p = @1 y = SequenceAt(t, p)",
        (2, 3),
    ),
}


def parse(body: str, shape: tuple[int | str, ...]) -> onnx.ModelProto:
    dims = ",".join(map(str, shape))
    header = HEADER.format(inputs=f"double[{dims}] a, double[{dims}] b")
    body = re.sub(r"@(\S+)", r"Constant<value = int64 {\1}>()", body)
    model = onnx.parser.parse_model(header + "{" + body + "}")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=PROVIDERS)
    return session.run(None, {k: v for k, v in feeds.items() if k in {i.name for i in model.graph.input}})


# Models whose number of pieces is known only with the size of the tensor they cut.
COUNTED = ("split-stacked", "split-last-chunk", "split-chunks-joined")


@pytest.mark.parametrize(
    ("name", "shapes"),
    [(n, s) for n in MODELS for s in ("static", "dynamic") if s == "static" or n not in COUNTED],
)
def test_gradient(name: str, shapes: str) -> None:
    body, shape = MODELS[name]
    rng = np.random.default_rng(0)
    feeds = {n: rng.normal(size=shape) for n in "ab"}
    model = parse(body, shape if shapes == "static" else tuple("MN"))
    y = run(model, feeds)[0]
    seed = rng.normal(size=y.shape)
    gradient = ir.to_proto(differentiate(ir.from_proto(model), ["a", "b"], ["y"]))
    found = run(gradient, {**feeds, "y_grad": seed})
    for n, value in zip("ab", found, strict=False):
        direction = rng.normal(size=shape)
        sides = [np.sum(seed * run(model, {**feeds, n: feeds[n] + s * direction})[0]) for s in (1e-5, -1e-5)]
        expected = (sides[0] - sides[1]) / 2e-5
        assert np.sum(direction * value) == pytest.approx(expected, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize(
    "body",
    [
        "s = SequenceConstruct(a, b) z = Size(a) o = @6 p = Sub(z, o) y = SequenceAt(s, p)",
        "s = SplitToSequence<axis = 0>(a) y = ConcatFromSequence<axis = 0>(s)",
    ],
)
def test_run_time_positions_are_refused(body: str) -> None:
    model = ir.from_proto(parse(body, ("M", "N")))
    with pytest.raises(GradientNotImplementedError, match="known only when the graph runs"):
        differentiate(model, ["a"], ["y"])
