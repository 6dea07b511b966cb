# ruff: noqa: E501 - a node of ONNX text stays on its line
"""Linear operators of ai.onnx.ml against onnxruntime's own kernels."""

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from onnxcustom.graph import prepare, rename_weights, replace_weights, to_ir, to_proto, weights
from onnxcustom.graph.preparation.ml_operators import ConvertLinearOperatorsPass, _runtime_applies_logistic

onnxruntime = pytest.importorskip("onnxruntime")

TRANSFORMS = ["NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT"]
DTYPES = {
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
}
ROWS = np.array([[1, 2, 3], [0, 0, 0], [-1, 0, 2], [-1, -2, -3], [0.5, 0.25, -0.5]], dtype=np.float32)


def one_node(op_type, outputs, dtype="float32", opset=18, rank=2, name="node", shape=None, **attributes):
    node = helper.make_node(
        op_type, ["x"], [n for n, _ in outputs], domain="ai.onnx.ml", name=name, **attributes
    )
    shape = shape or [None, 3][-rank:]
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", DTYPES[dtype], shape)],
        [helper.make_tensor_value_info(n, t, None) for n, t in outputs],
    )  # fmt: skip
    domains = [helper.make_opsetid("ai.onnx.ml", 1)]
    if opset is not None:
        domains.append(helper.make_opsetid("", opset))
    return helper.make_model(graph, opset_imports=domains, ir_version=8)


def run(model, x):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


def assert_same(model, x, rtol=1e-6, atol=1e-6, converted=True):
    prepared = to_proto(prepare(model))
    onnx.checker.check_model(prepared, full_check=True)
    assert any(n.domain == "ai.onnx.ml" for n in prepared.graph.node) is not converted
    assert ("ai.onnx.ml" in {o.domain for o in prepared.opset_import}) is not converted
    for one, other in zip(run(model, x), run(prepared, x), strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        if one.dtype == np.float32:
            np.testing.assert_allclose(other, one, rtol=rtol, atol=atol)
        else:
            np.testing.assert_array_equal(other, one)
    return prepared


# -- LinearRegressor -------------------------------------------------------------------------


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("targets", [1, 2, 3])
@pytest.mark.parametrize("intercepts", [True, False])
def test_regressor(targets, transform, intercepts):
    rng = np.random.default_rng(targets)
    attributes = {"coefficients": (rng.random(3 * targets) * 0.2 + 0.1).tolist(), "post_transform": transform}
    if intercepts:
        attributes["intercepts"] = (rng.random(targets) * 0.2).tolist()
    model = one_node("LinearRegressor", [("y", TensorProto.FLOAT)], targets=targets, **attributes)
    assert_same(model, ROWS, rtol=1e-5)
    found = weights(model)
    assert found["node_coefficients"].shape == (targets, 3)
    assert list(found) == ["node_coefficients", "node_intercepts"][: 1 + intercepts]


def test_regressor_defaults():
    model = one_node(
        "LinearRegressor", [("y", TensorProto.FLOAT)], coefficients=[1.0, 2.0, 3.0], intercepts=[0.5]
    )
    prepared = assert_same(model, ROWS)
    assert [n.op_type for n in prepared.graph.node] == ["Gemm"]


@pytest.mark.parametrize("opset", [7, 9, 11, 12, 13, 18, 21, None])
def test_opsets(opset):
    if (opset or 0) > 20:
        pytest.importorskip("onnxruntime", minversion="1.18")
    scaler = helper.make_node("Scaler", ["x"], ["s"], domain="ai.onnx.ml", offset=[1.0], scale=[2.0])
    model = one_node(
        "LinearClassifier", [("label", TensorProto.INT64), ("p", TensorProto.FLOAT)], opset=opset,
        coefficients=[0.1, 0.2, 0.3] * 3, intercepts=[0.1, 0.2, 0.3], classlabels_ints=[4, 5, 6], post_transform="SOFTMAX",
    )  # fmt: skip
    norm = helper.make_node("Normalizer", ["s"], ["n"], domain="ai.onnx.ml", norm="L1")
    model.graph.node.insert(0, norm)
    model.graph.node.insert(0, scaler)
    model.graph.node[2].input[0] = "n"
    prepared = assert_same(model, ROWS)
    assert {o.domain: o.version for o in prepared.opset_import} == {"": opset or 18}


# -- LinearClassifier ------------------------------------------------------------------------

LABELS = {
    1: [[5, 9], ["no", "yés"], [5], None],
    2: [[5, 9], ["no", "yes"]],
    3: [[5, 7, 9], ["a", "b", "c"]],
}
CLASSIFIERS = [
    (rows, transform, labels)
    for rows in LABELS
    for transform, labels in itertools.product(TRANSFORMS, LABELS[rows])
]


def classifier(rows, transform, labels, coefficients=None, intercepts=None, **more):
    rng = np.random.default_rng(rows)
    if coefficients is None:
        coefficients = (rng.random(3 * rows) * 0.2 - 0.1).tolist()
        intercepts = (rng.random(rows) * 0.2 + 0.4).tolist()
    key = "classlabels_strings" if labels and isinstance(labels[0], str) else "classlabels_ints"
    attributes = {} if labels is None else {key: labels}
    kind = TensorProto.STRING if key == "classlabels_strings" else TensorProto.INT64
    return one_node(
        "LinearClassifier", [("label", kind), ("p", TensorProto.FLOAT)], coefficients=coefficients,
        intercepts=intercepts, post_transform=transform, **attributes, **more,
    )  # fmt: skip


@pytest.mark.parametrize(("rows", "transform", "labels"), CLASSIFIERS)
def test_classifier(rows, transform, labels):
    model = classifier(rows, transform, labels)
    if labels and len(labels) == 1:
        try:
            onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        except onnxruntime.capi.onnxruntime_pybind11_state.Fail as error:
            pytest.skip(f"this onnxruntime wants two labels: {error}")
    if rows == 1 and transform == "PROBIT" and labels and len(labels) == 2:
        # Half of what this kernel returns was never written; there is nothing to be equal to.
        assert weights(model) == {}
        assert prepare(model).graph.node(0).op_type == "LinearClassifier"
        return
    assert_same(model, ROWS, rtol=2e-5)
    found = weights(model)
    assert {k: v.shape for k, v in found.items()} == {
        "node_coefficients": (rows, 3),
        "node_intercepts": (rows,),
    }
    written = next(a.floats for a in model.graph.node[0].attribute if a.name == "coefficients")
    np.testing.assert_array_equal(found["node_coefficients"].reshape(-1), np.float32(written))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transform", ["NONE", "SOFTMAX", "LOGISTIC"])
def test_classifier_input_types(dtype, transform):
    assert_same(classifier(3, transform, [1, 2, 3], dtype=dtype), ROWS.astype(dtype))


@pytest.mark.parametrize("labels", [[0, 1], ["no", "yes"]])
@pytest.mark.parametrize("transform", ["LOGISTIC", "SOFTMAX", "NONE"])
def test_mirrored_rows(transform, labels):
    """The form skl2onnx writes for a binary model: one row of parameters under LOGISTIC."""
    w, b = [0.5, -0.25, 0.3], 0.05
    model = classifier(2, transform, labels, [-v for v in w] + w, [-b, b])
    assert_same(model, ROWS)
    rows = 1 if transform == "LOGISTIC" else 2
    assert weights(model)["node_coefficients"].shape == (rows, 3)
    assert weights(model)["node_intercepts"].shape == (rows,)


def test_mirrored_rows_stay_mirrored():
    model = classifier(2, "LOGISTIC", [0, 1], [-0.5, 0.25, -0.3, 0.5, -0.25, 0.3], [-0.1, 0.1])
    new = {"node_coefficients": np.float32([[1, 2, 3]]), "node_intercepts": np.float32([4])}
    changed = replace_weights(model, new)
    attributes = {a.name: list(a.floats) for a in changed.graph.node[0].attribute if a.floats}
    assert attributes == {"coefficients": [-1, -2, -3, 1, 2, 3], "intercepts": [-4, 4]}
    assert_same(changed, ROWS)


@pytest.mark.parametrize("zero", [(0, 0, 0), (0, 0, -1), (5, 0, 0)])
def test_softmax_zero_at_zero(zero):
    """Scores of exactly 0 are left out; where all are 0 the result is NaN, as it was."""
    model = classifier(3, "SOFTMAX_ZERO", [1, 2, 3], [1.0, 0, 0, -1.0, 0, 0, 0, 0, 0], list(map(float, zero)))
    assert_same(model, ROWS)


def test_ties_go_to_the_first_label():
    model = classifier(3, "NONE", [4, 5, 6], [0.0] * 9, [1.0, 1.0, 0.0])
    assert_same(model, ROWS)
    model = classifier(1, "NONE", [4, 5], [0.0] * 3, [0.0])
    assert_same(model, ROWS)
    model = classifier(2, "LOGISTIC", [4, 5], [0.0] * 6, [0.0, 0.0])
    assert_same(model, ROWS)


def test_single_row_logistic_follows_the_runtime():
    model = classifier(1, "LOGISTIC", [0, 1], [0.5, -0.25, 0.3], [0.05])
    scores = ROWS @ np.float32([0.5, -0.25, 0.3]) + np.float32(0.05)
    for applies, expected in ((True, 1 / (1 + np.exp(-scores))), (False, scores)):
        ir_model = ConvertLinearOperatorsPass(applies)(to_ir(model)).model
        p = run(to_proto(ir_model), ROWS)[1]
        np.testing.assert_allclose(p, np.stack([1 - expected, expected], axis=1), rtol=1e-5)
    version = tuple(map(int, onnxruntime.__version__.split(".")[:2]))
    assert _runtime_applies_logistic() is (version >= (1, 27))


@pytest.mark.parametrize("case", ["labels", "coefficients", "no coefficients"])
def test_what_makes_no_sense_is_left_alone(case, caplog):
    coefficients, labels = {"labels": (9, [1, 2]), "coefficients": (7, [1, 2, 3])}.get(case, (9, [1, 2, 3]))
    model = to_ir(classifier(3, "NONE", labels, [1.0] * coefficients, [0.0] * 3))
    if case == "no coefficients":
        del model.graph.node(0).attributes["coefficients"]
    assert not ConvertLinearOperatorsPass()(model).modified
    assert "left as it is" in caplog.text


def test_one_dimensional_input():
    model = classifier(3, "SOFTMAX", [1, 2, 3], rank=1)
    assert_same(model, ROWS[0])
    model = one_node(
        "LinearRegressor", [("y", TensorProto.FLOAT)], rank=1, coefficients=[1.0, 2.0, 3.0], intercepts=[0.5]
    )
    assert_same(model, ROWS[0])


def test_unused_label():
    model = classifier(3, "SOFTMAX", [1, 2, 3])
    del model.graph.output[0]
    prepared = assert_same(model, ROWS)
    assert [n.op_type for n in prepared.graph.node] == ["Gemm", "Softmax"]


# -- Scaler, Normalizer ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("rank", [1, 2])
def test_scaler(dtype, columns, rank):
    model = one_node(
        "Scaler", [("y", TensorProto.FLOAT)], dtype, rank=rank, offset=[1.0, 2.0, 3.0][:columns], scale=[0.5, 0.3, 7.0][:columns]
    )  # fmt: skip
    x = (ROWS * 3).astype(dtype)
    assert_same(model, x[0] if rank == 1 else x)
    assert weights(model) == {}


def test_scaler_in_double_does_not_cancel():
    """As in onnxruntime, float64 inputs are shifted before they are rounded to float32."""
    model = one_node("Scaler", [("y", TensorProto.FLOAT)], "float64", offset=[2.0**24] * 3, scale=[1.0] * 3)
    assert_same(model, 2.0**24 + ROWS.astype(np.float64))


@pytest.mark.parametrize("norm", ["MAX", "L1", "L2"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [1, 2])
def test_normalizer(norm, dtype, rank):
    model = one_node("Normalizer", [("y", TensorProto.FLOAT)], dtype, rank=rank, norm=norm)
    x = np.concatenate([ROWS, [[-1, 0, -2], [1e-30, 0, 0]]]).astype(dtype)
    for rows in x if rank == 1 else [x]:
        assert_same(model, rows)


def test_scaler_between_is_no_weight_either():
    """Marked in the model, so that it is not taken for a weight when the prepared form is read again."""
    model = one_node("Normalizer", [("y", TensorProto.FLOAT)], norm="L2")
    model.graph.node.append(
        helper.make_node("Scaler", ["y"], ["s"], domain="ai.onnx.ml", offset=[1.0] * 3, scale=[2.0] * 3)
    )
    model.graph.node.append(
        helper.make_node(
            "LinearRegressor", ["s"], ["z"], domain="ai.onnx.ml", coefficients=[1.0] * 3, intercepts=[0.5]
        )
    )
    model.graph.output[0].name = "z"
    assert list(weights(model)) == ["z_coefficients", "z_intercepts"]
    prepared = to_proto(prepare(model))
    assert list(weights(prepared)) == list(weights(prepared.SerializeToString())) == list(weights(model))
    assert list(weights(to_proto(prepare(prepared, opset=21)))) == list(weights(model))


# -- names and places ------------------------------------------------------------------------


def test_names():
    one = {"domain": "ai.onnx.ml", "coefficients": [1.0] * 3, "intercepts": [0.5]}
    graph = helper.make_graph(
        [
            helper.make_node("LinearRegressor", ["x"], ["a"], **one),
            helper.make_node("LinearRegressor", ["x"], ["b"], name="same", **one),
            helper.make_node("LinearRegressor", ["x"], ["c"], name="same", **one),
            helper.make_node("Identity", ["a"], ["same_coefficients"]),
        ],
        "g", [helper.make_tensor_value_info("x", 1, [None, 3])],
        [helper.make_tensor_value_info(n, 1, [None, 1]) for n in ("b", "c", "same_coefficients")],
    )  # fmt: skip
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 1)], ir_version=8
    )
    names = [
        "a_coefficients", "a_intercepts", "same_coefficients_1", "same_intercepts", "same_coefficients_2", "same_intercepts_1",
    ]  # fmt: skip
    assert list(weights(model)) == names
    assert list(weights(to_proto(prepare(model)))) == names
    renamed = rename_weights(model, {"same_coefficients_2": "W", "a_intercepts": "é/ü"})
    assert list(weights(renamed)) == [*names[:1], "é/ü", *names[2:4], "W", names[5]]
    assert [n.op_type for n in renamed.graph.node] == [n.op_type for n in model.graph.node]
    assert list(weights(to_proto(prepare(renamed)))) == list(weights(renamed))


def test_inside_a_branch():
    one = {"domain": "ai.onnx.ml", "coefficients": [1.0, 2.0, 3.0], "intercepts": [0.5]}

    def branch(name, **more):
        node = helper.make_node("LinearRegressor", ["x"], ["y"], **{**one, **more})
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info("y", 1, None)])

    node = helper.make_node(
        "If", ["c"], ["z"], then_branch=branch("t"), else_branch=branch("e", coefficients=[3.0, 2.0, 1.0])
    )
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", 1, [None, 3]), helper.make_tensor_value_info("c", 9, [])],
        [helper.make_tensor_value_info("z", 1, [None, 1])],
    )  # fmt: skip
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 1)], ir_version=8
    )
    prepared = to_proto(prepare(model))
    assert sorted(weights(model)) == sorted(weights(prepared))
    assert len(weights(model)) == 4
    for condition in (True, False):
        feeds = {"x": ROWS, "c": np.array(condition)}
        for m in (model, prepared):
            session = onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"])
            expected = ROWS @ np.float32([[1], [2], [3]] if condition else [[3], [2], [1]]) + 0.5
            np.testing.assert_allclose(session.run(None, feeds)[0], expected, rtol=1e-6)


def test_nothing_to_do():
    model = to_ir(helper.make_model(helper.make_graph([], "g", [], [])))
    assert not ConvertLinearOperatorsPass()(model).modified
    assert isinstance(model, ir.Model)
