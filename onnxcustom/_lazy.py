"""Submodules of a package as its attributes, imported the first time they are asked for [PEP 562]."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from types import ModuleType

__all__ = ["import_submodule", "submodule_names"]


def submodule_names(path: Iterable[str]) -> list[str]:
    """Public modules and packages in a package's folder.

    Parameters
    ----------
    path : iterable of str
        ``__path__`` of the package.

    Returns
    -------
    list of str
    """
    return [info.name for info in pkgutil.iter_modules(path) if not info.name.startswith("_")]


def import_submodule(package: str, name: str) -> ModuleType:
    """Import what ``package.name`` asks for.

    Parameters
    ----------
    package, name : str
        The package, and the attribute that it does not have.

    Returns
    -------
    ModuleType

    Raises
    ------
    AttributeError
        The package has no such module.
    """
    module = f"{package}.{name}"
    if not name.startswith("_"):
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
    raise AttributeError(f"module {package!r} has no attribute {name!r}")
