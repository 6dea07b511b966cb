"""GRU, with the reset gate before or behind the recurrent product."""

from __future__ import annotations

from onnxcustom.graph.building.builder import Var

from ..emit import GradientBuilder
from ..node import NodeView
from ..registry import rule
from .recurrent import H0, B, Direction, Gradients, Layer, R, W, X

__all__: list[str] = []


@rule("GRU")
def gru(op: GradientBuilder, node: NodeView, *dys: Var | None) -> Gradients:
    """hₜ = (1 - z) n + z hₜ₋₁:  dn = (1 - z) n' dhₜ,  dz = (hₜ₋₁ - n) z' dhₜ,  dhₜ₋₁ = z dhₜ + ...

    With linear_before_reset n = g(x wₙᵀ + b + r q), q = hₜ₋₁ rₙᵀ + c:
    dr = q r' dn,  dq = r dn,  dhₜ₋₁ += (dz dr dq) R.
    Else n = g(x wₙᵀ + b + q rₙᵀ), q = r hₜ₋₁:
    dq = dn rₙ,  dr = hₜ₋₁ r' dq,  dhₜ₋₁ += r dq + (dz dr) R.
    """
    layer = Layer(op, node, dys, ["Sigmoid", "Tanh"])
    direction = _linear_before_reset if node.attr("linear_before_reset", 0) else _reset_before
    return layer.gradients([direction(s, node) for s in layer.directions()])


def _linear_before_reset(s: Direction, node: NodeView) -> dict[int, Var]:
    op = s.op
    act, act_n = s.activations
    from_x = s.steps(op.Gemm(s.rows(s.x), s.w, s.wb, transB=1), s.w)
    from_h = s.steps(op.Gemm(s.rows(s.h_before), s.r, s.rb, transB=1), s.w)
    xz, xr, xn = op.Split(from_x, axis=-1, num_outputs=3, outputs=3)
    hz, hr, q = op.Split(from_h, axis=-1, num_outputs=3, outputs=3)
    zz, zr = xz + hz, xr + hr
    z, r = act(op, zz), act(op, zr)
    zn = xn + r * q
    n = act_n(op, zn)

    # The gradient of every gate is dh times a factor that no gradient enters.
    factor_z = s.masked((s.h_before - n) * act.slope(op, zz, z))
    factor_n = s.masked((1 - z) * act_n.slope(op, zn, n))
    factor_r = factor_n * q * act.slope(op, zr, r)
    factors = op.Concat(factor_z, factor_r, factor_n * r, axis=-1)
    weight = op.transpose(s.r, [1, 0])

    def step(
        inner: GradientBuilder, dh: Var, dy: Var | None, factors: Var, factor_n: Var, z: Var
    ) -> tuple[Var, list[Var], list[Var]]:
        dz = inner.Concat(dh, dh, dh, axis=-1) * factors
        handed = dh * z
        before = handed if dy is None else handed + dy
        return inner.Gemm(dz, Var(inner, weight.value), before, transB=1), [], [dz, dh * factor_n]

    dh0, _, (dz, dn) = s.backward(step, [], [factors, factor_n, s.masked(z)])
    # dz is the gradient of what the state contributes to each gate; x enters n past the reset gate.
    gates, _ = _split_last(s, dz)
    of_x, of_h = s.rows(op.Concat(gates, dn, axis=-1)), s.rows(dz)
    found = {H0: dh0, X: s.steps(op.Gemm(of_x, s.w), s.x, 2)}
    found[W] = op.Gemm(of_x, s.rows(s.x), transA=1)
    found[R] = op.Gemm(of_h, s.rows(s.h_before), transA=1)
    if s.wb is not None and node.needs[B]:
        found[B] = op.Concat(op.reduce_sum(of_x, [0]), op.reduce_sum(of_h, [0]), axis=0)
    return found


def _reset_before(s: Direction, node: NodeView) -> dict[int, Var]:
    op = s.op
    act, act_n = s.activations
    from_x = s.steps(op.Gemm(s.rows(s.x), s.w, s.bias(), transB=1), s.w)
    gates_x, xn = _split_last(s, from_x)
    r_gates, r_n = _split_rows(s, s.r)
    gates = s.steps(op.Gemm(s.rows(s.h_before), r_gates, s.rows(gates_x), transB=1), r_gates)
    zz, zr = op.Split(gates, axis=-1, num_outputs=2, outputs=2)
    z, r = act(op, zz), act(op, zr)
    q = s.rows(r * s.h_before)
    zn = s.steps(op.Gemm(q, r_n, s.rows(xn), transB=1), r_n)
    n = act_n(op, zn)

    factor_z = s.masked((s.h_before - n) * act.slope(op, zz, z))
    factor_n = s.masked((1 - z) * act_n.slope(op, zn, n))
    factor_r = s.h_before * act.slope(op, zr, r)
    weight, weight_n = op.transpose(r_gates, [1, 0]), op.transpose(r_n, [1, 0])

    def step(
        inner: GradientBuilder,
        dh: Var,
        dy: Var | None,
        factor_z: Var,
        factor_n: Var,
        factor_r: Var,
        z: Var,
        r: Var,
    ) -> tuple[Var, list[Var], list[Var]]:
        dn = dh * factor_n
        dq = inner.Gemm(dn, Var(inner, weight_n.value), transB=1)
        dz = inner.Concat(dh * factor_z, dq * factor_r, axis=-1)
        handed = dh * z + dq * r
        before = handed if dy is None else handed + dy
        return inner.Gemm(dz, Var(inner, weight.value), before, transB=1), [], [dz, dn]

    elements = [factor_z, factor_n, factor_r, s.masked(z), s.masked(r)]
    dh0, _, (dz, dn) = s.backward(step, [], elements)
    found = s.weight_gradients(op.Concat(dz, dn, axis=-1), node)
    rows = s.rows(dz)
    found[R] = op.Concat(
        op.Gemm(rows, s.rows(s.h_before), transA=1), op.Gemm(s.rows(dn), q, transA=1), axis=0
    )
    return {**found, H0: dh0}


def _split_last(s: Direction, v: Var) -> tuple[Var, Var]:
    """The part of the gates z and r (..., 2 H) and that of n (..., H)."""
    return _split(s, v, -1)


def _split_rows(s: Direction, v: Var) -> tuple[Var, Var]:
    """The rows of the gates z and r, and those of n."""
    return _split(s, v, 0)


def _split(s: Direction, v: Var, axis: int) -> tuple[Var, Var]:
    op = s.op
    size = op.size(s.r, 1)
    parts = op.sizes_vector([2 * size, size])
    return op.Split(v, parts, axis=axis, outputs=2)
