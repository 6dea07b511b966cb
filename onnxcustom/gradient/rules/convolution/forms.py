"""Which operators stand for a convolution and for its gradients: decided by what is known of its shapes.

A convolution takes an image to a response, ``response = w * image``. Its three products are the
response (forward of Conv, dX of ConvTranspose), the image from the response (dX of Conv, forward of
ConvTranspose), and the weight from both (dW of either).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import onnx_ir as ir

from onnxcustom.graph.building.builder import Var

from ...host import HERE, Host
from ..windows import Window, static_spatial

__all__ = ["IMAGE", "RESPONSE", "WEIGHT", "Form", "Forms", "Shapes", "choose"]

_UNKNOWN = math.nan  # smaller than nothing, larger than nothing


@dataclasses.dataclass(frozen=True)
class Shapes:
    """What is known of a convolution before it runs.

    Parameters
    ----------
    window : Window
        Kernel, strides, dilations and padding.
    group : int
        Groups of channels.
    outer, inner : int or None
        Channels of the response, and of those of the image how many each of them reads.
    image, response : tuple of int or None
        Sizes of both along each axis, without the padding.
    dtype : onnx_ir.DataType or None
        Of all three.
    opset : int
        Of the graph.
    host : Host
        Where it is going to run.
    """

    window: Window
    group: int
    outer: int | None
    inner: int | None
    image: tuple[int, ...] | None
    response: tuple[int, ...] | None
    dtype: ir.DataType | None
    opset: int
    host: Host = HERE

    @classmethod
    def of(
        cls, window: Window, group: int, image: Var, response: Var, w: Var, opset: int, host: Host
    ) -> Shapes:
        """Those of three tensors, image and response without padding."""
        outer, inner = (d if isinstance(d, int) else None for d in (w.shape or (None, None))[:2])
        before, after = static_spatial(image, window.n), static_spatial(response, window.n)
        if after is None and before is not None:
            after = _reached(window, before)
        return cls(window, group, outer, inner, before, after, w.dtype, opset, host)

    @functools.cached_property
    def kernel(self) -> float:
        """Positions of the kernel."""
        return _product(self.window.kernel)

    @functools.cached_property
    def positions(self) -> float:
        """P: positions of the response to one image."""
        return _product(self.response)

    @functools.cached_property
    def pixels(self) -> float:
        """Q: positions of an image."""
        return _product(self.image)

    @property
    def channels(self) -> float:
        """Of the response, times those of the image that each reads."""
        return math.prod(self.sides)

    @property
    def sides(self) -> tuple[float, float]:
        """Channels of the response, and those of the image that each reads."""
        return tuple(_UNKNOWN if side is None else side for side in (self.outer, self.inner))  # type: ignore[return-value]

    @property
    def joined(self) -> bool:
        """Whether a group is more than one channel."""
        return not self.depthwise

    @property
    def dense(self) -> bool:
        """Whether every channel meets every other."""
        return self.group == 1

    @property
    def depthwise(self) -> bool:
        """Whether each channel is convolved on its own, into one."""
        return self.group > 1 and (self.outer, self.inner) == (self.group, 1)

    @property
    def alone(self) -> bool:
        """Whether each channel of the image is convolved on its own, into one or several."""
        return self.group > 1 and self.inner == 1

    @property
    def explicit(self) -> bool:
        """Whether the padding is known."""
        return self.window.begin is not None and self.window.end is not None

    @property
    def unit_strides(self) -> bool:
        """Whether every position has a response, whatever the dilations are."""
        return set(self.window.strides) == {1}

    @property
    def padded(self) -> bool:
        """Whether there is padding, or it is not known."""
        return not self.explicit or any((*(self.window.begin or ()), *(self.window.end or ())))

    @property
    def plain(self) -> bool:
        """Whether the kernel is one position and nothing is left out or added: a product of matrices."""
        return self.kernel == 1 and self.unit_strides and not self.padded

    @property
    def static(self) -> bool:
        """Whether everything but the number of images is known, and there is something to compute."""
        sizes = (self.kernel, self.positions, self.pixels, self.channels)
        return self.explicit and all(size > 0 for size in sizes)

    @property
    def pairs(self) -> float:
        """Pairs of a position of the response and a pixel of the image."""
        return self.positions * self.pixels

    @property
    def here(self) -> bool:
        """Whether it was measured where it is going to run."""
        return self.host.device == "cpu"

    @property
    def singly(self) -> bool:
        """Whether products of matrices may stand for convolutions of each channel on its own.

        Up to onnxruntime 1.19 float64 has no product of transposed matrices, nor a convolution.
        """
        return (
            self.here and self.static and self.alone and self.dtype == ir.DataType.FLOAT and self.kernel > 1
        )

    @property
    def pairs_held(self) -> bool:
        """Whether what all pairs take is no burden: 16 MB at most for the weight, 4 MB for the constant."""
        return self.pairs * self.channels <= 2**22 and self.pairs * self.kernel <= 2**20

    @property
    def few_pairs(self) -> bool:
        """Whether enough of the pairs are joined; the more images, the better."""
        return self.pairs <= min(640 + 200 * self.kernel, 5000)

    @property
    def narrow(self) -> bool:
        """Whether rows are not much longer than those of the kernel: of the pairs three tenths are joined."""
        image, kernel = self.image, self.window.kernel
        return image is not None and kernel is not None and 3 * image[-1] <= 10 * kernel[-1]

    @property
    def long_rows(self) -> bool:
        """Whether rows of the kernel are so long that a product for each costs less than a sum a place."""
        kernel = self.window.kernel
        return kernel is not None and kernel[-1] >= (3 if self.window.n > 1 else 7)

    @property
    def banded(self) -> bool:
        """Whether the kernel has several rows, and not too many."""
        return self.window.n > 1 and self.copies <= 64

    @property
    def first(self) -> bool:
        """Whether a large kernel reads the colours of an image, as the first layer of many models does."""
        return self.kernel >= 49 and self.sides[1] <= 4

    @property
    def adds_columns(self) -> bool:
        """Whether columns can be added up where windows overlap: onnxruntime's Col2Im is for float32."""
        able = self.dtype == ir.DataType.FLOAT and self.opset >= 18 and not self.host.portable
        return self.plain or (able and self.window.n <= 2)

    @property
    def within(self) -> bool:
        """Whether every window holds one position of the image at least, as turning the kernel takes it."""
        window = self.window
        if window.kernel is None or window.begin is None or window.end is None:
            return False
        return all(e > p for e, p in zip(window.extent * 2, (*window.begin, *window.end), strict=True))

    @property
    def copies(self) -> float:
        """How many times the image the columns are that windows see."""
        return self.kernel / math.prod(self.window.strides)


@dataclasses.dataclass(frozen=True)
class Forms:
    """How each product of a convolution is emitted."""

    response: str
    image: str
    weight: str


class Form(NamedTuple):
    """One way to emit a product."""

    name: str
    fits: Callable[[Shapes], bool]
    """Whether it gives this product, on this host."""
    gains: Callable[[Shapes], bool] = lambda s: True
    """Whether it was measured to be faster than those behind it."""


# Of each product the first that fits and gains. A comparison with what is not known does not hold.
# What ``benchmarks/bench_convolution.py`` measures decides: gains of columns, turned ... over the last.
RESPONSE = (
    Form("matrix", lambda s: s.singly and s.pairs_held, lambda s: s.few_pairs),
    Form("bands", lambda s: s.singly and s.banded, lambda s: s.narrow),
    Form(
        "columns",
        lambda s: s.here and s.static and s.joined,
        lambda s: s.positions <= 9 and s.channels >= 2**15,
    ),
    Form("Conv", lambda s: True),
)
IMAGE = (
    Form("matrix", lambda s: s.singly and s.pairs_held, lambda s: s.few_pairs),
    Form("bands", lambda s: s.singly and s.banded and s.unit_strides and s.within, lambda s: s.narrow),
    Form(
        "columns",
        lambda s: s.here and s.static and s.joined and s.adds_columns,
        lambda s: (
            (s.positions <= 9 and s.channels >= 2**12)
            or (s.positions <= 49 and s.channels >= 2**15 and not s.plain)
        ),
    ),
    Form(
        "turned",
        lambda s: s.here and s.static and s.joined and s.unit_strides and s.within,
        lambda s: s.plain or (s.positions >= 784 and min(s.sides) >= 16),
    ),
    Form("turned slice", lambda s: s.depthwise and s.unit_strides and s.within),
    Form("ConvTranspose", lambda s: True),
)
WEIGHT = (
    Form("matrix", lambda s: s.singly and s.pairs_held, lambda s: s.few_pairs),
    Form("bands", lambda s: s.singly and s.copies <= 64, lambda s: s.long_rows),
    Form(
        "images",
        lambda s: s.here and s.static and s.dense and s.kernel == 1 and not s.padded,
        lambda s: (4 if s.unit_strides else 16) * s.channels <= sum(s.sides) * s.positions,
    ),
    Form(
        "columns",
        lambda s: s.here and s.static and s.joined,
        lambda s: (s.kernel == 1 and not s.padded) or (s.positions <= 49 and s.channels >= 2**15),
    ),
    Form(
        "shifts",
        lambda s: s.here and s.static and s.dense and set(s.window.strides[:-1]) <= {1},
        lambda s: (
            s.kernel > 1
            and min(s.sides) >= 8
            and (s.positions >= 1024 or (s.positions >= 256 and s.sides[0] <= s.sides[1] <= 64))
        ),
    ),
    Form(
        "conv",
        lambda s: True,
        lambda s: (
            not s.copies <= 64
            or (s.group > 1 and not s.channels > 0)
            or (s.here and s.static and s.dense and s.first and s.positions >= 1024)
        ),
    ),
    Form("sums", lambda s: s.depthwise and s.kernel > 0),
    Form("rows", lambda s: True),
)


def choose(shapes: Shapes) -> Forms:
    """The form of each product."""
    tables = (RESPONSE, IMAGE, WEIGHT)
    return Forms(*(next(f.name for f in table if f.fits(shapes) and f.gains(shapes)) for table in tables))


def _product(sizes: tuple[int, ...] | None) -> float:
    return _UNKNOWN if sizes is None else math.prod(sizes)


def _reached(window: Window, image: tuple[int, ...]) -> tuple[int, ...] | None:
    """Sizes of the response to an image."""
    if window.kernel is None or window.begin is None or window.end is None:
        return None
    geometry = zip(image, window.begin, window.end, window.extent, window.strides, strict=True)
    return tuple((i + b + e - extent) // s + 1 for i, b, e, extent, s in geometry)
