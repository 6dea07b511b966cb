"""Make what the case tables share importable, and skip the cases that a newer onnxruntime has no forward pass for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

# Inputs that onnxruntime 1.19.2 evaluates, and 1.31 says are against the operator's specification.
REFUSED_SINCE = (1, 20)
REFUSED = {
    "test_case[ConvTranspose-output padding over stride float32-18]",
    "test_case[ConvTranspose-output padding over stride pads float32-18]",
    "test_case[ConvTranspose-output shape beyond float32-18]",
    "test_case[OneHot-scalar-18]",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip them there."""
    try:
        import onnxruntime
    except ImportError:
        return
    if tuple(map(int, onnxruntime.__version__.split(".")[:2])) < REFUSED_SINCE:
        return
    skip = pytest.mark.skip(
        reason=f"onnxruntime {onnxruntime.__version__} refuses these inputs of the operator"
    )
    for item in items:
        if item.name in REFUSED:
            item.add_marker(skip)
