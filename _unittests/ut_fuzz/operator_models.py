"""A model for each case of the tables that gradient rules are tested with: every operator, for long runs."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
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
            for name, make in _makers(module, Case).items():
                for shapes in ("static", "dynamic"):
                    try:
                        found.setdefault(f"{path.stem}-{name}-{shapes}", make(shapes))
                    except Exception:
                        continue
    return found


def _makers(module: Any, kind: type) -> dict[str, Callable[[str], bytes]]:
    """Functions that make the models of a module's tables."""
    lists = [value for value in vars(module).values() if isinstance(value, list)]
    cases = [case for found in lists for case in found if isinstance(case, kind)]
    made: dict[str, Callable[[str], bytes]] = {str(case): functools.partial(_model, case) for case in cases}
    table = getattr(module, "CASES", None)
    if isinstance(table, dict):
        for key, row in table.items():
            if hasattr(module, "case_model"):  # operators of com.microsoft
                made["-".join(key)] = functools.partial(_microsoft, module, key, row)
            elif hasattr(module, "HEADER"):  # control flow
                made[str(key)] = functools.partial(_parsed, module.HEADER + row[0])
    return made


def _model(case: Any, shapes: str) -> bytes:
    floats = [i for i, x in enumerate(case.inputs) if x is not None and np.asarray(x).dtype.kind == "f"]
    constant = sorted({*case.constant, *floats[1:]})
    return dataclasses.replace(case, constant=constant, dtype=np.float32).model(shapes).SerializeToString()


def _microsoft(module: Any, key: tuple[str, ...], row: Any, shapes: str) -> bytes:
    return module.case_model(key[0], *row, shapes=shapes)[0].SerializeToString()


def _parsed(text: str, _shapes: str) -> bytes:
    return onnx.parser.parse_model(text).SerializeToString()
