"""LSTM: the cells are computed again by a light Scan, for the node hands out only the last."""

from __future__ import annotations

import dataclasses

from onnxcustom.graph.builder import Var

from ..emit import GradientBuilder
from ..node import NodeView
from ..registry import rule
from .recurrent import C0, H0, Activation, Direction, Gradients, Layer, P, scan

__all__: list[str] = []


@rule("LSTM")
def lstm(op: GradientBuilder, node: NodeView, *dys: Var | None) -> Gradients:
    """cₜ = f cₜ₋₁ + i g, hₜ = o h(cₜ):  dcₜ += o h'(cₜ) dhₜ.

    The gates get dz = (g i' dcₜ, h(cₜ) o' dhₜ, cₜ₋₁ f' dcₜ, i g' dcₜ), the step before dcₜ₋₁ = f dcₜ
    and dhₜ₋₁ = dz r + dyₜ₋₁. A peephole p adds p dz to the gradient of the cell it reads.
    """
    coupled = bool(node.attr("input_forget", 0))
    layer = Layer(op, node, dys, ["Sigmoid", "Tanh", "Tanh"])
    return layer.gradients([_direction(s, node, coupled) for s in layer.directions()])


def _direction(s: Direction, node: NodeView, coupled: bool) -> dict[int, Var]:
    op = s.op
    act, act_g, act_h = s.activations
    act_h = dataclasses.replace(act_h, clip=None)
    zi, zo, zf, zg = op.Split(s.gates(), axis=-1, num_outputs=4, outputs=4)
    pi = po = pf = None
    g = act_g(op, zg)
    if s.p is not None:
        pi, po, pf = op.Split(s.p, axis=0, num_outputs=3, outputs=3)
        c = _cells_of_peepholes(s, zi, zf, g, pi, pf, act, coupled)
        c_before = s.previous(c, s.c0)
        zi, zo, zf = zi + c_before * pi, zo + c * po, zf + c_before * pf
    i, o = act(op, zi), act(op, zo)
    f = 1 - i if coupled else act(op, zf)
    if s.p is None:
        c = _cells(s, f, i * g)
        c_before = s.previous(c, s.c0)
    h = act_h(op, c)

    # Each gate's gradient is the cell's or the state's times a factor that no gradient enters.
    factor_i = s.masked((g - c_before if coupled else g) * act.slope(op, zi, i))
    factor_o = s.masked(h * act.slope(op, zo, o))
    factor_f = op.zeros_like(f) if coupled else s.masked(c_before * act.slope(op, zf, f))
    factor_g = s.masked(i * act_g.slope(op, zg, g))
    factors = op.Concat(factor_i, factor_o, factor_f, factor_g, axis=-1)
    to_cell, keep = s.masked(o * act_h.slope(op, c, h)), f
    if s.p is not None:
        to_cell = to_cell + factor_o * po
        keep = keep + factor_i * pi if coupled else keep + factor_i * pi + factor_f * pf
    # A transposed second operand is packed in less time.
    r = op.transpose(s.r, [1, 0])

    def step(
        inner: GradientBuilder, dh: Var, dy: Var | None, dc: Var, to_cell: Var, factors: Var, keep: Var
    ) -> tuple[Var, list[Var], list[Var]]:
        dc = dc + dh * to_cell
        dz = inner.Concat(dc, dh, dc, dc, axis=-1) * factors
        return inner.Gemm(dz, Var(inner, r.value), dy, transB=1), [dc * keep], [dz]

    dc = s.zeros() if s.dc is None else s.dc
    dh0, (dc0,), (dz,) = s.backward(step, [dc], [to_cell, factors, s.kept(keep)])
    found = {**s.weight_gradients(dz, node), H0: dh0, C0: dc0}
    if s.p is not None and node.needs[P]:
        di, do, df, _ = op.Split(dz, axis=-1, num_outputs=4, outputs=4)
        dp = [op.reduce_sum(d * at, [0, 1]) for d, at in ((di, c_before), (do, c), (df, c_before))]
        found[P] = op.Concat(*dp, axis=0)
    return found


def _cells(s: Direction, f: Var, new: Var) -> Var:
    """Cell of every step, (T, B, H): cₜ = f cₜ₋₁ + i g."""

    def step(inner: GradientBuilder, c: Var, f: Var, new: Var) -> tuple[list[Var], list[Var]]:
        kept = c * f
        # A body must not return one value twice.
        return [kept + new], [kept]

    first = s.zeros() if s.c0 is None else s.c0
    new = s.masked(new)
    return scan(s.op, step, [first], [s.kept(f), new], backwards=s.reverse)[1][0] + new


def _cells_of_peepholes(
    s: Direction, zi: Var, zf: Var, g: Var, pi: Var, pf: Var, act: Activation, coupled: bool
) -> Var:
    """The same where the gates read the cell before."""
    elements = [zi, g] if coupled else [zi, g, zf]
    if s.mask is not None:
        elements.append(s.mask)

    def step(inner: GradientBuilder, c: Var, zi: Var, g: Var, *rest: Var) -> tuple[list[Var], list[Var]]:
        i = act(inner, zi + c * Var(inner, pi.value))
        f = 1 - i if coupled else act(inner, rest[0] + c * Var(inner, pf.value))
        after = c * f + i * g
        if s.mask is not None:
            mask = rest[-1]
            after = after * mask + c * (1 - mask)
        return [after], [inner.Identity(after)]

    first = s.zeros() if s.c0 is None else s.c0
    return scan(s.op, step, [first], elements, backwards=s.reverse)[1][0]
