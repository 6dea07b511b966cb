"""Models with a frozen part before their trained weights, and data for them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser

_HEAD = '<ir_version: 8, opset_import: ["": 17]>'


def parsed(text: str, seed: int = 0) -> onnx.ModelProto:
    """A model whose weights ``name = {}`` are drawn."""
    rng = np.random.default_rng(seed)
    model = onnx.parser.parse_model(f"{_HEAD} {text}")
    for tensor in model.graph.initializer:
        if tensor.dims and tensor.data_type in (1, 11) and not (tensor.float_data or tensor.double_data):
            array = rng.normal(size=tensor.dims) * 0.5
            tensor.raw_data = array.astype(np.float32 if tensor.data_type == 1 else np.float64).tobytes()
    return model


def _rows(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# Name -> model, features, expected values, further options of the estimator.
CASES = {
    "dense": (
        """g (float[N, 4] x) => (float[N, 1] y)
        <float[4, 5] a = {}, float[5] b = {}, float[5, 1] w = {}> {
            m = MatMul(x, a) s = Add(m, b) h = Tanh(s) y = MatMul(h, w)
        }""",
        _rows(23, 4),
        _rows(23, 1),
        {},
    ),
    "around": (
        """g (float[N, 4] x, float[N, 2] z) => (float[N, 1] y)
        <float[4, 3] a = {}, float[5, 1] w = {}> {
            m = MatMul(x, a) h = Tanh(m) c = Concat <axis = 1> (h, z) y = MatMul(c, w)
        }""",
        {"x": _rows(23, 4), "z": _rows(23, 2, seed=2)},
        _rows(23, 1),
        {},
    ),
    "reshaped_by_the_input": (
        """g (float[N, 2, 6] x) => (float[N, 3] y)
        <float[3, 2, 3] a = {}, float[18, 3] w = {}, int64[1] i = {0}, int64[1] rest = {-1}> {
            c = Conv <pads = [1, 1]> (x, a) h = Relu(c) f = Identity(h)
            s = Shape(x) n = Gather(s, i) t = Concat <axis = 0> (n, rest)
            p = Sigmoid(f) r = Reshape(p, t) y = MatMul(r, w)
        }""",
        _rows(23, 2, 6),
        _rows(23, 3),
        {"weights_to_train": "w"},
    ),
    "reshaped_behind_the_cut": (
        """g (float[N, 2, 6] x) => (float[N, 3] y)
        <float[3, 2, 3] a = {}, float[3, 3, 1] b = {}, float[18, 3] w = {}, int64[1] i = {0},
         int64[1] rest = {-1}> {
            c = Conv <pads = [1, 1]> (x, a) h = Relu(c) d = Conv(h, b)
            s = Shape(x) n = Gather(s, i) t = Concat <axis = 0> (n, rest) r = Reshape(d, t) y = MatMul(r, w)
        }""",
        _rows(23, 2, 6),
        _rows(23, 3),
        {"weights_to_train": ["b", "w"]},
    ),
    "sequences_time_first": (
        """g (float[T, N, 2] x) => (float[N, 1] y)
        <float[1, 12, 2] a = {}, float[1, 12, 3] r = {}, float[3, 1] w = {}, int64[1] zero = {0}> {
            all, last = LSTM <hidden_size = 3> (x, a, r) h = Squeeze(last, zero) y = MatMul(h, w)
        }""",
        _rows(5, 23, 2),
        _rows(23, 1),
        {"weights_to_train": "w", "batch_axis": {"x": 1, "y": 0}},
    ),
    "recurrent_behind_the_cut": (
        """g (float[N, 5, 2] x) => (float[N, 1] y)
        <float[2, 2] e = {}, float[1, 9, 2] a = {}, float[1, 9, 3] r = {}, float[3, 1] w = {},
         int64[1] zero = {0}, int64[1] hidden = {3}, int64[1] one = {1}> {
            m = MatMul(x, e) h = Tanh(m) t = Transpose <perm = [1, 0, 2]> (h)
            s = Shape(x) n = Gather(s, zero) size = Concat <axis = 0> (one, n, hidden)
            start = ConstantOfShape <value = float[1] {0}> (size)
            all, last = GRU <hidden_size = 3> (t, a, r, , , start) q = Squeeze(last, zero) y = MatMul(q, w)
        }""",
        _rows(23, 5, 2),
        _rows(23, 1),
        {"weights_to_train": ["a", "r", "w"]},
    ),
    "rows_fixed": (
        """g (float[4, 3] x) => (float[4, 1] y) <float[3, 4] a = {}, float[4, 1] w = {}> {
            m = MatMul(x, a) h = Tanh(m) y = MatMul(h, w)
        }""",
        _rows(20, 3),
        _rows(20, 1),
        {"batch_size": 4, "weights_to_train": "w"},
    ),
    "one_row": (
        """g (float[1, 3] x) => (float[1, 1] y) <float[3, 4] a = {}, float[4, 1] w = {}, float[4] c = {}> {
            m = MatMul(x, a) h = Tanh(m) f = Mul(h, c) y = MatMul(f, w)
        }""",
        _rows(9, 3),
        _rows(9, 1),
        {"batch_size": 1, "weights_to_train": ["c", "w"]},
    ),
    "words": (
        """g (int64[N, 4] x) => (float[N, 1] y)
        <float[7, 3] table = {}, float[3, 1] w = {}, int64[1] one = {1}> {
            e = Gather(table, x) h = ReduceMean <axes = [1], keepdims = 0> (e) y = MatMul(h, w)
        }""",
        np.random.default_rng(3).integers(0, 7, (23, 4)),
        _rows(23, 1),
        {"weights_to_train": "w"},
    ),
    "given_once": (
        """g (float[N, 4] x, float rate) => (float[N, 1] y) <float[4, 3] a = {}, float[3, 1] w = {}> {
            m = MatMul(x, a) r = Exp(rate) h = Mul(m, r) f = MatMul(h, w) y = Mul(f, r)
        }""",
        {"x": _rows(23, 4), "rate": np.float32(0.25)},
        _rows(23, 1),
        {"weights_to_train": "w"},
    ),
    "normalized": (
        """g (float[N, 2, 6] x) => (float[N, 1] y)
        <float[3, 2, 3] a = {}, float[3] s = {1, 2, 3}, float[3] o = {0, 1, 2}, float[3] mean = {1, 1, 1},
         float[3] var = {1, 2, 1}, float[3, 1] w = {}> {
            c = Conv(x, a) n = BatchNormalization(c, s, o, mean, var) h = Relu(n) g = GlobalAveragePool(h)
            f = Flatten(g) y = MatMul(f, w)
        }""",
        _rows(23, 2, 6),
        _rows(23, 1),
        {"weights_to_train": "w"},
    ),
    "skip": (
        """g (float[N, 4] x) => (float[N, 4] y) <float[4, 4] a = {}, float[4, 4] w = {}, float[4] b = {}> {
            m = MatMul(x, a) h = Tanh(m) n = MatMul(h, w) p = Add(n, b) q = Add(p, h) y = Add(q, x)
        }""",
        _rows(23, 4),
        _rows(23, 4),
        {"freeze": "a"},
    ),
    "double": (
        """g (double[N, 4] x) => (double[N, 1] y) <double[4, 5] a = {}, double[5, 1] w = {}> {
            m = MatMul(x, a) h = Tanh(m) y = MatMul(h, w)
        }""",
        _rows(23, 4).astype(np.float64),
        _rows(23, 1).astype(np.float64),
        {"weights_to_train": "w"},
    ),
    "branch": (
        """g (float[N, 4] x) => (float[N, 1] y) <float[4, 3] a = {}, float[3, 1] w = {}, bool c = {1}> {
            m = MatMul(x, a) h = Tanh(m)
            y = If (c) <then_branch = t () => (float[N, 1] p) { p = MatMul(h, w) },
                        else_branch = e () => (float[N, 1] q) { r = Neg(h) q = MatMul(r, w) }>
        }""",
        _rows(23, 4),
        _rows(23, 1),
        {"weights_to_train": "w"},
    ),
    "dropped_behind_the_cut": (
        """g (float[N, 4] x) => (float[N, 1] y)
        <float[4, 5] a = {}, float[5, 5] w = {}, float[5, 1] v = {}, float r = {0.5}> {
            m = MatMul(x, a) h = Tanh(m) q = MatMul(h, w) d = Dropout(q, r) y = MatMul(d, v)
        }""",
        _rows(23, 4),
        _rows(23, 1),
        {"weights_to_train": ["w", "v"], "dropout": "on"},
    ),
    "heads": (
        """g (float[N, 4] x) => (float[N, 1] y, float[N, 2] z)
        <float[4, 3] a = {}, float[3, 1] w = {}, float[3, 2] v = {}, float[4, 2] u = {}> {
            m = MatMul(x, a) h = Tanh(m) y = MatMul(h, w) q = MatMul(h, v) r = MatMul(x, u) z = Add(q, r)
        }""",
        _rows(23, 4),
        {"y": _rows(23, 1), "z": _rows(23, 2)},
        {"weights_to_train": ["w", "v"], "loss": {"y": "squared_error", "z": "absolute_error"}},
    ),
    "head_without_weights": (
        """g (float[N, 4] x) => (float[N, 1] y, float[N, 2] z)
        <float[4, 3] a = {}, float[3, 1] w = {}, float[3, 2] v = {}> {
            m = MatMul(x, a) h = Tanh(m) y = MatMul(h, w) z = MatMul(h, v)
        }""",
        _rows(23, 4),
        {"y": _rows(23, 1), "z": _rows(23, 2)},
        {"weights_to_train": "w", "loss": {"y": "squared_error", "z": "absolute_error"}},
    ),
}

# Name -> model, what the message says, further options.
REFUSED = {
    "no_frozen_part": (
        "g (float[N, 4] x) => (float[N, 1] y) <float[4, 1] w = {}> { y = MatMul(x, w) }",
        "meets the data as they are",
        {},
    ),
    "mean_of_the_batch": (
        """g (float[N, 4] x) => (float[N, 1] y) <float[4, 4] a = {}, float[4, 1] w = {}> {
            m = MatMul(x, a) u = ReduceMean <axes = [0], keepdims = 1> (m) h = Sub(m, u) y = MatMul(h, w)
        }""",
        r"mixes rows of the batch \(by ReduceMean\)",
        {},
    ),
    "place_in_the_batch": (
        """g (float[N, 4] x) => (float[N, 1] y)
        <float[4, 4] a = {}, float[4, 1] w = {}, int64 i = {0}, int64 one = {1}, int64[1] last = {1}> {
            m = MatMul(x, a) s = Shape(x) n = Gather(s, i) r = Range(i, n, one) f = Cast <to = 1> (r)
            c = Unsqueeze(f, last) h = Add(m, c) y = MatMul(h, w)
        }""",
        "mixes rows of the batch: it is another for the first rows of the data",
        {},
    ),
    "dropout": (
        """g (float[N, 4] x) => (float[N, 1] y) <float[4, 4] a = {}, float[4, 1] w = {}> {
            m = MatMul(x, a) h = Dropout(m) y = MatMul(h, w)
        }""",
        r"\(Dropout\) drops other elements in every step",
        {"dropout": "on"},
    ),
    "batch_norm": (
        """g (float[N, 4] x) => (float[N, 1] y)
        <float[4, 4] a = {}, float[4] s = {1, 1, 1, 1}, float[4] o = {0, 0, 0, 0},
         float[4] mean = {0, 0, 0, 0}, float[4] var = {1, 1, 1, 1}, float[4, 1] w = {}> {
            m = MatMul(x, a) h = BatchNormalization(m, s, o, mean, var) y = MatMul(h, w)
        }""",
        r"\(BatchNormalization\) normalizes by the statistics of each batch",
        {"batch_norm": "update"},
    ),
    "random": (
        """g (float[N, 4] x) => (float[N, 1] y) <float[4, 4] a = {}, float[4, 1] w = {}> {
            m = MatMul(x, a) r = RandomNormalLike(m) h = Add(m, r) y = MatMul(h, w)
        }""",
        r"\(RandomNormalLike\) draws random numbers",
        {},
    ),
}


def model(name: str) -> onnx.ModelProto:
    """The model of a case."""
    return parsed((CASES.get(name) or REFUSED[name])[0])
