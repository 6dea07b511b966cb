"""``onnxcustom edit``: changes to a model before it is trained."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .base import Command, say
from .options import batch_axis_option, force_option, model_argument, option, output_option

if TYPE_CHECKING:
    import onnx

__all__ = ["edit"]

_SHOWN = 10


@click.command(
    cls=Command,
    short_help="Change a model before it is trained: another head, any batch.",
    examples=[
        ("Five classes, any number of rows", "edit iris.onnx --head 5 --dynamic-batch --untie -o new.onnx"),
        ("Classes by name, and a seed", "edit iris.onnx --head red,green,blue --seed 1"),
        ("Any number of rows, called rows", "edit house.onnx --dynamic-batch --batch rows -o free.onnx"),
    ],
)
@model_argument
@option(
    "--head",
    metavar="OUTPUTS",
    section="Changes",
    help="A new last layer: a number of outputs, or the labels of the classes with commas between them.",
)
@option(
    "--at",
    metavar="NAME",
    section="Changes",
    help="The layer that --head replaces, by its node or the tensor it computes.  [default: the last one]",
)
@option(
    "--activation",
    type=click.Choice(["auto", "softmax", "sigmoid", "none"]),
    default="auto",
    show_default=True,
    section="Changes",
    help="What makes probabilities of the scores of --head.",
)
@option("--seed", type=int, default=0, show_default=True, section="Changes", help="Seed of the new layer.")
@option("--dynamic-batch", is_flag=True, section="Changes", help="Take any number of rows.")
@option(
    "--batch",
    metavar="NAME",
    default="N",
    show_default=True,
    section="Changes",
    help="What --dynamic-batch calls the dimension of the rows.",
)
@option(
    "--untie",
    is_flag=True,
    section="Changes",
    help="A copy for each node that reads a weight, unless the model ties them by design.",
)
@option(
    "--dequantize",
    is_flag=True,
    section="Changes",
    help="Floating-point weights, which can be trained, in place of integers.",
)
@option(
    "--keep-layers",
    metavar="PLACES",
    section="Changes",
    help="Of the blocks that the model repeats, those at these places from 0, with commas between them; or "
    "a number of them, such as 3, at even distances; 0, is the first one alone.",
)
@batch_axis_option
@output_option(help="Where it goes.  [default: MODEL_edited.onnx in this folder]")
@force_option
def edit(
    model: Path,
    head: str | None,
    at: str | None,
    activation: str,
    seed: int,
    dynamic_batch: bool,
    batch: str,
    untie: bool,
    dequantize: bool,
    keep_layers: str | None,
    batch_axis: tuple[str, ...],
    output: Path | None,
    force: bool,
) -> None:
    """Change MODEL, an .onnx file, before it is trained; the changes are made in the order of this line.

    Integers become floating-point numbers (--dequantize), some of the blocks go (--keep-layers), shared
    weights become copies (--untie), a fixed size of the batch any (--dynamic-batch), and the last layer
    another one (--head). What each has done is said.
    """
    from .outputs import check_outputs, default_output
    from .phrases import parse_outputs, parse_places

    target = default_output(model, "edited") if output is None else output
    check_outputs({"--output": (target, (".onnx",))}, force, [model])
    if not (head or dynamic_batch or untie or dequantize or keep_layers):
        raise click.UsageError(
            "Say what to change: --head, --dynamic-batch, --untie, --dequantize or --keep-layers."
        )
    if head is None and (at or activation != "auto"):
        raise click.UsageError("--at and --activation are for --head.")
    outputs = None if head is None else parse_outputs(head)
    keep = None if keep_layers is None else parse_places(keep_layers)
    from onnxcustom.graph import save

    from .graphs import describe_graph
    from .models import Model, of_file

    found, lines = Model(model, batch_axis), _Lines()
    with of_file(model):
        made = lines.weights(found.proto, dequantize, False)
        if keep is not None:
            made = lines.blocks(made, keep)
        made = lines.weights(made, False, untie)
        if dynamic_batch:
            made = lines.dynamic(made, batch, found.batch_axis)
        if outputs is not None:
            made = lines.head(made, outputs, at=at, seed=seed, activation=activation)
    save(made, target)
    say("\n  ".join([f"{target}", *lines]))
    say(describe_graph(made))


class _Lines(list[str]):
    """Changes to a model, and a line for each that says what it has done."""

    def weights(self, made: onnx.ModelProto, dequantize: bool, untie: bool) -> onnx.ModelProto:
        """Weights in place of integers, and of those that are shared."""
        from onnxcustom import tuning
        from onnxcustom.graph import weights

        for word, wanted, change in (
            ("dequantized", dequantize, tuning.dequantize),
            ("untied", untie, tuning.untie),
        ):
            if wanted:
                old, made = list(weights(made)), change(made)
                new = list(weights(made))
                added = [name for name in new if name not in old]
                self.append(f"{word}: {len(added)} new weights{_named(added)}, {len(new)} in all")
        return made

    def blocks(self, made: onnx.ModelProto, keep: int | list[int]) -> onnx.ModelProto:
        """Some of the blocks that the model repeats."""
        from onnxcustom import tuning
        from onnxcustom.graph import weights

        before = len(made.graph.node), sum(w.size for w in weights(made).values())
        with _told(self):
            made = tuning.drop_layers(made, keep)
        after = len(made.graph.node), sum(w.size for w in weights(made).values())
        self.append(
            f"{after[0]} nodes of {before[0]} and {after[1]} numbers of {before[1]} in weights are left"
        )
        return made

    def dynamic(self, made: onnx.ModelProto, batch: str, batch_axis: Mapping[str, Any]) -> onnx.ModelProto:
        """Any number of rows."""
        from onnxcustom import tuning

        inputs = {info.name for info in made.graph.input}
        axes = {n: a for n, a in batch_axis.items() if n in inputs}
        with _told(self):
            made = tuning.make_dynamic(made, batch, batch_axis=axes or None)
        self.append(f"takes any number of rows, {batch}, as compared with rows alone")
        return made

    def head(self, made: onnx.ModelProto, outputs: Any, **options: Any) -> onnx.ModelProto:
        """Another last layer."""
        from onnxcustom import tuning

        made = tuning.replace_head(made, outputs, **options)
        _forget_card(made)
        self.append(_of_head(made))
        return made


def _named(names: Sequence[str]) -> str:
    if not names:
        return ""
    return f" ({', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})"


def _of_head(made: onnx.ModelProto) -> str:
    """What the new layer is."""
    from onnxcustom.graph import weights

    held = weights(made)
    shapes = ", ".join(f"{n} {list(held[n].shape)}" for n in ("head_weight", "head_bias") if n in held)
    return f"a new last layer: {shapes}"


def _forget_card(made: onnx.ModelProto) -> None:
    """Drop what the file says of the data it was trained on: its classes are others."""
    from .card import KEY

    kept = [p for p in made.metadata_props if p.key != KEY]
    del made.metadata_props[:]
    made.metadata_props.extend(kept)


@contextlib.contextmanager
def _told(lines: list[str]) -> Iterator[None]:
    """Keep what the library tells of its work."""
    logger, handler = logging.getLogger("onnxcustom"), logging.Handler()
    level = logger.level
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
