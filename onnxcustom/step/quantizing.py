"""Models of integers without a training: their ranges are measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx

from onnxcustom.exceptions import InvalidParameterError
from onnxcustom.graph.files.io import ModelLike
from onnxcustom.tuning.quantization.options import select_quantize

from .training_step import TrainingStep

__all__ = ["quantize"]


def quantize(
    model: ModelLike,
    X: Any,
    to: Any = "int8",
    *,
    batch_axis: Mapping[str, int | None] | None = None,
    device: str = "cpu",
) -> onnx.ModelProto:
    """Round the weights of a model, and what it computes, to integers by ranges measured on some rows.

    It is what training with ``quantize=`` hands out before its first step.

    Parameters
    ----------
    model : str, path, bytes, file object, onnx.ModelProto or onnx_ir.Model
        The model in any form. It is not changed.
    X : array_like of shape (n, ...) or dict of str to array_like
        Rows to measure ranges on. ``rows`` of the options says how many are used.
    to : str or Quantization, default='int8'
        The integers: ``'int8'``, ``'int4'``, ``'int8:exclude=last:1'`` or
        :class:`onnxcustom.tuning.Quantization`.
    batch_axis : dict of str to int or None, optional
        As for :class:`onnxcustom.TrainingStep`.
    device : str, default='cpu'
        Where ranges are measured.

    Returns
    -------
    onnx.ModelProto
        Integers with DequantizeLinear, of which onnxruntime makes kernels of integers.

    Raises
    ------
    InvalidParameterError, InvalidModelError, InvalidDataError
        No such integers; a model without a product to quantize; no rows, or numbers that are not finite.

    Examples
    --------
    >>> import numpy as np
    >>> import onnx.parser
    >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["": 17]>
    ...     m (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {0.5, -1, 0.25, 1}> { y = MatMul(x, w) }''')
    >>> made = quantize(model, np.eye(2, dtype=np.float32))
    >>> [i.name for i in made.graph.initializer if i.name.startswith("w")]
    ['w_quantized', 'w_scale', 'w_zero_point']
    """
    options = select_quantize(to)
    if options is None:
        raise InvalidParameterError("quantize needs the integers to round to: 'int8', 'int4' ..., not None.")
    step = TrainingStep(model, quantize=options, batch_axis=batch_axis, device=device)
    if options.activations is not None:
        step.calibrate(X)
    return step.trained_model()
