"""Which tensors of a model are weights, and putting new ones in their place."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping

import numpy as np
import onnx
import onnx_ir as ir

from onnxcustom.exceptions import InvalidDataError, UnknownNameError
from onnxcustom.graph.analysis.operands import is_float
from onnxcustom.graph.analysis.traversal import value_names
from onnxcustom.graph.files import training_info
from onnxcustom.graph.files.io import ModelLike, to_ir, to_proto
from onnxcustom.graph.preparation.guards import NameOutputsPass
from onnxcustom.graph.preparation.passes import SeparateOutputsPass
from onnxcustom.graph.preparation.prepare import Prepared, structure
from onnxcustom.graph.preparation.sites import site_of, tag
from onnxcustom.graph.preparation.statistics import separated
from onnxcustom.graph.trainable.finding import trainable_values

__all__ = [
    "constants",
    "rename_weights",
    "replace_constants",
    "replace_weights",
    "trainable_values",
    "weights",
    "with_constants",
    "written",
]


# -- public functions ------------------------------------------------------------------------


def weights(model: ModelLike | Prepared) -> dict[str, np.ndarray]:
    """Find what can be trained in a model.

    A weight is a floating-point tensor of more than one element, in an initializer or a constant,
    that the model reads as a differentiable data operand: also behind ``Identity``, in branches of
    If, Loop and Scan, in functions, and the coefficients of LinearRegressor and LinearClassifier.
    A tensor of one element is one only as operand of Conv, Gemm, MatMul, a normalization, or as a
    bias added to one of these. Never: bounds, exponents, scales of Resize or of quantization,
    statistics of BatchNormalization, what feeds shapes only, masks (zeros and numbers of -1e4 or less
    that are added to attention scores), initial states of RNN, GRU and LSTM, tables of cosines and
    sines that rotate, what positions are multiplied by before Cos and Sin or on the way to attention
    scores, grids of coordinates, Fourier bases, windows, banks of filters, ones and zeros of the
    InstanceNormalization that exporters write for groups of channels and of a normalization of weights,
    an epsilon below 1e-3 before a logarithm, a root, a power or a division, what holds NaN or infinity,
    and the constants of a scaler in front of the model, be it a ``Scaler`` or written out (one constant
    for each column subtracted from a model input, another multiplied or divided by).
    :func:`onnxcustom.gradient_report` says what was left out and why; whatever is named in a list of
    weights is trained all the same, unless it holds NaN or infinity.

    Parameters
    ----------
    model : str, path, bytes, file object, onnx.ModelProto, onnx_ir.Model or Prepared
        The model in any form.

    Returns
    -------
    dict of str to ndarray
        Copies of the weights in their own dtype, in the order in which the graph reads them. Names are
        the model's own. Where it has none, or two branches have the same, names are made up, the same
        for the model, its prepared form and the trained model.

    Examples
    --------
    >>> import onnx.parser
    >>> model = onnx.parser.parse_model('''
    ...     <ir_version: 8, opset_import: ["": 18]>
    ...     g (float[N, 2] x) => (float[N, 1] y) <float[2, 1] w = {1, 2}, float[1] b = {3}> {
    ...         y = Gemm(x, w, b)
    ...     }''')
    >>> for name, array in weights(model).items():
    ...     print(name, array.shape)
    w (2, 1)
    b (1,)
    """
    if isinstance(model, Prepared):
        prepared = model.model
    else:
        prepared = to_ir(model)
        tag(prepared)
        structure(prepared)
    return {_name(v): np.array(_array(v)) for v in trainable_values(prepared)}


def replace_weights(model: ModelLike, weights: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """Put other weights into a model.

    Parameters
    ----------
    model : str, path, bytes, file object, onnx.ModelProto or onnx_ir.Model
        The model in any form; left unchanged.
    weights : mapping of str to array
        New values for some or all of the weights, of the same shape and dtype; other floating-point
        constants may be named as well.

    Returns
    -------
    onnx.ModelProto
        The model in its own form: a weight that was in a ``Constant``, a branch or an attribute of
        ``LinearClassifier`` is written there. Everything else is as it was.

    Raises
    ------
    UnknownNameError
        A name that is no weight nor another floating-point constant; the message lists the weights.
    InvalidDataError
        Wrong shape or dtype, or values that are not finite.

    Examples
    --------
    >>> import numpy as np, onnx.parser
    >>> model = onnx.parser.parse_model('''
    ...     <ir_version: 8, opset_import: ["": 18]>
    ...     g (float[N, 2] x) => (float[N, 2] y) <float[2] w = {1, 2}> { y = Mul(x, w) }''')
    >>> changed = replace_weights(model, {"w": np.zeros(2, dtype=np.float32)})
    >>> onnx.numpy_helper.to_array(changed.graph.initializer[0])
    array([0., 0.], dtype=float32)
    """
    return _replace(model, weights)


def constants(model: ModelLike | Prepared, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Constant tensors of a model's main graph, weights or not, under the names they have when prepared.

    Parameters
    ----------
    model : str, path, bytes, file object, onnx.ModelProto, onnx_ir.Model or Prepared
        The model in any form.
    names : iterable of str
        Which ones.

    Returns
    -------
    dict of str to ndarray
        Copies.

    Raises
    ------
    UnknownNameError
        The model has no such constant.
    """
    names = list(names)
    if not names:
        return {}
    if isinstance(model, Prepared):
        found, known = _written(model.model)
    else:
        _, found, known = _located(model)
    _check_known(names, found, known)
    return {name: np.array(_array(found[name])) for name in names}


def replace_constants(model: ModelLike, tensors: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """:func:`replace_weights` for any constant tensor, such as the statistics of BatchNormalization."""
    return _replace(model, tensors, every=True)


def with_constants(prepared: Prepared, tensors: Mapping[str, np.ndarray]) -> Prepared:
    """:func:`replace_constants` of a prepared model, which stays prepared.

    Raises
    ------
    UnknownNameError, InvalidDataError
        As for that.
    """
    found, known = _written(prepared.model)
    _check_known(tensors, found, known)
    arrays = _all_checked(tensors, found, known)
    made = prepared.take()
    for name, array in arrays.items():
        value = made.graph.initializers[name]
        assert value.dtype is not None
        value.const_value = ir.Tensor(array, dtype=value.dtype, name=name)
    return Prepared(made, functools.partial(replace_constants, prepared.proto, arrays))


def _replace(model: ModelLike, tensors: Mapping[str, np.ndarray], every: bool = False) -> onnx.ModelProto:
    if not isinstance(tensors, Mapping):
        raise InvalidDataError(
            f"weights: a mapping of names to arrays was expected, not {type(tensors).__name__}."
        )
    own, found, known = _located(model)
    floats = (name for name, v in found.items() if is_float(v, unknown=False))
    _check_known(tensors, found if every else floats, known)
    arrays = _all_checked(tensors, found, known)
    apart = separated(next(iter(found.values())).graph, arrays) if arrays else ()
    for value in apart:  # one tensor with one of these in the user's model, but no longer
        found[_name(value)], arrays[_name(value)] = value, np.array(_array(value))
    for name, array in arrays.items():
        site = site_of(found[name])
        assert site is not None
        site.write(array)
    return to_proto(own)


def rename_weights(model: ModelLike, names: Mapping[str, str]) -> onnx.ModelProto:
    """Give weights of a model other names.

    Parameters
    ----------
    model : str, path, bytes, file object, onnx.ModelProto or onnx_ir.Model
        The model in any form; left unchanged.
    names : mapping of str to str
        New names of some or all of the weights.

    Returns
    -------
    onnx.ModelProto

    Raises
    ------
    UnknownNameError
        A name that is no weight of the model, or a new one that is empty, given twice or taken by
        another value.
    """
    own, found, known = _located(model)
    _check_known(names, known, known)
    kept = value_names(own) - set(names) | (set(known) - set(names))
    for old, new in names.items():
        if not isinstance(new, str) or not new:
            raise UnknownNameError(
                f"New name of weight {old!r}: a non-empty string was expected, not {new!r}."
            )
        if new in kept:
            raise UnknownNameError(
                f"Weight {old!r} cannot be called {new!r}: the model has that name already."
            )
        kept.add(new)
    if set(names) & {f"{v.name}_value" for v in own.graph.outputs}:
        SeparateOutputsPass()(own)  # the model's outputs keep their names
    # Two steps, so that names can be exchanged.
    for step in ({old: f"{new}\0" for old, new in names.items()}, names):
        for old, new in step.items():
            site = site_of(found[old])
            assert site is not None
            site.rename(new)
    training_info.rename(own, names)
    return to_proto(own)


# -- replacing -------------------------------------------------------------------------------


def _located(model: ModelLike) -> tuple[ir.Model, dict[str, ir.Value], list[str]]:
    """The user's model, its constants by name, each with its site in that model, and which are weights."""
    own = to_ir(model)
    NameOutputsPass()(own)  # onnx_ir does not write the last ones without a name, which a Split has to have
    tag(own)
    prepared = own.clone()
    structure(prepared)
    return own, *_written(prepared)


def written(prepared: Prepared) -> list[str]:
    """Names of the constants of a prepared model that the user's own model has, too."""
    return list(_written(prepared.model)[0])


def _written(prepared: ir.Model) -> tuple[dict[str, ir.Value], list[str]]:
    """Constants of a model that is prepared which the user's own model has, and which are weights."""
    found = {_name(v): v for v in prepared.graph.initializers.values() if site_of(v) is not None}
    return found, [_name(v) for v in trainable_values(prepared) if _name(v) in found]


def _check_known(names: Iterable[str], found: Iterable[str], weights: Iterable[str]) -> None:
    found = set(found)
    unknown = [n for n in names if n not in found]
    if unknown:
        raise UnknownNameError(
            f"No weight of the model is called {', '.join(map(repr, unknown))}; its weights are "
            f"{', '.join(map(repr, weights)) or 'none'}."
        )


def _all_checked(
    tensors: Mapping[str, np.ndarray], found: Mapping[str, ir.Value], known: Iterable[str]
) -> dict[str, np.ndarray]:
    weights = set(known)
    return {
        name: _checked(name, array, found[name], "Weight" if name in weights else "Constant")
        for name, array in tensors.items()
    }


def _checked(name: str, array: np.ndarray, value: ir.Value, what: str) -> np.ndarray:
    """The new value of a weight or another constant, as `what` says, if it fits."""
    old = value.const_value
    assert old is not None
    new = np.asarray(array)
    dtype, shape = old.dtype.numpy(), tuple(old.shape.numpy())
    if new.dtype != dtype:
        raise InvalidDataError(
            f"{what} {name!r} is of dtype {dtype}, the new one of {new.dtype}: convert it first."
        )
    if new.shape != shape:
        raise InvalidDataError(f"{what} {name!r} has shape {shape}, the new one {new.shape}.")
    bad = int(new.size - np.isfinite(new).sum())
    if bad:
        raise InvalidDataError(f"The new {what.lower()} {name!r} has {bad} values that are NaN or infinite.")
    return np.array(new)  # the caller's array may change later


def _name(value: ir.Value) -> str:
    assert value.name
    return value.name


def _array(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return value.const_value.numpy()
