"""Adapters by themselves: what they hold, and which weights they belong to."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import onnx_ir as ir

from onnxcustom.exceptions import InvalidDataError
from onnxcustom.graph.analysis.operands import is_float
from onnxcustom.graph.preparation.sites import own_name

from .attach import names_of

__all__ = ["Adapter", "digests", "ranks_last"]

_ENDS = (".lora_A", ".lora_B")
_INTEGERS = frozenset((ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4))


@dataclasses.dataclass(frozen=True, eq=False)
class Adapter(Mapping[str, np.ndarray]):
    """Low-rank changes of weights: a mapping of names to arrays, as a model with adapters has for inputs.

    What A and B are multiplied by is in B.

    Attributes
    ----------
    tensors : dict of str to ndarray
        ``<weight>.lora_A`` and ``<weight>.lora_B`` of each weight.
    base : mapping of str to str
        What the weights of the model it was trained beside are told by, by name; empty if that is not known.
    alpha : float or None
        As it was trained with.

    Raises
    ------
    InvalidDataError
        Names or shapes that are none of adapters.

    Examples
    --------
    >>> one = Adapter({"w.lora_A": np.ones((3, 1)), "w.lora_B": np.ones((1, 2))})
    >>> one.weights, one.rank
    (('w',), 1)
    """

    tensors: dict[str, np.ndarray]
    base: Mapping[str, str] = dataclasses.field(default_factory=dict)
    alpha: float | None = None

    def __post_init__(self) -> None:
        strange = [name for name in self.tensors if not name.endswith(_ENDS)]
        if strange or not self.tensors:
            raise InvalidDataError(
                f"An adapter holds <weight>.lora_A and <weight>.lora_B for each weight, not {strange[:3]}."
            )
        for weight in self.weights:
            self.factors(weight)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __repr__(self) -> str:
        return f"Adapter(rank={self.rank}, weights={[*self.weights]})"

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the weights that it changes."""
        return tuple(dict.fromkeys(name[: -len(_ENDS[0])] for name in self.tensors))

    @property
    def rank(self) -> int:
        """The largest of its ranks."""
        made = (self.factors(weight)[0] for weight in self.weights)
        return max(int(a.shape[ranks_last(a)]) for a in made)

    @property
    def identity(self) -> str:
        """What tells it from others."""
        return _digest(part for name in sorted(self) for part in (name.encode(), self[name]))

    def factors(self, weight: str) -> tuple[np.ndarray, np.ndarray]:
        """A and B of a weight.

        Raises
        ------
        InvalidDataError
            One of them is missing, or their ranks differ.
        """
        names = names_of(weight)
        a, b = (self.tensors.get(name) for name in names)
        if a is None or b is None:
            raise InvalidDataError(
                f"The adapter of {weight!r} has no {names[0] if a is None else names[1]!r}."
            )
        if a.ndim < 2 or a.ndim != b.ndim or a.shape[ranks_last(a)] != b.shape[1 - ranks_last(b)]:
            raise InvalidDataError(
                f"The adapter of {weight!r} has A of shape {a.shape} and B of {b.shape}, whose ranks differ."
            )
        return a, b


def ranks_last(a: np.ndarray) -> int:
    """Axis of A that is its rank; of B it is the other one. Kernels have outputs first."""
    return 1 if a.ndim == 2 else 0


def digests(model: ir.Model, without: Iterable[str] = ()) -> dict[str, str]:
    """What weights of a prepared model are told by: its constants of several numbers, not shapes and axes."""
    left = set(without)
    return {
        own_name(value): of_array(value.const_value.numpy())
        for name, value in model.graph.initializers.items()
        if name not in left and not name.endswith(_ENDS) and value.const_value is not None
        if value.const_value.size > 1 and (is_float(value) or value.dtype in _INTEGERS)
    }


def of_array(array: np.ndarray) -> str:
    """What an array is told by: its numbers, shape and dtype."""
    return _digest((str((array.dtype, array.shape)).encode(), array))


def _digest(parts: Iterable[bytes | np.ndarray]) -> str:
    made = hashlib.sha256()
    for part in parts:
        made.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes())
    return made.hexdigest()[:16]
