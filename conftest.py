"""What doctests write and register doesn't stay: a folder and registries of their own."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _doctest_sandbox(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not isinstance(request.node, pytest.DoctestItem):
        return
    from onnxcustom.objective import base as losses
    from onnxcustom.optim import base as rules

    monkeypatch.chdir(request.getfixturevalue("tmp_path"))
    monkeypatch.setattr(losses.LOSSES, "_classes", dict(losses.LOSSES._classes))
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))
    monkeypatch.setattr(rules, "_SELECTED", dict(rules._SELECTED))
