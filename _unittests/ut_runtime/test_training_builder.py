"""The builder of onnxruntime-training."""

from __future__ import annotations

import onnx
import pytest
from onnxruntime.capi import _pybind_state as pybind

from onnxcustom.exceptions import DifferentiationError, MissingRuntimeError
from onnxcustom.runtime import build_gradient_model, training_available

TEXT = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N] x) => (float[N] y) <float[1] w = {{2}}> {{ z = Mul(x, w) y = {op}(z) }}"""


def model(op):
    return onnx.parser.parse_model(TEXT.format(op=op)).SerializeToString()


@pytest.mark.ort
def test_builds_a_gradient():
    made = onnx.load_model_from_string(build_gradient_model(model("Tanh"), ["x"], ["w"]))
    assert [o.name for o in made.graph.output] == ["x_grad", "w_grad"]
    assert "YieldOp" in {n.op_type for n in made.graph.node}


@pytest.mark.ort
@pytest.mark.parametrize("data", [model("Mish"), b"no model"])
def test_what_the_builder_refuses_is_our_error(data):
    with pytest.raises(DifferentiationError, match="onnxruntime-training cannot"):
        build_gradient_model(data, ["x"], ["w"])


def test_plain_onnxruntime(monkeypatch):
    monkeypatch.delattr(pybind, "OrtModuleGraphBuilder", raising=False)
    assert not training_available()
    with pytest.raises(MissingRuntimeError, match="training"):
        build_gradient_model(b"", [], [])
