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
    """Complete the docstring of an estimator by the entries of the parameters that it inherits.

    They are in the order of the constructor. Entries of its own replace those of its bases.
    """
    if cls.__doc__ is None:  # python -OO
        return cls
    entries: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base) or base is cls:
            entries.update(_entries(base.__doc__ or ""))
    names = [name for name in inspect.signature(cls).parameters if name in entries]
    section = "\n".join(["Parameters", "-" * 10, *dict.fromkeys(entries[name] for name in names)])
    text = inspect.cleandoc(cls.__doc__)
    if _SECTION.search(text):
        cls.__doc__ = _SECTION.sub(lambda _: section, text, count=1)
    else:
        head, found, rest = text.partition("\n\nAttributes\n")
        cls.__doc__ = f"{head}\n\n{section}{found}{rest}"
    return cls


def _entries(doc: str) -> dict[str, str]:
    """Entries of a docstring by the names of the parameters."""
    found = _SECTION.search(inspect.cleandoc(doc))
    entries = re.split(r"\n(?=\S)", found.group(1)) if found else []
    return {name: entry for entry in entries for name in entry.partition(" : ")[0].split(", ")}


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
