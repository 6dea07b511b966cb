"""Models of the tests in every way of differentiating them: no process ends, and only our errors come out.

``run_sweep.py`` beside this file does all of them.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("resource", reason="child processes are forked and limited as POSIX has it")
pytest.importorskip("onnxruntime")
sys.path.insert(0, str(Path(__file__).parent))

import sweep_table
from fuzz_runner import run_cases
from operator_models import operator_rows
from run_sweep import end_of, summary, table
from sweep_cases import WAYS, Subject, Sweep, subjects

pytestmark = pytest.mark.filterwarnings("ignore")

#: What ended a process, or raised what is not ours, once.
FOUND = (
    "test_normalization-LayerNormalization-(2, 3, 2) axis=-1 bias=False-18-dynamic",
    "test_pooling-MaxUnpool-18-unranked",
    "engines-MaxPool-kernel_shape=[2,2],strides=[2,2]-21-dynamic",
    "engines-Split-axis=0-read(0,)-13",
    "test_activation-Relu-empty-18-unranked",
    "test_reduction-ReduceMean-no-columns-18-static",
)


@pytest.mark.parametrize("engine", ["onnx", pytest.param("ort", marks=pytest.mark.ort)])
def test_no_process_ends(engine):
    every = subjects()
    known = [next(s for s in every if s.name.startswith(name)) for name in FOUND]
    chosen = [*known, *every[:: len(every) // 20]]
    sweep = Sweep(chosen, engine)
    results = list(run_cases(sweep, range(len(sweep)), batch=100))
    bad = [
        f"{sweep.subject(r.number).name} by {sweep.way(r.number)}: {end_of(r)}\n{r.detail}"
        for r in results
        if r.bad
    ]
    assert not bad, "\n".join(bad)
    ends = Counter(end_of(r) for r in results)
    assert ends["ok"] > (0.6 if engine == "onnx" else 0.4) * len(sweep), ends
    assert ends["none"] < 0.1 * len(sweep), ends


def test_tables_are_read():
    rows = operator_rows()
    assert len(rows) > 3000
    assert len({row.operator for row in rows}) > 130


def ends_in_its_own_way(number):
    """A case of each end."""
    if number == 1:
        raise KeyError("foreign")
    if number == 2:
        os.abort()
    return "ok" if number else "refused SomeError: because"


def test_what_is_printed(capsys):
    sweep = Sweep([Subject("one", "Abs", lambda: None), Subject("other", "Neg", lambda: None)], "onnx")
    counts = {}
    for result in run_cases(ends_in_its_own_way, range(len(sweep)), batch=6):
        key = sweep.subject(result.number).operator, sweep.way(result.number)
        counts[key] = Counter([end_of(result)])
    text = table(counts)
    assert [len(line.split()) for line in text.splitlines()] == [1 + len(WAYS)] * 3
    assert text.splitlines()[1].split() == ["Abs", "0/1/0/0/0", "0/0/1/0/0", "0/0/0/1/0"]
    assert summary(counts, "onnx", 1.0)
    assert "6 runs" in capsys.readouterr().out
    assert not summary({k: Counter(ok=1) for k in counts}, "onnx", 1.0)


def test_tables_of_several_runs_add_up(capsys, tmp_path):
    counts = {("Abs", way): Counter(ok=2, refused=1) for way in WAYS}
    summary(counts, "onnx", 1.0)
    text = f"{table(counts)}\n{capsys.readouterr().out}"
    for name in ("one", "two"):
        (tmp_path / name).write_text(text)
    page = sweep_table.main("Once.", [tmp_path / "one", tmp_path / "two"])
    rows = [line.split() for line in page.split("\n") if line.startswith("   ")]
    assert [row[0] for row in rows] == ["operator", "all", "Abs"]
    assert [row[1] for row in rows[1:]] == ["12/6/0/0/0"] * 2
    assert "Once." in page
