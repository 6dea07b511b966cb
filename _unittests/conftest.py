"""Settings that every unit test shares."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from .small_models import linear_model, mlp_model  # noqa: F401

# On a slow machine a session takes longer than hypothesis' deadline, and drawing than it finds healthy;
# CI draws the same examples in every run.
settings.register_profile(
    "default", deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")

# Files of few but long tests: begun last, they would keep one process busy when the others are done.
LONG = (
    "test_real_models_train.py",
    "test_light_models.py",
    "test_ort.py",
    "test_real_models.py",
    "test_benchmarks.py",
    "test_example_optimizers.py",
    "test_resuming.py",
    "test_random_graphs.py",
    "test_parallel.py",
    "test_fuzz.py",
    "test_public_api.py",
    "test_examples.py",
)
ORACLES = ("torch", "jax", "optax")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Look for doctests in the package, not in what tests import or run."""
    return True if collection_path.suffix == ".py" and not collection_path.name.startswith("test_") else None


def pytest_configure(config: pytest.Config) -> None:
    """Marks of the test suite."""
    config.addinivalue_line("markers", "ort: needs gradient engine 'ort', hence onnxruntime-training")
    config.addinivalue_line("markers", "oracle: compares with PyTorch, JAX or optax, see below")
    config.addinivalue_line("markers", "exhaustive: combinations beyond one of each kind; with --exhaustive")
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False  # files are handed out in the order of LONG


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs the training build where plain onnxruntime, or none, is installed."""
    from onnxcustom.runtime import training_available

    if not config.getoption("--exhaustive"):
        left_out = [item for item in items if item.get_closest_marker("exhaustive")]
        if left_out:
            config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if not item.get_closest_marker("exhaustive")]
    if hasattr(config, "workerinput"):  # one of several processes
        place = {name: i for i, name in enumerate(LONG)}
        items.sort(key=lambda item: place.get(item.path.name, len(place)))
    # What imports another framework is marked; CI installs all of them for one stage.
    for item in items:
        if _asks_for_an_oracle(item):
            item.add_marker("oracle")
    if training_available():
        return
    skip = pytest.mark.skip(reason="needs gradient engine 'ort': onnxruntime-training is not installed")
    for item in items:
        if item.get_closest_marker("ort"):
            item.add_marker(skip)


def pytest_collection_finish() -> None:
    """Keep the garbage collector from looking at modules and thousands of tests again and again."""
    gc.collect()
    gc.freeze()


def _asks_for_an_oracle(item: pytest.Item) -> bool:
    """Whether a test, a function of its module that it calls, or the module imports another framework."""
    module, function = getattr(item, "module", None), getattr(item, "function", None)
    code = getattr(function, "__code__", None)
    names = code.co_names if code else ()
    called = [getattr(getattr(module, name, None), "__code__", None) for name in names]
    constants = {constant for found in (code, *called) if found for constant in found.co_consts}
    return any(name in constants or hasattr(module, name) for name in ORACLES)
