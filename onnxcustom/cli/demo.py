"""``onnxcustom demo``: see it work."""

from __future__ import annotations

from pathlib import Path

import click

from .base import Command
from .options import option

__all__ = ["demo"]


@click.command(
    cls=Command,
    short_help="Train two models of scikit-learn further.",
    examples=[
        ("Train, and leave the files here", "demo"),
        ("Leave them in a folder, without a word", "demo --output demo --quiet"),
    ],
)
@option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Folder the files are written to, made if missing.  [default: the current one]",
)
@option("--quiet", is_flag=True, help="Print nothing, only write the files.")
def demo(output: Path, quiet: bool) -> None:
    """Train two scikit-learn models further as ONNX models.

    Leaves digits_trained.onnx, training_step.onnx and, with matplotlib installed, loss.png; takes less than
    a minute.
    """
    from onnxcustom.demo import run_demo

    run_demo(output, quiet=quiet)
