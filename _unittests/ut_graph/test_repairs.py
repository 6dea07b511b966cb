"""What onnxruntime runs although the checker would not have it: same numbers here as there."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

import onnxcustom
from onnxcustom.exceptions import InvalidModelError
from onnxcustom.graph.files.repairs import untyped

W = np.array([[1, 2], [3, -4], [0.5, 1]], np.float32)
X = np.array([[1, -2, 3], [4, 5, -6]], np.float32)


def plain(domain: str = "", **options) -> onnx.ModelProto:
    """z = Relu(x w), or another operator in place of MatMul."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node(options.get("last", "Relu"), ["h"], ["z"], domain=domain),
    ]
    x = helper.make_tensor_value_info("x", 1, ["N", 3])
    z = helper.make_tensor_value_info("z", 1, ["N", 2])
    graph = helper.make_graph(nodes, "g", [x], [z], [numpy_helper.from_array(options.get("w", W), "w")])
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=8)


def untyped_output(model):
    model.graph.output[0].ClearField("type")


def untyped_output_of_an_input(model):
    model.graph.output.append(onnx.ValueInfoProto(name="x"))


def untyped_output_of_a_weight(model):
    model.graph.output.append(onnx.ValueInfoProto(name="w"))


def graph_without_name(model):
    model.graph.name = ""


def nodes_in_reverse(model):
    model.graph.node.reverse()


def branches_read_what_comes_later(model):
    graph = onnx.parser.parse_graph(
        """g (float[N, 3] x, bool c) => (float[N, 2] z) {
            z = If(c) <then_branch = t () => (float[N, 2] a) { a = Relu(h) },
                       else_branch = e () => (float[N, 2] b) { b = Neg(h) }>
            h = MatMul(x, w) }"""
    )
    graph.initializer.extend(model.graph.initializer)
    model.graph.CopyFrom(graph)


def old_ir_without_inputs(model):
    model.ir_version = 3


def untyped_input_with_initializer(model):
    model.graph.input.append(onnx.ValueInfoProto(name="w"))


CHANGES = [
    untyped_output,
    untyped_output_of_an_input,
    untyped_output_of_a_weight,
    graph_without_name,
    nodes_in_reverse,
    branches_read_what_comes_later,
    old_ir_without_inputs,
    untyped_input_with_initializer,
]


def outputs(model: onnx.ModelProto) -> list[np.ndarray]:
    """What a bare onnxruntime computes."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {"x": X, "c": np.array(True)}
    return session.run(None, {i.name: feeds[i.name] for i in session.get_inputs() if i.name in feeds})


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("form", ["proto", "bytes", "file"])
def test_loads_and_computes_as_onnxruntime_does(change, form, tmp_path):
    model = plain()
    change(model)
    before = model.SerializeToString()
    (tmp_path / "model.onnx").write_bytes(before)
    given = {"proto": model, "bytes": before, "file": tmp_path / "model.onnx"}[form]
    loaded = onnxcustom.load(given)
    assert model.SerializeToString() == before
    onnx.checker.check_model(loaded)
    assert [o.name for o in loaded.graph.output] == [o.name for o in model.graph.output]
    for ours, theirs in zip(outputs(loaded), outputs(model), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    (weight,) = onnxcustom.weights(given).values()
    np.testing.assert_array_equal(weight, W)


@pytest.mark.parametrize("change", CHANGES)
def test_is_differentiated(change):
    model = plain()
    change(model)
    gradient = onnxcustom.gradient_graph(model)
    session = ort.InferenceSession(gradient.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {"x": X, "w": W, "c": np.array(True), "z_grad": np.ones((2, 2), np.float32)}
    for info in session.get_inputs():  # the gradient of an output that is the input, or the weight
        if info.name not in feeds:
            feeds[info.name] = np.zeros_like(feeds[info.name[0]]) if "grad" in info.name else W
    name = next(o.name for o in session.get_outputs() if o.name.startswith("w") and o.shape == [3, 2])
    found = session.run([name], {i.name: feeds[i.name] for i in session.get_inputs()})[0]
    np.testing.assert_allclose(found, X.T @ (X @ W > 0), rtol=1e-6)


def test_large_weights_keep_their_shapes():
    """A weight too large to be shown to shape inference: the output has its columns all the same."""
    model = plain(w=np.ones((3, 700), np.float32))
    untyped_output(model)
    shape = onnxcustom.load(model).graph.output[0].type.tensor_type.shape
    assert [d.dim_param or d.dim_value for d in shape.dim] == ["N", 700]


def test_external_data(tmp_path):
    model = plain(w=np.ones((3, 700), np.float32))
    untyped_output(model)
    path = tmp_path / "model.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="data")
    loaded = onnxcustom.load(path)
    assert not untyped(loaded)
    np.testing.assert_array_equal(onnxcustom.weights(path)["w"], 1)


@pytest.mark.parametrize("last", ["Gelu", "FastGelu", "QuickGelu"])
def test_operators_of_onnxruntime(last):
    model = plain("com.microsoft", last=last)
    untyped_output(model)
    loaded = onnxcustom.load(model)
    assert loaded.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    step = onnxcustom.TrainingStep(model, "squared_error", "sgd", learning_rate=0.01)
    losses = [step.run(X, np.zeros((2, 2), np.float32)) for _ in range(10)]
    assert losses[-1] < losses[0]


def test_types_that_nobody_knows():
    model = plain("elsewhere", last="Unheard")
    model.opset_import.append(helper.make_opsetid("elsewhere", 1))
    untyped_output(model)
    with pytest.raises(InvalidModelError, match="output 'z' has no type"):
        onnxcustom.load(model)


def test_cycles_stay_an_error():
    model = plain()
    model.graph.node[0].input[0] = "z"
    untyped_output(model)
    with pytest.raises(InvalidModelError, match="sorted"):
        onnxcustom.load(model)


def test_maps_and_sequences():
    """The outputs of a classifier: labels, and a list of dictionaries."""
    options = {"coefficients": [1.0] * 6, "intercepts": [0.0, 1.0], "classlabels_ints": [0, 1]}
    nodes = [
        helper.make_node("LinearClassifier", ["x"], ["label", "p"], domain="ai.onnx.ml", **options),
        helper.make_node("ZipMap", ["p"], ["z"], domain="ai.onnx.ml", classlabels_int64s=[0, 1]),
    ]
    x = helper.make_tensor_value_info("x", 1, ["N", 3])
    graph = helper.make_graph(nodes, "g", [x], [onnx.ValueInfoProto(name=n) for n in ("label", "z")])
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    loaded = onnxcustom.load(helper.make_model(graph, opset_imports=domains, ir_version=8))
    label, z = (o.type for o in loaded.graph.output)
    assert label.tensor_type.elem_type == onnx.TensorProto.INT64
    assert z.sequence_type.elem_type.map_type.key_type == onnx.TensorProto.INT64
