"""Convolutions of each channel on its own."""

from __future__ import annotations

import itertools

import numpy as np

from onnxcustom.graph.building.builder import Var

from ...emit import GradientBuilder
from .forms import Shapes

__all__ = ["sums"]


def sums(op: GradientBuilder, s: Shapes, image: Var, response: Var, w: Var) -> Var:
    """The weight's gradient as sums of products, three times as fast as products of matrices with one row."""
    window = s.window
    assert window.kernel is not None
    image = window.padded(op, image, w)
    last = list(range(2, window.n + 2))
    sums = [
        op.reduce_sum(window.piece(op, image, offset) * response, [0, *last], keepdims=True)
        for offset in itertools.product(*(range(k) for k in window.kernel))
    ]
    return op.Reshape(op.transpose(op.concat(sums), [1, 0, *last]), np.array([0, 1, *window.kernel]))
