"""Everything a training step keeps, as arrays and plain data: what a checkpoint of it consists of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnxcustom._parameters import check_number
from onnxcustom.exceptions import CheckpointError, UnknownNameError
from onnxcustom.graph import constants, replace_constants, replace_weights, weights
from onnxcustom.optim import BaseLearningRate
from onnxcustom.optim.serialization import clock_to_dict, load_clock, load_rate, rate_to_dict

from .targets import divided_as

if TYPE_CHECKING:
    from .step import TrainingStep

__all__ = ["export_state", "import_state", "shared_constants"]

_KEYS = frozenset(
    {
        "born",
        "clock",
        "iteration",
        "learning_rate",
        "modes",
        "optimizer",
        "pending",
        "pending_rows",
        "skipped",
    }
)
# Whether losses count labels; not there in older checkpoints, whose losses count rows of the batch.
_POSITIONS = "positions"
# Counts in files: what a float64 holds exactly.
_COUNT = "[0, 9e15]"


def export_state(step: TrainingStep) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What :meth:`~onnxcustom.TrainingStep.state_dict` returns."""
    tensors = {f"weights/{name}": array for name, array in step.weights().items()}
    for name, states in step.state().items():
        tensors.update({f"state/{name}/{key}": array for key, array in states.items()})
    tensors.update({f"statistics/{name}": array for name, array in step.statistics().items()})
    sums = _accumulated(step)
    tensors.update(zip(sums, step._accumulated.read(sums.values()), strict=True))
    tensors.update({f"constants/{name}": array for name, array in _moved(step).items()})
    return tensors, {
        "optimizer": type(step.optimizer).__name__,
        "learning_rate": rate_to_dict(step.optimizer),
        "clock": clock_to_dict(step.optimizer),
        "iteration": step.iteration,
        "skipped": step.skipped,
        "born": _ages(step, step._born),
        "pending": step._pending,
        "pending_rows": step._pending_rows,
        "modes": {**dataclasses.asdict(step.modes), "seed": int(step.modes.seed)},
        _POSITIONS: {t.output: t.positions for t in step.targets},
    }


def import_state(step: TrainingStep, tensors: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> None:
    """What :meth:`~onnxcustom.TrainingStep.load_state_dict` does."""
    arrays = _checked_tensors(step, tensors)
    optimizer = _checked_state(step, state)
    moved = _part(arrays, "constants/")
    proto = _with(step._proto, moved)
    modes = dataclasses.replace(step.modes, seed=int(state["modes"]["seed"]))

    # Nothing below is refused.
    vars(step.optimizer).update(vars(optimizer))
    for name in ("iteration", "skipped", "pending", "pending_rows"):
        setattr(step, f"_{name}" if name.startswith("pending") else name, int(state[name]))
    step._retarget(divided_as(step.targets, state.get(_POSITIONS, {})))
    older = _ages(step, step._born) != _ages(step, state["born"])
    remade = older or modes != step.modes or moved
    step._born, step.modes = {name: int(state["born"][name]) for name in step._weights}, modes
    step._proto, step._moved = proto, frozenset(moved)
    if remade:  # all of this is part of the graphs
        step._forget_sessions()
    kept = _kept(step)
    values = {old: arrays[name] for name, old in kept.items()}
    statistics = _part(arrays, "statistics/")
    sums = {old: arrays[name] for name, old in _accumulated(step).items()}
    if older:  # what is updated as one lies side by side
        step._allocate(step._graph(step._weighted), values, statistics, sums)
    else:
        step._buffers.write(values)
        step._statistics.write(statistics)
        step._accumulated.write(sums)


# -- names -------------------------------------------------------------------------------------------


def _kept(step: TrainingStep) -> dict[str, str]:
    """Tensor of a checkpoint -> graph input, of weights and their states."""
    names = {f"weights/{name}": name for name in step._weights}
    for name, states in step._graph(step._weighted).state.items():
        names.update({f"state/{name}/{key}": old for key, (old, _) in states.items()})
    return names


def _accumulated(step: TrainingStep) -> dict[str, str]:
    """Tensor of a checkpoint -> graph input, of accumulated gradients."""
    graph = step._graph(step._weighted)
    return {f"accumulated/{name}": old for name, (old, _) in graph.accumulated.items()}


def _moved(step: TrainingStep) -> dict[str, np.ndarray]:
    """Constants of the model that are not trained and no longer what the user's model has."""
    return _of_model(step._proto, sorted(step._moved))


def _ages(step: TrainingStep, born: Mapping[str, int]) -> dict[str, int]:
    """The number of updates that were done when a weight joined, for every weight."""
    return {name: born.get(name, 0) for name in step._weights}


def _part(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name[len(prefix) :]: array for name, array in tensors.items() if name.startswith(prefix)}


def _of_model(proto: onnx.ModelProto, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Constants of a model by name: weights, which may lie in branches, and others."""
    if not names:
        return {}
    found = {name: array for name, array in weights(proto).items() if name in names}
    return {**found, **constants(proto, [name for name in names if name not in found])}


def shared_constants(proto: onnx.ModelProto, names: Sequence[str]) -> list[str]:
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


def _checked_tensors(step: TrainingStep, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays that fit the step, each by its name."""
    arrays = {str(name): np.asarray(array) for name, array in tensors.items()}
    wanted, _ = export_state(step)
    given = set(arrays)
    # Constants that another step handed on may come in addition.
    extra = {name for name in given - set(wanted) if not name.startswith("constants/")}
    if missing := sorted(set(wanted) - given):
        raise _unfit(f"it has no {_listed(missing)}")
    if extra:
        raise _unfit(f"it has {_listed(sorted(extra))}, which this step does not keep")
    wanted.update({f"constants/{n}": array for n, array in _constants(step, arrays).items()})
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


def _constants(step: TrainingStep, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those constants of the model that a checkpoint has, too."""
    names = list(_part(arrays, "constants/"))
    try:
        return _of_model(step._proto, names)
    except ValueError as exc:
        raise _unfit(f"it has constants that the model does not have: {exc}") from exc


def _checked_state(step: TrainingStep, state: Mapping[str, Any]) -> BaseLearningRate:
    """A copy of the optimizer at the saved clock; the rest of the state is as it should be."""
    if not isinstance(state, Mapping) or set(state) - {_POSITIONS} != _KEYS:
        found = sorted(map(str, state)) if isinstance(state, Mapping) else repr(state)
        raise _unfit(f"the state of a step has {sorted(_KEYS)}, not {found}")
    name = type(step.optimizer).__name__
    if state["optimizer"] != name:
        raise _unfit(f"its optimizer is {state['optimizer']!r}, that of this step is {name!r}")
    for key in ("iteration", "skipped", "pending", "pending_rows"):
        _check_count(key, state[key])
    if state["pending"] >= step.optimizer.accumulate:
        raise _unfit(
            f"it has accumulated {state['pending']} batches, this step accumulates "
            f"{step.optimizer.accumulate}"
        )
    _check_born(step, state)
    _check_modes(step, state["modes"])
    _check_positions(step, state.get(_POSITIONS, {}))
    if state["clock"] is None:
        raise _unfit("its clock was not started")
    optimizer = step.optimizer.bound()
    load_rate(optimizer, state["learning_rate"])
    load_clock(optimizer, state["clock"])
    return optimizer


def _check_born(step: TrainingStep, state: Mapping[str, Any]) -> None:
    born = state["born"]
    if not isinstance(born, Mapping) or set(born) != set(step._weights):
        raise _unfit(f"'born' must have a number for each of the weights {step._weights}, it is {born!r}")
    for name, count in born.items():
        _check_count(f"the step at which {name!r} joined", count, state["iteration"])


def _check_modes(step: TrainingStep, modes: Any) -> None:
    here = dataclasses.asdict(step.modes)
    if not isinstance(modes, Mapping) or set(modes) != set(here):
        raise _unfit(f"'modes' must have {sorted(here)}, it is {modes!r}")
    for name in ("batch_norm", "dropout"):
        if modes[name] != here[name]:
            raise _unfit(f"it was trained with {name}={modes[name]!r}, this step has {here[name]!r}")
    _check_number("the seed of the masks", modes["seed"], "(-inf, inf)")


def _check_positions(step: TrainingStep, counted: Any) -> None:
    outputs = {t.output for t in step.targets}
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
