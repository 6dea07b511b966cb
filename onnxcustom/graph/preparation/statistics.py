"""Running statistics of BatchNormalization as tensors of their own.

PyTorch's exporters keep one of equal tensors. In a model that was never trained the scale and the variance of
every BatchNormalization are then one tensor of ones: training the one would move the others.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping

import onnx_ir as ir

from onnxcustom.graph.analysis.operators import is_op
from onnxcustom.graph.analysis.traversal import all_nodes, unique_name, value_names
from onnxcustom.graph.preparation.sites import OperandSite, origin, pin

__all__ = ["SeparateCopiesPass", "SeparateStatisticsPass", "separated"]


# In the meta of a copy: the name of what it copies.
_SOURCE = "onnxcustom.copy_of"

# Operands of BatchNormalization that are running statistics, and what a tensor of their own is called.
_STATISTICS = {3: "mean", 4: "variance"}


class SeparateCopiesPass(ir.passes.InPlacePass):
    """Give copies of running statistics, and copies that are running statistics, a tensor of their own.

    An ``Identity`` of a constant is how PyTorch's older exporter writes a tensor that is equal to another.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Separate in place."""
        modified = False
        for node in list(all_nodes(model.graph)):
            if not is_op(node, "Identity"):
                continue
            source, copy = node.inputs[0], node.outputs[0]
            if source is None or source.const_value is None or copy.is_graph_output():
                continue
            if not _is_statistic(source) and not _is_statistic(copy):
                continue
            own = _copy(source, str(copy.name))
            own.meta.update({**copy.meta, **own.meta})
            copy.replace_all_uses_with(own)
            assert node.graph is not None
            node.graph.remove(node, safe=True)
            model.graph.register_initializer(own)
            modified = True
        return ir.passes.PassResult(model, modified=modified)


class SeparateStatisticsPass(ir.passes.InPlacePass):
    """Give running statistics that are read as something else, too, a tensor of their own.

    BatchNormalizations that read the same four tensors, each as one thing only, are one module that is
    applied several times, and share their statistics.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Separate in place."""
        taken = value_names(model)
        nodes = [n for n in all_nodes(model.graph) if is_op(n, "BatchNormalization")]
        modules = {n: tuple(n.inputs[1:5]) for n in nodes}
        statistics = dict.fromkeys(v for n in nodes for v in n.inputs[3:5] if v is not None)
        modified = False
        for value in statistics:
            if value.const_value is None or value.is_graph_input():
                continue
            groups = _readers(value, modules)
            for (_, index), readers in groups.items():
                own = _copy(value, unique_name(f"{value.name}_{_STATISTICS[index]}", taken))
                pin(own, OperandSite(origin(readers[0]), index, str(own.name)))
                for node in readers:
                    node.replace_input_with(index, own)
                model.graph.register_initializer(own)
                modified = True
        return ir.passes.PassResult(model, modified=modified)


def _readers(value: ir.Value, modules: Mapping[ir.Node, tuple]) -> dict[tuple[Hashable, int], list[ir.Node]]:
    """The nodes that read a tensor as their statistic and want another one, by (module, operand)."""
    uses = list(value.uses())
    indices = {index if is_op(node, "BatchNormalization") else None for node, index in uses}
    one_thing = len(indices) == 1 and not value.is_graph_output()
    groups: dict[tuple[Hashable, int], list[ir.Node]] = {}
    for node, index in sorted(uses, key=lambda use: list(modules).index(use[0]) if use[0] in modules else -1):
        if is_op(node, "BatchNormalization") and index in _STATISTICS:
            # A node of a function that is called several times is one module in any case.
            module = modules[node] if one_thing else origin(node)
            groups.setdefault((module, index), []).append(node)
    if one_thing:
        groups.pop(next(iter(groups)))  # the first one keeps it
    return groups


def _is_statistic(value: ir.Value) -> bool:
    return any(is_op(user, "BatchNormalization") and index in _STATISTICS for user, index in value.uses())


def separated(graph: ir.Graph | None, written: Iterable[str]) -> list[ir.Value]:
    """Initializers that were one tensor with those written, and are not written themselves.

    Parameters
    ----------
    graph : onnx_ir.Graph or None
        Main graph of a model that the passes above were applied to.
    written : iterable of str
        Names of initializers.
    """
    found: dict[str, ir.Value] = {}
    known = set(written)
    for value in () if graph is None else graph.initializers.values():  # a copy comes after what it copies
        if value.name not in known and value.meta.get(_SOURCE) in known | set(found):
            found[str(value.name)] = value
    return list(found.values())


def _copy(source: ir.Value, name: str) -> ir.Value:
    assert source.const_value is not None
    tensor = ir.tensor(source.const_value.numpy(), dtype=source.const_value.dtype, name=name)
    value = ir.Value(name=name, type=source.type, shape=source.shape, const_value=tensor)
    value.meta[_SOURCE] = source.name
    return value
