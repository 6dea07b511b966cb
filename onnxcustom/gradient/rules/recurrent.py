"""What RNN, GRU and LSTM share, and the rule of RNN.

All three are differentiated the same way: the gates of all steps are computed with one Gemm from the
forward's own Y (those of an LSTM by a Scan that takes the place of the forward node), a Scan carries the
gradient of the state backwards, and one Gemm over all steps gives each weight's gradient. As in
onnxruntime, `clip` bounds what the gates' activations read and not the cell that an LSTM hands to its last
activation, and the final state of an empty sequence is zero.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcustom.exceptions import GradientNotImplementedError
from onnxcustom.graph.building.builder import Var

from ..emit import GradientBuilder
from ..node import NodeView
from ..registry import rule

__all__ = ["Activation", "Direction", "Layer", "scan"]

Gradients = list[Var | None]
X, W, R, B, LENGTHS, H0, C0, P = range(8)


# -- activations -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Activation:
    """An activation function of a recurrent node, spelt in operators with float64 kernels."""

    name: str
    alpha: float = 0.0
    beta: float = 0.0
    clip: float | None = None

    def __call__(self, op: GradientBuilder, z: Var) -> Var:
        """Y of z."""
        z = z if self.clip is None else op.Clip(z, -self.clip, self.clip)
        return _FUNCTIONS[self.name][0](op, z, self.alpha, self.beta)

    def slope(self, op: GradientBuilder, z: Var, y: Var) -> Var | float:
        """dy/dz, 0 where z is clipped (not at the bound); a number if it is the same everywhere."""
        inside = z if self.clip is None else op.Clip(z, -self.clip, self.clip)
        slope = _FUNCTIONS[self.name][1](op, inside, y, self.alpha, self.beta)
        return slope if self.clip is None else op.cast_like(op.Abs(z) <= self.clip, z) * slope

    @property
    def slope_of_value(self) -> bool:
        """Whether the slope is known from y alone."""
        return self.clip is None and self.name not in ("leakyrelu", "softsign", "softplus")

    def times_slope(self, op: GradientBuilder, v: Var, z: Var | None, y: Var, vy: Var) -> Var:
        """V dy/dz, in less operators where vy = v y spares some; z may be None if y is enough."""
        if self.clip is None and self.name == "sigmoid":
            return vy - vy * y
        if self.clip is None and self.name == "tanh":
            return v - vy * y
        return v * self.slope(op, y if z is None else z, y)


def _step(op: GradientBuilder, condition: Var, like: Var) -> Var:
    return op.cast_like(condition, like)


# Each by its value f(op, z, α, β) and its slope f(op, z, y, α, β).
_FUNCTIONS: dict[str, tuple[Callable[..., Var], Callable[..., Any]]] = {
    "sigmoid": (lambda op, z, a, b: op.Sigmoid(z), lambda op, z, y, a, b: y - y * y),
    "tanh": (lambda op, z, a, b: op.Tanh(z), lambda op, z, y, a, b: 1 - y * y),
    "relu": (lambda op, z, a, b: op.Relu(z), lambda op, z, y, a, b: _step(op, y > 0, y)),
    "affine": (lambda op, z, a, b: z * a + b, lambda op, z, y, a, b: a),
    "leakyrelu": (
        lambda op, z, a, b: op.Relu(z) + op.Min(z, 0) * a,
        lambda op, z, y, a, b: _step(op, z > 0, y) * (1 - a) + a,
    ),
    "thresholdedrelu": (
        lambda op, z, a, b: z * _step(op, z > a, z),
        lambda op, z, y, a, b: _step(op, z > a, y),
    ),
    "scaledtanh": (
        lambda op, z, a, b: op.Tanh(z * b) * a,
        lambda op, z, y, a, b: a * b - y * y * (b / a),
    ),
    "hardsigmoid": (
        lambda op, z, a, b: op.Clip(z * a + b, 0, 1),
        lambda op, z, y, a, b: _step(op, op.And(y > 0, y < 1), y) * a,
    ),
    "elu": (
        lambda op, z, a, b: op.Relu(z) + (op.Exp(op.Min(z, 0)) - 1) * a,
        lambda op, z, y, a, b: op.Where(z > 0, 1, y + a),
    ),
    "softsign": (
        lambda op, z, a, b: z / (1 + op.Abs(z)),
        lambda op, z, y, a, b: op.Reciprocal((1 + op.Abs(z)) * (1 + op.Abs(z))),
    ),
    "softplus": (
        lambda op, z, a, b: op.Relu(z) + op.Log(1 + op.Exp(-op.Abs(z))),
        lambda op, z, y, a, b: op.Sigmoid(z),
    ),
}
# Which take activation_alpha, activation_beta, and what they are by default; None: ONNX and
# onnxruntime have different ones.
_ALPHA = {"leakyrelu": 0.01, "elu": 1.0, "hardsigmoid": 0.2, "thresholdedrelu": None, "affine": None,
          "scaledtanh": None}  # fmt: skip
_BETA = {"hardsigmoid": 0.5, "affine": None, "scaledtanh": None}


def _activations(node: NodeView, default: Sequence[str], directions: int) -> list[Activation]:
    names = [str(n) for n in node.attr("activations", None) or [*default] * directions]
    unknown = [n for n in names if n.lower() not in _FUNCTIONS]
    if unknown:
        raise _not_implemented(node, f"its activation {unknown[0]!r} is none that ONNX lists")
    names = [n.lower() for n in names]
    alphas = _parameters(node, names, "activation_alpha", _ALPHA)
    betas = _parameters(node, names, "activation_beta", _BETA)
    clip = node.attr("clip", None)
    bound = None if clip is None else float(clip)
    return [Activation(name, a, b, bound) for name, a, b in zip(names, alphas, betas, strict=True)]


def _parameters(
    node: NodeView, names: list[str], attribute: str, known: dict[str, float | None]
) -> list[float]:
    """One of the numbers of each activation: those that take one consume the attribute in order."""
    given = [float(v) for v in node.attr(attribute, None) or []]
    takers = [name for name in names if name in known]
    if node.op_type == "RNN" and takers and not len(given) == len(takers) == len(names):
        raise _not_implemented(
            node,
            f"onnxruntime reads {attribute} of an RNN by direction and ONNX by activation; give it one value "
            "per direction, of activations that all take one",
        )
    values = []
    for name in names:
        value = 0.0 if name not in known else given.pop(0) if given else known[name]
        if value is None:
            raise _not_implemented(
                node,
                f"its activation {name!r} has no {attribute}, for which ONNX and onnxruntime have different "
                "defaults; write the value into the node",
            )
        values.append(value)
    return values


def _not_implemented(node: NodeView, what: str) -> GradientNotImplementedError:
    return GradientNotImplementedError(
        f"Node {node.name!r} ({node.op_type}) cannot be differentiated: {what}.",
        node=node.name,
        op_type=node.op_type,
        domain="",
        opset=node.version,
    )


# -- steps -----------------------------------------------------------------------------------------


def scan(
    op: GradientBuilder,
    body: Callable[..., tuple[Sequence[Var], Sequence[Var]]],
    states: Sequence[Var],
    elements: Sequence[Var],
    backwards: bool = False,
) -> tuple[list[Var], list[Var]]:
    """A Scan along the first axis.

    Parameters
    ----------
    op : GradientBuilder
        Builder of the graph around it.
    body : callable
        ``body(inner, *states, *elements) -> (next states, collected)`` of one step, emitted with the
        builder `inner`.
    states, elements : sequence of Var
        What the first step starts from; what is read step by step.
    backwards : bool
        Whether the last step comes first.

    Returns
    -------
    states : list of Var
        After all steps.
    collected : list of Var
        Stacked in the order of the elements.
    """
    inner = GradientBuilder(op.opset, taken=op.taken)
    dtype = elements[0].dtype or ir.DataType.FLOAT
    # onnxruntime wants to know the rank of what a body returns: (B, n) all of them.
    inputs = [inner.input(inner.unique("state"), dtype, [None, None]) for _ in states]
    inputs += [inner.input(inner.unique("element"), dtype, [None, None]) for _ in elements]
    after, collected = body(inner, *inputs)
    for v in (*after, *collected):
        v.value.shape = ir.Shape([None, None])
    graph = inner.graph(inputs, [*after, *collected], inner.unique("steps"))
    turn = int(backwards)
    made = op.call(
        "Scan",
        *states,
        *elements,
        outputs=["last_state"] * len(states) + ["steps"] * len(collected),
        body=graph,
        num_scan_inputs=len(elements),
        scan_input_directions=[turn] * len(elements),
        scan_output_directions=[turn] * len(collected) or None,
    )
    for v in made:
        v.value.type = ir.TensorType(dtype)
    return list(made[: len(states)]), list(made[len(states) :])


@dataclasses.dataclass
class Direction:
    """One direction of a node: tensors without the axis of directions, steps first.

    Attributes
    ----------
    x : Var
        Input (T, B, I).
    y : Var
        Output (T, B, H), 0 where a step belongs to no sequence; of a rule that computes it, None till then.
    w, r : Var
        Weights (G H, I) and (G H, H), G the number of gates.
    wb, rb : Var or None
        Biases (G H,).
    h0, c0 : Var or None
        Initial states (B, H).
    p : Var or None
        Peepholes (3 H,).
    dy, dh, dc : Var or None
        Gradients of y, of the last state and of the last cell.
    mask : Var or None
        1 where a step belongs to its sequence, else 0: (T, B, 1).
    activations : list of Activation
        Functions of the gates.
    reverse : bool
        Whether the last step comes first.
    """

    op: GradientBuilder
    x: Var
    y: Any
    w: Var
    r: Var
    wb: Var | None
    rb: Var | None
    h0: Var | None
    c0: Var | None
    p: Var | None
    dy: Var | None
    dh: Var | None
    dc: Var | None
    mask: Var | None
    activations: list[Activation]
    reverse: bool

    @functools.cached_property
    def h_before(self) -> Var:
        """State before each step."""
        y = self.y
        if self.mask is not None and self.reverse and self.h0 is not None:
            # Steps behind the end come first: there y is 0, and the initial state is handed on.
            y = y + (1 - self.mask) * self.h0
        return self.previous(y, self.h0)

    def previous(self, h: Var, first: Var | None) -> Var:
        """Value before each step: shifted by one step, the initial one first."""
        op = self.op
        if first is None:
            return self._shift(h)
        first = op.unsqueeze(first, [0])
        if self.reverse:
            return op.Concat(op.slice(h, [1], [np.iinfo(np.int64).max], [0]), first, axis=0)
        return op.Concat(first, op.slice(h, [0], [-1], [0]), axis=0)

    def _shift(self, v: Var) -> Var:
        before, after = ([-1], [1]) if self.reverse else ([1], [-1])
        shifted = self.op.pad(v, before, after, [0])
        shifted.value.shape = v.value.shape
        return shifted

    def gates(self) -> Var:
        """What the activations of all gates read, without peepholes: (T, B, G H)."""
        op = self.op
        rows = op.Concat(self.rows(self.x), self.rows(self.h_before), axis=1)
        weights = op.Concat(self.w, self.r, axis=1)
        return self.steps(op.Gemm(rows, weights, self.bias(), transB=1), self.w)

    def bias(self) -> Var | None:
        """Sum of both biases."""
        return None if self.wb is None else self.wb + self.rb

    def rows(self, v: Var) -> Var:
        """(T, B, n) as (T B, n)."""
        return self.op.Flatten(v, axis=2)

    def steps(self, v: Var, width: Var, axis: int = 0) -> Var:
        """(T B, n) as (T, B, n), n the size of `width` along an axis."""
        op = self.op
        return op.reshape_parts(v, [op.size(self.x, 0), op.size(self.x, 1), op.size(width, axis)])

    def masked(self, v: Var) -> Var:
        """`v` where a step belongs to its sequence, else 0."""
        return v if self.mask is None else v * self.mask

    def kept(self, v: Var) -> Var:
        """`v` where a step belongs to its sequence, else 1: the factor of a state that is handed on."""
        return v if self.mask is None else v * self.mask + (1 - self.mask)

    def zeros(self) -> Var:
        """Zeros of the shape of a state (B, H)."""
        op = self.op
        if self.h0 is not None:
            return op.zeros_like(self.h0)
        sizes = [op.size(self.x, 1), op.size(self.r, 1)]
        dtype = self.x.dtype or ir.DataType.FLOAT
        return op.ConstantOfShape(op.sizes_vector(sizes), value=ir.tensor(np.zeros(1, dtype=dtype.numpy())))

    def backward(
        self,
        body: Callable[..., tuple[Var, Sequence[Var], Sequence[Var]]],
        cells: Sequence[Var],
        elements: Sequence[Var],
    ) -> tuple[Var, list[Var], list[Var]]:
        """The Scan from the last step to the first.

        Parameters
        ----------
        body : callable
            ``body(inner, dh, dy, *cells, *elements) -> (gradient of the state before, cells,
            collected)``: `body` adds `dy`, what reaches the state before from Y; None if nothing does.
        cells, elements : sequence of Var
            Further states and elements.

        Returns
        -------
        dh0, cells, collected
        """
        op = self.op
        dh, dy = self.dh, None
        if self.dy is not None:
            dy_masked = self.masked(self.dy)
            last = op.Gather(dy_masked, 0 if self.reverse else -1)
            dh = last if dh is None else dh + last
            # A step adds what reaches the state before it.
            dy = self._shift(dy_masked)
        if dh is None:
            dh = self.zeros()
        given = [v for v in (dy, None if self.mask is None else 1 - self.mask) if v is not None]

        def step(inner: GradientBuilder, dh: Var, *rest: Var) -> tuple[Sequence[Var], Sequence[Var]]:
            inner_cells, rest = rest[: len(cells)], rest[len(cells) :]
            own, rest = list(rest[: len(given)]), rest[len(given) :]
            extra = own.pop(0) if dy is not None else None
            if own:  # steps behind the end hand the gradient on
                handed = dh * own.pop()
                extra = handed if extra is None else extra + handed
            before, after, collected = body(inner, dh, extra, *inner_cells, *rest)
            return [before, *after], collected

        states, collected = scan(op, step, [dh, *cells], [*given, *elements], backwards=not self.reverse)
        return states[0], states[1:], collected

    def weight_gradients(self, dz: Var, node: NodeView) -> dict[int, Var]:
        """Gradients that the one of the gates (T, B, G H) gives where state and input enter alike."""
        op, rows = self.op, self.rows(dz)
        found = {X: self.steps(op.Gemm(rows, self.w), self.x, 2)}
        found[W] = op.Gemm(rows, self.rows(self.x), transA=1)
        found[R] = op.Gemm(rows, self.rows(self.h_before), transA=1)
        if self.wb is not None and node.needs[B]:
            db = op.reduce_sum(rows, [0])
            found[B] = op.Concat(db, db, axis=0)
        return found


class Layer:
    """All directions of a node: takes them apart and puts their gradients together."""

    def __init__(
        self, op: GradientBuilder, node: NodeView, dys: Sequence[Var | None], functions: Sequence[str]
    ) -> None:
        self.op, self.node = op, node
        self.batch_first = bool(node.attr("layout", 0))
        direction = node.attr("direction", "forward")
        self.turns = [False, True] if direction == "bidirectional" else [direction == "reverse"]
        self.dys = [*dys, *[None] * (3 - len(dys))]
        self.activations = _activations(node, functions, len(self.turns))
        self.per_direction = len(self.activations) // len(self.turns)

    def directions(self, computed: bool = False) -> list[Direction]:
        """Each direction of the node; with its output unless that is to be computed by the rule."""
        op, node = self.op, self.node
        x = self._swap(node.inputs[X])
        y = None if computed else self._swap_y(node.require_output(0, node.inputs[X].dtype))
        dy = self._swap_y(self.dys[0])
        dh, dc = self._swap(self.dys[1]), self._swap(self.dys[2])
        h0, c0 = self._swap(node.input(H0)), self._swap(node.input(C0))
        mask, lengths = None, node.input(LENGTHS)
        if lengths is not None:
            inside = self._inside(x, lengths)
            # Whatever stands behind the end of a sequence, NaN even, must not count.
            x = op.Where(inside, x, 0)
            mask = op.cast_like(inside, x)
            some = op.cast_like(op.unsqueeze(lengths > 0, [1]), x)
            dh, dc = (None if v is None else v * some for v in (dh, dc))
        made = []
        for d, reverse in enumerate(self.turns):
            bias = self._pick(node.input(B), d)
            wb, rb = (None, None) if bias is None else op.Split(bias, axis=0, num_outputs=2, outputs=2)
            made.append(
                Direction(
                    op=op,
                    x=x,
                    y=self._pick(y, d, 1),
                    w=self._pick(node.inputs[W], d),
                    r=self._pick(node.inputs[R], d),
                    wb=wb,
                    rb=rb,
                    h0=self._pick(h0, d),
                    c0=self._pick(c0, d),
                    p=self._pick(node.input(P), d),
                    dy=self._pick(dy, d, 1),
                    dh=self._pick(dh, d),
                    dc=self._pick(dc, d),
                    mask=mask,
                    activations=self.activations[d * self.per_direction : (d + 1) * self.per_direction],
                    reverse=reverse,
                )
            )
        return made

    def replace_outputs(self, made: Sequence[Sequence[Var]]) -> None:
        """Outputs of all directions in place of the node's: Y (T, 1, B, H), last states (1, B, H)."""
        op, node = self.op, self.node
        lengths = node.input(LENGTHS)
        for k, parts in enumerate(zip(*made, strict=True)):
            whole = op.concat(parts, axis=0 if k else 1)
            if k and lengths is not None:
                whole = whole * op.cast_like(op.unsqueeze(lengths > 0, [1]), whole)
            if self.batch_first:
                whole = op.transpose(whole, [1, 0, 2] if k else [2, 0, 1, 3])
            node.replace_output(k, whole)

    def gradients(self, parts: Sequence[dict[int, Var]]) -> Gradients:
        """One entry per input of the node, from those of each direction."""
        op = self.op
        found: Gradients = [None] * len(self.node.inputs)
        for i in range(len(found)):
            of_i = [part[i] for part in parts if part.get(i) is not None]
            if not of_i:
                continue
            if i == X:
                found[i] = self._swap(of_i[0] if len(of_i) == 1 else of_i[0] + of_i[1])
            else:
                stacked = op.concat([op.unsqueeze(v, [0]) for v in of_i])
                found[i] = self._swap(stacked) if i in (H0, C0) else stacked
        return found

    def _inside(self, x: Var, lengths: Var) -> Var:
        """Which steps belong to their sequence: bool (T, B, 1)."""
        op = self.op
        step = op.Range(0, op.squeeze(op.dim(x, 0), [0]), 1)
        return op.unsqueeze(op.unsqueeze(step, [1]) < op.Cast(lengths, to=ir.DataType.INT64), [2])

    def _pick(self, v: Any, d: int, axis: int = 0) -> Any:
        if v is None:
            return None
        return self.op.squeeze(v, [axis]) if len(self.turns) == 1 else self.op.Gather(v, d, axis=axis)

    def _swap(self, v: Any) -> Any:
        """Steps, or directions, before the batch; and back."""
        return self.op.transpose(v, [1, 0, 2]) if self.batch_first and v is not None else v

    def _swap_y(self, v: Any) -> Any:
        return self.op.transpose(v, [1, 2, 0, 3]) if self.batch_first and v is not None else v


# -- RNN -------------------------------------------------------------------------------------------


@rule("RNN")
def rnn(op: GradientBuilder, node: NodeView, *dys: Var | None) -> Gradients:
    """hₜ = f(zₜ), zₜ = xₜ wᵀ + hₜ₋₁ rᵀ + b:  dzₜ = f'(zₜ) dhₜ,  dhₜ₋₁ = dzₜ r + dyₜ₋₁.

    Over all steps dw = dzᵀ x, dr = dzᵀ h, dx = dz w.
    """
    layer = Layer(op, node, dys, ["Tanh"])
    parts = []
    for s in layer.directions():
        (f,) = s.activations
        z = s.gates()
        slope = f.slope(op, z, s.y)
        slope = s.masked(slope if isinstance(slope, Var) else op.full_like(z, slope))

        def step(
            inner: GradientBuilder, dh: Var, dy: Var | None, slope: Var
        ) -> tuple[Var, list[Var], list[Var]]:
            dz = dh * slope
            return inner.Gemm(dz, Var(inner, s.r.value), dy), [], [dz]  # noqa: B023

        dh0, _, (dz,) = s.backward(step, [], [slope])
        parts.append({**s.weight_gradients(dz, node), H0: dh0})
    return layer.gradients(parts)
