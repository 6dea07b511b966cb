"""The response of a convolution to an image: forward of Conv, and the gradient of ConvTranspose."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from onnxcustom.graph.building.builder import Var

from ...emit import GradientBuilder
from .forms import Shapes

__all__ = ["RESPONSES"]


def _conv(op: GradientBuilder, s: Shapes, image: Var, w: Var, bias: Var | None) -> Var:
    """The operator itself."""
    window = s.window
    pads = [*(window.begin or ()), *(window.end or ())]
    return op.Conv(
        image, w, bias, strides=window.strides, dilations=window.dilations, group=s.group,
        pads=pads if any(pads) else None,
    )  # fmt: skip


#: By form: image, weight and bias to the response.
RESPONSES: Mapping[str, Callable[[GradientBuilder, Shapes, Var, Var, Var | None], Var]] = {"Conv": _conv}
