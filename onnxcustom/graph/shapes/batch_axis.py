"""Which axis of a tensor holds the rows of a batch: decided once, from a prepared model."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import onnx_ir as ir

from onnxcustom.exceptions import InvalidModelError, UnknownNameError
from onnxcustom.graph.analysis.traversal import unique_name
from onnxcustom.graph.preparation.passes import InferShapesPass

__all__ = ["BatchAxes", "Doubt"]


class Doubt(NamedTuple):
    """Rows that no output has, where the outputs have another dimension of the inputs.

    Attributes
    ----------
    input : str
        The input that the rows are taken from.
    axis : int
        Where they are taken from.
    taken : str, int or None
        The dimension there: its name, its size, or None.
    output, other : str
        An output, and the dimension of the inputs that it has in the place of the rows.
    instead : dict of str to int or None
        Axes of the inputs that would have that dimension for the rows.
    """

    input: str
    axis: int
    taken: str | int | None
    output: str
    other: str
    instead: dict[str, int | None]


class BatchAxes:
    """The batch axis of every tensor of a model.

    It is the symbolic dimension at position 0 of most inputs, of the first one where there are as many;
    other tensors carry it by its name, wherever it stands. Where the dimensions of a tensor have no names
    or others, shape inference tells; else it is position 0, unless that is a fixed size or a named axis of
    another input. A model whose inputs all begin with fixed sizes has the size of most of them for its rows.

    Parameters
    ----------
    model : onnx_ir.Model
        Prepared model; it is not modified.
    overrides : mapping of str to int or None, optional
        Axes by name of input or output; None for a tensor without rows.

    Attributes
    ----------
    inputs : dict of str to int or None
        Batch axis of every input.
    carrier : str or None
        The first input that has one.

    Raises
    ------
    UnknownNameError, InvalidModelError
        An override of what is no input or output, or an axis that it does not have.

    Examples
    --------
    >>> import onnx.parser
    >>> from onnxcustom.graph import prepare
    >>> model = prepare(onnx.parser.parse_model('''<ir_version: 8, opset_import: ["": 17]>
    ... g (float[N, T, 2] x, float[2, N, 3] state, float rate) => (float[T, N, 2] y) {
    ...     a = Mul(x, rate) y = Transpose<perm = [1, 0, 2]>(a) }'''))
    >>> axes = BatchAxes(model)
    >>> axes.inputs, axes.of("y")
    ({'x': 0, 'state': 1, 'rate': None}, 1)
    """

    def __init__(self, model: ir.Model, overrides: Mapping[str, Any] | None = None) -> None:
        self._model = model
        self._values = {str(v.name): v for v in _values(model)}
        self._overrides = _checked(model, overrides or {})
        self._propagated: dict[str, ir.Shape | None] | None = None
        inputs = {str(v.name): v.shape for v in model.graph.inputs}
        self._names, self._size = self._batch(inputs)
        self.inputs = {name: self._of_input(name, shape, inputs) for name, shape in inputs.items()}
        self.carrier = next((name for name, axis in self.inputs.items() if axis is not None), None)
        carried = {_dim(inputs[name], axis) for name, axis in self.inputs.items() if axis is not None}
        self._names |= {name for name in carried if isinstance(name, str)}
        named = {d for shape in inputs.values() for d in map(_plain, shape or ()) if isinstance(d, str)}
        self._others: set[Any] = named - self._names

    # -- inputs --------------------------------------------------------------------------------------

    def _batch(self, inputs: Mapping[str, ir.Shape | None]) -> tuple[set[str], int | None]:
        """Names of the batch axis, and its size where it has no name and is fixed."""
        said = [_dim(inputs[n], a) for n, a in self._overrides.items() if n in inputs and a is not None]
        free = [shape for name, shape in inputs.items() if name not in self._overrides and shape]
        first = said or [_dim(shape, 0) for shape in free]
        symbolic = [d for d in first if not isinstance(d, int)]
        if said:
            return {d for d in symbolic if d is not None}, None if symbolic else _most(said)
        if not symbolic:
            return set(), _most(first)
        name = _most(symbolic)
        return set() if name is None else {name}, None

    def _of_input(
        self, name: str, shape: ir.Shape | None, inputs: Mapping[str, ir.Shape | None]
    ) -> int | None:
        if name in self._overrides:
            return self._overrides[name]
        others = {_plain(d) for n, s in inputs.items() if n != name for d in (s or ())[1:]}
        named = self._by_name(shape)
        return self._at_first(shape, others) if named is None else named

    def _by_name(self, shape: ir.Shape | None) -> int | None:
        return next((i for i, d in enumerate(shape or ()) if _plain(d) in self._names), None)

    def _at_first(self, shape: ir.Shape | None, others: set[Any]) -> int | None:
        """Position 0, unless it is something else."""
        if shape is None:
            return 0
        if not len(shape):
            return None
        first = _plain(shape[0])
        if isinstance(first, int):
            return 0 if first == self._size else None
        return None if first is not None and first in others else 0

    # -- other tensors -------------------------------------------------------------------------------

    def of(self, name: str, output: str | None = None) -> int | None:
        """Batch axis of a tensor of the main graph, None if it has none.

        Parameters
        ----------
        name : str
            The tensor.
        output : str, optional
            An output of the model that is computed from it number by number: what is known of one is true
            of the other.
        """
        if name in self.inputs:
            return self.inputs[name]
        names = [n for n in dict.fromkeys((name, output)) if n is not None]
        for n in names:
            if n in self._overrides and self._rank(n) == self._rank(name):
                return self._overrides[n]
        same = [n for n in names if self._rank(n) == self._rank(name)]
        for n in same:
            axis = self._by_name(self._values[n].shape)
            if axis is not None:
                return axis
        return self._inferred(name)

    def _rank(self, name: str) -> int | None:
        shape = self._values[name].shape
        return None if shape is None else len(shape)

    def _inferred(self, name: str) -> int | None:
        declared, shape = self._known(name)
        found = next((i for i, d in enumerate(shape or ()) if _plain(d) == self._symbol), None)
        if found is not None:
            return found
        if declared and _plain(declared[0]) in self._others:
            return None
        return self._at_first(shape, self._others)

    def _known(self, name: str) -> tuple[ir.Shape | None, ir.Shape | None]:
        """The shape of a tensor as declared, and as inferred where that is of the declared rank."""
        declared, shape = self._values[name].shape, self._shapes().get(name)
        if shape is None or (declared is not None and len(shape) != len(declared)):
            shape = declared
        return declared, shape

    def _shapes(self) -> dict[str, ir.Shape | None]:
        """Shapes as inference finds them once the batch axis of every input has the same name."""
        if self._propagated is None:
            model = self._model.clone()
            taken = {d for v in _values(model) for d in map(_plain, v.shape or ()) if isinstance(d, str)}
            self._symbol = unique_name("rows", taken)
            for value in model.graph.inputs:
                axis = self.inputs[str(value.name)]
                if axis is not None and value.shape is not None:
                    value.shape = _renamed(value.shape, axis, self._symbol)
            for node in model.graph:
                for value in node.outputs:
                    value.shape = None
            InferShapesPass()(model)
            self._propagated = {str(v.name): v.shape for v in _values(model)}
        return self._propagated

    def doubt(self, tensors: Mapping[str, str]) -> Doubt | None:
        """Whether another dimension looks like that of the rows: outputs have it, and not the one taken.

        Parameters
        ----------
        tensors : mapping of str to str
            Output -> the tensor that stands for it.

        Returns
        -------
        Doubt or None
            None where the user has said which axis of an input holds the rows, and for a batch of one row.
        """
        if self.carrier is None or not self._overrides.keys().isdisjoint(self.inputs):
            return None
        if any(self.of(tensor, output) is not None for output, tensor in tensors.items()):
            return None
        axis = self.inputs[self.carrier]
        taken = self.dimension(self.carrier, axis)
        for output, tensor in tensors.items():
            other = None if output in self._overrides else self._leading(tensor)
            if axis is not None and taken != 1 and other in self._others:
                return Doubt(self.carrier, axis, taken, output, str(other), self._by(str(other)))
        return None

    def dimension(self, name: str, axis: int | None) -> Any:
        """A dimension of a tensor as the model has it: its size, its name, or None."""
        return _dim(self._values[name].shape, axis)

    def _leading(self, name: str) -> str | None:
        """Name of the first dimension of a tensor that is not fixed, as declared or else as inferred."""
        declared, shape = self._known(name)
        for said, found in zip(declared or shape or (), shape or (), strict=True):
            if not isinstance(_plain(said), int) and not isinstance(_plain(found), int):
                return _plain(found) if _plain(said) is None else _plain(said)
        return None

    def _by(self, name: str) -> dict[str, int | None]:
        """Axes of inputs if that dimension holds the rows; None for those that have rows now and not then."""
        found = {}
        for key, axis in self.inputs.items():
            dims = [_plain(d) for d in self._values[key].shape or ()]
            if name in dims or axis is not None:
                found[key] = dims.index(name) if name in dims else None
        return found

    def rows(self) -> int | None:
        """Rows of a batch, where the model fixes them."""
        if self.carrier is None:
            return None
        size = _dim(self._values[self.carrier].shape, self.inputs[self.carrier])
        return size if isinstance(size, int) else None


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    for node in model.graph:
        yield from node.outputs


def _plain(size: Any) -> Any:
    return size.value if isinstance(size, ir.SymbolicDim) else size


def _dim(shape: ir.Shape | None, axis: int | None) -> Any:
    """A dimension: its size, its name, or None."""
    return None if shape is None or axis is None else _plain(shape[axis])


def _most(dims: list[Any]) -> Any:
    """What is there most often; of several the first."""
    counts = Counter(dims)
    return max(dims, key=lambda d: counts[d]) if dims else None


def _renamed(shape: ir.Shape, axis: int, name: str) -> ir.Shape:
    return ir.Shape([name if i == axis else d for i, d in enumerate(shape)])


def _checked(model: ir.Model, overrides: Mapping[str, Any]) -> dict[str, int | None]:
    """Axes that a user gives, counted from the front."""
    if not isinstance(overrides, Mapping):
        raise InvalidModelError(
            "batch_axis is a dict from name of input or output to axis, such as {'x': 1}, not "
            f"{overrides!r}."
        )
    known = {str(v.name): v for v in (*model.graph.inputs, *model.graph.outputs)}
    made: dict[str, int | None] = {}
    for name, given in overrides.items():
        if name not in known:
            raise UnknownNameError(
                f"batch_axis names {name!r}, which is no input and no output of the model; those it has are "
                f"{list(known)}."
            )
        made[name] = None if given is None else _axis(name, given, known[name].shape)
    return made


def _axis(name: str, given: Any, shape: ir.Shape | None) -> int:
    try:
        axis = operator.index(given)
    except TypeError:
        axis = None
    rank = None if shape is None else len(shape)
    if axis is None or isinstance(given, bool):
        raise InvalidModelError(f"batch_axis of {name!r} is an axis or None, not {given!r}.")
    if axis < (0 if rank is None else -rank) or (rank is not None and axis >= rank):
        text = "an unknown number of" if rank is None else str(rank)
        raise InvalidModelError(f"batch_axis of {name!r} is {axis}; it has {text} dimensions.")
    return axis % rank if rank is not None else axis
