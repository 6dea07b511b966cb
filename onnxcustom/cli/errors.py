"""What an error means to a command line: an exit code and one line of text."""

from __future__ import annotations

import re

import click

from onnxcustom.exceptions import (
    ConvergenceError,
    DifferentiationError,
    EvaluationError,
    MissingPackageError,
    MissingRuntimeError,
    NoTrainableWeightError,
    OnnxCustomError,
    ProviderError,
)

__all__ = ["CANNOT", "FAULT", "INTERRUPTED", "OK", "WRONG", "exit_code", "one_line", "printable"]

#: All is well.
OK = 0
#: What was asked for cannot be done.
CANNOT = 1
#: An option, a file or a model is wrong.
WRONG = 2
#: The program itself is at fault.
FAULT = 70
#: Ctrl-C.
INTERRUPTED = 130

_CANNOT = (
    ConvergenceError,
    DifferentiationError,
    EvaluationError,
    MissingPackageError,
    MissingRuntimeError,
    NoTrainableWeightError,
    ProviderError,
    ImportError,
    MemoryError,
    OSError,
)
_WRONG = (OnnxCustomError, ValueError, FileNotFoundError, IsADirectoryError, NotADirectoryError)
# Parameters that messages of the library name, and the options that they are here.
_OPTIONS = {
    "batch_size": "--batch-size",
    "callbacks": "--checkpoint",
    "checkpoint_dir": "--checkpoint",
    "class_weight": "--class-weight",
    "columns": "--columns",
    "freeze": "--freeze",
    "inputs": "--input",
    "loss": "--loss",
    "max_iter": "--epochs",
    "sample_weight": "--sample-weight",
    "target": "--target",
    "validation_fraction": "--validation",
    "weights_to_train": "--weights",
}
_ALWAYS = (
    "batch_size",
    "checkpoint_dir",
    "class_weight",
    "max_iter",
    "validation_fraction",
    "weights_to_train",
)
_PARAMETER = re.compile(
    rf"(?<![\w'\"-])(?:({'|'.join(_OPTIONS)})=(?=[\s.,;:]|$)|({'|'.join(_ALWAYS)})\b(=?))"
)


def exit_code(error: BaseException) -> int:
    """The exit code that an error means.

    Examples
    --------
    >>> exit_code(NoTrainableWeightError("none")), exit_code(ValueError("epochs")), exit_code(KeyError("x"))
    (1, 2, 70)
    """
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        return INTERRUPTED
    if isinstance(error, click.ClickException):
        return error.exit_code
    if isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError)):
        return WRONG
    if isinstance(error, _CANNOT):
        return CANNOT
    return WRONG if isinstance(error, _WRONG) else FAULT


def one_line(error: BaseException) -> str:
    r"""An error as one line without anything that a terminal would act on.

    Examples
    --------
    >>> one_line(ValueError("first\n  second \x1b[31m"))
    'first second \\x1b[31m'
    """
    if isinstance(error, click.UsageError) and error.ctx is not None:
        where = error.ctx.command_path
        text = f"{_sentence(error.format_message())} See: {where} --help"
    elif isinstance(error, click.ClickException):
        text = error.format_message()
    elif isinstance(error, OSError) and error.strerror:
        names = [str(n) for n in (error.filename, error.filename2) if n is not None]
        text = ": ".join([error.strerror, *names])
    elif isinstance(error, MemoryError):
        text = f"Out of memory. {error}"
    else:
        text = _PARAMETER.sub(_as_option, str(error))
        text = text.replace("OnnxRegressor predicts", "--task regression predicts")
    if exit_code(error) == FAULT:
        text = f"This should not have happened: {type(error).__name__}: {text} (--debug shows where)"
    return printable(text) or type(error).__name__


def _as_option(found: re.Match[str]) -> str:
    name = _OPTIONS[found[1] or found[2]]
    return f"{name} " if found[3] else name


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."


def printable(text: str) -> str:
    """Text on one line, whose control characters, lone surrogates and the like are escaped."""
    text = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
