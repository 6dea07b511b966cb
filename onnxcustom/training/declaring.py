"""Parameters of estimators: each is written once, as a field, and documented once, where it is declared."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import onnx
import onnx_ir as ir

__all__ = ["Text", "as_it_is", "documented", "of_step", "same", "short"]

T = TypeVar("T", bound=type)

_SECTION = re.compile(r"^Parameters\n-+\n(.*?)(?=\n\n\w[^\n]*\n---|\Z)", re.MULTILINE | re.DOTALL)


def of_step(default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field for a parameter that a training step is made of: a change of it makes a new step."""
    return dataclasses.field(default=default, metadata={"of_step": True})


def documented(cls: T) -> T:
    """Complete the docstring of an estimator: entries of the parameters that it inherits, and all defaults.

    They are in the order of the constructor. Entries of its own replace those of its bases.
    """
    if cls.__doc__ is None:  # python -OO
        return cls
    entries: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.partition(".")[0] == __name__.partition(".")[0]:
            entries.update(_entries(base.__doc__ or ""))
    wanted = inspect.signature(cls).parameters
    section = "\n".join(_with_default(entries[name], p) for name, p in wanted.items() if name in entries)
    text = inspect.cleandoc(cls.__doc__)
    cls.__doc__ = _SECTION.sub(lambda _: f"Parameters\n{'-' * 10}\n{section}", text, count=1)
    return cls


def _entries(doc: str) -> dict[str, str]:
    """Entries of a docstring by the name of the parameter."""
    found = _SECTION.search(inspect.cleandoc(doc))
    entries = re.split(r"\n(?=\S)", found.group(1)) if found else []
    return {entry.partition(" : ")[0]: entry for entry in entries}


def _with_default(entry: str, parameter: inspect.Parameter) -> str:
    """An entry that says the default."""
    head, line, rest = entry.partition("\n")
    if parameter.default is parameter.empty:
        return entry
    said = "optional" if parameter.default is None else f"default={parameter.default!r}"
    return f"{head}, {said}{line}{rest}"


def as_it_is(value: Any) -> Any:
    """What a parameter is now: objects with parameters of their own may be changed in place."""
    if hasattr(value, "get_params") and not isinstance(value, type):
        return type(value), {k: as_it_is(v) for k, v in value.get_params(deep=False).items()}
    if isinstance(value, Mapping):
        return {k: as_it_is(v) for k, v in value.items()}
    return [*value] if isinstance(value, list) else value


def same(a: Any, b: Any) -> bool:
    """Whether two values of a parameter are equal."""
    if a is b:
        return True
    try:
        return type(a) is type(b) and bool(a == b)
    except Exception:  # arrays and models compare in ways of their own
        return False


class Text(str):
    """Text that stands for something else: without quotes."""

    def __repr__(self) -> str:
        return str(self)


def short(value: Any) -> str:
    """A representation that stays on a line, also of models."""
    if isinstance(value, (onnx.ModelProto, ir.Model)):
        return f"<model {value.graph.name!r}>"
    if isinstance(value, bytes):
        return f"<model of {len(value)} bytes>"
    text = ", ".join(f"{k!r}: {short(v)}" for k, v in value.items()) if isinstance(value, Mapping) else ""
    return f"{{{text}}}" if text else repr(value)
