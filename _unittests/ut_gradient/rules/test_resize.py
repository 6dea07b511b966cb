"""Rules of Resize and CenterCropPad."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from bare_gradient import differentiate
from rule_cases import Case, check_case

from onnxcustom.exceptions import GradientNotImplementedError

random = np.random.default_rng(0)


def r(*shape: int) -> np.ndarray:
    return random.normal(size=shape)


def resized(
    x: tuple,
    label: str,
    scales: list | None = None,
    sizes: list | None = None,
    roi: list | None = None,
    *,
    known: bool = True,
    opset: int = 18,
    dynamic: bool = True,
    **attributes: object,
) -> list[Case]:
    """In float32 by onnxruntime."""
    inputs = [
        r(*x),
        None if roi is None else np.array(roi),
        None if scales is None else np.array(scales, np.float64),
        None if sizes is None else np.array(sizes),
    ]
    while inputs[-1] is None:
        inputs.pop()
    rest = list(range(1, len(inputs)))
    # Scales of unknown value do not tell the rank.
    options = {"constant": rest if known else [], "wrt": [0], "opset": opset, "dynamic": dynamic and known}
    return [Case("Resize", inputs, attributes, label, dtype=np.float32, runtime="ort", **options)]


TRANSFORMATIONS = [
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
]
CASES = [
    *[
        case
        for mode in ("nearest", "linear", "cubic")
        for transformation in TRANSFORMATIONS
        for up, scales in (("up", [1, 1, 1.6, 2.3]), ("down", [1, 1, 0.6, 0.5]))
        for case in resized(
            (1, 2, 5, 4),
            f"{mode} {transformation} {up}",
            scales,
            mode=mode,
            coordinate_transformation_mode=transformation,
        )
    ],
    *[
        case
        for nearest in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
        for transformation in ("half_pixel", "asymmetric", "align_corners")
        for case in resized(
            (1, 1, 4, 3),
            f"{nearest} {transformation} whole",
            [1, 1, 2, 3],
            nearest_mode=nearest,
            coordinate_transformation_mode=transformation,
        )
    ],
    *resized(
        (2, 2, 3),
        "nearest 1-D whole",
        [1, 1, 3],
        nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    ),
    *resized((1, 1, 2, 2, 3), "nearest 3-D whole", [1, 1, 2, 1, 2]),
    *resized((2, 2, 3, 2), "nearest all axes", [2, 1.5, 1, 2]),
    *resized((2, 3), "nearest rank 2", [2, 3]),
    *resized((5,), "nearest rank 1", [1.7]),
    *resized((4, 5), "linear rank 2", [1.5, 0.7], mode="linear"),
    *resized((1, 4, 3), "linear rank 3", [1, 1.5, 2], mode="linear"),
    *resized((1, 1, 3, 4, 3), "linear rank 5", [1, 1, 1.5, 2, 0.7], mode="linear"),
    *resized((1, 4, 3, 2), "linear channels last", [1, 1.5, 2, 1], mode="linear"),
    *resized((4, 5), "cubic rank 2", [1.5, 0.7], mode="cubic"),
    *resized((1, 1, 5, 4), "cubic coefficient", [1, 1, 1.5, 2], mode="cubic", cubic_coeff_a=-0.5),
    *resized((1, 1, 5, 4), "cubic exclude_outside", [1, 1, 1.5, 0.8], mode="cubic", exclude_outside=1),
    *resized((1, 1, 6, 5), "linear antialias", [1, 1, 0.5, 0.7], mode="linear", antialias=1),
    *resized((1, 1, 6, 5), "cubic antialias", [1, 1, 0.5, 0.7], mode="cubic", antialias=1),
    *resized(
        (1, 1, 6, 5),
        "antialias exclude_outside",
        [1, 1, 0.5, 1.7],
        mode="cubic",
        antialias=1,
        exclude_outside=1,
    ),
    *[
        case
        for mode in ("nearest", "linear", "cubic")
        for known in (True, False)
        for case in (
            *resized((1, 2, 4, 5), f"{mode} sizes known={known}", None, [1, 2, 7, 3], mode=mode, known=known),
            *resized((1, 2, 4, 5), f"{mode} scales known={known}", [1, 1, 1.6, 0.7], mode=mode, known=known),
            *resized(
                (1, 2, 4, 5),
                f"{mode} axes sizes known={known}",
                None,
                [7, 3],
                mode=mode,
                known=known,
                axes=[2, 3],
                dynamic=False,
            ),
            *resized(
                (1, 2, 4, 5),
                f"{mode} axes reversed known={known}",
                [0.7, 1.6],
                mode=mode,
                known=known,
                axes=[3, 2],
                dynamic=False,
            ),
            *resized(
                (1, 2, 4, 5),
                f"{mode} crop known={known}",
                None,
                [1, 2, 7, 3],
                [0, 0, 0.2, -0.1, 1, 1, 0.9, 1.2],
                mode=mode,
                known=known,
                coordinate_transformation_mode="tf_crop_and_resize",
                extrapolation_value=2.0,
            ),
        )
    ],
    *resized(
        (1, 2, 4, 5),
        "crop axes",
        [1.5, 2.0],
        None,
        [0.2, 0.1, 0.9, 0.8],
        mode="linear",
        axes=[2, 3],
        dynamic=False,
        coordinate_transformation_mode="tf_crop_and_resize",
    ),
    *[
        case
        for policy in ("not_larger", "not_smaller")
        for mode in ("nearest", "linear", "cubic")
        for sizes in ([7, 6], [3, 9])
        for case in resized(
            (1, 2, 4, 5),
            f"{mode} {policy} {sizes}",
            None,
            sizes,
            mode=mode,
            axes=[2, 3],
            keep_aspect_ratio_policy=policy,
            dynamic=False,
        )
    ],
    *resized((1, 1, 3, 4), "same size", None, [1, 1, 3, 4], mode="linear"),
    *resized((1, 1, 3, 2), "nearest", [1, 1, 2, 2], opset=19),
    *resized((1, 1, 3, 2), "linear", [1, 1, 2, 2], opset=21, mode="linear"),
    *[
        Case(
            "CenterCropPad",
            [r(*x), np.array(shape)],
            {} if axes is None else {"axes": axes},
            f"{x} to {shape}",
            runtime=runtime,
            constant=constant,
            dynamic=axes is None or runtime == "reference",
        )
        for x, shape, axes in (
            ((5, 4), (2, 3), None),
            ((5, 4), (8, 9), None),
            ((5, 4), (4, 7), None),
            ((4, 5), (7, 4), None),
            ((2, 5, 4), (2, 7), [1, 2]),
            ((2, 5, 4), (6, 3), [-1, 1]),
            ((3, 2), (3, 2), None),
        )
        for runtime, constant in (("reference", []), ("ort", [1]))
    ],
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case) -> None:
    check_case(case)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("given", [{2: [1, 1, 1.6, 0.7]}, {3: [1, 2, 7, 3]}], ids=["scales", "sizes"])
def test_unknown_sizes_and_scales(mode: str, given: dict) -> None:
    inputs = [r(1, 2, 4, 5), None, *[None if k not in given else np.array(given[k]) for k in (2, 3)]]
    if inputs[-1] is None:
        inputs.pop()
    case = Case("Resize", inputs, {"mode": mode}, dtype=np.float32)
    (y,) = case.evaluate(case.model(), case.feeds())
    feeds = {**case.feeds(), "y0_grad": random.normal(size=y.shape).astype(np.float32)}
    static, _ = case.evaluate(case.gradient("static", ["x0"]), feeds)
    model = case.gradient("dynamic", ["x0"])
    for info in model.graph.input:  # onnxruntime wants to know how many sizes there are
        if info.name in ("x2", "x3"):
            info.type.tensor_type.shape.dim[0].dim_value = 4
    dynamic, _ = case.evaluate(model, feeds)
    np.testing.assert_allclose(dynamic, static, rtol=1e-5, atol=1e-6)


EXPORTED = """<ir_version: 9, opset_import: ["": 18]>
exported (float[N, C, H, W] x, float[M, D, I, J] like) => (float[a, b, c, d] y)
<int64[1] zero = {0}, int64[1] two = {2}, int64[1] four = {4}, float[2] ones = {1, 1}, int64 axis = {2}> {
    shape = Shape (x)
    kept = Slice (shape, zero, two)
    other = Shape (like)
    wanted = Slice (other, two, four)
    SIZES
}"""


@pytest.mark.parametrize(
    "sizes",
    [
        """sizes = Concat <axis = 0> (kept, wanted)
        y = Resize <mode = "linear"> (x, , , sizes)""",
        """before = Slice (shape, two, four)
        factors = Div (wanted, before)
        real = Cast <to = 1> (factors)
        scales = Concat <axis = 0> (ones, real)
        y = Resize <mode = "linear"> (x, , scales)""",
        """h = Gather (shape, axis)
        height = Unsqueeze (h, zero)
        width = Shape <start = 3> (like)
        sizes = Concat <axis = 0> (kept, height, width)
        y = Resize <mode = "linear"> (x, , , sizes)""",
    ],
    ids=["sizes", "scales", "one axis"],
)
def test_axes_that_stay_are_left_alone(sizes: str) -> None:
    model = onnx.parser.parse_model(EXPORTED.replace("SIZES", sizes))
    gradient = ir.to_proto(differentiate(ir.from_proto(model), ["x"], ["y"]))
    resized = [n for n in gradient.graph.node if n.op_type == "EyeLike"]
    assert len(resized) == (1 if "height" in sizes else 2)
    case = Case("Resize", [], dtype=np.float32, runtime="ort")
    x, like = r(2, 3, 4, 5).astype(np.float32), np.zeros((1, 1, 8, 15), np.float32)
    (y,) = case.evaluate(model, {"x": x, "like": like})
    dy = r(*y.shape).astype(np.float32)
    dx, _ = case.evaluate(gradient, {"x": x, "like": like, "y_grad": dy})
    assert dx.shape == x.shape
    np.testing.assert_allclose(np.sum(x * dx), np.sum(y * dy), rtol=1e-4)  # linear in x


def test_unknown_rank_is_refused() -> None:
    case = Case("Resize", [r(1, 1, 3, 3), None, np.array([2.0, 2.0])], {"axes": [2, 3]}, dtype=np.float32)
    with pytest.raises(GradientNotImplementedError, match="rank"):
        case.gradient("unranked", ["x0"])


def test_roi_is_refused() -> None:
    case = Case(
        "Resize",
        [r(1, 1, 3, 3), np.array([0.0, 0, 0.1, 0.1, 1, 1, 0.9, 0.9]), None, np.array([1, 1, 4, 4])],
        {"coordinate_transformation_mode": "tf_crop_and_resize"},
        dtype=np.float32,
    )
    with pytest.raises(GradientNotImplementedError, match="roi"):
        case.gradient("static", ["x1"])
