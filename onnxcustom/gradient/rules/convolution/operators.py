"""The rules of Conv and ConvTranspose."""

from __future__ import annotations

import dataclasses

from onnxcustom.graph.building.builder import Var

from ...emit import GradientBuilder
from ...node import NodeView
from ...registry import rule
from ..windows import Window, spatial_rank
from .forms import Shapes, choose
from .images import IMAGES
from .padding import seen_by_conv
from .responses import RESPONSES
from .weights import WEIGHTS

__all__: list[str] = []


def _of_conv(op: GradientBuilder, node: NodeView) -> Shapes:
    x, w = node.inputs[:2]
    window = Window.of(node, x, spatial_rank(node, x, w), w)
    return Shapes.of(window, node.attr("group"), x, node.outputs[0], w, op.opset, node.walk.host)


def _conv_forms(op: GradientBuilder, node: NodeView) -> dict[str, str]:
    forms = choose(_of_conv(op, node))
    return {"forward": forms.response, "dX": forms.image, "dW": forms.weight}


@rule("Conv", forms=_conv_forms)
def conv(op: GradientBuilder, node: NodeView, dy: Var) -> list[Var | None]:
    """y[o] = b + Σₖ w[k] x[o s + k d - p]:  dx = ConvTranspose(dy, w),
    dw[k] = Σₒ dy[o] x[o s + k d - p],  db = Σ dy.
    """
    x, w = node.inputs[:2]
    shapes = _of_conv(op, node)
    forms = choose(shapes)
    dx = IMAGES[forms.image](op, shapes, dy, w, x) if node.needs[0] else None
    dw = WEIGHTS[forms.weight](op, shapes, x, dy, w) if node.needs[1] else None
    if forms.response != "Conv" and node.needs[1]:  # a constant weight is laid out for Conv beforehand
        node.replace_output(0, RESPONSES[forms.response](op, shapes, x, w, node.input(2)))
    return [dx, dw, *_bias(op, node, dy, shapes.window.n)]


def _of_conv_transpose(op: GradientBuilder, node: NodeView, dy: Var) -> tuple[Var, Shapes]:
    """What a Conv sees of dy, and the shapes of that Conv."""
    x, w = node.inputs[:2]
    window = Window.of(node, x, spatial_rank(node, x, w), w)
    seen, begin, end = seen_by_conv(op, node, dy, x, w, dataclasses.replace(window, begin=None, end=None))
    window = dataclasses.replace(window, begin=begin, end=end, same=None)
    return seen, Shapes.of(window, node.attr("group"), seen, x, w, op.opset, node.walk.host)


def _conv_transpose_forms(op: GradientBuilder, node: NodeView) -> dict[str, str]:
    seen, shapes = _of_conv_transpose(op, node, node.outputs[0])
    forms = choose(shapes)
    forward = forms.image if seen is node.outputs[0] else "ConvTranspose"
    return {"forward": forward, "dX": forms.response, "dW": forms.weight}


@rule("ConvTranspose", forms=_conv_transpose_forms)
def conv_transpose(op: GradientBuilder, node: NodeView, dy: Var) -> list[Var | None]:
    """y[o s + k d - p] += w[k] x[o]:  dx = Conv(dy, w),  dw[k] = Σₒ x[o] dy[o s + k d - p],  db = Σ dy."""
    x, w = node.inputs[:2]
    seen, shapes = _of_conv_transpose(op, node, dy)
    forms, n = choose(shapes), shapes.window.n
    dx = RESPONSES[forms.response](op, shapes, seen, w, None) if node.needs[0] else None
    dw = WEIGHTS[forms.weight](op, shapes, seen, x, w) if node.needs[1] else None
    if seen is dy and forms.image != "ConvTranspose":
        y, b = IMAGES[forms.image](op, shapes, x, w, node.outputs[0]), node.input(2)
        node.replace_output(0, y if b is None else y + op.unsqueeze(b, [*range(1, n + 1)]))
    return [dx, dw, *_bias(op, node, dy, n)]


def _bias(op: GradientBuilder, node: NodeView, dy: Var, n: int) -> list[Var | None]:
    if len(node.inputs) < 3:
        return []
    return [op.reduce_sum(dy, [0, *range(2, n + 2)]) if node.needs[2] else None]
