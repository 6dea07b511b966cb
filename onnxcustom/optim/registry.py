"""Update rules by name, and the options that go with them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from onnxcustom._registry import Registry
from onnxcustom.exceptions import InvalidParameterError, UnknownNameError

from .rule import Rule
from .schedules import Schedule, with_rate

__all__ = [
    "RULES",
    "SELECTED",
    "UnknownOptionError",
    "create",
    "named_options",
    "register",
    "resolve_options",
    "rule_names",
]

RuleClass = TypeVar("RuleClass", bound="type[Rule]")


class UnknownOptionError(UnknownNameError, TypeError):
    """An update rule was given an option it does not have; the message lists those it has."""


class _RuleRegistry(Registry["type[Any]"]):
    """Rules by name: that of a class is as good as its others."""

    def names(self) -> list[str]:
        """All names in order of registration, that of a class before its others."""
        return [
            name
            for cls in self.classes()
            for name in sorted(
                (n for n, c in self._classes.items() if c is cls), key=lambda n: n != cls.__name__.lower()
            )
        ]


RULES: Registry[type[Any]] = _RuleRegistry("update rule")
#: Names that mean something else to `select` and `learning_rate=` than to `create`.
SELECTED: Registry[type[Any]] = Registry("update rule")


def register(*args: Any, select: tuple[str, ...] = ()) -> Any:
    """Make a rule known to :func:`create` and :meth:`BaseLearningRate.select`.

    Used as ``@register``, or as ``@register("name", ...)`` to give it names beside that of the class.

    Parameters
    ----------
    *args : str
        More names.
    select : tuple of str
        Names it has in :meth:`BaseLearningRate.select` only, before those of any other rule.

    Raises
    ------
    ValueError
        A name that another rule has.
    """
    if len(args) == 1 and isinstance(args[0], type):
        return register()(args[0])

    def add(cls: RuleClass) -> RuleClass:
        RULES.register(*args)(cls)
        if select:
            SELECTED.register(*select)(cls)
        return cls

    return add


def rule_names() -> list[str]:
    """Names of all registered rules, in alphabetical order.

    Returns
    -------
    list of str
        A rule that has several names is there under each.
    """
    return sorted(RULES.names())


def create(name: str, **kwargs: Any) -> Any:
    """An update rule by name.

    Parameters
    ----------
    name : str
        Name of a registered rule, in any case, perhaps with options as in ``"adam:beta1=0.8"``.
    **kwargs
        Its options, also under their other names: ``lr``, ``weight_decay``, ``grad_clip``,
        ``grad_scale``, ``lr_scheduler``, ``momentum_scheduler``.

    Returns
    -------
    BaseLearningRate

    Raises
    ------
    UnknownNameError
        No such rule, or no such option (also a TypeError); the message lists those there are.
    ValueError
        An option out of its range; the message says the range.

    Examples
    --------
    >>> create("Adam", lr=0.1, weight_decay=0.01)
    Adam(learning_rate=0.1, beta1=0.9, beta2=0.999, epsilon=1e-08, lazy_update=True, wd=0.01)
    """
    rule, options = RULES.read(name, kwargs)
    return rule(**options)


def named_options(
    cls: type[Rule], args: tuple[Any, ...], given: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Options that were given by position under their names, with those that were given by name.

    Returns
    -------
    tuple of (tuple, dict of str to object)
        What is left of the positions: all of it where a rule's own constructor takes any number.

    Raises
    ------
    UnknownOptionError
        More than the rule has places for, or an option by position and by name.
    """
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return args, dict(given)
    places = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    if len(args) > len(places):
        raise UnknownOptionError(
            f"{cls.__name__} takes {places} by position, not {len(args)} values: give other options by name."
        )
    placed = dict(zip(places, args, strict=False))
    if twice := [name for name in placed if name in given]:
        raise UnknownOptionError(f"{cls.__name__} got the option {twice[0]!r} by position and by name.")
    return (), {**placed, **given}


def resolve_options(cls: type[Rule], given: Mapping[str, Any]) -> dict[str, Any]:
    """Options under the names of the constructor.

    Raises
    ------
    UnknownOptionError
        An option the rule does not have, or one given twice under two names.
    """
    known, aliases = cls.parameter_names(), cls.option_aliases()
    options: dict[str, Any] = {}
    given = {k: v for k, v in given.items() if k != "momentum_scheduler" or v is not None}
    if "momentum_scheduler" in given and "momentum" in known:
        given.pop("momentum", None)  # as the pages have it: a scheduler goes before a number
    unknown = []
    for key, value in given.items():
        name = key if key in known else aliases.get(key, key)
        if name in options:
            raise UnknownOptionError(f"{sorted(given)} name the option {name!r} of {cls.__name__} twice.")
        if name in known or name == "lr_scheduler":
            # The pages write "no clipping" as 0.
            options[name] = None if key == "grad_clip" and value == 0 else value
        else:
            unknown.append(key)
    if unknown:
        raise UnknownOptionError(f"{cls.__name__} has no option {unknown}; it has {known}.")
    if "lr_scheduler" in options:
        _take_scheduler(options)
    for name in ("learning_rate", aliases.get("lr", "learning_rate")):
        if options.get(name, 0) is None:  # the pages write "the default" so
            del options[name]
    return options


def _take_scheduler(options: dict[str, Any]) -> None:
    """Make a scheduler the learning rate; a number given beside it becomes its base rate."""
    scheduler = options.pop("lr_scheduler")
    if scheduler is None:
        return
    rate = options.get("learning_rate", options.pop("eta0", None))
    if rate is not None and not isinstance(scheduler, Schedule):
        raise InvalidParameterError(
            f"lr_scheduler is a function, or something like it, and has no base to replace by {rate!r}: "
            "leave the learning rate out, or give a schedule."
        )
    options["learning_rate"] = scheduler if rate is None else with_rate(scheduler, rate)
