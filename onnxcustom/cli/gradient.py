"""``onnxcustom gradient``: the gradient of a model as a model."""

from __future__ import annotations

from pathlib import Path

import click

from .base import Command, say
from .options import engine_option, force_option, model_argument, option, output_option

__all__ = ["gradient"]


@click.command(
    cls=Command,
    short_help="Write the graph of a model's gradients.",
    examples=[
        ("With respect to inputs and weights", "gradient house.onnx -o grad.onnx"),
        ("With respect to the inputs alone", "gradient house.onnx --no-weights -o sensitivity.onnx"),
        ("With respect to the last layer", "gradient house.onnx --weights last:1 --no-inputs"),
    ],
)
@model_argument
@option(
    "--weights",
    metavar="NAMES",
    multiple=True,
    section="Gradient",
    help="Weights: names, patterns such as 'dense*', biases, normalizations, last:N or first:N layers, with "
    "commas or repeated.  [default: all]",
)
@option("--no-weights", is_flag=True, section="Gradient", help="None of the weights.")
@option(
    "--inputs",
    metavar="NAMES",
    multiple=True,
    section="Gradient",
    help="Inputs of the model, with commas or repeated.  [default: all that have a gradient]",
)
@option("--no-inputs", is_flag=True, section="Gradient", help="None of the inputs.")
@option(
    "--outputs",
    metavar="NAMES",
    multiple=True,
    section="Gradient",
    help="Outputs that a gradient comes in from.  [default: all of floating point]",
)
@output_option(help="Where it goes.  [default: MODEL_gradient.onnx in this folder]")
@force_option
@engine_option
def gradient(
    model: Path,
    weights: tuple[str, ...],
    no_weights: bool,
    inputs: tuple[str, ...],
    no_inputs: bool,
    outputs: tuple[str, ...],
    output: Path | None,
    force: bool,
    engine: str,
) -> None:
    """Write the graph that computes the gradients of MODEL, an .onnx file.

    Its inputs are those of MODEL, its weights, and OUTPUT_grad for each output: the gradient that comes in.
    Its outputs are NAME_grad for inputs and weights, then those of MODEL. Any onnxruntime runs it. Nothing
    is run here.
    """
    from .outputs import check_outputs, default_output

    target = default_output(model, "gradient") if output is None else output
    check_outputs({"--output": (target, (".onnx",))}, force, [model])
    if (weights and no_weights) or (inputs and no_inputs):
        raise click.UsageError("Name weights or give --no-weights, name inputs or give --no-inputs.")
    if no_weights and no_inputs:
        raise click.UsageError("--no-weights and --no-inputs leave nothing to differentiate by.")
    from onnxcustom.gradient import gradient_graph
    from onnxcustom.graph import save, select_weights
    from onnxcustom.graph import weights as graph_weights

    from .graphs import describe_graph
    from .models import Model, of_file
    from .phrases import split_names

    found = Model(model)
    names = list(graph_weights(found.proto)) if weights else []
    chosen = (
        [] if no_weights else select_weights(found.proto, split_names(weights, names)) if weights else None
    )
    sources = [] if no_inputs else split_names(inputs, [s.name for s in found.inputs]) or None
    targets = split_names(outputs, list(found.outputs)) or None
    with of_file(model):
        made = gradient_graph(found.proto, chosen, sources, targets, engine)
    save(made, target)
    say(f"{target}\n{describe_graph(made)}")
