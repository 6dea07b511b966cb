"""Settings that every unit test shares."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import settings

# Building a session can take longer than hypothesis' deadline; CI draws the same examples in every run.
settings.register_profile("default", deadline=None, max_examples=25)
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Look for doctests in the package, not in what tests import or run."""
    return True if collection_path.suffix == ".py" and not collection_path.name.startswith("test_") else None
