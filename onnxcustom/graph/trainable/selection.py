"""Which weights a user means: names, patterns of names, and words such as ``'last:2'``."""

from __future__ import annotations

import difflib
import fnmatch
import functools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from onnxcustom.exceptions import NoTrainableWeightError, UnknownNameError
from onnxcustom.graph.analysis.integers import REMEDY
from onnxcustom.graph.analysis.operands import is_float
from onnxcustom.graph.analysis.traversal import all_nodes
from onnxcustom.graph.files.io import ModelLike, to_ir
from onnxcustom.graph.preparation.prepare import Prepared, structure
from onnxcustom.graph.preparation.sites import own_name, tag
from onnxcustom.graph.trainable.finding import check_finite, find_weights, warn_nonfinite
from onnxcustom.graph.trainable.layers import Layer, layers_of
from onnxcustom.graph.trainable.left_out import quantized
from onnxcustom.graph.trainable.roles import Role, weight_roles

__all__ = ["Selection", "matching", "select_weights"]

#: What chooses weights: everything, one text, or several.
Selection = str | Iterable[str] | None

_LEVELS = re.compile(r"(first|last):(\d+)")
_WORDS = "'biases', 'normalizations', 'first:n', 'last:n'"
# Operators of ai.onnx.ml, and what their names begin with, that decide by numbers without a gradient.
_WITHOUT_WEIGHTS = ("TreeEnsemble", "SVM")
_SHOWN = 40  # names listed in a message


def select_weights(
    model: ModelLike | Mapping[str, Any], train: Selection = None, freeze: Selection = None
) -> list[str]:
    """Turn a choice of weights into their names.

    Everything that takes a choice of weights speaks this language: a text, or a list of texts that
    choose whatever one of them chooses. A text is, in this order,

    * the name of a weight, literally;
    * ``'last:n'`` or ``'first:n'``, the weights of the last or first `n` levels of
      :func:`onnxcustom.graph.layers`; ``'biases'``, what is only ever added (shifts of normalizations
      included); ``'normalizations'``, their scales and shifts;
    * a pattern of :mod:`fnmatch`, upper and lower case apart: ``'dense*'``, ``'layer?.weight'``.

    A floating-point constant that is no weight, such as a mask, is chosen by its very name alone.

    Parameters
    ----------
    model : model in any form, or mapping with the names of weights for keys
        Where they are. Without a model, names and patterns are all that can be chosen by.
    train : str or list of str, optional
        What is chosen; None for every weight.
    freeze : str or list of str, optional
        What is left out of that.

    Returns
    -------
    list of str
        Names, in graph order.

    Raises
    ------
    UnknownNameError
        A text that chooses nothing, or is there twice; the message lists the names there are.
    NoTrainableWeightError
        Nothing is left.
    InvalidModelError
        A name of what holds NaN or infinity.

    Warns
    -----
    UserWarning
        What holds NaN or infinity is left out, and `freeze` doesn't say so.

    See Also
    --------
    onnxcustom.graph.layers : the layers that are counted.

    Examples
    --------
    >>> import onnx.parser
    >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["": 18]>
    ... net (float[N, 2] x) => (float[N, 1] y)
    ... <float[2, 2] w1 = {1, 2, 3, 4}, float[2] b1 = {0, 0}, float[2, 1] w2 = {1, 2}> {
    ...     a = MatMul(x, w1)  b = Add(a, b1)  c = Relu(b)  y = MatMul(c, w2)
    ... }''')
    >>> select_weights(model, "last:1"), select_weights(model, "w*"), select_weights(model, freeze="biases")
    (['w2'], ['w1', 'w2'], ['w1', 'w2'])
    >>> select_weights(model, ["last:1", "b1"])
    ['b1', 'w2']
    """
    return Catalog(model).select(train, freeze)


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """Names that a pattern means: the one that is the pattern, letter for letter, or those that match.

    Parameters
    ----------
    pattern : str
        Name, or pattern of :mod:`fnmatch`, upper and lower case apart.
    names : iterable of str
        Names there are.

    Returns
    -------
    list of str
        In the order of `names`.

    Examples
    --------
    >>> matching("a[0]", ["a[0]", "a0"]), matching("a[0]", ["a0", "a1"])
    (['a[0]'], ['a0'])
    """
    names = list(names)
    if pattern in names:
        return [pattern]
    return [name for name in names if fnmatch.fnmatchcase(name, pattern)]


def is_word(text: str) -> bool:
    """Whether a text chooses by what weights are to a model, such as ``'last:2'``."""
    return bool(_LEVELS.fullmatch(text)) or text in ("biases", "normalizations")


def texts_of(selection: Any) -> list[Any]:
    """The texts of a selection, none for None; whether they are texts remains to be seen."""
    if selection is None:
        return []
    return (
        list(selection)
        if isinstance(selection, Iterable) and not isinstance(selection, (str, bytes))
        else [selection]
    )


def _structured(model: ModelLike) -> ir.Model:
    """A model whose weights are initializers of its main graph."""
    made = to_ir(model)
    tag(made)
    structure(made)
    return made


class Catalog:
    """The weights of a model by everything they can be chosen by, for several choices.

    Parameters
    ----------
    model : model in any form or Prepared, or mapping with the names of weights for keys
        As for :func:`select_weights`.

    Attributes
    ----------
    names : list of str
        All weights, in graph order.
    others : dict of str to onnx_ir.Value
        Floating-point constants that are none, and are chosen by name only.
    nonfinite : dict of str to onnx_ir.Value
        What would be a weight, but holds NaN or infinity.
    """

    def __init__(self, model: Any) -> None:
        self._model = None
        self.others: dict[str, ir.Value] = {}
        self.nonfinite: dict[str, ir.Value] = {}
        self._left_out: dict[str, str] = {}
        if isinstance(model, Mapping):
            self.names = list(model)
        else:
            self._model = model.model if isinstance(model, Prepared) else _structured(model)
            found = find_weights(self._model)
            self.names = [value.name or "" for value in found.weights]
            self.nonfinite = {value.name or "": value for value in found.nonfinite}
            self._left_out = {value.name or "": reason for value, reason in found.left_out.items()}
            constants = self._model.graph.initializers
            self.others = {
                n: v for n, v in constants.items() if n not in self.names and is_float(v, unknown=False)
            }

    @functools.cached_property
    def _layers(self) -> list[Layer]:
        assert self._model is not None
        return layers_of(self._model)

    @functools.cached_property
    def _roles(self) -> dict[str, Role]:
        assert self._model is not None
        return weight_roles(self._model, self.names)

    def select(self, train: Selection = None, freeze: Selection = None) -> list[str]:
        """As :func:`select_weights`."""
        if train is None and not self.names:
            raise NoTrainableWeightError(self.nothing())
        chosen = set(self.names) if train is None else self._find("The list of weights", train)
        if not chosen:
            raise NoTrainableWeightError(f"The list of weights is empty; the model has {self._known()}.")
        check_finite(self.others[name] for name in chosen if name in self.others)
        frozen = set() if freeze is None else self._find("freeze", freeze, list(self.nonfinite))
        if train is None:
            self.warn(frozen)
        left = [name for name in (*self.names, *self.others) if name in chosen - frozen]
        if not left:
            names = [name for name in self.names if name in chosen]
            raise NoTrainableWeightError(f"Every weight is frozen: {_shown(names)}, by freeze={freeze!r}.")
        return left

    def warn(self, frozen: Collection[str] = ()) -> None:
        """Say what is left out of all weights because of its numbers, but for what is `frozen`."""
        warn_nonfinite(v for name, v in self.nonfinite.items() if name not in frozen)

    def nothing(self) -> str:
        """Why the model has no weight."""
        text = (
            "The model holds no trainable weight: no floating-point initializer or constant that an operator "
            "reads as data."
        )
        nodes = [] if self._model is None else all_nodes(self._model.graph)
        held = sorted({node.op_type for node in nodes if node.op_type.startswith(_WITHOUT_WEIGHTS)})
        if held:
            text += (
                f" What it computes by ({', '.join(held)}) has no weights that a gradient could move: trees "
                "hold thresholds, kernels the rows they were fitted on. Linear models and neural networks "
                "have some."
            )
        integers = self.integers()
        if integers:
            text += f" It is quantized: {_shown(integers)} hold integers. {REMEDY}."
        if self.nonfinite:
            text += f" {_shown(list(self.nonfinite))} would be, but for NaN or infinity in it."
        others = [f"{n!r} ({why})" for n, why in self._left_out.items() if n not in self.nonfinite]
        if others:
            text += f" Left out, and trained where it is named: {', '.join(others[:_SHOWN])}"
            text += " and others." if len(others) > _SHOWN else "."
        return text

    def integers_apart(self, trained: Sequence[str]) -> str:
        """What is to be said of weights that are trained in a model of integers; empty of another model."""
        held = self.integers()
        if not held:
            return ""
        return (
            f"The model is quantized: {_shown(held)} hold integers and stay as they are, and only "
            f"{_shown(trained)} are trained. {REMEDY}. Whoever names the weights to train means these."
        )

    def integers(self) -> list[str]:
        """Names of the tensors of integers that stand for weights, as the user's model has them."""
        constants = () if self._model is None else self._model.graph.initializers.values()
        return [own_name(value) for value in constants if quantized(value)]

    def _find(self, what: str, selection: Any, more: Sequence[str] = ()) -> set[str]:
        """The names that a selection chooses, of `more` as well; `what` it is, for messages."""
        texts = texts_of(selection)
        repeated = [t for i, t in enumerate(texts) if t in texts[:i]]
        if repeated:
            raise UnknownNameError(f"{what} repeats {repeated}; the model's weights are {self._known()}.")
        found = [self.chosen(text, more) if isinstance(text, str) else [] for text in texts]
        unknown = [text for text, names in zip(texts, found, strict=True) if not names]
        if unknown:
            raise UnknownNameError(f"{what} names {unknown}, which {self._why(unknown)}")
        return {name for names in found for name in names}

    def chosen(self, text: str, more: Sequence[str] = ()) -> list[str]:
        """The names that one text chooses, of `more` as well."""
        if text in self.others:
            return [text]
        if text in self.names or not is_word(text):
            return matching(text, [*self.names, *more])
        word = _LEVELS.fullmatch(text)
        if self._model is None:
            raise UnknownNameError(f"{text!r} chooses by what weights are to a model; here are names only.")
        if word:
            return self._levels(word[1], int(word[2]))
        if text == "biases":
            return [name for name, role in self._roles.items() if role == "bias"]
        return [
            name
            for layer in self._layers
            if any(self._roles[w] == "normalization" for w in layer.weights)
            for name in layer.weights
        ]

    def _levels(self, side: str, count: int) -> list[str]:
        total = max((layer.level for layer in self._layers), default=0)
        if count > total:
            raise UnknownNameError(f"'{side}:{count}' asks for more layers than the {total} of the model.")
        low, high = (total - count, total) if side == "last" else (0, count)
        return [name for layer in self._layers if low < layer.level <= high for name in layer.weights]

    def _why(self, unknown: Sequence[Any]) -> str:
        near = [
            name
            for text in unknown
            if isinstance(text, str)
            for name in difflib.get_close_matches(text, self.names, n=3)
        ]
        hint = f" Did you mean {' or '.join(map(repr, dict.fromkeys(near)))}?" if near else ""
        held = [name for name in self.integers() if name in unknown]
        if held:
            hint += f" {_shown(held)} of it hold integers. {REMEDY}."
        return (
            f"the model does not have; its weights are {self._known()}.{hint} A list holds names, patterns "
            f"such as 'dense*', or {_WORDS}."
        )

    def _known(self) -> str:
        return _shown(self.names)


def _shown(names: Sequence[str]) -> str:
    if len(names) <= _SHOWN:
        return str(list(names))
    return f"{str(list(names[:_SHOWN]))[:-1]}, ...] ({len(names)} in all)"
