"""Regression losses against scikit-learn and PyTorch, ties, and large numbers."""

import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error, mean_pinball_loss, mean_poisson_deviance, mean_squared_error

from onnxcustom.exceptions import InvalidDataError
from onnxcustom.objective import (
    AbsoluteLearningLoss,
    ElasticLearningLoss,
    HuberLearningLoss,
    PoissonLearningLoss,
    QuantileLearningLoss,
    SquareLearningLoss,
)

pytest.importorskip("onnxruntime")


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return rng.normal(size=20), rng.normal(size=20), rng.uniform(size=20)


def run(loss, y, p, w=None):
    value, gradient = loss.loss_gradient("cpu", y, p, w)
    return value.numpy(), gradient.numpy()


@pytest.mark.parametrize(
    ("loss", "metric"),
    [
        (SquareLearningLoss(), lambda y, p, w: mean_squared_error(y, p, sample_weight=w) / 2),
        (AbsoluteLearningLoss(), lambda y, p, w: mean_absolute_error(y, p, sample_weight=w)),
        (QuantileLearningLoss(0.3), lambda y, p, w: mean_pinball_loss(y, p, sample_weight=w, alpha=0.3)),
    ],
    ids=["square", "absolute", "pinball"],
)
def test_sklearn_metrics(batch, loss, metric):
    y, p, w = batch
    assert run(loss, y, p, w)[0] == pytest.approx(w.sum() * metric(y, p, w))


def test_poisson_is_half_of_sklearns_deviance(batch):
    rng = np.random.default_rng(0)
    _, p, w = batch
    y = rng.poisson(2, size=20).astype(float)
    assert 0 in y
    deviance = w.sum() * mean_poisson_deviance(y, np.exp(p), sample_weight=w)
    assert 2 * run(PoissonLearningLoss(deviance=True), y, p, w)[0] == pytest.approx(deviance)
    mean = PoissonLearningLoss("identity", deviance=True)
    assert 2 * run(mean, y, np.exp(p), w)[0] == pytest.approx(deviance)


def test_poisson_gradient_is_sklearns(batch):
    losses = pytest.importorskip("sklearn._loss.loss")
    _, p, w = batch
    y = np.random.default_rng(0).poisson(2, size=20).astype(float)
    value, gradient = losses.HalfPoissonLoss().loss_gradient(y_true=y, raw_prediction=p, sample_weight=w)
    ours = run(PoissonLearningLoss(), y, p, w)
    assert ours[0] == pytest.approx(value.sum())
    np.testing.assert_allclose(ours[1], gradient)


def test_torch(batch):
    torch = pytest.importorskip("torch")
    y, p, _ = batch
    functional = torch.nn.functional
    for loss, theirs in [
        (HuberLearningLoss(0.7), lambda a, b: functional.huber_loss(a, b, delta=0.7, reduction="sum")),
        (SquareLearningLoss(), lambda a, b: functional.mse_loss(a, b, reduction="sum") / 2),
        (AbsoluteLearningLoss(), lambda a, b: functional.l1_loss(a, b, reduction="sum")),
        (PoissonLearningLoss(), lambda a, b: functional.poisson_nll_loss(a, b, reduction="sum")),
    ]:
        target = abs(y) if isinstance(loss, PoissonLearningLoss) else y
        a = torch.tensor(p, requires_grad=True)
        value = theirs(a, torch.tensor(target))
        value.backward()
        ours = run(loss, target, p)
        assert ours[0] == pytest.approx(value.item())
        np.testing.assert_allclose(ours[1], a.grad.numpy(), rtol=1e-9, atol=1e-12)


def test_ties():
    same = np.ones(1)
    assert run(AbsoluteLearningLoss(), same, same)[1] == 0
    assert run(ElasticLearningLoss(), same, same)[1] == 0
    assert run(QuantileLearningLoss(0.3), same, same)[1] == -0.3
    assert run(HuberLearningLoss(2), same, same + 2)[1] == 2


def test_minimum_of_the_pinball_loss_is_the_quantile():
    y = np.arange(101.0)
    values = [run(QuantileLearningLoss(0.9), y, np.full(101, p))[0] for p in y]
    assert np.argmin(values) == 90


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_errors_stay_finite(dtype):
    y, p = np.zeros(2), np.array([-1e4, 1e4], dtype=dtype)
    for loss in (AbsoluteLearningLoss(), SquareLearningLoss(), HuberLearningLoss(), QuantileLearningLoss()):
        value, gradient = run(loss, y, p)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


def test_identity_link_stays_finite_and_points_up_at_zero():
    value, gradient = run(PoissonLearningLoss("identity"), np.float32([3]), np.float32([0]))
    assert np.isfinite(value)
    assert -np.inf < gradient < -1e6


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (ElasticLearningLoss(-1), "l1_weight"),
        (ElasticLearningLoss(l2_weight=np.nan), "l2_weight"),
        (HuberLearningLoss(0), "delta"),
        (QuantileLearningLoss(1), "quantile"),
        (PoissonLearningLoss("logit"), "link"),
        (PoissonLearningLoss(eps=2), "eps"),
    ],
)
def test_bad_parameters_are_refused_when_used(loss, words):
    with pytest.raises(ValueError, match=words):
        run(loss, np.ones(1), np.ones(1))


def test_negative_counts_are_refused():
    with pytest.raises(InvalidDataError, match=r"counts >= 0.*-1"):
        run(PoissonLearningLoss(), np.array([1.0, -1.0]), np.ones(2))
