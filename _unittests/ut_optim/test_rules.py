"""Every registered rule against a float64 NumPy transcription of its published formula."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcustom import optim
from onnxcustom.optim.registry import RULES

from .rule_cases import Case, data, trajectory

TABLES = [
    importlib.import_module(f".{path.stem}", __package__) for path in Path(__file__).parent.glob("cases_*.py")
]
CASES = [case for table in TABLES for case in table.CASES]
TORCH = [row for table in TABLES for row in table.TORCH]
OPTAX = [row for table in TABLES for row in getattr(table, "OPTAX", [])]
EACH = pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
# Shapes and precisions: each of them with several of the others.
EXACT, SINGLE = (np.float64, 1e-12), (np.float32, 1e-6)
WEIGHTS = [((), *EXACT), ((2, 1, 3, 2), *EXACT), ((0,), *SINGLE), ((2, 3), *SINGLE)]
MORE_WEIGHTS = [((2, 3), *EXACT), ((2, 0), *EXACT), ((1,), *SINGLE), ((3,), *SINGLE)]


def test_every_rule_has_a_case():
    assert {type(c.rule()) for c in CASES} == set(RULES.classes())


@EACH
def test_ten_steps_follow_the_formula(request: pytest.FixtureRequest, case: Case):
    more = MORE_WEIGHTS if request.config.getoption("--exhaustive") else []
    for shape, dtype, tol in WEIGHTS + more:
        w, gradients = data(shape, dtype)
        expected = case.reference(w.astype(np.float64), [g.astype(np.float64) for g in gradients])
        for got, wanted in zip(trajectory(case.rule(), w, gradients), expected, strict=True):
            assert got.dtype == dtype
            assert got.shape == shape
            np.testing.assert_allclose(got, wanted, rtol=tol, atol=tol, err_msg=f"{shape}, {dtype}")


@EACH
def test_batch_size_divides_the_gradient(case: Case):
    w, gradients = data((2, 3), np.float64)
    alone = list(case.reference(w, gradients))
    batch = list(trajectory(case.rule(), w, [7 * g for g in gradients], batch_size=7))
    np.testing.assert_allclose(batch, alone, rtol=1e-11, atol=1e-11)


@EACH
def test_update_model_is_valid_and_typed(case: Case):
    for opset in (7, 13, 18, 21):
        if opset >= case.opset:
            valid_and_typed(case.rule(), opset)
            continue
        with pytest.raises(ValueError, match=rf"{case.name} needs opset {case.opset} or later, not {opset}"):
            optim.update_model(case.rule(), opset=opset)


def valid_and_typed(rule: optim.BaseLearningRate, opset: int) -> None:
    model = optim.update_model(rule, (2, 3), np.float64, opset=opset)
    onnx.checker.check_model(model, full_check=True)
    assert [v.name for v in model.graph.input] == [
        "weight",
        "gradient",
        *rule.state,
        "learning_rate",
        "t",
        *(f"{name}_value" for name in rule.scheduled),
    ]
    assert [v.name for v in model.graph.output] == ["new_weight", *(f"new_{s}" for s in rule.state)]
    assert {v.type.tensor_type.elem_type for v in model.graph.output} == {onnx.TensorProto.DOUBLE}
    # No learning rate is baked in: only hyper-parameters of the update itself are constants.
    assert model.opset_import[0].version == opset


@EACH
def test_update_model_agrees_with_the_reference_evaluator(case: Case):
    from onnx.reference import ReferenceEvaluator

    rule = case.rule().init_learning_rate()
    w, (g,) = data((2, 3), np.float64, steps=1)
    feeds = {
        "weight": w,
        "gradient": g,
        **rule.create_state(w),
        "learning_rate": np.array(rule.value),
        "t": np.array(1.0),
        **{f"{k}_value": np.array(rule.values[k]) for k in rule.scheduled},
    }
    got = ReferenceEvaluator(optim.update_model(rule, dtype=np.float64)).run(None, feeds)[0]
    np.testing.assert_allclose(got, next(case.reference(w, [g])), rtol=1e-12)


def test_needs_grad_is_having_state():
    for case in CASES:
        rule = case.rule()
        assert rule.needs_grad is bool(rule.state), case.id
        assert list(rule.init_state(np.zeros((2, 3), np.float32))) == list(rule.state), case.id


@EACH
def test_no_session_is_made_after_the_first_step(case: Case, monkeypatch):
    rule = case.rule().init_learning_rate()
    w, gradients = data((2, 3), np.float32)
    state = list(rule.init_state(w).values()) or None
    rule.update_weights(0, "cpu", w, gradients[0], 1, state)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a session was made after the first step")

    monkeypatch.setattr("onnxcustom.optim.in_place.create_session", refuse)
    rule.set_learning_rate(lambda t: 1 / t)
    for t, g in enumerate(gradients, 1):
        rule.update_learning_rate(t)
        rule.update_weights(0, "cpu", w, g, 1, state)
    assert np.isfinite(w).all()


@pytest.mark.parametrize(("name", "options", "torch_name", "torch_options"), TORCH)
def test_ten_steps_follow_torch(name, options, torch_name, torch_options):
    torch = pytest.importorskip("torch")
    w, gradients = data((3, 2), np.float64)
    parameter = torch.nn.Parameter(torch.from_numpy(w.copy()))
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # that of scalars which an optimizer keeps
    try:
        optimizer = getattr(torch.optim, torch_name)([parameter], **torch_options)
        for got, g in zip(trajectory(optim.create(name, **options), w, gradients), gradients, strict=True):
            parameter.grad = torch.from_numpy(g)
            optimizer.step()
            np.testing.assert_allclose(got, parameter.detach().numpy(), rtol=1e-12, atol=1e-14)
    finally:
        torch.set_default_dtype(default)


@pytest.mark.parametrize(("name", "options", "optax_name", "optax_options"), OPTAX)
def test_ten_steps_follow_optax(name, options, optax_name, optax_options):
    optax, jax = pytest.importorskip("optax"), pytest.importorskip("jax")
    w, gradients = data((3, 2), np.float64)
    with jax.enable_x64(True):
        optimizer = getattr(optax, optax_name)(**optax_options)
        weight = jax.numpy.asarray(w)
        state = optimizer.init(weight)
        for got, g in zip(trajectory(optim.create(name, **options), w, gradients), gradients, strict=True):
            step, state = optimizer.update(jax.numpy.asarray(g), state, weight)
            weight = optax.apply_updates(weight, step)
            np.testing.assert_allclose(got, np.asarray(weight), rtol=1e-12, atol=1e-14)
