"""Settings that every unit test shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Building a session can take longer than hypothesis' deadline; CI draws the same examples in every run.
settings.register_profile("default", deadline=None, max_examples=25)
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Look for doctests in the package, not in what tests import or run."""
    return True if collection_path.suffix == ".py" and not collection_path.name.startswith("test_") else None


def pytest_configure(config: pytest.Config) -> None:
    """Marks of the test suite."""
    config.addinivalue_line("markers", "ort: needs gradient engine 'ort', hence onnxruntime-training")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs the training build where plain onnxruntime, or none, is installed."""
    from onnxcustom.runtime import training_available

    if training_available():
        return
    skip = pytest.mark.skip(reason="needs gradient engine 'ort': onnxruntime-training is not installed")
    for item in items:
        if item.get_closest_marker("ort"):
            item.add_marker(skip)
