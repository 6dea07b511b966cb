"""Compare a gradient with directional finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper

from onnxcustom.exceptions import DifferentiationError, InvalidDataError, OnnxCustomError
from onnxcustom.gradient import GradientNames, gradient_graph
from onnxcustom.graph import constants, load, weights

from .precision import feeds_as, is_float, to_double, to_single

__all__ = ["Checked", "GradientCheck", "check_gradient", "random_feeds"]

Feeds = Mapping[str, np.ndarray]
Function = Callable[[Feeds], Sequence[np.ndarray]]

# Relative to Σ |gradient · direction|. A gradient in float32 is good to 1e-6 or so, and a model that
# runs in float32 only leaves half of the digits to a difference quotient.
_TOLERANCE = {"float64": 1e-6, "float32": 2e-4, "single": 1e-2}
_STEP = {"float64": 1e-6, "float32": 1e-6, "single": 1e-2}


@dataclass(frozen=True)
class Checked:
    """One comparison.

    Parameters
    ----------
    name : str
        The input or weight.
    direction : {'aligned', 'random'}
        Aligned: the signs are those of the gradient, so that nothing cancels.
    analytic, numeric : float
        The inner product of gradient and direction, and the difference quotient.
    error : float
        Their difference relative to the sum of the absolute values of the products.
    """

    name: str
    direction: str
    analytic: float
    numeric: float
    error: float


@dataclass(frozen=True)
class GradientCheck:
    """The result of :func:`check_gradient`.

    Parameters
    ----------
    precision : {'float64', 'float32', 'single'}
        'float64': gradient and differences in float64; 'float32': the gradient in float32, differences in
        float64; 'single': both in float32, for want of kernels.
    tolerance : float
        The largest relative error allowed.
    rows : tuple of Checked
        All comparisons.
    """

    precision: str
    tolerance: float
    rows: tuple[Checked, ...]

    @property
    def error(self) -> float:
        """The largest relative error."""
        return max((row.error for row in self.rows), default=0.0)


def check_gradient(
    model: object,
    feeds: Feeds | None = None,
    *,
    wrt: Sequence[str] | None = None,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    engine: Any = "auto",
    gradient: onnx.ModelProto | None = None,
    seed: int = 0,
    tolerance: float | None = None,
    step: float | None = None,
) -> GradientCheck:
    """Compare the gradient of a model with directional finite differences.

    One inner product checks a whole Jacobian: for random gradients s of the outputs and a random
    direction d, Σ g d = (f(x + h d) - f(x - h d)) / 2h with f = Σ s y [autograd's ``check_vjp``]. Everything
    is done in float64, by casting the model, where the kernels exist, else in float32, never in 16 bits: the
    difference quotient would have no digits left. A gradient wrong by 0.1 % fails.

    Parameters
    ----------
    model : ModelProto, str, bytes, onnx_ir.Model
        Anything :func:`onnxcustom.load` takes.
    feeds : dict of str to ndarray, optional
        Where to differentiate: inputs, and weights that shall have other values than in the model.
        Inputs left out are drawn from a normal distribution (symbolic dimensions are 3; integers are 0). The
        point must not be near a kink.
    wrt, inputs, outputs, engine : optional
        As in :func:`onnxcustom.gradient_graph`.
    gradient : ModelProto, optional
        Check this gradient graph in place of the engine's.
    seed : int, default=0
        Of everything random.
    tolerance : float, optional
        Largest error relative to ``Σ |g d|``; by default 1e-6 in float64, 2e-4 if the gradient runs in
        float32 only, 1e-2 if the model does too.
    step : float, optional
        h, by default 1e-6, or 1e-2 if the model runs in float32 only.

    Returns
    -------
    GradientCheck
        Precision, tolerance and all comparisons.

    Raises
    ------
    AssertionError
        If one comparison fails; the message names the tensor and both numbers.

    Examples
    --------
    >>> import onnx
    >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["": 17]>
    ... g (float[N, 2] x) => (float[N, 1] y) <float[2, 1] w = {1, 2}> { z = MatMul (x, w) y = Tanh (z) }''')
    >>> result = check_gradient(model)
    >>> result.precision, sorted({row.name for row in result.rows})
    ('float64', ['w', 'x'])
    """
    proto = load(model)  # type: ignore[arg-type]
    point = random_feeds(proto, seed)
    point.update(weights(proto))
    point.update(constants(proto, [name for name in wrt or () if name not in point]))
    for name, value in (feeds or {}).items():
        # Onto the type of the model's tensor: a list or float64 is welcome for a float32 input.
        point[name] = np.asarray(value, dtype=point[name].dtype if name in point else None)
    names, gradient_of, precision = _gradient(proto, point, gradient, engine, wrt, inputs, outputs)
    proto = to_single(proto)
    parameters = [n for n in names.weights if n in names.gradients or n in point]
    function, exact = _function(proto, names, parameters, point)
    if not exact:
        precision = "single"
    limit = _TOLERANCE[precision] if tolerance is None else tolerance
    h = _STEP[precision] if step is None else step
    # Not the stream that random_feeds draws from: xᵀ x would hide a transposed gradient.
    rows = _compare(names, point, gradient_of, function, np.random.default_rng([seed, 1]), h)
    if not rows:
        raise AssertionError(
            "There is nothing to compare: the model has no gradient with respect to anything."
        )
    for row in rows:
        if not row.error <= limit:
            raise AssertionError(
                f"The gradient with respect to {row.name!r} is wrong: its inner product with a "
                f"{row.direction} direction is {row.analytic:.9g}, the difference quotient {row.numeric:.9g} "
                f"(relative error {row.error:.2g}, allowed {limit:.2g}, {precision})."
            )
    return GradientCheck(precision, limit, tuple(rows))


def random_feeds(model: onnx.ModelProto, seed: int = 0, dim: int = 3) -> dict[str, np.ndarray]:
    """Values for a model's inputs.

    Parameters
    ----------
    model : ModelProto
        The model.
    seed : int, default=0
        Seed of the generator.
    dim : int, default=3
        Size of dimensions that are not static.

    Returns
    -------
    dict of str to ndarray
        Normal values for floating-point inputs, zeros for others.
    """
    rng = np.random.default_rng(seed)
    fixed = {i.name for i in model.graph.initializer}
    feeds = {}
    for info in model.graph.input:
        tensor = info.type.tensor_type
        if info.name in fixed or not info.type.HasField("tensor_type"):
            continue
        shape = [d.dim_value if d.HasField("dim_value") else dim for d in tensor.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        if is_float(dtype):
            feeds[info.name] = np.asarray(rng.normal(size=shape)).astype(dtype)
        else:
            feeds[info.name] = np.zeros(shape, dtype)
    return feeds


# -- gradient and function ---------------------------------------------------------------------


def _gradient(
    model: onnx.ModelProto,
    point: Feeds,
    given: onnx.ModelProto | None,
    engine: Any,
    wrt: Sequence[str] | None,
    inputs: Sequence[str] | None,
    outputs: Sequence[str] | None,
) -> tuple[GradientNames, Function, str]:
    """The gradient as a function of inputs, weights and seeds, in float64 if that can be had."""
    single, problem = given, None
    if single is None:
        try:
            single = gradient_graph(model, wrt, inputs, outputs, engine)
        except DifferentiationError as exc:
            problem = exc
    expected = None if single is None else GradientNames.of(single)
    wide = to_double(model)
    try:
        double = to_double(given) if given is not None else gradient_graph(wide, wrt, inputs, outputs, engine)
        names = GradientNames.of(double)
        if expected is None or names.gradients == expected.gradients:
            function = _session_function(double)
            function({**point, **_seed_shapes(names, wide, point)})
            return names, function, "float64"
    except (OnnxCustomError, TypeError):
        pass
    if problem is not None:
        raise problem
    assert single is not None
    assert expected is not None
    return expected, _session_function(to_single(single)), "float32"


def _seed_shapes(names: GradientNames, model: onnx.ModelProto, point: Feeds) -> dict[str, np.ndarray]:
    """Zeros for the gradients of the outputs."""
    session = _session_function(model)
    values = dict(zip(names.outputs, session(point), strict=False))
    return {seed: np.zeros_like(values[output]) for output, seed in names.seeds.items()}


def _function(
    model: onnx.ModelProto, names: GradientNames, parameters: Sequence[str], point: Feeds
) -> tuple[Function, bool]:
    """The model as a function of its inputs and weights, in any precision, and whether it is float64's."""
    from onnxcustom.graph import prepare, to_proto

    # The reference evaluator takes BatchNormalization before opset 14 for training.
    prepared = prepare(model, opset=15)
    for name in parameters:
        value = prepared.graph.initializers.pop(name)
        value.const_value = None
        prepared.graph.inputs.append(value)
    proto = to_proto(prepared)
    double = to_double(proto)
    wanted = {i.name for i in proto.graph.input}
    feeds = {k: v for k, v in point.items() if k in wanted}
    plain = _session_function(proto)
    expected = plain(feeds)
    for make in (_session_function, _reference):
        try:
            function = make(double)
            got = function(_as_double(feeds))
        except Exception:  # the evaluator raises whatever NumPy does
            continue
        if _agree(got, expected):
            return (lambda f, function=function: function(_as_double(f))), True
    return plain, False


def _as_double(feeds: Feeds) -> dict[str, np.ndarray]:
    return feeds_as(feeds, dict.fromkeys(feeds, np.dtype(np.float64)))


def _agree(double: Sequence[np.ndarray], single: Sequence[np.ndarray]) -> bool:
    """Whether outputs are really computed in float64, and are those of the model."""
    for a, b in zip(double, single, strict=True):
        if np.asarray(a).dtype == np.float32:
            return False
        if np.asarray(b).dtype.kind == "f" and not np.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True):
            return False
    return True


def _session_function(model: onnx.ModelProto) -> Function:
    from onnxcustom.runtime import create_session, run_values, to_ortvalue

    session = create_session(model, threads=1)
    dtypes = {
        i.name: helper.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type)
        for i in model.graph.input
        if i.type.HasField("tensor_type")
    }
    inputs = [i.name for i in session.get_inputs()]
    outputs = [o.name for o in session.get_outputs()]

    def run(feeds: Feeds) -> list[np.ndarray]:
        missing = [n for n in inputs if n not in feeds]
        if missing:
            raise InvalidDataError(f"No value for input {', '.join(map(repr, missing))}.")
        values = {n: to_ortvalue(v) for n, v in feeds_as({n: feeds[n] for n in inputs}, dtypes).items()}
        return [np.array(v.numpy()) for v in run_values(session, values, outputs)]

    return run


def _reference(model: onnx.ModelProto) -> Function:
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import OpRun

    class Erf(OpRun):
        """The evaluator's own computes in float32."""

        def _run(self, x: np.ndarray) -> tuple[np.ndarray]:
            return (np.vectorize(math.erf, otypes=[x.dtype])(x),)

    evaluator = ReferenceEvaluator(model, new_ops=[Erf])
    return lambda feeds: list(evaluator.run(None, dict(feeds)))


# -- comparison --------------------------------------------------------------------------------


def _compare(
    names: GradientNames,
    point: Feeds,
    gradient_of: Function,
    function: Function,
    rng: np.random.Generator,
    h: float,
) -> Iterator[Checked] | list[Checked]:
    known = {n: np.asarray(point[n]) for n in (*names.inputs, *names.weights)}
    values = dict(zip(names.outputs, function(known), strict=False))
    seeds = {output: rng.normal(size=np.shape(values[output])) for output in names.seeds}

    def scalar(feeds: Feeds) -> float:
        found = dict(zip(names.outputs, function(feeds), strict=False))
        return sum(float(np.sum(np.asarray(found[o], np.float64) * s)) for o, s in seeds.items())

    fed = {**known, **{names.seeds[o]: s for o, s in seeds.items()}}
    gradients = dict(zip(names.gradients, gradient_of(fed), strict=False))
    rows = []
    for name, gradient in gradients.items():
        g = np.asarray(gradient, np.float64)
        signs = np.where(g == 0, rng.choice([-1.0, 1.0], size=g.shape), np.sign(g))
        size = rng.uniform(0.5, 1.5, size=g.shape)
        for kind, direction in (("aligned", signs * size), ("random", rng.normal(size=g.shape))):
            moved = [
                scalar({**known, name: np.asarray(known[name].astype(np.float64) + sign * h * direction)})
                for sign in (1, -1)
            ]
            numeric, analytic = (moved[0] - moved[1]) / (2 * h), float(np.sum(g * direction))
            scale = float(np.sum(np.abs(g * direction))) + abs(numeric)
            rows.append(Checked(name, kind, analytic, numeric, abs(numeric - analytic) / max(scale, 1e-3)))
            if g.shape != known[name].shape:
                raise AssertionError(
                    f"The gradient of {name!r} has shape {g.shape}, not {known[name].shape}."
                )
    return rows
