"""``onnxcustom evaluate``: how good a model is on the rows of a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from .base import Command, say
from .options import (
    batch_axis_option,
    columns_options,
    compute_options,
    data_argument,
    model_argument,
    option,
    task_option,
)

__all__ = ["evaluate"]


@click.command(
    cls=Command,
    short_help="Score a model on the rows of a file.",
    examples=[
        ("The usual scores", "evaluate iris.onnx iris.csv --target species"),
        (
            "Some, for another program",
            "evaluate iris.onnx iris.csv --target species --metric f1_macro --json",
        ),
        ("Of a regressor", "evaluate house.onnx house.parquet --target price --metric r2"),
    ],
)
@model_argument
@data_argument
@option(
    "--target",
    metavar="COLUMN",
    multiple=True,
    section="Data",
    help="Column of the expected values; several with commas or repeated.  [default: that of the training]",
)
@columns_options
@option("--sample-weight", metavar="COLUMN", section="Data", help="Column of the weights of the rows.")
@option(
    "--metric",
    "metrics",
    metavar="NAME",
    multiple=True,
    section="Results",
    help="A score of scikit-learn, such as accuracy, neg_log_loss, f1_macro, r2 or max_error, or one of "
    "onnxcustom: character_error_rate, word_error_rate:space=N, token_accuracy, mean_iou, recall:k=N; may be "
    "repeated.  [default: three that fit the task]",
)
@option("--json", "as_json", is_flag=True, section="Results", help="Print JSON.")
@task_option
@batch_axis_option
@compute_options
def evaluate(
    model: Path,
    data: str,
    target: tuple[str, ...],
    columns: tuple[str, ...],
    inputs: tuple[str, ...],
    sample_weight: str | None,
    metrics: tuple[str, ...],
    as_json: bool,
    task: str,
    batch_axis: tuple[str, ...],
    device: str,
    threads: int | None,
) -> None:
    """Score MODEL, an .onnx file, on DATA, a file of rows with their expected values.

    DATA is a CSV, Parquet, Arrow or NumPy file, a folder of such files or a pattern like 'part-*.parquet'.
    It is read block by block; only predictions and expected values are kept in memory. Labels -100, which
    losses ignore, are left out. More is better, of scores that scikit-learn calls neg_... too, but of error
    rates.
    """
    from .models import Model
    from .phrases import split_names
    from .predictor import Predictor, read_rows
    from .scores import Collected, scored
    from .tables import Table, features_of

    found, table = Model(model, batch_axis), Table(data)
    names = split_names(target, table.names)
    if not names:
        names = [] if found.card is None else found.card.target
        if not names:
            raise click.UsageError("Missing option '--target': the column of the expected values.")
    table.require(names, "--target")
    others = [*names, *([] if sample_weight is None else [sample_weight])]
    if sample_weight is not None:
        table.require([sample_weight], "--sample-weight")
    features = features_of(found, table, columns, inputs, others)
    chosen, why = found.choose_task(task)
    predictor = Predictor(found, chosen, device, threads)
    collected = Collected(chosen, metrics)
    for rows in read_rows(found, table, features, names[0] if len(names) == 1 else names, sample_weight):
        collected.add(rows, predictor(rows))
    results = scored(collected, metrics, found)
    _print(found.path, data, chosen, why, collected.rows, results, as_json)


def _print(
    model: Path, data: str, task: str, why: str, rows: int, results: dict[str, float], as_json: bool
) -> None:
    if as_json:
        finite: dict[str, Any] = {k: v if abs(v) < float("inf") else None for k, v in results.items()}
        made = {"model": str(model), "data": data, "task": task, "rows": rows, "metrics": finite}
        say(json.dumps(made, indent=1, ensure_ascii=False))
        return
    say(f"{model} on {data}: {rows:,} rows, {task} ({why})")
    wide = max(map(len, results))
    for name, value in results.items():
        say(f"  {name:{wide}}  {value:.6g}")
