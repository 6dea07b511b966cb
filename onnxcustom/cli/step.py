"""``onnxcustom step``: a training step as a model."""

from __future__ import annotations

from pathlib import Path

import click

from .base import Command, say
from .options import engine_option, force_option, model_argument, option, output_option, weights_options

__all__ = ["step"]


@click.command(
    cls=Command,
    short_help="Write a training step as one graph.",
    examples=[
        ("One step of Adam on a classifier", "step iris.onnx --optimizer adam -o step.onnx"),
        (
            "One of the last layer, with weights of the rows",
            "step house.onnx --loss huber:delta=2 --weights last:1 --sample-weight",
        ),
    ],
)
@model_argument
@option(
    "--loss",
    metavar="NAME[:OPTIONS]",
    section="Model",
    help="Such as squared_error, huber:delta=2, log_loss, or an .onnx file.  [default: the cross-entropy "
    "that fits, if the model ends in a Sigmoid or a Softmax, else squared_error]",
)
@option("--output-name", metavar="NAME", section="Model", help="Output of the model that is trained.")
@weights_options
@option(
    "--penalty",
    metavar="NAME:FACTOR",
    multiple=True,
    section="Model",
    help="l1:0.01, l2:0.01, elastic:l1=0.01,l2=0.1; of some weights 'dense*=l2:0.01'.",
)
@option("--sample-weight", is_flag=True, section="Model", help="Take a weight for each row.")
@option(
    "--optimizer",
    metavar="NAME[:OPTIONS]",
    default="sgd",
    show_default=True,
    section="Training",
    help="Such as sgd:momentum=0.9, adam, adamw:wd=0.01, lamb or lion.",
)
@output_option(help="Where it goes.  [default: MODEL_step.onnx in this folder]")
@force_option
@engine_option
def step(
    model: Path,
    loss: str | None,
    output_name: str | None,
    weights: tuple[str, ...],
    freeze: tuple[str, ...],
    penalty: tuple[str, ...],
    sample_weight: bool,
    optimizer: str,
    output: Path | None,
    force: bool,
    engine: str,
) -> None:
    """Write a training step of MODEL, an .onnx file, as one graph that any onnxruntime runs.

    Its inputs are a batch and what is expected of it, the weights, the state of the optimizer, the learning
    rate and the number of the step; its outputs the loss, the new weights and the new state. The metadata
    entry onnxcustom.step says in JSON which is which.
    """
    from .outputs import check_outputs, default_output

    target = default_output(model, "step") if output is None else output
    check_outputs({"--output": (target, (".onnx",))}, force, [model])
    from onnxcustom.graph import save
    from onnxcustom.graph import weights as graph_weights
    from onnxcustom.step.training_step import TrainingStep

    from .graphs import describe_graph, fitting_name
    from .models import Model, of_file
    from .phrases import split_names
    from .rules import loss_name, make_loss, make_optimizer, make_penalty

    penalties, rule, found = make_penalty(penalty), make_optimizer(optimizer), Model(model)
    names = list(graph_weights(found.proto)) if weights or freeze else []
    with of_file(model):
        fitting = fitting_name(found, output_name, None if loss is None else make_loss(loss))
        made = TrainingStep(
            found.proto,
            fitting if output_name is None else {output_name: fitting},
            rule,
            split_names(weights, names) or None,
            penalties,
            engine,
            freeze=split_names(freeze, names) or None,
            sample_weight=sample_weight,
        )
    graph = made.model
    save(graph, target)
    say(f"{target}: loss {loss_name(made.targets[0].loss)} of output {made.targets[0].output!r}, {optimizer}")
    say(describe_graph(graph))
