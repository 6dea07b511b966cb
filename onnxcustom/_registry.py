"""Classes that users choose by name: update rules, losses, penalties."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

from onnxcustom._phrases import parse_phrase
from onnxcustom.exceptions import InvalidParameterError, UnknownNameError

__all__ = ["Registry", "did_you_mean"]

T = TypeVar("T", bound=type)


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    """A question to put behind an error about a name: the names that resemble it, nothing if none does.

    Examples
    --------
    >>> did_you_mean("adm", ["adam", "sgd"])
    " Did you mean 'adam'?"
    """
    if not isinstance(name, str):
        return ""
    spelled = {text.lower(): text for text in known}
    near = [spelled[text] for text in difflib.get_close_matches(name.lower(), spelled, n=3, cutoff=0.7)]
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


class Registry(Generic[T]):
    """Classes by name; names are case-insensitive and a class has several.

    Parameters
    ----------
    kind : str
        What is registered, for messages.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._classes: dict[str, T] = {}

    def register(self, *names: str) -> Callable[[T], T]:
        """Class decorator: the class is found under `names` and its own name.

        Raises
        ------
        ValueError
            A name that another class has.
        """

        def decorate(cls: T) -> T:
            keys = [name.lower() for name in (*names, cls.__name__)]
            for key in keys:
                other = self._classes.get(key, cls)
                # The same class again is a module that was reloaded, or a cell run twice.
                if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
                    raise InvalidParameterError(
                        f"The name {key!r} belongs to {other.__module__}.{other.__qualname__}."
                    )
            self._classes.update(dict.fromkeys(keys, cls))
            return cls

        return decorate

    def find(self, name: Any, also: Iterable[str] = ()) -> T:
        """The class of that name.

        Raises
        ------
        UnknownNameError
            Listing the names there are, and what else is accepted.
        """
        if isinstance(name, str) and name.lower() in self._classes:
            return self._classes[name.lower()]
        others = "".join(f", or {text}" for text in also)
        raise UnknownNameError(
            f"{name!r} is no {self.kind}.{did_you_mean(name, self._classes)} "
            f"Names are {', '.join(map(repr, self.names()))}{others}."
        )

    def read(self, text: Any, given: Mapping[str, Any], also: Iterable[str] = ()) -> tuple[T, dict[str, Any]]:
        """The class that a text means, and its options: those of ``"name:option=value"``, then `given`.

        Raises
        ------
        UnknownNameError
            As :meth:`find`, or a text of another form.
        """
        told: dict[str, Any] = {}
        if isinstance(text, str) and ":" in text:
            text, told = parse_phrase(text)
        return self.find(text, also), {**told, **given}

    def __contains__(self, name: str) -> bool:
        return name.lower() in self._classes

    def names(self) -> list[str]:
        """All names in order of registration, that of a class itself only where it has no other."""
        counts = Counter(self._classes.values())
        return [
            name for name, cls in self._classes.items() if counts[cls] == 1 or name != cls.__name__.lower()
        ]

    def classes(self) -> list[T]:
        """The registered classes, each once, in order of registration."""
        return list(dict.fromkeys(self._classes.values()))
