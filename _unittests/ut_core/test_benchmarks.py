"""The benchmarks run, at tiny sizes, and write what the pictures are drawn from."""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
# What each row of a subject's JSON must say.
KEYS = {
    "bench_step": {"case", "optimizer", "contender", "microseconds", "ratio_to_run_batch", "against", "aim"},
    "bench_loop": {"case", "microseconds", "inside", "share_outside"},
    "bench_logistic": {"contender", "seconds", "ratio_to_ours", "accuracy"},
    "bench_memory": {"case", "contender", "peak", "training"},
    "bench_streaming": {"case", "contender", "peak", "training", "rows_per_second"},
    "bench_growth": {"axis", "value", "contender", "microseconds"},
    "bench_passes": {"case", "optimizer", "nodes", "ratio"},
    "bench_settings": {"case", "microseconds", "ratios", "megabytes"},
    "bench_bandwidth": {"rule", "size", "factor", "moved"},
    "bench_recompute": {"case", "nodes", "megabytes", "time_ratio"},
    "bench_cache_frozen": {"case", "seconds", "ratio", "difference"},
    "bench_profile": {"case", "optimizer", "inside", "nodes", "kinds"},
}


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The package beside the library, which is not installed."""
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.common")


def quick(benchmarks: ModuleType, subject: str) -> list[dict]:
    """Rows of a subject at tiny sizes, without peers that take seconds to import."""
    module = importlib.import_module(f"benchmarks.{subject}")
    parser = module.parser() if hasattr(module, "parser") else benchmarks.parser("")
    options = parser.parse_args(["--quick", "--seconds", "0.01"])
    result = benchmarks.Result()
    module.run(options, result)
    return result.rows


# Many sessions, and children that each import everything: for releases, with --exhaustive.
LONG = ("bench_recompute", "bench_settings", "bench_streaming")


@pytest.mark.parametrize(
    "subject", [pytest.param(s, marks=pytest.mark.exhaustive) if s in LONG else s for s in KEYS]
)
def test_subject(
    subject: str, benchmarks: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(benchmarks, "missing", lambda *modules: f"{modules} left out" if modules else None)
    rows = quick(benchmarks, subject)
    assert rows
    for row in rows:
        assert KEYS[subject] <= set(row), row
    assert json.loads(json.dumps(rows)) == rows
    assert capsys.readouterr().out
    if subject == "bench_step":
        found = {(row["optimizer"], row["contender"]) for row in rows}
        assert found == {
            (o, c) for o in ("SGD", "Adam") for c in ("run", "run_batch", "fit", "partial_fit", "sklearn fit")
        }
        assert {r["contender"]: r["against"] for r in rows}["sklearn fit"] == "fit"  # like with like
    if subject == "bench_loop":
        assert 0 < rows[0]["inside"] < rows[0]["microseconds"]


def test_losses_are_those_of_torch(
    benchmarks: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr(benchmarks, "processors", lambda: 1)
    losses = importlib.import_module("benchmarks.bench_losses")
    rows = quick(benchmarks, "bench_losses")
    assert len(rows) == len(losses.QUICK)
    assert json.loads(json.dumps(rows)) == rows
    printed = capsys.readouterr().out
    for row in rows:
        assert row["case"] in printed
        assert max(row["differences"]["float64"]) <= 1e-9
    monkeypatch.setattr(losses, "PROMISE", -1.0)
    with pytest.raises(AssertionError, match="value and gradient differ by"):
        losses.differences(losses.cases(True)[0])


def test_architectures_train_the_same(
    benchmarks: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr(benchmarks, "processors", lambda: 1)
    module = importlib.import_module("benchmarks.bench_architectures")
    monkeypatch.setattr(module, "QUICK", ["lstm"])
    rows = quick(benchmarks, "bench_architectures")
    assert json.loads(json.dumps(rows)) == rows
    assert [row["model"] for row in rows] == ["lstm"]
    assert set(rows[0]["seconds"]) == {"ours", "eager"}
    assert "lstm, SGD" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="losses differ"):
        module.compare({"ours": [1.0, 0.9], "eager": [1.0, 0.95]})


def test_architectures_without_peers_are_named(
    benchmarks: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmarks, "missing", lambda *modules: "torch is not installed")
    module = importlib.import_module("benchmarks.bench_architectures")
    result = benchmarks.Result()
    module.run(module.parser().parse_args(["--quick"]), result)
    assert result.rows == []
    assert set(result.skipped) == set(module.QUICK)


def test_contender_that_trains_something_else(
    benchmarks: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = importlib.import_module("benchmarks.bench_step")
    monkeypatch.setattr(benchmarks, "missing", lambda *modules: "left out" if modules else None)
    honest = step.sklearn_step

    def other(problem: object) -> object:
        contender = honest(problem)
        run = contender.run
        contender.run = lambda: [1.02 * loss for loss in run()]
        return contender

    monkeypatch.setitem(step.MAKERS, "partial_fit", other)
    with pytest.raises(AssertionError, match="partial_fit trains something else"):
        quick(benchmarks, "bench_step")


def test_measure_takes_turns(benchmarks: ModuleType) -> None:
    calls: list[str] = []
    contenders = {
        name: benchmarks.Contender(lambda name=name: calls.append(name) or [], 2) for name in ("a", "b", "c")
    }
    for contender in contenders.values():
        contender.run()
    times = benchmarks.measure(contenders, 0, rounds=(3, 3))
    assert {name: len(found) for name, found in times.items()} == dict.fromkeys("abc", 3)
    first = [calls[0]] + [b for a, b in itertools.pairwise(calls) if a != b]
    # Once each above, once each to see how long it takes; then rounds that begin with another one each.
    assert "".join(first).endswith("abcbcacab")


def test_ratios_are_by_round(benchmarks: ModuleType) -> None:
    times = {"ours": [1.0, 10.0, 2.0], "theirs": [3.0, 20.0, 10.0]}
    assert benchmarks.ratios(times, "theirs", "ours") == {"median": 3.0, "low": 2.5, "high": 4.0}


def test_suite(tmp_path: Path) -> None:
    """One command: tables, JSON and pictures."""
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", "loop", "--threads", "1"]
    command += ["--json", str(tmp_path / "found.json")]
    pictures = importlib.util.find_spec("matplotlib") is not None
    command += ["--plots", str(tmp_path / "pictures")] if pictures else []
    environment = {**os.environ, "MPLCONFIGDIR": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert {"onnxcustom", "numpy", "python"} <= set(found["versions"])
    assert found["machine"]["processors"] == os.cpu_count()
    (row,) = found["subjects"]["loop"]["rows"]
    assert row["threads"] == 1 or not hasattr(os, "sched_setaffinity")
    assert row["case"] in done.stdout
    if pictures:
        assert (tmp_path / "pictures" / "loop.png").stat().st_size > 1000


def test_pictures(benchmarks: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plots = importlib.import_module("benchmarks.plots")
    ratio = {"median": 2.0, "low": 1.5, "high": 3.0}
    step = [
        {
            "case": "1-1-1-1, batch 1", "optimizer": optimizer, "threads": 1, "contender": name, "aim": 1.1,
            "against": "run_batch", "microseconds": 10.0, "ratio_to_run_batch": ratio, "ratio_to_fit": ratio,
        }
        for optimizer in ("SGD", "Adam") for name in ("run_batch", "scan")
    ]  # fmt: skip
    growth = [
        {"axis": axis, "value": n, "contender": "onnxcustom", "microseconds": 5.0 * n, "megabytes": 0.0}
        for axis in ("rows", "depth")
        for n in (1, 10)
    ]
    memory = [
        {"case": "1-1-1-1, batch 1", "rows": 9, "data": 1.0, "contender": "onnxcustom", "training": 3.0}
    ]
    subjects = {"step": step, "growth": growth, "memory": memory}
    results = {"subjects": {name: {"threads": 1, "rows": rows} for name, rows in subjects.items()}}
    assert [path.name for path in plots.draw(results, tmp_path)] == ["step.png", "memory.png", "growth.png"]


def test_options_are_known(benchmarks: ModuleType) -> None:
    suite = importlib.import_module("benchmarks.__main__")
    for module, options, threads in suite.SUBJECTS.values():
        assert (ROOT / "benchmarks" / f"{module}.py").is_file()
        assert threads in (1, 2)
        subject = importlib.import_module(f"benchmarks.{module}")
        if module in KEYS:
            parser = subject.parser() if hasattr(subject, "parser") else benchmarks.parser("")
            assert isinstance(parser.parse_args(options), argparse.Namespace)
