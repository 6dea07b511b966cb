"""Command line: ``python -m onnxcustom``."""

from __future__ import annotations

from pathlib import Path

import click

from onnxcustom import __version__

__all__ = ["main"]


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


if __name__ == "__main__":
    main(prog_name="python -m onnxcustom")
