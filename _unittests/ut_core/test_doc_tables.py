"""The tables in the documentation are those of the registries, and readable where Sphinx is not."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from onnxcustom.gradient.coverage import NEWEST_OPSET
from onnxcustom.objective.base import LOSSES

DOC = Path(__file__).parents[2] / "_doc"
pytestmark = pytest.mark.skipif(
    onnx.defs.onnx_opset_version() < NEWEST_OPSET, reason="this onnx does not know all operators"
)


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(str(DOC))
    return importlib.import_module("tables")


def test_pages_say_what_registries_say():
    """In a process of its own: other tests register rules and losses of theirs."""
    done = subprocess.run(
        [sys.executable, str(DOC / "tables.py"), "--check"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=DOC.parent,
    )
    assert not done.returncode, f"run python _doc/tables.py:\n{done.stdout}\n{done.stderr}"


def test_a_difference_is_found(tables, monkeypatch, tmp_path, capsys):
    for page, names in tables.PAGES.items():
        marks = "".join(f".. {name}: made by tables.py\n\nold\n\n.. end of {name}\n" for name in names)
        (tmp_path / f"{page}.rst").write_text(marks, encoding="utf-8")
    monkeypatch.setattr(tables, "DOC", tmp_path)
    assert tables.main(check=True) == len(tables.PAGES)
    assert "-old" in capsys.readouterr().out
    assert tables.main(check=False) == len(tables.PAGES)
    assert tables.main(check=True) == 0
    with pytest.raises(ValueError, match="not one place for the table RULES"):
        tables.written("no marks", "RULES", "")


def test_every_loss_has_its_formula():
    text = (DOC / "losses.rst").read_text(encoding="utf-8")
    said = set(re.findall(r"^\*\*.+?\*\* ``(\w+)", text, re.MULTILINE))
    classes = {LOSSES.find(name) for name in said}
    own = {cls for cls in LOSSES.classes() if cls.__module__.startswith("onnxcustom.objective.")}
    assert {c for c in own if "<locals>" not in c.__qualname__} - classes == set()


def test_the_readme_links_pages():
    links = re.findall(r"<(_doc/\w+\.rst)>", (DOC.parent / "README.rst").read_text(encoding="utf-8"))
    assert {"_doc/optimizers.rst", "_doc/losses.rst", "_doc/operators.rst"} <= set(links)
    assert all((DOC.parent / link).is_file() for link in links)
