"""A user's batch as what the graphs of a recipe read: checked, converted, named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from onnxcustom.data.blocks import Key
from onnxcustom.exceptions import InvalidDataError
from onnxcustom.feed.specs import TensorSpec, of_batch, rows_of
from onnxcustom.feed.stream_rows import axes_of
from onnxcustom.feed.validation import as_inputs, as_targets, weights_of
from onnxcustom.runtime.binding import is_c_ortvalue

from .compose import Weighted
from .recipe import Recipe
from .targets import Target, part_shape, settled, softened

__all__ = [
    "Feeds",
    "check_expected",
    "check_values",
    "data_axes",
    "feeds_of",
    "settled_by",
    "settled_by_shapes",
    "softened_by",
]


class Feeds(NamedTuple):
    """Arrays of any number of rows."""

    arrays: dict[str, np.ndarray]
    """By input of the graph."""
    specs: dict[str, TensorSpec]
    """What each is to be."""
    weighted: Weighted
    """What the weights are of, if there are some."""

    def expected(self, name: str) -> tuple[np.ndarray, bool]:
        """Expected values, and whether they are one for each row of a model that takes one at a time."""
        return self.arrays[name], self.specs[name].is_each(self.arrays[name])

    def of_batch(self) -> dict[str, np.ndarray]:
        """The arrays as the graph reads them."""
        return {name: of_batch(array, self.specs[name]) for name, array in self.arrays.items()}

    def renamed(self, names: Mapping[str, str]) -> Feeds:
        """The same for a graph that calls some of its inputs otherwise."""
        return Feeds(
            {names.get(name, name): array for name, array in self.arrays.items()},
            {names.get(name, name): spec for name, spec in self.specs.items()},
            self.weighted,
        )


def feeds_of(recipe: Recipe, X: Any, y: Any, sample_weight: Any = None) -> Feeds:
    """Inputs, expected values and row weights of a batch.

    Parameters
    ----------
    recipe : Recipe
        Its targets are settled.
    X, y, sample_weight
        As for :meth:`~onnxcustom.TrainingStep.run`.

    Raises
    ------
    InvalidDataError
        The batch does not fit the model.
    """
    arrays = as_inputs(X, recipe.inputs)
    specs = {spec.name: spec for spec in recipe.inputs}
    rows = rows_of(arrays, recipe.inputs)
    expected = as_targets(y, recipe.expected, rows)
    check_expected(recipe, expected)
    weighted: Weighted = sample_weight is not None
    if weighted:
        weights, like = weights_of(sample_weight, rows, recipe.scalar_dtype, recipe.expected, expected)
        weighted = "labels" if like.weighed else True
    graph = recipe.graph(weighted)
    names = dict(zip((spec.name for spec in recipe.expected), graph.given, strict=True))
    arrays.update({names[name]: array for name, array in expected.items()})
    specs.update({names[spec.name]: spec for spec in recipe.expected})
    if graph.sample_weight is not None:
        arrays[graph.sample_weight], specs[graph.sample_weight] = weights, like
    return Feeds(arrays, specs, weighted)


def check_expected(recipe: Recipe, expected: Mapping[str, np.ndarray]) -> None:
    """Check expected values by output name, converted already, against what the losses allow."""
    for target in recipe.targets:
        target.check_expected(expected[target.expects[0]])


def check_values(values: Any) -> None:
    """Refuse a batch that is no list of OrtValues.

    Raises
    ------
    InvalidDataError
        What it is in place of one.
    """
    if not isinstance(values, (list, tuple)):
        raise InvalidDataError(f"A batch is a list of OrtValues, not {values!r:.60}.")
    for value in values:
        if not (hasattr(value, "_ortvalue") or is_c_ortvalue(value)):
            raise InvalidDataError(
                f"A batch is a list of OrtValues, and holds a {type(value).__name__}: run() takes arrays."
            )


def data_axes(recipe: Recipe) -> dict[Key, dict[int, int | None]]:
    """Where the rows of data as a user gives it are, as :meth:`onnxcustom.data.Stream.place` takes it."""
    axes = axes_of(recipe.inputs, recipe.expected)
    for target, spec in zip(recipe.targets, recipe.expected, strict=False):
        rank = None if target.shape is None else len(target.shape)
        if axes and rank is not None and rank != spec.rank and not spec.each:
            axes[Key("y", spec.name)][rank] = target.rows  # one-hot
    return axes


def settled_by(recipe: Recipe, X: Any, y: Any) -> list[Target]:
    """The targets, the axis of the classes decided by the shape of labels where nothing else does."""
    inputs = [part_shape(X, spec.name) for spec in recipe.inputs]
    return settled_by_shapes(recipe, inputs + [part_shape(y, t.output) for t in recipe.targets])


def softened_by(recipe: Recipe, y: Any) -> list[Target]:
    """The targets, with probabilities of classes where expected values have the shape of the prediction."""
    single = len(recipe.targets) == 1 and not isinstance(y, Mapping)
    shapes = [part_shape(y, t.output) if single or isinstance(y, Mapping) else None for t in recipe.targets]
    return softened(recipe.targets, shapes)


def settled_by_shapes(recipe: Recipe, shapes: Sequence[tuple[int, ...] | None]) -> list[Target]:
    """:func:`settled_by` the shapes of inputs and expected values, in the order of a batch."""
    n, targets = len(recipe.inputs), list(recipe.targets)
    return settled(targets, recipe.inputs, shapes[:n], shapes[n : n + len(targets)])
