"""Errors: one line, the exit codes that the help promises, and a traceback for those who ask."""

from __future__ import annotations

import errno
import subprocess
import sys
import warnings
from pathlib import Path

import click
import numpy as np
import onnx.parser
import pytest
from click.testing import CliRunner

from onnxcustom import exceptions
from onnxcustom.cli.base import Command, Group
from onnxcustom.cli.errors import exit_code, one_line

CODES = {
    "CallOrderError": 2,
    "CheckpointError": 2,
    "ConvergenceError": 1,
    "DifferentiationError": 1,
    "EvaluationError": 1,
    "GradientNotImplementedError": 1,
    "InvalidDataError": 2,
    "InvalidModelError": 2,
    "InvalidParameterError": 2,
    "MissingPackageError": 1,
    "MissingRuntimeError": 1,
    "NoTrainableWeightError": 1,
    "NonDifferentiableError": 1,
    "OnnxCustomError": 2,
    "ProviderError": 1,
    "UnknownNameError": 2,
    "UnknownOperatorError": 1,
}
OTHERS = [
    (FileNotFoundError(errno.ENOENT, "No such file", "x"), 2),
    (OSError(errno.ENOSPC, "No space left on device", "x"), 1),
    (PermissionError(errno.EACCES, "Permission denied", "x"), 1),
    (ValueError("x"), 2),
    (MemoryError(), 1),
    (ImportError("x"), 1),
    (KeyError("x"), 70),
    (RuntimeError("x"), 70),
    (TypeError("x"), 70),
    (click.UsageError("x"), 2),
    (click.ClickException("x"), 1),
    (KeyboardInterrupt(), 130),
    (click.Abort(), 130),
]


def test_every_exception_of_the_library_has_a_code() -> None:
    errors = [n for n in exceptions.__all__ if not n.endswith("Warning")]
    assert {name: exit_code(getattr(exceptions, name)("x")) for name in errors} == CODES


@pytest.mark.parametrize(
    ("error", "code"), OTHERS, ids=lambda value: getattr(value, "__class__", value).__name__
)
def test_codes_of_others(error: BaseException, code: int) -> None:
    assert exit_code(error) == code


@pytest.mark.parametrize(
    "error", [e for e, _ in OTHERS if not isinstance(e, (KeyboardInterrupt, click.Abort))]
)
def test_one_line_is_never_empty(error: BaseException) -> None:
    text = one_line(error)
    assert text
    assert "\n" not in text


def test_one_line_is_safe_to_print() -> None:
    text = one_line(ValueError("column '\x1b]0;owned\x07', '\u202e', '\ud800', é"))
    assert text == r"column '\x1b]0;owned\x07', '\u202e', '\ud800', é"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("leave it out with columns=.", "leave it out with --columns."),
        ("beyond max_iter=3. Raise max_iter, or", "beyond --epochs 3. Raise --epochs, or"),
        ("Use batch_size=4 and", "Use --batch-size 4 and"),
        ("validation_fraction holds rows out", "--validation holds rows out"),
        ("column 'max_iter' is text", "column 'max_iter' is text"),
        ("my_max_iter, a=columns", "my_max_iter, a=columns"),
        ("say batch_axis={'x': ...}.", "say --batch-axis x=...."),
        ("batch_axis={'a=b': 1, 'c': None} says so", "--batch-axis a=b=1 --batch-axis c=none says so"),
        ("batch_axis of 'x' is 5", "--batch-axis of 'x' is 5"),
        ("Use batch_norm='frozen'.", "Use --batch-norm frozen."),
        ("shuffle=True accepts, shuffle=False keeps", "--shuffle accepts, --no-shuffle keeps"),
        ("output, as loss={'p': 'log_loss'}.", "output, as --output-name p --loss log_loss."),
        ("weights_to_train=['a', 'b'] leaves", "--weights a,b leaves"),
        ("class_weight='balanced' is", "--class-weight balanced is"),
        ("y holds the labels ['a'], and y has 2", "The target holds the labels ['a'], and the target has 2"),
        ("'y has' of my y", "'y has' of my y"),
        ("loss=0.5, columns={x}", "--loss 0.5, --columns {x}"),
    ],
)
def test_parameters_are_called_as_the_options_are(text: str, wanted: str) -> None:
    assert one_line(exceptions.InvalidDataError(text)) == wanted


def program(action) -> Group:
    @click.group(cls=Group)
    def group() -> None:
        pass

    @group.command(cls=Command)
    def act() -> int | None:
        return action()

    return group


def raising(error: BaseException):
    def action() -> None:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "code"),
    [(exceptions.InvalidDataError("a\nb"), 2), (KeyError("k"), 70), (KeyboardInterrupt(), 130)],
)
def test_what_a_command_raises(error: BaseException, code: int) -> None:
    result = CliRunner().invoke(program(raising(error)), ["act"])
    assert result.exit_code == code
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1
    assert lines[0].startswith("Interrupted" if code == 130 else "Error: ")
    assert ("This should not have happened" in lines[0]) == (code == 70)


@pytest.mark.parametrize("how", ["option", "variable"])
def test_debug_shows_where(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "variable":
        monkeypatch.setenv("ONNXCUSTOM_DEBUG", "1")
    runner = CliRunner()
    result = runner.invoke(
        program(raising(KeyError("k"))), ["act", *(["--debug"] if how == "option" else [])]
    )
    assert "Traceback" in result.output
    assert result.exit_code == 70


def test_exit_code_of_a_command() -> None:
    assert CliRunner().invoke(program(lambda: 3), ["act"]).exit_code == 3
    assert CliRunner().invoke(program(lambda: None), ["act"]).exit_code == 0


def test_warnings_are_lines() -> None:
    def action() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("mind\nthe gap", UserWarning, stacklevel=1)

    before = warnings.showwarning
    result = CliRunner().invoke(program(action), ["act"])
    assert result.stderr == "Warning: mind the gap\n"
    assert warnings.showwarning is before


def test_warnings_name_options(tmp_path, monkeypatch, command) -> None:
    """Of the rows in doubt: what to type, and typing it ends the doubt."""
    monkeypatch.chdir(tmp_path)
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[T, N, 2] x) => (float[N, 1] y)
        <float[2, 1] w = {0.5, 0.25}> {
            first = Constant <value_int = 0> ()  s = Gather <axis = 0> (x, first)  y = MatMul(s, w) }"""
    Path("m.onnx").write_bytes(onnx.parser.parse_model(text).SerializeToString())
    np.savez("rows.npz", x=np.ones((4, 3, 2), np.float32), t=np.ones((4, 1), np.float32))
    arguments = ("train", "m.onnx", "rows.npz", "--target", "t", "--epochs", "1", "--force")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        said = command(*arguments, code=None).stderr
        assert "Warning: The rows of a batch are taken to be 'T'" in said
        assert "say --batch-axis x=1; if not, --batch-axis x=0 says so." in said
        assert "Warning" not in command(*arguments, "--batch-axis", "x=1").stderr
    assert "--batch-axis x=1" in command("inspect", "m.onnx").output


def test_a_reader_that_goes_away(folder) -> None:
    """``| head`` must not end in a traceback."""
    code = "from onnxcustom.__main__ import main; main(prog_name='onnxcustom')"
    rows = "sepal length (cm),sepal width (cm),petal length (cm),petal width (cm)\n" + "1,2,3,4\n" * 20_000
    (folder / "many.csv").write_text(rows)
    with subprocess.Popen(
        [sys.executable, "-c", code, "predict", "iris.onnx", "many.csv"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait() == 1
        assert process.stderr.read() == b""
