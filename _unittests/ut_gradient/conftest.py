"""Make the case table importable, whatever way pytest imports tests; skip opsets newer than onnxruntime."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from onnxcustom.exceptions import MissingRuntimeError
from onnxcustom.runtime import ort_limits

sys.path.insert(0, str(Path(__file__).parent))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests whose opset is beyond what the installed onnxruntime reads (20 for 1.17)."""
    try:
        newest, _ = ort_limits()
    except MissingRuntimeError:
        return
    here = Path(__file__).parent
    for item in items:
        # The hook sees the tests of all folders; what is newer than 21 is converted down.
        if here in item.path.parents and newest < _opset(item) <= 21:
            item.add_marker(pytest.mark.skip(reason=f"this onnxruntime reads opsets up to {newest}"))


def _opset(item: pytest.Item) -> int:
    """The parameter ``opset`` of a test, or that of its case; 0 if it has none."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    found = [params.get("opset"), *(getattr(value, "opset", None) for value in params.values())]
    return max((opset for opset in found if isinstance(opset, int)), default=0)
