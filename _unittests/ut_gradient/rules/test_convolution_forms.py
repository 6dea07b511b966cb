"""Forms of convolutions: each computes the same, and the tables say which is taken."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

from onnxcustom.gradient import GradientBuilder
from onnxcustom.gradient.host import HERE, Host
from onnxcustom.gradient.rules.convolution.forms import IMAGE, RESPONSE, WEIGHT, Shapes, choose
from onnxcustom.gradient.rules.convolution.images import IMAGES
from onnxcustom.gradient.rules.convolution.responses import RESPONSES
from onnxcustom.gradient.rules.convolution.weights import WEIGHTS
from onnxcustom.gradient.rules.windows import Window
from onnxcustom.runtime import create_session, parse_device

FLOAT, DOUBLE = ir.DataType.FLOAT, ir.DataType.DOUBLE
TABLES = {"response": (RESPONSE, RESPONSES), "image": (IMAGE, IMAGES), "weight": (WEIGHT, WEIGHTS)}


def shapes(
    image: tuple[int, ...],
    weight: tuple[int, ...],
    strides: tuple[int, ...] | None = None,
    dilations: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None,
    group: int = 1,
    dtype: ir.DataType = FLOAT,
    opset: int = 18,
    host: Host = HERE,
) -> Shapes:
    """Those of images of these sizes and a weight [outer, inner, *kernel]."""
    n = len(image)
    pads = pads or (0,) * (2 * n)
    window = Window(weight[2:], strides or (1,) * n, dilations or (1,) * n, pads[:n], pads[n:])
    sizes = zip(image, pads[:n], pads[n:], window.extent, window.strides, strict=True)
    response = tuple((i + b + e - extent) // s + 1 for i, b, e, extent, s in sizes)
    return Shapes(window, group, weight[0], weight[1], image, response, dtype, opset, host)


def square(positions: int, outer: int, inner: int, kernel: int = 3, **options: object) -> Shapes:
    """Of one dimension and stride 1, with as many positions as pixels."""
    pads = (kernel // 2, kernel // 2)
    return shapes((positions,), (outer, inner, kernel), pads=pads, **options)


# -- they compute the same -----------------------------------------------------------------------------


def meets(s: Shapes) -> np.ndarray:
    """1 where position p of the response meets pixel q by k of the kernel, [K, P, Q]."""
    window = s.window
    found = np.zeros((int(s.kernel), int(s.positions), int(s.pixels)))
    for k, offset in enumerate(np.ndindex(*window.kernel)):
        for p, place in enumerate(np.ndindex(*s.response)):
            parts = zip(place, window.strides, offset, window.dilations, window.begin, strict=True)
            pixel = [o * stride + a * d - b for o, stride, a, d, b in parts]
            if all(0 <= i < size for i, size in zip(pixel, s.image, strict=True)):
                found[k, p, np.ravel_multi_index(pixel, s.image)] = 1
    return found


def expected(s: Shapes, x: np.ndarray, y: np.ndarray, w: np.ndarray) -> dict[str, np.ndarray]:
    """The three products, summed up number by number in float64."""
    t, g = meets(s), s.group
    x_ = x.reshape(len(x), g, s.inner, -1).astype(np.float64)
    y_ = y.reshape(len(x), g, s.outer // g, -1).astype(np.float64)
    w_ = w.reshape(g, s.outer // g, s.inner, -1).astype(np.float64)
    seen = np.einsum("ngiq,kpq->ngikp", x_, t)
    return {
        "response": np.einsum("goik,ngikp->ngop", w_, seen).reshape(y.shape),
        "image": np.einsum("goik,ngop,kpq->ngiq", w_, y_, t, optimize=True).reshape(x.shape),
        "weight": np.einsum("ngop,ngikp->goik", y_, seen).reshape(w.shape),
    }


GEOMETRIES = {
    "plain": shapes((4, 5), (3, 2, 3, 2)),
    "one position": shapes((3, 3), (4, 2, 3, 3)),
    "one pixel": shapes((1, 1), (4, 2, 3, 3), pads=(1, 1, 1, 1)),
    "same": shapes((5, 4), (3, 2, 3, 3), pads=(1, 1, 1, 1)),
    "strides": shapes((7, 6), (3, 2, 3, 2), strides=(2, 3)),
    "strides that leave a rest": shapes((8, 7), (3, 2, 3, 3), strides=(2, 2), pads=(1, 1, 1, 1)),
    "stride over kernel": shapes((7, 7), (3, 2, 2, 1), strides=(3, 2)),
    "dilations": shapes((7, 8), (3, 2, 3, 2), dilations=(2, 3), pads=(1, 0, 2, 3)),
    "asymmetric": shapes((5, 6), (3, 2, 3, 3), pads=(2, 0, 1, 1)),
    "all of it": shapes((8, 9), (4, 3, 2, 3), (2, 3), (3, 2), (1, 2, 0, 1)),
    "1x1": shapes((4, 3), (3, 5, 1, 1)),
    "1x1 strides": shapes((5, 4), (3, 5, 1, 1), strides=(2, 2)),
    "1x1 pads": shapes((4, 3), (3, 5, 1, 1), pads=(1, 0, 1, 2)),
    "1-D": shapes((7,), (3, 2, 3), pads=(1, 1)),
    "1-D strides dilations": shapes((9,), (3, 2, 3), (2,), (2,), (0, 3)),
    "3-D": shapes((3, 4, 3), (3, 2, 2, 3, 2), pads=(1, 0, 1, 0, 1, 0)),
    "3-D strides": shapes((4, 5, 4), (2, 3, 2, 3, 2), (2, 1, 2), (1, 2, 1), (1, 0, 1, 0, 1, 1)),
    "groups": shapes((4, 5), (6, 2, 3, 2), pads=(1, 1, 1, 0), group=3),
    "groups strides": shapes((5, 5), (4, 3, 3, 3), (2, 1), (1, 2), (1, 2, 0, 2), group=2),
    "groups 1x1": shapes((4, 3), (4, 3, 1, 1), group=2),
    "depthwise": shapes((5, 4), (3, 1, 3, 3), pads=(1, 1, 1, 1), group=3),
    "depthwise strides": shapes((6, 5), (3, 1, 3, 2), (2, 2), (1, 1), (1, 0, 1, 1), group=3),
    "depthwise multiplier": shapes((4, 4), (6, 1, 3, 3), pads=(1, 1, 1, 1), group=3),
    "depthwise 1-D": shapes((7,), (3, 1, 3), (2,), None, (1, 1), group=3),
}
FORMS = [
    (name, product, form.name)
    for name, s in GEOMETRIES.items()
    for product, (table, _) in TABLES.items()
    for form in table
    if form.fits(s)
]


def emitted(s: Shapes, product: str, form: str, bias: bool = False) -> ir.Model:
    """A graph of one product, for any number of images."""
    op = GradientBuilder(s.opset)
    x = op.input("x", s.dtype, ["N", s.group * s.inner, *s.image])
    y = op.input("y", s.dtype, ["N", s.outer, *s.response])
    w = op.input("w", s.dtype, [s.outer, s.inner, *s.window.kernel])
    b = op.input("b", s.dtype, [s.outer]) if bias else None
    operands = {"response": (x, w, b), "image": (y, w, x), "weight": (x, y, w)}[product]
    made = TABLES[product][1][form](op, s, *operands)
    made.value.name = "made"
    read = [v.value for v in (x, y, w, b) if v is not None]
    return ir.Model(
        ir.Graph(
            read,
            [made.value],
            nodes=op.nodes,
            initializers=op.initializers,
            opset_imports={"": s.opset},
            name="product",
        ),
        ir_version=8,
    )


@pytest.mark.parametrize(("name", "product", "form"), FORMS)
@pytest.mark.parametrize("batch", [1, 3])
def test_every_form_is_the_sum_over_what_windows_meet(name, product, form, batch):
    s = GEOMETRIES[name]
    random = np.random.default_rng(0)
    x = random.standard_normal((batch, s.group * s.inner, *s.image)).astype(np.float32)
    y = random.standard_normal((batch, s.outer, *s.response)).astype(np.float32)
    w = random.standard_normal((s.outer, s.inner, *s.window.kernel)).astype(np.float32)
    feeds = {"x": x, "y": y, "w": w}
    model = emitted(s, product, form, bias=product == "response")
    wanted = expected(s, x, y, w)[product]
    if product == "response":
        feeds["b"] = np.arange(s.outer, dtype=np.float32)
        wanted = wanted + feeds["b"].reshape(-1, *[1] * s.window.n)
    session = create_session(ir.to_proto(model), parse_device("cpu"))
    (made,) = session.run(None, feeds)
    np.testing.assert_allclose(made, wanted, atol=1e-4)


def test_every_form_is_compared():
    for product, (table, emitters) in TABLES.items():
        assert {f.name for f in table} == set(emitters)
        assert {form for _, of, form in FORMS if of == product} == set(emitters)


# -- which is taken ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "taken"),
    [
        (square(9, 256, 128), "columns"),
        (square(10, 256, 128), "Conv"),
        (square(9, 256, 127), "Conv"),
        (square(9, 256, 128, kernel=1), "columns"),
        (square(9, 256, 128, dtype=DOUBLE), "columns"),
        (square(9, 256, 128, host=Host(portable=True)), "columns"),
        (square(9, 256, 128, host=Host("cuda")), "Conv"),
        (square(9, 2**15, 1, group=2**15), "matrix"),
        (square(9, 256, 128, group=2), "columns"),
    ],
)
def test_response(at, taken):
    assert choose(at).response == taken


@pytest.mark.parametrize(
    ("at", "taken"),
    [
        (square(9, 64, 64), "columns"),
        (square(9, 64, 63), "ConvTranspose"),
        (square(10, 64, 64), "ConvTranspose"),
        (square(49, 256, 128), "columns"),
        (square(49, 256, 127), "ConvTranspose"),
        (square(50, 256, 128), "ConvTranspose"),
        (square(49, 256, 128, dtype=DOUBLE), "ConvTranspose"),
        (square(49, 256, 128, opset=17), "ConvTranspose"),
        (square(49, 256, 128, opset=22), "columns"),
        (square(49, 256, 128, host=Host(portable=True)), "ConvTranspose"),
        (square(49, 256, 128, host=Host("cuda")), "ConvTranspose"),
        (square(49, 256, 128, group=2), "columns"),
        (shapes((4, 3, 4), (256, 128, 3, 3, 3), pads=(1,) * 6), "ConvTranspose"),
        (square(783, 16, 16), "ConvTranspose"),
        (square(784, 16, 16), "turned"),
        (square(784, 16, 15), "ConvTranspose"),
        (square(784, 16, 16, dtype=DOUBLE), "turned"),
        (square(784, 16, 16, host=Host("cuda")), "ConvTranspose"),
        (shapes((1568,), (16, 16, 2), strides=(2,)), "ConvTranspose"),
        (shapes((784,), (16, 16, 3), pads=(3, 1)), "ConvTranspose"),
        (square(16, 16, 16, kernel=1), "turned"),
        (square(9, 64, 64, kernel=1), "columns"),
        (square(10, 64, 64, kernel=1), "turned"),
        (square(9, 64, 64, kernel=1, dtype=DOUBLE), "columns"),
        (square(9, 64, 64, kernel=1, host=Host(portable=True)), "columns"),
        (shapes((8,), (16, 16, 1), strides=(2,)), "ConvTranspose"),
    ],
)
def test_image(at, taken):
    assert choose(at).image == taken


@pytest.mark.parametrize(
    ("at", "taken"),
    [
        (square(49, 256, 128), "columns"),
        (square(50, 256, 128), "rows"),
        (square(49, 256, 127), "rows"),
        (square(49, 256, 128, dtype=DOUBLE), "columns"),
        (square(49, 256, 128, group=2), "columns"),
        (square(49, 256, 128, host=Host("cuda")), "rows"),
        (square(1024, 64, 8), "shifts"),
        (square(1024, 65, 7), "rows"),
        (square(1024, 512, 128), "shifts"),
        (square(1023, 64, 32), "rows"),
        (square(256, 64, 64), "shifts"),
        (square(255, 64, 64), "rows"),
        (square(256, 64, 65), "rows"),
        (square(256, 33, 32), "rows"),
        (square(1024, 16, 64, host=Host("cuda")), "rows"),
        (shapes((2048,), (16, 16, 2), strides=(2,)), "shifts"),
        (shapes((64, 128), (16, 16, 3, 3), strides=(1, 2)), "shifts"),
        (shapes((128, 64), (16, 16, 3, 3), strides=(2, 1)), "rows"),
        (square(64, 32, 32, kernel=1), "images"),
        (square(63, 32, 32, kernel=1), "columns"),
        (square(63, 32, 32, kernel=1, host=Host("cuda")), "rows"),
        (shapes((128,), (32, 32, 1), strides=(2,)), "columns"),
        (shapes((512,), (32, 32, 1), strides=(2,)), "images"),
        (shapes((510,), (32, 32, 1), strides=(2,)), "columns"),
        (shapes((70, 70), (8, 4, 7, 7), strides=(2, 2)), "conv"),
        (shapes((70, 69), (8, 4, 7, 7), strides=(2, 2)), "conv"),
        (shapes((70, 67), (8, 4, 7, 7), strides=(2, 2)), "rows"),
        (shapes((70, 70), (8, 5, 7, 7), strides=(2, 2)), "rows"),
        (shapes((70, 70), (8, 4, 7, 6), strides=(2, 2)), "rows"),
        (shapes((100,), (2, 2, 64)), "rows"),
        (shapes((100,), (2, 2, 65)), "conv"),
        (square(9, 8, 1, group=8), "matrix"),
    ],
)
def test_weight(at, taken):
    assert choose(at).weight == taken


@pytest.mark.parametrize("unknown", ["image", "response", "outer", "inner", "window"])
def test_what_is_unknown_takes_the_operators(unknown):
    """For every shape that takes another form where it is known."""
    for known in (square(9, 256, 128), square(1024, 16, 64), square(64, 32, 32, kernel=1)):
        value = None
        if unknown == "window":
            value = dataclasses.replace(known.window, begin=None, end=None, same="SAME_UPPER")
        s = dataclasses.replace(known, **{unknown: value})
        forms = choose(s)
        assert (forms.response, forms.image) == ("Conv", "ConvTranspose")
        assert forms.weight == "rows"
    assert (
        choose(dataclasses.replace(known, window=dataclasses.replace(known.window, kernel=None))).weight
        == "conv"
    )
