"""A smaller model out of one that repeats itself: some of its blocks."""

from __future__ import annotations

import itertools
import logging
import operator
from collections.abc import Iterable, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from onnxcustom._text import listed
from onnxcustom.exceptions import InvalidModelError, InvalidParameterError
from onnxcustom.graph.analysis.traversal import all_names, dependents, reads, unique_name
from onnxcustom.graph.files.io import ModelLike, to_ir, to_proto
from onnxcustom.graph.preparation.passes import InferShapesPass, InlineFunctionsPass
from onnxcustom.graph.preparation.unused import RemoveUnusedPass

from .repeated import Repetition, find_repetition

__all__ = ["drop_layers"]

_LOGGER = logging.getLogger("onnxcustom")


def drop_layers(model: ModelLike, keep: int | Iterable[int]) -> onnx.ModelProto:
    """Keep some of the blocks that a model repeats: a student for :class:`~onnxcustom.tuning.Distillation`.

    The blocks are those of the longest repetition: parts one behind the other, of the same operators,
    attributes and shapes of weights, between tensors of one shape, each of which reads of the others what the
    one before has computed last. What all of them read, such as a mask, stays. Inputs that only blocks that
    go have read, and outputs that they have computed, such as their keys and values, go with them; an output
    that the last block computes stays, as what comes out of all.

    Parameters
    ----------
    model : str, path, bytes, file object, onnx.ModelProto or onnx_ir.Model
        The model in any form. It is not changed.
    keep : int or list of int
        Places of the blocks to keep, from 0; -1 is the last one. They stay in the order of the model. A
        number: so many, from the first to the last at even distances.

    Returns
    -------
    onnx.ModelProto
        Weights keep their names and values.

    Raises
    ------
    InvalidModelError
        Nothing is repeated in the model.
    InvalidParameterError
        There is no such block, none is kept, or one twice.

    Examples
    --------
    >>> import onnx.parser
    >>> import onnxcustom
    >>> model = onnx.parser.parse_model('''
    ...     <ir_version: 8, opset_import: ["": 17]>
    ...     m (float[N, 2] x) => (float[N, 2] y)
    ...     <float[2, 2] u = {1, 2, 3, 4}, float[2, 2] v = {5, 6, 7, 8}, float[2, 2] w = {9, 8, 7, 6}> {
    ...         a = MatMul(x, u)  b = Tanh(a)  c = MatMul(b, v)  d = Tanh(c)  e = MatMul(d, w)  y = Tanh(e)
    ...     }''')
    >>> list(onnxcustom.weights(drop_layers(model, keep=[0, 2])))
    ['u', 'w']
    """
    wanted = _wanted(keep)
    edited = to_ir(model)
    if edited.functions:
        InlineFunctionsPass()(edited)
    InferShapesPass()(edited)
    found = find_repetition(edited.graph)
    if found is None:
        raise InvalidModelError(
            f"Nothing is repeated in this model of {len(edited.graph)} nodes: no two parts, one behind the "
            "other, have the same operators, attributes and shapes of weights between tensors of one shape, "
            "with nothing but the last of these read behind them."
        )
    kept = _places(wanted, found)
    _drop(edited, found, [i for i in range(len(found.nodes)) if i not in kept])
    return to_proto(edited)


def _wanted(keep: int | Iterable[int]) -> int | list[int]:
    """What is to be kept, checked as far as it can be without the model."""
    whole = "keep must be a number of blocks, or a list of their places from 0"
    try:
        made = [operator.index(i) for i in keep] if isinstance(keep, Iterable) else operator.index(keep)
    except TypeError:
        raise InvalidParameterError(f"{whole}, not {keep!r}.") from None
    if isinstance(keep, (bool, np.bool_)):
        raise InvalidParameterError(f"{whole}, not {keep!r}.")
    if not made or (isinstance(made, int) and made < 0):
        raise InvalidParameterError(f"{whole}: at least one block has to stay, not {keep!r}.")
    return made


def _places(wanted: int | Sequence[int], found: Repetition) -> set[int]:
    """Places of the blocks that stay.

    Raises
    ------
    InvalidParameterError
        There is no such block, or it is named twice.
    """
    count = len(found.nodes)
    are = f"The model has {count} blocks of {len(found.nodes[0])} nodes, from {found.cuts[0].name!r} to "
    are += f"{listed([str(v.name) for v in found.cuts[1:]], 12)}"
    if isinstance(wanted, int):
        if wanted > count:
            raise InvalidParameterError(f"{are}: {wanted} of them cannot be kept.")
        return {round(float(i)) for i in np.linspace(0, count - 1, wanted)}
    outside = [i for i in wanted if not -count <= i < count]
    if outside:
        raise InvalidParameterError(f"{are}: there is none at {outside}.")
    places = [i % count for i in wanted]
    if len(set(places)) < len(places):
        raise InvalidParameterError(f"{are}: each can be kept once, not as {list(wanted)}.")
    return set(places)


def _drop(model: ir.Model, found: Repetition, places: Sequence[int]) -> None:
    """Let what comes behind some blocks read what comes before them."""
    graph, cuts = model.graph, found.cuts
    read = [v for v in graph.inputs if v.uses()]
    heads = {cuts[0]: cuts[0]}
    for i, (before, after) in enumerate(itertools.pairwise(cuts)):
        heads[after] = heads[before] if i in places else after
    replaced = {v: head for v, head in heads.items() if head is not v}
    inside = [v for i in places for node in found.nodes[i] for v in node.outputs]
    gone = dependents(graph, inside, lambda node: [v for v in reads(node) if v not in replaced])
    dropped = [v for v in graph.outputs if v in gone and v is not cuts[-1]]
    graph.outputs[:] = [v for v in graph.outputs if v not in dropped]
    if cuts[-1] in replaced and cuts[-1].is_graph_output():
        _hand_out(graph, cuts[-1], heads[cuts[-1]])
    for value, head in replaced.items():
        value.replace_all_uses_with(head)
    RemoveUnusedPass()(model)
    unread = [v for v in read if not v.uses() and not v.is_graph_output() and v.const_value is None]
    for value in unread:
        graph.inputs.remove(value)
    if dropped or unread:
        names = listed([str(v.name) for v in (*unread, *dropped)], 12)
        _LOGGER.info("With blocks that are dropped go the inputs and outputs that were theirs: %s.", names)


def _hand_out(graph: ir.Graph, output: ir.Value, head: ir.Value) -> None:
    """Let a tensor take the place of an output, under its name."""
    taken = all_names(graph)
    name, output.name = output.name, unique_name(f"{output.name}_dropped", taken)
    end = ir.node("Identity", [head], num_outputs=1, name=unique_name(f"{name}_end", taken))
    made = end.outputs[0]
    made.name, made.type, made.shape = name, output.type, output.shape
    graph.append(end)
    graph.outputs[graph.outputs.index(output)] = made
