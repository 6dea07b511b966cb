"""Packages that only some kinds of data need."""

from __future__ import annotations

import importlib
from typing import Any

from onnxcustom.exceptions import MissingPackageError

__all__ = ["optional"]


def optional(module: str, why: str) -> Any:
    """A module of a package that need not be installed.

    Raises
    ------
    MissingPackageError
        It is not; the message names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as exc:
        package = module.split(".", maxsplit=1)[0]
        raise MissingPackageError(
            f"{why} needs {package}, which cannot be imported ({exc}): "
            'python -m pip install "onnxcustom[data]".'
        ) from exc
