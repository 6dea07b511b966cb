"""What all pictures share: colours that colour-blind readers tell apart, and figures of their own."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from onnxcustom._parameters import check_path
from onnxcustom._text import shorten
from onnxcustom.exceptions import InvalidParameterError, MissingPackageError, UnknownNameError

from .phases import Phase

__all__ = [
    "COLORS",
    "PHASE_COLORS",
    "PHASE_FILLS",
    "given_axes",
    "matplotlib_module",
    "new_axes",
    "plain",
    "save",
]

#: M. Okabe and K. Ito, Color Universal Design, 2008, https://jfly.uni-koeln.de/color/, without yellow,
#: which is too light for a line on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")

#: Borders and arrows, and what boxes are filled with.
PHASE_COLORS: dict[Phase, str] = {
    "forward": "#0072B2",
    "loss": "#9A7B00",
    "backward": "#D55E00",
    "update": "#007A5A",
}
PHASE_FILLS: dict[Phase, str] = {
    "forward": "#CFE6F5",
    "loss": "#FBF3B0",
    "backward": "#FADCC8",
    "update": "#C9EBDF",
}


def matplotlib_module(name: str) -> Any:
    """A module of matplotlib; never pyplot, whose state all threads share.

    Raises
    ------
    MissingPackageError
        matplotlib is not installed.
    """
    import importlib

    try:
        return importlib.import_module(f"matplotlib.{name}")
    except ImportError as exc:
        raise MissingPackageError(
            f"Curves and histograms are drawn by matplotlib, which cannot be imported ({exc}): "
            'python -m pip install "onnxcustom[plot]".'
        ) from exc


def new_axes(count: int, width: float, height: float, **options: Any) -> list[Any]:
    """Axes beside each other in a figure that pyplot knows nothing of: there is nothing to close.

    Parameters
    ----------
    count : int
        Number of axes.
    width, height : float
        Inches of the figure.
    **options
        As ``Figure.subplots`` takes them.

    Returns
    -------
    list of matplotlib.axes.Axes
    """
    figure = matplotlib_module("figure").Figure(figsize=(width, height), layout="constrained")
    return list(figure.subplots(1, count, squeeze=False, **options)[0])


def given_axes(ax: Any) -> list[Any]:
    """Axes that are given alone, in a list or in an array.

    Raises
    ------
    InvalidParameterError
        Something else.
    """
    axes = [ax] if hasattr(ax, "plot") else list(np.ravel(np.array(ax, dtype=object)))
    if not all(hasattr(here, "plot") for here in axes):
        raise InvalidParameterError(f"ax must be axes of matplotlib, not {ax!r:.80}.")
    return axes


def save(axes: list[Any], path: str | os.PathLike[str] | None) -> None:
    """Write the figure of axes to a file, if there is a path, in the format of its ending."""
    if path is None:
        return
    figure, kind = axes[0].figure, check_path("path", path).suffix[1:].lower()
    known = sorted(figure.canvas.get_supported_filetypes())
    if kind and kind not in known:
        raise UnknownNameError(f"A picture is written to {', '.join(known)}, not to {str(path)!r}.")
    figure.savefig(path, dpi=150)


def plain(text: str) -> str:
    """A name as matplotlib draws it as it is: dollars begin formulas, a first underscore hides."""
    text = " ".join(shorten(text).split()).replace("$", r"\$")
    return f"\u200b{text}" if text.startswith("_") else text
