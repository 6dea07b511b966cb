"""``onnxcustom quantize``: integers in place of weights, without a training."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .base import Command, say
from .options import (
    batch_axis_option,
    columns_options,
    data_argument,
    force_option,
    model_argument,
    option,
    output_option,
)

if TYPE_CHECKING:
    import numpy as np

__all__ = ["quantize"]


@click.command(
    cls=Command,
    short_help="Round a model to integers, by some rows.",
    examples=[
        ("Bytes, by the first rows of a file", "quantize iris.onnx flowers.csv -o small.onnx"),
        (
            "Weights of four bits, and nothing else",
            "quantize house.onnx town.parquet --columns area,rooms,age --weights int4 --activations none",
        ),
    ],
)
@model_argument
@data_argument
@columns_options
@option(
    "--weights", metavar="TYPE", default="int8", show_default=True, section="Integers", help="int8 to int2."
)
@option(
    "--activations",
    metavar="TYPE",
    default="uint8",
    show_default=True,
    section="Integers",
    help="What is computed: uint8 to uint2, int8 to int2, or none to round weights only.",
)
@option(
    "--calibration",
    type=click.Choice(["minmax", "percentile", "mse"]),
    default="minmax",
    show_default=True,
    section="Integers",
    help="How ranges are measured.",
)
@option(
    "--rows",
    type=click.IntRange(1),
    default=512,
    show_default=True,
    section="Integers",
    help="Rows that ranges are measured on, at most.",
)
@option(
    "--exclude",
    metavar="NAMES",
    multiple=True,
    section="Integers",
    help="Weights or nodes that are left: names, patterns, first:N or last:N layers; repeated.",
)
@option(
    "--reduce-range",
    is_flag=True,
    section="Integers",
    help="Seven bits of weights: bytes saturate on x86 processors without VNNI.",
)
@batch_axis_option
@output_option(help="Where it goes.  [default: MODEL_quantized.onnx in this folder]")
@force_option
def quantize(
    model: Path,
    data: str,
    columns: tuple[str, ...],
    inputs: tuple[str, ...],
    weights: str,
    activations: str,
    calibration: str,
    rows: int,
    exclude: tuple[str, ...],
    reduce_range: bool,
    batch_axis: tuple[str, ...],
    output: Path | None,
    force: bool,
) -> None:
    """Round the weights of MODEL, an .onnx file, and what it computes, to integers.

    Ranges are measured on the first rows of DATA, and nothing is trained; 'onnxcustom train --quantize'
    does it while the model is trained, which few bits need.
    """
    from .outputs import check_outputs, default_output

    target = default_output(model, "quantized") if output is None else output
    check_outputs({"--output": (target, (".onnx",))}, force, [model])
    from onnxcustom import tuning
    from onnxcustom.graph import save

    from .models import Model, of_file
    from .predictor import read_rows
    from .tables import Table, features_of

    options = tuning.Quantization(
        weights,
        None if activations == "none" else activations,
        calibration=calibration,
        rows=rows,
        exclude=list(exclude),
        reduce_range=reduce_range,
    )
    found, table = Model(model, batch_axis), Table(data)
    features = features_of(found, table, columns, inputs, [])
    feeds = _first((part.feeds for part in read_rows(found, table, features)), rows)
    feeds = {s.name: _placed(feeds[s.name], s.axis) for s in found.inputs}
    with of_file(model):
        made = tuning.quantize(found.proto, feeds, options, batch_axis=found.batch_axis or None)
    save(made, target)
    before, after = model.stat().st_size, target.stat().st_size
    say(f"{target}: {after:,} bytes in place of {before:,}")


def _first(parts: Iterable[dict[str, np.ndarray]], rows: int) -> dict[str, np.ndarray]:
    """The first rows of a file."""
    import numpy as np

    kept: list[dict[str, Any]] = []
    for part in parts:
        kept.append(part)
        if sum(len(next(iter(p.values()))) for p in kept) >= rows:
            break
    return {name: np.concatenate([p[name] for p in kept])[:rows] for name in (kept[0] if kept else {})}


def _placed(array: np.ndarray, axis: int | None) -> np.ndarray:
    """Rows where the model has them."""
    import numpy as np

    return array if not axis else np.moveaxis(array, 0, axis)
