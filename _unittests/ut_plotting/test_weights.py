"""plot_weight_changes: bars and histograms, against NumPy."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest

from onnxcustom import weights
from onnxcustom.exceptions import InvalidDataError, InvalidModelError
from onnxcustom.graph import replace_weights
from onnxcustom.plotting import plot_weight_changes

pytest.importorskip("matplotlib")
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

NAN = float("nan")


def some(count, seed=0):
    rng = np.random.default_rng(seed)
    old = {f"w{k}": rng.normal(size=(3 + k % 4, 4)).astype(np.float32) for k in range(count)}
    return old, {
        name: value + rng.normal(size=value.shape) * 0.1 / (1 + k)
        for k, (name, value) in enumerate(old.items())
    }


def labels(axes):
    return [text.get_text() for text in axes[0].get_yticklabels()]


def bars(axes):
    return [bar.get_width() for bar in axes[1].patches]


def notes(axes):
    return [text.get_text() for text in axes[1].texts]


def drawn(axes):
    FigureCanvasAgg(axes[0].figure).draw()
    return axes


def relative(old, new):
    return np.linalg.norm(np.asarray(new, float) - old) / np.linalg.norm(old)


# -- numbers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 16])
def test_bars_are_relative_norms(count):
    old, new = some(count)
    axes = drawn(plot_weight_changes(old, new))
    assert labels(axes) == [f"{name} ({'×'.join(map(str, value.shape))})" for name, value in old.items()]
    np.testing.assert_allclose(bars(axes), [relative(old[name], new[name]) for name in old], rtol=1e-6)


def test_histograms_are_of_new_minus_old():
    """As high as their row, over the bins of the largest change on either side."""
    old, new = some(3)
    axes = plot_weight_changes(old, new)
    largest = max(np.abs(new[name] - old[name]).max() for name in old)
    for k, (name, stairs) in enumerate(zip(old, axes[0].patches, strict=True)):
        values, edges, base = stairs.get_data()
        np.testing.assert_allclose(edges[[0, -1]], [-largest, largest])
        counts = np.histogram(np.ravel(new[name] - old[name]), edges)[0]
        np.testing.assert_allclose(base - values, 0.8 * counts / counts.max(), atol=1e-12)
        assert k - 0.5 < (base - 0.8) < base < k + 0.5


def test_many_weights():
    old, new = some(100)
    axes = drawn(plot_weight_changes(old, new, top=10))
    changes = {name: relative(old[name], new[name]) for name in old}
    kept = sorted(changes, key=changes.get)[-9:]
    assert [label.split()[0] for label in labels(axes)] == [*sorted(kept, key=list(old).index), "91"]
    rest = [name for name in old if name not in kept]
    one = [np.concatenate([np.ravel(values[name]) for name in rest]) for values in (old, new)]
    assert bars(axes)[-1] == pytest.approx(relative(*one))
    assert axes[0].figure.get_figheight() < 6


@pytest.mark.parametrize("top", [1, 2, 3, 4])
def test_rows(top):
    assert len(labels(drawn(plot_weight_changes(*some(3), top=top)))) == min(top + (top == 1), 3)


def test_no_change():
    old, _ = some(2)
    axes = drawn(plot_weight_changes(old, old))
    assert notes(axes) == ["no change"] * 2
    assert bars(axes) == [0, 0]


def test_from_zero():
    """The relative change of what was zero is not a number: it is said in words."""
    axes = drawn(
        plot_weight_changes({"b": np.zeros(3), "w": np.ones(3)}, {"b": np.ones(3), "w": np.full(3, 1.5)})
    )
    assert notes(axes) == ["0 before", "50%"]
    assert bars(axes) == [0, 0.5]


@pytest.mark.parametrize("value", [NAN, np.inf])
@pytest.mark.parametrize("side", ["before", "after"])
def test_not_finite(value, side):
    old, new = some(20)
    broken = {"before": old, "after": new}[side]["w15"]
    broken[0, :2] = value
    axes = drawn(plot_weight_changes(old, new, top=4))
    row = labels(axes).index("w15 (6×4)")
    assert notes(axes)[row] == "2 of 24 not finite"
    finite = np.isfinite(new["w15"] - old["w15"])
    assert bars(axes)[row] == pytest.approx(relative(old["w15"][finite], new["w15"][finite]))


def test_nothing_is_finite():
    axes = drawn(plot_weight_changes({"w": np.full(3, NAN)}, {"w": np.ones(3)}))
    assert notes(axes) == ["3 of 3 not finite"]


def test_changes_of_many_sizes():
    old = {f"w{k}": np.ones(4) for k in range(5)}
    axes = drawn(plot_weight_changes(old, {f"w{k}": np.full(4, 1 + 10.0**-k) for k in range(5)}))
    assert axes[1].get_xscale() == "log"
    assert notes(axes) == ["100%", "10%", "1%", "0.1%", "0.01%"]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, "bfloat16"])
def test_dtypes(dtype):
    import ml_dtypes

    dtype = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    axes = drawn(plot_weight_changes({"w": np.ones(4, dtype)}, {"w": np.full(4, 1.5, dtype)}))
    assert bars(axes) == [0.5]


def test_empty_and_scalar_tensors():
    axes = drawn(
        plot_weight_changes(
            {"none": np.ones((0, 3)), "s": np.array(2.0)}, {"none": np.ones((0, 3)), "s": 3.0}
        )
    )
    assert labels(axes) == ["none (0×3)", "s"]
    assert notes(axes) == ["no change", "50%"]


# -- where they come from -----------------------------------------------------------------------------


def test_models(small_model, tmp_path):
    proto = small_model("mlp")
    old = weights(proto)
    new = {name: value + 0.25 for name, value in old.items()}
    onnx.save(proto, tmp_path / "m.onnx")
    expected = [relative(old[name], new[name]) for name in old]
    for before in (proto, tmp_path / "m.onnx", old):
        for after in (replace_weights(proto, new), new):
            np.testing.assert_allclose(bars(plot_weight_changes(before, after)), expected, rtol=1e-6)
    with pytest.raises(InvalidModelError):
        plot_weight_changes(b"nonsense", old)


def test_estimators(small_model):
    pytest.importorskip("onnxruntime")
    from sklearn.exceptions import NotFittedError

    from onnxcustom import OnnxRegressor
    from onnxcustom.training.optimizers_partial import OrtGradientForwardBackwardOptimizer

    X = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    proto = small_model("mlp")
    old = weights(proto)
    for net in (
        OnnxRegressor(proto, max_iter=2, weights_to_train=["w1", "b1"]),
        OrtGradientForwardBackwardOptimizer(proto, max_iter=2),
    ):
        with pytest.raises(NotFittedError):
            plot_weight_changes(net)
        net.fit(X, X[:, :2])
        new = net.weights_ if hasattr(net, "weights_") else net.trained_coef_
        axes = drawn(plot_weight_changes(net))
        assert [label.split()[0] for label in labels(axes)] == [name for name in old if name in new]
        np.testing.assert_allclose(bars(axes), [relative(old[n], new[n]) for n in old if n in new], rtol=1e-6)
        np.testing.assert_allclose(bars(plot_weight_changes(proto, net)), bars(axes))


@pytest.mark.parametrize(
    ("before", "after", "match"),
    [
        ({"a": np.ones(2)}, {"b": np.ones(2)}, "no weight in common"),
        ({}, {}, "no weight in common"),
        ({"a": np.ones(2)}, {"a": np.ones(3)}, r"'a' has shape \(2,\) before and \(3,\)"),
        ({"a": np.ones(2)}, None, "after is missing"),
    ],
)
def test_what_cannot_be_compared(before, after, match):
    with pytest.raises(InvalidDataError, match=match):
        plot_weight_changes(before, after)


# -- drawing ------------------------------------------------------------------------------------------


def test_given_axes():
    axes = Figure().subplots(1, 2)
    assert plot_weight_changes(*some(2), ax=axes) == list(axes)
    with pytest.raises(ValueError, match="two axes"):
        plot_weight_changes(*some(2), ax=Figure().subplots())


@pytest.mark.parametrize("count", [1, 5, 30])
@pytest.mark.parametrize("name", ["w{}", "a/very/long/name/that/goes/on/and/on/{}/kernel", "$x_{}$"])
def test_nothing_overlaps(count, name):
    """Labels of rows lie in the figure and beside each other, notes within their axes."""
    old, new = some(count)
    rename = {k: name.format(i) for i, k in enumerate(old)}
    new["w0"][0, 0] = NAN
    axes = drawn(
        plot_weight_changes(
            {rename[k]: v for k, v in old.items()}, {rename[k]: v for k, v in new.items()}, top=100
        )
    )
    boxes = [text.get_window_extent() for text in axes[0].get_yticklabels()]
    assert min(box.x0 for box in boxes) >= 0
    assert all(below.y1 <= above.y0 for above, below in itertools.pairwise(boxes))
    for text in axes[1].texts:
        assert text.get_window_extent().x1 <= axes[1].figure.bbox.x1
    ticks = [t.get_window_extent() for t in axes[1].get_xticklabels() if t.get_text()]
    assert all(left.x1 <= right.x0 for left, right in itertools.pairwise(ticks))


@pytest.mark.parametrize("wrong", [0, -1])
def test_wrong_top(wrong):
    with pytest.raises(ValueError, match="top"):
        plot_weight_changes(*some(1), top=wrong)


def test_file(tmp_path):
    plot_weight_changes(*some(1), path=tmp_path / "w.svg")
    assert (tmp_path / "w.svg").stat().st_size
