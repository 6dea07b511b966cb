"""Convolutions of groups of channels as products of matrices, against the formula written out in NumPy."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from onnxcustom import TrainingStep, gradient_graph
from onnxcustom.gradient.host import Host
from onnxcustom.gradient.rules.convolution.forms import Shapes, choose
from onnxcustom.gradient.rules.windows import Window
from onnxcustom.optim import SGD


@dataclasses.dataclass(frozen=True)
class Conv:
    """A convolution: sizes of the image, kernel, groups, channels of the image and of the response in each."""

    image: tuple[int, ...]
    kernel: tuple[int, ...]
    forms: str
    group: int = 2
    inner: int = 1
    outer: int = 1
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    auto_pad: str = "NOTSET"
    bias: bool = False
    batch: int = 3
    op: str = "Conv"

    def __str__(self) -> str:
        rest = [f"{k}{v}" for k, v in vars(self).items() if v and k not in ("image", "kernel", "forms")]
        return " ".join([str(self.image), str(self.kernel), self.forms, *rest]).replace("NOTSET", "")

    @property
    def geometry(self) -> tuple[tuple[int, ...], tuple[int, ...], list[int], tuple[int, ...]]:
        """Strides, dilations, padding before, and sizes of the response."""
        n = len(self.image)
        s, d = self.strides or (1,) * n, self.dilations or (1,) * n
        pads = self.pads or (0,) * 2 * n
        begin, end = list(pads[:n]), list(pads[n:])
        extent = [(k - 1) * e + 1 for k, e in zip(self.kernel, d, strict=True)]
        if self.auto_pad.startswith("SAME"):
            total = [
                max((-(-i // a) - 1) * a + e - i, 0) for i, a, e in zip(self.image, s, extent, strict=True)
            ]
            small, large = [t // 2 for t in total], [t - t // 2 for t in total]
            begin, end = (small, large) if self.auto_pad == "SAME_UPPER" else (large, small)
        sides = zip(self.image, begin, end, extent, s, strict=True)
        return s, d, begin, tuple((i + b + f - e) // a + 1 for i, b, f, e, a in sides)

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Image, weight, bias and the response's gradient."""
        rng = np.random.default_rng(0)
        channels = self.group * self.outer
        shapes = (
            (self.batch, self.group * self.inner, *self.image),
            (channels, self.inner, *self.kernel),
            (channels,),
            (self.batch, channels, *self.geometry[3]),
        )
        return tuple(rng.normal(size=shape) for shape in shapes)  # type: ignore[return-value]

    def feeds(self) -> dict[str, np.ndarray]:
        """The same by name."""
        return dict(zip(("x", "w", "b", "y_grad"), self.arrays(), strict=True))

    def model(self, dtype: type = np.float32, sizes: tuple | None = None, opset: int = 18) -> onnx.ModelProto:
        """The node as a model with a batch of any size."""
        x, w, b, _ = self.arrays()
        given = {"strides": self.strides, "dilations": self.dilations, "pads": self.pads}
        given = {name: list(v) for name, v in given.items() if v}
        given |= {"auto_pad": self.auto_pad} if self.auto_pad != "NOTSET" else {}
        bias = ["b"] if self.bias else []
        node = onnx.helper.make_node("Conv", ["x", "w", *bias], ["y"], group=self.group, **given)
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        x_info = onnx.helper.make_tensor_value_info("x", kind, ["N", *(sizes or x.shape[1:])])
        y_info = onnx.helper.make_tensor_value_info("y", kind, [None] * x.ndim)
        weights = [onnx.numpy_helper.from_array(v.astype(dtype), n) for n, v in (("w", w), ("b", b))]
        graph = onnx.helper.make_graph([node], "g", [x_info], [y_info], weights[: 1 + self.bias])
        opsets = [onnx.helper.make_opsetid("", opset)]
        return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)


def formula(c: Conv, x: np.ndarray, w: np.ndarray, b: np.ndarray, dy: np.ndarray) -> list[np.ndarray]:
    """dx, dw, db and y: sums over the kernel's places, each of which meets a strided part of the image."""
    s, d, begin, sizes = c.geometry
    ends = [max((o - 1) * a + (k - 1) * e + 1, p + i) for o, a, k, e, p, i in
            zip(sizes, s, c.kernel, d, begin, c.image, strict=True)]  # fmt: skip
    wide = np.zeros((*x.shape[:2], *ends))
    inside = (slice(None), slice(None), *(slice(p, p + i) for p, i in zip(begin, c.image, strict=True)))
    wide[inside] = x
    n, g = len(x), c.group
    dwide, y, dw = np.zeros_like(wide), np.zeros_like(dy), np.zeros_like(w)
    for place in itertools.product(*map(range, c.kernel)):
        starts = [j * e for j, e in zip(place, d, strict=True)]
        met = tuple(slice(t, t + (o - 1) * a + 1, a) for t, o, a in zip(starts, sizes, s, strict=True))
        part = wide[(..., *met)].reshape(n, g, c.inner, -1)
        at = (slice(None), slice(None), *place)
        local, seeds = w[at].reshape(g, c.outer, c.inner), dy.reshape(n, g, c.outer, -1)
        y += np.einsum("gmi,ngip->ngmp", local, part).reshape(y.shape)
        dw[at] = np.einsum("ngmp,ngip->gmi", seeds, part).reshape(w.shape[:2])
        back = np.einsum("gmi,ngmp->ngip", local, seeds)
        dwide[(..., *met)] += back.reshape(n, g * c.inner, *sizes)
    axes = (0, *range(2, dy.ndim))
    return [dwide[inside], dw, dy.sum(axes), y + c.bias * b.reshape(1, -1, *[1] * len(sizes))]


MATRIX, CONV = "matrix matrix matrix", "Conv turned slice bands"
CASES = [
    Conv((4, 4), (3, 3), MATRIX, pads=(1, 1, 1, 1)),
    Conv((4, 4), (5, 5), MATRIX, pads=(2, 2, 2, 2), bias=True, outer=2),
    Conv((1, 1), (3, 3), MATRIX, pads=(1, 1, 1, 1), batch=1),
    Conv((5, 6), (2, 3), MATRIX, strides=(2, 1), dilations=(1, 2), pads=(1, 0, 0, 2)),
    Conv((5, 4), (3, 2), MATRIX, group=3, outer=3, strides=(2, 2), pads=(2, 1, 0, 0), bias=True),
    Conv((5, 4), (3, 2), "Conv ConvTranspose rows", group=3, inner=2, strides=(2, 2), pads=(2, 1, 0, 0)),
    Conv((4, 4), (2, 2), MATRIX, pads=(2, 0, 3, 1)),  # windows that hold no pixel
    Conv((6, 5), (2, 3), MATRIX, auto_pad="SAME_LOWER", strides=(2, 2)),
    Conv((5, 4), (3, 2), MATRIX, auto_pad="SAME_UPPER", outer=2),
    Conv((9,), (4,), MATRIX, pads=(3, 0), bias=True),
    Conv((3, 4, 3), (2, 3, 2), MATRIX, strides=(1, 2, 1), pads=(1, 0, 0, 0, 1, 1)),
    Conv((40,), (4,), "Conv turned slice sums", pads=(1, 2)),
    Conv((90,), (7,), "Conv ConvTranspose bands", strides=(2,), pads=(0, 1), outer=2),
    Conv((8, 9), (3, 3), "bands bands bands", pads=(1, 1, 1, 1), bias=True, batch=1),
    Conv((12, 7), (5, 3), "bands bands bands", pads=(1, 2, 2, 1), outer=2, dilations=(2, 1)),
    Conv((13, 16), (5, 5), "bands ConvTranspose bands", strides=(2, 2), auto_pad="SAME_UPPER", bias=True),
    Conv((7, 17), (5, 5), CONV, pads=(2, 2, 2, 2)),
    Conv((4, 32), (3, 3), CONV, pads=(1, 1, 1, 1)),
    Conv((4, 33), (3, 3), CONV, pads=(1, 1, 1, 1)),  # the row is cut into blocks
    Conv((6, 70), (3, 3), "Conv ConvTranspose bands", strides=(2, 2), pads=(1, 0, 1, 1), outer=2, batch=1),
    Conv((3, 40), (3, 3), "Conv ConvTranspose bands", strides=(1, 1), dilations=(1, 3), pads=(0, 7, 2, 0)),
    Conv((3, 80), (2, 4), "Conv ConvTranspose bands", strides=(1, 2), pads=(0, 3, 0, 2)),
    Conv((4, 5, 6), (2, 3, 3), "bands bands bands", pads=(1, 1, 1, 0, 1, 1), dilations=(2, 1, 1), outer=2),
    Conv((5, 6, 25), (2, 2, 3), "Conv ConvTranspose bands", strides=(2, 1, 1)),
    Conv((12, 12), (7, 2), "Conv turned slice sums", pads=(3, 0, 3, 1)),
]


def gradient(c: Conv) -> bytes:
    return gradient_graph(c.model(), inputs=["x"], engine="onnx").SerializeToString()


SEVERAL = [c for c in CASES if c.bias and c.batch == 3][:4] + [c for c in CASES if c.image == (4, 33)]


def run(graph: bytes, values: dict[str, np.ndarray], dtype: type) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return session.run(None, {i.name: values[i.name].astype(dtype) for i in session.get_inputs()})


def shapes_of(c: Conv, **given: object) -> Shapes:
    """What is known of a convolution, as the rule finds it."""
    s, d, begin, sizes = c.geometry
    end = [(o - 1) * a + (k - 1) * e + 1 - i - p for o, a, k, e, i, p in
           zip(sizes, s, c.kernel, d, c.image, begin, strict=True)]  # fmt: skip
    end = list(c.pads[len(c.image) :]) or [max(e, 0) for e in end]
    window = Window(c.kernel, s, d, tuple(begin), tuple(end))
    known = {"image": c.image, "response": sizes, "dtype": ir.DataType.FLOAT, "opset": 18, **given}
    return Shapes(window, c.group, c.group * c.outer, c.inner, **known)  # type: ignore[arg-type]


def forms_of(shapes: Shapes) -> str:
    found = choose(shapes)
    return f"{found.response} {found.image} {found.weight}"


@pytest.mark.parametrize("c", CASES, ids=str)
def test_formula(c: Conv) -> None:
    assert forms_of(shapes_of(c)) == c.forms
    expected = formula(c, *c.arrays())
    expected = expected if c.bias else [expected[0], expected[1], expected[3]]
    for found, wanted in zip(run(gradient(c), c.feeds(), np.float32), expected, strict=True):
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def _square(image: int, kernel: int, **given: int) -> Conv:
    half = kernel // 2
    return Conv((image, image), (kernel, kernel), "", pads=(half,) * 4, **given)


def forms_at(*given: int, **more: int) -> str:
    return forms_of(shapes_of(_square(*given, **more)))


def test_boundaries() -> None:
    """Each bound of the table from both sides."""
    assert forms_at(7, 3) == MATRIX  # 2401 of 2440 pairs
    assert forms_at(8, 3) == "bands bands bands"
    assert forms_at(8, 5) == MATRIX  # 4096 of 5000
    assert forms_at(9, 7) == "bands bands bands"
    assert forms_at(7, 5, group=1746) == MATRIX  # 16 MB
    assert forms_at(7, 5, group=1747) == "bands bands bands"
    assert forms_at(4, 65) == "Conv turned slice conv"  # the constant is larger than 4 MB
    assert forms_at(10, 3) == "bands bands bands"
    assert forms_at(11, 3) == CONV
    assert forms_at(16, 5) == "bands bands bands"
    assert forms_at(17, 5) == CONV
    wide = Conv((20, 20), (8, 8), "")
    assert forms_of(shapes_of(wide)) == "bands bands bands"  # 64 places
    wide = dataclasses.replace(wide, kernel=(5, 13))
    assert forms_of(shapes_of(wide)) == "Conv turned slice conv"
    assert forms_at(4, 1) == "Conv turned slice sums"
    long = Conv((400,), (7,), "")
    assert forms_of(shapes_of(long)) == CONV
    assert forms_of(shapes_of(dataclasses.replace(long, kernel=(6,)))) == "Conv turned slice sums"
    flat = Conv((40, 40), (4, 3), "")
    assert forms_of(shapes_of(flat)) == CONV
    assert forms_of(shapes_of(dataclasses.replace(flat, kernel=(4, 2)))) == "Conv turned slice sums"


@pytest.mark.parametrize(
    "given",
    [
        {"dtype": ir.DataType.FLOAT16},
        {"dtype": ir.DataType.DOUBLE},
        {"dtype": None},
        {"host": Host("cuda")},
        {"image": None, "response": None},
    ],
    ids=str,
)
def test_as_before(given: dict) -> None:
    """What is not known, not float32 or not on a CPU takes convolutions and sums."""
    assert forms_of(shapes_of(_square(4, 3), **given)) == "Conv turned slice sums"
    assert forms_of(shapes_of(_square(8, 3), **given)) == "Conv turned slice sums"


def test_half_and_unknown_sizes_run() -> None:
    c = Conv((4, 4), (3, 3), MATRIX, pads=(1, 1, 1, 1))
    expected = formula(c, *c.arrays())[:2]
    unknown = gradient_graph(c.model(sizes=(2, "H", "W")), inputs=["x"], engine="onnx")
    half = gradient_graph(c.model(np.float16), inputs=["x"], engine="onnx")
    for graph, dtype, tolerance in ((unknown, np.float32, 1e-5), (half, np.float16, 1e-2)):
        assert "Conv" in [node.op_type for node in graph.graph.node]
        for found, wanted in zip(run(graph.SerializeToString(), c.feeds(), dtype)[:2], expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


@pytest.mark.parametrize("c", SEVERAL, ids=str)
def test_second_order(c: Conv) -> None:
    """The gradient is linear in image, weight and dy: its own gradients are convolutions again."""
    x, w, b, dy = c.arrays()
    rng = np.random.default_rng(1)
    u, v = rng.normal(size=x.shape), rng.normal(size=w.shape)
    model = c.model()
    first = gradient_graph(model, wrt=["w"], inputs=["x"], engine="onnx")
    second = gradient_graph(
        first, wrt=[], inputs=["x", "w", "y_grad"], outputs=["x_grad", "w_grad"], engine="onnx"
    )
    found = run(second.SerializeToString(), {**c.feeds(), "x_grad_grad": u, "w_grad_grad": v}, np.float32)
    plain = dataclasses.replace(c, bias=False)
    along_u, along_v = formula(plain, u, w, b, dy), formula(plain, x, v, b, dy)
    expected = [along_v[0], along_u[1], along_u[3] + along_v[3]]
    for value, wanted in zip(found, expected, strict=False):  # the outputs of the graph follow
        np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("batch", ["N", 3], ids=str)
@pytest.mark.parametrize("c", SEVERAL, ids=str)
def test_ten_steps(c: Conv, batch: str | int) -> None:
    """Ten steps of gradient descent on half the squared error; the trained model keeps its Conv."""
    x, w, b, target = c.arrays()
    model = c.model()
    if isinstance(batch, int):
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    step = TrainingStep(model, loss="square_error", optimizer=SGD(0.02), engine="onnx")
    for _ in range(10):
        error = formula(c, x, w, b, np.zeros_like(target))[3] - target
        loss = step.run(x.astype(np.float32), target.astype(np.float32))
        np.testing.assert_allclose(loss, 0.5 * np.sum(error**2) / len(x), rtol=1e-4)
        _, dw, db, _ = formula(c, x, w, b, error / len(x))
        w, b = w - 0.02 * dw, b - 0.02 * db
    trained = step.trained_model()
    assert [node.op_type for node in trained.graph.node] == ["Conv"]
    found = onnx.numpy_helper.to_array(trained.graph.initializer[0])
    np.testing.assert_allclose(found, w, rtol=0, atol=2e-4 * np.abs(w).max())
