"""Options that every update rule has, and what they mean for one weight."""

from __future__ import annotations

import copy
import dataclasses
import numbers
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

from onnxcustom._parameters import check_number, flag, integer, number, optional
from onnxcustom.exceptions import InvalidParameterError, UnknownNameError
from onnxcustom.graph.trainable.roles import Role
from onnxcustom.graph.trainable.selection import Catalog, is_word, matching

__all__ = ["SharedOptions"]

Multipliers = Mapping[str | int, float]

# Options that choose weights by name.
_BY_NAME = ("lr_mult", "wd_mult", "frozen")


@dataclasses.dataclass(kw_only=True, repr=False, eq=False)
class SharedOptions:
    r"""Options of every update rule, keywords only.

    Parameters
    ----------
    wd : float, Schedule or callable, default=0.0
        Weight decay, in [0, inf). Unless the rule says otherwise it is added to the gradient,
        :math:`g + wd\,w` (L2).
    decoupled_weight_decay : bool, default=False
        Shrink the weight by :math:`\eta\,wd` before the update instead (Loshchilov & Hutter 2019).
    l1 : float, Schedule or callable, default=0.0
        Proximal L1 regularization, in [0, inf): after the update, the weight moves towards zero by
        :math:`\eta\,l1` and stops there.
    rescale_grad : float, default=1.0
        Factor of the gradient.
    clip_gradient : float, optional
        Bound, in (0, inf): every number of the gradient is clipped to [-clip_gradient, clip_gradient].
    clip_global_norm : float, optional
        Bound, in (0, inf), on the norm of the gradients of all weights together; they are scaled by
        one factor when it is exceeded, before anything else is done to them (Pascanu et al. 2013).
    lr_mult, wd_mult : dict of str or int to float, optional
        Factors of learning rate and decay (L1 included) by weight: its name, a pattern of names, words
        such as ``'first:1'`` and ``'biases'`` (:func:`onnxcustom.graph.select_weights`) or,
        for :class:`~onnxcustom.optim.Updater`, its index. A name goes before an index, an index before
        the first pattern that matches. Without a word on it, decay is left out for biases and for
        parameters of normalizations.
    frozen : sequence of str, optional
        Names or patterns of weights that are not updated, or such words.
    accumulate : int, default=1
        Update once in so many batches, by the mean gradient over their rows.
    begin_num_update : int, default=0
        Updates counted as done already: the first step is ``begin_num_update + 1``.
    multi_precision : bool, default=False
        Keep a float32 copy of float16 weights and update that one, state included. Without it, an
        epsilon that float16 rounds to 0 is its smallest normal number, 6.1e-5.
    skip_nonfinite : bool, default=False
        Skip, and count, a step whose gradient holds NaN or infinity; by default it is an error.
    param_idx2name : dict of int to str, optional
        Names of the weights that an :class:`~onnxcustom.optim.Updater` knows by index. Of these, names
        that end in neither ``_weight`` nor ``_gamma`` do not decay, as in MXNet, unless `wd_mult` says so
        or a model, as `sym`, says what the weight is.
    param_dict : dict of int to object, optional
        Objects with attributes ``lr_mult`` and ``wd_mult``, by index, for an
        :class:`~onnxcustom.optim.Updater`.
    sym : path, bytes or onnx.ModelProto, optional
        Model that an :class:`~onnxcustom.optim.Updater` trains: says which names are biases.
    """

    wd: Any = number(0.0, "[0, inf)", scheduled=True)
    decoupled_weight_decay: bool = flag(False)
    l1: Any = number(0.0, "[0, inf)", scheduled=True)
    rescale_grad: float = number(1.0, "(-inf, inf)")
    clip_gradient: float | None = optional("(0, inf)")
    clip_global_norm: float | None = optional("(0, inf)")
    lr_mult: Multipliers | None = None
    wd_mult: Multipliers | None = None
    frozen: Sequence[str] | None = None
    accumulate: int = integer(1, "[1, inf)")
    begin_num_update: int = integer(0, "[0, inf)")
    multi_precision: bool = flag(False)
    skip_nonfinite: bool = flag(False)
    param_idx2name: Mapping[int, str] | None = None
    param_dict: Mapping[int, Any] | None = None
    sym: Any = None

    # What words mean in the model that is trained.
    _words: ClassVar[Mapping[str, frozenset[str]]] = {}

    #: Decays that `wd_mult` multiplies.
    decays: ClassVar[tuple[str, ...]] = ("wd", "l1")

    def check_options(self) -> None:
        """Check what is no single number.

        Raises
        ------
        ValueError
            A multiplier that is negative or not finite.
        TypeError
            Multipliers, names or patterns in another form.
        """
        for option in ("lr_mult", "wd_mult"):
            table = getattr(self, option)
            if table is None:
                continue
            if not isinstance(table, Mapping) or not all(_is_key(k, str) for k in table):
                raise InvalidParameterError(f"{option} must be a dict from name, pattern or index to factor.")
            for key, factor in table.items():
                check_number(f"{option}[{key!r}]", factor, "[0, inf)")
        for option in ("param_idx2name", "param_dict"):
            table = getattr(self, option)
            if table is not None and not (isinstance(table, Mapping) and all(map(_is_key, table))):
                raise InvalidParameterError(f"{option} must be a dict whose keys are indices of weights.")
        names = [] if self.param_idx2name is None else list(self.param_idx2name.values())
        if not all(isinstance(name, str) for name in names):
            raise InvalidParameterError(
                f"param_idx2name must be a dict from index to name; its values are {names}."
            )
        frozen = self.frozen
        if frozen is not None and (
            not isinstance(frozen, (list, tuple, set, frozenset))
            or not all(isinstance(p, str) for p in frozen)
        ):
            raise InvalidParameterError(f"frozen must be a list of names or patterns, not {frozen!r}.")

    def multipliers(
        self, name: str | None, role: Role = "unknown", index: int | None = None
    ) -> tuple[float, float]:
        """Factors of learning rate and weight decay of one weight.

        Parameters
        ----------
        name : str, optional
            Its name.
        role : {'weight', 'bias', 'normalization', 'unknown'}
            What it is to the model.
        index : int, optional
            Its index in an updater.

        Returns
        -------
        tuple of (float, float)

        Raises
        ------
        ValueError, TypeError
            An object of `param_dict` whose factors are no numbers in [0, inf).
        """
        decays = 0.0 if role in ("bias", "normalization") else 1.0
        known = self.sym is not None or role != "unknown"  # a model tells better than a name
        if name is not None and not known and name in (self.param_idx2name or {}).values():
            decays = 1.0 if name.endswith(("_weight", "_gamma")) else 0.0
        lr_mult, wd_mult = 1.0, decays
        parameter = None if index is None else (self.param_dict or {}).get(index)
        if parameter is not None:
            lr_mult = getattr(parameter, "lr_mult", lr_mult)
            wd_mult = getattr(parameter, "wd_mult", wd_mult)
            check_number(f"lr_mult of parameter {index}", lr_mult, "[0, inf)")
            check_number(f"wd_mult of parameter {index}", wd_mult, "[0, inf)")
        return (
            self._factor(self.lr_mult, name, index, float(lr_mult)),
            self._factor(self.wd_mult, name, index, float(wd_mult)),
        )

    def _factor(
        self, table: Multipliers | None, name: str | None, index: int | None, default: float
    ) -> float:
        for key in (name, index):
            if table and key is not None and key in table:
                return float(table[key])
        for pattern, factor in (table or {}).items():
            if self.means(pattern, name):
                return float(factor)
        return default

    def bind_words(self, catalog: Catalog) -> None:
        """Look up what words of the options, such as ``'first:1'``, mean in a model.

        Raises
        ------
        UnknownNameError
            A word that means nothing there.
        """
        texts = (text for option in _BY_NAME for text in getattr(self, option) or ())
        words = {text for text in texts if isinstance(text, str) and is_word(text)}
        vars(self)["_words"] = {word: frozenset(catalog.chosen(word)) for word in sorted(words)}

    def means(self, text: str | int, name: str | None) -> bool:
        """Whether a name, pattern or word of the options is about the weight called `name`."""
        if name is None or not isinstance(text, str):
            return False
        return name in self._words[text] if text in self._words else bool(matching(text, [name]))

    def check_unnamed(self, index: int, known: Collection[str] = ()) -> None:
        """Refuse factors by names that can have no effect where weights are known by index.

        Parameters
        ----------
        index : int
            A weight without a name.
        known : collection of str
            Names of other weights, beside those of `param_idx2name`.

        Raises
        ------
        UnknownNameError
            A name or pattern that is that of no weight.
        """
        names = {*(self.param_idx2name or {}).values(), *known}
        for option in ("lr_mult", "wd_mult"):
            for key in getattr(self, option) or ():
                if isinstance(key, str) and not any(self.means(key, name) for name in names):
                    raise UnknownNameError(
                        f"{option} names {key!r}, and the weight of index {index} has no name; the names "
                        f"known are {sorted(names)}. Name it in param_idx2name, give factors by index, or "
                        "update weights by name."
                    )

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # All but the caller's own parameters, whose factors may change.
        if self.param_dict is not None:
            memo[id(self.param_dict)] = self.param_dict
        rule: Any = self
        made: Any = object.__new__(type(self))
        memo[id(self)] = made
        made.__setstate__(copy.deepcopy(rule.__getstate__(), memo))
        return made

    def is_frozen(self, name: str | None) -> bool:
        """Whether the weight of that name is not updated."""
        return any(self.means(pattern, name) for pattern in self.frozen or ())


def _is_key(key: Any, *others: type) -> bool:
    return isinstance(key, (numbers.Integral, *others)) and not isinstance(key, bool)
