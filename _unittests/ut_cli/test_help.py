"""Help: whatever it and the documentation show is run here, as it stands there."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from onnxcustom import __version__
from onnxcustom.__main__ import main
from onnxcustom.cli import errors
from onnxcustom.runtime import training_available

PAGE = Path(__file__).parents[2] / "_doc" / "command_line.rst"


def help_of(*command: str) -> str:
    # A wide terminal, so that no example is cut; they are never wrapped.
    result = CliRunner().invoke(main, [*command, "--help"], prog_name="onnxcustom")
    assert result.exit_code == 0
    return result.output


def commands_in(text: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines()]
    return [line.removeprefix("onnxcustom ") for line in lines if line.startswith("onnxcustom ")]


EXAMPLES = [example for name in main.commands for example in commands_in(help_of(name))]
PAGE_EXAMPLES = commands_in(PAGE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", main.commands)
def test_every_command_has_examples_and_says_what_it_does(name: str) -> None:
    text = help_of(name)
    assert "Examples:" in text
    assert commands_in(text)
    assert all(shlex.split(example)[0] == name for example in commands_in(text))
    assert name in help_of()
    for option in main.commands[name].params:
        if isinstance(option, click.Option):
            assert option.help, f"{name} {option.name}"


def short_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxcustom import demo

    train = demo.train_digits
    monkeypatch.setattr(demo, "train_digits", lambda verbose: train(1, verbose))


@pytest.mark.parametrize("example", EXAMPLES)
def test_example_of_the_help(example: str, folder: Path, command, monkeypatch) -> None:
    arguments = shlex.split(example)
    if arguments[0] == "demo":
        short_demo(monkeypatch)
    if "ort" in arguments:
        pytest.importorskip("onnxruntime")
        if not training_available():
            assert "onnxruntime-training" in command(*arguments, code=1).output
            return
    result = command(*arguments)
    for option in ("-o", "--output", "--plot", "--history"):
        if option in arguments:
            assert (folder / arguments[arguments.index(option) + 1]).exists()
    assert result.output or "--quiet" in arguments


@pytest.mark.parametrize("example", [e for e in EXAMPLES if e.startswith(("predict", "evaluate"))])
def test_the_same_of_a_model_that_was_trained_here(example: str, folder: Path, command) -> None:
    name, model, *rest = shlex.split(example)
    target = (
        ["iris.csv", "--target", "species"]
        if model == "iris.onnx"
        else ["house.parquet", "--target", "price"]
    )
    command("train", model, *target, "--epochs", "1", "-o", "again.onnx")
    told = command(name, "again.onnx", *rest).output
    before = command(name, model, *rest, *(["--force"] if "-o" in rest else [])).output
    assert told.splitlines()[:1] != [] or "-o" in rest
    assert len(told.splitlines()) == len(before.splitlines())
    assert told != before or "-o" in rest  # it was trained in between


def test_examples_of_the_documentation(folder: Path, command, monkeypatch) -> None:
    """One after the other, in one folder, as a reader would type them."""
    assert len(PAGE_EXAMPLES) > 10
    for example in PAGE_EXAMPLES:
        command(*shlex.split(example))


def test_documentation_names_every_command_and_exit_code() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in main.commands:
        assert f"``{name}" in text
    for code in (errors.OK, errors.CANNOT, errors.WRONG, errors.FAULT, errors.INTERRUPTED):
        assert f"\n{code} " in text
        assert f" {code} " in " ".join(help_of().split())


def test_options_that_the_documentation_names_exist() -> None:
    import re

    known = {o for c in main.commands.values() for p in c.params for o in (*p.opts, *p.secondary_opts)}
    named = set(re.findall(r"``(--[a-z-]+)", PAGE.read_text(encoding="utf-8"))) - {"--help"}
    assert named <= known


def test_help_is_quick_because_it_imports_little() -> None:
    code = (
        "import sys; from onnxcustom.__main__ import main\n"
        "try: main(['train', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'onnx', 'onnx_ir', 'onnxruntime', 'sklearn', 'scipy', 'pyarrow', 'pandas', 'tqdm',"
        " 'matplotlib', 'skl2onnx', 'onnxscript'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [["-m", "onnxcustom", "--version"], ["-m", "onnxcustom", "-h"]])
def test_as_a_module(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert (__version__ if "--version" in arguments else "Usage: python -m onnxcustom") in done.stdout


def test_without_a_command(command) -> None:
    result: Result = command(code=2)
    assert result.stdout == ""
    assert "Commands:" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "No such command 'trian'"),
        (["train"], "Missing argument 'MODEL'. See: onnxcustom train --help"),
        (["train", "--epoch", "3"], "No such option"),
        (["train", "x.onnx", "x.csv", "--epochs", "many", "--target", "y"], "many"),
        (["train", "no.onnx", "x.csv", "--target", "y"], "'no.onnx' does not exist"),
    ],
)
def test_wrong_options_are_one_line(arguments: list[str], words: str, fails) -> None:
    assert words in fails(*arguments)
