"""What losses and penalties share: stored parameters, and a registry of names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from onnxcustom.exceptions import UnknownNameError

__all__ = ["Parameters", "Registry"]

T = TypeVar("T", bound=type)


class Parameters:
    """An object that is its constructor's parameters, as scikit-learn has it.

    ``__init__`` only stores; values are checked when they are used. Attributes whose name starts or
    ends with an underscore are caches: never pickled or copied, forgotten when a parameter changes.
    """

    @classmethod
    def _parameter_names(cls) -> list[str]:
        parameters = inspect.signature(cls.__init__).parameters.values()
        return [
            p.name for p in parameters if p.name != "self" and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        ]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name.

        Parameters
        ----------
        deep : bool, default=True
            Taken for scikit-learn's sake; there is nothing deeper.

        Returns
        -------
        dict
            As the constructor takes them.
        """
        return {name: getattr(self, name) for name in self._parameter_names()}

    def set_params(self, **params: Any) -> Any:
        """Change parameters; return the object.

        Raises
        ------
        UnknownNameError
            If there is no parameter of that name; nothing is changed.
        """
        known = self._parameter_names()
        unknown = sorted(set(params) - set(known))
        if unknown:
            raise UnknownNameError(f"{type(self).__name__} has no parameter {unknown}; it has {known}.")
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        if not _is_cache(name):
            for cache in [key for key in self.__dict__ if _is_cache(key)]:
                self.__dict__.pop(cache, None)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if not _is_cache(key)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __repr__(self) -> str:
        values = ", ".join(f"{k}={v!r}" for k, v in self.get_params(deep=False).items())
        return f"{type(self).__name__}({values})"


def _is_cache(name: str) -> bool:
    return name.startswith("_") or name.endswith("_")


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
        """Class decorator: the class is found under `names` and its own name."""

        def decorate(cls: T) -> T:
            for name in (*names, cls.__name__):
                self._classes[name.lower()] = cls
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
            f"{name!r} is no {self.kind}. Names are {', '.join(map(repr, self.names()))}{others}."
        )

    def names(self) -> list[str]:
        """All names but those of the classes themselves, in order of registration."""
        own = {cls.__name__.lower() for cls in self._classes.values()}
        return [name for name in self._classes if name not in own]

    def classes(self) -> list[T]:
        """The registered classes, each once, in order of registration."""
        return list(dict.fromkeys(self._classes.values()))
