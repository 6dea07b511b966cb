"""``onnxcustom predict``: what a model says to the rows of a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .base import Command, say
from .options import (
    batch_axis_option,
    columns_options,
    compute_options,
    data_argument,
    force_option,
    model_argument,
    option,
    output_option,
    task_option,
)

if TYPE_CHECKING:
    import numpy as np

    from .predictor import Answers

__all__ = ["predict"]


@click.command(
    cls=Command,
    short_help="Predict for every row of a file.",
    examples=[
        ("To the terminal, or into another program", "predict iris.onnx flowers.csv"),
        (
            "Into a file, with the probability of each class",
            "predict iris.onnx flowers.csv --proba -o labels.csv",
        ),
        (
            "Some columns of a larger file",
            "predict house.onnx town.parquet --columns area,rooms,age -o prices.npy",
        ),
    ],
)
@model_argument
@data_argument
@columns_options
@option("--proba", is_flag=True, section="Results", help="Add the probability of each class.")
@option("--raw", is_flag=True, section="Results", help="Write all outputs of the model as they are.")
@output_option(help="A .csv, .tsv, .parquet, .npy or .npz file.  [default: CSV to standard output]")
@force_option
@task_option
@batch_axis_option
@compute_options
def predict(
    model: Path,
    data: str,
    columns: tuple[str, ...],
    inputs: tuple[str, ...],
    proba: bool,
    raw: bool,
    output: Path | None,
    force: bool,
    task: str,
    batch_axis: tuple[str, ...],
    device: str,
    threads: int | None,
) -> None:
    """Predict with MODEL, an .onnx file, for every row of DATA.

    DATA is a CSV, Parquet, Arrow or NumPy file, a folder of such files or a pattern like 'part-*.parquet'.
    It is read block by block and may be larger than memory. Predictions come in the order of the rows:
    numbers, or labels where the model is a classifier. A model that was trained by this program knows the
    names of its columns, so that they may stand in any order and among others.
    """
    from .outputs import check_outputs, replacing
    from .writers import ENDINGS

    if proba and raw:
        raise click.UsageError("Give --proba or --raw, not both.")
    check_outputs({"--output": (output, ENDINGS)}, force, [model])
    from .models import Model
    from .predictor import Predictor, read_rows
    from .tables import Table, features_of
    from .writers import open_writer

    found, table = Model(model, batch_axis), Table(data)
    check_outputs({"--output": (output, ENDINGS)}, force, [model, *table.files()])
    features = features_of(found, table, columns, inputs, [])
    predictor = Predictor(found, found.choose_task(task)[0], device, threads)
    rows = read_rows(found, table, features)
    ending = ".csv" if output is None else output.suffix.lower()
    arranged = (_arranged(predictor(part), found, ending, proba, raw) for part in rows)
    if output is None:
        with open_writer(sys.stdout, ending) as writer:
            for part in arranged:
                writer.write(part)
        return
    count = 0
    with replacing(output) as temporary, open_writer(temporary, ending) as writer:
        for part in arranged:
            writer.write(part)
            count += len(next(iter(part.values())))
    say(f"{count:,} predictions: {output}", err=True)


def _arranged(answers: Answers, model: Any, ending: str, proba: bool, raw: bool) -> dict[str, np.ndarray]:
    """The arrays that are written for some rows."""
    from .writers import flat_columns

    arrays, headings = _chosen(answers, model, proba, raw)
    if ending == ".npy":
        if len(arrays) > 1 and not proba:
            raise click.UsageError(
                f"An .npy file holds one array; there are {', '.join(map(repr, arrays))}: write .npz."
            )
        return dict([list(arrays.items())[-1]])
    return arrays if ending == ".npz" else flat_columns(arrays, headings)


def _chosen(answers: Answers, model: Any, proba: bool, raw: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays by name, and names of the columns of those that have some."""
    import numpy as np

    if raw:
        return answers.outputs, {}
    if answers.labels is None:
        if proba:
            raise click.UsageError("--proba is for classifiers; this model predicts numbers.")
        return _numbers(answers, model)
    arrays: dict[str, Any] = {"prediction": answers.labels}
    headings: dict[str, Any] = {}
    if answers.multilabel:
        headings["prediction"] = [f"prediction_{c}" for c in answers.classes]
    if proba:
        if answers.probabilities is None:
            raise click.UsageError(
                f"{model.path} computes scores that are no probabilities: --raw writes them."
            )
        arrays["probability"] = answers.probabilities
        places = np.ndindex(answers.probabilities.shape[1:-1])
        headings["probability"] = [
            "_".join(["probability", *map(str, place), str(c)]) for place in places for c in answers.classes
        ]
    return arrays, headings


def _numbers(answers: Answers, model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Predictions of a regressor: called after the target where that is known."""
    if len(answers.values) > 1:
        return answers.values, {}
    (array,) = answers.values.values()
    target = [] if model.card is None else model.card.target
    width = array.reshape(len(array), -1).shape[1] if array.size else 1
    named = len(target) == width > 1
    return {"prediction": array}, {"prediction": [f"prediction_{t}" for t in target]} if named else {}
