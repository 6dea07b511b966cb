"""Rules of convolutions, poolings, resizing, sampling and normalizations against PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from rule_cases import Case

torch = pytest.importorskip("torch")
F = torch.nn.functional
rng = np.random.default_rng(0)


def r(*shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def case(label: str, op: str, inputs: list, attrs: dict, fn: Callable, **kw: object):
    return pytest.param(Case(op, inputs, attrs, dtype=np.float32, **kw), fn, id=label)


CASES = [
    case(
        "conv",
        "Conv",
        [r(2, 4, 9, 8), r(6, 2, 3, 3), r(6)],
        {"strides": [2, 1], "pads": [1, 2, 1, 2], "dilations": [1, 2], "group": 2, "kernel_shape": [3, 3]},
        lambda x, w, b: F.conv2d(x, w, b, (2, 1), (1, 2), (1, 2), 2),
    ),
    case(
        "conv3",
        "Conv",
        [r(1, 2, 5, 4, 5), r(3, 2, 2, 3, 2), r(3)],
        {"strides": [2, 1, 2], "pads": [1] * 6, "kernel_shape": [2, 3, 2]},
        lambda x, w, b: F.conv3d(x, w, b, (2, 1, 2), 1),
    ),
    case(
        "depthwise",
        "Conv",
        [r(2, 8, 9, 9), r(8, 1, 3, 3), r(8)],
        {"strides": [2, 2], "pads": [1] * 4, "group": 8, "kernel_shape": [3, 3]},
        lambda x, w, b: F.conv2d(x, w, b, 2, 1, 1, 8),
    ),
    case(
        "convwide",
        "Conv",
        [r(2, 32, 9, 9), r(8, 32, 3, 3), r(8)],
        {"pads": [1] * 4, "kernel_shape": [3, 3]},
        lambda x, w, b: F.conv2d(x, w, b, 1, 1),
    ),
    case(
        "convT",
        "ConvTranspose",
        [r(2, 4, 5, 5), r(4, 3, 3, 3), r(6)],
        {"strides": [2, 2], "pads": [1] * 4, "group": 2, "output_padding": [1, 1], "kernel_shape": [3, 3]},
        lambda x, w, b: F.conv_transpose2d(x, w, b, 2, 1, 1, 2),
    ),
    case(
        "maxpool",
        "MaxPool",
        [r(2, 3, 9, 9)],
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4, "ceil_mode": 1},
        lambda x: F.max_pool2d(x, 3, 2, 1, 1, True),
    ),
    case(
        "maxpool2",
        "MaxPool",
        [r(2, 3, 8, 8)],
        {"kernel_shape": [2, 2], "strides": [2, 2]},
        lambda x: F.max_pool2d(x, 2),
    ),
    case(
        "avgpool",
        "AveragePool",
        [r(2, 3, 9, 9)],
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4},
        lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    ),
    case(
        "avgpool2",
        "AveragePool",
        [r(2, 3, 9, 9)],
        {"kernel_shape": [2, 2], "strides": [2, 2]},
        lambda x: F.avg_pool2d(x, 2),
    ),
    case(
        "lppool",
        "LpPool",
        [r(2, 3, 9, 9)],
        {"kernel_shape": [3, 3], "strides": [2, 2], "p": 2},
        lambda x: F.lp_pool2d(x, 2, 3, 2),
    ),
    case(
        "bilinear",
        "Resize",
        [r(1, 2, 5, 6), None, None, np.array([1, 2, 8, 11])],
        {"mode": "linear"},
        lambda x: F.interpolate(x, (8, 11), mode="bilinear"),
        constant=[3],
    ),
    case(
        "bilinear aa",
        "Resize",
        [r(1, 2, 9, 8), None, None, np.array([1, 2, 4, 5])],
        {"mode": "linear", "antialias": 1, "exclude_outside": 1},
        lambda x: F.interpolate(x, (4, 5), mode="bilinear", antialias=True),
        constant=[3],
    ),
    case(
        "bicubic",
        "Resize",
        [r(1, 2, 5, 6), None, None, np.array([1, 2, 8, 11])],
        {"mode": "cubic"},
        lambda x: F.interpolate(x, (8, 11), mode="bicubic"),
        constant=[3],
    ),
    case(
        "nearest",
        "Resize",
        [r(1, 2, 5, 6), None, np.array([1, 1, 2, 3], np.float32)],
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        lambda x: F.interpolate(x, scale_factor=(2, 3), mode="nearest"),
        constant=[2],
    ),
    *[
        case(
            f"grid {m} {p} {a}",
            "GridSample",
            [r(2, 3, 5, 4), rng.uniform(-1.5, 1.5, size=(2, 3, 3, 2)).astype("f")],
            {"mode": {"nearest": m}.get(m, m), "padding_mode": p, "align_corners": a},
            lambda x, g, m=m, p=p, a=a: F.grid_sample(x, g, m, p, bool(a)),
        )
        for m in ("bilinear", "nearest", "bicubic")
        for p in ("zeros", "border", "reflection")
        for a in (0, 1)
    ],
    case(
        "affine",
        "AffineGrid",
        [r(2, 2, 3), np.array([2, 1, 4, 5])],
        {},
        lambda t: F.affine_grid(t, (2, 1, 4, 5), align_corners=False),
        constant=[1],
        opset=20,
    ),
    case(
        "bn",
        "BatchNormalization",
        [r(4, 3, 5), r(3), r(3), r(3), abs(r(3)) + 0.5],
        {},
        lambda x, s, b, m, v: F.batch_norm(x, m.detach(), v.detach(), s, b, False, eps=1e-5),
        wrt=[0, 1, 2],
    ),
    case(
        "bntrain",
        "BatchNormalization",
        [r(4, 3, 5), r(3), r(3), r(3), abs(r(3)) + 0.5],
        {"training_mode": 1},
        lambda x, s, b, m, v: F.batch_norm(x, m.detach().clone(), v.detach().clone(), s, b, True, eps=1e-5),
        wrt=[0, 1, 2],
        outputs=1,
    ),
    case(
        "ln",
        "LayerNormalization",
        [r(4, 3, 5), r(3, 5), r(3, 5)],
        {"axis": 1},
        lambda x, s, b: F.layer_norm(x, (3, 5), s, b),
    ),
    case(
        "in",
        "InstanceNormalization",
        [r(4, 3, 5), r(3), r(3)],
        {},
        lambda x, s, b: F.instance_norm(x, None, None, s, b),
    ),
    case(
        "gn",
        "GroupNormalization",
        [r(2, 4, 5), r(4), r(4)],
        {"num_groups": 2},
        lambda x, s, b: F.group_norm(x, 2, s, b),
        opset=21,
    ),
    case("lp", "LpNormalization", [r(2, 4)], {"p": 2}, lambda x: F.normalize(x, 2, -1)),
    case(
        "lrn", "LRN", [r(2, 6, 3, 3)], {"size": 5, "alpha": 0.2}, lambda x: F.local_response_norm(x, 5, 0.2)
    ),
]


@pytest.mark.parametrize(("case", "function"), CASES)
def test_agrees_with_torch(case: Case, function: Callable) -> None:
    feeds, names = case.feeds(), case.differentiable()
    tensors = {k: torch.tensor(v, requires_grad=v.dtype.kind == "f") for k, v in feeds.items()}
    args = [
        tensors.get(f"x{i}", None if v is None else torch.tensor(v))
        for i, v in enumerate(case.arrays())
        if v is not None and i not in case.constant
    ]
    y = function(*args)
    dy = r(*y.shape)
    y.backward(torch.tensor(dy))
    found = case.evaluate(case.gradient("dynamic", names), {**feeds, "y0_grad": dy})
    np.testing.assert_allclose(found[len(names)], y.detach().numpy(), rtol=1e-3, atol=1e-4)
    for name, gradient in zip(names, found, strict=False):
        np.testing.assert_allclose(gradient, tensors[name].grad.numpy(), rtol=1e-3, atol=2e-4, err_msg=name)
