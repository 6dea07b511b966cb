"""``onnxcustom train``: train a model on the rows of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .base import Command
from .options import (
    batch_axis_option,
    columns_options,
    compute_options,
    data_argument,
    engine_option,
    force_option,
    model_argument,
    option,
    output_option,
    task_option,
    weights_options,
)

__all__ = ["train"]

_DATA, _MODEL, _TRAINING, _RESULTS = "Data", "Model", "Training", "Results"


@click.command(
    cls=Command,
    short_help="Train a model on the rows of a file.",
    examples=[
        ("Classify", "train iris.onnx iris.csv --target species --epochs 50 --lr 0.1"),
        (
            "Watch rows that are held out, and keep the best weights",
            "train iris.onnx iris.csv --target species --validation 0.2 --early-stopping 5",
        ),
        (
            "Measure a score as well",
            "train iris.onnx iris.csv --target species --validation 0.2 --metric accuracy",
        ),
        ("Train the last layer only", "train house.onnx house.parquet --target price --weights last:1"),
        (
            "Adam with weight decay and a schedule",
            "train house.onnx house.parquet --target price --optimizer adam:wd=0.1 --schedule cosine",
        ),
        (
            "Take some columns of a larger file, and draw curves",
            "train house.onnx town.parquet --target price --columns area,rooms,age --plot loss.png",
        ),
        (
            "Survive whatever ends it: the same command goes on where it was",
            "train house.onnx house.parquet --target price --epochs 100 --checkpoint run -o new.onnx",
        ),
    ],
)
@model_argument
@data_argument
@option(
    "--target",
    metavar="COLUMN",
    multiple=True,
    required=True,
    section=_DATA,
    help="Column of the expected values, labels or numbers; several with commas or repeated.",
)
@columns_options
@option("--sample-weight", metavar="COLUMN", section=_DATA, help="Column of the weights of the rows.")
@option(
    "--validation",
    metavar="PART|FILE",
    section=_DATA,
    help="Part of the rows that is held out, such as 0.1, or a file of other rows.",
)
@option(
    "--stream/--no-stream",
    default=None,
    section=_DATA,
    help="Read the file anew in each epoch, or keep its rows in memory.  [default: in memory up to 512 MB]",
)
@task_option
@option(
    "--loss",
    metavar="NAME[:OPTIONS]",
    section=_MODEL,
    help="Such as squared_error, absolute_error, huber:delta=2, poisson, log_loss, hinge, or an .onnx file.  "
    "[default: squared_error, or the cross-entropy that fits]",
)
@option(
    "--head",
    metavar="OUTPUTS|auto",
    section=_MODEL,
    help="A new last layer: a number of outputs, labels with commas between them, or auto: what the target "
    "needs, if that is another number.",
)
@option("--output-name", metavar="NAME", section=_MODEL, help="Output of the model that is trained.")
@weights_options
@option(
    "--penalty",
    metavar="NAME:FACTOR",
    multiple=True,
    section=_MODEL,
    help="l1:0.01, l2:0.01, elastic:l1=0.01,l2=0.1; of some weights 'dense*=l2:0.01'.",
)
@option(
    "--class-weight",
    metavar="balanced|LABEL=W,...",
    section=_MODEL,
    help="Weights of the classes, beside those of rows.",
)
@batch_axis_option
@option(
    "--batch-norm",
    type=click.Choice(["frozen", "update"]),
    default="frozen",
    show_default=True,
    section=_MODEL,
    help="Statistics of BatchNormalization: the model's own, or those of batches.",
)
@option(
    "--dropout",
    type=click.Choice(["off", "on"]),
    default="off",
    show_default=True,
    section=_MODEL,
    help="Whether Dropout drops.",
)
@option(
    "--cache-frozen",
    type=click.Choice(["no", "yes", "auto"]),
    default="no",
    show_default=True,
    section=_TRAINING,
    help="Compute what lies before the first trained weight once for every row; auto: where possible.",
)
@option(
    "--cache-bytes",
    type=click.IntRange(min=0),
    default=2**30,
    metavar="N",
    section=_TRAINING,
    help="Bytes that this may take.  [default: 1 GiB]",
)
@option(
    "--cache-dir",
    type=click.Path(file_okay=False),
    metavar="FOLDER",
    section=_TRAINING,
    help="Keep what is built of the model here, so that the next training of it starts sooner.",
)
@option(
    "--average",
    metavar="ema[:OPTIONS]",
    section=_TRAINING,
    help="Moving average of the weights, to be validated and written: ema, ema:decay=0.99,start=100.",
)
@option(
    "--lora",
    metavar="RANK|lora:OPTIONS",
    section=_TRAINING,
    help="Adapters beside frozen weights, which alone are trained: 8, lora:rank=8,targets=attention.",
)
@option(
    "--quantize",
    metavar="TYPE[:OPTIONS]",
    section=_TRAINING,
    help="Round to integers in training and write those: int8, int4, int8:learned_scales=true.",
)
@option(
    "--teacher",
    metavar="FILE",
    section=_TRAINING,
    help="A model of the same outputs that this one learns from, beside the expected values.",
)
@option(
    "--teacher-temperature",
    type=float,
    default=2.0,
    show_default=True,
    section=_TRAINING,
    help="What scores of both are divided by when they are compared.",
)
@option(
    "--teacher-alpha",
    type=float,
    default=0.5,
    show_default=True,
    section=_TRAINING,
    help="Part of the teacher in the objective.",
)
@option(
    "--optimizer",
    metavar="NAME[:OPTIONS]",
    default="sgd",
    show_default=True,
    section=_TRAINING,
    help="Such as sgd:momentum=0.9, adam, adamw:wd=0.01, lamb or lion.",
)
@option(
    "--lr", type=float, metavar="RATE", section=_TRAINING, help="Learning rate.  [default: the optimizer's]"
)
@option(
    "--schedule",
    metavar="NAME[:OPTIONS]",
    section=_TRAINING,
    help="Of the learning rate: cosine, linear, step:step_size=10, milestones:milestones=[10,20], "
    "exponential:gamma=0.9, onecycle, restarts:period=5, plateau:patience=3 ... Lengths are in epochs.",
)
@option(
    "--warmup",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    section=_TRAINING,
    help="Epochs in which the learning rate rises to its first value.",
)
@option(
    "--epochs",
    type=click.IntRange(min=1),
    default=20,
    metavar="N",
    show_default=True,
    section=_TRAINING,
    help="Times that every row is seen.",
)
@option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=32,
    metavar="N",
    show_default=True,
    section=_TRAINING,
    help="Rows in a batch.",
)
@option(
    "--pairs",
    metavar="COLUMN|N",
    section=_TRAINING,
    help="Rows with the same number or text in this column, or N rows behind each other, are in one batch.",
)
@option(
    "--m-per-class",
    type=click.IntRange(min=1),
    metavar="N",
    section=_TRAINING,
    help="Batches of classes with N rows of each.",
)
@option(
    "--shuffle/--no-shuffle",
    default=None,
    section=_TRAINING,
    help="Another order in each epoch.  [default: shuffle]",
)
@option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    metavar="N",
    show_default=True,
    section=_TRAINING,
    help="Of the order, of the rows held out and of Dropout.",
)
@option(
    "--metric",
    "metrics",
    metavar="NAME",
    multiple=True,
    section=_TRAINING,
    help="A score after every epoch, such as accuracy, f1_macro, r2 or mean_iou, see evaluate; may be "
    "repeated.",
)
@option(
    "--early-stopping",
    type=click.IntRange(min=1),
    metavar="N",
    section=_TRAINING,
    help="Stop after N epochs without improvement and keep the best weights.",
)
@option(
    "--monitor",
    metavar="NAME",
    section=_TRAINING,
    help="What has to improve, such as val_accuracy.  [default: val_loss, or loss]",
)
@option(
    "--time-budget",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    section=_TRAINING,
    help="Stop when the time is up.",
)
@option(
    "--nonfinite",
    type=click.Choice(["error", "stop"]),
    default="error",
    show_default=True,
    section=_TRAINING,
    help="When the loss is NaN or infinite: fail, or stop and write the weights of the best epoch before.",
)
@output_option(help="The trained model.  [default: MODEL_trained.onnx in this folder]")
@option(
    "--checkpoint",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    section=_RESULTS,
    help="Save the training here, when it is interrupted and every so often. The same command goes on "
    "from it.",
)
@option(
    "--checkpoint-every",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    section=_RESULTS,
    help="What is lost at most when the machine fails.",
)
@option(
    "--plot",
    metavar="FILE",
    type=click.Path(path_type=Path),
    section=_RESULTS,
    help="Curves of losses and scores: .png, .svg or .pdf.",
)
@option(
    "--history",
    metavar="FILE",
    type=click.Path(path_type=Path),
    section=_RESULTS,
    help="Losses and scores of each epoch: .csv or .json; called FILE.part.csv until training ends.",
)
@force_option
@option("-q", "--quiet", is_flag=True, section=_RESULTS, help="Print nothing but errors and warnings.")
@engine_option
@compute_options
def train(**options: Any) -> int | None:
    """Train MODEL, an .onnx file, on DATA, a file of rows.

    DATA is a CSV, Parquet, Arrow or NumPy file, a folder of such files or a pattern like 'part-*.parquet';
    what is larger than memory is read in blocks. The trained model is MODEL with other weights. Ctrl-C
    saves the training if there is a --checkpoint. Nothing that exists is overwritten without --force.

    Exits with 0 when the model is written, 1 if it cannot be trained, 2 if an option, a file or the data is
    wrong, 130 when interrupted.
    """
    from .settings import Settings, check_results

    settings = Settings(**options)
    check_results(settings)
    from .training import run_training

    return run_training(settings)
