"""Imports run one way: from room to room down a table, and never in a circle."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Rooms of the package, its folders and modules, from the top down: what each may import. CONTRIBUTING says
# what they are; a new one is added in both places.
ROOMS = {
    "testing": "gradient runtime graph",
    "__main__": "cli",
    "cli": "demo plotting training metrics inspect tuning step feed data objective optim gradient runtime "
    "graph",
    "demo": "plotting training metrics tuning step feed data objective optim gradient runtime graph",
    "plotting": "training metrics step feed data objective optim gradient runtime graph",
    "training": "metrics tuning step feed data objective optim gradient runtime graph",
    "metrics": "",
    "inspect": "step tuning feed data objective optim gradient runtime graph",
    "step": "tuning feed data objective optim gradient runtime graph",
    "tuning": "optim runtime graph",
    "feed": "data runtime graph",
    "data": "",
    "objective": "gradient runtime graph",
    "optim": "runtime graph",
    "gradient": "runtime graph",
    "runtime": "graph",
    "graph": "",
}
# For every room; they import nothing else.
HELPERS = {
    *("_garbage", "_hooks", "_lazy", "_parameters", "_phrases", "_plain", "_registry", "_text", "_version"),
    *("_versioning", "_warnings", "exceptions"),
}
PACKAGE = "onnxcustom.__init__"


@pytest.fixture(scope="module")
def structure() -> ModuleType:
    """The benchmark that counts circles: benchmarks are beside the library and not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        return importlib.import_module("benchmarks.bench_structure")


@pytest.fixture(scope="module")
def arrows(structure: ModuleType) -> dict[str, set[str]]:
    """What every file imports of the package."""
    return structure.arrows(structure.trees())


def room(file: str) -> str:
    """Folder of a file, or the file if it is in none."""
    return file.split(".")[1]


def wrong(arrows: dict[str, set[str]]) -> list[str]:
    """Imports from room to room that the table does not have."""
    allowed = {name: {*rooms.split(), *HELPERS, name} for name, rooms in ROOMS.items()}
    allowed |= {name: {*HELPERS} for name in HELPERS}
    return [
        f"{file} imports {other}"
        for file, others in sorted(arrows.items())
        for other in sorted(others)
        if file != PACKAGE and other != PACKAGE
        if room(other) not in allowed[room(file)]
    ]


def test_every_room_is_in_the_table(arrows: dict[str, set[str]]) -> None:
    assert {room(file) for file in arrows} - {"__init__"} == {*ROOMS, *HELPERS}


def test_the_table_goes_down() -> None:
    order = list(ROOMS)
    up = [(a, b) for a, rooms in ROOMS.items() for b in rooms.split() if order.index(b) <= order.index(a)]
    assert not up


def test_no_circle_among_files(structure: ModuleType, arrows: dict[str, set[str]]) -> None:
    assert structure.circles(arrows) == []


def test_no_import_upward(arrows: dict[str, set[str]]) -> None:
    assert wrong(arrows) == []


def test_nothing_inside_imports_the_package(arrows: dict[str, set[str]]) -> None:
    assert [file for file, others in arrows.items() if PACKAGE in others] == []


@pytest.mark.parametrize(
    "text",
    [
        "from onnxcustom.step.state import State",
        "from onnxcustom.step import state",
        "import onnxcustom.step.state",
        "from ..step.state import State",
        "from ..step import state",
        "def f():\n    from ..step.state import State",
        "if TYPE_CHECKING:\n    from ..step.state import State",
    ],
)
def test_imports_of_all_kinds_are_seen(structure: ModuleType, text: str) -> None:
    found = {
        "onnxcustom.graph.io": ast.parse(text),
        "onnxcustom.step.state": ast.parse("from onnxcustom.graph.io import load"),
        "onnxcustom.step.__init__": ast.parse(""),
    }
    arrows = structure.arrows(found)
    assert structure.circles(arrows) == [["onnxcustom.graph.io", "onnxcustom.step.state"]]
    assert wrong(arrows) == ["onnxcustom.graph.io imports onnxcustom.step.state"]


@pytest.mark.parametrize(
    "text", ["from onnxcustom import __version__", "import onnxcustom", "from .. import load"]
)
def test_imports_of_the_package_are_seen(structure: ModuleType, text: str) -> None:
    found = {PACKAGE: ast.parse(""), "onnxcustom.graph.io": ast.parse(text)}
    assert structure.arrows(found)["onnxcustom.graph.io"] == {PACKAGE}
