"""Public callables of ``data``, ``plotting``, ``optim``, ``metrics``: nonsense is an error of ours."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx.parser
import pandas as pd
import pytest

from onnxcustom import data, metrics, optim, plotting
from onnxcustom.exceptions import OnnxCustomError
from onnxcustom.optim import Adam, Exp, OptimizationState, Updater

pytest.importorskip("onnxruntime")

X = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
FRAME = pd.DataFrame({"a": X[:, 0], "b": X[:, 1], "y": X[:, 0], "w": 1.0})
WEIGHT = np.ones((2, 2), np.float32)
MODEL, OTHER = (
    onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]> line (float[N, 2] x) => (float[N, 1] y)
        <float[2, 1] w = {{{numbers}}}> {{ y = MatMul(x, w) }}"""
    )
    for numbers in ("1, 2", "2, 2")
)
NONSENSE = [
    *(None, object(), "zz", "", -1, 0, 1.5, float("nan"), float("inf"), True, 2**70, 1j, int, b"x"),
    *([], [None], ["zz", 3], {}, {"zz": 3}, (), range(3), abs, np.zeros((2, 2)), np.array("a")),
    *(Path("nowhere") / "x.y", np.zeros(3, dtype="datetime64[s]"), Adam(), Exp()),
]


class Case(NamedTuple):
    """How something public is called, and what is done with its result."""

    call: Callable[..., Any]
    arguments: dict[str, Any]
    use: Callable[[Any], Any] = lambda made: None


def use_rule(rule: Any) -> None:
    rule.init_learning_rate()
    rule.update_learning_rate(1)
    rule.create_state(WEIGHT)
    repr(rule)


def use_schedule(schedule: Any) -> None:
    for t, epoch in ((1, 1), (7, 2)):
        schedule.value(t, epoch)
    schedule.report_epoch(1.0)
    repr(schedule)


def use_stream(stream: Any) -> None:
    stream.head(2)
    list(stream.blocks())
    repr(stream)


@functools.cache
def updating() -> Any:
    rule = optim.LearningRateSGD().init_learning_rate()
    rule.build_onnx_function(17, "cpu", 1)
    return rule


NEEDED: dict[str, dict[str, Any]] = {
    "Cosine": {"eta0": 0.1, "total": 10},
    "CosineRestarts": {"eta0": 0.1, "period": 3},
    "Function": {"function": lambda t: 0.1},
    "MultiStep": {"eta0": 0.1, "milestones": [2, 4]},
    "OneCycle": {"max_rate": 0.1, "total": 10},
    "Polynomial": {"eta0": 0.1, "total": 10},
    "Step": {"eta0": 0.1, "step_size": 3},
    "Warmup": {"schedule": Exp(), "steps": 3},
}
STATE = OptimizationState(3)
SHARED = set(inspect.signature(optim.SharedOptions).parameters)
OPTIM: dict[str, Case] = {
    "OptimizationState": Case(
        OptimizationState, {"batch_size": 3}, lambda state: optim.get_learning_rate(Exp(), state)
    ),
    "Updater": Case(Updater, {"optimizer": "sgd"}, lambda made: made(0, WEIGHT, WEIGHT.copy())),
    "Updater.__call__": Case(
        lambda **given: Updater("adam")(**given), {"index": 0, "gradient": WEIGHT, "weight": WEIGHT.copy()}
    ),
    "Updater.optimizer": Case(
        lambda optimizer: setattr(Updater("adam"), "optimizer", optimizer), {"optimizer": Adam()}
    ),
    "Updater.set_states": Case(
        lambda states: Updater("adam").set_states(states), {"states": Updater("adam").get_states()}
    ),
    "get_updater": Case(optim.get_updater, {"optimizer": "sgd"}),
    "create": Case(optim.create, {"name": "adam", "learning_rate": 0.1, "lr_scheduler": Exp()}, use_rule),
    "get_learning_rate": Case(optim.get_learning_rate, {"schedule": Exp(), "state": STATE}),
    "get_momentum": Case(optim.get_momentum, {"schedule": Exp(), "state": STATE}),
    "normalized_gradient": Case(
        optim.normalized_gradient, {"opts": Adam(), "state": STATE, "weight": WEIGHT, "grad": WEIGHT}
    ),
    "onnx_function": Case(optim.onnx_function, {"optimizer": Adam()}),
    "update_model": Case(optim.update_model, {"optimizer": Adam(), "shape": (2, 2)}),
    "select_optimizer": Case(optim.select_optimizer, {"optimizer": "sgd", "learning_rate": 0.1}, use_rule),
    "with_rate": Case(optim.with_rate, {"schedule": Exp(), "rate": 0.1}, use_schedule),
    "BaseLearningRate.set_params": Case(
        lambda **given: Adam().set_params(**given), {"beta1": 0.5, "learning_rate": 0.1}, use_rule
    ),
    "BaseLearningRate.set_learning_rate": Case(
        lambda learning_rate: Adam().init_learning_rate().set_learning_rate(learning_rate),
        {"learning_rate": 0.1},
    ),
    "BaseLearningRate.update_learning_rate": Case(
        lambda t: Adam().init_learning_rate().update_learning_rate(t), {"t": 1}
    ),
    "BaseLearningRate.loop": Case(
        lambda n: [v for v, _ in zip(Adam().loop(n), range(9), strict=False)], {"n": 3}
    ),
    "BaseLearningRate.select": Case(optim.BaseLearningRate.select, {"class_name": "SGD"}, use_rule),
    "BaseLearningRate.create_state": Case(lambda weight: Adam().create_state(weight), {"weight": WEIGHT}),
    "BaseLearningRate.build_onnx_function": Case(
        lambda **given: optim.LearningRateSGD().build_onnx_function(**given),
        {"opset": 17, "device": "cpu", "n_tensors": 1},
    ),
    "BaseLearningRate.update_weights": Case(
        lambda **given: updating().update_weights(**given),
        {
            "n_bind": 0,
            "device": "cpu",
            "statei": WEIGHT,
            "gradienti": WEIGHT,
            "batch_size": 2,
            "velocity": None,
        },
    ),
    "Schedule.report_epoch": Case(lambda loss: optim.ReduceOnPlateau().report_epoch(loss), {"loss": 1.0}),
}
#: Bases, declarations of fields, and what is made by the rest.
NO_CASE = {
    "data": {"Block", "Stream"},
    "plotting": {"GraphPicture"},
    "metrics": {"Metric", "register_metric", "scorer_names"},
    "optim": {
        *("BaseLearningRate", "Optimizer", "Schedule", "SharedOptions", "State", "UnknownOptionError"),
        *("choice", "flag", "integer", "number", "optional", "register", "rule_names"),
    },
}
for _name in optim.__all__:
    _cls = getattr(optim, _name)
    if inspect.isclass(_cls) and not inspect.isabstract(_cls) and _name not in NO_CASE["optim"]:
        if issubclass(_cls, optim.BaseLearningRate):
            OPTIM[_name] = Case(_cls, {}, use_rule)
        elif issubclass(_cls, optim.Schedule):
            OPTIM[_name] = Case(_cls, NEEDED.get(_name, {}), use_schedule)
DATA: dict[str, Case] = {
    "as_data": Case(data.as_data, {"X": X, "y": X[:, 0]}),
    "stream": Case(
        data.stream,
        {"source": "t.csv", "target": "y", "columns": ["a", "b"], "sample_weight": "w", "shuffle_rows": 4},
        use_stream,
    ),
    "stream of a frame": Case(
        data.stream, {"source": FRAME, "target": "y", "inputs": {"x": ["a", "b"]}}, use_stream
    ),
    "stream of arrays": Case(data.stream, {"source": (X, X[:, 0]), "block_rows": 2}, use_stream),
    "Stream.split": Case(
        lambda **given: data.stream((X, X[:, 0])).split(**given),
        {"fraction": 0.3, "seed": 0},
        lambda parts: [*map(use_stream, parts)],
    ),
    "Stream.head": Case(lambda rows: data.stream((X, X[:, 0])).head(rows), {"rows": 3}),
    "Stream.blocks": Case(
        lambda **given: list(data.stream((X, X[:, 0])).blocks(**given)),
        {"rows": 3, "multiple": 1, "skip": 0, "shuffle": False, "epoch": 0, "seed": 0},
    ),
}
PLOTTING: dict[str, Case] = {
    "plot_history": Case(
        plotting.plot_history, {"history": {"loss": [1.0], "r2": [2.0]}, "metrics": ["r2"], "smooth": 0.5}
    ),
    "plot_graph": Case(plotting.plot_graph, {"model": MODEL}),
    "plot_weight_changes": Case(plotting.plot_weight_changes, {"before": MODEL, "after": OTHER, "top": 3}),
    "GraphPicture.save": Case(lambda path: plotting.plot_graph(MODEL).save(path), {"path": "g.dot"}),
}
TEXTS = {"expected": [[1, 2], [2, -1]], "predicted": [[1, 1], [2, -1]], "sample_weight": [1, 2]}
LABELS = {**TEXTS, "ignore_index": -1}
METRICS: dict[str, Case] = {
    "best_path": Case(metrics.best_path, {"scores": np.ones((2, 3, 4)), "blank": 0}),
    "beam_search": Case(metrics.beam_search, {"scores": np.ones((2, 3, 4)), "blank": 0, "width": 2}),
    "edit_distance": Case(metrics.edit_distance, {"a": "abc", "b": "bcd"}),
    "character_error_rate": Case(metrics.character_error_rate, TEXTS),
    "word_error_rate": Case(metrics.word_error_rate, {**TEXTS, "space": 2}),
    "token_accuracy": Case(metrics.token_accuracy, LABELS),
    "mean_iou": Case(metrics.mean_iou, LABELS),
    "recall_at_k": Case(
        metrics.recall_at_k, {"embeddings": X, "labels": [0, 0, 1, 1, 2, 2], "sample_weight": np.ones(6)}
    ),
    "get_scorer": Case(metrics.get_scorer, {"name": "recall:k=3"}),
}
CASES = {
    f"{room}.{name}": case
    for room, cases in (("data", DATA), ("optim", OPTIM), ("plotting", PLOTTING), ("metrics", METRICS))
    for name, case in cases.items()
}


def parameters(case: Case) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    declared = [p.name for p in inspect.signature(case.call).parameters.values() if p.kind in kinds]
    if case.use is use_rule and case.call is not optim.SGD:  # options of all rules are tried with one
        declared = [name for name in declared if name not in SHARED]
    return list(dict.fromkeys([*declared, *case.arguments]))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore")
def test_nonsense_is_an_error_of_ours(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name.startswith("plotting"):
        pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    FRAME.to_csv("t.csv", index=False)
    case = CASES[name]
    case.use(case.call(**case.arguments))
    foreign = []
    values = NONSENSE[::2] if name.startswith("plotting") else NONSENSE  # pictures take their time
    for parameter, value in itertools.product(parameters(case), values):
        own = (OnnxCustomError, OSError) if isinstance(value, (str, Path)) else OnnxCustomError
        try:
            case.use(case.call(**{**case.arguments, parameter: value}))
        except own:  # or what the disk says of a path
            continue
        except Exception as exc:
            foreign.append(f"{parameter}={value!r:.40}: {type(exc).__name__}: {exc!s:.80}")
    assert not foreign


@pytest.mark.parametrize("room", NO_CASE)
def test_every_public_callable_has_a_case(room: str) -> None:
    module = {"data": data, "optim": optim, "plotting": plotting, "metrics": metrics}[room]
    there = {name for name in module.__all__ if callable(getattr(module, name))}
    found = {name.split(".")[1].split(" ")[0] for name in CASES if name.startswith(room)}
    assert there - NO_CASE[room] == found - {name.split(".")[0] for name in NO_CASE[room]} - NO_CASE[room]


def test_a_batch_larger_than_any_memory_of_a_stream() -> None:
    """What is not there is not allocated."""
    rows = data.stream(lambda: iter([(X, X[:, 0])] * 3))
    (block,) = rows.blocks(rows=2**62)
    assert block.X.tolist() == X.tolist() * 3
