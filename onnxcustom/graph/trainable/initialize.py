"""New first values for weights: drawn by how the model uses each, from a seed."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import numbers
from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnx_ir as ir
from scipy.special import ndtr, ndtri

from onnxcustom._parameters import check_number
from onnxcustom.exceptions import InvalidModelError, InvalidParameterError, UnknownNameError
from onnxcustom.graph.analysis.kernels import kernels, uses
from onnxcustom.graph.files.io import ModelLike
from onnxcustom.graph.preparation.prepare import Prepared
from onnxcustom.graph.trainable.roles import Role, weight_roles
from onnxcustom.graph.trainable.selection import Catalog, Selection, texts_of
from onnxcustom.graph.trainable.weights import replace_weights, trainable_values

__all__ = ["METHODS", "initialize_weights"]


@dataclasses.dataclass(frozen=True)
class _Method:
    """How numbers are drawn: `draw(rng, shape, spread)`, where `spread` is computed from gain and fans."""

    gain: float
    spread: Callable[[float, int, int], float] | None
    draw: Callable[[np.random.Generator, tuple[int, ...], float], np.ndarray]


# -- distributions ---------------------------------------------------------------------------


def _normal(rng: np.random.Generator, shape: tuple[int, ...], std: float) -> np.ndarray:
    return std * rng.standard_normal(shape)


def _uniform(rng: np.random.Generator, shape: tuple[int, ...], bound: float) -> np.ndarray:
    return bound * (2 * rng.random(shape) - 1)


def _truncated(rng: np.random.Generator, shape: tuple[int, ...], std: float) -> np.ndarray:
    low, high = ndtr(-2), ndtr(2)
    return std * np.clip(ndtri(low + (high - low) * rng.random(shape)), -2, 2)


def _orthogonal(rng: np.random.Generator, shape: tuple[int, ...], gain: float) -> np.ndarray:
    """Blocks of matrices whose rows, or columns if there are less of them, are orthogonal."""
    *_, rows, columns = shape
    a = rng.standard_normal((*shape[:-2], max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(a)
    # With the signs of the diagonal of R, Q is uniform over all such matrices.
    q = q * np.sign(np.diagonal(r, axis1=-2, axis2=-1))[..., None, :]
    return gain * (q if rows >= columns else np.swapaxes(q, -1, -2))


def _constant(value: float) -> Callable[[np.random.Generator, tuple[int, ...], float], np.ndarray]:
    return lambda rng, shape, spread: np.full(shape, value)


def _itself(gain: float, fan_in: int, fan_out: int) -> float:
    return gain


def _by_input(gain: float, fan_in: int, fan_out: int) -> float:
    return gain / math.sqrt(fan_in)


def _by_both(gain: float, fan_in: int, fan_out: int) -> float:
    return gain * math.sqrt(2 / (fan_in + fan_out))


def _table() -> dict[str, _Method]:
    # A uniform distribution of standard deviation s goes from -√3 s to √3 s.
    normal: dict[str, _Method] = {
        "he": _Method(math.sqrt(2), _by_input, _normal),
        "glorot": _Method(1.0, _by_both, _normal),
        "lecun": _Method(1.0, _by_input, _normal),
    }
    table: dict[str, _Method] = {}
    for name, *others in (("he", "kaiming"), ("glorot", "xavier"), ("lecun",)):
        for alias in (name, *others):
            method = normal[name]
            table[alias] = table[f"{alias}_normal"] = method
            table[f"{alias}_uniform"] = _Method(math.sqrt(3) * method.gain, method.spread, _uniform)
    table["orthogonal"] = _Method(1.0, _itself, _orthogonal)
    table["normal"] = _Method(0.02, None, _normal)
    table["truncated_normal"] = _Method(0.02, None, _truncated)
    table["uniform"] = _Method(0.05, None, _uniform)
    table["zeros"] = _Method(1.0, None, _constant(0.0))
    table["ones"] = _Method(1.0, None, _constant(1.0))
    return table


#: Ways to draw weights, by name.
METHODS: dict[str, _Method] = _table()

# What biases start at, scales of normalizations and other vectors that data is multiplied by.
_BY_ROLE: dict[Role, float] = {"bias": 0.0, "normalization": 1.0}
_BY_OPERAND: dict[tuple[str, int], float] = {
    **{(op, i): 1.0 for op in ("Mul", "Div") for i in (0, 1)},
    ("PRelu", 1): 0.25,
    **{(op, i): 0.0 for op in ("RNN", "GRU", "LSTM") for i in (5, 6, 7)},
}


# -- the public function ---------------------------------------------------------------------


def initialize_weights(
    model: ModelLike,
    names: Selection = None,
    method: str | Mapping[str, str] = "he",
    *,
    seed: int = 0,
    gain: float | None = None,
) -> onnx.ModelProto:
    r"""Start weights anew, at random or at constants.

    :math:`n_{in}` is how many numbers an output of the layer sums up, :math:`n_{out}` how many outputs a
    number goes into. Both come from the operator that reads the weight, with its attributes and whatever
    transposes or reshapes the weight before: a convolution of several groups is as many convolutions, the
    gates of a recurrent cell are matrices of their own. Of an embedding, a table that Gather takes rows
    from, :math:`n_{in}` is the length of a row and :math:`n_{out}` the number of rows, as in PyTorch.

    ======================================  ==============================================  ==============
    Method                                  Distribution                                    Gain
    ======================================  ==============================================  ==============
    ``he``, ``kaiming`` [1]_                :math:`N(0, g^2 / n_{in})`                      :math:`\sqrt 2`
    ``glorot``, ``xavier`` [2]_             :math:`N(0, 2 g^2 / (n_{in} + n_{out}))`        1
    ``lecun`` [3]_                          :math:`N(0, g^2 / n_{in})`                      1
    ``orthogonal`` [4]_                     :math:`g Q`, uniform with                       1
                                            :math:`Q Q^T = I` or :math:`Q^T Q = I`
    ``normal``                              :math:`N(0, g^2)`                               0.02
    ``truncated_normal``                    the same without what is beyond :math:`2 g`     0.02
    ``uniform``                             :math:`U(-g, g)`                                0.05
    ``zeros``, ``ones``                     constants
    ======================================  ==============================================  ==============

    The first three mean normal distributions, also with ``_normal`` behind; with ``_uniform`` behind they
    are uniform of the same standard deviation, that is up to :math:`\sqrt 3` times it.

    Biases start at 0, scales of normalizations at 1, whatever the method. So do what Mul and Div read (1),
    slopes of PRelu (0.25), initial states and peepholes of recurrent cells (0). Only a weight that `names`
    or `method` calls by its own name, or as ``'biases'`` or ``'normalizations'``, gets what a method says
    that asks for no :math:`n_{in}`: ``normal``, ``truncated_normal``, ``uniform``, ``zeros`` and ``ones``.

    Parameters
    ----------
    model : str, path, bytes, file object, onnx.ModelProto or onnx_ir.Model
        The model in any form; left unchanged. Statistics of BatchNormalization stay as they are.
    names : str or list of str, optional
        Which weights, as :func:`onnxcustom.graph.select_weights` takes them: names, patterns,
        ``'last:2'``. By default all, or with a dict for `method` those that it chooses.
    method : str or dict of str to str, default='he'
        One of the table, or a dict from what :func:`select_weights` takes to a method: a name counts more
        than a pattern, an earlier entry more than a later one.
    seed : int, default=0
        In [0, 2**64). What a weight gets is a function of seed and name of the weight, its shape and its
        use: it stays the same when the model gets other layers beside it.
    gain : float, optional
        In (0, inf), the factor `g` of every method that has one.

    Returns
    -------
    onnx.ModelProto
        The model in its own form with other numbers in the weights, of the same dtypes.

    Raises
    ------
    UnknownNameError
        A weight or a method that does not exist.
    InvalidModelError
        A weight that nothing is known of how it is used; the message names it.
    ValueError
        A seed or a gain out of range.

    References
    ----------
    .. [1] K. He, X. Zhang, S. Ren, J. Sun, Delving Deep into Rectifiers, 2015,
       https://arxiv.org/abs/1502.01852
    .. [2] X. Glorot, Y. Bengio, Understanding the difficulty of training deep feedforward neural
       networks, 2010, https://proceedings.mlr.press/v9/glorot10a.html
    .. [3] Y. LeCun, L. Bottou, G. Orr, K.-R. Müller, Efficient BackProp, 1998,
       http://yann.lecun.com/exdb/publis/pdf/lecun-98b.pdf
    .. [4] A. Saxe, J. McClelland, S. Ganguli, Exact solutions to the nonlinear dynamics of learning in
       deep linear neural networks, 2014, https://arxiv.org/abs/1312.6120

    Examples
    --------
    >>> import onnx.parser
    >>> from onnxcustom import weights
    >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["": 18]>
    ... net (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4}, float[2] b = {5, 6}> {
    ...     z = MatMul(x, w)  y = Add(z, b)
    ... }''')
    >>> fresh = weights(initialize_weights(model, method="orthogonal", seed=3))
    >>> (fresh["w"] @ fresh["w"].T).round(6) + 0, fresh["b"]
    (array([[1., 0.],
           [0., 1.]], dtype=float32), array([0., 0.], dtype=float32))
    """
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or not 0 <= seed < 2**64:
        raise InvalidParameterError(f"seed must be an integer in [0, 2**64), not {seed!r}.")
    if gain is not None:
        check_number("gain", gain, "(0, inf)")
    prepared = Prepared.of(model)
    made = prepared.model
    chosen, explicit = _chosen(Catalog(prepared), names, method)
    values = {v.name or "": v for v in trainable_values(made)}
    roles = weight_roles(made, chosen)
    drawn = {
        name: _Drawing(made, values[name], roles[name], name in explicit).draw(how, int(seed), gain)
        for name, how in chosen.items()
    }
    return replace_weights(prepared.proto, drawn)


def _chosen(
    catalog: Catalog, names: Selection, method: str | Mapping[str, str]
) -> tuple[dict[str, str], set[str]]:
    """The method of every weight to be drawn, and the weights that are called by their names."""
    table: Mapping[str, str] = method if isinstance(method, Mapping) else {"*": method}
    for how in table.values():
        if not isinstance(how, str) or how not in METHODS:
            raise UnknownNameError(
                f"There is no method {how!r} to draw weights; those there are: {[*METHODS]}."
            )
    texts = texts_of(names)
    wanted = catalog.select(None if names is None else texts)
    chosen: dict[str, str] = {}
    for text in sorted(table, key=lambda t: t not in catalog.names):  # names first, else as they come
        for name in catalog.select(text) if table is method else catalog.names:
            chosen.setdefault(name, table[text])
    texts += [text for text in method if table is method]
    explicit = {
        name
        for text in texts
        if text in catalog.names or text in ("biases", "normalizations")
        for name in catalog.select(text)
    }
    return {name: chosen[name] for name in wanted if name in chosen}, explicit


class _Drawing:
    """One weight to be drawn."""

    def __init__(self, model: ir.Model, value: ir.Value, role: Role, explicit: bool) -> None:
        self.value = value
        self.role = role
        self.explicit = explicit
        self.uses = uses(value, model.opset_imports[""])

    def draw(self, method: str, seed: int, gain: float | None) -> np.ndarray:
        """The new numbers, in the dtype of the weight."""
        how, tensor = METHODS[method], self.value.const_value
        assert tensor is not None
        shape = tuple(tensor.shape.numpy())
        start = self._start()
        rng = np.random.Generator(np.random.Philox(key=_key(seed, self.value.name or "")))
        gain = how.gain if gain is None else gain
        if start is not None and not (self.explicit and how.spread is None):
            drawn = np.full(shape, start)
        elif how.spread is None:
            drawn = how.draw(rng, shape, gain)
        else:
            drawn = self._by_use(method, how, rng, gain).reshape(shape)
        return drawn.astype(tensor.dtype.numpy())

    def _start(self) -> float | None:
        """Where weights of this kind start that are no matrices."""
        if self.role in _BY_ROLE:
            return _BY_ROLE[self.role]
        starts = {_BY_OPERAND.get((use.node.op_type, use.position)) for use in self.uses}
        return starts.pop() if len(starts) == 1 else None

    def _by_use(self, method: str, how: _Method, rng: np.random.Generator, gain: float) -> np.ndarray:
        """Draw every number as the first operator that reads it wants it."""
        assert self.value.const_value is not None
        assert how.spread is not None
        drawn = np.full(self.value.const_value.size, np.nan)
        for use in self.uses:
            for kernel in kernels(use) or ():
                fresh = (kernel.index >= 0) & np.isnan(drawn[kernel.index])
                if fresh.any():
                    spread = how.spread(gain, kernel.fan_in, kernel.fan_out)
                    drawn[kernel.index[fresh]] = how.draw(rng, kernel.index.shape, spread)[fresh]
        if np.isnan(drawn).any():
            raise InvalidModelError(self._unknown(method))
        return drawn

    def _unknown(self, method: str) -> str:
        readers = sorted({use.node.op_type for use in self.uses})
        name = self.value.name
        return (
            f"{method!r} goes by the number of inputs of a layer, and nothing is known of how "
            f"{', '.join(readers) or 'nothing'} uses weight {name!r}. Choose other weights by names=, or "
            f"another method for this one, as method={{{name!r}: 'normal', '*': {method!r}}}."
        )


def _key(seed: int, name: str) -> int:
    """A key of 128 bits."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{name}".encode()).digest()[:16], "little")
