"""Phases: against what they mean, by taking the graph apart and running the parts."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from onnxcustom import TrainingStep, gradient_graph
from onnxcustom.exceptions import InvalidModelError
from onnxcustom.graph import to_ir
from onnxcustom.optim import create
from onnxcustom.plotting.phases import PHASES, Roles, node_phases, reads

pytest.importorskip("onnxruntime")

#: Model, arguments of the step.
STEPS = {
    "sgd": ("mlp", {}),
    "as composed": ("mlp", {"passes": False}),
    "momentum": ("mlp", {"optimizer": create("SGD", learning_rate=0.1, momentum=0.9)}),
    "adam": ("mlp", {"optimizer": "adam"}),
    "clipped": ("mlp", {"optimizer": create("Adam", clip_global_norm=1.0)}),
    "accumulated": ("mlp", {"optimizer": create("SGD", learning_rate=0.1, accumulate=2)}),
    "penalty": ("mlp", {"penalty": "l2", "optimizer": "adam"}),
    "log loss": ("sigmoid", {"loss": "log_loss", "sample_weight": True}),
    "tied": ("tied", {}),
    "tied adam": ("tied", {"optimizer": "adam", "passes": False}),
    "rows": ("embedding", {"optimizer": create("SGD", learning_rate=0.1, lazy_update=True)}),
    "statistics": ("normalized", {"batch_norm": "update"}),
    "branches": ("branches", {}),
}


@pytest.fixture(scope="module", params=sorted(STEPS))
def step(request, small_model):
    name, arguments = STEPS[request.param]
    return small_model(name), TrainingStep(small_model(name), **arguments)


def phases_of(proto):
    model = to_ir(proto)
    roles = Roles.of(model)
    return model, roles, node_phases(model, roles)


def names(values):
    return [v.name for v in values]


# -- steps ------------------------------------------------------------------------------------------


def test_phases_run_one_after_the_other(step):
    """Nothing reads what is computed in a later phase, but for the loss, which needs no gradient."""
    model, _, phases = phases_of(step[1].model)
    assert list(phases) == list(model.graph)
    for node, phase in phases.items():
        for value in reads(node):
            if value.producer() in phases:
                assert PHASES.index(phases[value.producer()]) <= PHASES.index(phase), (node.name, value.name)


def test_every_part_is_there(step):
    assert set(phases_of(step[1].model)[2].values()) == set(PHASES)


def test_outputs_are_made_by_their_phase(step):
    model, roles, phases = phases_of(step[1].model)
    made = {name for found in roles.made.values() for name in found} | set(roles.statistics.values())
    for value in model.graph.outputs:
        if value.name == roles.loss:
            assert phases[value.producer()] == "loss"
        elif value.name in made and not value.name.endswith("_indices"):
            assert phases[value.producer()] == "update", value.name


def test_only_updates_read_the_state(step):
    _, roles, phases = phases_of(step[1].model)
    states = {name for kept in roles.kept.values() for name in kept[1:]}
    for node, phase in phases.items():
        if phase != "update":
            assert not states & set(names(reads(node)))


def test_the_forward_phase_predicts_what_the_model_does(step):
    """Its nodes alone, run by onnx's reference, give what the loss of the whole model is taken on."""
    proto, training = step
    if training.modes.batch_norm == "update":
        pytest.skip("normalizes by the batch, other than the model")
    composed = training.model
    _, roles, phases = phases_of(composed)
    forward = {node.outputs[0].name for node, phase in phases.items() if phase == "forward"}
    nodes = [node for node in composed.graph.node if node.output[0] in forward]
    part = onnx.helper.make_graph(
        nodes, "part", composed.graph.input, untyped(roles.predictions), composed.graph.initializer
    )
    rng = np.random.default_rng(0)
    feeds = {}
    for value in proto.graph.input:
        shape = [d.dim_value or 4 for d in value.type.tensor_type.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        feeds[value.name] = (3 * rng.random(shape)).astype(dtype)
    rest = {value.name: np.zeros(1, np.float32) for value in composed.graph.input}
    imports = composed.opset_import
    found = ReferenceEvaluator(part, opsets={d.domain: d.version for d in imports}).run(
        None, {**rest, **feeds, **training.weights()}
    )
    whole = onnx.ModelProto()
    whole.CopyFrom(proto)
    del whole.graph.output[:]
    whole.graph.output.extend(untyped([target.value for target in training.targets]))
    np.testing.assert_allclose(found[0], ReferenceEvaluator(whole).run(None, feeds)[0], rtol=1e-5)


def untyped(names):
    return [onnx.helper.make_empty_tensor_value_info(name) for name in names]


def test_a_known_graph(small_model):
    """Plain descent: gradients of matrices are folded into their updates, those of vectors are not."""
    _, _, phases = phases_of(TrainingStep(small_model("mlp")).model)
    found = {phase: [n.op_type for n, p in phases.items() if p == phase] for phase in PHASES}
    assert found["forward"] == ["Gemm", "Tanh", "Gemm"]
    assert sorted(found["loss"]) == ["Cast", "Div", "Gather", "Mul", "ReduceSumSquare", "Shape", "Sub"]
    assert sorted(found["update"]) == ["Gemm", "Gemm", "Sub", "Sub"]
    backward = {v.name for node, phase in phases.items() if phase == "backward" for v in node.outputs}
    assert {"b0_grad", "b1_grad"} <= backward


@pytest.mark.parametrize("rule", ["adam", "rmsprop", "ftrl", "lars", "signum"])
def test_gradients_end_the_backward_phase(small_model, rule):
    """Where nothing is folded, the gradients have the names differentiation gave them."""
    proto = small_model("mlp")
    graph = gradient_graph(proto, inputs=[])
    gradients = {v.name for v in graph.graph.output if v.name.endswith("_grad")}
    _, _, phases = phases_of(TrainingStep(proto, optimizer=rule).model)
    makers = {v.name: phase for node, phase in phases.items() for v in node.outputs}
    readers = {name: set() for name in gradients}
    for node, phase in phases.items():
        for value in node.inputs:
            if value is not None and value.name in readers:
                readers[value.name].add(phase)
    assert {makers[name] for name in gradients} == {"backward"}
    assert all(phases == {"update"} for phases in readers.values())


def test_factors_of_the_step_count_are_updates(small_model):
    """They see neither data nor gradients: powers of Adam's decay rates."""
    phases = phases_of(TrainingStep(small_model("mlp"), optimizer="adam").model)[2]
    assert {phase for node, phase in phases.items() if node.op_type == "Pow"} == {"update"}


def test_a_step_that_does_not_name_its_predictions(small_model):
    """As older versions wrote them: what the loss needs and no expected value is part of."""
    proto = TrainingStep(small_model("mlp")).model
    (entry,) = [p for p in proto.metadata_props if p.key == "onnxcustom.step"]
    said = json.loads(entry.value)
    del said["predicted"]
    entry.value = json.dumps(said)
    phases = phases_of(proto)[2]
    assert {"Gemm", "Tanh"} <= {node.op_type for node, phase in phases.items() if phase == "forward"}
    assert [n.op_type for n, p in phases.items() if p == "update"].count("Gemm") == 2


# -- others -----------------------------------------------------------------------------------------


def test_an_inference_model_is_forward(any_model):
    _, roles, phases = phases_of(any_model)
    assert roles.kind == "model"
    assert set(phases.values()) == {"forward"}


@pytest.mark.parametrize("engine", ["onnx", pytest.param("ort", marks=pytest.mark.ort)])
def test_a_gradient_graph(small_model, engine):
    model, roles, phases = phases_of(gradient_graph(small_model("mlp"), engine=engine))
    assert roles.kind == "gradient"
    makers = {v.name: phase for node, phase in phases.items() for v in node.outputs}
    assert makers["y"] == "forward"
    assert {makers[v.name] for v in model.graph.outputs if v.name.endswith("_grad")} == {"backward"}
    assert set(phases.values()) == {"forward", "backward"}


@pytest.mark.parametrize("key", ["onnxcustom.step", "onnxcustom.gradient"])
@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "nonsense", '{"inputs": 3}', '{"weights": {"w": 1}}', "[" * 10**5]
)
def test_metadata_of_others(small_model, key, text):
    proto = onnx.ModelProto()
    proto.CopyFrom(small_model("mlp"))
    onnx.helper.set_model_props(proto, {key: text})
    with pytest.raises(InvalidModelError, match=key):
        Roles.of(to_ir(proto))


@pytest.mark.parametrize(
    "wrong", [{"weights": ["w"]}, {"state": {"w": {"m": 3}}}, {"loss": [1]}, {"packs": 1}]
)
def test_a_step_that_says_nonsense(small_model, wrong):
    proto = TrainingStep(small_model("mlp")).model
    (entry,) = [p for p in proto.metadata_props if p.key == "onnxcustom.step"]
    entry.value = json.dumps({**json.loads(entry.value), **wrong})
    with pytest.raises(InvalidModelError, match=r"onnxcustom\.step"):
        Roles.of(to_ir(proto))


def test_what_subgraphs_read(small_model):
    model = to_ir(small_model("branches"))
    node = next(node for node in model.graph if node.op_type == "If")
    assert {v.name for v in reads(node)} == {"deep", "h", "v"}
    node = next(node for node in model.graph if node.op_type == "Loop")
    assert {v.name for v in reads(node)} == {"three", "yes", "z", "w"}
