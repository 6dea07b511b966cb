"""Every rule in every opset: valid, and the numbers of opset 18, which other tests compare with formulas."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxcustom.optim.function import build_update
from onnxcustom.runtime import create_session, ort_limits

from ..opset_forms import distinct
from .test_rules import EACH, Case

TOP = min(23, ort_limits()[0])


@EACH
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_opset_updates_alike(case: Case, dtype):
    rng = np.random.default_rng(0)
    rule = case.rule().init_learning_rate()
    w, g = rng.normal(size=(2, 3, 4)).astype(dtype)
    w[0, 0] = g[0, 1] = 0
    feeds = {"weight": w, "gradient": g, "t": np.array(3.0), "learning_rate": np.array(rule.value, dtype)}
    feeds |= {f"{name}_value": np.array(rule.values[name], dtype) for name in rule.scheduled}
    for name, state in rule.create_state(w).items():
        array = np.asarray(state)
        feeds[name] = rng.uniform(0.1, 1, size=array.shape).astype(array.dtype)
    models = {}
    for opset in range(case.opset, TOP + 1):
        models[opset] = ir.to_proto(build_update(rule, np.dtype(dtype), w.shape, opset))
        onnx.checker.check_model(models[opset], full_check=True)
        assert models[opset].opset_import[0].version == opset
    made = {k: create_session(m, optimize=False).run(None, feeds) for k, m in distinct(models).items()}
    for opset, arrays in made.items():
        for found, wanted in zip(arrays, made[18], strict=True):
            np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-6, err_msg=f"opset {opset}")
