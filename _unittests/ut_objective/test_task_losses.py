"""Losses of tasks: edges, what is refused, ten steps of a model, and PyTorch's own losses."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from onnxcustom import OnnxRegressor, TrainingStep
from onnxcustom.exceptions import InvalidDataError, InvalidModelError, UnknownNameError
from onnxcustom.objective import (
    ContrastiveLearningLoss,
    CosineLearningLoss,
    CTCLearningLoss,
    DiceLearningLoss,
    FocalLearningLoss,
    GaussianLearningLoss,
    HuberLearningLoss,
    KLDivergenceLearningLoss,
    LogCoshLearningLoss,
    Loss,
    NLLLearningLoss,
    SmoothL1LearningLoss,
    TripletLearningLoss,
)

pytest.importorskip("onnxruntime")


def run(loss, y, p, w=None):
    value, gradient = loss.loss_gradient("cpu", y, p, w)
    return float(value.numpy()), gradient.numpy()


def linear(inputs, classes, dims="N,", tail="Identity(Z)"):
    """Rows of so many numbers times a weight, and what makes the output of it."""
    weight = np.random.default_rng(0).normal(size=(inputs, classes)).astype(np.float32) * 0.3
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> '
        f"m (float[{dims} {inputs}] X) => (float[{dims} {classes}] Y) {{ Z = MatMul(X, W) Y = {tail} }}"
    )
    model.graph.initializer.append(numpy_helper.from_array(weight, "W"))
    return model


# -- edges ------------------------------------------------------------------------------------------------


def test_small_errors_keep_their_digits():
    d = np.float32([1e-6, 1e-3, 0.05, 0.099, 0.101, 1, 50])
    exact = np.logaddexp(d.astype(np.float64), -d.astype(np.float64)) - np.log(2)
    exact[:2] = d[:2].astype(np.float64) ** 2 / 2
    found = LogCoshLearningLoss().loss_scores("cpu", np.zeros_like(d), d).numpy()
    np.testing.assert_allclose(found, exact, rtol=2e-5)


def test_labels_that_do_not_fit_into_the_frames():
    z, y = np.random.default_rng(0).normal(size=(2, 4, 3)), np.array([[1, 1, 1], [1, 2, -1]])
    alone = run(CTCLearningLoss(), y[1:, :2], z[1:])
    for loss, first in [(CTCLearningLoss(), np.inf), (CTCLearningLoss(zero_infinity=True), 0)]:
        scores = loss.loss_scores("cpu", y, z).numpy()
        assert scores[0] == first
        assert scores[1] == pytest.approx(alone[0])
        gradient = run(loss, y, z)[1]
        assert not gradient[0].any()
        np.testing.assert_allclose(gradient[1:], alone[1])


def test_padding_changes_nothing():
    rng = np.random.default_rng(1)
    z, y = rng.normal(size=(3, 6, 4)), rng.integers(1, 4, size=(3, 2))
    padded = np.concatenate([y, np.full((3, 4), -1)], axis=1)
    ours = run(CTCLearningLoss(), y, z), run(CTCLearningLoss(), padded, z)
    assert ours[0][0] == pytest.approx(ours[1][0])
    np.testing.assert_allclose(ours[0][1], ours[1][1], atol=1e-12)


def test_long_sequences_in_single_precision():
    rng = np.random.default_rng(2)
    z, y = rng.normal(size=(2, 500, 30)).astype(np.float32) * 3, rng.integers(1, 30, size=(2, 60))
    exact, slope = run(CTCLearningLoss(), y, z.astype(np.float64))
    value, gradient = run(CTCLearningLoss(), y, z)
    assert value == pytest.approx(exact, rel=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=0, atol=1e-4 * abs(slope).max())


def test_impossible_classes_of_a_sequence():
    """Scores of minus infinity, as a mask leaves them."""
    z = np.random.default_rng(3).normal(size=(1, 5, 4))
    masked = np.concatenate([z[..., :3], np.full((1, 5, 1), -np.inf)], axis=-1)
    y = np.array([[1, 2]])
    value, gradient = run(CTCLearningLoss(), y, masked)
    shorter, slope = run(CTCLearningLoss(), y, z[..., :3])
    assert value == pytest.approx(shorter)
    np.testing.assert_allclose(gradient[..., :3], slope, atol=1e-12)
    assert np.isinf(CTCLearningLoss().loss_scores("cpu", np.array([[3, 1]]), masked).numpy()[0])


@pytest.mark.parametrize(
    "loss", [TripletLearningLoss(), TripletLearningLoss(mining="all"), ContrastiveLearningLoss()]
)
def test_embeddings_that_are_one_point(loss):
    x = np.ones((4, 3), np.float32)
    scores = loss.loss_scores("cpu", np.array([0, 0, 1, 1]), x).numpy()
    margin = 1 if isinstance(loss, TripletLearningLoss) else np.log(3)
    np.testing.assert_allclose(scores, np.full(4, margin), rtol=1e-5)
    np.testing.assert_allclose(run(loss, np.array([0, 0, 1, 1]), x)[1], 0, atol=1e-5)


@pytest.mark.parametrize(
    "loss", [TripletLearningLoss(), TripletLearningLoss(mining="all"), ContrastiveLearningLoss()]
)
@pytest.mark.parametrize("labels", [[0, 1, 2], [0, 0, 0], [5, 5, 1]])
def test_rows_without_partners_have_no_loss(loss, labels):
    labels = np.array(labels)
    x = np.random.default_rng(4).normal(size=(3, 2))
    scores = loss.loss_scores("cpu", labels, x).numpy()
    alone = (labels[:, None] == labels).sum(axis=1) == 1
    assert not scores[alone].any()
    assert np.isfinite(run(loss, labels, x)[1]).all()
    one = run(loss, np.array([3]), x[:1])
    assert one[0] == 0
    assert not one[1].any()


def test_variances_that_are_no_variances():
    value, gradient = run(GaussianLearningLoss(1e-2), np.array([[1.0]]), np.array([[1.5, -3.0]]))
    assert value == pytest.approx((np.log(1e-2) + 0.25 / 1e-2) / 2)
    assert gradient[0, 1] < 0  # it grows out of there


@pytest.mark.parametrize("gamma", [0.5, 2])
@pytest.mark.parametrize("link", ["softmax", "sigmoid"])
def test_what_is_certain_has_no_loss(gamma, link):
    z = np.float32([[100, -100], [-100, 100]])
    y = np.array([0, 1]) if link == "softmax" else np.float32([[1, 0], [0, 1]])
    value, gradient = run(FocalLearningLoss(gamma, link=link), y, z)
    assert value == 0
    assert not gradient.any()
    value, gradient = run(FocalLearningLoss(gamma, link=link), 1 - y, z)
    assert value == pytest.approx(400)
    assert np.isfinite(gradient).all()


def test_nothing_expected_and_nothing_predicted():
    nothing = np.zeros((2, 3), np.float32)
    value, gradient = run(DiceLearningLoss(0, from_logits=False), nothing, nothing)
    assert value == 0
    assert np.isfinite(gradient).all()


# -- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "y", "shape", "words"),
    [
        (CTCLearningLoss(), [[0, 1]], (1, 4, 3), "without the blank 0"),
        (CTCLearningLoss(), [[1, 3]], (1, 4, 3), "classes from 0 to 2"),
        (CTCLearningLoss(), [[-1, 1]], (1, 4, 3), r"Row 0 has labels behind a -1.*\[-1  1\]"),
        (CTCLearningLoss(), [[0.5, 1]], (1, 4, 3), "classes from 0"),
        (ContrastiveLearningLoss(), [0.5, 1], (2, 3), "one whole number for each row"),
        (TripletLearningLoss(), [[0, 1]], (1, 3), "takes shape"),
        (CosineLearningLoss(), [0, 1], (2, 2, 3), "takes labels 1"),
        (FocalLearningLoss(alpha=[1, 2]), [0, 2], (2, 3), "2 weights, but there are 3 classes"),
        (FocalLearningLoss(link="sigmoid"), [[0.5]], (1, 1), "labels 0 and 1"),
        (NLLLearningLoss(), [0, 3], (2, 3), "from 0 to 2"),
        (KLDivergenceLearningLoss(), [[2, -1]], (1, 2), "between 0 and 1"),
        (GaussianLearningLoss(), [[1, 2, 3]], (1, 4), "takes shape"),
    ],
)
def test_expected_values_that_do_not_fit(loss, y, shape, words):
    with pytest.raises(InvalidDataError, match=words):
        loss.loss_gradient("cpu", np.array(y), np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("loss", "shape"),
    [
        (CTCLearningLoss(), (2, 3)),
        (TripletLearningLoss(), (2, 3, 4)),
        (GaussianLearningLoss(), (2, 3)),
        (CosineLearningLoss(), (2, 3, 4)),
    ],
)
def test_predictions_that_do_not_fit(loss, shape):
    with pytest.raises(InvalidModelError, match=type(loss).__name__):
        loss.loss_gradient("cpu", np.zeros(2, np.int64), np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("loss", "error"),
    [
        (SmoothL1LearningLoss(-1), ValueError),
        (FocalLearningLoss(-1), ValueError),
        (FocalLearningLoss(alpha=2), ValueError),
        (FocalLearningLoss(alpha=[1, -1]), ValueError),
        (FocalLearningLoss(link="tanh"), UnknownNameError),
        (DiceLearningLoss(-1), ValueError),
        (KLDivergenceLearningLoss(0), ValueError),
        (GaussianLearningLoss(0), ValueError),
        (CosineLearningLoss(2), ValueError),
        (ContrastiveLearningLoss(0), ValueError),
        (TripletLearningLoss(0), ValueError),
        (TripletLearningLoss(mining="soft"), UnknownNameError),
        (CTCLearningLoss(blank=-1), ValueError),
        (CTCLearningLoss(zero_infinity="yes"), TypeError),
    ],
)
def test_parameters_are_checked(loss, error):
    with pytest.raises(error):
        loss.check()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("huber:delta=2", HuberLearningLoss(2)),
        ("focal:gamma=1,alpha=[1,2]", FocalLearningLoss(1, [1, 2])),
        (" CTC : zero_infinity=true, blank = 3", CTCLearningLoss(3, True)),
        ("triplet:mining=all", TripletLearningLoss(mining="all")),
    ],
)
def test_options_in_text(text, wanted):
    assert repr(Loss.select(text)) == repr(wanted)
    step = TrainingStep(linear(2, 1), loss="huber:delta=2")
    assert "HuberLearningLoss(delta=2)" in repr(step)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("huber:delt=2", "no option 'delt'.*Did you mean 'delta'"),
        ("huber:", "NAME:option=value"),
        ("huber:2", "NAME:option=value"),
        ("hubr:delta=2", "Did you mean 'huber'"),
    ],
)
def test_options_that_are_none(text, words):
    with pytest.raises(UnknownNameError, match=words):
        Loss.select(text)


# -- training ---------------------------------------------------------------------------------------------


def test_sequences_whose_frames_come_first():
    """[T, N, C] with the batch on axis 1 trains as [N, T, C] does."""
    rng = np.random.default_rng(5)
    X, y = rng.normal(size=(8, 6, 5)).astype(np.float32), np.array([[1, 2], [3, -1]] * 3)
    ends = {}
    for dims, axis, given in [("T, N,", 1, X), ("N, T,", 0, X.swapaxes(0, 1))]:
        model = linear(5, 4, dims, "Softmax<axis=-1>(Z)")
        step = TrainingStep(model, loss="ctc", optimizer="adam", learning_rate=0.05, batch_axis={"X": axis})
        losses = [step.run(given, y) for _ in range(10)]
        assert losses[-1] < losses[0]
        ends[axis] = step.weights()["W"]
    np.testing.assert_allclose(ends[1], ends[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("loss", "outputs", "tail", "target"),
    [
        ("focal", 3, "Softmax<axis=-1>(Z)", lambda X: (X[:, 0] > 0) + (X[:, 1] > 0).astype(int)),
        ("nll", 3, "LogSoftmax<axis=-1>(Z)", lambda X: (X[:, 0] > 0).astype(int)),
        ("dice", 2, "Sigmoid(Z)", lambda X: (X[:, :2] > 0).astype(np.float32)),
        ("kl_divergence", 2, "Softmax<axis=-1>(Z)", lambda X: np.float32([[0.2, 0.8]]).repeat(len(X), 0)),
        ("smooth_l1", 1, "Identity(Z)", lambda X: X[:, 0]),
        ("log_cosh", 1, "Identity(Z)", lambda X: X[:, 0]),
        ("gaussian_nll", 2, "Softplus(Z)", lambda X: abs(X[:, 0])),
        ("cosine", 2, "Identity(Z)", lambda X: X[:, :2]),
        ("triplet", 2, "Identity(Z)", lambda X: (X[:, 0] > 0).astype(int)),
        ("contrastive", 2, "Identity(Z)", lambda X: (X[:, 0] > 0).astype(int)),
    ],
)
def test_a_model_learns_by_name(loss, outputs, tail, target):
    X = np.random.default_rng(6).normal(size=(32, 4)).astype(np.float32)
    model = OnnxRegressor(
        linear(4, outputs, tail=tail),
        loss=loss,
        optimizer="adam",
        learning_rate=0.05,
        max_iter=10,
        batch_size=8,
    )
    losses = model.fit(X, target(X)).history_["loss"]
    assert losses[-1] < losses[0]


# -- PyTorch ----------------------------------------------------------------------------------------------


def torch_cases():
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    rng = np.random.default_rng(7)

    def by_row(losses):
        return losses.reshape(len(losses), -1).sum(1)

    def ctc(p, y):
        length = (y >= 0).sum(1)
        frames = torch.full((len(y),), p.shape[1])
        logs, label = p.log_softmax(-1).transpose(0, 1), y.clamp(min=0)
        return f.ctc_loss(logs, label, frames, length, reduction="none") / length.clamp(min=1)

    values, scores = rng.normal(size=(6, 3)), rng.normal(size=(6, 3, 4)) * 2
    labels = rng.integers(0, 3, size=(6, 4))
    words = np.array([[1, 1, 2, -1], [3, 4, 1, 2], [-1, -1, -1, -1]])
    q = torch.softmax(torch.tensor(rng.normal(size=(6, 3, 4))), 1).numpy()
    moments = np.concatenate([values, rng.uniform(0.2, 2, size=values.shape)], axis=1)
    return [
        (
            SmoothL1LearningLoss(0.5),
            values,
            values[::-1].copy(),
            lambda p, y: by_row(f.smooth_l1_loss(p, y, beta=0.5, reduction="none")),
        ),
        (NLLLearningLoss(), labels, scores, lambda p, y: by_row(f.nll_loss(p, y, reduction="none"))),
        (
            KLDivergenceLearningLoss(),
            q,
            scores,
            lambda p, y: by_row(f.kl_div(p.log_softmax(1), y, reduction="none")),
        ),
        (
            GaussianLearningLoss(),
            values,
            moments,
            lambda p, y: by_row(f.gaussian_nll_loss(p[:, :3], y, p[:, 3:], reduction="none")),
        ),
        (
            CosineLearningLoss(),
            values,
            values[::-1].copy(),
            lambda p, y: f.cosine_embedding_loss(p, y, torch.ones(6), reduction="none"),
        ),
        (
            CosineLearningLoss(0.1),
            np.array([1, -1] * 3),
            rng.normal(size=(6, 2, 4)),
            lambda p, y: f.cosine_embedding_loss(p[:, 0], p[:, 1], y, margin=0.1, reduction="none"),
        ),
        (CTCLearningLoss(), words, rng.normal(size=(3, 12, 5)) * 2, ctc),
    ]


@pytest.mark.parametrize("index", range(7))
@pytest.mark.parametrize("weighted", [False, True])
def test_torch(index, weighted):
    torch = pytest.importorskip("torch")
    loss, y, p, theirs = torch_cases()[index]
    w = np.linspace(0.5, 2, len(p)) if weighted else np.ones(len(p))
    given = torch.tensor(p, requires_grad=True)
    value = (theirs(given, torch.tensor(y)) * torch.tensor(w)).sum()
    value.backward()
    ours = run(loss, y, p, w if weighted else None)
    assert ours[0] == pytest.approx(value.item(), rel=1e-9)
    np.testing.assert_allclose(ours[1], given.grad.numpy(), rtol=1e-9, atol=1e-9)
