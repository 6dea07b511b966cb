"""Update rules and schedules as plain data, to be written into files: no pickle, nothing is executed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from onnxcustom._parameters import check_number
from onnxcustom._plain import Path, from_plain, to_plain
from onnxcustom.exceptions import CheckpointError, InvalidParameterError, UnknownNameError

from . import annealing, plateau, schedules
from .registry import RULES
from .schedules import Function, Schedule
from .timed import TimedRule

__all__ = [
    "clock_to_dict",
    "load_clock",
    "load_rate",
    "rate_to_dict",
    "rule_from_dict",
    "rule_to_dict",
]

_SCHEDULES: dict[str, Any] = {
    name: cls
    for module in (schedules, annealing, plateau)
    for name, cls in vars(module).items()
    if isinstance(cls, type) and issubclass(cls, Schedule) and dataclasses.is_dataclass(cls)
}
# Options that name objects of the caller's: they do not belong into a file.
_LEFT_OUT = ("param_dict", "sym")
# What data that do not describe a rule lead to.
_UNREADABLE = (
    UnknownNameError,
    AttributeError,
    KeyError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)


def rule_to_dict(rule: TimedRule) -> dict[str, Any]:
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
        raise InvalidParameterError(f"{rule!r} cannot be written to a file: {name} is not registered.")
    options = {k: v for k, v in rule.get_params().items() if k not in _LEFT_OUT}
    return {
        "rule": name,
        "options": {option: _plain(f"{option} of {name}", v) for option, v in options.items()},
        "clock": clock_to_dict(rule),
    }


def rule_from_dict(data: Mapping[str, Any], **objects: Any) -> TimedRule:
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
        load_clock(rule, data["clock"])
        return rule
    except _UNREADABLE as exc:
        raise CheckpointError(f"The saved optimizer cannot be read: {exc}") from exc


def clock_to_dict(rule: TimedRule) -> dict[str, Any] | None:
    """The step, the epoch and what the schedules of a rule remember, as what JSON can hold.

    The rule may be of any class and have any schedules: its options are not written. A Python
    function remembers nothing, so nothing is written for it.

    Parameters
    ----------
    rule : BaseLearningRate
        Its clock is read.

    Returns
    -------
    dict or None
        None if the clock was not started.

    Examples
    --------
    >>> from onnxcustom import optim
    >>> clock_to_dict(optim.Adam(optim.Exp(0.1)).init_learning_rate())
    {'t': 1, 'epoch': 1, 'schedules': {'learning_rate': {}}}
    """
    clock = rule.clock
    if not clock.started:
        return None
    kept = {n: schedule for n, schedule in clock.schedules.items() if not isinstance(schedule, Function)}
    memory = {name: schedule.state_dict() for name, schedule in kept.items()}
    return {"t": clock.t, "epoch": clock.epoch, "schedules": memory}


def load_clock(rule: TimedRule, data: Mapping[str, Any] | None) -> None:
    """Set the clock of a rule to what :func:`clock_to_dict` gave of one with the same options.

    Parameters
    ----------
    rule : BaseLearningRate
        Its clock is changed, whether started or not.
    data : mapping or None
        Taken whole or not at all.

    Raises
    ------
    CheckpointError
        Something else, the memory of other schedules, or a step that a schedule does not know;
        nothing is changed.
    """
    if data is None:
        rule.clock.stop()
        return
    what = f"clock of {type(rule).__name__}"
    if not isinstance(data, Mapping) or not {"t", "epoch", "schedules"} <= set(data):
        raise CheckpointError(f"The saved {what} must have 't', 'epoch' and 'schedules', not {data!r}.")
    try:
        for name in ("t", "epoch"):
            check_number(f"{name} of the {what}", data[name], "[1, 9e15]", integral=True)
        made = rule.make_clock()
        made.be_at(_remembering(rule, data["schedules"], what), data["t"], data["epoch"])
        made.rate = rule.learning_rate
        rule.clock.become(made)
    except CheckpointError:
        raise
    except Exception as exc:  # whatever a schedule of the user's raises
        raise CheckpointError(f"The saved {what} cannot be read: {exc}") from exc


def _remembering(rule: TimedRule, memory: Any, what: str) -> dict[str, Schedule]:
    """New schedules of a rule that remember what was saved."""
    schedules = rule.make_schedules()
    if not isinstance(memory, Mapping) or not set(memory) <= set(schedules):
        raise CheckpointError(
            f"The {what} has schedules for {list(schedules)}; what was saved is of {list(memory)}."
        )
    for name, schedule in schedules.items():
        if name in memory:
            schedule.load_state_dict(memory[name])
        elif schedule.state_dict():
            raise CheckpointError(
                f"The saved {what} holds nothing of its {name}, {schedule!r}, which remembers losses."
            )
    return schedules


def rate_to_dict(rule: TimedRule) -> dict[str, Any]:
    """The learning rate of a rule as what JSON can hold, if it is a number or a schedule of ours.

    Beside :func:`clock_to_dict` for who does not write the rule: the learning rate may have been set
    in mid-training.

    Parameters
    ----------
    rule : BaseLearningRate
        Its learning rate is read.

    Returns
    -------
    dict
        With the key ``'value'``, or empty where the learning rate is Python code.
    """
    try:
        return {"value": _plain("learning_rate", rule.learning_rate)}
    except TypeError:
        return {}


def load_rate(rule: TimedRule, data: Mapping[str, Any]) -> None:
    """Give a rule the learning rate that :func:`rate_to_dict` described; the clock is not touched.

    Parameters
    ----------
    rule : BaseLearningRate
        Keeps its learning rate if it is the one described, or if both are Python code.
    data : mapping
        What :func:`rate_to_dict` returned.

    Raises
    ------
    CheckpointError
        Something else, or the learning rate was Python code and that of `rule` is not; nothing is
        changed.
    """
    own = rate_to_dict(rule)
    if data == own:
        return
    if not isinstance(data, Mapping) or set(data) != {"value"}:
        raise CheckpointError(
            f"The saved learning rate of {type(rule).__name__} was a Python function or class, which no file "
            f"holds; it is now {rule.learning_rate!r}: give the one that was trained with."
            if data == {}
            else f"The saved learning rate of {type(rule).__name__} cannot be read: {data!r}."
        )
    try:
        chosen = _restored(data["value"])
        rule.bound(learning_rate=chosen).make_schedule()
    except _UNREADABLE as exc:
        raise CheckpointError(
            f"The saved learning rate of {type(rule).__name__} cannot be read: {exc}"
        ) from exc
    rule.__dict__["learning_rate"] = chosen


def _plain(what: str, value: Any) -> Any:
    """A value as JSON has it, schedules among them."""

    def convert(value: Any, path: Path) -> Any:
        if isinstance(value, (set, frozenset)):
            return _plain(what, sorted(value))
        name = type(value).__name__
        if _SCHEDULES.get(name) is type(value):
            fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(_SCHEDULES[name]) if f.init}
            return {"schedule": name, "fields": {k: _plain(what, v) for k, v in fields.items()}}
        raise InvalidParameterError(
            f"The {what} is {value!r}, which cannot be written to a file: use a number or a schedule of "
            "onnxcustom.optim."
        )

    return to_plain(value, f"The {what}", convert)


def _restored(value: Any) -> Any:
    """The value that :func:`_plain` made plain."""
    return from_plain(value, _schedule)


def _schedule(made: Mapping[str, Any]) -> Schedule:
    if made["schedule"] not in _SCHEDULES:
        raise CheckpointError(f"There is no schedule {made['schedule']!r}.")
    schedule: Schedule = _SCHEDULES[made["schedule"]](**{k: _restored(v) for k, v in made["fields"].items()})
    return schedule
