"""Recipe and state of a training step as arrays and plain data: what a checkpoint of it consists of."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from onnxcustom._parameters import check_number
from onnxcustom.exceptions import CheckpointError, UnknownNameError
from onnxcustom.graph import constants, replace_constants, replace_weights, weights
from onnxcustom.optim.clock import Clock
from onnxcustom.optim.serialization import clock_to_dict, load_clock, load_rate, rate_to_dict

from .recipe import Recipe
from .state import State
from .targets import Target, divided_as, has_positions

__all__ = ["carried_over", "export_state", "import_state", "started_from", "with_statistics"]

_COUNTS = ("iteration", "skipped", "pending", "pending_rows")
_KEYS = frozenset({"born", "clock", "learning_rate", "modes", "optimizer", *_COUNTS})
# Whether losses count labels; not there in older checkpoints, whose losses count rows of the batch.
_POSITIONS = "positions"
# Labels or rows of every output in the batches that are accumulated; not there in older checkpoints.
_UNITS = "pending_units"
# Counts in files: what a float64 holds exactly.
_COUNT = "[0, 9e15]"


def export_state(recipe: Recipe, state: State) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What :meth:`~onnxcustom.TrainingStep.state_dict` returns."""
    rule = recipe.rule.on(state.clock)
    tensors = {name: buffer.read([own])[0] for name, (buffer, own) in state.tensors().items()}
    tensors.update({f"constants/{n}": a for n, a in _of_model(recipe.proto, sorted(recipe.moved)).items()})
    return tensors, {
        "optimizer": type(rule).__name__,
        "learning_rate": rate_to_dict(rule),
        "clock": clock_to_dict(rule),
        **{name: getattr(state, name) for name in _COUNTS},
        _UNITS: None if state.pending_units is None else list(state.pending_units),
        "born": _ages(recipe, recipe.born),
        "modes": {**dataclasses.asdict(recipe.modes), "seed": int(recipe.modes.seed)},
        _POSITIONS: {t.output: t.positions for t in recipe.targets},
    }


def import_state(
    recipe: Recipe, state: State, tensors: Mapping[str, np.ndarray], data: Mapping[str, Any]
) -> tuple[Recipe, State]:
    """What :meth:`~onnxcustom.TrainingStep.load_state_dict` does: a recipe and a state that fit each other.

    They are the ones given, overwritten, as far as what was saved is of these.
    """
    arrays = _checked_tensors(recipe, state, tensors)
    clock = _checked_state(recipe, state, data)
    born = {name: int(data["born"][name]) for name in recipe.weights}
    changes = {
        "targets": tuple(divided_as(recipe.targets, data.get(_POSITIONS, {}))),
        "modes": dataclasses.replace(recipe.modes, seed=int(data["modes"]["seed"])),
        "born": born,
    }
    aged = _ages(recipe, recipe.born) != born
    present = {"targets": recipe.targets, "modes": recipe.modes, "born": _ages(recipe, recipe.born)}
    changes = {name: value for name, value in changes.items() if value != present[name]}
    if moved := _part(arrays, "constants/"):
        changes["proto"] = _with(recipe.proto, moved)
    if frozenset(moved) != recipe.moved:
        changes["moved"] = frozenset(moved)

    # Nothing below is refused.
    state.clock.become(clock)
    if changes:  # all of this is part of the graphs
        recipe = recipe.replace(**changes)
    if aged:  # what is updated as one lies side by side
        state = State(recipe, state.device, state.read(), state.clock)
    for name, (buffer, own) in state.tensors().items():
        buffer.write({own: arrays[name]})
    for name in _COUNTS:
        setattr(state, name, int(data[name]))
    units = data.get(_UNITS)
    state.pending_units = None if units is None else list(units)
    return recipe, state


def carried_over(recipe: Recipe, state: State, other: Recipe, done: State) -> tuple[Recipe, State]:
    """What :meth:`~onnxcustom.TrainingStep.take_over` does: `recipe` at the weights that `other` is at.

    `recipe` goes on with the state, the clock and the counts as well, if its rule is the same.
    """
    trained = {**weights(replace_weights(other.proto, done.weights())), **done.weights()}
    known = {*weights(recipe.proto), *recipe.weights, *_shared_constants(recipe.proto, other.weights)}
    tensors = {name: array for name, array in trained.items() if name in known}
    handed_on = _shared_constants(recipe.proto, [n for n in sorted(other.moved) if n not in trained])
    statistics = {**_of_model(other.proto, handed_on), **done.running()}
    made = _with_statistics(_started_from(recipe, tensors), state, statistics)
    made = made.replace(columns=other.columns, targets=_divided_as(made, other))
    goes_on, target = made.rule.continues(other.rule), state
    kept = {w: states for w, states in done.of_rule().items() if w in made.weights}
    if goes_on:  # the age of a weight is part of the graphs, and of what is updated as one
        born = {w: other.born.get(w, 0) if w in kept else done.iteration for w in made.weights}
        made = made.replace(born=born)
        clock = made.rule.on(state.clock).begun()
        clock.follow(done.clock)
        target = State(made, state.device, state.read(), clock)
    target.set_weights({name: array for name, array in tensors.items() if name in made.weights})

    # Nothing below is refused.
    target.set_running(statistics)
    if not goes_on:
        return made, target
    target.set_of_rule(kept, made.rule)
    same = made.rule.accumulate == other.rule.accumulate and made.weights == other.weights
    target.go_on_from(done, accumulated=same)
    if _units(made) != _units(other):
        target.pending_units = None
    return made, target


def _divided_as(recipe: Recipe, other: Recipe) -> tuple[Target, ...]:
    """Targets that count labels, or rows, as another recipe does whose losses are the same."""
    counted = {t.output: t.positions for t in other.targets if t.loss.counts_positions}
    counted = {t.output: counted.get(t.output, t.positions) for t in recipe.targets}
    made = tuple(divided_as(recipe.targets, counted))
    return recipe.targets if made == recipe.targets else made


def _units(recipe: Recipe) -> list[tuple[str, bool]]:
    """Outputs, and whether each is divided by its labels."""
    return [(t.output, t.counts_positions and has_positions(t)) for t in recipe.targets]


def started_from(recipe: Recipe, state: State, tensors: Mapping[str, np.ndarray]) -> Recipe:
    """What :meth:`~onnxcustom.TrainingStep.start_from` does to the recipe, and to the state."""
    made = _started_from(recipe, tensors)
    state.set_weights({name: array for name, array in tensors.items() if name in recipe.weights})
    return made


def _started_from(recipe: Recipe, tensors: Mapping[str, np.ndarray]) -> Recipe:
    """A recipe with other values of what it does not train: the state has the rest."""
    others = {name: array for name, array in tensors.items() if name not in recipe.weights}
    before = constants(recipe.proto, others)
    frozen = {n: a for n, a in others.items() if not _same_bits(a, before[n])}
    if not frozen:
        return recipe
    return recipe.replace(proto=replace_weights(recipe.proto, frozen), moved=recipe.moved | frozen.keys())


def with_statistics(recipe: Recipe, state: State, statistics: Mapping[str, np.ndarray]) -> Recipe:
    """A recipe with other statistics in its model; those that are trained are overwritten in the state."""
    made = _with_statistics(recipe, state, statistics)
    state.set_running(statistics)
    return made


def _with_statistics(recipe: Recipe, state: State, statistics: Mapping[str, np.ndarray]) -> Recipe:
    if trained := [name for name in statistics if name in recipe.weights]:
        raise UnknownNameError(f"{trained} are trained weights, not statistics: use set_weights().")
    moved = {name: a for name, a in statistics.items() if name not in state.statistics.names}
    if not moved:
        return recipe
    proto = replace_constants(recipe.proto, moved)
    return recipe.replace(proto=proto, moved=recipe.moved | moved.keys())


# -- names -------------------------------------------------------------------------------------------


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


def _ages(recipe: Recipe, born: Mapping[str, int]) -> dict[str, int]:
    """The number of updates that were done when a weight joined, for every weight."""
    return {name: born.get(name, 0) for name in recipe.weights}


def _part(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name[len(prefix) :]: array for name, array in tensors.items() if name.startswith(prefix)}


def _of_model(proto: onnx.ModelProto, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Constants of a model by name: weights, which may lie in branches, and others."""
    if not names:
        return {}
    found = {name: array for name, array in weights(proto).items() if name in names}
    return {**found, **constants(proto, [name for name in names if name not in found])}


def _shared_constants(proto: onnx.ModelProto, names: Sequence[str]) -> list[str]:
    """Those of the names that are constants of the model."""
    found = []
    for name in names:
        try:
            constants(proto, [name])
        except UnknownNameError:
            continue
        found.append(name)
    return found


def _with(proto: onnx.ModelProto, tensors: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """The model with other values of constants."""
    if not tensors:
        return proto
    known = weights(proto)
    proto = replace_weights(proto, {name: array for name, array in tensors.items() if name in known})
    return replace_constants(proto, {name: array for name, array in tensors.items() if name not in known})


# -- checks ------------------------------------------------------------------------------------------


def _checked_tensors(
    recipe: Recipe, state: State, tensors: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Arrays that fit the step, each by its name."""
    arrays = {str(name): np.asarray(array) for name, array in tensors.items()}
    wanted, _ = export_state(recipe, state)
    given = set(arrays)
    # Constants that another step handed on may come in addition.
    extra = {name for name in given - set(wanted) if not name.startswith("constants/")}
    if missing := sorted(set(wanted) - given):
        raise _unfit(f"it has no {_listed(missing)}")
    if extra:
        raise _unfit(f"it has {_listed(sorted(extra))}, which this step does not keep")
    wanted.update({f"constants/{n}": array for n, array in _constants(recipe, arrays).items()})
    for name, array in arrays.items():
        like = wanted[name]
        if (array.shape, array.dtype) != (like.shape, like.dtype):
            raise _unfit(
                f"{name!r} has shape {array.shape} and dtype {array.dtype} there, {like.shape} and "
                f"{like.dtype} here"
            )
        if name.startswith("weights/") and not np.isfinite(array).all():
            raise _unfit(f"{name!r} holds NaN or infinity")
    return arrays


def _constants(recipe: Recipe, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those constants of the model that a checkpoint has, too."""
    names = list(_part(arrays, "constants/"))
    try:
        return _of_model(recipe.proto, names)
    except ValueError as exc:
        raise _unfit(f"it has constants that the model does not have: {exc}") from exc


def _check_units(recipe: Recipe, state: Mapping[str, Any]) -> None:
    units = state.get(_UNITS)
    if units is None:
        return
    if not isinstance(units, list) or len(units) != len(recipe.targets):
        raise _unfit(f"{_UNITS} is {units!r:.60}, and {len(recipe.targets)} outputs are trained")
    for number in units:
        _check_count(_UNITS, number)


def _checked_state(recipe: Recipe, present: State, state: Mapping[str, Any]) -> Clock:
    """The saved clock; the rest of the state is as it should be."""
    if not isinstance(state, Mapping) or set(state) - {_POSITIONS, _UNITS} != _KEYS:
        found = sorted(map(str, state)) if isinstance(state, Mapping) else repr(state)
        raise _unfit(f"the state of a step has {sorted(_KEYS)}, not {found}")
    name = type(recipe.rule).__name__
    if state["optimizer"] != name:
        raise _unfit(f"its optimizer is {state['optimizer']!r}, that of this step is {name!r}")
    for key in _COUNTS:
        _check_count(key, state[key])
    if state["pending"] >= recipe.rule.accumulate:
        raise _unfit(
            f"it has accumulated {state['pending']} batches, this step accumulates {recipe.rule.accumulate}"
        )
    _check_units(recipe, state)
    _check_born(recipe, state)
    _check_modes(recipe, state["modes"])
    _check_positions(recipe, state.get(_POSITIONS, {}))
    if state["clock"] is None:
        raise _unfit("its clock was not started")
    rule = recipe.rule.on(copy.copy(present.clock))
    load_rate(rule, state["learning_rate"])
    load_clock(rule, state["clock"])
    return rule.clock


def _check_born(recipe: Recipe, state: Mapping[str, Any]) -> None:
    born = state["born"]
    if not isinstance(born, Mapping) or set(born) != set(recipe.weights):
        raise _unfit(
            f"'born' must have a number for each of the weights {list(recipe.weights)}, it is {born!r}"
        )
    for name, count in born.items():
        _check_count(f"the step at which {name!r} joined", count, state["iteration"])


def _check_modes(recipe: Recipe, modes: Any) -> None:
    here = dataclasses.asdict(recipe.modes)
    if not isinstance(modes, Mapping) or set(modes) != set(here):
        raise _unfit(f"'modes' must have {sorted(here)}, it is {modes!r}")
    for name in ("batch_norm", "dropout"):
        if modes[name] != here[name]:
            raise _unfit(f"it was trained with {name}={modes[name]!r}, this step has {here[name]!r}")
    _check_number("the seed of the masks", modes["seed"], "(-inf, inf)")


def _check_positions(recipe: Recipe, counted: Any) -> None:
    outputs = {t.output for t in recipe.targets}
    if not isinstance(counted, Mapping) or not all(isinstance(v, bool) for v in counted.values()):
        raise _unfit(f"{_POSITIONS!r} says of every output whether its loss counts labels, it is {counted!r}")
    if counted and set(counted) != outputs:
        raise _unfit(f"it has losses of the outputs {sorted(counted)}, this step of {sorted(outputs)}")


def _check_count(what: str, value: Any, most: int | None = None) -> None:
    _check_number(what, value, _COUNT if most is None else f"[0, {most}]")


def _check_number(what: str, value: Any, interval: str) -> None:
    try:
        check_number(what, value, interval, integral=True)
    except (TypeError, ValueError, OverflowError) as exc:
        raise _unfit(str(exc).rstrip(".")) from exc


def _unfit(what: str) -> CheckpointError:
    return CheckpointError(f"The checkpoint does not fit this training step: {what}.")


def _listed(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:5]))
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
