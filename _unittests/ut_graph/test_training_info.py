"""Training information of a user's model: kept by what changes the model, renamed with its weights."""

from __future__ import annotations

import pickle

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcustom import OnnxRegressor, TrainingStep, gradient_graph, load, replace_weights, save
from onnxcustom.graph import prepare, rename_weights, replace_constants, to_ir, to_proto

X, Y = np.ones((4, 3), np.float32), np.ones((4, 1), np.float32)


def made(opset: int = 18) -> onnx.ModelProto:
    """A line with an algorithm that reads its weight, inside a branch as well."""
    value = helper.make_tensor_value_info
    inner = helper.make_graph(
        [helper.make_node("Mul", ["W", "W"], ["squared"])],
        "inner",
        [],
        [value("squared", TensorProto.FLOAT, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["own"], ["copied"])],
        "other",
        [],
        [value("copied", TensorProto.FLOAT, None)],
    )
    algorithm = helper.make_graph(
        [
            helper.make_node("If", ["flag"], ["branch"], then_branch=inner, else_branch=other),
            helper.make_node("Add", ["W", "branch"], ["W_new"]),
        ],
        "algorithm",
        [],
        [value("W_new", TensorProto.FLOAT, [3, 1])],
        [
            numpy_helper.from_array(np.array(True), "flag"),
            numpy_helper.from_array(np.ones((300, 1), np.float32), "own"),
        ],
    )
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["X", "W"], ["Y"])],
        "g",
        [value("X", TensorProto.FLOAT, ["N", 3])],
        [value("Y", TensorProto.FLOAT, ["N", 1])],
        [numpy_helper.from_array(np.ones((3, 1), np.float32), "W")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    info = model.training_info.add()
    info.algorithm.CopyFrom(algorithm)
    info.update_binding.add(key="W", value="W_new")
    info.initialization_binding.add(key="W", value="fresh")
    return model


def step_of(model: onnx.ModelProto) -> TrainingStep:
    step = TrainingStep(model, "squared_error", "adam", learning_rate=0.1)
    for _ in range(10):
        step.run(X, Y)
    return step


WAYS = {
    "to_ir": lambda m: to_proto(to_ir(m)),
    "a copy": lambda m: to_proto(to_ir(to_ir(m))),
    "prepare": lambda m: to_proto(prepare(m)),
    "another opset": lambda m: to_proto(prepare(m, opset=20)),
    "replace_weights": lambda m: replace_weights(m, {"W": np.zeros((3, 1), np.float32)}),
    "replace_constants": lambda m: replace_constants(m, {"W": np.zeros((3, 1), np.float32)}),
    "a step": lambda m: step_of(m).trained_model(),
    "a pickled step": lambda m: pickle.loads(pickle.dumps(step_of(m))).trained_model(),
    "an estimator": lambda m: OnnxRegressor(m, max_iter=1).fit(X, Y).get_trained_onnx(),
}


@pytest.mark.parametrize("way", WAYS)
def test_kept(way: str) -> None:
    model = made()
    assert list(WAYS[way](model).training_info) == list(model.training_info)


def test_kept_where_the_runtime_wants_an_older_opset() -> None:
    newest = onnx.defs.onnx_opset_version()
    model = made(newest)
    assert list(step_of(model).trained_model().training_info) == list(model.training_info)


@pytest.mark.parametrize("external", [None, True])
def test_kept_in_files(tmp_path, external) -> None:
    model, path = made(), tmp_path / "model.onnx"
    save(model, path, external_data=external)
    assert list(load(path).training_info) == list(model.training_info)
    assert list(to_proto(to_ir(path)).training_info) == list(model.training_info)
    # A file whose training information has data outside, as onnx writes it.
    onnx.save(model, path, save_as_external_data=True, size_threshold=0, location="all.bin")
    assert list(to_proto(to_ir(path)).training_info) == list(load(path).training_info)


def test_renamed_with_the_weight() -> None:
    (info,) = rename_weights(made(), {"W": "weight"}).training_info
    assert [(b.key, b.value) for b in info.update_binding] == [("weight", "W_new")]
    assert [(b.key, b.value) for b in info.initialization_binding] == [("weight", "fresh")]
    branch, addition = info.algorithm.node
    assert list(addition.input) == ["weight", "branch"]
    read = {a.name: list(a.g.node[0].input) for a in branch.attribute}
    assert read == {"then_branch": ["weight", "weight"], "else_branch": ["own"]}


def test_a_name_of_the_algorithm_itself_stays() -> None:
    model = made()
    (info,) = model.training_info
    info.algorithm.initializer.add().CopyFrom(numpy_helper.from_array(np.ones((3, 1), np.float32), "W"))
    (renamed,) = rename_weights(model, {"W": "weight"}).training_info
    assert renamed.algorithm == info.algorithm


def test_graphs_for_training_are_another_model() -> None:
    model = made()
    assert not gradient_graph(model).training_info
    assert not step_of(model).model.training_info
