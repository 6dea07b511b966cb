"""Pictures of trainings: losses and metrics after each epoch."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from onnxcustom._parameters import check_flag, check_number
from onnxcustom.exceptions import InvalidDataError, InvalidParameterError

from .history_data import Run, Series, chosen_metrics, is_part, read_runs
from .style import COLORS, given_axes, matplotlib_module, new_axes, plain, save

__all__ = ["plot_history"]

_DECADES = 2  # spanned by the losses, from which on their axis is logarithmic
_MARKED = 20  # epochs up to which each has a marker
_GRAY = "0.25"
_RING = {
    "linestyle": "none",
    "marker": "o",
    "markersize": 9,
    "markerfacecolor": "none",
    "markeredgewidth": 1.8,
}


@dataclasses.dataclass
class _Panel:
    """What shares an axis."""

    label: str
    lines: list[tuple[Series, str]]  # and the colour of each
    loss: bool = False


def plot_history(
    history: Any,
    ax: Any = None,
    metrics: Iterable[str] | str | None = None,
    log: bool | None = None,
    smooth: float | None = None,
    *,
    path: str | os.PathLike[str] | None = None,
) -> list[Any]:
    """Draw the losses of a training, and its metrics in panels beside them.

    Training is solid, validation dashed. The best epoch is marked: that of the lowest validation loss,
    without one of the lowest loss. Epochs after which nothing was measured are passed over.

    Parameters
    ----------
    history : estimator, dict, path, or dict of several of these
        A fitted estimator, its ``history_``, the file that
        :class:`~onnxcustom.training.callbacks.HistoryFile` wrote, or several of these by name, which are
        compared. An entry ``'epoch'`` numbers the epochs, else they count from 1.
    ax : matplotlib.axes.Axes or sequence of them, optional
        What to draw into. One alone takes the losses, unless `metrics` are named; several must be as many
        as there are panels. None makes a figure, which pyplot knows nothing of.
    metrics : str or sequence of str, optional
        What is drawn beside the losses, ``'accuracy'`` also meaning ``'val_accuracy'``. None: everything but
        learning rate and seconds; ``[]``: nothing.
    log : bool, optional
        Whether the axis of the losses is logarithmic. None: if they are positive and span more than two
        decades.
    smooth : float, optional
        Share of what came before in an exponential moving average, in [0, 1); curves as measured stay
        visible behind it.
    path : str or path, optional
        File that is written too; one of that name is overwritten.

    Returns
    -------
    list of matplotlib.axes.Axes
        The losses, then the metrics: the losses of several outputs of one training share a panel, so do
        metrics that stay in [0, 1], every other one has its own. ``axes[0].figure`` is the figure.

    Raises
    ------
    InvalidDataError
        That is no history, or a logarithmic axis is asked for losses that are not positive.
    UnknownNameError
        A metric was not measured.
    MissingPackageError
        matplotlib is not installed.

    Examples
    --------
    >>> axes = plot_history({"loss": [0.9, 0.5, 0.4], "val_loss": [1.0, 0.6, 0.7]}, path="loss.png")
    >>> [text.get_text() for text in axes[0].figure.legends[0].get_texts()]
    ['training', 'validation', 'best: 0.6 at epoch 2']
    """
    if smooth is not None:
        check_number("smooth", smooth, "[0, 1)")
    if log is not None:
        check_flag("log", log)
    runs = read_runs(history)
    panels = _panels(runs, chosen_metrics(runs, metrics))
    own = ax is None
    if own:
        axes = new_axes(len(panels), max(6.4, 4.8 * len(panels)), 4.2)
    else:
        panels, axes = _fit(panels, ax, metrics is None)
    for panel, here in zip(panels, axes, strict=True):
        _draw(panel, here, smooth or 0.0)
        if panel.loss:
            _scale(panel, here, log)
    _mark_best(runs, panels, axes)
    _legend(runs, panels, axes, own)
    save(axes, path)
    return axes


# -- what is drawn ----------------------------------------------------------------------------------


def _panels(runs: Sequence[Run], metrics: Sequence[str]) -> list[_Panel]:
    losses = _lines(runs, ("loss", "val_loss"))
    panels = [_Panel("loss", losses, loss=True)] if losses else []
    names = list(
        dict.fromkeys(run.series[key].quantity for run in runs for key in metrics if key in run.series)
    )
    found = {
        name: _lines(runs, [key for key in metrics if any(_is(run, key, name) for run in runs)])
        for name in names
    }
    parts = [name for name in names if is_part(name)]
    scores = [name for name in names if name not in parts and _is_share(found[name])]
    groups = {"loss of each output": parts, "score": scores} if len(runs) == 1 else {}
    # Blue stays the colour of what has a panel of its own.
    colors = {
        n: _color(k) for k, n in enumerate((n for g in groups.values() if len(g) > 1 for n in g), start=1)
    }
    for name in names:
        label, group = next((g for g in groups.items() if name in g[1] and len(g[1]) > 1), (name, [name]))
        if name == group[0]:
            lines = [(series, colors.get(n, color)) for n in group for series, color in found[n]]
            panels.append(_Panel(label, lines, loss=is_part(name)))
    return panels or [_Panel("loss", [])]


def _is_share(lines: Sequence[tuple[Series, str]]) -> bool:
    """Whether all of it is in [0, 1], as of most scores."""
    return all(0 <= v <= 1 for series, _ in lines for v in series.values)


def _is(run: Run, key: str, quantity: str) -> bool:
    return key in run.series and run.series[key].quantity == quantity


def _lines(runs: Sequence[Run], keys: Sequence[str]) -> list[tuple[Series, str]]:
    return [(run.series[key], _color(k)) for k, run in enumerate(runs) for key in keys if key in run.series]


def _color(k: int) -> str:
    """A colour for each of many: after the last, they come again half as strong."""
    color = COLORS[k % len(COLORS)]
    if k // len(COLORS) % 2 == 0:
        return color
    channels = [(int(color[i : i + 2], 16) + 255) // 2 for i in (1, 3, 5)]
    return "#" + "".join(f"{c:02X}" for c in channels)


def _fit(panels: list[_Panel], ax: Any, everything: bool) -> tuple[list[_Panel], list[Any]]:
    """The panels for the axes that are there."""
    axes = given_axes(ax)
    if hasattr(ax, "plot") and everything:
        panels = panels[:1]
    if len(axes) != len(panels):
        names = ", ".join(panel.label for panel in panels)
        raise InvalidParameterError(
            f"ax must be {len(panels)} axes, for {names}, not {len(axes)}; metrics= chooses them."
        )
    return panels, axes


# -- how ------------------------------------------------------------------------------------------


def _draw(panel: _Panel, ax: Any, smooth: float) -> None:
    for series, color in panel.lines:
        look = {"color": color, **_style(series.validation, len(series.values) <= _MARKED and not smooth)}
        if smooth:
            ax.plot(series.epochs, series.values, **{**look, "linewidth": 0.8, "alpha": 0.35})
        ax.plot(series.epochs, _smoothed(series.values, smooth), **look)
    ax.set_xlabel("epoch")
    ax.set_ylabel(plain(panel.label))
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.3)
    epochs = sorted({e for series, _ in panel.lines for e in series.epochs})
    if not epochs:
        ax.set(xticks=[], yticks=[])
        ax.text(
            0.5, 0.5, "nothing was measured", transform=ax.transAxes, ha="center", va="center", color="0.4"
        )
    elif len(epochs) == 1:
        ax.set(xticks=epochs, xlim=(epochs[0] - 0.6, epochs[0] + 0.6))
    else:
        locator = matplotlib_module("ticker").MaxNLocator(integer=True, nbins=8, steps=(1, 2, 5, 10))
        ax.xaxis.set_major_locator(locator)


def _style(validation: bool, marked: bool) -> dict[str, Any]:
    """Line of training or validation, with markers where epochs are few."""
    look: dict[str, Any] = {"linestyle": "--" if validation else "-", "linewidth": 1.8}
    if marked:
        look |= {"marker": "o", "markersize": 4.5}
    return look | {"markerfacecolor": "white"} if validation and marked else look


def _smoothed(values: np.ndarray, share: float) -> np.ndarray:
    """An exponential moving average without the pull of its beginning towards zero."""
    total, weight, means = 0.0, 0.0, []
    for value in values:
        total, weight = share * total + (1 - share) * value, share * weight + (1 - share)
        means.append(total / weight)
    return np.array(means)


def _scale(panel: _Panel, ax: Any, log: bool | None) -> None:
    values = np.concatenate([s.values for s, _ in panel.lines]) if panel.lines else np.empty(0)
    if not len(values):
        return
    low, high = float(values.min()), float(values.max())
    if log and low <= 0:
        raise InvalidDataError(f"log=True needs losses that are positive, and the lowest is {low:g}.")
    if not (log if log is not None else low > 0 and high > low * 10**_DECADES):
        return
    ax.set_yscale("log")
    if high < low * 10**_DECADES:
        ticker = matplotlib_module("ticker")
        ticks = (1, 2, 3, 5) if high > 10 * low else (1, 1.5, 2, 3, 4, 5, 7)
        ax.yaxis.set_major_locator(ticker.LogLocator(subs=ticks))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_locator(ticker.NullLocator())


def _mark_best(runs: Sequence[Run], panels: Sequence[_Panel], axes: Sequence[Any]) -> None:
    for k, run in enumerate(runs):
        found = run.best()
        if found is None:
            continue
        series, i = found
        for panel, ax in zip(panels, axes, strict=True):
            if len(runs) == 1:
                ax.axvline(series.epochs[i], color="0.5", linewidth=0.8, linestyle=":", zorder=1)
            if any(s is series for s, _ in panel.lines):
                ax.plot(series.epochs[i], series.values[i], color=_color(k), zorder=3, **_RING)


def _legend(runs: Sequence[Run], panels: Sequence[_Panel], axes: Sequence[Any], own: bool) -> None:
    """One for all panels: what colours mean, then training and validation, then the best epoch."""
    entries: list[tuple[str, dict[str, Any]]] = []
    if len(runs) > 1:
        entries += [(_run_label(run), {"color": _color(k), "linewidth": 3}) for k, run in enumerate(runs)]
    for panel in panels:
        named = {series.quantity: color for series, color in panel.lines}
        if len(named) > 1:
            entries += [(plain(name), {"color": color, "linewidth": 3}) for name, color in named.items()]
    base = _GRAY if entries else _color(0)
    drawn = [series for panel in panels for series, _ in panel.lines if len(series.values)]
    marked = all(len(series.values) <= _MARKED for series in drawn)
    for label, validation in (("training", False), ("validation", True)):
        if any(series.validation == validation for series in drawn):
            entries.append((label, {"color": base, **_style(validation, marked)}))
    best = [run.best() for run in runs]
    if any(best):
        series, i = next(found for found in best if found)
        label = f"best: {_value_at(series, i)}" if len(runs) == 1 else "best epoch"
        entries.append((label, {**_RING, "color": base if len(runs) > 1 else _color(0)}))
    if not entries:
        return
    line = matplotlib_module("lines").Line2D
    handles, labels = [line([], [], **look) for _, look in entries], [label for label, _ in entries]
    if own:
        figure = axes[0].figure
        columns = _columns(labels, figure.get_figwidth())
        figure.set_figheight(figure.get_figheight() + 0.21 * (-(-len(labels) // columns) - 1))
        figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False)
    else:
        axes[0].legend(handles, labels, frameon=False)


def _columns(labels: Sequence[str], width: float) -> int:
    """How many columns of a legend fit: it is filled column by column."""
    for columns in range(len(labels), 1, -1):
        longest = [max(map(len, part)) for part in np.array_split(labels, columns)]
        if sum(0.08 * n + 0.75 for n in longest) <= width:
            return columns
    return 1


def _run_label(run: Run) -> str:
    found = run.best()
    return plain(run.name) + (f": {_value_at(*found)}" if found else "")


def _value_at(series: Series, i: int) -> str:
    return f"{series.values[i]:.4g} at epoch {series.epochs[i]:g}"
