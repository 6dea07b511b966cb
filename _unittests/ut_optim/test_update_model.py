"""Updates in other people's graphs: as a model, and as a function called from one."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from onnxcustom.optim import Exp, Updater, onnx_function, update_model
from onnxcustom.optim.registry import RULES

from .rule_cases import data

ort = pytest.importorskip("onnxruntime")

EACH = pytest.mark.parametrize("cls", RULES.classes(), ids=lambda c: c.__name__)


SHARED: dict[str, Any] = {"wd": 0.03, "rescale_grad": 0.7, "clip_gradient": 0.9, "l1": 0.01}


def feeds_of(rule: Any, w: np.ndarray, g: np.ndarray) -> dict[str, np.ndarray]:
    rule.init_learning_rate()
    high = np.float32 if rule.multi_precision and w.dtype == np.float16 else w.dtype
    return {
        "weight": w,
        "gradient": g,
        **rule.create_state(w),
        "learning_rate": np.array(rule.value, high),
        "t": np.array(float(rule.t)),
        **{f"{name}_value": np.array(rule.values[name], high) for name in rule.scheduled},
    }


def ort_run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    known = {v.name for v in model.graph.input}
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {k: v for k, v in feeds.items() if k in known})


EVALUATORS = {"reference": lambda m, feeds: ReferenceEvaluator(m).run(None, feeds), "onnxruntime": ort_run}
VARIANTS = pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (np.float64, {}),
        (np.float32, SHARED),
        (np.float16, {**SHARED, "wd": Exp(0.1), "multi_precision": True}),
    ],
    ids=["f8", "f4 shared", "f2 master"],
)


@EACH
@VARIANTS
def test_update_model_does_what_an_updater_does(cls, dtype, options):
    for shape in ((2, 3), None, ()):
        does_what_an_updater_does(cls, shape, dtype, options)


def does_what_an_updater_does(cls: Any, shape: Any, dtype: Any, options: dict[str, Any]) -> None:
    rule = cls(**options)
    w, (g,) = data((5,) if shape is None else shape, dtype, steps=1)
    model = update_model(rule, shape, dtype)
    onnx.checker.check_model(model, full_check=True)
    feeds = feeds_of(rule, w, g)
    assert [v.name for v in model.graph.input] == list(feeds)
    updater, expected = Updater(cls(**options)), w.copy()
    updater(0, g, expected)
    tol = {np.float64: 1e-12, np.float32: 1e-6, np.float16: 1e-3}[dtype]
    for evaluator, run in EVALUATORS.items():
        results, states = run(model, feeds), updater.states[0].values()
        np.testing.assert_allclose(results[0], expected, rtol=tol, atol=tol, err_msg=evaluator)
        for name, got, wanted in zip(rule.create_state(w), results[1:], states, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=max(tol, 1e-6), atol=tol, err_msg=name)
            assert got.dtype == wanted.dtype
        assert results[0].dtype == dtype
    assert [v.name for v in model.graph.output] == [f"new_{n}" for n in ("weight", *rule.create_state(w))]


@EACH
@VARIANTS
def test_onnx_function_is_called_from_another_model(cls, dtype, options):
    """Two weights, one of which is updated twice."""
    rule = cls(**options)
    function = onnx_function(rule, dtype)
    assert (function.domain, function.name) == ("onnxcustom", cls.__name__)
    (w, (g, h)), (w2, (g2,)) = data((2, 3), dtype, steps=2), data((4,), dtype, seed=1, steps=1)
    model = _caller(rule, function, dtype)
    onnx.checker.check_model(model, full_check=True)
    first = feeds_of(rule, w, g)
    states = rule.create_state(w)
    second = {f"{k}_2": v for k, v in {"weight": w2, "gradient": g2, **rule.create_state(w2)}.items()}
    rule.update_learning_rate(1)
    later = {"gradient_later": h, "t_later": np.array(2.0)}
    later["learning_rate_later"] = np.array(rule.value, first["learning_rate"].dtype)
    for name in rule.scheduled:
        later[f"{name}_value_later"] = np.array(rule.values[name], first["learning_rate"].dtype)
    updater, expected, other = Updater(cls(**options)), w.copy(), w2.copy()
    for gradient in (g, h):
        updater(0, gradient, expected)
    fresh = Updater(cls(**options))
    fresh(0, g2, other)
    tol = {np.float64: 1e-12, np.float32: 1e-6, np.float16: 1e-3}[dtype]
    for evaluator, run in EVALUATORS.items():
        results = run(model, {**first, **second, **later})
        np.testing.assert_allclose(results[0], expected, rtol=tol, atol=tol, err_msg=evaluator)
        np.testing.assert_allclose(results[1], other, rtol=tol, atol=tol, err_msg=evaluator)
        assert len(results) == 2 + len(states)


def _caller(rule: Any, function: onnx.FunctionProto, dtype: Any) -> onnx.ModelProto:
    """A model that updates `weight` twice and `weight_2` once."""
    names, states = list(function.input), [n[4:] for n in function.output[1:]]
    own = ["weight", "gradient", *states]
    call = functools.partial(onnx.helper.make_node, function.name, domain="onnxcustom")
    made = [f"mid_{n}" for n in ("weight", *states)]
    again = {"weight": "mid_weight", **{s: f"mid_{s}" for s in states}}
    nodes = [
        call(names, made),
        call([again.get(n, f"{n}_later") for n in names], [f"end_{n}" for n in ("weight", *states)]),
        call([f"{n}_2" if n in own else n for n in names], [f"new_{n}_2" for n in ("weight", *states)]),
    ]
    kinds = {v.name: v.type.tensor_type.elem_type for v in update_model(rule, None, dtype).graph.input}

    def value(name: str, like: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
        dims = {n: s.shape for n, s in rule.create_state(np.zeros(shape, dtype)).items()}
        dims.update(weight=shape, gradient=shape)
        return onnx.helper.make_tensor_value_info(name, kinds[like], dims.get(like, ()))

    inputs = [value(n, n, (2, 3)) for n in names] + [value(f"{n}_2", n, (4,)) for n in own]
    inputs += [value(f"{n}_later", n, (2, 3)) for n in names if n not in again]
    outputs = [value("end_weight", "weight", (2, 3)), value("new_weight_2", "weight", (4,))]
    outputs += [value(f"end_{s}", s, (2, 3)) for s in states]
    graph = onnx.helper.make_graph(nodes, "caller", inputs, outputs)
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("onnxcustom", 1)]
    return onnx.helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=8)
