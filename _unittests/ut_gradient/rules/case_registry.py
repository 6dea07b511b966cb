"""Which operators the case tables of gradient rules hold."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import operator_cases
import pytest
import rule_cases

__all__ = ["operators_with_cases"]

# A node in the text of a model: y = domain.Op <attributes> (
_NODE = re.compile(r"=\s*(?:([\w.]+)\.)?([A-Z]\w*)\s*[<(]")


def operators_with_cases() -> set[tuple[str, str]]:
    """Domain and name of the operators in the tables of all test modules of this folder.

    Only values of modules are looked at: cases, and models as text. A name in a comment, in a docstring or in a
    list of names is no case.
    """
    found: set[tuple[str, str]] = set()
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        try:
            module = importlib.import_module(path.stem)
        except pytest.skip.Exception:  # all of it compares with a package that is not installed
            continue
        for name, value in vars(module).items():
            if not name.startswith("__"):
                found.update(_operators(value))
    return found


def _operators(value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, rule_cases.Case):
        yield value.domain, value.op_type
    elif isinstance(value, operator_cases.Case):
        yield "", value.op
    elif type(value).__name__ == "Recurrent":
        yield "", value.op_type
    elif isinstance(value, onnx.ModelProto):
        yield from ((node.domain, node.op_type) for node in value.graph.node)
    elif isinstance(value, str):
        yield from ((domain or "", op_type) for domain, op_type in _NODE.findall(value))
    elif isinstance(value, dict):
        for item in (*value.keys(), *value.values()):
            yield from _operators(item)
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            yield from _operators(item)
