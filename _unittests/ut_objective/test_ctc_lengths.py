"""CTC of rows that have fewer frames than there are: by a column of the labels, or an input of the model."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest
from onnx import numpy_helper

from onnxcustom import OnnxRegressor, TrainingStep
from onnxcustom.exceptions import InvalidDataError, InvalidModelError, UnknownNameError
from onnxcustom.objective import CTCLearningLoss, Loss

pytest.importorskip("onnxruntime")

LENGTHS = np.array([7, 3, 5, 9, 0])
WORDS = np.array([[1, 1, 2], [3, -1, -1], [2, 3, 1], [-1, -1, -1], [-1, -1, -1]])


def frames(seed=0):
    return np.random.default_rng(seed).normal(size=(5, 9, 4)) * 2


def test_own_frames_are_all_that_count():
    """As row by row with the other frames cut off; what stands there, NaN even, does not matter."""
    z, y = frames(), WORDS
    for row, length in enumerate(LENGTHS):
        z[row, length:] = np.nan if row % 2 else 1e9
    for column, given in [
        (0, np.c_[LENGTHS, y]),
        (-1, np.c_[y, LENGTHS]),
        (1, np.c_[y[:, :1], LENGTHS, y[:, 1:]]),
    ]:
        loss = CTCLearningLoss(input_lengths=column)
        scores = loss.loss_scores("cpu", given, z).numpy()
        gradient = loss.loss_gradient("cpu", given, z)[1].numpy()
        for row, length in enumerate(LENGTHS):
            assert not gradient[row, length:].any()
            if length:
                one = y[row : row + 1], z[row : row + 1, :length]
                alone = CTCLearningLoss().loss_gradient("cpu", *one)
                assert scores[row] == pytest.approx(float(alone[0].numpy()), rel=1e-9)
                np.testing.assert_allclose(gradient[row, :length], alone[1].numpy()[0], atol=1e-9)
            else:
                assert scores[row] == 0  # nothing is said in no time


@pytest.mark.parametrize("zero_infinity", [False, True])
def test_torch(zero_infinity):
    torch = pytest.importorskip("torch")
    z, lengths = frames(), np.array([4, 1, 2, 9, 5])  # rows 1 and 2 are too short for their words
    words, wanted = WORDS.copy(), torch.tensor((WORDS >= 0).sum(1))
    words[1] = [3, 1, -1]
    wanted[1] = 2
    given = torch.tensor(z, requires_grad=True)
    losses = torch.nn.functional.ctc_loss(
        given.log_softmax(-1).transpose(0, 1),
        torch.tensor(words).clamp(min=0),
        torch.tensor(lengths),
        wanted,
        reduction="none",
        zero_infinity=True,
    ) / wanted.clamp(min=1)
    losses.sum().backward()
    loss = CTCLearningLoss(zero_infinity=zero_infinity, input_lengths=0)
    theirs = losses.detach().numpy()
    if not zero_infinity:
        theirs[1:3] = np.inf
    ours = np.c_[lengths, words]
    np.testing.assert_allclose(loss.loss_scores("cpu", ours, z).numpy(), theirs, rtol=1e-9)
    found = loss.loss_gradient("cpu", ours, z)[1].numpy()
    np.testing.assert_allclose(found, given.grad.numpy(), atol=1e-9)


def reader(dims="N, T", lengths="int64[N] size", tail="Identity(Z)"):
    """Scores of frames; how many each row has, of which the model makes nothing."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> '
        f"m (double[{dims}, 5] X, {lengths}) => (double[{dims}, 4] Y) {{ Z = MatMul(X, W) Y = {tail} }}"
    )
    weight = np.random.default_rng(0).normal(size=(5, 4)) * 0.3
    model.graph.initializer.append(numpy_helper.from_array(weight, "W"))
    return model


@pytest.mark.parametrize("first", ["rows", "frames"])
def test_an_input_of_the_model_says_them(first):
    """As a column of the labels does, with the frames first, too."""
    rng = np.random.default_rng(1)
    X, lengths = rng.normal(size=(5, 9, 5)), np.array([7, 3, 5, 9, 2])
    axes = {"X": 0, "Y": 0} if first == "rows" else {"X": 1, "Y": 1}
    given = X if first == "rows" else X.swapaxes(0, 1).copy()
    model = reader("N, T" if first == "rows" else "T, N")
    named = TrainingStep(model, "ctc:input_lengths=size", learning_rate=0.5, batch_axis=axes)
    column = TrainingStep(model, CTCLearningLoss(input_lengths=0), learning_rate=0.5, batch_axis=axes)
    batch = {"X": given, "size": lengths}
    for _ in range(10):
        assert named.run(batch, WORDS) == pytest.approx(column.run(batch, np.c_[lengths, WORDS]), rel=1e-9)
    np.testing.assert_allclose(named.weights()["W"], column.weights()["W"], rtol=1e-9)
    np.testing.assert_allclose(named.scores(batch, WORDS), column.scores(batch, np.c_[lengths, WORDS]))


def test_an_estimator_takes_them():
    rng = np.random.default_rng(2)
    X = {"X": rng.normal(size=(20, 9, 5)), "size": np.tile(LENGTHS, 4)}
    net = OnnxRegressor(
        reader(), loss="ctc:input_lengths=size,zero_infinity=true", learning_rate=0.5, max_iter=10
    )
    losses = net.fit(X, np.tile(WORDS, (4, 1))).history_["loss"]
    assert losses[-1] < losses[0]


def test_what_is_refused():
    loss = CTCLearningLoss(input_lengths="size")
    with pytest.raises(InvalidModelError, match="without one, let a column"):
        loss.loss_scores("cpu", WORDS, frames())
    with pytest.raises(UnknownNameError, match="reads input 'sizes', which the model does not have"):
        TrainingStep(reader(), "ctc:input_lengths=sizes")
    with pytest.raises(InvalidModelError, match="one number for each row"):
        TrainingStep(reader(lengths="int64[N, 2] size"), loss)
    with pytest.raises(InvalidDataError, match="are column 4 of the expected values"):
        Loss.select("ctc:input_lengths=4").loss_scores("cpu", WORDS, frames())
    with pytest.raises(InvalidDataError, match="Row 1 has -2 frames"):
        Loss.select("ctc:input_lengths=0").loss_scores("cpu", np.c_[[3, -2, 1, 1, 1], WORDS], frames())


@pytest.mark.parametrize("shape", [(1, 1, 2, 0), (3, 2, 5, 0), (1, 1, 2, 1), (3, 7, 2, 6), (2, 40, 5, 6)])
@pytest.mark.parametrize("own", [False, True])
def test_sizes_of_all_kinds(shape, own):
    """One frame, one row, no label at all, rows that do not fit: against PyTorch."""
    torch = pytest.importorskip("torch")
    rows, frames, classes, most = shape
    rng = np.random.default_rng(rows + frames)
    z = rng.normal(size=(rows, frames, classes)) * 10
    words = rng.integers(1, classes, size=(rows, most))
    words[np.arange(most) >= rng.integers(0, most + 1, size=rows)[:, None]] = -1
    size = rng.integers(1, frames + 1, size=rows) if own else np.full(rows, frames)
    loss = Loss.select("ctc:zero_infinity=true" + (",input_lengths=0" if own else ""))
    value, gradient = loss.loss_gradient("cpu", np.c_[size, words] if own else words, z)
    p, length = torch.tensor(z, requires_grad=True), (words >= 0).sum(1)
    given = torch.tensor(np.c_[np.maximum(words, 0), np.zeros(rows, np.int64)])
    about = p.log_softmax(-1).transpose(0, 1), given, torch.tensor(size), torch.tensor(length)
    exact = torch.nn.functional.ctc_loss(*about, reduction="none", zero_infinity=True)
    exact = (exact / torch.tensor(np.maximum(length, 1))).sum()
    exact.backward()
    assert float(value.numpy()) == pytest.approx(exact.item(), rel=1e-9, abs=1e-12)
    np.testing.assert_allclose(gradient.numpy(), p.grad.numpy(), rtol=0, atol=1e-9)
