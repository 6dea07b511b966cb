"""Which axes of the inputs may be those of the rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from onnxcustom.exceptions import InvalidModelError, InvalidParameterError, UnknownNameError

__all__ = ["Guess", "guesses"]


@dataclasses.dataclass(frozen=True)
class Guess:
    """Where the rows may be.

    Attributes
    ----------
    axes : dict of str to int or None
        By input.
    lead : str
        The input that has rows for certain.
    block : int
        Rows that the file is given at once.
    declared : bool
        Whether it says so.
    """

    axes: dict[str, int | None]
    lead: str
    block: int
    declared: bool


def guesses(inputs: Sequence[ir.Value], said: Mapping[str, int | None]) -> Iterator[Guess]:
    """What may be, likely ones first: axis 0 of the first input with dimensions, or axis 1 of one row.

    Raises
    ------
    InvalidModelError, InvalidParameterError, UnknownNameError
        No input has dimensions, or what is said of them cannot be.
    """
    shapes = {str(v.name): [_plain(d) for d in v.shape or ()] for v in inputs}
    _check(shapes, said)
    leads = [n for n, a in said.items() if a is not None] or [
        str(v.name)
        for v in inputs
        if len(shapes[str(v.name)]) > (1 if len(inputs) > 1 else 0) and v.name not in said
    ]
    leads = leads or [n for n, s in shapes.items() if s and n not in said]
    if not leads:
        raise InvalidModelError(f"None of the inputs {list(shapes)} has a dimension that could be the batch.")
    lead = leads[0]
    dims = shapes[lead]
    first = said.get(lead)
    # Time may stand before a batch of one.
    second = [1] if dims[0] != 1 and dims[1:2] == [1] else []
    axes = [first] if first is not None else [0, *second]
    seen: list[Guess] = []
    for axis in axes:
        alike = {n: _like(s, dims[axis], n == lead) for n, s in shapes.items()}
        alone = dict.fromkeys(shapes)
        for others in (alike, alone):
            found = {**others, lead: axis, **said}
            declared = not isinstance(dims[axis], int)
            # Files that take any number may have a way of their own for a single row.
            for block in (1, 2) if declared else (dims[axis],):
                guess = Guess(found, lead, block, declared)
                if guess not in seen and block > 0:
                    seen.append(guess)
    yield from seen


def _check(shapes: Mapping[str, Sequence[Any]], said: Mapping[str, int | None]) -> None:
    for name, axis in said.items():
        if name not in shapes:
            raise UnknownNameError(f"batch_axis names {name!r}; the inputs of the model are {list(shapes)}.")
        if axis is not None and (isinstance(axis, bool) or not 0 <= axis < len(shapes[name])):
            raise InvalidParameterError(
                f"batch_axis of {name!r} is {axis!r}; it has {len(shapes[name])} dimensions, the first is 0."
            )


def _like(shape: Sequence[Any], dim: Any, lead: bool) -> int | None:
    """The axis of an input that is like the batch axis of another one."""
    if lead or not shape:
        return None
    same = [i for i, d in enumerate(shape) if d == dim and d is not None]
    if same:
        return same[0]
    if isinstance(dim, int):
        return None
    open_ = [i for i, d in enumerate(shape) if not isinstance(d, int)]
    ones = [i for i, d in enumerate(shape) if d == 1]
    return 0 if 0 in open_ else next(iter(open_ + ones), None)


def _plain(dim: Any) -> Any:
    return dim.value if isinstance(dim, ir.SymbolicDim) else dim
