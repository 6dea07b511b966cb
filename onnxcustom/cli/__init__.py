"""The command line: ``onnxcustom`` and ``python -m onnxcustom``.

A module for each command. What a command needs is imported when it runs, so that help is quick.
"""

from __future__ import annotations

import click

from onnxcustom._version import __version__

from .base import Group
from .demo import demo
from .edit import edit
from .evaluate import evaluate
from .gradient import gradient
from .inspect import inspect
from .predict import predict
from .quantize import quantize
from .step import step
from .train import train

__all__ = ["main"]


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    invoke_without_command=True,
    epilog="Exit codes: 0 all is well; 1 what was asked for cannot be done; 2 an option, a file or the data "
    "is wrong; 70 a fault of this program; 130 interrupted. Errors are one line on standard error; --debug, "
    "or ONNXCUSTOM_DEBUG=1, shows where they come from. 'onnxcustom COMMAND --help' has examples.",
)
@click.version_option(__version__, prog_name="onnxcustom")
@click.pass_context
def main(context: click.Context) -> None:
    """Train ONNX models with onnxruntime."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(2)


for command in (train, predict, evaluate, inspect, edit, quantize, gradient, step, demo):
    main.add_command(command)
