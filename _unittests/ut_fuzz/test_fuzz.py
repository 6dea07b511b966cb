"""Mutated models and files of rows: only errors of this library come out, and no process ends.

Twice as many cases with ``--exhaustive``; ``run_fuzz.py`` beside this file does as many as wanted.
"""

import contextlib
import os
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxcustom import load, weights
from onnxcustom.exceptions import OnnxCustomError

pytest.importorskip("resource", reason="child processes are forked and limited as POSIX has it")
sys.path.insert(0, str(Path(__file__).parent))

import fuzz_models
from fuzz_cases import Fuzz
from fuzz_runner import run_cases
from model_mutations import MUTATIONS, mutate
from model_targets import TARGETS, run_model

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    ("kind", "cases"), [("models", 50), ("operators", 50), ("data", 75), ("checkpoints", 40)]
)
def test_only_our_errors(request, kind, cases):
    pytest.importorskip("onnxruntime")
    if request.config.getoption("--exhaustive"):
        cases *= 2
    fuzz = Fuzz(kind, seed=0)
    results = list(run_cases(fuzz, range(cases), batch=50))
    assert [r.number for r in results] == list(range(cases))
    bad = [f"{kind} {r.number} ({fuzz.name(r.number)}): {r.outcome}\n{r.detail}" for r in results if r.bad]
    assert not bad, "\n".join(bad)
    # Mutations that are all refused, or none of which is, would test nothing.
    outcomes = [r.outcome for r in results]
    accepted = sum("done" in outcome for outcome in outcomes)
    assert 0.1 * cases < accepted < 0.95 * cases


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=60)
@given(name=st.sampled_from(["mlp", "functions", "sparse", "branches"]), random=st.randoms())
def test_loading(name, random):
    content = mutate(fuzz_models.model(name), random)
    for function in (load, weights):
        with contextlib.suppress(OnnxCustomError):
            function(content)


@pytest.mark.parametrize("name", fuzz_models.MODELS)
def test_models_to_start_from_are_valid(name):
    pytest.importorskip("onnxruntime")
    outcomes = run_model(fuzz_models.model(name))
    assert set(outcomes) == set(TARGETS)
    refused = {k: v for k, v in outcomes.items() if v != "done"}
    # Sizes of a Loop's results, text as input of training, labels and trees are no matter of training.
    assert set(refused) <= {"gradient", "step"}
    assert "InvalidModelError" not in refused.values()


def test_every_mutation_changes_something():
    from random import Random

    import onnx

    contents = [fuzz_models.model(name) for name in fuzz_models.MODELS]
    for mutation in MUTATIONS:
        changed = 0
        for seed, content in enumerate(contents):
            model = onnx.ModelProto.FromString(content)
            mutation(model, Random(seed))
            changed += model.SerializeToString() != content
        assert changed, mutation.__name__


def test_a_case_is_a_function_of_its_number():
    one, other = Fuzz("data", seed=3), Fuzz("data", seed=3)
    other.content(5)
    assert [one.content(n) for n in range(20)] == [other.content(n) for n in range(20)]
    assert [one.content(n) for n in range(20)] != [Fuzz("data", seed=4).content(n) for n in range(20)]


# -- the runner --------------------------------------------------------------------------------------


def behaves(number):
    """One case of each kind."""
    if number == 1:
        raise KeyError("leaked")
    if number == 2:
        os.abort()
    if number == 3:
        raise MemoryError
    if number == 4:
        while True:
            time.perf_counter()
    return "fine"


@pytest.mark.parametrize("batch", [1, 6])
def test_runner_notices(batch):
    results = list(run_cases(behaves, range(6), seconds=0.2, batch=batch))
    assert [r.outcome for r in results] == ["fine", "leak", "killed", "memory", "timeout", "fine"]
    assert "KeyError: 'leaked'" in results[1].detail
    assert "SIGABRT" in results[2].detail
    assert [r.bad for r in results] == [False, True, True, True, True, False]


class Wearing:
    """Cases that end a process only where another was before them in it."""

    def __init__(self):
        self.done = 0

    def __call__(self, number):
        self.done += 1
        if number == 1 and self.done > 1:
            os.abort()
        if number == 2 and self.done > 1:
            raise MemoryError
        return "fine"


def test_what_ended_a_child_is_done_again_alone():
    results = list(run_cases(Wearing(), range(4), batch=4))
    # A signal stays one; memory that others had used up does not.
    assert [r.outcome for r in results] == ["fine", "killed", "fine", "fine"]
    assert results[1].detail.startswith("only behind others")
    results = list(run_cases(Wearing(), [0, 2, 3], batch=3))
    assert [(r.number, r.outcome) for r in results] == [(0, "fine"), (2, "fine"), (3, "fine")]
