"""Weights that join those that are trained, in the middle of a training."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from onnxcustom.exceptions import InvalidModelError
from onnxcustom.graph import Selection, constants, find_logits
from onnxcustom.graph.trainable.selection import Catalog
from onnxcustom.objective import select_penalties

from .carrying import taken_over
from .plan import Origin
from .recipe import Recipe, check_types
from .state import State

__all__ = ["joining", "missing", "unfrozen"]


def missing(recipe: Recipe, selection: Selection) -> list[str]:
    """Weights that are chosen, not trained so far, and not frozen by an option of the rule.

    Raises
    ------
    UnknownNameError, NoTrainableWeightError, InvalidModelError
        As for :func:`~onnxcustom.graph.select_weights`.
    """
    chosen = Catalog(recipe.choices).select(selection)
    return [name for name in chosen if name not in recipe.weights and not recipe.rule.is_frozen(name)]


def joining(recipe: Recipe, names: Collection[str]) -> Recipe:
    """A recipe that trains some more weights.

    Weights are in graph order, unless they were in another one, which new ones then follow.

    Raises
    ------
    InvalidModelError
        A weight that no step can train.
    """
    model = recipe.model.take()
    catalog = Catalog(recipe.choices)
    order = [*catalog.names, *catalog.others]
    if [*recipe.weights] == [name for name in order if name in recipe.weights]:
        weights = tuple(name for name in order if name in recipe.weights or name in names)
    else:
        weights = (*recipe.weights, *(name for name in order if name in names))
    check_types(model, names, [])
    start = constants(recipe.model, weights)
    found = select_penalties(recipe.penalty, model, start, order)
    penalties = {
        name: penalty
        for name in weights
        if (penalty := (found if name in names else recipe.penalties).get(name)) is not None
    }
    joined = (*recipe.joined, *(name for name in weights if name in names))
    _check_ends(recipe, model, weights)
    return recipe.replace(weights=weights, penalties=penalties, joined=joined)


def _check_ends(recipe: Recipe, model: ir.Model, weights: Collection[str]) -> None:
    """Refuse a weight behind what a loss is taken on: it is taken on what a final Softmax reads, say."""
    for target in recipe.targets:
        if target.link is None or target.value == target.output:
            continue
        found = find_logits(model, target.output, weights)
        if found is None or found.name != target.value:
            raise InvalidModelError(
                f"The loss of {target.output!r} is taken on {target.value!r}, before the {target.link}, and "
                "a weight that is to join lies behind that: train it from the beginning."
            )


def unfrozen(recipe: Recipe, state: State, names: Collection[str]) -> tuple[Recipe, State]:
    """A recipe and a state that train some more weights, from where they are.

    What was trained before goes on with its state, what is accumulated with it; weights that join have a
    state of their own beginning, and count their steps from here.
    """
    made = joining(recipe, names)
    first = {**constants(recipe.model, made.weights), **state.weights()}
    first = {name: first[name] for name in made.weights}
    fresh = State.begin(made, state.device, first, Origin(seed=state.origin.seed))
    return taken_over(made, fresh, recipe, state, joining=True)
