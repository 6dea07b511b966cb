"""Tensors brought into a training step from elsewhere: from arrays of the caller, or from another step."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxcustom._warnings import warn_user
from onnxcustom.exceptions import UnknownNameError
from onnxcustom.graph import constants, weights

from .plan import Origin
from .recipe import Recipe
from .state import State
from .targets import Target, divided_as

__all__ = ["placed", "same_arrays", "taken_over"]


def placed(recipe: Recipe, state: State, tensors: Mapping[str, np.ndarray]) -> Recipe:
    """A recipe, and the state, with other values of tensors of the model.

    Those that are trained, and statistics that are updated, are overwritten in the state; others are part of
    the model, and the recipe is another one if they are others.

    Parameters
    ----------
    recipe : Recipe
        What is trained.
    state : State
        Its state; overwritten.
    tensors : mapping of str to ndarray
        By name.

    Raises
    ------
    UnknownNameError, InvalidDataError
        A name that the model does not have, or an array that does not fit; nothing is changed.
    """
    made = _with_constants(recipe, {n: a for n, a in tensors.items() if not state.has(n)})
    made.check_variances(tensors)
    state.write({n: a for n, a in tensors.items() if state.has(n)})
    return made


def taken_over(
    recipe: Recipe, state: State, other: Recipe, done: State, *, joining: bool = False
) -> tuple[Recipe, State]:
    """What :meth:`~onnxcustom.TrainingStep.take_over` does: `recipe` at the weights that `other` is at.

    `recipe` goes on with the state, the clock and the counts as well, if its rule is the same. Weights that
    are `joining` those of `other` have had no part in what that has accumulated, which goes on.

    Raises
    ------
    UnknownNameError, InvalidDataError
        The other step is of another model; nothing is changed.
    """
    trained = {**done.weights(), **done.running()}
    known = recipe.constants
    if unknown := [name for name in trained if name not in known]:
        raise UnknownNameError(
            f"The other step changes {unknown}, which this model does not have; its weights are "
            f"{list(weights(recipe.prepared))}: take_over() goes on with a step of the same model."
        )
    tensors = {**weights(other.prepared), **other.moved, **trained}
    tensors = {name: array for name, array in tensors.items() if name in known}
    made = _with_constants(recipe, {n: a for n, a in tensors.items() if not state.has(n)})
    made = made.replace(columns=other.columns, **_divided_as(made, other))
    own = {n: a for n, a in tensors.items() if state.has(n)}
    if not made.rule.continues(other.rule):
        state.write(own)
        state.set_averages(done.averages())
        _warn_of_lost(done)
        return made, state
    kept = {w: states for w, states in done.of_rule().items() if w in made.weights}
    # The age of a weight is part of the graphs, and of what is updated as one.
    ages = done.origin.ages(list(kept))
    born = {w: ages.get(w, done.position.iteration) for w in made.weights}
    clock = made.rule.on(state.clock).begun()
    clock.follow(done.clock)
    origin = Origin.of(born, state.origin.seed)
    target = State(made, state.device, state.read(), clock, origin)
    target.write(own)

    # Nothing below is refused.
    target.set_averages(done.averages())
    target.set_of_rule(kept, made.rule)
    same = made.rule.accumulate == other.rule.accumulate and (joining or made.weights == other.weights)
    target.go_on_from(done, accumulated=same)
    if _units(made) != _units(other):
        target.count(pending_units=None, window=None)
    if not same:
        _warn_of_lost(done)
    return made, target


def _with_constants(recipe: Recipe, tensors: Mapping[str, np.ndarray]) -> Recipe:
    """A recipe with other values of constants of its model."""
    before = constants(recipe.model, tensors)
    changed = {n: np.array(a) for n, a in tensors.items() if not _same_bits(np.asarray(a), before[n])}
    if not changed:
        return recipe
    made = recipe.replace(moved={**recipe.moved, **changed})
    made.model  # noqa: B018 - refuses what does not fit
    return made


def _divided_as(recipe: Recipe, other: Recipe) -> dict[str, tuple[Target, ...]]:
    """Targets that count labels, or rows, as another recipe of the same losses does, if they change."""
    counted = {t.output: t.positions for t in other.targets if t.loss.counts_positions}
    counted = {t.output: counted.get(t.output, t.positions) for t in recipe.targets}
    made = tuple(divided_as(recipe.targets, counted))
    return {} if made == recipe.targets else {"targets": made}


def _units(recipe: Recipe) -> list[tuple[str, bool]]:
    """Outputs, and whether each is divided by its labels."""
    return [(t.output, t.counted) for t in recipe.targets]


def _warn_of_lost(done: State) -> None:
    pending = done.position.pending
    if pending:
        warn_user(
            f"The gradients of {pending} batches that the other step has accumulated are left out: this "
            "one trains other weights, by another rule, or accumulates otherwise. Call apply_accumulated() "
            "of that step first to have them count.",
            UserWarning,
        )


def same_arrays(some: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray]) -> bool:
    """Whether arrays have the same names and bits."""
    return some.keys() == others.keys() and all(_same_bits(a, others[n]) for n, a in some.items())


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()
