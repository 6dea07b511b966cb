"""What a checkpoint holds of a training, and going on from it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcustom._parameters import is_count
from onnxcustom._plain import Path, from_plain, place, to_plain
from onnxcustom.exceptions import CheckpointError
from onnxcustom.feed.fingerprint import describe, differences, hash_model
from onnxcustom.training.checkpoints.checkpoint import Saved

if TYPE_CHECKING:
    from onnxcustom.step.training_step import TrainingStep

    from .callbacks.base import Callback
    from .plan import Resumed
    from .run import Run, Training

__all__ = ["capture", "checked", "fingerprint", "restore_callbacks", "take_place"]

# What the state of a checkpoint holds.
_ENTRIES: dict[str, Any] = {
    "fingerprint": Mapping,
    "seed": int,
    "n_iter": int,
    "epochs": int,
    "history": Mapping,
    "position": Mapping,
    "stopped": (str, type(None)),
    "step": Mapping,
    "callbacks": list,
}
# Parameters that may change when a run is resumed: how long it is, and what looks at it.
_FREE = frozenset(
    "max_iter verbose callbacks checkpoint_dir warm_start enable_logging threads exc validation_every "
    "cache_bytes cache_dir".split()
)
# Parameters that older checkpoints do not know, and what stands for that.
_LATER = {
    "cache_frozen": False,
    "average": None,
    "pairs": None,
    "m_per_class": None,
    "lora": None,
    "teacher": None,
}


def fingerprint(trainer: Training, run: Run) -> dict[str, Any]:
    """What makes a training what it is: estimator, model, data and parameters."""
    parameters = trainer.get_params(deep=False)
    parameters["shuffle"] = trainer.shuffles
    model = trainer.model_parameter
    return {
        "estimator": type(trainer).__name__,
        "model": hash_model(parameters[model]),
        "data": run.loader.fingerprint(),
        "validation": {} if run.validation is None else run.validation.fingerprint(),
        "parameter": {
            k: describe(v)
            for k, v in parameters.items()
            if k not in _FREE and k != model and (k not in _LATER or v is not _LATER[k])
        },
    }


def checked(saved: Saved | None) -> Saved | None:
    """A checkpoint, if it is one of a training.

    Raises
    ------
    CheckpointError
        It was written by another program: something is missing, or no number.
    """
    if saved is None:
        return None
    wrong = [name for name, kinds in _ENTRIES.items() if not isinstance(saved.state.get(name), kinds)]
    position = saved.state.get("position")
    if isinstance(position, Mapping):
        wrong += [f"position/{n}" for n in ("batches", "rows") if not is_count(position.get(n))]
        wrong += [] if isinstance(position.get("total"), (int, float)) else ["position/total"]
        heads = position.get("heads", {})
        if not isinstance(heads, Mapping) or not all(isinstance(n, (int, float)) for n in heads.values()):
            wrong.append("position/heads")
        units = position.get("head_units", {})
        if not isinstance(units, Mapping) or not all(is_count(n) for n in units.values()):
            wrong.append("position/head_units")
        wrong += [] if isinstance(position.get("head_rows", 0), (int, float)) else ["position/head_rows"]
    wrong += [] if _is_history(saved.state.get("history"), saved.state.get("n_iter")) else ["history"]
    wrong += [] if _are_callbacks(saved.state.get("callbacks")) else ["callbacks"]
    wrong = list(dict.fromkeys(wrong))
    wrong += [n for n in ("seed", "n_iter", "epochs") if n not in wrong and not is_count(saved.state[n])]
    if wrong:
        raise CheckpointError(
            f"The checkpoint {str(saved.path)!r} is whole, but not one of a training of this library: "
            f"{', '.join(wrong)} {'is' if len(wrong) == 1 else 'are'} not what is expected."
        )
    return saved


def _is_history(value: Any, epochs: Any) -> bool:
    """Whether something is lists of numbers, none longer than there were epochs."""
    lists = list(value.values()) if isinstance(value, Mapping) else [None]
    numbers = all(isinstance(v, list) and all(isinstance(x, (int, float)) for x in v) for v in lists)
    return numbers and isinstance(epochs, int) and all(len(v or ()) <= epochs for v in lists)


def _are_callbacks(value: Any) -> bool:
    """Whether something is the states of callbacks."""
    return isinstance(value, list) and all(
        isinstance(c, Mapping) and isinstance(c.get("class"), str) and "state" in c for c in value
    )


def check_same(saved: Mapping[str, Any], run: Run, folder: Any) -> None:
    """Refuse a checkpoint of another run.

    Raises
    ------
    CheckpointError
        What is different.
    """
    found = differences(saved, run.fingerprint)
    if found:
        raise CheckpointError(
            f"The checkpoints in {str(folder)!r} are of another run: {'; '.join(found)}. Go on with what "
            "that run had, or give another folder."
        )


def capture(trainer: Training, run: Run) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Everything that training goes on from: tensors, and what JSON holds."""
    step_tensors, step = trainer.step_.state_dict()
    tensors = {f"step/{name}": array for name, array in step_tensors.items()}
    callbacks = []
    for i, callback in enumerate(run.callbacks.items):
        callbacks.append({"class": type(callback).__name__, "state": _kept(callback, i, tensors)})
    state = {
        "fingerprint": copy.deepcopy(run.fingerprint),
        "seed": run.seed,
        "n_iter": trainer.n_iter_,
        "epochs": run.epochs,
        "history": {name: [*values] for name, values in trainer.history_.items()},
        "position": {
            "batches": run.batches,
            "total": run.total,
            "rows": run.rows,
            "heads": dict(run.heads),
            "head_units": dict(run.head_units),
        },
        "stopped": run.stop_reason if run.final else None,
        "stopped_by": run.stopped_by,
        "step": step,
        "callbacks": callbacks,
    }
    return tensors, state


def take_place(resumed: Resumed, trainer: Training, step: TrainingStep, run: Run) -> None:
    """Be where the last checkpoint is.

    Raises
    ------
    CheckpointError
        It is one of another run, or beyond the end of this one.
    """
    run.store, saved = resumed.store, resumed.saved
    run.fingerprint = fingerprint(trainer, run)
    if saved is None:
        return
    check_same(saved.state["fingerprint"], run, resumed.checkpoint.folder)
    done = saved.state["n_iter"]
    if done > run.epochs:
        raise CheckpointError(
            f"The checkpoint {str(saved.path)!r} is {done} epochs into training, beyond max_iter="
            f"{run.epochs}. Raise max_iter, or give another folder."
        )
    run.rate = step.optimizer.make_schedule()
    restore(saved, step, run)
    if run.loader.n_batches is not None and run.batches > run.loader.n_batches:
        raise CheckpointError(
            f"The checkpoint {str(saved.path)!r} is {run.batches} batches into an epoch of "
            f"{run.loader.n_batches}."
        )


def restore(saved: Saved, step: TrainingStep, run: Run) -> None:
    """Take the state of the step and the position in the epoch over."""
    state = saved.state
    tensors = {k.removeprefix("step/"): v for k, v in saved.tensors.items() if k.startswith("step/")}
    step.load_state_dict(tensors, state["step"])
    position = state["position"]
    run.batches, run.total, run.rows = position["batches"], position["total"], position["rows"]
    run.heads = dict(position.get("heads", {}))
    rows = position.get("head_rows", 0)  # of older versions, in place of the units of each
    run.head_units = {**dict.fromkeys(run.heads, rows), **position.get("head_units", {})}
    run.resumed = True
    by = state.get("stopped_by")
    if state.get("stopped") is not None and (
        by is None or by in [type(c).__name__ for c in run.callbacks.items]
    ):
        run.stop(state["stopped"])  # what ended it is still there
        run.stopped_by = by


def restore_callbacks(saved: Saved, trainer: Training, run: Run) -> None:
    """Hand every callback what one of its class had, in order; others begin anew."""
    waiting = list(saved.state["callbacks"])
    for callback in run.callbacks.items:
        found = next((entry for entry in waiting if entry["class"] == type(callback).__name__), None)
        if found is None:
            continue
        waiting.remove(found)
        try:
            callback.load_state_dict(
                trainer, from_plain(found["state"], lambda made: saved.tensors[made["tensor"]])
            )
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as exc:
            raise CheckpointError(
                f"The checkpoint {str(saved.path)!r} holds a state that {callback!r} cannot take: {exc!r}."
            ) from exc


def _kept(callback: Callback, number: int, tensors: dict[str, np.ndarray]) -> Any:
    """What JSON holds of the state of a callback; arrays go to `tensors` and leave their names."""
    what = f"the state of {callback!r}"

    def convert(value: Any, path: Path) -> dict[str, str]:
        if not isinstance(value, np.ndarray):
            return to_plain(value, place(what, path))  # which says why not
        name = "/".join(map(str, ("callbacks", number, *path)))
        tensors[name] = np.array(value)
        return {"tensor": name}

    return to_plain(callback.state_dict(), what, convert)
