"""Every loss and penalty in every opset: valid, and the numbers of its formula.

Of losses in float64 in some opsets, in all of them with ``--exhaustive``.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxcustom.exceptions import InvalidModelError
from onnxcustom.objective import (
    ContrastiveLearningLoss,
    CTCLearningLoss,
    DiceLearningLoss,
    GaussianLearningLoss,
    TripletLearningLoss,
)
from onnxcustom.objective.penalties import PENALTIES, L2StartLearningPenalty, PerWeightLearningPenalty
from onnxcustom.objective.standalone import loss_model
from onnxcustom.runtime import create_session, ort_limits

from ..opset_forms import distinct
from .test_base import PARAMS

TOP = min(23, ort_limits()[0])
# The oldest opset that has what a loss is made of, where that is not 7.
OLDEST = {
    (ContrastiveLearningLoss, "classes"): 9,
    (CTCLearningLoss, "phrases"): 11,
    (CTCLearningLoss, "likely_phrases"): 11,
    (CTCLearningLoss, "timed_phrases"): 11,
    (DiceLearningLoss, "labels"): 9,
    (GaussianLearningLoss, "moments"): 10,
    (TripletLearningLoss, "classes"): 9,
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("loss", "data", "shape", "formula"), PARAMS)
def test_losses(request, loss, data, shape, formula, dtype):
    rng = np.random.default_rng(0)
    y, p = data(rng, shape)
    y, p = (a if a.dtype.kind in "iu" else a.astype(dtype) for a in (y, p))
    w = rng.uniform(0.5, 2, size=len(p)).astype(dtype)
    exact = np.asarray(formula(y, p.astype(np.float64))).reshape(len(p), -1).sum(1) * w
    specs = [(ir.DataType.from_numpy(a.dtype), list(a.shape)) for a in (p, y, w)]
    oldest = OLDEST.get((type(loss), data.__name__), 7)
    if oldest > 7:
        with pytest.raises(InvalidModelError, match="convert the model to a newer"):
            loss_model(loss, *specs, outputs=("scores", "loss", "gradient"), opset=oldest - 1)
    every = dtype == np.float32 or request.config.getoption("--exhaustive")
    models = {
        opset: loss_model(loss, *specs, outputs=("scores", "loss", "gradient"), opset=opset)
        for opset in (range(oldest, TOP + 1) if every else sorted({oldest, 13, 18, TOP}))
    }
    for model in models.values():
        onnx.checker.check_model(model, full_check=True)
    feeds, made = {"expected": y, "predicted": p, "weight": w}, {}
    for opset, model in distinct(models).items():
        made[opset] = create_session(model).run(None, feeds)
        np.testing.assert_allclose(made[opset][0], exact, rtol=1e-4, atol=1e-5, err_msg=f"opset {opset}")
    for opset, arrays in made.items():
        for found, wanted in zip(arrays, made[18], strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5, err_msg=f"opset {opset}")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", [k for k in PENALTIES.classes() if k is not PerWeightLearningPenalty])
def test_penalties(kind, dtype):
    w = np.array([[1, -2, 0.5], [0, 3, -1]], dtype)
    penalty = kind(start=np.ones_like(w)) if issubclass(kind, L2StartLearningPenalty) else kind()
    models = {opset: penalty.to_onnx(dtype=dtype, opset=opset) for opset in range(7, TOP + 1)}
    for model in models.values():
        onnx.checker.check_model(model, full_check=True)
    made = {opset: create_session(m).run(None, {"weight": w}) for opset, m in distinct(models).items()}
    for opset, arrays in made.items():
        for found, wanted in zip(arrays, made[18], strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6, err_msg=f"opset {opset}")
