"""Add up the tables that runs of ``run_sweep.py --table`` have printed, as a page of the documentation.

``python _unittests/ut_fuzz/sweep_table.py "when and of which commit" LOG ...`` prints a row an operator and a
column an engine and onnxruntime: ok / refused / foreign / signal / late, all ways together.
"""

from __future__ import annotations

import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

ROW = re.compile(r"^(\S+)((?:\s+\d+/\d+/\d+/\d+/\d+)+)$")
ENGINE = re.compile(r"^engine (\S+), onnxruntime (\S+), (.*):$")
Counts = dict[tuple[str, str], dict[str, Counter[str]]]


def read(logs: Iterable[str]) -> Counts:
    """Counts by engine and onnxruntime, and by operator, of what runs have printed."""
    found: Counts = {}
    for text in logs:
        engine = next(filter(None, map(ENGINE.match, text.split("\n"))))
        ends = engine[3].split(" / ")
        counts = found.setdefault((engine[1], engine[2]), defaultdict(Counter))
        for row in filter(None, map(ROW.match, text.split("\n"))):
            for cell in row[2].split():
                counts[row[1]].update(dict(zip(ends, map(int, cell.split("/")), strict=True)))
    return found


def table(counts: Counts) -> str:
    """A row an operator, the sums first."""
    columns = sorted(counts, key=lambda key: (key[0], [int(n) for n in key[1].split(".")[:2]]))
    operators = sorted({operator for found in counts.values() for operator in found})
    rows = [["operator", *(f"{engine} {version}" for engine, version in columns)]]
    for operator in ["all", *operators]:
        cells = []
        for column in columns:
            found = counts[column]
            some = sum(found.values(), Counter()) if operator == "all" else found.get(operator, Counter())
            cells.append("/".join(str(some[e]) for e in ("ok", "refused", "foreign", "signal", "late")))
        rows.append([operator, *cells])
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join("  ".join(f"{c:{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


PAGE = """Every model by every way
========================

``python _unittests/ut_fuzz/run_sweep.py --engine onnx --table`` takes every operator of the tests' tables,
its inputs of known, symbolic and unknown shapes, and whole models through forward and backward,
``gradient_graph`` and ``TrainingStep``, each in a child process. Nothing may end a process, and no exception
but this library's own may come out. What came of it, ok / refused / foreign / signal / late, by engine and
onnxruntime, the three ways together:

{when}

::

{table}
"""


def main(when: str, logs: Iterable[str]) -> str:
    """The page."""
    text = table(read(Path(log).read_text(encoding="utf-8") for log in logs))
    return PAGE.format(when=when, table="\n".join(f"   {line}" for line in text.split("\n")))


if __name__ == "__main__":
    print(main(sys.argv[1], sys.argv[2:]), end="")
