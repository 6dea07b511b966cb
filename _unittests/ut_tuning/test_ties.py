"""Weights that nodes share get a copy each, where the model does not mean it."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx.reference import ReferenceEvaluator

import onnxcustom
from onnxcustom.exceptions import UnknownNameError
from onnxcustom.tuning import untie

NORMS = """<ir_version: 8, opset_import: ["": 17], producer_name: "pytorch">
m (float[N, 2] x) => (float[N, 2] y)
<float[2] s = {1, 1}, float[2] b = {0, 0}, float[2, 2] w = {1, 2, 3, 4}> {
    a = LayerNormalization(x, s, b)
    h = MatMul(a, w)
    c = LayerNormalization(h, s, b)
    d = Add(c, b)
    y = Tanh(d)
}"""
EMBEDDING = """<ir_version: 8, opset_import: ["": 17]>
m (int64[N] x) => (float[N, 3] y) <float[3, 2] table = {1, 2, 3, 4, 5, 6}> {
    e = Gather(table, x)
    t = Transpose(table)
    y = MatMul(e, t)
}"""
RECURRENT = """<ir_version: 8, opset_import: ["": 17]>
m (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4}> {
    a = MatMul(x, w)
    b = Tanh(a)
    y = MatMul(b, w)
}"""
PARALLEL = """<ir_version: 8, opset_import: ["": 17]>
m (float[N, 2] x, float[N, 2] z) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4}> {
    a = MatMul(x, w)
    b = MatMul(z, w)
    y = Mul(a, b)
}"""
CONSTANT = """<ir_version: 8, opset_import: ["": 17]>
m (float[N, 2] x) => (float[N, 2] y) {
    s = Constant<value = float[2] {1, 1}>()
    a = LayerNormalization(x, s)
    y = LayerNormalization(a, s)
}"""
BRANCHES = """<ir_version: 8, opset_import: ["": 17]>
m (float[N, 2] x, bool c) => (float[N, 2] y) <float[2] s = {1, 1}, float[2, 2] w = {1, 2, 3, 4}> {
    a = MatMul(x, w)
    y = If (c) <
        then_branch = yes () => (float[N, 2] u) { u0 = LayerNormalization(a, s)  u = MatMul(u0, w) },
        else_branch = no () => (float[N, 2] v) { v = LayerNormalization(a, s) }
    >
}"""


def inputs_of(model, seed=0):
    rng = np.random.default_rng(seed)
    made = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        shape = [d.dim_value or 3 for d in kind.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        made[value.name] = (
            rng.integers(0, 2, size=shape).astype(dtype)
            if dtype.kind in "ib"
            else rng.normal(size=shape).astype(dtype)
        )
    return made


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (NORMS, ["s", "b", "w", "s_1", "b_1", "b_2"]),
        (EMBEDDING, ["table"]),
        (RECURRENT, ["w"]),
        (PARALLEL, ["w", "w_1"]),
        (CONSTANT, ["s", "s_1"]),
        (BRANCHES, ["w", "s", "s_1"]),
    ],
    ids=["norms", "embedding", "recurrent", "parallel", "constant", "branches"],
)
def test_who_gets_a_copy(text, names):
    model = onnx.parser.parse_model(text)
    before = copy.deepcopy(model)
    made = untie(model)
    assert model == before
    onnx.checker.check_model(made, full_check=True)
    assert set(onnxcustom.weights(made)) == set(names)
    for seed in range(2):
        feeds = inputs_of(model, seed)
        wanted, found = (ReferenceEvaluator(m).run(None, feeds)[0] for m in (model, made))
        np.testing.assert_array_equal(found, wanted)
    again = untie(made)
    assert set(onnxcustom.weights(again)) == set(names)


@pytest.mark.parametrize(("text", "name"), [(EMBEDDING, "table"), (RECURRENT, "w"), (BRANCHES, "w")])
def test_names_overrule_what_is_meant(text, name):
    made = untie(onnx.parser.parse_model(text), name)
    assert {name, f"{name}_1"} <= set(onnxcustom.weights(made))
    assert set(onnxcustom.weights(untie(onnx.parser.parse_model(text), [name]))) == set(
        onnxcustom.weights(made)
    )


def test_names_that_are_none():
    with pytest.raises(UnknownNameError, match=r"no weight 'tabel'. Did you mean 'table'\?"):
        untie(onnx.parser.parse_model(EMBEDDING), "tabel")


def test_old_formats_list_their_weights_as_inputs():
    model = onnx.parser.parse_model(PARALLEL)
    model.ir_version = 3
    model.opset_import[0].version = 9
    model.graph.input.append(onnx.helper.make_tensor_value_info("w", 1, [2, 2]))
    made = untie(model)
    onnx.checker.check_model(made)
    assert set(onnxcustom.weights(made)) == {"w", "w_1"}


def test_copies_go_their_own_ways():
    """A warning says that they are tied; afterwards each has a gradient of its own."""
    pytest.importorskip("onnxruntime")
    model = onnx.parser.parse_model(NORMS)
    (warning,) = onnxcustom.gradient_report(model).warnings
    assert "tuning.untie" in warning
    made = untie(model)
    assert not onnxcustom.gradient_report(made).warnings
    step = onnxcustom.TrainingStep(made, loss="squared_error", optimizer="adam", learning_rate=0.1)
    X = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
    losses = [step.run(X, X) for _ in range(10)]
    assert losses[-1] < losses[0]
    after = step.weights()
    assert not np.allclose(after["s"], after["s_1"])
