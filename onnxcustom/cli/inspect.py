"""``onnxcustom inspect``: what of a model can be trained."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from .base import Command, say
from .errors import CANNOT, OK
from .options import ENGINES, model_argument, option

__all__ = ["inspect"]


@click.command(
    cls=Command,
    short_help="Say what of a model can be trained, and how.",
    examples=[
        ("See what would be trained", "inspect iris.onnx"),
        ("With the rules of onnxruntime-training", "inspect iris.onnx --engine ort"),
    ],
)
@model_argument
@option(
    "--engine",
    type=click.Choice(ENGINES),
    default="auto",
    show_default=True,
    help="The gradient engine whose answers are wanted.",
)
@click.pass_context
def inspect(context: click.Context, model: Path, engine: str) -> None:
    """Say what of MODEL, an .onnx file, can be trained, and how.

    Prints its operators and how each is differentiated, its weights, axes of rows, what is refused and
    why, and the engine that is taken. Nothing is run; no onnxruntime is needed. Exits with 0 if every weight
    can be trained, 1 if not, 2 if the file holds no valid model.
    """
    from onnxcustom.inspect import inspect_model

    from .errors import in_options
    from .models import of_file

    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    with of_file(model):
        text, trainable = inspect_model(model, engine, width, in_options)
    say(text)
    context.exit(OK if trainable else CANNOT)
