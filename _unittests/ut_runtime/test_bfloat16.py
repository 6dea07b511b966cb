"""bfloat16 where onnxruntime has no kernels: which node, which tensor and what to do, before any session."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx.parser
import onnx.reference
import pytest

from onnxcustom import (
    OnnxClassifier,
    OnnxRegressor,
    OrtGradientForwardBackward,
    TrainingStep,
    gradient_graph,
    save,
)
from onnxcustom.cli import main
from onnxcustom.exceptions import EvaluationError, InvalidModelError, OnnxCustomError
from onnxcustom.runtime import create_session
from onnxcustom.runtime.bfloat16 import check_bfloat16
from onnxcustom.runtime.devices import parse_device
from onnxcustom.testing.precision import to_single

ort = pytest.importorskip("onnxruntime")

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
WHOLE = f"""{HEAD} g (bfloat16[N, 2] x) => (bfloat16[N, 1] y) <bfloat16[2, 1] w = {{1, 2}}> {{
    [product] y = MatMul(x, w) }}"""
FROZEN = f"""{HEAD} g (float[N, 2] x) => (float[N, 1] y)
<bfloat16[2, 2] f = {{1, 2, 3, 4}}, float[2, 1] w = {{1, 2}}> {{
    c = Cast<to = 1>(f) h = MatMul(x, c) y = MatMul(h, w) }}"""
X, Y = np.ones((4, 2), np.float32), np.ones((4, 1), np.float32)
WORDS = "(bfloat16|BFLOAT16).*Convert the model to float32"


def parse(text=WHOLE):
    return onnx.parser.parse_model(text)


@pytest.fixture
def no_session(monkeypatch):
    """Sessions of anything but a single node, which is how kernels are asked for, are not made."""
    made = ort.InferenceSession

    def asked(source, *args, **kwargs):
        model = onnx.load_model_from_string(source)
        assert model.graph.name == "probe"
        return made(source, *args, **kwargs)

    monkeypatch.setattr(ort, "InferenceSession", asked)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_before_any_session(dtype, no_session):
    x, y = X.astype(dtype), Y.astype(dtype)
    calls = [
        lambda: TrainingStep(parse()),
        lambda: OnnxRegressor(parse()).fit(x, y),
        lambda: OnnxClassifier(parse()).fit(x, [0, 1, 0, 1]),
        lambda: OrtGradientForwardBackward(parse(), engine="onnx"),
        lambda: create_session(gradient_graph(parse(), engine="onnx")),
    ]
    for call in calls:
        with pytest.raises(OnnxCustomError, match=WORDS):
            call()


def test_the_message_names_node_and_tensor():
    with pytest.raises(EvaluationError, match=r"Tensor 'x' of node .*\(MatMul\).*no kernel"):
        check_bfloat16(parse(), parse_device("cpu"))
    inner = f"""{HEAD} g (bool c, float[2] x) => (float[2] y) {{
        y = If (c) <
            then_branch = a () => (float[2] p) {{
                b = Cast<to = 16>(x) e = Mul(b, b) p = Cast<to = 1>(e) }},
            else_branch = d () => (float[2] q) {{ q = Identity(x) }}> }}"""
    with pytest.raises(EvaluationError, match=r"Tensor 'b' of node .*\(Mul\)"):
        check_bfloat16(parse(inner), parse_device("cpu"))


def test_where_it_works_it_goes_on():
    """A frozen table in bfloat16 that is made float32: as NumPy computes it."""
    w, f = np.float32([[1], [2]]), np.float32([[1, 2], [3, 4]])
    model = parse(FROZEN)
    (table,) = [t for t in model.graph.initializer if t.name == "f"]
    table.ClearField("int32_data")  # the parser takes literals for bits
    table.raw_data = f.astype(ml_dtypes.bfloat16).tobytes()
    step = TrainingStep(model, weights=["w"], learning_rate=0.001)
    for _ in range(10):
        h = X @ f
        loss = float(((h @ w - Y) ** 2).mean() / 2)
        assert step.run(X, Y) == pytest.approx(loss, rel=1e-4)
        w = w - 0.001 * h.T @ (h @ w - Y) / 4
    np.testing.assert_allclose(step.weights()["w"], w, rtol=1e-3)
    OrtGradientForwardBackward(parse(FROZEN), weights_to_train=["w"])


def test_weights_and_inputs_that_are_cast_are_refused():
    """Kernels are there, but nothing feeds such an input or updates such a weight."""
    cast = f"""{HEAD} g (bfloat16[N, 2] x) => (float[N, 1] y) <float[2, 1] w = {{1, 2}}> {{
        c = Cast<to = 1>(x) y = MatMul(c, w) }}"""
    with pytest.raises(InvalidModelError, match=f"Input 'x' is {WORDS}"):
        TrainingStep(parse(cast))
    cast = f"""{HEAD} g (float[N, 2] x) => (float[N, 1] y) <bfloat16[2, 1] w = {{1, 2}}> {{
        c = Cast<to = 1>(w) y = MatMul(x, c) }}"""
    with pytest.raises(InvalidModelError, match=f"Weight 'w' is {WORDS}"):
        TrainingStep(parse(cast))


def test_the_way_out_is_one():
    step = TrainingStep(to_single(parse()), learning_rate=0.01)
    assert step.run(X, Y) > step.run(X, Y)


def test_data_in_bfloat16_trains_float32():
    text = WHOLE.replace("bfloat16", "float")
    data = X.astype(ml_dtypes.bfloat16), Y.astype(ml_dtypes.bfloat16)
    a, b = OnnxRegressor(parse(text), max_iter=3).fit(*data), OnnxRegressor(parse(text), max_iter=3).fit(X, Y)
    np.testing.assert_array_equal(a.weights_["w"], b.weights_["w"])


def test_the_gradient_is_a_model_all_the_same():
    model = gradient_graph(parse(), engine="onnx")
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize("command", ["train", "predict", "evaluate"])
def test_command_line(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save(parse(), "m.onnx")
    (tmp_path / "rows.csv").write_text("a,b,y\n1,2,3\n4,5,6\n")
    more = ["--columns", "a,b"] if command == "predict" else ["--target", "y"]
    with pytest.raises(SystemExit) as ended:
        main([command, "m.onnx", "rows.csv", *more])
    assert ended.value.code != 0
    said = capsys.readouterr().err
    assert "is bfloat16" in said
    assert "Convert the model to float32" in said
    assert "Traceback" not in said
