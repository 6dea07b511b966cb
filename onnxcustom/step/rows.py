"""What is said of the rows of a model: where they are, and where that is in doubt."""

from __future__ import annotations

import re
from collections.abc import Mapping

from onnxcustom.exceptions import EvaluationError
from onnxcustom.graph.shapes.batch_axis import BatchAxes

__all__ = ["doubtful_rows", "row_lines", "with_rows"]

# What kernels say of tensors that don't fit together.
_SHAPES = re.compile("dimension|shape|broadcast", re.IGNORECASE)


def doubtful_rows(axes: BatchAxes, tensors: Mapping[str, str]) -> str | None:
    """What to warn of where outputs don't have the rows, but another dimension of the inputs.

    Parameters
    ----------
    axes : BatchAxes
        Where the rows are.
    tensors : mapping of str to str
        Outputs that are trained -> the tensor that stands for each.

    Returns
    -------
    str or None
    """
    found = axes.doubt(tensors)
    if found is None:
        return None
    return (
        f"The rows of a batch are taken to be {_name(found.taken)}, axis {found.axis} of input "
        f"{found.input!r}, which no trained output has: each is one row for the whole batch, whatever it "
        f"holds. Output {found.output!r} has {found.other!r}, another dimension of the inputs. If that one "
        f"holds the rows, say batch_axis={found.instead}; if not, "
        f"batch_axis={{{found.input!r}: {found.axis}}} says so."
    )


def row_lines(axes: BatchAxes, tensors: Mapping[str, str]) -> list[str]:
    """Where the rows of inputs and outputs are, one line each.

    Parameters
    ----------
    axes : BatchAxes
        Where the rows are.
    tensors : mapping of str to str
        Outputs -> the tensor that stands for each.

    Returns
    -------
    list of str
    """
    lines = []
    for name, axis in axes.inputs.items():
        none = "none, it is given once a batch as it is"
        lines.append(f"{name}: {none if axis is None else _place(axes, name, axis)}")
    for name, tensor in tensors.items():
        axis = axes.of(tensor, name)
        none = "none, it is one row for the whole batch"
        lines.append(f"{name}: {none if axis is None else _place(axes, tensor, axis)}")
    return lines


def with_rows(exc: EvaluationError, shapes: Mapping[str, tuple[list[int], int | None]]) -> EvaluationError:
    """The error of a first batch, with what was taken for its rows where shapes don't fit.

    Parameters
    ----------
    exc : EvaluationError
        What onnxruntime failed with.
    shapes : mapping of str to (list of int, int or None)
        Shape of each input, and the axis of its rows.

    Returns
    -------
    EvaluationError
        The same one where it is about something else, or where no input has another axis.
    """
    if not _SHAPES.search(str(exc.__cause__)) or all(len(shape) < 2 for shape, _ in shapes.values()):
        return exc
    taken = "; ".join(
        f"{name!r} of shape {tuple(shape)} "
        + ("has none (it is given as it is)" if axis is None else f"has {shape[axis]} along axis {axis}")
        for name, (shape, axis) in shapes.items()
    )
    return EvaluationError(
        f"{str(exc).rstrip()} The shapes of this batch don't fit: of its rows, {taken}. Give arrays as the "
        "model declares its inputs; if the rows are along other axes of them, say which: "
        f"batch_axis={{{next(iter(shapes))!r}: ...}}."
    )


def _place(axes: BatchAxes, name: str, axis: int) -> str:
    dimension = axes.dimension(name, axis)
    return f"axis {axis}" if dimension is None else f"axis {axis} ({dimension})"


def _name(dimension: str | int | None) -> str:
    return "a dimension without a name" if dimension is None else repr(dimension)
