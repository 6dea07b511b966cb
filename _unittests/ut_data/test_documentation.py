"""What the page about data shows happens."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "_doc" / "data.rst"


def test_page(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    found = doctest.testfile(str(PAGE), module_relative=False, optionflags=flags)
    assert found.attempted > 30
    assert not found.failed
