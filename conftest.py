"""What doctests write and register doesn't stay: a folder and registries of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _doctest_sandbox(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not isinstance(request.node, pytest.DoctestItem):
        return
    from onnxcustom.gradient import registry as rules
    from onnxcustom.objective.base import LOSSES
    from onnxcustom.objective.penalties import PENALTIES
    from onnxcustom.optim.base import RULES, SELECTED

    monkeypatch.chdir(request.getfixturevalue("tmp_path"))
    for registry in (LOSSES, PENALTIES, RULES, SELECTED):
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    monkeypatch.setattr(rules, "_RULES", {key: list(found) for key, found in rules._RULES.items()})
    for name in ("_NON_DIFFERENTIABLE", "_REFUSED"):
        monkeypatch.setattr(rules, name, dict(getattr(rules, name)))


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--no-passes``: step graphs as they are composed, always; ``--exhaustive``: every combination."""
    parser.addoption("--no-passes", action="store_true", help="train with TrainingStep(passes=False)")
    parser.addoption("--exhaustive", action="store_true", help="also what is tested for releases only")


@pytest.fixture(autouse=True)
def _passes(request: pytest.FixtureRequest) -> Iterator[None]:
    if not request.config.getoption("--no-passes") or request.path.name == "test_passes.py":
        yield
        return
    from onnxcustom import TrainingStep

    with pytest.MonkeyPatch.context() as patch:  # one of its own: tests undo theirs
        patch.setitem(TrainingStep.__init__.__kwdefaults__, "passes", False)
        yield
