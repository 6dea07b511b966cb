"""From what a user hands in to what reads it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxcustom.exceptions import InvalidParameterError

from .columns import Plan
from .files import FileSource, find_files
from .frames import is_frame, library
from .owned import owned_parts
from .sources import ArraySource, FrameSource, IterableSource, Source

__all__ = ["as_source"]


def as_source(source: Any, plan: Plan) -> Source:
    """What reads files, frames, arrays or batches."""
    if isinstance(source, Source):
        return source
    if isinstance(source, (str, os.PathLike)) or _all_paths(source):
        return FileSource(find_files(source), plan)
    if isinstance(source, tuple):
        if plan.said:
            raise InvalidParameterError(
                "A tuple of arrays has no columns to name: X, y and sample_weight are where they stand."
            )
        return ArraySource(owned_parts(source, watched=False))
    if is_frame(source) or isinstance(source, Mapping):
        return FrameSource(owned_parts([source], watched=False)[0], plan)
    if library(source) == "pyarrow" and hasattr(source, "scanner"):
        from .arrow_files import DatasetSource

        return DatasetSource(source, plan)
    if isinstance(source, np.ndarray) or not (callable(source) or hasattr(source, "__iter__")):
        raise InvalidParameterError(
            "A stream is made of files, a frame, a tuple of arrays (X, y) or batches, not of a "
            f"{type(source).__name__}."
        )
    return IterableSource(source, plan)


def _all_paths(source: Any) -> bool:
    """Whether a list or tuple holds paths."""
    listed = isinstance(source, (list, tuple)) and len(source) > 0
    return listed and all(isinstance(item, (str, os.PathLike)) for item in source)
