"""Random models beside their functions in NumPy: shared weights, values read twice, outputs in between."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

__all__ = ["RandomGraph", "random_graph", "run_seeds"]

ROWS, WIDTH, TABLE = 3, 4, 5
Values = dict[str, np.ndarray]


@dataclasses.dataclass
class RandomGraph:
    """A model of smooth operators.

    Attributes
    ----------
    nodes : list of NodeProto
        What it computes.
    steps : list of callable
        The same in NumPy: each adds the values of a node to those there are.
    weights, constants : dict of str to ndarray
        Float64, and integers.
    outputs : dict of str to list
        Name to dimensions, the first of which is the batch unless the output is a weight.
    """

    nodes: list[onnx.NodeProto]
    steps: list[Callable[[Values], None]]
    weights: Values
    constants: Values
    outputs: dict[str, list[Any]]

    def model(self, dtype: type = np.float32, batch: Any = "N") -> onnx.ModelProto:
        """The model, for a batch of any size or of one size."""
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        tensors = [numpy_helper.from_array(a.astype(dtype), name) for name, a in self.weights.items()]
        for name, array in self.constants.items():
            tensors.append(numpy_helper.from_array(array.astype(dtype) if _real(array) else array, name))
        inputs = [
            helper.make_tensor_value_info("x", kind, [batch, WIDTH]),
            helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, [batch]),
        ]
        outputs = [
            helper.make_tensor_value_info(name, kind, [batch if d == "N" else d for d in shape])
            for name, shape in self.outputs.items()
        ]
        graph = helper.make_graph(self.nodes, "random", inputs, outputs, tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def values(self, feeds: Values, weights: Values, moved: Values | None = None) -> Values:
        """Outputs in NumPy.

        `moved` makes BatchNormalization normalize by the statistics of the batch: it holds the running ones,
        which move.
        """
        found = {**feeds, **self.constants, **weights}
        _moving.append(moved)
        try:
            for step in self.steps:
                step(found)
        finally:
            _moving.pop()
        return {name: found[name] for name in self.outputs}


# The running statistics of the pass that is under way.
_moving: list[Values | None] = []


def _real(array: np.ndarray) -> bool:
    return array.dtype == np.float64


class _Maker:
    """Draws nodes."""

    def __init__(self, random: Random) -> None:
        self.random = random
        numbers = np.random.default_rng(random.randrange(2**32))
        draw = numbers.normal
        self.weights: Values = {
            "w": draw(0, 0.5, (WIDTH, WIDTH)),
            "u": draw(0, 0.5, (WIDTH, WIDTH)),
            "b": draw(0, 0.5, WIDTH),
            "c": draw(0, 0.5, WIDTH),
            "E": draw(0, 0.5, (TABLE, WIDTH)),
            "lstm_w": draw(0, 0.5, (1, 4 * WIDTH, WIDTH // 2)),
            "lstm_r": draw(0, 0.5, (1, 4 * WIDTH, WIDTH)),
            "lstm_b": draw(0, 0.5, (1, 8 * WIDTH)),
            "gru_w": draw(0, 0.5, (1, 3 * WIDTH, WIDTH // 2)),
            "gru_r": draw(0, 0.5, (1, 3 * WIDTH, WIDTH)),
            "gru_b": draw(0, 0.5, (1, 6 * WIDTH)),
        }
        self.constants: Values = {
            "parts": np.array([1, 1, WIDTH - 2]),
            "places": np.array([2, 0, 2]),
            "half": np.array([0, WIDTH, 1, WIDTH + 2]),
            "all": np.array([WIDTH]),
            "zero": np.array([0]),
            "one": np.array([1]),
            "few": np.array(TABLE),
            "two_steps": np.array([-1, 2, WIDTH // 2]),
            # Names that fusions of onnxruntime make again.
            "gemm_output_shape": np.array([-1, WIDTH]),
            "gemm_input_shape": np.array([-1, 1, WIDTH]),
            **{f"mean{k}": draw(0, 0.5, WIDTH) for k in range(3)},
            **{f"variance{k}": 0.5 + draw(0, 0.5, WIDTH) ** 2 for k in range(3)},
        }
        self.nodes: list[onnx.NodeProto] = []
        self.steps: list[Callable[[Values], None]] = []
        # Values of shape (rows, width), which any operator takes.
        self.whole = ["x"]
        self.count = 0
        # What branches read.
        self.read: set[str] = set()

    def add(
        self,
        op_type: str,
        inputs: list[str],
        function: Callable[..., Any],
        outputs: int = 1,
        **attributes: Any,
    ) -> list[str]:
        """Append a node; `function` gives its outputs, one or a list."""
        names = [f"v{self.count}_{k}" if outputs > 1 else f"v{self.count}" for k in range(outputs)]
        self.count += 1
        # Nodes of one name, or of none, are found in the wild.
        name = self.random.choice(["layer", "", *[f"n{self.count}"] * 8])
        self.nodes.append(helper.make_node(op_type, inputs, names, name=name, **attributes))

        def step(values: Values) -> None:
            made = function(*(values[name] for name in inputs))
            values.update(zip(names, made if outputs > 1 else [made], strict=True))

        self.steps.append(step)
        return names

    def any(self) -> str:
        """A value there is, the latest most often."""
        return self.whole[-1] if self.random.random() < 0.5 else self.random.choice(self.whole)

    def draw(self) -> None:
        """Append one operator, or a few that belong together."""
        kinds = (
            "unary unary binary binary product product transposed gemm square split concat embedding "
            "embedding norm dropout softmax mean columns bias topk same gram pool batch_norm batch_norm "
            "three repeated deep unread chosen lstm gru"
        )
        kind = self.random.choice(kinds.split())
        self.whole.append(getattr(self, f"_{kind}")())

    def _unary(self) -> str:
        kinds: dict[str, Callable[[Any], Any]] = {
            "Tanh": np.tanh,
            "Sigmoid": _sigmoid,
            "Neg": np.negative,
            "Softplus": lambda a: np.log1p(np.exp(-np.abs(a))) + np.maximum(a, 0),
            "Identity": lambda a: a,
        }
        kind = self.random.choice(list(kinds))
        return self.add(kind, [self.any()], kinds[kind])[0]

    def _binary(self) -> str:
        kind, function = self.random.choice([("Add", np.add), ("Sub", np.subtract), ("Mul", np.multiply)])
        return self.add("Tanh", self.add(kind, [self.any(), self.any()], function), np.tanh)[0]

    def _product(self) -> str:
        return self.add("MatMul", [self.any(), self.random.choice("wu")], np.matmul)[0]

    def _transposed(self) -> str:
        turned = self.add("Transpose", [self.random.choice("wu")], np.transpose, perm=[1, 0])[0]
        return self.add("MatMul", [self.any(), turned], np.matmul)[0]

    def _square(self) -> str:
        names = [self.random.choice("wu"), self.random.choice("wu")]
        product = self.add("MatMul", names, np.matmul)[0]
        return self.add("MatMul", [self.any(), product], np.matmul)[0]

    def _gemm(self) -> str:
        turned, alpha = self.random.randrange(2), self.random.choice([1.0, 0.5])
        inputs = [self.any(), self.random.choice("wu"), "b"]
        return self.add(
            "Gemm", inputs, lambda a, w, b: alpha * a @ (w.T if turned else w) + b, transB=turned, alpha=alpha
        )[0]

    def _bias(self) -> str:
        kind, function = self.random.choice([("Add", np.add), ("Mul", np.multiply)])
        return self.add(kind, [self.any(), "b"], function)[0]

    def _split(self) -> str:
        parts = self.add(
            "Split", [self.any(), "parts"], lambda a, p: np.split(a, np.cumsum(p)[:-1], axis=1), 3, axis=1
        )
        kept = self.random.choice([[0, 1, 2], [2, 2], [1, 0, 2], [1, 1, 1, 1], [0, 2, 0], [0, 0, 0, 0]])
        return self._joined([parts[k] for k in kept])

    def _joined(self, names: list[str]) -> str:
        return self.add("Concat", names, lambda *a: np.concatenate(a, axis=1), axis=1)[0]

    def _concat(self) -> str:
        wide = self._joined([self.any(), self.any()])
        return self.add("Gather", [wide, "half"], lambda a, i: np.take(a, i, axis=1), axis=1)[0]

    def _columns(self) -> str:
        three = self.add("Gather", [self.any(), "places"], lambda a, i: np.take(a, i, axis=1), axis=1)[0]
        one = self.add("ReduceMean", [self.any()], lambda a: a.mean(1, keepdims=True), axes=[1], keepdims=1)[
            0
        ]
        return self._joined([three, one])

    def _embedding(self) -> str:
        return self.add("Gather", ["E", "ids"], lambda e, i: e[i], axis=0)[0]

    def _norm(self) -> str:
        outputs = self.random.choice([1, 3])

        def normalized(a: np.ndarray, w: np.ndarray, b: np.ndarray) -> Any:
            mean = a.mean(1, keepdims=True)
            inverse = 1 / np.sqrt(((a - mean) ** 2).mean(1, keepdims=True) + 1.0)
            y = (a - mean) * inverse * w + b
            return [y, mean, inverse] if outputs == 3 else y

        return self.add("LayerNormalization", [self.any(), "b", "b"], normalized, outputs, epsilon=1.0)[0]

    def _dropout(self) -> str:
        return self.add("Dropout", [self.any()], lambda a: [a, np.ones_like(a, bool)], 2)[0]

    def _softmax(self) -> str:
        def softmax(a: np.ndarray) -> np.ndarray:
            e = np.exp(a - a.max(1, keepdims=True))
            return e / e.sum(1, keepdims=True)

        return self.add("Softmax", [self.any()], softmax, axis=1)[0]

    def _mean(self) -> str:
        mean = self.add("ReduceMean", [self.any()], lambda a: a.mean(0, keepdims=True), axes=[0], keepdims=1)[
            0
        ]
        return self.add("Add", [self.any(), mean], np.add)[0]

    def _topk(self) -> str:
        # Distinct numbers: sorted differently, they would have a kink.
        return self.add(
            "TopK",
            [self.any(), "all"],
            lambda a, _: [-np.sort(-a, axis=1), np.argsort(-a, axis=1)],
            2,
            axis=1,
        )[0]

    def _same(self) -> str:
        value = self.any()
        kind, function = self.random.choice([("Add", np.add), ("Mul", np.multiply), ("Max", np.maximum)])
        return self.add(kind, [value, value], function)[0]

    def _gram(self) -> str:
        """aᵀa of a weight or of a value."""
        value = self.random.choice(["w", self.any()])
        turned = self.add("Transpose", [value], np.transpose, perm=[1, 0])[0]
        product = self.add("MatMul", [turned, value], np.matmul)[0]
        return self.add("Tanh", self.add("MatMul", [self.any(), product], np.matmul), np.tanh)[0]

    def _pool(self) -> str:
        """Columns of a picture, whose places may be declared and read by nobody."""
        picture = self.add("Unsqueeze", [self.any(), "one"], lambda a, _: a[:, None])[0]

        def largest(a: np.ndarray) -> Any:
            padded = np.pad(a, ((0, 0), (0, 0), (1, 1)), constant_values=-np.inf)
            y = np.lib.stride_tricks.sliding_window_view(padded, 3, axis=2).max(-1)
            return [y, np.zeros(y.shape, np.int64)] if outputs == 2 else y

        outputs = self.random.choice([1, 2])
        pooled = self.add("MaxPool", [picture], largest, outputs, kernel_shape=[3], pads=[1, 1], strides=[1])[
            0
        ]
        return self.add("Squeeze", [pooled, "one"], lambda a, _: a[:, 0])[0]

    def _batch_norm(self) -> str:
        """One whose statistics may be those of another, as may its scale and bias."""
        k, momentum = self.random.randrange(3), self.random.choice([0.9, 0.5])
        names = [self.any(), self.random.choice("bc"), self.random.choice("bc"), f"mean{k}", f"variance{k}"]

        def normalized(a: np.ndarray, scale: np.ndarray, bias: np.ndarray, *found: np.ndarray) -> np.ndarray:
            moved = _moving[-1]
            if moved is not None:
                seen = a.mean(0), a.var(0)
                for name, number in zip(names[3:], seen, strict=True):
                    moved[name] = momentum * moved[name] + (1 - momentum) * number
                found = seen
            return (a - found[0]) / np.sqrt(found[1] + 0.5) * scale + bias

        return self.add("BatchNormalization", names, normalized, epsilon=0.5, momentum=momentum)[0]

    def _three(self) -> str:
        """A table that is looked up, multiplied by, and averaged."""
        turned = self.add("Transpose", ["E"], np.transpose, perm=[1, 0])[0]
        scores = self.add("MatMul", [self.any(), turned], np.matmul)[0]
        back = self.add("MatMul", [*self.add("Tanh", [scores], np.tanh), "E"], np.matmul)[0]
        mean = self.add("ReduceMean", ["E"], lambda e: e.mean(0, keepdims=True), axes=[0], keepdims=1)[0]
        scaled = self.add("Mul", [self._embedding(), mean], np.multiply)[0]
        return self.add("Add", [back, scaled], np.add)[0]

    def _repeated(self) -> str:
        """One operand several times among those of an operator of any number."""
        first, second = self.any(), self.any()
        names = self.random.choice([[first, first], [first, second, first], [second, first, first], [first]])
        kind = self.random.choice(["Sum", "Mean", "Max", "Concat"])
        if kind == "Concat":
            wide = self._joined([*names, first])
            return self.add("Gather", [wide, "half"], lambda a, i: np.take(a, i, axis=1), axis=1)[0]
        functions = {"Sum": sum, "Mean": lambda v: sum(v) / len(v), "Max": lambda v: np.max(v, axis=0)}
        return self.add(kind, names, lambda *a: functions[kind](a))[0]

    def _deep(self) -> str:
        """What onnxruntime makes a Gemm of, and shapes of it by the names they have here."""
        wide = self.add("Reshape", [self.any(), "gemm_input_shape"], lambda a, s: a.reshape(s))[0]
        product = self.add("MatMul", [wide, self.random.choice("wu")], np.matmul)[0]
        moved = self.add("Add", [product, self.random.choice("bc")], np.add)[0]
        return self.add("Reshape", [moved, "gemm_output_shape"], lambda a, s: a.reshape(s))[0]

    def _unread(self) -> str:
        """Only one part of a Split, or only the places of a TopK, which have no gradient."""
        value = self.any()
        if self.random.random() < 0.5:
            part = self.add(
                "Split", [value, "parts"], lambda a, p: np.split(a, np.cumsum(p)[:-1], axis=1), 3, axis=1
            )[self.random.randrange(2)]
            return self.add("Add", [self.any(), part], np.add)[0]
        places = self.add(  # of distinct numbers: which of two is first is for rounding to say
            "TopK", ["x", "all"], lambda a, _: [-np.sort(-a, axis=1), np.argsort(-a, axis=1)], 2, axis=1
        )[1]
        return self.add(
            "GatherElements", [self.any(), places], lambda a, i: np.take_along_axis(a, i, axis=1), axis=1
        )[0]

    def _chosen(self) -> str:
        """If, whose branches read a weight and a value of the graph around them."""
        value, weight = self.any(), self.random.choice("wu")
        total = self.add("ReduceSum", ["ids"], lambda i: i.sum(), keepdims=0)[0]
        condition = self.add("Greater", [total, "few"], np.greater)[0]
        kind = helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None)
        branches = {
            "then_branch": [
                helper.make_node("MatMul", [value, weight], ["product"]),
                helper.make_node("Tanh", ["product"], ["chosen"]),
            ],
            "else_branch": [helper.make_node("Mul", [value, "b"], ["chosen"])],
        }
        graphs = {
            name: helper.make_graph(nodes, name, [], [helper.make_value_info("chosen", kind)])
            for name, nodes in branches.items()
        }
        made = self.add("If", [condition], lambda c: c, **graphs)[0]
        self.steps[-1] = lambda v: v.update(
            {made: np.tanh(v[value] @ v[weight]) if v[condition] else v[value] * v["b"]}
        )
        self.read |= {value, weight, "b"}
        return made

    def _steps(self) -> str:
        """Two steps of half the columns each, time first."""
        cut = self.add("Reshape", [self.any(), "two_steps"], lambda a, s: a.reshape(s))[0]
        return self.add("Transpose", [cut], lambda a: a.transpose(1, 0, 2), perm=[1, 0, 2])[0]

    def _recurrent(self, kind: str, function: Callable[..., np.ndarray], **attributes: Any) -> str:
        """The last state; what the layer returns besides may have no name."""
        inputs = [self._steps(), *(f"{kind.lower()}_{k}" for k in "wrb")]
        self.count += 1
        outputs = [self.random.choice(["", f"all{self.count}"]), f"last{self.count}"]
        node = helper.make_node(kind, inputs, outputs, f"n{self.count}", hidden_size=WIDTH, **attributes)
        self.nodes.append(node)
        self.steps.append(lambda v: v.update({outputs[1]: function(*(v[n] for n in inputs))[None]}))
        return self.add("Squeeze", [outputs[1], "zero"], lambda a, _: a[0])[0]

    def _lstm(self) -> str:
        def last(x: np.ndarray, w: np.ndarray, r: np.ndarray, b: np.ndarray) -> np.ndarray:
            h = c = np.zeros((x.shape[1], WIDTH))
            for row in x:
                i, o, f, g = np.split(row @ w[0].T + h @ r[0].T + b[0].reshape(2, -1).sum(0), 4, axis=1)
                c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
                h = _sigmoid(o) * np.tanh(c)
            return h

        return self._recurrent("LSTM", last)

    def _gru(self) -> str:
        before = self.random.randrange(2)

        def last(x: np.ndarray, w: np.ndarray, r: np.ndarray, b: np.ndarray) -> np.ndarray:
            h = np.zeros((x.shape[1], WIDTH))
            wz, wr, wh = np.split(w[0], 3)
            rz, rr, rh = np.split(r[0], 3)
            bz, br, bh, cz, cr, ch = np.split(b[0], 6)
            for row in x:
                z = _sigmoid(row @ wz.T + h @ rz.T + bz + cz)
                k = _sigmoid(row @ wr.T + h @ rr.T + br + cr)
                inner = k * (h @ rh.T + ch) if before else (k * h) @ rh.T + ch
                h = (1 - z) * np.tanh(row @ wh.T + inner + bh) + z * h
            return h

        return self._recurrent("GRU", last, linear_before_reset=before)


def _sigmoid(a: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-a))


def random_graph(seed: int) -> RandomGraph:
    """The model of a seed."""
    random = Random(seed)
    maker = _Maker(random)
    maker.whole.append(maker._product())  # so that there is a weight
    for _ in range(random.randint(1, 8)):
        maker.draw()
    made = [name for name in maker.whole if name != "x"]
    # The last value and some on the way: gathered rows, or what other nodes read as well.
    chosen = {made[-1], *random.sample(made, min(len(made), random.randrange(3)))}
    outputs: dict[str, list[Any]] = {name: ["N", WIDTH] for name in made if name in chosen}
    if random.random() < 0.15:  # one value under two names
        outputs[maker.add("Identity", [made[-1]], lambda a: a)[0]] = ["N", WIDTH]
    read = maker.read.union(*(node.input for node in maker.nodes))
    weights = {name: array for name, array in maker.weights.items() if name in read}
    constants = {name: array for name, array in maker.constants.items() if name in read}
    if random.random() < 0.1:
        outputs["x"] = ["N", WIDTH]
    if random.random() < 0.1:
        name = random.choice(sorted(weights))
        outputs[name] = list(weights[name].shape)
    return RandomGraph(maker.nodes, maker.steps, weights, constants, outputs)


# -- many of them ------------------------------------------------------------------------------------------


def run_seeds(name: str, check: Callable[[int], str], seeds: Sequence[int]) -> bool:
    """Check the models of many seeds in child processes, print what became of them; True if one is wrong."""
    sys.path.insert(0, str(Path(__file__).parent / "ut_fuzz"))
    from fuzz_runner import run_cases

    counts = Counter[str]()
    for result in run_cases(check, seeds, seconds=120, batch=100):
        counts[result.outcome if not result.bad else "wrong"] += 1
        if result.bad:
            print(f"{name}, seed {result.number}: {result.outcome}\n{result.detail[-2000:]}", flush=True)
    print(f"{name}: {dict(counts)}", flush=True)
    return bool(counts["wrong"])
