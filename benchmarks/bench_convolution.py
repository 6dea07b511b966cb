"""Forms of convolutions and of their gradients: which operators are fastest for which shapes.

Every form that fits a layer is emitted alone, compared with the plain one, and run in turns with it; the
table shows how many times as fast as the plain one each is, by the least processor time of one thread. The
one that the library takes is in brackets.

    python benchmarks/bench_convolution.py
    python benchmarks/bench_convolution.py --only resnet --product weight
    python benchmarks/bench_convolution.py --layer 8,64,16,16 64,3,1,1 --seconds 2
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from onnxcustom.gradient import GradientBuilder
from onnxcustom.gradient.host import HERE
from onnxcustom.gradient.rules.convolution.forms import IMAGE, RESPONSE, WEIGHT, Form, Shapes, choose
from onnxcustom.gradient.rules.convolution.images import IMAGES
from onnxcustom.gradient.rules.convolution.responses import RESPONSES
from onnxcustom.gradient.rules.convolution.weights import WEIGHTS
from onnxcustom.gradient.rules.windows import Window


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution of images [batch, channels, *sizes]."""

    name: str
    image: tuple[int, ...]
    outer: int
    kernel: int
    stride: int = 1
    pad: int | None = None
    group: int = 1

    def shapes(self) -> Shapes:
        """What the library knows of it."""
        n = len(self.image) - 2
        pad = (self.kernel // 2 if self.pad is None else self.pad,) * n
        window = Window((self.kernel,) * n, (self.stride,) * n, (1,) * n, pad, pad)
        sizes = self.image[2:]
        reached = tuple((size + 2 * pad[0] - self.kernel) // self.stride + 1 for size in sizes)
        inner = self.image[1] // self.group
        return Shapes(window, self.group, self.outer, inner, sizes, reached, ir.DataType.FLOAT, 18, HERE)


def resnet(size: int, batch: int) -> list[Layer]:
    name, s = f"resnet18-{size}", size // 4
    return [
        Layer(f"{name} first", (batch, 3, size, size), 64, 7, 2),
        Layer(f"{name} 1", (batch, 64, s, s), 64, 3),
        Layer(f"{name} 2 down", (batch, 64, s, s), 128, 3, 2),
        Layer(f"{name} 2 1x1", (batch, 64, s, s), 128, 1, 2),
        Layer(f"{name} 2", (batch, 128, s // 2, s // 2), 128, 3),
        Layer(f"{name} 3 down", (batch, 128, s // 2, s // 2), 256, 3, 2),
        Layer(f"{name} 3 1x1", (batch, 128, s // 2, s // 2), 256, 1, 2),
        Layer(f"{name} 3", (batch, 256, s // 4, s // 4), 256, 3),
        Layer(f"{name} 4 down", (batch, 256, s // 4, s // 4), 512, 3, 2),
        Layer(f"{name} 4 1x1", (batch, 256, s // 4, s // 4), 512, 1, 2),
        Layer(f"{name} 4", (batch, 512, s // 8, s // 8), 512, 3),
    ]


def unet(size: int, batch: int) -> list[Layer]:
    return [
        Layer(f"unet-{size} 1a", (batch, 3, size, size), 16, 3),
        Layer(f"unet-{size} 1b", (batch, 16, size, size), 16, 3),
        Layer(f"unet-{size} 2", (batch, 32, size // 2, size // 2), 32, 3),
        Layer(f"unet-{size} 3", (batch, 64, size // 4, size // 4), 64, 3),
        Layer(f"unet-{size} 4", (batch, 128, size // 8, size // 8), 128, 3),
        Layer(f"unet-{size} up", (batch, 64, size // 2, size // 2), 32, 3),
        Layer(f"unet-{size} wide", (batch, 64, size, size), 64, 3),
        Layer(f"unet-{size} 1x1", (batch, 16, size, size), 4, 1),
    ]


def mobilenet(size: int, batch: int) -> list[Layer]:
    found = [
        (2, 16, 16),
        (4, 24, 72),
        (8, 40, 120),
        (8, 120, 40),
        (16, 240, 80),
        (16, 96, 576),
        (32, 96, 576),
        (32, 576, 96),
    ]
    return [
        Layer(f"mobilenet-{size} {i}>{o} /{at}", (batch, i, size // at, size // at), o, 1)
        for at, i, o in found
    ]


def depthwise(batch: int) -> list[Layer]:
    """Channels each on their own: those of MobileNetV3, EfficientNet and ConvNeXt, and groups."""
    found = [
        (1152, 2, 5, 1), (672, 4, 5, 2), (480, 4, 3, 1), (240, 4, 5, 1), (96, 8, 5, 2), (576, 7, 5, 1),
        (1152, 7, 3, 1), (88, 8, 3, 1), (240, 8, 5, 1), (288, 14, 5, 2), (384, 8, 7, 1), (96, 16, 7, 1),
        (72, 16, 3, 2), (144, 16, 3, 1), (480, 14, 3, 1), (240, 14, 5, 1), (96, 28, 5, 2), (240, 28, 5, 1),
        (88, 28, 3, 1), (240, 28, 3, 2), (96, 32, 3, 2), (72, 56, 3, 2), (144, 56, 3, 1), (16, 112, 3, 2),
    ]  # fmt: skip
    layers = [Layer(f"depthwise {a}x{a}", (batch, c, a, a), c, k, s, None, c) for c, a, k, s in found]
    return [
        *layers,
        Layer("depthwise 1-D", (batch, 128, 40), 128, 4, 1, None, 128),
        Layer("depthwise 1-D long", (batch, 128, 400), 128, 31, 1, None, 128),
        Layer("depthwise 1-D longer", (batch, 64, 2000), 64, 4, 1, 0, 64),
        Layer("depthwise 3-D", (batch, 32, 4, 8, 8), 32, 3, 1, None, 32),
        Layer("depthwise 3-D large", (batch, 16, 8, 28, 28), 16, 3, 1, None, 16),
        Layer("depthwise twice 4x4", (batch, 128, 4, 4), 256, 3, 1, None, 128),
        Layer("depthwise twice 8x8", (batch, 64, 8, 8), 128, 3, 1, None, 64),
        Layer("depthwise twice 28x28", (batch, 32, 28, 28), 64, 3, 1, None, 32),
        Layer("groups 32x4 4x4", (batch, 128, 4, 4), 128, 3, 1, None, 32),
        Layer("groups 32x8 4x4", (batch, 256, 4, 4), 256, 3, 1, None, 32),
        Layer("groups 32x16 4x4", (batch, 512, 4, 4), 512, 3, 1, None, 32),
        Layer("groups 32x32 2x2", (batch, 1024, 2, 2), 1024, 3, 1, None, 32),
        Layer("groups 32x4 7x7", (batch, 128, 7, 7), 128, 3, 1, None, 32),
        Layer("groups 4x3 7x7", (batch, 12, 7, 7), 12, 3, 1, None, 4),
    ]


def other() -> list[Layer]:
    return [
        Layer("1-D", (8, 64, 128), 64, 3),
        Layer("1-D short", (8, 256, 16), 256, 3),
        Layer("3-D", (4, 16, 8, 8, 8), 32, 3),
        Layer("3-D small", (4, 64, 4, 4, 4), 64, 3),
        Layer("digits 3x3", (32, 1, 8, 8), 8, 3),
        Layer("mnist 5x5", (32, 1, 28, 28), 16, 5),
        Layer("mnist 5x5 b", (32, 16, 12, 12), 32, 5, 1, 0),
    ]


LAYERS = [
    *resnet(64, 8),
    *resnet(224, 4),
    *unet(64, 4),
    *mobilenet(64, 8),
    *mobilenet(224, 4),
    *depthwise(8),
    *other(),
]
#: By product: its table, what emits it, what it reads, and the form that is the measure of the others, unless
#: channels are each on their own.
PRODUCTS: dict[str, tuple[tuple[Form, ...], dict[str, Callable], str, str]] = {
    "response": (RESPONSE, RESPONSES, "xw", "Conv"),
    "image": (IMAGE, IMAGES, "yw", "ConvTranspose"),
    "weight": (WEIGHT, WEIGHTS, "xy", "rows"),
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], help="layers whose names hold one of these")
    parser.add_argument("--product", nargs="*", choices=PRODUCTS, default=list(PRODUCTS))
    parser.add_argument("--forms", nargs="*", help="forms to measure [default: all that fit]")
    parser.add_argument(
        "--layer",
        nargs=2,
        metavar=("IMAGE", "WEIGHT"),
        help="8,64,16,16 64,3,1,1: channels, kernel, stride, groups",
    )
    parser.add_argument(
        "--seconds", type=float, default=0.5, help="for each product of a layer [default: %(default)s]"
    )
    return parser.parse_args()


def session(shapes: Shapes, product: str, form: str, image: tuple[int, ...]) -> onnxruntime.InferenceSession:
    """A graph of one product in one form."""
    _, emit, reads, _ = PRODUCTS[product]
    op = GradientBuilder(shapes.opset)
    x = op.input("x", ir.DataType.FLOAT, ["N", *image[1:]])
    y = op.input("y", ir.DataType.FLOAT, ["N", shapes.outer, *shapes.response])
    w = op.input("w", ir.DataType.FLOAT, [shapes.outer, shapes.inner, *shapes.window.kernel])
    given = {"x": x, "y": y, "w": w}
    last = {"response": (None,), "image": (x,), "weight": (w,)}[product]
    made = emit[form](op, shapes, *(given[name] for name in reads), *last)
    made.value.name = "made"
    graph = ir.Graph(
        [given[name].value for name in reads], [made.value], nodes=op.nodes, initializers=op.initializers,
        opset_imports={"": shapes.opset}, name="product",
    )  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    proto = ir.to_proto(ir.Model(graph, ir_version=8))
    onnx.checker.check_model(proto)
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def least(runs: list[Callable[[], object]], seconds: float) -> list[float]:
    """The least processor time of each, run in turns."""
    best = [float("inf")] * len(runs)
    until, rounds = time.process_time() + seconds, 0
    while time.process_time() < until or rounds < 5:
        for i, run in enumerate(runs):
            begin = time.process_time_ns()
            run()
            best[i] = min(best[i], (time.process_time_ns() - begin) / 1e6)
        rounds += 1
    return best


def measure(layer: Layer, product: str, arguments: argparse.Namespace) -> str:
    """One row of the table."""
    shapes = layer.shapes()
    table, _, reads, plain = PRODUCTS[product]
    if product == "weight" and shapes.depthwise:
        plain = "sums"
    elif product == "image" and shapes.depthwise and shapes.unit_strides and shapes.within:
        plain = "turned slice"
    forms = [
        f.name
        for f in table
        if f.fits(shapes) and f.name in (arguments.forms or [f.name]) and f.name != plain
    ]
    forms = [plain, *forms]
    rng = np.random.default_rng(0)
    sizes = {
        "x": layer.image,
        "y": (layer.image[0], layer.outer, *shapes.response),
        "w": (layer.outer, shapes.inner, *shapes.window.kernel),
    }
    feeds = {name: rng.standard_normal(sizes[name]).astype(np.float32) for name in reads}
    sessions = [session(shapes, product, form, layer.image) for form in forms]
    results = [s.run(None, feeds)[0] for s in sessions]
    for form, result in zip(forms, results, strict=True):
        scale = np.abs(results[0]).max()
        np.testing.assert_allclose(
            result, results[0], atol=2e-5 * scale, rtol=1e-3, err_msg=f"{layer} {form}"
        )
    times = least([lambda s=s: s.run(None, feeds) for s in sessions], arguments.seconds)
    chosen = getattr(choose(shapes), product)
    cells = []
    for form, t in sorted(zip(forms, times, strict=True), key=lambda pair: pair[1]):
        text = f"{form} {times[0] / t:.2f}"
        cells.append(f"[{text}]" if form == chosen else text)
    sizes = f"P={int(shapes.positions)} k={int(shapes.kernel)} {shapes.inner}>{shapes.outer}"
    return f"{layer.name:24s} {sizes:22s} {product:8s} {times[0]:9.3f} ms  " + "  ".join(cells)


def main() -> None:
    arguments = parse_arguments()
    print(f"onnxruntime {onnxruntime.__version__}; times of the plain form, gains over it")
    layers = [a for a in LAYERS if not arguments.only or any(word in a.name for word in arguments.only)]
    if arguments.layer:
        image, rest = (tuple(map(int, text.split(","))) for text in arguments.layer)
        outer, kernel, stride, group = (*rest, 1, 1)[:4]
        layers = [Layer("given", image, outer, kernel, stride, None, group)]
    for layer in layers:
        for product in arguments.product:
            print(measure(layer, product, arguments), flush=True)


if __name__ == "__main__":
    main()
