"""Options in text mean the same wherever a name is taken; messages say the way out."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

from onnxcustom import OnnxClassifier, OnnxRegressor, TrainingStep, optim
from onnxcustom.exceptions import ConvergenceError, InvalidParameterError, UnknownNameError
from onnxcustom.objective import BaseLearningLoss, BaseLearningPenalty

pytest.importorskip("onnxruntime")
LINE = """<ir_version: 8, opset_import: ["": 17]> g (float[N, 2] x) => (float[N, 1] y)
    <float[2, 1] w = {1, -1}> { y = MatMul(x, w) }"""
FRAMES = """<ir_version: 8, opset_import: ["": 17]> g (float[N, 4, 2] x) => (float[N, 4, 3] y)
    <float[2, 3] w = {1, -1, 0, 2, 1, 1}> { y = MatMul(x, w) }"""
X = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
Y = X.sum(axis=1, keepdims=True)


def trained(**options) -> np.ndarray:
    step = TrainingStep(onnx.parser.parse_model(LINE), **options)
    for _ in range(10):
        step.run(X, Y)
    return step.weights()["w"]


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ({"optimizer": "adam:beta1=0.8,learning_rate=0.1"}, {"optimizer": optim.Adam(0.1, beta1=0.8)}),
        ({"optimizer": "SGD:momentum=0.5"}, {"optimizer": optim.SGD(momentum=0.5)}),
        ({"penalty": "l2:0.3"}, {"penalty": BaseLearningPenalty.select("l2", l2=0.3)}),
        (
            {"penalty": "elastic:l1=0.2,l2=0.1"},
            {"penalty": BaseLearningPenalty.select("elastic", l1=0.2, l2=0.1)},
        ),
        ({"penalty": {"w": "l1:l1=0.2"}}, {"penalty": {"w": BaseLearningPenalty.select("l1", l1=0.2)}}),
        ({"loss": "huber:delta=0.5"}, {"loss": BaseLearningLoss.select("huber", delta=0.5)}),
    ],
)
def test_options_in_text(text, meant):
    np.testing.assert_array_equal(trained(**text), trained(**meant))
    model = onnx.parser.parse_model(LINE)
    same = {"max_iter": 3, "random_state": 0}
    some, other = (OnnxRegressor(model, **same, **options).fit(X, Y) for options in (text, meant))
    np.testing.assert_array_equal(some.weights_["w"], other.weights_["w"])


def test_every_way_to_a_rule_reads_options():
    rules = [
        optim.create("adam:beta1=0.8"),
        optim.BaseLearningRate.select("adam:beta1=0.8"),
        optim.BaseLearningRate.create_optimizer("adam:beta1=0.8"),
        optim.select_optimizer("adam:beta1=0.8"),
    ]
    assert {rule.beta1 for rule in rules} == {0.8}
    assert optim.BaseLearningRate.select("SGD:eta0=0.2").eta0 == 0.2
    assert optim.create("adam:beta1=0.8", beta1=0.7).beta1 == 0.7


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"optimizer": "adam:nothing=1"}, "nothing"),
        ({"optimizer": "adam:"}, "NAME:option=value"),
        ({"optimizer": "adm:beta1=0.8"}, "Did you mean 'adam'"),
        ({"penalty": "l2:alpha=0.1"}, "it has .*'l2'"),
        ({"penalty": "elastic:0.1"}, "NAME:option=value"),
    ],
)
def test_what_is_wrong_with_them(options, told):
    with pytest.raises(UnknownNameError, match=told):
        TrainingStep(onnx.parser.parse_model(LINE), **options)


def test_labels_that_do_not_fit_into_the_frames_name_the_way_out():
    model = onnx.parser.parse_model(FRAMES)
    x, y = np.zeros((2, 4, 2), np.float32), np.array([[1, 1, 1], [1, 2, -1]])
    step = TrainingStep(model, "ctc")
    before = step.weights()["w"]
    with pytest.raises(ConvergenceError, match="'ctc:zero_infinity=true'"):
        step.run(x, y)
    np.testing.assert_array_equal(step.weights()["w"], before)
    assert np.isfinite(TrainingStep(model, "ctc:zero_infinity=true").run(x, y))


def test_a_classifier_does_not_take_sequences():
    x, y = np.zeros((2, 4, 2), np.float32), np.array([[1, 2], [1, 2]])
    with pytest.raises(InvalidParameterError, match=r"OnnxRegressor takes it.*best_path"):
        OnnxClassifier(onnx.parser.parse_model(FRAMES), loss="ctc").fit(x, y)
