"""A model for each case of the tables that gradient rules are tested with: every operator, for long runs."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest

__all__ = ["Made", "Row", "filled", "operator_models", "operator_rows"]

_TABLES = Path(__file__).parents[1] / "ut_gradient" / "rules"

Made = tuple[onnx.ModelProto, dict[str, np.ndarray]]
"""A model and values for its inputs."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A case of a table.

    Attributes
    ----------
    name : str
        Module and case.
    operator : str
        What the case is about.
    make : callable
        From 'static', 'dynamic' or 'unranked' to the model, whose second floating-point operand and those
        behind it are initializers, and its feeds. An exception where there is no such model.
    """

    name: str
    operator: str
    make: Callable[[str], Made]


def operator_models() -> dict[str, bytes]:
    """Models of one node; its second floating-point operand and those behind it are weights."""
    found: dict[str, bytes] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for row in operator_rows():
            for shapes in ("static", "dynamic"):
                try:
                    found.setdefault(f"{row.name}-{shapes}", row.make(shapes)[0].SerializeToString())
                except Exception:
                    continue
    return found


def operator_rows() -> list[Row]:
    """The rows of all tables, each name once."""
    sys.path[:0] = [str(_TABLES), str(_TABLES.parent)]
    found: dict[str, Row] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in sorted(_TABLES.glob("test_*.py")):
            try:
                module = importlib.import_module(path.stem)
            except (Exception, pytest.skip.Exception):  # a table that needs a package which is not installed
                continue
            for row in _rows(module):
                found.setdefault(row.name, row)
        for row in _variants():
            found.setdefault(row.name, row)
    return list(found.values())


def _rows(module: Any) -> list[Row]:
    """The rows of a module's tables."""
    from rule_cases import Case

    name = module.__name__
    lists = [value for value in vars(module).values() if isinstance(value, list)]
    cases = [case for found in lists for case in found]
    made = [
        Row(f"{name}-{case}", case.op_type, functools.partial(_model, case))
        for case in cases
        if isinstance(case, Case)
    ]
    made += [
        Row(f"{name}-{case}", case.op_type, functools.partial(_recurrent, case))
        for case in cases
        if type(case).__name__ == "Recurrent"
    ]
    table = getattr(module, "CASES", None)
    if isinstance(table, dict):
        for key, row in table.items():
            if hasattr(module, "case_model"):  # operators of com.microsoft
                make: Callable[[str], Made] = functools.partial(_microsoft, module, key, row)
                made.append(Row(f"{name}-{'-'.join(key)}", key[0], make))
            elif hasattr(module, "HEADER"):  # control flow
                text = module.HEADER + row[0]
                operator = next(op for op in ("Scan", "Loop", "If") if f"{op} " in text or f"{op}(" in text)
                made.append(Row(f"{name}-{key}", operator, functools.partial(_parsed, text, row[1])))
    for key, row in getattr(module, "MODELS", {}).items():
        made += _texts(module, key, row)
    for key, rows in getattr(module, "MICROSOFT", {}).items():  # what onnxruntime's optimizer leaves behind
        for k, row in enumerate(rows):
            made.append(Row(f"{name}-{key}-{k}", key, functools.partial(_fused, module, key, row)))
    return made


def _texts(module: Any, key: str, row: Any) -> list[Row]:
    """A row of the tables of whole texts; none of models that are files."""
    if isinstance(row, onnx.ModelProto):
        make = functools.partial(_copied, row)
    elif hasattr(module, "COUNTED"):  # sequences: nodes, shape of the inputs
        make = functools.partial(_sequences, module, *row)
    elif isinstance(row, str):
        make = functools.partial(_filled_text, module.parse, row)
    elif isinstance(row, tuple) and isinstance(row[0], int):
        make = functools.partial(_filled_text, _of_opset, row)
    else:
        return []
    operator = module.__name__.removeprefix("test_")
    return [Row(f"{module.__name__}-{key}", operator, make)]


def _variants() -> list[Row]:
    """The table that engines are compared on, with outputs that nobody reads and operands that are one."""
    import operator_cases

    made = []
    for case in operator_cases.CASES:
        for variant in (case, *operator_cases.variants(case)):
            opsets = list(variant.opsets(oldest=13))
            for opset in sorted({*opsets[:1], *opsets[-1:]}):
                make = functools.partial(_variant, variant, opset)
                made.append(Row(f"engines-{variant.id}-{opset}", variant.op, make))
    return made


# -- one function for each kind of row -------------------------------------------------------------------


def _model(case: Any, shapes: str) -> Made:
    floats = [i for i, x in enumerate(case.inputs) if x is not None and np.asarray(x).dtype.kind == "f"]
    constant = sorted({*case.constant, *floats[1:]})
    case = dataclasses.replace(case, constant=constant, dtype=np.float32)
    return case.model(shapes), case.feeds()


def _variant(case: Any, opset: int, shapes: str) -> Made:
    floats = [i for i, x in enumerate(case.feeds) if x is not None and x.dtype == np.float64]
    if case.same is None:
        case = dataclasses.replace(case, constant=tuple(sorted({*case.constant, *floats[1:]})))
    kind = "unknown" if shapes == "unranked" else shapes
    return case.model(opset, np.float32, kind), case.inputs(np.float32, kind)


def _recurrent(case: Any, shapes: str) -> Made:
    model, feeds = case.model(np.float32, shapes), case.feeds(np.float32)
    weights = [name for name, value in feeds.items() if value.dtype.kind == "f"][1:]
    kept = [i for i in model.graph.input if i.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(feeds.pop(name), name) for name in weights)
    return model, feeds


def _microsoft(module: Any, key: tuple[str, ...], row: Any, shapes: str) -> Made:
    model, feeds = module.case_model(key[0], *row, shapes=shapes)
    return model, feeds


def _fused(module: Any, key: str, row: Any, shapes: str) -> Made:
    domain = "" if key == "SimplifiedLayerNormalization" else module.MS
    return module.node_model(key, *row, ["y"], domain, 18, shapes=shapes)


def _copied(model: onnx.ModelProto, _shapes: str) -> Made:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    return filled(made)


def _filled_text(parse: Callable[[Any], onnx.ModelProto], row: Any, _shapes: str) -> Made:
    return filled(parse(row))


def _of_opset(row: tuple[int, str]) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 4, opset_import: ["": {row[0]}]> {row[1]}')


def _sequences(module: Any, text: str, shape: tuple[int, ...], shapes: str) -> Made:
    rng = np.random.default_rng(0)
    model = module.parse(text, shape if shapes == "static" else tuple("MN"))
    return model, {i.name: rng.normal(size=shape) for i in model.graph.input}


def _parsed(text: str, feeds: dict[str, np.ndarray], _shapes: str) -> Made:
    return onnx.parser.parse_model(text), feeds


def filled(model: onnx.ModelProto) -> Made:
    """A model and three rows of numbers."""
    rng = np.random.default_rng(0)
    fixed = {tensor.name for tensor in model.graph.initializer}
    feeds = {}
    for info in model.graph.input:
        if info.name in fixed:
            continue
        tensor = info.type.tensor_type
        shape = [d.dim_value or 3 for d in tensor.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        if tensor.elem_type == onnx.TensorProto.STRING:
            feeds[info.name] = np.full(shape, "a", dtype=object)
        elif np.dtype(dtype).kind == "f":
            feeds[info.name] = rng.normal(size=shape).astype(dtype)
        else:
            feeds[info.name] = rng.integers(0, 2, size=shape).astype(dtype)
    return model, feeds
