"""Options that several commands have."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .base import Option

__all__ = [
    "ENGINES",
    "batch_axis_option",
    "columns_options",
    "compute_options",
    "data_argument",
    "engine_option",
    "force_option",
    "model_argument",
    "option",
    "output_option",
    "task_option",
    "weights_options",
]

ENGINES = ("auto", "onnx", "ort")

option = functools.partial(click.option, cls=Option)


def _group(purpose: str, *decorators: Callable[..., Any]) -> Callable[..., Any]:
    """Several parameters as one decorator, which says what they are for."""

    def decorate(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    decorate.__doc__ = purpose
    return decorate


model_argument = _group(
    "The model's file.",
    click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path)),
)
data_argument = _group("Files of rows.", click.argument("data", type=click.Path()))

engine_option = _group(
    "What builds gradients.",
    option(
        "--engine",
        type=click.Choice(ENGINES),
        default="auto",
        show_default=True,
        section="Computing",
        help="What builds the gradient.",
    ),
)
task_option = _group(
    "What the model does.",
    option(
        "--task",
        type=click.Choice(["auto", "classification", "regression"]),
        default="auto",
        show_default=True,
        section="Model",
        help="Whether the model tells classes apart or computes numbers.",
    ),
)
batch_axis_option = _group(
    "Where rows are.",
    option(
        "--batch-axis",
        metavar="NAME=AXIS",
        multiple=True,
        section="Model",
        help="Where the rows of an input or output are, if its dimensions do not say; NAME=none for one "
        "without rows. May be repeated.",
    ),
)
force_option = _group(
    "Overwriting files.",
    option("--force", is_flag=True, section="Results", help="Overwrite files that exist."),
)


def output_option(metavar: str = "FILE", required: bool = False, **given: Any) -> Callable[..., Any]:
    """Where the result goes."""
    return option(
        "-o", "--output", metavar=metavar, type=click.Path(path_type=Path), section="Results", **given
    )


columns_options = _group(
    "Which columns are features.",
    option(
        "--columns",
        metavar="A,B,...",
        multiple=True,
        section="Data",
        help="Columns of the features, in the order of the model's input. May be repeated, for names with "
        "commas.  [default: all that are nothing else]",
    ),
    option(
        "--input",
        "inputs",
        metavar="NAME=A,B,...",
        multiple=True,
        section="Data",
        help="Columns of one input of a model that has several; once for each.  [default: columns that are "
        "called like the inputs]",
    ),
)

compute_options = _group(
    "Where the model runs.",
    option(
        "--device",
        default="cpu",
        show_default=True,
        section="Computing",
        help="cpu, cuda or cuda:N.",
    ),
    option(
        "--threads",
        type=click.IntRange(min=1),
        metavar="N",
        section="Computing",
        help="Threads of onnxruntime.  [default: one a processor]",
    ),
)

weights_options = _group(
    "Which weights are trained.",
    option(
        "--weights",
        metavar="NAMES",
        multiple=True,
        section="Model",
        help="Weights to train: names, patterns such as 'dense*', biases, normalizations, last:N or first:N "
        "layers, with commas or repeated.  [default: all]",
    ),
    option(
        "--freeze",
        metavar="NAMES",
        multiple=True,
        section="Model",
        help="Weights to leave as they are, in the same words.",
    ),
)
