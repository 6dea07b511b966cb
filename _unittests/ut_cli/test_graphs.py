"""``onnxcustom gradient`` and ``step``: graphs that compute what the library computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pandas as pd
import pytest

from onnxcustom import TrainingStep, gradient_graph, load, weights
from onnxcustom.cli.graphs import describe_graph


def run(path: str, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def test_gradient(folder: Path, command) -> None:
    told = command("gradient", "house.onnx", "-o", "g.onnx").output
    assert load("g.onnx") == gradient_graph("house.onnx")
    assert told.startswith("g.onnx\n")
    for info in (*load("g.onnx").graph.input, *load("g.onnx").graph.output):
        assert info.name in told


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (("--no-weights",), ["X_grad"]),
        (("--no-inputs", "--weights", "last:1"), ["coefficient1_grad", "intercepts1_grad"]),
        (("--inputs", "X", "--weights", "coef*"), ["X_grad", "coefficient_grad", "coefficient1_grad"]),
        (("--outputs", "variable", "--no-inputs", "--weights", "coefficient,intercepts"), None),
    ],
)
def test_gradient_of_some(options: tuple[str, ...], wanted: list[str] | None, folder: Path, command) -> None:
    command("gradient", "house.onnx", *options)
    names = [o.name for o in load("house_gradient.onnx").graph.output]
    assert names[:-1] == (wanted or ["coefficient_grad", "intercepts_grad"])


def test_step_is_a_step(folder: Path, command) -> None:
    told = command("step", "house.onnx", "--optimizer", "sgd", "-o", "s.onnx").output
    assert "loss squared_error of output 'variable', sgd" in told
    frame = pd.read_parquet("house.parquet").astype(np.float32)
    X, y = frame.iloc[:10, :3].to_numpy(), frame.iloc[:10, 3:].to_numpy()
    scalars = {"learning_rate": np.float32(0.1), "step": np.float32(1)}
    feeds = {"X": X, "variable_expected": y, **weights("house.onnx"), **scalars}
    found = run("s.onnx", {k: np.asarray(v) for k, v in feeds.items()})
    step = TrainingStep("house.onnx", "squared_error", "sgd", learning_rate=0.1)
    assert found["loss"] == pytest.approx(step.run(X, y), rel=1e-5)
    for name, array in step.weights().items():
        np.testing.assert_allclose(found[f"{name}_new"], array, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("iris.onnx",), "loss softmax_crossentropy of output 'output_probability'"),
        (("iris.onnx", "--loss", "log_loss", "--output-name", "output_probability"), "softmax_crossentropy"),
        (
            ("house.onnx", "--loss", "huber:delta=3", "--penalty", "l2:0.1", "--freeze", "biases"),
            "loss huber",
        ),
        (("house.onnx", "--optimizer", "adam", "--sample-weight"), "sample_weight"),
    ],
)
def test_steps(arguments: tuple[str, ...], words: str, folder: Path, command) -> None:
    assert words in command("step", *arguments, "-o", "s.onnx").output
    onnx.checker.check_model(load("s.onnx"))


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (("gradient", "house.onnx", "--weights", "nope"), "nope", 2),
        (("gradient", "house.onnx", "--inputs", "nope"), "nope", 2),
        (("gradient", "house.onnx", "--no-weights", "--no-inputs"), "nothing to differentiate", 2),
        (("gradient", "house.onnx", "--no-weights", "--weights", "x"), "or give --no-weights", 2),
        (("gradient", "house.onnx", "-o", "house.onnx", "--force"), "a file that is read", 2),
        (("gradient", "iris.onnx"), "no floating-point output", 1),
        (("step", "house.onnx", "--loss", "nope"), "--loss 'nope'", 2),
        (("step", "house.onnx", "--output-name", "nope"), "nope", 2),
        (("step", "house.onnx", "-o", "s.txt"), "must end in .onnx", 2),
    ],
)
def test_refused(arguments: tuple[str, ...], words: str, code: int, folder: Path, fails) -> None:
    before = {p.name for p in folder.iterdir()}
    assert words in fails(*arguments, code=code)
    assert {p.name for p in folder.iterdir()} == before


def test_many_inputs_are_not_all_listed() -> None:
    inputs = ", ".join(f"float[N] x{i}" for i in range(30))
    graph = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> g ({inputs}) => (float[N] y) {{ y = Neg(x0) }}'
    )
    lines = describe_graph(graph).splitlines()
    assert len(lines) == 15
    assert "... 17 more ..." in lines[8]
    assert lines[13].split() == ["x29", "float[N]"]
