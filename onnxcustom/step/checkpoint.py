"""Recipe and state of a training step as arrays and plain data: what a checkpoint of it consists of."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxcustom._parameters import check_number
from onnxcustom._text import listed
from onnxcustom._warnings import warn_user
from onnxcustom.exceptions import CheckpointError, InvalidDataError
from onnxcustom.graph import constants
from onnxcustom.optim.clock import Clock
from onnxcustom.optim.serialization import clock_to_dict, load_clock, load_rate, rate_to_dict

from .carrying import same_arrays
from .plan import Origin
from .recipe import Recipe
from .state import State
from .targets import divided_as
from .unfreezing import unfrozen
from .window import Window

__all__ = ["COUNT", "export_state", "import_state", "leave_out_older"]

_COUNTS = ("iteration", "skipped", "pending", "pending_rows")
_KEYS = frozenset({"born", "clock", "learning_rate", "modes", "optimizer", *_COUNTS})
# Whether losses count labels; not there in older checkpoints, whose losses count rows of the batch.
_POSITIONS = "positions"
# Labels or rows of every output in the batches that are accumulated; not there in older checkpoints.
_UNITS = "pending_units"
# The batches that are announced; not there if none are.
_WINDOW = "window"
# Weights that have joined in the middle of training; not there if none have.
_JOINED = "joined"
# Whether penalties have no part in what is accumulated; not there in older checkpoints, where they have.
_APART = "penalties_apart"
# Counts in files: what a float64 holds exactly.
COUNT = "[0, 9e15]"


def export_state(recipe: Recipe, state: State) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What :meth:`~onnxcustom.TrainingStep.state_dict` returns."""
    rule, at = recipe.rule.on(state.clock), state.position
    tensors = {name: buffer.read([own])[0] for name, (buffer, own) in state.tensors().items()}
    tensors.update({f"constants/{name}": np.array(recipe.moved[name]) for name in sorted(recipe.moved)})
    return tensors, {
        "optimizer": type(rule).__name__,
        "learning_rate": rate_to_dict(rule),
        "clock": clock_to_dict(rule),
        **{name: getattr(at, name) for name in _COUNTS},
        _UNITS: None if at.pending_units is None else list(at.pending_units),
        "born": state.origin.ages(recipe.weights),
        "modes": {**dataclasses.asdict(recipe.modes), "seed": int(state.origin.seed)},
        _POSITIONS: {t.output: t.positions for t in recipe.targets},
        _APART: True,
        **({} if at.window is None else {_WINDOW: dataclasses.asdict(at.window)}),
        **({_JOINED: list(recipe.joined)} if recipe.joined else {}),
    }


def import_state(
    recipe: Recipe, state: State, tensors: Mapping[str, np.ndarray], data: Mapping[str, Any]
) -> tuple[Recipe, State]:
    """What :meth:`~onnxcustom.TrainingStep.load_state_dict` does: a recipe and a state that fit each other.

    They are the ones given, overwritten, as far as what was saved is of these.
    """
    recipe, state = _with_joined(recipe, state, data)
    arrays = _checked_tensors(recipe, state, tensors)
    clock = _checked_state(recipe, state, data)
    origin = _origin(recipe, data)
    targets = tuple(divided_as(recipe.targets, data.get(_POSITIONS, {})))
    changes: dict[str, Any] = {} if targets == recipe.targets else {"targets": targets}
    moved = {name: np.array(array) for name, array in _part(arrays, "constants/").items()}
    if not same_arrays(moved, recipe.moved):
        changes["moved"] = moved

    # Nothing below is refused.
    state.clock.become(clock)
    if changes:
        recipe = recipe.replace(**changes)
    if origin != state.origin:
        state = State(recipe, state.device, state.read(), state.clock, origin)
    for name, (buffer, own) in state.tensors().items():
        buffer.write({own: arrays[name]})
    units = data.get(_UNITS)
    state.count(
        **{name: int(data[name]) for name in _COUNTS},
        pending_units=None if units is None else list(units),
        window=Window.load(data.get(_WINDOW), len(recipe.targets)),
    )
    if _APART not in data:
        leave_out_older(recipe, state)
    return recipe, state


def _with_joined(recipe: Recipe, state: State, data: Mapping[str, Any]) -> tuple[Recipe, State]:
    """A recipe and a state with the weights that had joined; nothing of those given is changed."""
    joined = data.get(_JOINED, []) if isinstance(data, Mapping) else []
    known = recipe.constants
    if not isinstance(joined, list) or not all(isinstance(n, str) and n in known for n in joined):
        raise _unfit(f"{_JOINED!r} names weights of the model, it is {joined!r:.200}")
    names = [name for name in joined if name not in recipe.weights]
    return unfrozen(recipe, state, names) if names else (recipe, state)


def leave_out_older(recipe: Recipe, state: State) -> None:
    """Leave out what an older version has accumulated, with the gradient of penalties in it."""
    pending = state.position.pending
    if pending and recipe.penalties:
        warn_user(
            f"The gradients of {pending} batches that were accumulated by an older version are left "
            "out: the penalty would count twice. Training goes on with the weights and the state that were "
            "saved.",
            UserWarning,
        )
        state.forget_accumulated()


def _part(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name[len(prefix) :]: array for name, array in tensors.items() if name.startswith(prefix)}


# -- checks ------------------------------------------------------------------------------------------


def _checked_tensors(
    recipe: Recipe, state: State, tensors: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Arrays that fit the step, each by its name."""
    if not isinstance(tensors, Mapping):
        raise _unfit(f"its tensors must be arrays by name, not {tensors!r:.60}")
    arrays = {str(name): np.asarray(array) for name, array in tensors.items()}
    likes = {
        name: buffer.values[buffer.front][own].numpy() for name, (buffer, own) in state.tensors().items()
    }
    if missing := sorted(set(likes) - set(arrays)):
        raise _unfit(f"it has no {listed(missing, 5)}")
    # Constants that another step has handed on come in addition, or don't.
    moved = _part(arrays, "constants/")
    likes.update({f"constants/{name}": array for name, array in _constants(recipe, moved).items()})
    if extra := sorted(set(arrays) - set(likes)):
        raise _unfit(f"it has {listed(extra, 5)}, which this step does not keep")
    for name, array in arrays.items():
        _check_array(name, array, likes[name])
    try:
        recipe.check_variances({**_part(arrays, "statistics/"), **moved})
    except InvalidDataError as exc:
        raise _unfit(str(exc).rstrip(".")) from exc
    return arrays


def _check_array(name: str, array: np.ndarray, like: np.ndarray) -> None:
    if (array.shape, array.dtype) != (like.shape, like.dtype):
        raise _unfit(
            f"{name!r} has shape {array.shape} and dtype {array.dtype} there, {like.shape} and "
            f"{like.dtype} here"
        )
    if like.dtype.kind == "f" and not np.isfinite(array).all():
        raise _unfit(f"{name!r} holds NaN or infinity")


def _constants(recipe: Recipe, names: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Those constants of the model that a checkpoint has, too."""
    try:
        return constants(recipe.prepared, names)
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
    if not isinstance(state, Mapping) or set(state) - {_POSITIONS, _UNITS, _APART, _WINDOW, _JOINED} != _KEYS:
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
    if _WINDOW in state and Window.load(state[_WINDOW], len(recipe.targets)) is None:
        raise _unfit(f"{_WINDOW} is {state[_WINDOW]!r:.60}, not what is known of batches to come")
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
    if not isinstance(modes, Mapping) or set(modes) != {*here, "seed"}:
        raise _unfit(f"'modes' must have {sorted((*here, 'seed'))}, it is {modes!r}")
    for name, mode in here.items():
        if modes[name] != mode:
            raise _unfit(f"it was trained with {name}={modes[name]!r}, this step has {mode!r}")


def _origin(recipe: Recipe, state: Mapping[str, Any]) -> Origin:
    """Where a training that was saved counts from."""
    try:
        return Origin.of({name: state["born"][name] for name in recipe.weights}, state["modes"]["seed"])
    except (TypeError, ValueError) as exc:
        raise _unfit(str(exc).rstrip(".")) from exc


def _check_positions(recipe: Recipe, counted: Any) -> None:
    outputs = {t.output for t in recipe.targets}
    if not isinstance(counted, Mapping) or not all(isinstance(v, bool) for v in counted.values()):
        raise _unfit(f"{_POSITIONS!r} says of every output whether its loss counts labels, it is {counted!r}")
    if counted and set(counted) != outputs:
        raise _unfit(f"it has losses of the outputs {sorted(counted)}, this step of {sorted(outputs)}")


def _check_count(what: str, value: Any, most: int | None = None) -> None:
    _check_number(what, value, COUNT if most is None else f"[0, {most}]")


def _check_number(what: str, value: Any, interval: str) -> None:
    try:
        check_number(what, value, interval, integral=True)
    except (TypeError, ValueError, OverflowError) as exc:
        raise _unfit(str(exc).rstrip(".")) from exc


def _unfit(what: str) -> CheckpointError:
    return CheckpointError(f"The checkpoint does not fit this training step: {what}.")
