"""The choice between engines, and the names of a gradient graph."""

from __future__ import annotations

import pickle

import onnx
import pytest

from onnxcustom.exceptions import MissingRuntimeError, UnknownNameError
from onnxcustom.gradient import ENGINES, GradientNames, Verdict, gradient_graph, select_engine
from onnxcustom.gradient.interface import Engine
from onnxcustom.runtime import training_builder

MODEL = onnx.parser.parse_model(
    """<ir_version: 8, opset_import: ["": 17]> g (float[N,2] x) => (float[N,2] y)
    <float[2] w = {1, 2}> { y = Mul(x, w) }"""
)


@pytest.mark.parametrize("name", ["onnx", pytest.param("ort", marks=pytest.mark.ort)])
def test_engines_by_name(name):
    assert select_engine(name) is ENGINES[name]
    assert select_engine(ENGINES[name]) is ENGINES[name]


def test_engine_of_a_model():
    assert isinstance(select_engine("auto", MODEL), Engine)
    with pytest.raises(UnknownNameError, match="'auto'"):
        select_engine("jax")


def test_without_the_training_build(monkeypatch):
    monkeypatch.setattr(training_builder, "_pybind", lambda: object())
    assert "1.19.2" in ENGINES["ort"].unavailable()
    with pytest.raises(MissingRuntimeError, match=r"1\.19\.2"):
        gradient_graph(MODEL, engine="ort")


def test_auto_without_any_engine(monkeypatch):
    only = {"ort": ENGINES["ort"]}
    ENGINES_COPY = dict(ENGINES)
    monkeypatch.setattr(training_builder, "_pybind", lambda: object())
    try:
        ENGINES.clear()
        ENGINES.update(only)
        with pytest.raises(MissingRuntimeError, match="No gradient engine"):
            select_engine("auto", MODEL)
    finally:
        ENGINES.clear()
        ENGINES.update(ENGINES_COPY)


def test_verdicts():
    assert Verdict("rule").passes
    assert Verdict("function").passes
    assert Verdict("non-differentiable").stops
    assert not Verdict("refused").passes


def test_names_round_trip():
    made = GradientNames.choose("xk", ["w"], ["y"], ["y"], ["x", "w"], {"x", "k", "w", "y", "x_grad"}, "ort")
    assert made.gradients == {"x": "x_grad_1", "w": "w_grad"}
    assert made.seeds == {"y": "y_grad"}
    model = onnx.ModelProto()
    entry = model.metadata_props.add()
    entry.key, entry.value = "onnxcustom.gradient", made.to_json()
    assert GradientNames.of(model) == made
    assert pickle.loads(pickle.dumps(made)) == made
