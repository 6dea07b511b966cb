"""LSTM: a Scan that hands out its gates takes the place of the forward node.

The node hands out neither gates nor cells. The gates could be computed again from its Y with one Gemm, and
the cells by a light Scan; that Gemm takes longer than what the Scan here loses against the node's kernel.
"""

from __future__ import annotations

import dataclasses

from onnxcustom.graph.building.builder import Var

from ..emit import GradientBuilder
from ..node import NodeView
from ..registry import rule
from .recurrent import C0, H0, Direction, Gradients, Layer, P, scan

__all__: list[str] = []


@rule("LSTM")
def lstm(op: GradientBuilder, node: NodeView, *dys: Var | None) -> Gradients:
    """cₜ = f cₜ₋₁ + i g, hₜ = o h(cₜ):  dcₜ += o h'(cₜ) dhₜ.

    The gates get dz = (g i' dcₜ, h(cₜ) o' dhₜ, cₜ₋₁ f' dcₜ, i g' dcₜ), the step before dcₜ₋₁ = f dcₜ
    and dhₜ₋₁ = dz r + dyₜ₋₁. A peephole p adds p dz to the gradient of the cell it reads.
    """
    coupled = bool(node.attr("input_forget", 0))
    layer = Layer(op, node, dys, ["Sigmoid", "Tanh", "Tanh"])
    directions = layer.directions(computed=True)
    forwards = [_Forward(s, coupled) for s in directions]
    layer.replace_outputs([forward.outputs() for forward in forwards])
    return layer.gradients(
        [_backward(s, forward, node) for s, forward in zip(directions, forwards, strict=True)]
    )


class _Forward:
    """All steps of a direction.

    Attributes
    ----------
    i, o, f, g, h : Var
        Gates, and what the last activation makes of the cell, of every step: (T, B, H).
    zi, zo, zf, zg : Var or None
        What their activations read, where the slope has to know.
    kept : Var
        f cₜ₋₁.
    last_h, last_c : Var
        States after all steps (B, H).
    """

    def __init__(self, s: Direction, coupled: bool) -> None:
        self.s, self.coupled = s, coupled
        self.act, self.act_g, act_h = s.activations
        self.act_h = dataclasses.replace(act_h, clip=None)
        self.pi = self.po = self.pf = None
        op = s.op
        if s.p is not None:
            self.pi, self.po, self.pf = op.Split(s.p, axis=0, num_outputs=3, outputs=3)
        from_x = s.steps(op.Gemm(s.rows(s.x), s.w, s.bias(), transB=1), s.w)
        elements = [from_x] if s.mask is None else [from_x, s.mask, 1 - s.mask]
        first = [s.zeros() if v is None else v for v in (s.h0, s.c0)]
        (self.last_h, self.last_c), collected = scan(op, self._step, first, elements, backwards=s.reverse)
        self.i, self.o, self.g, self.h, self.kept, *rest = collected
        self.f = 1 - self.i if coupled else rest.pop(0)
        self.zi = self.zo = self.zf = self.zg = None
        if not self.act.slope_of_value:
            self.zi, self.zo, self.zf = rest.pop(0), rest.pop(0), rest.pop(0)
        if not self.act_g.slope_of_value:
            self.zg = rest.pop(0)

    def _step(
        self, op: GradientBuilder, h: Var, c: Var, from_x: Var, *masks: Var
    ) -> tuple[list[Var], list[Var]]:
        """One step: the states after it, and what is collected."""
        r = Var(op, self.s.r.value)
        zi, zo, zf, zg = op.Split(op.Gemm(h, r, from_x, transB=1), axis=-1, num_outputs=4, outputs=4)
        zi, zf = _peep(op, zi, c, self.pi), _peep(op, zf, c, self.pf)
        i, g = self.act(op, zi), self.act_g(op, zg)
        f = 1 - i if self.coupled else self.act(op, zf)
        kept = f * c
        after = kept + i * g
        zo = _peep(op, zo, after, self.po)
        o, out = self.act(op, zo), self.act_h(op, after)
        state = o * out
        if masks:  # steps behind the end hand their states on
            inside, outside = masks
            state, after = (new * inside + old * outside for new, old in ((state, h), (after, c)))
        collected = [i, o, g, out, kept] if self.coupled else [i, o, g, out, kept, f]
        collected += [] if self.act.slope_of_value else [zi, zo, zf]
        collected += [] if self.act_g.slope_of_value else [zg]
        return [state, after], collected

    def outputs(self) -> list[Var]:
        """What takes the place of the node's outputs; with it the direction knows its own."""
        s, op = self.s, self.s.op
        y = op.unsqueeze(self.o, [1]) * op.unsqueeze(self.h, [1])
        self.y = op.squeeze(y, [1])
        s.y = s.masked(self.y)
        if s.mask is not None:
            y = op.unsqueeze(s.y, [1])
        return [y, op.unsqueeze(self.last_h, [0]), op.unsqueeze(self.last_c, [0])]


def _peep(op: GradientBuilder, z: Var, c: Var, p: Var | None) -> Var:
    return z if p is None else z + c * Var(op, p.value)


def _backward(s: Direction, v: _Forward, node: NodeView) -> dict[int, Var]:
    op, act = s.op, v.act
    new = v.i * v.g
    c = v.kept + new
    if s.mask is not None and s.reverse:
        # Steps behind the end come first, and hand the initial cell on.
        c = s.masked(c) if s.c0 is None else s.masked(c) + (1 - s.mask) * s.c0
    c_before = s.previous(c, s.c0)

    # Each gate's gradient is the cell's or the state's times a factor that no gradient enters.
    if v.coupled:
        factor_i = (v.g - c_before) * act.slope(op, v.i if v.zi is None else v.zi, v.i)
        factor_f = op.zeros_like(v.f)
    else:
        factor_i = act.times_slope(op, v.g, v.zi, v.i, new)
        factor_f = act.times_slope(op, c_before, v.zf, v.f, v.kept)
    factor_o = act.times_slope(op, v.h, v.zo, v.o, v.y)
    factor_g = v.act_g.times_slope(op, v.i, v.zg, v.g, new)
    factors = s.masked(op.Concat(factor_i, factor_o, factor_f, factor_g, axis=-1))
    to_cell, keep = v.act_h.times_slope(op, v.o, c, v.h, v.y), v.f
    if v.pi is not None and v.pf is not None and v.po is not None:
        to_cell = to_cell + factor_o * v.po
        keep = keep + factor_i * v.pi if v.coupled else keep + factor_i * v.pi + factor_f * v.pf
    # A transposed second operand is packed in less time.
    r = op.transpose(s.r, [1, 0])

    def step(
        inner: GradientBuilder, dh: Var, dy: Var | None, dc: Var, to_cell: Var, factors: Var, keep: Var
    ) -> tuple[Var, list[Var], list[Var]]:
        dc = dc + dh * to_cell
        dz = inner.Concat(dc, dh, dc, dc, axis=-1) * factors
        return inner.Gemm(dz, Var(inner, r.value), dy, transB=1), [dc * keep], [dz]

    dc = s.zeros() if s.dc is None else s.dc
    dh0, (dc0,), (dz,) = s.backward(step, [dc], [s.masked(to_cell), factors, s.kept(keep)])
    found = {**s.weight_gradients(dz, node), H0: dh0, C0: dc0}
    if s.p is not None and node.needs[P]:
        di, do, df, _ = op.Split(dz, axis=-1, num_outputs=4, outputs=4)
        dp = [op.reduce_sum(d * at, [0, 1]) for d, at in ((di, c_before), (do, c), (df, c_before))]
        found[P] = op.Concat(*dp, axis=0)
    return found
