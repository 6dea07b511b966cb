"""Classification losses against scikit-learn and PyTorch, huge logits, labels of every form."""

import numpy as np
import onnx_ir as ir
import pytest
from scipy.special import expit, softmax
from sklearn.metrics import hinge_loss, log_loss

from onnxcustom.exceptions import InvalidDataError, InvalidModelError, UnknownNameError
from onnxcustom.graph.building.builder import Builder
from onnxcustom.objective import (
    BinaryCrossEntropyLearningLoss,
    HingeLearningLoss,
    NegLogLearningLoss,
    SoftmaxCrossEntropyLearningLoss,
)

pytest.importorskip("onnxruntime")

BINARY, SOFTMAX = BinaryCrossEntropyLearningLoss(), SoftmaxCrossEntropyLearningLoss()
LARGE = [(np.float16, 500.0), (np.float32, 1e4), (np.float64, 1e4)]


def run(loss, y, p, w=None):
    value, gradient = loss.loss_gradient("cpu", y, p, w)
    return value.numpy(), gradient.numpy()


def test_binary_is_sklearns_log_loss():
    rng = np.random.default_rng(0)
    y, z, w = rng.integers(0, 2, 30), rng.normal(size=30), rng.uniform(size=30)
    expected = w.sum() * log_loss(y, expit(z), sample_weight=w)
    for loss, p in [
        (BINARY, z),
        (BINARY.on_probabilities(), expit(z)),
        (NegLogLearningLoss(), z),
        (NegLogLearningLoss(probability_function=None), expit(z)),
        (NegLogLearningLoss().on_probabilities(), expit(z)),
    ]:
        assert run(loss, y, p, w)[0] == pytest.approx(expected)
        assert run(loss, y[:, None], p[:, None], w)[0] == pytest.approx(expected)


def test_softmax_is_sklearns_log_loss():
    rng = np.random.default_rng(0)
    y, z, w = rng.integers(0, 4, 30), rng.normal(size=(30, 4)), rng.uniform(size=30)
    p = softmax(z, axis=1)
    expected = w.sum() * log_loss(y, p, sample_weight=w, labels=range(4))
    one_hot = np.eye(4)[y]
    for target in (y, y[:, None], y.astype(np.int32), y.astype(np.float32), one_hot, one_hot.astype(int)):
        assert run(SOFTMAX, target, z, w)[0] == pytest.approx(expected)
        assert run(SOFTMAX.on_probabilities(), target, p, w)[0] == pytest.approx(expected)
        loss = NegLogLearningLoss(probability_function="softmax")
        assert run(loss, target, z, w)[0] == pytest.approx(expected)
    loss = NegLogLearningLoss(probability_function=None)
    assert run(loss, one_hot, p, w)[0] == pytest.approx(expected)
    assert run(loss, y, p, w)[0] == pytest.approx(expected)


def test_hinge_is_sklearns():
    rng = np.random.default_rng(0)
    y, z, w = rng.integers(0, 2, 30), rng.normal(size=30), rng.uniform(size=30)
    expected = w.sum() * hinge_loss(y, z, sample_weight=w)
    assert run(HingeLearningLoss(), y, z, w)[0] == pytest.approx(expected)
    assert run(HingeLearningLoss(), 2 * y - 1, z, w)[0] == pytest.approx(expected)
    y, z = rng.integers(0, 4, 30), rng.normal(size=(30, 4))
    expected = w.sum() * hinge_loss(y, z, sample_weight=w, labels=range(4))
    assert run(HingeLearningLoss(), y, z, w)[0] == pytest.approx(expected)
    assert run(HingeLearningLoss(), y[:, None], z, w)[0] == pytest.approx(expected)


def test_torch():
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    rng = np.random.default_rng(0)
    for shape in [(6, 3), (4, 3, 2), (2, 3, 2, 2)]:
        z, y = rng.normal(size=shape), rng.integers(0, 3, size=(shape[0], *shape[2:]))
        soft = softmax(rng.normal(size=shape), axis=1)
        bits = rng.integers(0, 2, size=shape).astype(float)
        for loss, theirs, target in [
            (SOFTMAX, functional.cross_entropy, y),
            (SOFTMAX, functional.cross_entropy, soft),
            (BINARY, functional.binary_cross_entropy_with_logits, bits),
            (BINARY, functional.binary_cross_entropy_with_logits, soft),
        ]:
            a = torch.tensor(z, requires_grad=True)
            value = theirs(a, torch.tensor(target), reduction="sum")
            value.backward()
            ours = run(loss, target, z)
            assert ours[0] == pytest.approx(value.item())
            np.testing.assert_allclose(ours[1], a.grad.numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("dtype", "size"), LARGE)
@pytest.mark.parametrize("loss", [BINARY, NegLogLearningLoss()], ids=["binary", "neglog"])
def test_huge_binary_logits(loss, dtype, size):
    z = np.array([[-size], [size], [-size], [size], [0]], dtype=dtype)
    y = np.array([0, 1, 1, 0, 1])
    scores = loss.loss_scores("cpu", y, z).numpy()
    np.testing.assert_allclose(scores, [0, 0, size, size, np.log(2)], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(run(loss, y, z)[1].ravel(), [0, 0, -1, 1, -0.5], atol=1e-6)


@pytest.mark.parametrize(("dtype", "size"), LARGE)
@pytest.mark.parametrize("dense", [False, True], ids=["labels", "one-hot"])
def test_huge_softmax_logits(dense, dtype, size):
    z = np.array([[size, -size, 0], [size, -size, 0], [-size, -size, -size]], dtype=dtype)
    y = np.array([0, 1, 2])
    target = np.eye(3)[y] if dense else y
    scores = SOFTMAX.loss_scores("cpu", target, z).numpy()
    np.testing.assert_allclose(scores, [0, 2 * size, np.log(3)], rtol=1e-3, atol=1e-6)
    expected = [[0, 0, 0], [1, -1, 0], [1 / 3, 1 / 3, -2 / 3]]
    np.testing.assert_allclose(run(SOFTMAX, target, z)[1], expected, atol=1e-3)


@pytest.mark.parametrize(("dtype", "size"), LARGE)
def test_huge_hinge_scores(dtype, size):
    z = np.array([[size, -size], [-size, size]], dtype=dtype)
    value, gradient = run(HingeLearningLoss(), np.array([0, 0]), z)
    assert value == pytest.approx(2 * size + 1, rel=1e-3)
    np.testing.assert_array_equal(gradient, [[0, 0], [-1, 1]])


def test_masked_classes():
    z = np.array([[1.0, -np.inf, 2.0]], dtype=np.float32)
    value, gradient = run(SOFTMAX, np.array([2]), z)
    assert value == pytest.approx(np.log1p(np.exp(-1)), rel=1e-6)
    assert gradient[0, 1] == 0
    assert np.isfinite(gradient).all()


def test_confident_predictions_keep_their_loss():
    z, y = np.float32([[-15]]), np.array([0])
    assert run(BINARY, y, z)[0] == pytest.approx(np.log1p(np.exp(-15)), rel=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("eps", [None, 1e-4, 1e-30])
def test_probabilities_of_zero_and_one(dtype, eps):
    p = np.array([[0], [1], [0], [1]], dtype=dtype)
    value, gradient = run(BinaryCrossEntropyLearningLoss(False, eps), np.array([1, 0, 0, 1]), p)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert gradient[0] < -100
    assert gradient[1] > 100
    value, gradient = run(SoftmaxCrossEntropyLearningLoss(False, eps), np.array([1]), p[:2].T)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    value, gradient = run(SoftmaxCrossEntropyLearningLoss(False, eps), np.array([0]), p[:2].T)
    assert np.isfinite(value)
    assert gradient[0, 0] < -100


def test_below_eps_the_gradient_is_still_that_of_the_loss():
    loss, y, h = BinaryCrossEntropyLearningLoss(False, eps=1e-2), np.array([1.0]), 1e-6
    for p in (0.001, 0.009, 0.995):
        up, down = (run(loss, y, np.array([p + s]))[0] for s in (h, -h))
        assert run(loss, y, np.array([p]))[1] == pytest.approx((up - down) / (2 * h))


def test_labels_against_the_rest():
    z, y = np.random.default_rng(0).normal(size=(5, 3)), np.array([0, 2, 1, 1, 0])
    for dtype in (np.float32, np.float64):
        for loss in (BINARY, NegLogLearningLoss()):
            ours = run(loss, y, z.astype(dtype))
            theirs = run(loss, np.eye(3)[y], z.astype(dtype))
            assert ours[0] == pytest.approx(theirs[0])
            np.testing.assert_array_equal(ours[1], theirs[1])
            assert run(loss, y[:, None], z.astype(dtype))[0] == ours[0]


def test_two_columns_of_opposite_scores_are_twice_one_column():
    # skl2onnx writes the raw scores of a binary classifier as two columns.
    z, y = np.random.default_rng(0).normal(size=(5, 1)), np.array([0, 1, 1, 1, 0])
    two = run(NegLogLearningLoss(), y, np.hstack([-z, z]))
    one = run(NegLogLearningLoss(), y, z)
    assert two[0] == pytest.approx(2 * one[0])
    np.testing.assert_allclose(two[1][:, 1:], one[1])
    np.testing.assert_allclose(two[1][:, :1], -one[1])


def test_neglog_gradient_is_the_one_older_versions_had():
    z, y = np.float32([[0], [5], [-5], [1]]), np.array([[0], [1], [1], [0]])
    np.testing.assert_allclose(run(NegLogLearningLoss(), y, z)[1], expit(z) - y, atol=1e-6)


def test_what_losses_are_taken_on():
    assert BINARY.on == "sigmoid"
    assert BINARY.on_probabilities().on == "output"
    assert SOFTMAX.on == "softmax"
    assert SOFTMAX.on_probabilities().on == "output"
    assert NegLogLearningLoss().on == "sigmoid"
    assert NegLogLearningLoss(probability_function="softmax").on == "softmax"
    assert NegLogLearningLoss(probability_function="softmax").on_probabilities().on == "output"
    assert NegLogLearningLoss(probability_function=None).on == "output"
    assert HingeLearningLoss().on == "output"


def test_targets():
    number = ir.DataType.DOUBLE
    target = SOFTMAX.target(number, 3, ["N", 4, "T"])
    assert (target.kind, target.dtype, target.shape) == ("labels", ir.DataType.INT64, ["N", "T"])
    assert SOFTMAX.target(number, 2).shape == [None]
    target = BINARY.target(number, 2, ["N", 1])
    assert (target.kind, target.dtype, target.shape) == ("values", number, ["N", 1])
    assert NegLogLearningLoss(probability_function="softmax").target(number, 2).kind == "labels"
    assert HingeLearningLoss().target(number, 2, ["N", 3]).kind == "labels"
    assert HingeLearningLoss().target(number, 2, ["N", 1]).kind == "values"


@pytest.mark.parametrize(
    ("loss", "y", "columns", "words"),
    [
        (SOFTMAX, [0, 3], 3, "0 to 2.*from 0 to 3"),
        (SOFTMAX, [-1, 1], 3, "from -1 to 1"),
        (SOFTMAX, [0.5, 1], 3, "whole numbers"),
        (BINARY, [-1, 1], 1, "between 0 and 1"),
        (BINARY, [0, np.nan], 1, "between 0 and 1"),
        (BINARY, [0, 3], 3, "0 to 2"),
        (NegLogLearningLoss(), [0, 2], 1, "between 0 and 1"),
        (HingeLearningLoss(), [0, 2], 1, "0 and 1, or -1 and 1"),
        (HingeLearningLoss(), [0, 3], 3, "0 to 2"),
    ],
)
def test_bad_labels_are_refused(loss, y, columns, words):
    with pytest.raises(InvalidDataError, match=words):
        run(loss, np.array(y), np.zeros((2, columns)))


def test_softmax_over_one_class_is_refused():
    op = Builder(17)
    p, y = op.input("p", ir.DataType.FLOAT, ["N", 1]), op.input("y", ir.DataType.INT64, ["N"])
    with pytest.raises(InvalidModelError, match=r"'p'.*binary cross-entropy"):
        SOFTMAX.build(op, p, y)


def test_bad_parameters_are_refused_when_used():
    y, p = np.zeros(1), np.zeros((1, 1))
    with pytest.raises(UnknownNameError, match=r"probability_function.*'tanh'"):
        run(NegLogLearningLoss(probability_function="tanh"), y, p)
    for eps in (0, 1, np.nan):
        with pytest.raises(ValueError, match="eps"):
            run(BinaryCrossEntropyLearningLoss(eps=eps), y, p)
