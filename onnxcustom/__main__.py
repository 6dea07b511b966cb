"""Command line: ``python -m onnxcustom``."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from onnxcustom import __version__

__all__ = ["main"]


class BadInputError(click.ClickException):
    """What was given is no model: exits like a wrong option."""

    exit_code = 2


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="onnxcustom")
def main() -> None:
    """Train ONNX models with onnxruntime."""


@main.command()
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Folder the files are written to, made if missing.  [default: the current one]",
)
@click.option("--quiet", is_flag=True, help="Print nothing, only write the files.")
def demo(output: Path, quiet: bool) -> None:
    """Train two scikit-learn models further as ONNX models.

    Leaves digits_trained.onnx, training_step.onnx and, with matplotlib installed, loss.png; takes less than
    a minute.
    """
    from onnxcustom.demo import run_demo
    from onnxcustom.exceptions import MissingRuntimeError

    try:
        run_demo(output, quiet=quiet)
    except MissingRuntimeError as error:
        raise click.ClickException(str(error)) from error


@main.command()
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--engine",
    type=click.Choice(["auto", "onnx", "ort"]),
    default="auto",
    show_default=True,
    help="The gradient engine whose answers are wanted.",
)
@click.pass_context
def inspect(context: click.Context, model: Path, engine: str) -> None:
    """Say what of MODEL, an .onnx file, can be trained, and how.

    Prints its operators and how each is differentiated, its weights, what is refused and why, and the engine
    that is taken. Nothing is run; no onnxruntime is needed. Exits with 0 if every weight can be trained, 1 if
    not, 2 if the file holds no valid model.
    """
    from onnxcustom.exceptions import OnnxCustomError
    from onnxcustom.inspect import inspect_model

    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    try:
        text, trainable = inspect_model(model, engine, width)
    except (OnnxCustomError, OSError) as error:
        raise BadInputError(str(error) if str(model) in str(error) else f"{model}: {error}") from error
    click.echo(text)
    context.exit(0 if trainable else 1)


if __name__ == "__main__":
    main(prog_name="python -m onnxcustom")
