"""Tables of the documentation that are made from registries and docstrings, and lie in the pages.

``python _doc/tables.py`` writes them anew, with ``--check`` it fails if a page says something else.
"""

import difflib
import re
import sys
from pathlib import Path

from onnx_ir import DataType

from onnxcustom.gradient.coverage import coverage_rst
from onnxcustom.objective.base import LOSSES
from onnxcustom.objective.penalties import PENALTIES
from onnxcustom.optim.table import options_rst, rules_rst, schedules_rst

DOC = Path(__file__).parent
TAKEN_ON = {
    "output": "the output",
    "sigmoid": "scores before a final Sigmoid",
    "softmax": "scores before a final Softmax",
}
# What the number and size of axes do not tell.
OWN = {
    "CTCLearningLoss": "classes of shape (N, L), padded by -1",
    "ContrastiveLearningLoss": "one whole number a row",
    "CosineLearningLoss": "embeddings of the prediction's shape; 1 and -1 for pairs",
    "CustomLoss": "what its model or function says",
    "DiceLearningLoss": "0 and 1 of the prediction's shape, or classes",
    "FocalLearningLoss": "classes; with ``link='sigmoid'`` 0 and 1 of the prediction's shape",
    "GaussianLearningLoss": "numbers, half as many columns as the prediction",
    "TripletLearningLoss": "classes, one a row",
}
TARGETS = {
    "values": "numbers of the prediction's shape",
    "labels": "classes, int64, without the axis of classes",
}


def names(registry, cls):
    """Every name of a class, its own last."""
    found = [name for name in registry.names() if registry.find(name) is cls]
    return ", ".join(f"``{name}``" for name in found)


def losses_rst():
    """A row a loss: names, the tensor it is taken on, and what is expected."""
    lines = [".. list-table::", "   :header-rows: 1", "   :widths: 26 34 20 20", ""]
    lines += ["   * - Loss", "     - Names", "     - Taken on", "     - Expected values"]
    for cls in LOSSES.classes():
        on = "what ``on`` says" if cls.__name__ == "CustomLoss" else TAKEN_ON[cls().on]
        expected = OWN.get(cls.__name__)
        if expected is None:
            several, one = (cls().target(DataType.FLOAT, 2, ["N", k]).kind for k in (3, 1))
            expected = TARGETS[several] + ("" if one == several else "; of one column numbers")
        lines += [f"   * - :class:`~{cls.__module__}.{cls.__name__}`", f"     - {names(LOSSES, cls)}"]
        lines += [f"     - {on}", f"     - {expected}"]
    return "\n".join(lines) + "\n"


def penalties_rst():
    """A row a penalty: names and what it is."""
    lines = [".. list-table::", "   :header-rows: 1", "   :widths: 30 30 40", ""]
    lines += ["   * - Penalty", "     - Names", "     - What it adds"]
    for cls in PENALTIES.classes():
        said = (cls.__doc__ or "").strip().split("\n\n")[0]
        lines += [f"   * - :class:`~{cls.__module__}.{cls.__name__}`", f"     - {names(PENALTIES, cls)}"]
        lines += [f"     - {' '.join(said.split())}"]
    return "\n".join(lines) + "\n"


#: Pages, and what is between their marks.
PAGES = {
    "operators": {"OPERATORS": coverage_rst},
    "optimizers": {"RULES": rules_rst, "OPTIONS": options_rst, "SCHEDULES": schedules_rst},
    "losses": {"LOSSES": losses_rst, "PENALTIES": penalties_rst},
}


def written(text, name, table):
    """The page with a table between its marks."""
    begin, end = f".. {name}: made by tables.py", f".. end of {name}"
    found = re.compile(f"^{re.escape(begin)}\n.*?^{re.escape(end)}$", re.DOTALL | re.MULTILINE)
    if len(found.findall(text)) != 1:
        raise ValueError(f"There is not one place for the table {name}.")
    return found.sub(lambda _: f"{begin}\n\n{table.strip()}\n\n{end}", text)


def main(check):
    """Write all pages, or compare them; how many differ."""
    different = 0
    for page, tables in PAGES.items():
        path = DOC / f"{page}.rst"
        text = made = path.read_text(encoding="utf-8")
        for name, table in tables.items():
            made = written(made, name, "\n".join(line.rstrip() for line in table().split("\n")))
        if made == text:
            continue
        different += 1
        if check:
            lines = difflib.unified_diff(text.split("\n"), made.split("\n"), path.name, "registry", n=0)
            print("\n".join(lines))
        else:
            path.write_text(made, encoding="utf-8")
    return different


if __name__ == "__main__":
    sys.exit(bool(main("--check" in sys.argv) and "--check" in sys.argv))
