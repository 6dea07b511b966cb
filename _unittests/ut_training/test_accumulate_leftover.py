"""What is left of ``accumulate`` when ``fit`` ends, against loops of PyTorch and NumPy."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

from onnxcustom import OnnxRegressor, TrainingStep
from onnxcustom.exceptions import ConvergenceError
from onnxcustom.optim import SGD, Adam
from onnxcustom.training.callbacks import Callback, Checkpoint, EarlyStopping, Score, TimeBudget

pytest.importorskip("onnxruntime")

LINE = """<ir_version: 8, opset_import: ["": 17]> line (float[N, 2] x) => (float[N, 1] y)
<float[2, 1] w = {0.5, -1}, float[1] b = {0}> { z = MatMul(x, w) y = Add(z, b) }"""
# One row of ones would not do as a batch: the kernel does not fit, and the logarithm is infinite.
PICTURES = """<ir_version: 8, opset_import: ["": 17]> net (float[N, 1, H, W] x) => (float[N, 1] y)
<float[2, 1, 3, 3] k = {1,2,3,4,5,6,7,8,9,9,8,7,6,5,4,3,2,1}, float[2, 1] w = {0.1, -0.1}> {
    one = Constant <value_float = 1.0> ()
    far = Sub(one, x)
    seen = Log(far)
    c = Conv <strides = [1, 1]> (seen, k)
    p = GlobalAveragePool(c)
    f = Flatten <axis = 1>(p)
    y = MatMul(f, w)
}"""


def data(rows=23, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(rows, 2)).astype(np.float32)
    return X, (X @ [1, 2] + 0.5).astype(np.float32), rng.uniform(0.5, 2, rows).astype(np.float32)


def make(optimizer, model=LINE, **options):
    options = {"batch_size": 4, "shuffle": False, "max_iter": 2, **options}
    return OnnxRegressor(onnx.parser.parse_model(model), optimizer=optimizer, **options)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("accumulate", "epochs"), [(4, 10), (5, 3), (7, 1), (50, 2)])
def test_against_pytorch(accumulate, epochs, weighted):
    torch = pytest.importorskip("torch")
    X, y, weight = data()
    rule = Adam(0.05, accumulate=accumulate, clip_global_norm=1.0)
    net = make(rule, max_iter=epochs, penalty="l2").fit(X, y, weight if weighted else None)

    line = torch.nn.Linear(2, 1).double()
    with torch.no_grad():
        line.weight[:], line.bias[:] = torch.tensor([[0.5, -1.0]]), 0.0
    adam = torch.optim.Adam(line.parameters(), 0.05)
    tx, ty, tw = (torch.tensor(a, dtype=torch.float64) for a in (X, y, weight))
    batches = [slice(start, start + 4) for start in range(0, len(X), 4)] * epochs
    for start in range(0, len(batches), accumulate):
        part = batches[start : start + accumulate]
        rows = sum(len(X[b]) for b in part)
        adam.zero_grad()
        for b in part:
            loss = (line(tx[b])[:, 0] - ty[b]) ** 2 / 2
            (loss * (tw[b] if weighted else 1)).sum().div(rows).backward()
        for parameter in line.parameters():  # of l2 = 0.5, which is 0.5 Σ w²
            parameter.grad += parameter.detach()
        torch.nn.utils.clip_grad_norm_(line.parameters(), 1.0)
        adam.step()
    assert net.step_.iteration == -(-len(batches) // accumulate)
    np.testing.assert_allclose(net.weights_["w"].ravel(), line.weight.detach().numpy().ravel(), rtol=2e-4)
    np.testing.assert_allclose(net.weights_["b"], line.bias.detach().numpy(), rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("passes", [True, False])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_step_may_be_told_to(passes, momentum):
    X, y, _ = data(12)
    model = onnx.parser.parse_model(LINE)
    step = TrainingStep(model, optimizer=SGD(0.1, momentum=momentum, accumulate=3), passes=passes)
    whole = TrainingStep(model, optimizer=SGD(0.1, momentum=momentum))
    assert step.apply_accumulated() is False
    for part in (slice(0, 3), slice(3, 8)):
        step.run(X[part].copy(), y[part].copy())  # what the caller does with its arrays is its own business
    assert (step.pending, step.iteration) == (2, 0)
    assert step.apply_accumulated() is True
    assert (step.pending, step.iteration) == (0, 1)
    whole.run(X[:8], y[:8])
    for name, array in whole.weights().items():
        np.testing.assert_allclose(step.weights()[name], array, rtol=1e-6)
    for part in (slice(8, 10), slice(10, 11), slice(11, 12)):
        step.run(X[part], y[part])
    whole.run(X[8:], y[8:])
    for name, array in whole.weights().items():
        np.testing.assert_allclose(step.weights()[name], array, rtol=1e-5)


def pictures(rows=6):
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 0.5, size=(rows, 1, 5, 4)).astype(np.float32)
    return X, X.mean(axis=(1, 2, 3))


def test_no_batch_is_needed_for_it(tmp_path):
    X, y = pictures()
    options = {"model": PICTURES, "batch_size": 2, "max_iter": 1}
    alone = make(SGD(0.01, accumulate=5), **options).fit(X, y)
    assert alone.step_.iteration == 1
    make(SGD(0.01, accumulate=5), checkpoint_dir=tmp_path, **options).fit(X, y)
    again = make(SGD(0.01, accumulate=5), checkpoint_dir=tmp_path, **options).fit(X, y)  # was through
    for name, array in alone.weights_.items():
        np.testing.assert_array_equal(again.weights_[name], array)


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_longer_run_goes_on_as_if_it_had_not_ended(tmp_path, epochs):
    X, y, _ = data()  # six batches an epoch
    rule = Adam(0.05, accumulate=4)
    alone = make(rule, max_iter=5).fit(X, y)
    keep = Checkpoint(tmp_path, epochs=epochs)
    short = make(rule, max_iter=3, callbacks=keep).fit(X, y)
    assert short.step_.iteration == 5
    longer = make(rule, max_iter=5, callbacks=keep).fit(X, y)
    assert longer.step_.iteration == alone.step_.iteration == 8
    for name, array in alone.weights_.items():
        np.testing.assert_array_equal(longer.weights_[name], array)
    assert longer.history_ == alone.history_


class StopIn(Callback):
    """Ends training within an epoch, as a time budget does."""

    def __init__(self, batches):
        self.batches = batches

    def on_batch_end(self, trainer, batch, loss):
        if trainer.n_iter_ == 0 and trainer.run.batches == self.batches:
            trainer.run.stop("enough", final=False)


def test_a_run_that_ends_early(tmp_path):
    X, y, _ = data()
    rule = SGD(0.05, accumulate=4)
    cut = make(rule, callbacks=StopIn(3)).fit(X, y)
    assert cut.step_.iteration == 1
    whole = make(SGD(0.05), batch_size=12, max_iter=1).fit(X[:12], y[:12])
    np.testing.assert_allclose(cut.weights_["w"], whole.weights_["w"], rtol=1e-6)
    alone = make(rule).fit(X, y)
    make(rule, checkpoint_dir=tmp_path, callbacks=StopIn(3)).fit(X, y)
    resumed = make(rule, checkpoint_dir=tmp_path).fit(X, y)
    np.testing.assert_array_equal(resumed.weights_["w"], alone.weights_["w"])
    timed = make(rule, callbacks=TimeBudget(1e-9)).fit(X, y)
    assert (timed.step_.pending, timed.step_.iteration) == (0, 1)


def test_the_best_weights_stay_the_best(tmp_path):
    X, y, _ = data()
    weights = []
    reg = make(
        SGD(0.05, accumulate=4),
        max_iter=3,
        callbacks=[EarlyStopping("val_loss"), lambda t: weights.append(t.weights_)],
    ).fit(X, y, X_val=X, y_val=y)
    best = int(np.argmin(reg.history_["val_loss"]))
    np.testing.assert_array_equal(reg.weights_["w"], weights[best]["w"])


@pytest.mark.parametrize("restored", [False, True])
def test_validation_is_that_of_the_weights_handed_out(restored):
    X, y, _ = data()
    seen = []
    callbacks = [
        Score("neg_mean_squared_error", on="validation"),
        lambda t: seen.append(t.history_["val_loss"][-1]),
        EarlyStopping(restore_best=restored),
    ]
    reg = make(SGD(0.01, accumulate=4), max_iter=3, callbacks=callbacks).fit(X, y, X_val=X, y_val=y)
    error = ((reg.predict(X).ravel() - y.ravel()) ** 2).mean()
    np.testing.assert_allclose(reg.history_["val_loss"], [*seen[:-1], error / 2], rtol=1e-5)
    if not restored:
        assert reg.history_["val_neg_mean_squared_error"][-1] == pytest.approx(-error, rel=1e-5)
    assert (reg.history_["val_loss"][-1] == seen[-1]) == restored  # the best were those before that update
    assert seen == sorted(seen, reverse=True)


def test_partial_fit_keeps_what_is_left_and_fit_begins_anew():
    X, y, _ = data()
    reg = make(SGD(0.05, accumulate=4))
    reg.partial_fit(X, y)
    assert (reg.step_.iteration, reg.step_.pending) == (1, 2)
    reg.partial_fit(X, y)
    assert (reg.step_.iteration, reg.step_.pending) == (3, 0)
    assert reg.fit(X, y).step_.iteration == 3
    assert reg.set_params(warm_start=True, max_iter=1).fit(X, y).step_.iteration == 5


def test_it_may_be_too_large():
    X, y, _ = data(4)
    reg = make(SGD(3e38, accumulate=8), batch_size=2, max_iter=1)
    with pytest.raises(ConvergenceError, match="gradient or update"):
        reg.fit(100 * X, 100 * y)
    np.testing.assert_array_equal(reg.weights_["w"].ravel(), [0.5, -1])
    skipped = make(SGD(3e38, accumulate=8, skip_nonfinite=True), batch_size=2, max_iter=1).fit(
        100 * X, 100 * y
    )
    assert (skipped.step_.skipped, skipped.step_.pending) == (1, 0)
    np.testing.assert_array_equal(skipped.weights_["w"].ravel(), [0.5, -1])


@pytest.mark.parametrize("modes", [{}, {"dropout": "on"}, {"batch_norm": "update"}])
@pytest.mark.parametrize(
    "middle",
    ["r = Dropout(h)", "r = BatchNormalization(h, one, zero, mean, var)", "d = Dropout(h) r = Tanh(d)"],
)
@pytest.mark.filterwarnings("ignore:.* does nothing. there is no")
def test_nodes_that_modes_replace(middle: str, modes: dict[str, str]) -> None:
    """The graph that applies what is left reads no batch, whatever the modes have made of the model."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]> g (float[N, 2] x) => (float[N, 1] y)
        <float[2, 2] v = {{1, 2, 3, 4}}, float[2, 1] w = {{1, 2}}, float[2] one = {{1, 1}},
         float[2] zero = {{0, 0}}, float[2] mean = {{0, 0}}, float[2] var = {{1, 1}}> {{
            h = MatMul(x, v) {middle} y = MatMul(r, w) }}"""
    )
    X = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    y = X[:, :1]
    # One batch of all that is accumulated, at once: modes look at a batch, so that there is one.
    step = TrainingStep(model, optimizer=SGD(0.1, accumulate=3), seed=1, **modes)
    other = TrainingStep(model, optimizer=SGD(0.1), seed=1, **modes)
    assert step.run(X, y) == pytest.approx(other.run(X, y), rel=1e-6)
    assert step.apply_accumulated()
    assert step.iteration == 1
    for name, array in other.weights().items():
        np.testing.assert_allclose(step.weights()[name], array, rtol=1e-5, atol=1e-6)
