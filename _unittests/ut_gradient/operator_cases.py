"""Case table: for every operator, models of one node whose gradient is smooth at the point given.

Engines are tested on it operator by operator; nothing here depends on an engine.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

FLOATS = (np.float32, np.float64)


@dataclass(frozen=True)
class Case:
    """One node.

    `feeds` are its operands: arrays of float64 are floating-point inputs (cast to the dtype under
    test), other arrays are initializers, None is an operand left out. `diff` lists the operands to
    differentiate; `outputs` is the number of outputs, `since` and `until` the opsets it can be written in.
    `read` lists the outputs that the model hands out, the others being `named` or not; `same` holds two
    operands that are one value.
    """

    op: str
    feeds: tuple[Any, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    diff: tuple[int, ...] = (0,)
    outputs: int = 1
    since: int = 7
    until: int = 99
    name: str = ""
    constant: tuple[int, ...] = ()  # floating-point operands that are initializers
    read: tuple[int, ...] | None = None
    named: bool = True
    same: tuple[int, int] | None = None

    @property
    def id(self) -> str:
        """Name of the test."""
        text = ",".join(f"{k}={v}" for k, v in self.attrs.items())
        text = f"{self.op}-{self.name or text or 'default'}".replace(" ", "")
        text += "" if self.read is None else f"-read{self.read}{'' if self.named else 'nameless'}"
        return text + ("" if self.same is None else f"-same{self.same}")

    def opsets(self, oldest: int = 7, newest: int = 21) -> Iterator[int]:
        """Opsets at which the definition changed, within the bounds of the case, and the newest."""
        seen = set()
        newest = min(self.until, newest)
        for opset in range(max(self.since, oldest), newest + 1):
            try:
                version = onnx.defs.get_schema(self.op, opset).since_version
            except onnx.defs.SchemaError:
                continue
            if version not in seen or opset == newest:
                seen.add(version)
                yield opset

    def model(self, opset: int, dtype: Any = np.float64, shapes: str = "static") -> onnx.ModelProto:
        """The model; `shapes` is 'static', 'dynamic' (symbolic dimensions) or 'unknown' (ranks too)."""
        inputs, initializers, names = [], [], []
        for i, feed in enumerate(self.feeds):
            if feed is None:
                names.append("")
                continue
            if self.same is not None and i == self.same[1]:
                names.append(f"x{self.same[0]}")
                continue
            names.append(f"x{i}")
            array = self.array(i, dtype)
            if i in self.constant or feed.dtype != np.float64:
                initializers.append(numpy_helper.from_array(array, f"x{i}"))
                continue
            inputs.append(_info(f"x{i}", array, shapes))
        while names and not names[-1]:
            names.pop()
        read = range(self.outputs) if self.read is None else self.read
        outputs = [f"y{k}" if self.named or k in read else "" for k in range(self.outputs)]
        node = helper.make_node(self.op, names, outputs, name="node", **self.attrs)
        types = self._output_types(dtype)
        infos = [helper.make_tensor_value_info(f"y{k}", types[k], None) for k in read]
        graph = helper.make_graph([node], "case", inputs, infos, initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
        self._declare(model, opset, dtype, shapes)
        return model

    def _declare(self, model: onnx.ModelProto, opset: int, dtype: Any, shapes: str) -> None:
        """Declare the shapes of the outputs; with 'unknown' hide those of the operands from everybody."""
        if shapes == "static":
            outputs = onnx.shape_inference.infer_shapes(model).graph.output
            for out, better in zip(model.graph.output, outputs, strict=False):
                out.CopyFrom(better)
            return
        for out, known in zip(model.graph.output, self.model(opset, dtype).graph.output, strict=False):
            shape = out.type.tensor_type.shape
            shape.SetInParent()
            for k in range(len(known.type.tensor_type.shape.dim)):
                shape.dim.add().dim_param = f"{out.name}_{k}"
        if shapes == "unknown":
            node = model.graph.node.pop()
            for info in list(model.graph.input):
                name = info.name
                model.graph.input.append(
                    helper.make_tensor_value_info(f"{name}_shape", onnx.TensorProto.INT64, [f"{name}_rank"])
                )
                model.graph.node.add().CopyFrom(
                    helper.make_node(
                        "Reshape", [name, f"{name}_shape"], [f"{name}_in"], name=f"reshape_{name}"
                    )
                )
                for k, read in enumerate(node.input):
                    if read == name:
                        node.input[k] = f"{name}_in"
            model.graph.node.add().CopyFrom(node)

    def _output_types(self, dtype: Any) -> list[int]:
        to = self.attrs.get("to", helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
        types = [to] * self.outputs
        if self.outputs == 2 and self.op in ("TopK", "MaxPool"):
            types[1] = onnx.TensorProto.INT64
        if self.outputs == 2 and self.op == "Dropout":
            types[1] = onnx.TensorProto.BOOL
        if self.op == "LayerNormalization":
            types[1:] = [onnx.TensorProto.FLOAT] * (self.outputs - 1)
        return types

    def array(self, i: int, dtype: Any) -> np.ndarray:
        """Operand i in the dtype under test."""
        feed = self.feeds[i]
        return feed.astype(dtype) if feed.dtype == np.float64 else feed

    def inputs(self, dtype: Any = np.float64, shapes: str = "static") -> dict[str, np.ndarray]:
        """Feeds of the model."""
        feeds = {
            f"x{i}": self.array(i, dtype)
            for i, f in enumerate(self.feeds)
            if f is not None and f.dtype == np.float64 and i not in self.constant
        }
        if self.same is not None:
            del feeds[f"x{self.same[1]}"]
        if shapes == "unknown":
            feeds.update({f"{k}_shape": np.array(v.shape, np.int64) for k, v in list(feeds.items())})
        return feeds


def variants(case: Case) -> Iterator[Case]:
    """The case with some outputs that nobody reads, and with two operands that are one value."""
    numbers = range(case.outputs)
    for count in range(1, case.outputs):
        for read in itertools.combinations(numbers, count):
            if read == (1,) and case.op in ("Dropout", "MaxPool", "TopK"):  # no float
                continue
            yield replace(case, read=read)
            # onnxruntime itself ends the process of a Split without a name for a part.
            if case.op not in ("Split", "TopK") and 0 in read:
                yield replace(case, read=read, named=False)
    free = [i for i in range(len(case.feeds)) if f"x{i}" in case.inputs()]
    for i, j in itertools.combinations(free, 2):
        if case.feeds[i].shape == case.feeds[j].shape:
            diff = tuple(dict.fromkeys(i if k == j else k for k in case.diff))
            feeds = list(case.feeds)
            feeds[i] = max(feeds[i], feeds[j], key=np.min)  # where one must be positive, both are
            yield replace(case, same=(i, j), diff=diff, feeds=tuple(feeds))


def _info(name: str, array: np.ndarray, shapes: str) -> onnx.ValueInfoProto:
    dims: list[Any] = list(array.shape)
    if shapes != "static":
        dims = [f"{name}_{k}" for k in range(array.ndim)]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), dims)


def _x(*shape: int, low: float = -2.0, high: float = 2.0, seed: int = 0) -> np.ndarray:
    """Distinct values, none close to an integer or a half, where many operators have a kink."""
    rng = np.random.default_rng(seed + sum(shape))
    size = int(np.prod(shape))
    steps = np.linspace(low, high, size + 2)[1:-1] if size else np.empty(0)
    values = rng.permutation(steps) + rng.uniform(-0.01, 0.01, size=size)
    near = np.abs(values * 2 - np.round(values * 2)) < 0.04
    values[near] += 0.03
    return values.reshape(shape)


def _i(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


_P = {"low": 0.3, "high": 2.0}
A, B = _x(2, 3), _x(2, 3, seed=1)
UNARY = {
    **dict.fromkeys("Abs Cos Erf Exp Identity Neg Relu Sigmoid Sin Tanh LeakyRelu".split(), A),
    **dict.fromkeys("Elu Selu Celu Softplus Softsign HardSwish Mish ThresholdedRelu HardSigmoid".split(), A),
    **dict.fromkeys("Tan Atan Sinh Cosh Asinh".split(), A),
    **dict.fromkeys("Asin Acos Atanh".split(), A / 3),
    **dict.fromkeys("Log Sqrt Reciprocal".split(), _x(2, 3, **_P)),
    "Acosh": _x(2, 3, low=1.2, high=3.0),
    "Gelu": A,
}

CASES: list[Case] = [Case(op, (x,)) for op, x in UNARY.items()]
CASES += [
    Case(op, (a, b), diff=(0, 1), name=name)
    for op in ("Add", "Sub", "Mul", "Div")
    for name, a, b in (
        ("same", A, _x(2, 3, seed=1, **_P)),
        ("row", A, _x(3, **_P)),
        ("scalar", A, np.array(0.7)),
        ("left", _x(3), _x(2, 3, **_P)),
        ("both", _x(2, 1, 3), _x(4, 1, **_P)),
        ("ones", _x(2, 3), _x(1, 1, **_P)),
    )
]
CASES += [
    Case("LeakyRelu", (A,), {"alpha": 0.3}),
    Case("Elu", (A,), {"alpha": 0.5}),
    Case("HardSigmoid", (A,), {"alpha": 0.3, "beta": 0.4}),
    Case("Gelu", (A,), {"approximate": "tanh"}, since=20),
    Case("PRelu", (A, _x(3, **_P)), diff=(0, 1)),
    Case("Cast", (A,), {"to": 1}, name="to-float"),
    Case("Cast", (A,), {"to": 11}, name="to-double"),
    Case("Clip", (A,), {"min": -0.6, "max": 0.9}, until=10, name="attributes"),
    Case("Clip", (A, np.array(-0.6), np.array(0.9)), since=11, constant=(1, 2), name="bounds"),
    Case("Clip", (A, None, np.array(0.9)), since=11, constant=(2,), name="max"),
    Case("Clip", (A, np.array(-0.6)), since=11, constant=(1,), name="min"),
    Case("Clip", (A,), since=11, name="nothing"),
    Case("Pow", (_x(2, 3, **_P), np.array(2.0)), constant=(1,), name="square"),
    Case("Pow", (_x(2, 3, **_P), np.array(3.0)), constant=(1,), name="cube"),
    Case("Pow", (_x(2, 3, **_P), np.array(0.5)), constant=(1,), name="root"),
    Case("Pow", (_x(2, 3, **_P), _x(3)), constant=(1,), name="row"),
    Case("Pow", (_x(3, **_P), _x(2, 3)), constant=(1,), name="broadcast"),
    Case("Pow", (_x(2, 3, **_P), _x(2, 3)), name="tensor"),
    Case("Pow", (_x(2, 3, **_P), np.array(2, dtype=np.int64)), since=12, name="integer"),
    Case("Pow", (_x(2, 3, **_P), _x(2, 3)), diff=(1,), name="exponent"),
    Case("Max", (A, B), diff=(0, 1)),
    Case("Max", (A, B, _x(2, 3, seed=2)), diff=(0, 1, 2), name="three"),
    Case("Max", (A, _x(3)), diff=(0, 1), since=8, name="row"),
    Case("Max", (A,), name="one"),
    Case("Min", (A, B), diff=(0, 1)),
    Case("Min", (A, B, _x(2, 3, seed=2)), diff=(0, 1, 2), name="three"),
    Case("Min", (A, _x(3)), diff=(0, 1), since=8, name="row"),
    Case("Min", (A,), name="one"),
    Case("Sum", (A, B), diff=(0, 1)),
    Case("Sum", (A, B, _x(3)), diff=(0, 1, 2), since=8, name="three"),
    Case("Sum", (A,), name="one"),
    Case("Mean", (A, B, _x(3)), diff=(0, 1, 2), since=8, name="three"),
    Case("Where", (np.array([[True, False, True], [False, True, False]]), A, B), diff=(1, 2), since=9),
    Case("Where", (np.array([True, False, True]), A, np.array(0.3)), diff=(1, 2), since=9, name="broadcast"),
    # Products.
    Case("MatMul", (_x(2, 3), _x(3, 4)), diff=(0, 1), name="2d"),
    Case("MatMul", (_x(2, 3, 4), _x(2, 4, 3)), diff=(0, 1), name="3d"),
    Case("MatMul", (_x(2, 1, 3, 4), _x(2, 4, 3)), diff=(0, 1), name="broadcast"),
    Case("MatMul", (_x(2, 3, 4), _x(4, 2)), diff=(0, 1), name="3d2d"),
    Case("MatMul", (_x(3, 4), _x(2, 4, 3)), diff=(0, 1), name="2d3d"),
    Case("MatMul", (_x(3), _x(3, 4)), diff=(0, 1), name="1d2d"),
    Case("MatMul", (_x(2, 3), _x(3)), diff=(0, 1), name="2d1d"),
    Case("MatMul", (_x(3), _x(3)), diff=(0, 1), name="1d1d"),
    Case("MatMul", (_x(3), _x(2, 3, 2)), diff=(0, 1), name="1d3d"),
    Case("MatMul", (_x(2, 4, 3), _x(3)), diff=(0, 1), name="3d1d"),
    Case("Gemm", (_x(2, 3), _x(3, 4), _x(4)), diff=(0, 1, 2)),
    Case("Gemm", (_x(2, 3), _x(3, 4), _x(2, 1)), diff=(0, 1, 2), name="column"),
    Case("Gemm", (_x(2, 3), _x(3, 4), np.array(0.4)), diff=(0, 1, 2), name="scalar"),
    Case("Gemm", (_x(2, 3), _x(3, 4)), diff=(0, 1), since=11, name="no-bias"),
    Case(
        "Gemm",
        (_x(3, 2), _x(4, 3), _x(2, 4)),
        {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0},
        (0, 1, 2),
    ),
    Case("Gemm", (_x(3, 2), _x(3, 4), _x(4)), {"transA": 1, "alpha": 0.5}, (0, 1, 2)),
    Case("Gemm", (_x(2, 3), _x(4, 3), _x(4)), {"transB": 1, "beta": 0.5}, (0, 1, 2)),
    Case("Conv", (_x(1, 2, 5), _x(3, 2, 3), _x(3)), diff=(0, 1, 2), name="1d"),
    Case("Conv", (_x(1, 2, 5, 4), _x(3, 2, 3, 2), _x(3)), diff=(0, 1, 2), name="2d"),
    Case("Conv", (_x(2, 2, 5, 4), _x(3, 2, 3, 2)), diff=(0, 1), name="no-bias"),
    Case("Conv", (_x(1, 1, 3, 3, 3), _x(2, 1, 2, 2, 2), _x(2)), diff=(0, 1, 2), name="3d"),
    Case("Conv", (_x(1, 4, 5, 5), _x(4, 2, 3, 3), _x(4)), {"group": 2}, (0, 1, 2)),
    Case("Conv", (_x(1, 2, 7, 7), _x(2, 2, 3, 3), _x(2)), {"dilations": [2, 2]}, (0, 1, 2)),
    Case(
        "Conv", (_x(1, 2, 6, 5), _x(2, 2, 3, 3), _x(2)), {"strides": [2, 2], "pads": [1, 0, 1, 1]}, (0, 1, 2)
    ),
    Case("Conv", (_x(1, 1, 5, 6), _x(1, 1, 3, 3)), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, (0, 1)),
    Case("Conv", (_x(1, 1, 5, 6), _x(1, 1, 3, 2)), {"auto_pad": "SAME_LOWER"}, (0, 1)),
    Case("Conv", (_x(1, 1, 5, 6), _x(1, 1, 3, 3)), {"auto_pad": "VALID"}, (0, 1)),
    Case("ConvTranspose", (_x(1, 2, 4, 4), _x(2, 3, 3, 3), _x(3)), diff=(0, 1, 2)),
    # Pools.
    Case("MaxPool", (_x(1, 2, 6),), {"kernel_shape": [2]}),
    Case("MaxPool", (_x(1, 2, 5, 5),), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    Case("MaxPool", (_x(1, 2, 5, 5),), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    Case("MaxPool", (_x(1, 1, 5, 5),), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, since=10),
    Case("MaxPool", (_x(1, 1, 5, 5),), {"kernel_shape": [2, 2], "dilations": [2, 2]}, since=10),
    Case("MaxPool", (_x(1, 1, 5, 5),), {"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER"}),
    Case("MaxPool", (_x(1, 1, 5, 5),), {"kernel_shape": [2, 2], "auto_pad": "SAME_LOWER"}),
    Case("MaxPool", (_x(1, 1, 4, 4, 4),), {"kernel_shape": [2, 2, 2]}),
    Case("MaxPool", (_x(1, 2, 5, 5),), {"kernel_shape": [2, 2]}, outputs=2, since=8, name="indices"),
    Case("MaxPool", (_x(1, 1, 5, 4),), {"kernel_shape": [2, 2], "storage_order": 1}, outputs=2, since=8),
    Case(
        "MaxPool",
        (_x(1, 1, 5, 4),),
        {"kernel_shape": [2, 2], "storage_order": 1},
        since=8,
        name="column-major",
    ),
    Case("AveragePool", (_x(1, 2, 6),), {"kernel_shape": [2]}),
    Case("AveragePool", (_x(1, 2, 5, 5),), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    Case("AveragePool", (_x(1, 2, 5, 5),), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    Case(
        "AveragePool",
        (_x(1, 1, 4, 4),),
        {"kernel_shape": [3, 3], "pads": [1, 0, 0, 1], "count_include_pad": 1},
    ),
    Case(
        "AveragePool",
        (_x(1, 1, 5, 5),),
        {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1},
        since=10,
    ),
    Case("AveragePool", (_x(1, 1, 5, 5),), {"kernel_shape": [2, 2], "dilations": [2, 2]}, since=19),
    Case("AveragePool", (_x(1, 1, 5, 5),), {"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER"}),
    Case("AveragePool", (_x(1, 1, 5, 5),), {"kernel_shape": [2, 2], "auto_pad": "SAME_LOWER"}),
    Case("AveragePool", (_x(1, 1, 5, 5),), {"kernel_shape": [2, 2], "auto_pad": "VALID"}),
    Case("AveragePool", (_x(1, 1, 3, 4, 5),), {"kernel_shape": [2, 2, 2]}),
    Case("GlobalAveragePool", (_x(2, 3, 4),), name="1d"),
    Case("GlobalAveragePool", (_x(2, 3, 4, 2),), name="2d"),
    Case("GlobalAveragePool", (_x(1, 2, 3, 2, 2),), name="3d"),
    Case("GlobalMaxPool", (_x(2, 3, 4, 2),)),
    # Normalizations.
    *[
        Case(op, (_x(2, 3, 4),), {} if axis is None else {"axis": axis})
        for op in ("Softmax", "LogSoftmax")
        for axis in (None, 0, 1, 2, -1)
    ],
    Case(
        "BatchNormalization",
        (_x(2, 3, 4), _x(3, **_P), _x(3), _x(3, seed=3), _x(3, seed=4, **_P)),
        {"epsilon": 0.01},
        (0, 1, 2),
    ),
    Case(
        "BatchNormalization",
        (_x(4, 3), _x(3, **_P), _x(3), _x(3, seed=3), _x(3, seed=4, **_P)),
        {},
        (0, 1, 2),
        name="2d",
    ),
    Case("LayerNormalization", (_x(2, 3, 4), _x(4, **_P), _x(4)), diff=(0, 1, 2), since=17),
    Case("LayerNormalization", (_x(2, 3, 4), _x(3, 4, **_P), _x(3, 4)), {"axis": 1}, (0, 1, 2), since=17),
    Case("LayerNormalization", (_x(2, 3, 4), _x(4, **_P)), diff=(0, 1), since=17, name="no-bias"),
    Case(
        "LayerNormalization",
        (_x(2, 3, 4), _x(4, **_P), _x(4)),
        diff=(0, 1, 2),
        outputs=3,
        since=17,
        name="3out",
    ),
    Case("InstanceNormalization", (_x(2, 3, 4), _x(3, **_P), _x(3)), diff=(0, 1, 2)),
    Case("LpNormalization", (A,)),
    Case("LRN", (_x(1, 5, 2, 2),), {"size": 3}),
    Case("Dropout", (A,), name="inference"),
    Case("Dropout", (A,), outputs=2, name="mask"),
    # Reductions.
    *[
        Case(op, (_x(2, 3, 4, **_P),), {"keepdims": keep, **({"axes": axes} if axes else {})}, until=until)
        for op, until in (
            *(("ReduceSum", 12),),
            *(
                (f"Reduce{n}", 17)
                for n in ("Mean", "LogSumExp", "L1", "L2", "SumSquare", "LogSum", "Max", "Prod")
            ),
        )
        for keep in (0, 1)
        for axes in (None, [1], [0, -1])
    ],
    *[
        Case(
            op,
            (_x(2, 3, 4, **_P), *([_i(*axes)] if axes else [])),
            {"keepdims": keep},
            since=since,
            name=f"input{axes}{keep}",
        )
        for op, since in (
            ("ReduceSum", 13),
            *(
                (f"Reduce{n}", 18)
                for n in ("Mean", "LogSumExp", "L1", "L2", "SumSquare", "LogSum", "Max", "Prod")
            ),
        )
        for keep in (0, 1)
        for axes in (None, [1], [0, -1])
    ],
    Case("ReduceSum", (A,), {"noop_with_empty_axes": 1}, since=13),
    Case("ReduceMean", (A,), {"noop_with_empty_axes": 1}, since=18),
    Case("ReduceSum", (A, np.empty(0, np.int64)), {"noop_with_empty_axes": 1}, since=13, name="noop-empty"),
    Case("ReduceSum", (A, np.empty(0, np.int64)), since=13, name="empty-axes"),
    Case("CumSum", (A, np.array(1, np.int64)), since=11),
    Case("TopK", (_x(3, 5), _i(2)), outputs=2, since=10),
    Case("TopK", (_x(3, 5), _i(2)), {"axis": 0, "largest": 0}, outputs=2, since=11),
    # Shapes.
    Case("Reshape", (A, _i(3, 2))),
    Case("Reshape", (A, _i(0, -1))),
    Case("Reshape", (A, _i(3, 2)), {"allowzero": 1}, since=14),
    *[Case("Flatten", (_x(2, 3, 4),), {} if a is None else {"axis": a}) for a in (None, 0, 2, 3)],
    Case("Flatten", (_x(2, 3, 4),), {"axis": -1}, since=11),
    Case("Transpose", (_x(2, 3, 4),), {"perm": [2, 0, 1]}),
    Case("Transpose", (_x(2, 3, 4),)),
    Case("Squeeze", (_x(2, 1, 3),), {"axes": [1]}, until=12),
    Case("Squeeze", (_x(2, 1, 3), _i(-2)), since=13, name="input"),
    Case("Squeeze", (_x(2, 1, 3),), name="all"),
    Case("Unsqueeze", (A,), {"axes": [0, 2]}, until=12),
    Case("Unsqueeze", (A, _i(0, -1)), since=13, name="input"),
    Case("Expand", (_x(3, 1), _i(2, 1, 4)), since=8),
    Case("Expand", (_x(3, 1), _i(3, 1)), since=8, name="same"),
    Case("Concat", (_x(2, 3), _x(2, 1), _x(2, 2)), {"axis": 1}, (0, 1, 2)),
    Case("Concat", (_x(2, 3), _x(2, 1)), {"axis": -1}, (0, 1), since=11),
    Case("Concat", (_x(2, 3),), {"axis": 0}, name="one"),
    Case("Split", (_x(5, 2),), {"axis": 0, "split": [2, 3]}, outputs=2, until=12),
    Case("Split", (_x(4, 2),), {"axis": 0}, outputs=2, until=17),
    Case("Split", (_x(5, 2), _i(2, 3)), {"axis": 0}, outputs=2, since=13, name="input"),
    Case("Split", (_x(4, 3),), {"axis": 1, "num_outputs": 2}, outputs=2, since=18),
    Case("Split", (_x(4, 2),), {"axis": -2, "num_outputs": 2}, outputs=2, since=18),
    Case("Slice", (_x(4, 5),), {"starts": [1], "ends": [3], "axes": [1]}, until=9),
    Case("Slice", (_x(4, 5), _i(1), _i(3)), since=10, name="no-axes"),
    Case("Slice", (_x(4, 5), _i(0, -4), _i(9, -1), _i(1, 0)), since=10, name="axes"),
    Case("Slice", (_x(4, 5), _i(0), _i(5), _i(-1), _i(2)), since=10, name="step"),
    Case("Slice", (_x(4, 5), _i(-1), _i(-9), _i(1), _i(-1)), since=10, name="negative"),
    Case("Gather", (_x(4, 3), _i(2, 0, 2, -1))),
    Case("Gather", (_x(4, 3), np.array([[0, 1], [2, 2]], np.int64)), {"axis": 1}),
    Case("Gather", (_x(4, 3), np.array(1, np.int64)), name="scalar"),
    Case("Gather", (_x(4, 3), np.array([1, 0], np.int32)), {"axis": -1}, since=11, name="int32"),
    Case("GatherElements", (_x(3, 3), np.array([[1, 2, 0], [2, 0, 0]], np.int64)), since=11),
    Case("GatherElements", (_x(3, 3), np.array([[1, 1], [2, 0], [0, -1]], np.int64)), {"axis": 1}, since=11),
    Case("GatherND", (_x(3, 2), np.array([[0], [2], [0]], np.int64)), since=11),
    Case("GatherND", (_x(2, 3), np.array([[1], [-1]], np.int64)), {"batch_dims": 1}, since=12),
    Case("GatherND", (_x(2, 3), np.array([[1, -1], [0, 0]], np.int64)), since=11, name="negative"),
    Case("ScatterND", (_x(4, 2), np.array([[0], [2]], np.int64), _x(2, 2)), diff=(0, 2), since=11),
    *[
        Case(
            "ScatterND",
            (_x(4, 2, **_P), np.array([[0], [2]], np.int64), _x(2, 2, **_P)),
            {"reduction": r},
            (0, 2),
            since=18,
        )
        for r in ("add", "mul", "max", "min")
    ],
    Case("ScatterElements", (_x(3, 3), np.array([[1, 0, 2]], np.int64), _x(1, 3)), diff=(0, 2), since=11),
    Case(
        "ScatterElements", (_x(3, 3), np.array([[1, -1]], np.int64), _x(1, 2)), {"axis": 1}, (0, 2), since=11
    ),
    *[
        Case(
            "ScatterElements",
            (_x(3, 3, **_P), np.array([[1, 0, 2]], np.int64), _x(1, 3, **_P)),
            {"reduction": r},
            (0, 2),
            since=18,
        )
        for r in ("add", "mul", "max", "min")
    ],
    Case("Pad", (A,), {"pads": [1, 0, 0, 2], "value": 0.5}, until=10),
    Case("Pad", (A, _i(1, 0, 0, 2)), since=11, name="default"),
    Case("Pad", (A, _i(1, 0, -1, 2)), since=11, name="negative"),
    Case("Pad", (A, _i(1, 0, 0, 2), np.array(0.5)), since=11, constant=(2,), name="value"),
    Case("Pad", (A, _i(1, 0, 0, 2), np.array(0.5)), since=11, diff=(2,), name="value-gradient"),
    Case("Pad", (A, _i(1, 2), None, _i(1)), since=18, name="axes"),
    *[Case("Pad", (_x(3, 4), _i(1, 0, 0, 2)), {"mode": m}, since=11) for m in ("reflect", "edge")],
    Case("Pad", (_x(3, 4), _i(1, 0, 0, 2)), {"mode": "wrap"}, since=19),
    Case("Tile", (A, _i(2, 1))),
    Case("Tile", (A, _i(2, 3)), name="both"),
    Case("Trilu", (_x(3, 4),), since=14),
    Case("Trilu", (_x(3, 4), np.array(1, np.int64)), {"upper": 0}, since=14),
    Case("DepthToSpace", (_x(1, 4, 2, 2),), {"blocksize": 2}),
    Case("SpaceToDepth", (_x(1, 1, 4, 4),), {"blocksize": 2}),
    Case("Einsum", (_x(2, 3), _x(3, 4)), {"equation": "ij,jk->ik"}, (0, 1), since=12),
    Case("Resize", (_x(1, 1, 2, 2), None, np.array([1, 1, 2, 2], np.float32)), {"mode": "nearest"}, since=11),
]
