# ruff: noqa: E501 - a node of ONNX text stays on its line
"""What mutated models brought to light outside of the reading of models, each once."""

import json

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper

from onnxcustom import TrainingStep, gradient_graph, gradient_report, load
from onnxcustom.exceptions import (
    DifferentiationError,
    EvaluationError,
    GradientNotImplementedError,
    InvalidModelError,
)
from onnxcustom.gradient import METADATA_KEY, GradientNames
from onnxcustom.graph import layers, prepare
from onnxcustom.runtime import create_session


def model(nodes, given="float[N, 4, 6] x", made="float[A, B, C] y", data="", opset=18):
    return onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": {opset}, "com.microsoft": 1]> g ({given}) => ({made}) <{data}> {{ {nodes} }}'
    )


def zeros(name, *shape):
    return f"float[{', '.join(map(str, shape))}] {name} = {{{', '.join(['0'] * int(np.prod(shape)))}}}"


@pytest.mark.parametrize(
    ("nodes", "data"),
    [
        ("y = com.microsoft.FusedMatMul(x)", ""),
        ("y = com.microsoft.BiasGelu(x, b, b)", zeros("b", 6)),
        ("y = com.microsoft.SkipLayerNormalization(x)", ""),
        ("y, z = com.microsoft.FusedConv(x, b)", zeros("b", 6)),
    ],
)
def test_operators_that_no_schema_checks(nodes, data):
    """The rule, or what the operator is replaced by, fails; the error names the node and keeps the cause."""
    made = model(nodes, data=data)
    if ", z =" in nodes:
        made.graph.output.append(helper.make_tensor_value_info("z", 1, [1]))
    with pytest.raises((DifferentiationError, InvalidModelError), match=made.graph.node[0].op_type) as caught:
        gradient_graph(made, engine="onnx")
    cause = caught.value.__cause__
    assert cause is None or str(cause) in str(caught.value)


def test_a_rule_that_fails_names_its_node():
    from onnxcustom.gradient import rule
    from onnxcustom.gradient.registry import _RULES

    @rule("Nothing", domain="fuzz")
    def nothing(op, node, dy):
        raise KeyError("oh")

    try:
        made = model("y = fuzz.Nothing(x)")
        made.opset_import.append(helper.make_opsetid("fuzz", 1))
        with pytest.raises(
            DifferentiationError, match=r"Nothing.*its rule fails on it \(KeyError: 'oh'\)"
        ) as caught:
            gradient_graph(made, engine="onnx")
        assert caught.value.op_type == "Nothing"
        assert isinstance(caught.value.__cause__, KeyError)
    finally:
        for key in [k for k in _RULES if "Nothing" in k]:
            del _RULES[key]


def test_matrices_as_large_as_a_dimension_squared():
    """The gradient of Resize is a product with a matrix for each axis; of a million pixels it would take terabytes."""
    made = model(
        'y = Resize <mode = "linear"> (x, , s)', "float[1, 1, 1000000] x", data="float[3] s = {1, 1, 2}"
    )
    with pytest.raises(GradientNotImplementedError, match="1,000,000 elements"):
        gradient_graph(made, engine="onnx")


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "null", "[]", "3", "{}", "[" * 100_000, '{"inputs": 3}', '"x"'),
        json.dumps({"inputs": [], "weights": [], "outputs": [], "seeds": {}, "gradients": {}}),
        json.dumps({"inputs": [3], "weights": [], "outputs": [], "seeds": {}, "gradients": {}, "engine": ""}),
        json.dumps(
            {"inputs": [], "weights": [], "outputs": [], "seeds": {"a": 1}, "gradients": {}, "engine": ""}
        ),
        json.dumps({"inputs": [], "weights": {}, "outputs": [], "seeds": {}, "gradients": {}, "engine": ""}),
        json.dumps(
            {
                "inputs": [],
                "weights": [],
                "outputs": [],
                "seeds": {},
                "gradients": {},
                "engine": "",
                "more": 1,
            }
        ),
    ],
)
def test_names_of_a_gradient_graph_come_from_anywhere(text):
    made = model("y = Neg(x)")
    made.metadata_props.add(key=METADATA_KEY, value=text)
    with pytest.raises(InvalidModelError, match=r"is not what onnxcustom\.gradient_graph writes"):
        GradientNames.of(made)


def test_names_of_a_gradient_graph():
    made = gradient_graph(model("y = Mul(x, w)", data="float[6] w = {1, 2, 3, 4, 5, 6}"), engine="onnx")
    names = GradientNames.of(made)
    assert names.weights == ("w",)
    assert GradientNames._read(names.to_json()) == names


@pytest.mark.parametrize(
    "text", ["", "[]", '{"dtype": "float32"}', '{"dtype": 3, "steps": [], "notes": []}', "[" * 100_000]
)
def test_steps_of_a_pipeline_come_from_anywhere(text):
    from onnxcustom import OnnxRegressor
    from onnxcustom.training.from_sklearn import describe_conversion
    from onnxcustom.training.from_sklearn.report import _KEY

    made = model("y = Mul(x, w)", data="float[6] w = {1, 2, 3, 4, 5, 6}")
    made.metadata_props.add(key=_KEY, value=text)
    with pytest.raises(InvalidModelError, match="is not what from_sklearn writes"):
        describe_conversion(OnnxRegressor(made))


def test_attention_without_bias():
    """The kernel of com.microsoft reads it all the same."""
    made = model("y = com.microsoft.Attention <num_heads = 2> (x, w)", data=zeros("w", 6, 18))
    for given in (made, prepare(made)):
        with pytest.raises(EvaluationError, match="has no bias"):
            create_session(given)
    create_session(gradient_graph(made, engine="onnx"))  # is made of other operators


def test_layers_of_an_operator_with_constants_only():
    made = model("y = com.microsoft.BiasGelu(b, b)", data=zeros("b", 6))
    assert isinstance(layers(made), (list, tuple, dict))


def test_training_without_inputs():
    made = model("y = MatMul(x, w)", data=f"{zeros('x', 2, 6)}, {zeros('w', 6, 2)}", made="float[A, B] y")
    del made.graph.input[:]
    with pytest.raises(InvalidModelError, match="no inputs"):
        TrainingStep(made)


def test_an_axis_of_another_type():
    """An operator of a domain that nobody knows may call anything an axis."""
    made = model(
        "z = Mul(x, w)  k = other.Op <axis = 0.5> (z, w)  y = Neg(z)", data="float[6] w = {1, 2, 3, 4, 5, 6}"
    )
    made.opset_import.append(helper.make_opsetid("other", 1))
    step = TrainingStep(made, engine="onnx")
    assert step.run(np.ones((2, 4, 6), np.float32), np.zeros((2, 4, 6), np.float32)) > 0


def test_loop_whose_state_grows_can_be_trained_around():
    made = model(
        "l = Loop(t, , k) <body = b (int64 i, bool c, float[1] h) => (bool d, float[1] o) { d = Identity(c)  o = Concat <axis = 0> (h, h) }>"
        "s = ReduceSum(l)  z = Mul(x, w)  y = Mul(z, s)",
        data="float[6] w = {1, 2, 3, 4, 5, 6}, int64 t = {3}, float[1] k = {1}",
    )
    assert [w.how for w in gradient_report(made, engine="onnx").weights if w.name == "w"] == ["trained"]


def test_opset_that_is_not_known_yet():
    made = model("y = Sin(x)", opset=18)
    made.opset_import[0].version = 255
    made.graph.input[0].type.tensor_type.elem_type = 0
    with pytest.raises(InvalidModelError):
        gradient_report(load(made))


@pytest.mark.parametrize("how", ["SequenceAt(s, p)", "ConcatFromSequence <axis = 2> (e)"])
@pytest.mark.parametrize("position", ["int64 p = {1}", "int64[1] p = {1}", "int64[1, 1] p = {1}"])
def test_a_position_of_one_element(how, position):
    """onnxruntime takes one for a scalar."""
    nodes = f"k = Mul(x, w)  s = SplitToSequence <axis = 2> (k, n)  e = SequenceErase(s, p)  y = {how}"
    data = f"{position}, int64[3] n = {{1, 2, 3}}, float[6] w = {{1, 2, 3, 4, 5, 6}}"
    made = gradient_graph(model(nodes, data=data), engine="onnx")
    names = GradientNames.of(made)
    x = np.arange(48, dtype=np.float32).reshape(2, 4, 6)
    kept = [1, 2] if "At" in how else [0, 3, 4, 5]
    w = np.arange(1, 7, dtype=np.float32)
    seed = np.random.default_rng(0).normal(size=(2, 4, len(kept))).astype(np.float32)
    feeds = {"x": x, "w": w, next(iter(names.seeds.values())): seed}
    session = create_session(made)
    expected_w, expected_x = np.zeros(6, np.float32), np.zeros_like(x)
    expected_w[kept] = (x[..., kept] * seed).sum((0, 1))
    expected_x[..., kept] = seed * w[kept]
    given = {i.name: feeds[i.name] for i in made.graph.input}
    got_w, got_x = session.run([names.gradients["w"], names.gradients["x"]], given)
    np.testing.assert_allclose(got_w, expected_w, rtol=1e-5)
    np.testing.assert_allclose(got_x, expected_x, rtol=1e-5)


@pytest.mark.parametrize("position", ["int64 p = {7}", "int64 p = {-7}", "int64 p = {-9223372036854775808}"])
@pytest.mark.parametrize("operator", ["SequenceErase(s, p)", "SequenceInsert(s, k, p)"])
def test_a_position_outside_of_a_sequence(operator, position):
    made = model(
        f"k = Mul(x, w)  s = SequenceConstruct(k, k)  e = {operator}  y = ConcatFromSequence <axis = 2> (e)",
        data=f"{position}, float[6] w = {{1, 2, 3, 4, 5, 6}}",
    )
    gradient_report(made)
    with pytest.raises(GradientNotImplementedError, match="ConcatFromSequence"):
        gradient_graph(made, engine="onnx")
