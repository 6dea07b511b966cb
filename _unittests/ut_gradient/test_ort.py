"""The engine 'ort' on every operator: a right gradient or a refusal, never an abort."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from operator_cases import CASES, variants

from onnxcustom import OrtGradientForwardBackward
from onnxcustom.gradient.ort.operators import OPERATORS, STEP_OPERATORS

pytestmark = pytest.mark.ort
HERE = Path(__file__).parent
# Refused only because of an attribute, a type or an unknown rank: some case must pass.
NEVER = {op for op in {c.op for c in CASES} if op not in OPERATORS}


def answers(script, *args):
    """Lines of a script that may abort: it is started again after what it died of."""
    import onnxcustom

    paths = [str(Path(onnxcustom.__file__).parents[1]), str(HERE), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}
    start, rows = 0, []
    while True:
        run = subprocess.run(
            [sys.executable, str(HERE / script), *args, str(start)],
            capture_output=True,
            text=True,
            env=env,
            check=False,
        )
        lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("[")]
        rows += [line for line in lines if line[0] != "begin"]
        if run.returncode == 0:
            return rows
        assert lines, run.stderr
        assert lines[-1][0] == "begin", run.stderr
        rows.append(["crashed", *lines[-1][1:], f"{run.returncode} {run.stderr[-300:]}"])
        start = lines[-1][1] + 1


@pytest.fixture(scope="module")
def checked():
    """Results of all checks, by case number."""
    found = defaultdict(list)
    for row in answers("case_check.py", "ort"):
        found[row[2]].append(row)
    return found


@pytest.mark.parametrize("number", range(len(CASES)), ids=[c.id for c in CASES])
def test_right_or_refused(checked, number):
    rows = checked[number]
    bad = [row for row in rows if row[0] not in ("ok", "refused", "noforward")]
    assert not bad
    assert all(row[0] != "ok" for row in rows) or CASES[number].op in OPERATORS
    for row in rows:
        if row[0] == "refused":
            assert f"({CASES[number].op}, opset" in row[-1]
            assert "'node'" in row[-1] or "node" in row[-1]


@pytest.mark.parametrize("engine", ["onnx", "ort"])
def test_outputs_that_nobody_reads_and_operands_that_are_one_value(engine):
    rows = answers("case_check.py", engine, "variants")
    asked = [variant for case in CASES for variant in variants(case)]
    assert {row[2] for row in rows} == {n for n, case in enumerate(asked) if any(case.opsets(oldest=13))}
    bad = [(asked[row[2]].id, *row) for row in rows if row[0] not in ("ok", "refused")]
    assert not bad
    right = {asked[row[2]].op for row in rows if row[0] == "ok"}
    assert right >= {"Split", "TopK", "MaxPool", "LayerNormalization", "MatMul", "Max", "Where"}
    assert engine == "ort" or all(row[0] == "ok" for row in rows)


def test_every_operator_of_the_table_has_a_case_that_passes(checked):
    passing = {CASES[n].op for n, rows in checked.items() if any(r[0] == "ok" for r in rows)}
    assert set(OPERATORS) - {"Dropout"} <= passing
    assert passing <= set(OPERATORS)
    assert {c.op for c in CASES if c.op in OPERATORS} == set(OPERATORS)


def test_the_table_names_operators_that_exist():
    known = {s.name for s in onnx.defs.get_all_schemas() if s.domain == ""}
    assert set(OPERATORS) <= known
    assert known >= STEP_OPERATORS
    assert not set(OPERATORS) & STEP_OPERATORS


@pytest.fixture(scope="module")
def probed():
    """What the builder itself says to the cases, unguarded, by operator."""
    found = defaultdict(set)
    for row in answers("ort_probe.py"):
        found[CASES[row[2]].op].add(row[0])
    return found


def test_the_builder_has_no_gradient_of_what_is_not_in_the_table(probed):
    assert NEVER
    for op in NEVER - {"ReduceL2"}:
        assert "ok" not in probed[op], op


@pytest.mark.parametrize("op", [n for n, s in OPERATORS.items() if s.how == "rule"])
def test_the_builder_has_a_gradient_of_what_is_in_the_table(probed, op):
    # LayerNormalization gets its optional outputs from the engine.
    assert "ok" in probed[op] or op == "LayerNormalization"


@pytest.mark.parametrize("op", ["AveragePool", "MaxPool"])
def test_the_builder_still_crashes(probed, op):
    assert probed[op] & {"crashed", "wrong"}


@pytest.mark.parametrize("form", ["constant", "equal", "computed"])
@pytest.mark.parametrize("dims", ["2, 7", "N, 7", "N, M"])
@pytest.mark.parametrize("read", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)])
def test_parts_of_a_split_that_nothing_reads(read: tuple[int, ...], dims: str, form: str) -> None:
    """y_k = (part k of x w)²: the gradient of a part that is not read is zero."""
    sizes = [3, 3, 1] if form == "equal" else [3, 1, 3]
    operands = {"constant": "(a, parts)", "equal": "(a)", "computed": "(a, given)"}[form]
    attributes = "axis = -1, num_outputs = 3" if form == "equal" else "axis = 1"
    squares = " ".join(f"y{k} = Mul(p{k}, p{k})" for k in read)
    outputs = ", ".join(f"float[rows, d{k}] y{k}" for k in read)
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 18]> g (float[{dims}] x, int64[3] sizes) => ({outputs})'
        "<float[7] w = {1, 2, 3, 4, 5, 6, 7}, int64[3] parts = {3, 1, 3}>"
        f"{{ a = Mul(x, w) given = Identity(sizes) p0, p1, p2 = Split<{attributes}>{operands} {squares} }}"
    )
    x, w = np.random.default_rng(0).normal(size=(2, 7)).astype(np.float32), np.arange(1, 8, dtype=np.float32)
    function = OrtGradientForwardBackward(model, engine="ort").new_instance()
    found = function.forward([x, np.array(sizes), w], training=True)
    dx, dw = (v.numpy() for v in function.backward([np.ones(v.shape(), np.float32) for v in found]))
    where = np.isin(np.repeat(np.arange(3), sizes), read)
    np.testing.assert_allclose(dx, 2 * x * w * w * where, rtol=1e-5)
    np.testing.assert_allclose(dw, (2 * x * w * x * where).sum(0), rtol=1e-5)
