"""plot_history: what is in the axes, against NumPy and pandas."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from onnxcustom.exceptions import InvalidDataError, UnknownNameError
from onnxcustom.plotting import plot_history
from onnxcustom.plotting.style import COLORS

pytest.importorskip("matplotlib")
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

NAN = float("nan")
LOSS, VAL = [0.9, 0.5, 0.4, 0.35], [1.0, 0.6, 0.55, 0.7]
ONE = {"loss": LOSS, "val_loss": VAL, "accuracy": [0.1, 0.5, 0.7, 0.8], "val_accuracy": [0.1, 0.4, 0.6, 0.5]}


def curves(ax):
    """Lines that are neither the mark of the best epoch nor the vertical through it."""
    return [line for line in ax.lines if line.get_linestyle() in ("-", "--")]


def rings(ax):
    return [line for line in ax.lines if line.get_linestyle() == "None"]


def legend(axes):
    figure = axes[0].figure
    found = [*figure.legends, *(ax.get_legend() for ax in figure.axes if ax.get_legend())]
    assert len(found) <= 1, "one legend"
    return [text.get_text() for text in found[0].get_texts()] if found else []


def drawn(axes):
    """Draw it all: overlaps and missing glyphs would warn, and warnings are errors."""
    FigureCanvasAgg(axes[0].figure).draw()
    return axes


# -- one training -----------------------------------------------------------------------------------


def test_losses_and_metrics():
    axes = drawn(plot_history(ONE))
    assert [ax.get_ylabel() for ax in axes] == ["loss", "accuracy"]
    for ax, keys in zip(axes, (("loss", "val_loss"), ("accuracy", "val_accuracy")), strict=True):
        for line, key, style in zip(curves(ax), keys, ("-", "--"), strict=True):
            np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3, 4])
            np.testing.assert_array_equal(line.get_ydata(), ONE[key])
            assert line.get_linestyle() == style
            assert line.get_color() == COLORS[0]
    assert legend(axes) == ["training", "validation", "best: 0.55 at epoch 3"]


def test_the_best_epoch_is_marked():
    axes = plot_history(ONE)
    (ring,) = rings(axes[0])
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (1 + np.argmin(VAL), np.min(VAL))
    assert not rings(axes[1])
    for ax in axes:
        (vertical,) = [line for line in ax.lines if line.get_linestyle() == ":"]
        assert set(vertical.get_xdata()) == {1 + np.argmin(VAL)}


def test_numbers_of_the_epochs():
    axes = drawn(plot_history({"epoch": [0, 1, 2], "loss": [NAN, 0.5, 0.4], "val_loss": [0.9, 0.6, 0.5]}))
    assert [list(line.get_xdata()) for line in curves(axes[0])] == [[1, 2], [0, 1, 2]]


def test_measured_now_and_then():
    axes = plot_history({"loss": LOSS, "val_loss": [NAN, 0.6, NAN, 0.7]})
    validation = curves(axes[0])[1]
    assert list(validation.get_xdata()) == [2, 4]
    assert validation.get_marker() == "o"


def test_many_epochs_have_no_markers():
    axes = plot_history({"loss": np.linspace(1, 0.5, 50)})
    assert curves(axes[0])[0].get_marker() == "None"


def test_one_epoch():
    axes = drawn(plot_history({k: v[:1] for k, v in ONE.items()}))
    for ax in axes:
        assert [line.get_marker() for line in curves(ax)] == ["o", "o"]
        assert [line.get_markerfacecolor() for line in curves(ax)] == [COLORS[0], "white"]
        assert list(ax.get_xticks()) == [1]
    assert legend(axes)[-1] == "best: 1 at epoch 1"


@pytest.mark.parametrize(
    "history", [{}, {"loss": []}, {"loss": [NAN] * 3, "val_loss": [NAN, float("inf"), NAN]}]
)
def test_nothing_was_measured(history):
    axes = drawn(plot_history(history))
    assert [text.get_text() for text in axes[0].texts] == ["nothing was measured"]
    assert legend(axes) == []


def test_metrics_only():
    axes = drawn(plot_history({"val_accuracy": [0.2, 0.4]}))
    assert [ax.get_ylabel() for ax in axes] == ["accuracy"]
    assert legend(axes) == ["validation"]


def test_scores_share_a_panel_and_others_do_not():
    axes = drawn(plot_history({**ONE, "val_f1": [0.1, 0.2, 0.3, 0.4], "val_r2": [-3.0, 0.1, 0.5, 0.6]}))
    assert [ax.get_ylabel() for ax in axes] == ["loss", "score", "r2"]
    colors = [line.get_color() for line in curves(axes[1])]
    assert colors == [COLORS[1], COLORS[1], COLORS[2]]
    assert legend(axes)[:2] == ["accuracy", "f1"]


def test_losses_of_outputs_share_a_panel():
    parts = {
        "a_loss": [0.6, 0.2, 0.1, 0.08],
        "val_a_loss": [0.7, 0.4, 0.3, 0.4],
        "b_loss": [30.0, 3.0, 0.3, 0.2],
    }
    history = {**parts, **ONE, "val_f1": [0.1, 0.2, 0.3, 0.4]}
    axes = drawn(plot_history(history))
    assert [ax.get_ylabel() for ax in axes] == ["loss", "loss of each output", "score"]
    assert [list(line.get_ydata()) for line in curves(axes[1])] == list(parts.values())
    assert [line.get_color() for line in curves(axes[1])] == [COLORS[1], COLORS[1], COLORS[2]]
    assert [line.get_color() for line in curves(axes[2])] == [COLORS[3], COLORS[3], COLORS[4]]
    assert axes[1].get_yscale() == "log"
    assert legend(axes)[:4] == ["a_loss", "b_loss", "accuracy", "f1"]
    (alone,) = drawn(plot_history({"a_loss": parts["a_loss"], "neg_log_loss": [-3.0, -2.0, -1.0, 0.0]}))[:1]
    assert alone.get_ylabel() == "a_loss"
    compared = plot_history({"one": {**ONE, **parts}, "two": {**ONE, **parts}})
    assert [ax.get_ylabel() for ax in compared] == ["loss", "accuracy", "a_loss", "b_loss"]


def test_chosen_metrics():
    assert len(plot_history(ONE, metrics=[])) == 1
    assert len(curves(plot_history(ONE, metrics="val_accuracy")[1])) == 1
    with pytest.raises(UnknownNameError, match="precision"):
        plot_history(ONE, metrics=["precision"])


# -- scales -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "log", "scale"),
    [
        ([1.0, 0.011], None, "linear"),
        ([1.0, 0.009], None, "log"),
        ([1.0, 0.5], True, "log"),
        ([5.0, 0.5], True, "log"),
        ([1.0, 0.0001], False, "linear"),
        ([1.0, 0.0], None, "linear"),
        ([-1.0, -500.0], None, "linear"),
        ([0.5, 0.5], True, "log"),
    ],
)
def test_logarithmic(losses, log, scale):
    axes = drawn(plot_history({"loss": losses, "val_accuracy": [0.001, 1.0]}, log=log))
    assert [ax.get_yscale() for ax in axes] == [scale, "linear"]
    low, high = axes[0].get_ylim()
    shown = [t for t in axes[0].yaxis.get_ticklabels(which="both") if low <= t.get_position()[1] <= high]
    assert sum(bool(t.get_text()) for t in shown) >= (1 if losses[0] == losses[1] else 2), (
        "labels on the axis"
    )


def test_logarithmic_of_what_is_not_positive():
    with pytest.raises(InvalidDataError, match="positive"):
        plot_history({"loss": [1.0, 0.0]}, log=True)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_smooth(share):
    pandas = pytest.importorskip("pandas")
    values = np.random.default_rng(0).normal(size=40)
    axes = drawn(plot_history({"loss": values}, smooth=share))
    raw, smoothed = curves(axes[0])
    np.testing.assert_array_equal(raw.get_ydata(), values)
    assert raw.get_alpha() < 1
    mean = pandas.Series(values).ewm(alpha=1 - share, adjust=True).mean()
    np.testing.assert_allclose(smoothed.get_ydata(), mean)


@pytest.mark.parametrize("wrong", [1.0, -0.1, NAN])
def test_wrong_smoothing(wrong):
    with pytest.raises(ValueError, match="smooth"):
        plot_history(ONE, smooth=wrong)


# -- several ------------------------------------------------------------------------------------------


def test_compare():
    other = {k: np.array(v) / 2 for k, v in ONE.items()}
    axes = drawn(plot_history({"adam": ONE, "sgd $x$": other}))
    assert [ax.get_ylabel() for ax in axes] == ["loss", "accuracy"]
    for ax in axes:
        assert [line.get_color() for line in curves(ax)] == [COLORS[0], COLORS[0], COLORS[1], COLORS[1]]
        assert [line.get_linestyle() for line in curves(ax)] == ["-", "--"] * 2
    assert [ring.get_xdata()[0] for ring in rings(axes[0])] == [3, 3]
    runs = ["adam: 0.55 at epoch 3", r"sgd \$x\$: 0.275 at epoch 3"]
    assert legend(axes) == [*runs, "training", "validation", "best epoch"]


def test_compare_what_differs():
    runs = {"a": {"loss": [1.0]}, "_b": {"val_loss": [0.5, 0.4], "val_r2": [0.1, 0.2]}, "c": {}}
    axes = drawn(plot_history(runs))
    assert len(curves(axes[0])) == 2
    assert curves(axes[1])[0].get_color() == COLORS[1]
    assert [label.lstrip("\u200b") for label in legend(axes)][:3] == [
        "a: 1 at epoch 1",
        "_b: 0.4 at epoch 2",
        "c",
    ]


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_legends_fit(count):
    """Within the figure, and not over the curves."""
    runs = {f"a rather long name of run {k}": ONE for k in range(count)}
    for metrics in ([], None):
        axes = drawn(plot_history(runs, metrics=metrics))
        figure = axes[0].figure
        box = figure.legends[0].get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1
        assert all(ax.get_window_extent().y1 <= box.y0 for ax in axes)
        assert all(ax.get_window_extent().height > 0.3 * figure.bbox.height for ax in axes)


# -- axes of the caller -------------------------------------------------------------------------------


def test_given_axes():
    figure = Figure()
    one = figure.subplots()
    assert plot_history(ONE, one) == [one]
    assert len(curves(one)) == 2
    assert one.get_legend() is not None
    assert not figure.legends
    two = Figure().subplots(1, 2)
    assert plot_history(ONE, two) == list(two)
    three = Figure().subplots(1, 3)
    with pytest.raises(ValueError, match="2 axes, for loss, accuracy, not 3"):
        plot_history(ONE, three)
    with pytest.raises(ValueError, match="2 axes"):
        plot_history(ONE, Figure().subplots(), metrics="accuracy")


# -- files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_files(tmp_path, suffix):
    history = tmp_path / "history.json"
    history.write_text(json.dumps(ONE))
    picture = tmp_path / f"loss{suffix}"
    picture.write_text("an older one")
    axes = plot_history(history, path=picture)
    assert len(axes) == 2
    assert picture.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml")


def test_in_threads():
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda k: drawn(plot_history({"loss": [1.0, float(k)]})), range(8)))
    assert [curves(axes[0])[0].get_ydata()[1] for axes in found] == list(range(8))
