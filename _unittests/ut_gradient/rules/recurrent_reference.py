"""RNN, GRU and LSTM written down from the ONNX specification, sequence by sequence, in NumPy."""

from __future__ import annotations

import numpy as np

FUNCTIONS = {
    "Relu": lambda x, a, b: np.maximum(x, 0),
    "Tanh": lambda x, a, b: np.tanh(x),
    "Sigmoid": lambda x, a, b: 1 / (1 + np.exp(-x)),
    "Affine": lambda x, a, b: a * x + b,
    "LeakyRelu": lambda x, a, b: np.where(x >= 0, x, a * x),
    "ThresholdedRelu": lambda x, a, b: np.where(x >= a, x, 0),
    "ScaledTanh": lambda x, a, b: a * np.tanh(b * x),
    "HardSigmoid": lambda x, a, b: np.minimum(np.maximum(a * x + b, 0), 1),
    "Elu": lambda x, a, b: np.where(x >= 0, x, a * (np.exp(np.minimum(x, 0)) - 1)),
    "Softsign": lambda x, a, b: x / (1 + np.abs(x)),
    "Softplus": lambda x, a, b: np.logaddexp(0, x),
}
DEFAULTS = {"LeakyRelu": (0.01, None), "Elu": (1.0, None), "HardSigmoid": (0.2, 0.5)}
TAKES = {"Affine": 2, "LeakyRelu": 1, "ThresholdedRelu": 1, "ScaledTanh": 2, "HardSigmoid": 2, "Elu": 1}
ACTIVATIONS = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}


def recurrent(op_type: str, inputs: list, attributes: dict) -> list[np.ndarray]:
    """Y, Y_h and, of an LSTM, Y_c."""
    x, w, r, b, lengths, h0, c0, p = [*inputs, *[None] * (8 - len(inputs))]
    directions, hidden = r.shape[0], r.shape[2]
    swap = (lambda v: None if v is None else v.swapaxes(0, 1)) if attributes.get("layout") else (lambda v: v)
    x, h0, c0 = swap(x), swap(h0), swap(c0)
    steps, batch, _ = x.shape
    lengths = [steps] * batch if lengths is None else lengths
    functions = _functions(op_type, attributes, directions)
    n = len(functions) // directions
    y = np.zeros((steps, directions, batch, hidden), dtype=x.dtype)
    last = np.zeros((directions, batch, hidden), dtype=x.dtype)
    last_c = np.zeros((directions, batch, hidden), dtype=x.dtype)
    for d in range(directions):
        backwards = attributes.get("direction") == "reverse" or d == 1
        bias = np.zeros(2 * w.shape[1]) if b is None else b[d]
        for k in range(batch):
            h = np.zeros(hidden) if h0 is None else h0[d, k]
            c = np.zeros(hidden) if c0 is None else c0[d, k]
            order = range(lengths[k])
            for t in reversed(order) if backwards else order:
                h, c = _step(
                    op_type, attributes, functions[d * n : (d + 1) * n], x[t, k], h, c, w[d], r[d],
                    np.split(bias, 2), None if p is None else p[d],
                )  # fmt: skip
                y[t, d, k] = h
            if lengths[k]:
                last[d, k], last_c[d, k] = h, c
    if attributes.get("layout"):
        y, last, last_c = y.transpose(2, 0, 1, 3), last.swapaxes(0, 1), last_c.swapaxes(0, 1)
    return [y, last, last_c][: 3 if op_type == "LSTM" else 2]


def _functions(op_type: str, attributes: dict, directions: int) -> list:
    names = attributes.get("activations") or ACTIVATIONS[op_type] * directions
    alphas = list(attributes.get("activation_alpha") or [])
    betas = list(attributes.get("activation_beta") or [])
    clip = attributes.get("clip")
    made = []
    for name in names:
        a, b = DEFAULTS.get(name, (None, None))
        a = alphas.pop(0) if TAKES.get(name, 0) > 0 and alphas else a
        b = betas.pop(0) if TAKES.get(name, 0) > 1 and betas else b

        def function(z, clip=clip, name=name, a=a, b=b):
            return FUNCTIONS[name](z if clip is None else np.clip(z, -clip, clip), a, b)

        function.plain = lambda z, name=name, a=a, b=b: FUNCTIONS[name](z, a, b)
        made.append(function)
    return made


def _step(op_type, attributes, functions, x, h, c, w, r, biases, p):
    wb, rb = biases
    if op_type == "RNN":
        (f,) = functions
        return f(w @ x + r @ h + wb + rb), c
    if op_type == "GRU":
        f, g = functions
        wz, wr, wh = np.split(w @ x + wb, 3)
        rz, rr, rh = np.split(r, 3)
        bz, br, bh = np.split(rb, 3)
        z = f(wz + rz @ h + bz)
        reset = f(wr + rr @ h + br)
        if attributes.get("linear_before_reset"):
            new = g(wh + reset * (rh @ h + bh))
        else:
            new = g(wh + rh @ (reset * h) + bh)
        return (1 - z) * new + z * h, c
    f, g, last = functions
    zi, zo, zf, zc = np.split(w @ x + r @ h + wb + rb, 4)
    pi, po, pf = np.zeros((3, len(h))) if p is None else np.split(p, 3)
    i = f(zi + pi * c)
    forget = 1 - i if attributes.get("input_forget") else f(zf + pf * c)
    c = forget * c + i * g(zc)
    o = f(zo + po * c)
    return o * last.plain(c), c
