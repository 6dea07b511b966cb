"""A picture of what training changed in each weight."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxcustom._parameters import check_number
from onnxcustom.exceptions import InvalidDataError, InvalidParameterError
from onnxcustom.graph import weights

from .style import COLORS, given_axes, matplotlib_module, new_axes, plain, save

__all__ = ["plot_weight_changes"]

_BINS = 61  # odd: one of them is around zero
_NUMBERS, _BARS, _BROKEN = COLORS[0], COLORS[2], COLORS[1]


@dataclasses.dataclass
class _Row:
    """One weight, or several together.

    Attributes
    ----------
    label : str
        Name and shape.
    pairs : list of tuple of ndarray
        Old and new values.
    size, broken : int
        Numbers, and how many of them are NaN or infinite before or after.
    largest, change, norm : float
        Largest change of a number; norms of the change and of the old values. Of finite numbers.
    """

    label: str
    pairs: list[tuple[np.ndarray, np.ndarray]]
    size: int = 0
    broken: int = 0
    largest: float = 0.0
    change: float = 0.0
    norm: float = 0.0

    @property
    def relative(self) -> float:
        """Norm of the change over that of the old values; infinite if those were all zero."""
        return self.change / self.norm if self.norm else (np.inf if self.change else 0.0)

    @property
    def rank(self) -> float:
        """For finding the largest changes: what has moved away from zero counts like what has doubled."""
        return np.inf if self.broken else min(self.relative, 1.0) if not self.norm else self.relative


def plot_weight_changes(
    before: Any,
    after: Any = None,
    ax: Any = None,
    *,
    top: int = 16,
    path: str | os.PathLike[str] | None = None,
) -> list[Any]:
    """Draw by how much each weight has changed: a histogram of new - old, and how much that is of its norm.

    Parameters
    ----------
    before : fitted estimator, model or dict of str to array
        A model (path, bytes, ModelProto, ir.Model) or its weights by name; an estimator alone is compared
        with the model it started from.
    after : estimator, model or dict of str to array, optional
        The same later. Weights that are in one of the two only are left out.
    ax : sequence of two matplotlib.axes.Axes, optional
        What to draw into, histograms and bars. None makes a figure, which pyplot knows nothing of.
    top : int, default=16
        Most weights that have a row of their own, in [1, inf). Of more, those with the largest relative
        change have one, and those with NaN or infinity; the others share the last.
    path : str or path, optional
        File that is written too; one of that name is overwritten.

    Returns
    -------
    list of matplotlib.axes.Axes
        Histograms, then bars, one row a weight in the order of the graph. Every histogram is as high as its
        row.

    Raises
    ------
    InvalidDataError
        The two have no weight in common, or one of another shape.
    InvalidModelError
        A model is none.
    MissingPackageError
        matplotlib is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> old = {"w": np.array([1.0, 2.0]), "b": np.array([1.0])}
    >>> axes = plot_weight_changes(old, {"w": np.array([1.0, 2.5]), "b": np.array([1.0])})
    >>> [text.get_text() for text in axes[1].texts]
    ['22%', 'no change']
    """
    check_number("top", top, "[1, inf)", integral=True)
    rows = _rows(before, after)
    if len(rows) > top:
        kept = sorted(range(len(rows)), key=lambda k: -rows[k].rank)[: max(top - 1, 1)]
        rest = [row for k, row in enumerate(rows) if k not in kept]
        rows = [rows[k] for k in sorted(kept)] + [_together(rest)]
    if ax is None:
        height = 1.3 + 0.34 * len(rows)
        axes = new_axes(2, 9.0, height, sharey=True, gridspec_kw={"width_ratios": (3, 2)})
    else:
        axes = given_axes(ax)
        if len(axes) != 2:
            raise InvalidParameterError(f"ax must be two axes, for histograms and bars, not {len(axes)}.")
    _draw_histograms(axes[0], rows)
    _draw_bars(axes[1], rows)
    for here in axes:
        here.set_yticks(range(len(rows)), [row.label for row in rows])
        here.set_ylim(len(rows) - 0.5, -0.5)
        here.spines[["top", "right"]].set_visible(False)
        here.tick_params(axis="y", length=0, labelleft=here is axes[0])
    save(axes, path)
    return axes


# -- numbers ----------------------------------------------------------------------------------------


def _rows(before: Any, after: Any) -> list[_Row]:
    if after is None:
        before, after = _start_of(before), before
    old, new = _weights_of(before), _weights_of(after)
    common = [name for name in old if name in new]
    if not common:
        raise InvalidDataError(
            f"The two have no weight in common: {sorted(old)[:5]} before, {sorted(new)[:5]} after."
        )
    for name in common:
        if old[name].shape != new[name].shape:
            raise InvalidDataError(
                f"Weight {name!r} has shape {old[name].shape} before and {new[name].shape} after."
            )
    return [_measured(_label(name, old[name].shape), [(old[name], new[name])]) for name in common]


def _start_of(trained: Any) -> Any:
    """The model that a trained object started from."""
    if isinstance(trained, Mapping) or not hasattr(trained, "__sklearn_is_fitted__"):
        raise InvalidDataError(
            "after is missing: only a fitted estimator knows what its weights were before training."
        )
    return getattr(trained, trained.model_parameter)


def _weights_of(given: Any) -> dict[str, np.ndarray]:
    if isinstance(given, Mapping):
        return {str(name): np.asarray(value) for name, value in given.items()}
    if hasattr(given, "__sklearn_is_fitted__"):
        if not given.__sklearn_is_fitted__():
            from sklearn.exceptions import NotFittedError

            raise NotFittedError(
                f"This {type(given).__name__} is not fitted yet: its weights are the model's."
            )
        return given.weights_
    return weights(given)


def _changes(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", over="ignore"):
        return np.ravel(new).astype(np.float64) - np.ravel(old).astype(np.float64)


def _measured(label: str, pairs: list[tuple[np.ndarray, np.ndarray]]) -> _Row:
    row = _Row(label, pairs)
    squares = 0.0
    for old, new in pairs:
        change = _changes(old, new)
        finite = np.isfinite(change)
        row.size += change.size
        row.broken += change.size - int(finite.sum())
        change = change[finite]
        if change.size:
            row.largest = max(row.largest, float(np.abs(change).max()))
            row.change = float(np.hypot(row.change, np.linalg.norm(change)))
            squares = float(np.hypot(squares, np.linalg.norm(np.ravel(old).astype(np.float64)[finite])))
    row.norm = squares
    return row


def _together(rows: list[_Row]) -> _Row:
    return _measured(f"{len(rows)} others", [pair for row in rows for pair in row.pairs])


def _label(name: str, shape: tuple[int, ...]) -> str:
    return f"{plain(name)} ({'×'.join(map(str, shape))})" if shape else plain(name)


# -- drawing ----------------------------------------------------------------------------------------


def _draw_histograms(ax: Any, rows: list[_Row]) -> None:
    largest = max(row.largest for row in rows) or 1.0
    edges = np.linspace(-largest, largest, _BINS + 1)
    for k, row in enumerate(rows):
        counts = np.zeros(_BINS)
        for pair in row.pairs:
            change = _changes(*pair)
            counts += np.histogram(change[np.isfinite(change)], edges)[0]
        heights = 0.8 * counts / max(counts.max(), 1)
        base = k + 0.4
        ax.stairs(base - heights, edges, baseline=base, fill=True, color=_NUMBERS, alpha=0.75)
        ax.axhline(base, color="0.7", linewidth=0.6)
    ax.axvline(0, color="0.4", linewidth=0.8, zorder=0)
    ax.set_xlim(-1.03 * largest, 1.03 * largest)
    ax.set_xlabel("new - old, histogram of each weight")
    ax.xaxis.set_major_locator(matplotlib_module("ticker").MaxNLocator(nbins=7, symmetric=True))


def _draw_bars(ax: Any, rows: list[_Row]) -> None:
    known = [row.relative for row in rows if 0 < row.relative < np.inf]
    high = max(known, default=1.0)
    low = min(known, default=1.0)
    log = high > 100 * low
    ax.barh(range(len(rows)), [r.relative if r.relative < np.inf else 0 for r in rows], 0.6, color=_BARS)
    for k, row in enumerate(rows):
        at = row.relative if 0 < row.relative < np.inf else (low / 2 if log else 0)
        color = _BROKEN if row.broken else "0.25"
        ax.annotate(
            _change_text(row),
            (at, k),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=color,
        )
    if log:
        ax.set_xscale("log")
        ax.set_xlim(low / 2, high * 20)
    else:
        ax.set_xlim(0, 1.5 * high)
    ticker = matplotlib_module("ticker")
    ax.xaxis.set_major_locator(ticker.LogLocator(numticks=4) if log else ticker.MaxNLocator(nbins=4))
    ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{100 * x:.6g}%"))
    ax.set_xlabel("norm of the change / norm before")


def _change_text(row: _Row) -> str:
    if row.broken:
        return f"{row.broken:,} of {row.size:,} not finite"
    if not row.change:
        return "no change"
    if row.relative == np.inf:
        return "0 before"
    return f"{100 * row.relative:,.0f}%" if row.relative >= 0.1 else f"{100 * row.relative:.2g}%"
