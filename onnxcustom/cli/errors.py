"""What an error means to a command line: an exit code and one line of text."""

from __future__ import annotations

import ast
import re
from typing import Any

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

__all__ = [
    "CANNOT",
    "FAULT",
    "INTERRUPTED",
    "OK",
    "WRONG",
    "exit_code",
    "in_options",
    "one_line",
    "printable",
]

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
    "at": "--at",
    "average": "--average",
    "cache_bytes": "--cache-bytes",
    "cache_dir": "--cache-dir",
    "cache_frozen": "--cache-frozen",
    "batch_axis": "--batch-axis",
    "batch_norm": "--batch-norm",
    "batch_size": "--batch-size",
    "lora": "--lora",
    "quantize": "--quantize",
    "callbacks": "--checkpoint",
    "checkpoint_dir": "--checkpoint",
    "class_weight": "--class-weight",
    "columns": "--columns",
    "device": "--device",
    "dropout": "--dropout",
    "engine": "--engine",
    "freeze": "--freeze",
    "inputs": "--input",
    "loss": "--loss",
    "max_iter": "--epochs",
    "random_state": "--seed",
    "sample_weight": "--sample-weight",
    "shuffle": "--shuffle",
    "target": "--target",
    "threads": "--threads",
    "validation_fraction": "--validation",
    "weights_to_train": "--weights",
}
# Words that mean nothing else, without an equals sign behind them either.
_ALWAYS = (
    "cache_bytes",
    "cache_dir",
    "cache_frozen",
    "batch_axis",
    "batch_norm",
    "batch_size",
    "checkpoint_dir",
    "class_weight",
    "max_iter",
    "random_state",
    "validation_fraction",
    "weights_to_train",
)
_VALUE = r"""\{[^{}]*\}|\[[^\[\]]*\]|'[^']*'|"[^"]*"|True\b|False\b|None\b|[\d.]*\d"""
_PARAMETER = re.compile(
    rf"(?<![\w'\"-])(?:({'|'.join(_OPTIONS)})=(?:({_VALUE})|(?=[\s.,;:]|$))|({'|'.join(_ALWAYS)})\b(=?))"
)
_TARGET = re.compile(r"(?<![\w'\"(=])y (holds|has|contains|wants|must)\b")
_PHRASES = {
    "onnxcustom.tuning.dequantize(model) puts": "'onnxcustom edit MODEL --dequantize' puts",
    "OnnxRegressor predicts": "--task regression predicts",
    "OnnxRegressor trains": "--task regression trains",
    "Watch validation data, or give restore_best=False.": "Hold rows out, as with --validation 0.1.",
}


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
        text = in_options(str(error))
    if exit_code(error) == FAULT:
        text = f"This should not have happened: {type(error).__name__}: {text} (--debug shows where)"
    return printable(text) or type(error).__name__


def in_options(text: str) -> str:
    """A message of the library with the options of the command line in place of parameters.

    Examples
    --------
    >>> in_options("say batch_axis={'x': 1, 'y': None}; weights_to_train=['a', 'b'] leaves out the rest")
    'say --batch-axis x=1 --batch-axis y=none; --weights a,b leaves out the rest'
    >>> in_options("shuffle=False keeps the order, beyond max_iter=3. Use loss={'p': 'log_loss'}.")
    '--no-shuffle keeps the order, beyond --epochs 3. Use --output-name p --loss log_loss.'
    """
    for words, ours in _PHRASES.items():
        text = text.replace(words, ours)
    text = _TARGET.sub(lambda found: f"{'the' if found.start() else 'The'} target {found[1]}", text)
    return _PARAMETER.sub(_as_option, text)


def _as_option(found: re.Match[str]) -> str:
    name, value, bare, equals = found.groups()
    option = _OPTIONS[name or bare]
    if value is None:
        return f"{option} " if equals else option
    try:
        given = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return f"{option} {value}"
    if name == "loss" and isinstance(given, dict):
        return " ".join(f"--output-name {_typed(k)} --loss {_typed(v)}" for k, v in given.items())
    if isinstance(given, dict):
        return " ".join(f"{option} {_typed(k)}={_typed(v)}" for k, v in given.items())
    if isinstance(given, bool):
        return option if given else option.replace("--", "--no-", 1)
    return f"{option} {','.join(map(_typed, given)) if isinstance(given, list) else _typed(given)}"


def _typed(value: Any) -> str:
    """A value as it is typed for an option."""
    return "..." if value is ... else "none" if value is None else str(value)


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."


def printable(text: str) -> str:
    """Text on one line, whose control characters, lone surrogates and the like are escaped."""
    text = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
