"""Pictures of graphs: inference models, gradient graphs, training steps."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from onnxcustom._parameters import check_flag, check_number, check_path
from onnxcustom.exceptions import UnknownNameError
from onnxcustom.graph import to_ir

from .diagram import DETAILS, Detail, draw_diagram
from .dot import dot_text, find_program, fit_text, run_program

__all__ = ["GraphPicture", "plot_graph"]

_SUFFIXES = (".svg", ".png", ".dot", ".gv")


class GraphPicture:
    """A picture of a graph; notebooks show it.

    Parameters
    ----------
    dot : str
        The picture in the DOT language of Graphviz.
    """

    def __init__(self, dot: str) -> None:
        self.dot = dot
        self._svg: str | None = None

    def svg(self) -> str:
        """The picture as SVG: text is text, and what is known of a node shows when the mouse is on it.

        Raises
        ------
        MissingPackageError
            Graphviz is not installed.
        """
        if self._svg is None:
            self._svg = fit_text(run_program(self.dot, "svg").decode())
        return self._svg

    def png(self, dpi: int = 150) -> bytes:
        """The picture as PNG.

        Parameters
        ----------
        dpi : int, default=150
            Pixels in an inch, in [10, 1200]; letters are 11 points high.

        Raises
        ------
        MissingPackageError
            Graphviz is not installed.
        """
        check_number("dpi", dpi, "[10, 1200]", integral=True)
        return run_program(self.dot, "png", dpi)

    def save(self, path: str | os.PathLike[str], dpi: int = 150) -> Path:
        """Write the picture to a file, which is overwritten if there is one.

        Parameters
        ----------
        path : str or path
            Ends in ``.svg``, ``.png``, ``.dot`` or ``.gv``; the last two need no Graphviz.
        dpi : int, default=150
            Pixels in an inch of a PNG.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        UnknownNameError
            No such format.
        MissingPackageError
            Graphviz is not installed.
        """
        path = _checked_path(path)
        suffix = path.suffix.lower()
        if suffix == ".png":
            path.write_bytes(self.png(dpi))
        else:
            path.write_text(self.svg() if suffix == ".svg" else self.dot, encoding="utf-8")
        return path

    def _repr_svg_(self) -> str | None:
        return None if find_program() is None else self.svg()


def _checked_path(given: str | os.PathLike[str]) -> Path:
    """A path of a known format: refused before anything is drawn."""
    path = check_path("path", given)
    if path.suffix.lower() not in _SUFFIXES:
        raise UnknownNameError(f"A graph is written to {', '.join(_SUFFIXES)}, not to {path.name!r}.")
    return path


def plot_graph(
    model: Any,
    path: str | os.PathLike[str] | None = None,
    *,
    weights: bool = True,
    max_nodes: int = 300,
    detail: Detail | None = None,
) -> GraphPicture:
    """Draw a graph: what is forward, loss, backward and update in colours of their own.

    The forward pass goes down the page, gradients come back up beside it, so that a layer and its gradient
    are neighbours. Weights, optimizer state and numbers are named in the boxes that read them, new values in
    those that make them.

    Parameters
    ----------
    model : path, bytes, onnx.ModelProto, onnx_ir.Model, TrainingStep or estimator
        An inference model, what :func:`onnxcustom.gradient_graph` returns, a training step; of a fitted
        estimator the step, of one that is not the model, of an ``OrtGradientForwardBackward`` the gradient.
    path : str or path, optional
        File that is written too: ``.svg``, ``.png``, ``.dot`` or ``.gv``. One of that name is overwritten.
    weights : bool, default=True
        Whether boxes name weights and the like.
    max_nodes : int, default=300
        The most boxes there are, in [1, inf), unless `detail` says how much is drawn.
    detail : {'full', 'outline', 'summary'}, optional
        ``'full'``: a box for each node, subgraphs in frames. ``'outline'``: the update of a weight is one
        box, and so is a node with subgraphs. ``'summary'``: forward, loss, backward and update are one
        box each. None takes the first that needs no more than `max_nodes` boxes; the picture says what was
        put together.

    Returns
    -------
    GraphPicture
        Notebooks show it; :meth:`GraphPicture.save` writes it, :attr:`GraphPicture.dot` is its source.

    Raises
    ------
    InvalidModelError
        The model is none.
    UnknownNameError
        No such format or detail.
    MissingPackageError
        An SVG or PNG is to be written and Graphviz is not installed.

    Notes
    -----
    Graphviz lays the picture out, and is needed once it is shown or saved as SVG or PNG: the program
    ``dot``, or what the package graphviz-pure brings. Gradients folded into an
    update by :class:`~onnxcustom.TrainingStep` count as update.

    References
    ----------
    E. R. Gansner, E. Koutsofios, S. C. North, K.-P. Vo, A technique for drawing directed graphs, IEEE
    Transactions on Software Engineering 19(3), 1993.

    Examples
    --------
    >>> import onnx.parser, onnxcustom
    >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["": 18]>
    ... net (float[N, 2] x) => (float[N, 3] y) <float[2, 3] w = {1, 2, 3, 4, 5, 6}> {
    ...     z = MatMul(x, w)
    ...     y = Tanh(z)
    ... }''')
    >>> picture = plot_graph(onnxcustom.gradient_graph(model), "gradient.dot")
    >>> "MatMul" in picture.dot and "w (2×3)" in picture.dot
    True
    """
    if path is not None:
        _checked_path(path)
    check_number("max_nodes", max_nodes, "[1, inf)", integral=True)
    check_flag("weights", weights)
    if detail is not None and not (isinstance(detail, str) and detail in DETAILS):
        raise UnknownNameError(f"detail must be None or one of {list(DETAILS)}, not {detail!r}.")
    picture = GraphPicture(dot_text(draw_diagram(to_ir(_graph_of(model)), detail, max_nodes, weights)))
    if path is not None:
        picture.save(path)
    return picture


def _graph_of(model: Any) -> Any:
    """The model that an object of this library stands for."""
    if not type(model).__module__.startswith("onnxcustom.") and not hasattr(model, "get_params"):
        return model
    from onnxcustom.step.training_step import TrainingStep
    from onnxcustom.training.ortgradient import OrtGradientForwardBackward
    from onnxcustom.training.trainer import Trainer

    if isinstance(model, Trainer):
        fitted = hasattr(model, "step_")
        model = model.step_ if fitted else getattr(model, model.model_parameter)
    if isinstance(model, TrainingStep):
        return model.model
    if isinstance(model, OrtGradientForwardBackward):
        return model.cls_type_._trained_onnx
    return model
