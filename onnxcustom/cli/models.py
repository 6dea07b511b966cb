"""What a model file is to a command: its inputs, its task, and where its scores and labels are."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import onnx
import onnx_ir as ir

from onnxcustom._text import count, listed
from onnxcustom.exceptions import InvalidDataError, InvalidModelError, OnnxCustomError
from onnxcustom.feed.specs import TensorSpec, input_specs
from onnxcustom.graph import class_labels, find_logits, load, prepare
from onnxcustom.graph.analysis.decision import Decision
from onnxcustom.graph.files.feature_names import read_feature_names
from onnxcustom.graph.shapes.batch_axis import BatchAxes

from .card import Card, read_card
from .phrases import assigned, parse_value

__all__ = ["Model", "of_file", "of_text"]


@contextlib.contextmanager
def of_file(path: Path | str) -> Iterator[None]:
    """Let errors of a model name its file."""
    try:
        yield
    except OnnxCustomError as exc:
        if str(path) not in str(exc) and isinstance(exc, InvalidModelError):
            raise type(exc)(f"{path}: {exc}") from exc
        raise


def of_text(spec: TensorSpec) -> bool:
    """Whether an input takes text."""
    return spec.dtype is not None and spec.dtype.kind in "OUS"


class Model:
    """A model file that was read.

    Parameters
    ----------
    path : Path
        The file.
    batch_axis : sequence of str
        As it was typed for ``--batch-axis``.

    Raises
    ------
    InvalidModelError
        It holds no valid model.
    """

    def __init__(self, path: Path, batch_axis: Sequence[str] = ()) -> None:
        self.path = path
        with of_file(path):
            self.proto: onnx.ModelProto = load(path)
        self.card: Card | None = read_card(self.proto)
        names = [v.name for v in (*self.proto.graph.input, *self.proto.graph.output)]
        known = {} if self.card is None else self.card.batch_axis
        #: Where rows are, as far as the command or the card says.
        self.batch_axis = {n: axis for n, axis in known.items() if n in names}
        self.batch_axis.update(_axes(batch_axis, names))

    @functools.cached_property
    def columns(self) -> dict[str, list[str]]:
        """Columns that the model was trained on, by input; empty if it knows none."""
        found = read_feature_names(self.proto)
        if found or self.card is None:
            return {name: list(names) for name, names in found.items()}
        return self.card.columns

    @functools.cached_property
    def prepared(self) -> ir.Model:
        """The model in the form that others look at."""
        with of_file(self.path):
            return prepare(self.proto)

    @functools.cached_property
    def axes(self) -> BatchAxes:
        """Where the rows of inputs and outputs are."""
        with of_file(self.path):
            return BatchAxes(self.prepared, self.batch_axis)

    @functools.cached_property
    def inputs(self) -> list[TensorSpec]:
        """Inputs that are not initializers."""
        made = input_specs(self.prepared)
        tensors = {i.name for i in self.proto.graph.input if i.type.HasField("tensor_type")}
        for spec in made:
            if spec.name not in tensors:
                raise InvalidModelError(f"{self.path}: input {spec.name!r} is no tensor.")
            if spec.dtype is None:
                raise InvalidModelError(f"{self.path}: input {spec.name!r} has no type.")
        if not made:
            raise InvalidModelError(f"{self.path}: the model has no inputs.")
        return [dataclasses.replace(spec, axis=self.axes.inputs.get(spec.name, 0)) for spec in made]

    @functools.cached_property
    def outputs(self) -> dict[str, int]:
        """Element type of the outputs that are tensors, 0 of others, by name."""
        return {
            info.name: info.type.tensor_type.elem_type if info.type.HasField("tensor_type") else 0
            for info in self.proto.graph.output
        }

    def output_axis(self, name: str) -> int | None:
        """Where the rows of an output are; None if it has none."""
        known = {str(v.name) for v in self.prepared.graph.outputs if v.producer() is not None}
        return self.axes.of(name) if name in known else 0

    @functools.cached_property
    def score_output(self) -> str | None:
        """The output with scores or probabilities; None if there is none."""
        from onnxcustom.training.estimators.outputs import probability_output

        if self.card is not None and self.card.output in self.outputs:
            return self.card.output
        try:
            return probability_output(self.prepared)
        except InvalidModelError:
            return None

    @functools.cached_property
    def decision(self) -> Decision:
        """What the scores mean: as the training wrote it down, else as the graph says."""
        name, card = self.score_output, self.card
        if card is not None and card.output == name and card.classes:
            return Decision(card.link, card.multilabel)
        found = Decision.of(None if name is None else find_logits(self.prepared, name))
        # Which of several is the label, where the model says one, is one question.
        return found if self.label_output is None else Decision(found.link)

    @functools.cached_property
    def label_output(self) -> str | None:
        """The output with labels: the first one that holds integers or text."""
        kinds = onnx.TensorProto
        label_types = (kinds.INT64, kinds.INT32, kinds.STRING)
        return next((name for name, kind in self.outputs.items() if kind in label_types), None)

    @functools.cached_property
    def graph_classes(self) -> list[Any] | None:
        """Labels that the graph itself holds, in the order of its columns."""
        found = class_labels(self.prepared)
        return None if found is None else found.tolist()

    @property
    def classes(self) -> list[Any] | None:
        """Labels in the order of the columns of the scores, if they are known."""
        if self.graph_classes is not None:
            return self.graph_classes
        return None if self.card is None else self.card.classes

    @functools.cached_property
    def task(self) -> tuple[str, str]:
        """What the model does, and how one can tell."""
        if self.card is not None:
            return self.card.task, "what it was trained for"
        if self.score_output is not None:
            logits = find_logits(self.prepared, self.score_output)
            if logits is not None:
                return "classification", f"the model ends in a {logits.kind.capitalize()}"
        if self.graph_classes is not None:
            return "classification", "the model holds labels"
        if self.label_output is not None:
            return "classification", f"output {self.label_output!r} holds labels"
        return "regression", "the model ends in numbers, not probabilities or labels"

    def choose_task(self, asked: str) -> tuple[str, str]:
        """The task that ``--task`` means, and why."""
        return self.task if asked == "auto" else (asked, "as asked for")

    def check_widths(self, widths: dict[str, int], where: str, names: dict[str, list[str]]) -> None:
        """Compare numbers of columns with those of the inputs.

        Raises
        ------
        InvalidDataError
            Listing the columns.
        """
        for spec in self.inputs:
            wanted, found = spec.width, widths.get(spec.name)
            if wanted is None or found is None or wanted == found:
                continue
            option = "--columns" if len(self.inputs) == 1 else f"--input {spec.name}="
            raise InvalidDataError(
                f"{self.path}: input {spec} takes {count(wanted, 'column')}, and {where} "
                f"has {found} for it: {listed(names[spec.name])}. Name those it takes, in its order, "
                f"with {option}."
            )


def _axes(typed: Sequence[str], names: Sequence[str]) -> dict[str, int | None]:
    """What ``--batch-axis`` says."""
    made = {}
    for name, text in assigned(typed, names, "--batch-axis").items():
        value = made[name] = parse_value(text)
        if value is not None and type(value) is not int:
            raise click.UsageError(f"--batch-axis {name}={text}: an axis or none was expected.")
    return made
