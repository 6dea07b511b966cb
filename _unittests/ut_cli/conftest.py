"""Files to run commands on: those that the documentation makes."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from onnxcustom.__main__ import main

PAGE = Path(__file__).parents[2] / "_doc" / "command_line.rst"


def python_of_page() -> str:
    """The block of Python in the documentation of the command line."""
    lines = PAGE.read_text(encoding="utf-8").split(".. code-block:: python\n", 1)[1].splitlines()
    block = []
    for line in lines:
        if line and not line.startswith(" "):
            break
        block.append(line)
    return textwrap.dedent("\n".join(block))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the documentation's Python fills."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    folder = tmp_path_factory.mktemp("made")
    before = os.getcwd()
    os.chdir(folder)
    try:
        # Files are left for the garbage collector to close, as in what people type.
        code = python_of_page().replace('open("', 'Path("').replace('", "wb").write(', '").write_bytes(')
        # Tests run these files in bare onnxruntime, also in 1.17.
        code = code.replace("features[:1])", 'features[:1], target_opset={"": 17, "ai.onnx.ml": 3})')
        exec(compile(code, str(PAGE), "exec"), {"Path": Path})
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with these files."""
    for path in made.iterdir():
        shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: object, code: int | None = 0) -> Result:
    """Run a command in this process; `code` is what it has to exit with."""
    result = CliRunner().invoke(main, [str(a) for a in arguments], prog_name="onnxcustom")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    if code is not None:
        assert result.exit_code == code, f"{result.exit_code}: {result.output}"
    return result


@pytest.fixture
def command() -> Callable[..., Result]:
    """:func:`run`."""
    return run


@pytest.fixture
def fails() -> Callable[..., str]:
    """Run a command that has to fail; its one line on standard error."""

    def check(*arguments: object, code: int = 2) -> str:
        result = run(*arguments, code=code)
        lines = result.stderr.splitlines()
        assert len(lines) == 1, result.stderr
        assert lines[0].startswith("Error: ")
        assert "Traceback" not in result.output
        return lines[0]

    return check


PYTHON = [
    sys.executable,
    "-c",
    # A shell that runs this in the background makes the process deaf to Ctrl-C.
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from onnxcustom.__main__ import main; main(prog_name='onnxcustom')",
]


@pytest.fixture
def process() -> list[str]:
    """Beginning of a command line that runs the program in a process of its own."""
    return PYTHON
