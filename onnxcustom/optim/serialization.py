"""Update rules and schedules as plain data, to be written into files: no pickle, nothing is executed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxcustom._parameters import check_number
from onnxcustom.exceptions import CheckpointError, UnknownNameError

from . import annealing, plateau, schedules
from .base import BaseLearningRate
from .registry import RULES
from .schedules import Schedule

__all__ = ["rule_from_dict", "rule_to_dict"]

_SCHEDULES: dict[str, Any] = {
    name: cls
    for module in (schedules, annealing, plateau)
    for name, cls in vars(module).items()
    if isinstance(cls, type) and issubclass(cls, Schedule) and dataclasses.is_dataclass(cls)
}
# Options that name objects of the caller's: they do not belong into a file.
_LEFT_OUT = ("param_dict", "sym")


def rule_to_dict(rule: BaseLearningRate) -> dict[str, Any]:
    """A rule, its options, clock and schedules as what JSON can hold.

    Parameters
    ----------
    rule : BaseLearningRate
        A registered rule.

    Returns
    -------
    dict

    Raises
    ------
    TypeError
        An option that is no number, text, list, dict or schedule of this library: a Python function,
        say. A rule that is not registered.

    Examples
    --------
    >>> from onnxcustom import optim
    >>> data = rule_to_dict(optim.Adam(optim.Exp(0.1, 0.5)))
    >>> rule_from_dict(data)
    Adam(learning_rate=Exp(eta0=0.1, gamma=0.5, decay_on_iteration=False), beta1=0.9, ...)
    """
    name = type(rule).__name__
    if type(rule) not in RULES.classes():
        raise TypeError(f"{rule!r} cannot be written to a file: {name} is not registered.")
    options = {k: v for k, v in rule.get_params().items() if k not in _LEFT_OUT}
    clock = None
    if rule._schedules is not None:
        memory = {name: schedule.state_dict() for name, schedule in rule._schedules.items()}
        clock = {"t": rule._t, "epoch": rule._epoch, "schedules": memory}
    return {
        "rule": name,
        "options": {option: _plain(f"{option} of {name}", v) for option, v in options.items()},
        "clock": clock,
    }


def rule_from_dict(data: Mapping[str, Any], **objects: Any) -> BaseLearningRate:
    """The rule that :func:`rule_to_dict` described, at the step where it was.

    Parameters
    ----------
    data : mapping
        What :func:`rule_to_dict` returned.
    **objects
        Options that are not written: `sym`, `param_dict`.

    Returns
    -------
    BaseLearningRate

    Raises
    ------
    CheckpointError
        Data of another kind, an unknown rule or schedule, an option out of its range.
    """
    try:
        options = {name: _restored(value) for name, value in data["options"].items()}
        rule = RULES.find(data["rule"])(**options, **objects)
        clock = data["clock"]
        if clock is not None:
            rule.init_learning_rate()
            assert rule._schedules is not None
            for name, memory in clock["schedules"].items():
                rule._schedules[name].load_state_dict(memory)
            for name in ("t", "epoch"):
                check_number(f"{name} of the clock", clock[name], "[1, inf)", integral=True)
            rule._t, rule._epoch = clock["t"], clock["epoch"]
            rule._refresh()
        return rule
    except CheckpointError:
        raise
    except (UnknownNameError, KeyError, TypeError, ValueError, AttributeError) as exc:
        raise CheckpointError(f"The saved optimizer cannot be read: {exc}") from exc


def _plain(what: str, value: Any) -> Any:
    """A value as JSON has it; mappings become lists of pairs, since their keys may be numbers."""
    if isinstance(value, (np.integer, np.floating, np.bool_)):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {"mapping": [[_plain(what, k), _plain(what, v)] for k, v in value.items()]}
    if isinstance(value, (set, frozenset)):
        value = sorted(value)
    if isinstance(value, (list, tuple)):
        return {"list": [_plain(what, v) for v in value]}
    name = type(value).__name__
    if _SCHEDULES.get(name) is type(value):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(_SCHEDULES[name]) if f.init}
        return {"schedule": name, "fields": {k: _plain(what, v) for k, v in fields.items()}}
    raise TypeError(
        f"The {what} is {value!r}, which cannot be written to a file: use a number or a schedule of "
        "onnxcustom.optim."
    )


def _restored(value: Any) -> Any:
    """The value that :func:`_plain` made plain."""
    if not isinstance(value, Mapping):
        return value
    if "mapping" in value:
        return {key: _restored(v) for key, v in value["mapping"]}
    if "list" in value:
        return [_restored(v) for v in value["list"]]
    if value["schedule"] not in _SCHEDULES:
        raise CheckpointError(f"There is no schedule {value['schedule']!r}.")
    return _SCHEDULES[value["schedule"]](**{k: _restored(v) for k, v in value["fields"].items()})
