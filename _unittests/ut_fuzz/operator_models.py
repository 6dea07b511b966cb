"""A model for each case of the tables that gradient rules are tested with: every operator, for long runs."""

from __future__ import annotations

import dataclasses
import importlib
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

__all__ = ["operator_models"]

_TABLES = Path(__file__).parents[1] / "ut_gradient" / "rules"


def operator_models() -> dict[str, bytes]:
    """Models of one node; its second floating-point operand and those behind it are weights."""
    sys.path[:0] = [str(_TABLES), str(_TABLES.parent)]
    from rule_cases import Case

    found: dict[str, bytes] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in sorted(_TABLES.glob("test_*.py")):
            try:
                module = importlib.import_module(path.stem)
            except (Exception, pytest.skip.Exception):  # a table that needs a package which is not installed
                continue
            for case in _cases(module, Case):
                for shapes in ("static", "dynamic"):
                    try:
                        found.setdefault(f"{path.stem}-{case}-{shapes}", _model(case, shapes))
                    except Exception:
                        continue
    return found


def _cases(module: Any, kind: type) -> list[Any]:
    lists = [value for value in vars(module).values() if isinstance(value, list)]
    return [case for cases in lists for case in cases if isinstance(case, kind)]


def _model(case: Any, shapes: str) -> bytes:
    floats = [i for i, x in enumerate(case.inputs) if x is not None and np.asarray(x).dtype.kind == "f"]
    constant = sorted({*case.constant, *floats[1:]})
    return dataclasses.replace(case, constant=constant, dtype=np.float32).model(shapes).SerializeToString()
