"""An index beyond the table of an embedding: which input, which row, and nothing has changed."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pandas as pd
import pytest

from onnxcustom import OnnxClassifier, OnnxRegressor, OrtGradientForwardBackward, TrainingStep, save
from onnxcustom.cli import main
from onnxcustom.data import stream
from onnxcustom.exceptions import EvaluationError, InvalidDataError
from onnxcustom.graph import to_ir
from onnxcustom.graph.analysis.lookups import lookups

pytest.importorskip("onnxruntime")

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
WORDS = f"""{HEAD} words (int64[N, 2] i) => (float[N, 1] y)
<float[3, 4] table = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}}, float[8, 1] w = {{1, 1, 1, 1, 1, 1, 1, 1}}> {{
    e = Gather(table, i) shape = Constant<value = int64[2] {{-1, 8}}>() f = Reshape(e, shape)
    y = MatMul(f, w) }}"""
CLASSES = WORDS.replace("float[N, 1] y", "float[N, 1] p").replace(
    "y = MatMul(f, w)", "y = MatMul(f, w) p = Sigmoid(y)"
)
GOOD = np.array([[0, 1], [2, -3], [1, 1], [-1, 2]])
BAD = np.array([[0, 1], [2, 0], [5, 1], [1, 2]])
Y = np.ones((4, 1), np.float32)
TOLD = r"Input 'i' holds 5 in row 2, .*table of 3 .*from -3 to 2"


def parse(text=WORDS):
    return onnx.parser.parse_model(text)


@pytest.mark.parametrize("bad", [BAD, BAD.astype(np.int32), BAD.astype(float), BAD.tolist()])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_steps(bad, optimizer):
    step, other = TrainingStep(parse(), optimizer=optimizer), TrainingStep(parse(), optimizer=optimizer)
    assert step.run(GOOD, Y) == other.run(GOOD, Y)
    for call in (lambda: step.run(bad, Y), lambda: step.predict(bad), lambda: step.scores(bad, Y)):
        with pytest.raises(InvalidDataError, match=TOLD):
            call()
    assert step.iteration == 1
    assert step.run(GOOD, Y) == other.run(GOOD, Y)
    for name, array in step.weights().items():
        np.testing.assert_array_equal(array, other.weights()[name])


def test_estimators():
    net = OnnxRegressor(parse(), max_iter=1)
    with pytest.raises(InvalidDataError, match=TOLD):
        net.fit(BAD, Y)
    assert not hasattr(net, "weights_")
    net.fit(GOOD, Y)
    before = net.weights_
    calls = [
        lambda: net.predict(BAD),
        lambda: net.score(BAD, Y),
        lambda: net.partial_fit(BAD, Y),
        lambda: net.partial_fit(GOOD, Y, X_val=BAD, y_val=Y),
        lambda: net.partial_fit(stream((GOOD, Y)), X_val=stream((BAD, Y))),
    ]
    for call in calls:
        with pytest.raises(InvalidDataError, match=TOLD):
            call()
    for name, array in net.weights_.items():
        np.testing.assert_array_equal(array, before[name])
    with pytest.raises(InvalidDataError, match=TOLD):
        OnnxClassifier(parse(CLASSES), max_iter=1).fit(BAD, [0, 1, 0, 1])


@pytest.mark.parametrize("kind", ["csv", "arrays", "batches"])
def test_streams_say_where_it_is(kind, tmp_path):
    many = np.tile(GOOD, (50, 1))
    many[150, 1] = -4
    y = np.ones(len(many), np.float32)
    if kind == "csv":
        pd.DataFrame(many, columns=["a", "b"]).assign(y=y).to_csv(tmp_path / "rows.csv", index=False)
        rows, told = (
            stream(tmp_path / "rows.csv", target="y"),
            r"rows.csv, line 152: Input 'i' holds -4, which",
        )
    elif kind == "arrays":
        rows, told = stream((many, y)), "row 150.*: Input 'i' holds -4, which"
    else:
        batches = [(many[:100], y[:100]), (many[100:], y[100:])]
        rows, told = stream(lambda: iter(batches)), "row 150 of those read: Input 'i' holds -4, which"
    with pytest.raises(InvalidDataError, match=told):
        OnnxRegressor(parse(), max_iter=1, random_state=0).fit(rows)


def test_forward_and_backward():
    made = OrtGradientForwardBackward(parse())
    function = made.new_instance()
    weights = [made.get_initializer(name) for name in made.weights_to_train]
    for training in (False, True):
        with pytest.raises(InvalidDataError, match=TOLD):
            function.forward([BAD, *weights], training=training)
    function.forward([GOOD, *weights], training=True)


def test_what_is_computed_first_is_found_at_run_time():
    """The first column of a table is looked up: onnxruntime is the one to notice, in our words."""
    text = WORDS.replace("int64[N, 2] i", "float[N, 3] i").replace(
        "e = Gather(table, i)",
        """from = Constant<value = int64[1] {0}>() to = Constant<value = int64[1] {2}>()
        axis = Constant<value = int64[1] {1}>() part = Slice(i, from, to, axis)
        j = Cast<to = 7>(part) e = Gather(table, j)""",
    )
    step, other = TrainingStep(parse(text)), TrainingStep(parse(text))
    good, bad = np.ones((4, 3), np.float32), np.full((4, 3), 7, np.float32)
    for call in (lambda: step.run(bad, Y), lambda: step.predict(bad)):
        with pytest.raises(
            EvaluationError, match="looks up 7 in a table of 3: numbers from -3 to 2 are there"
        ):
            call()
    assert step.run(good, Y) == other.run(good, Y)


@pytest.mark.parametrize("command", ["predict", "evaluate", "train"])
def test_command_line(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save(parse(), "m.onnx")
    frame = pd.DataFrame(BAD, columns=["a", "b"])
    more = [] if command == "predict" else ["--target", "y"]
    (frame if command == "predict" else frame.assign(y=1.0)).to_csv("rows.csv", index=False)
    with pytest.raises(SystemExit) as ended:
        main([command, "m.onnx", "rows.csv", *more])
    assert ended.value.code != 0
    said = capsys.readouterr().err
    assert "Input 'i' holds 5" in said or "input 'i' holds 5" in said


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("y = Gather(t, i)", (-3, 2)),
        ("j = Cast<to = 6>(i) y = Gather(t, j)", (-3, 2)),
        ("y = Gather<axis = 1>(t, i)", (-2, 1)),
        ("y = Gather<axis = -1>(t, i)", (-2, 1)),
        ("k = Gather(t, i) l = Gather<axis = 1>(t, i) y = Add(k, l)", (-2, 1)),
        ("one = Constant<value_int = 1>() j = Sub(i, one) y = Gather(t, j)", None),
        ("f = Cast<to = 1>(i) y = Neg(f)", None),
        ("f = Cast<to = 1>(i) g = Cast<to = 7>(f) y = Gather(t, g)", None),
    ],
)
def test_what_is_looked_up(body, found):
    model = parse(f"{HEAD} g (int64[N] i) => (float y) <float[3, 2] t = {{1, 2, 3, 4, 5, 6}}> {{ {body} }}")
    made = lookups(to_ir(onnx.shape_inference.infer_shapes(model)))
    assert made.get("i") is None if found is None else (made["i"].low, made["i"].high) == found
