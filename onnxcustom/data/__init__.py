"""Data as it comes: frames and tables as arrays, files and batches as streams of blocks of rows.

:func:`stream` makes a :class:`Stream` of Parquet, Arrow and CSV files, memory-mapped arrays or batches that
an iterable makes. pyarrow is imported when a file that needs it is read, never before.
"""

from __future__ import annotations

from .blocks import Block
from .given import as_data
from .streams import Stream, stream

__all__ = ["Block", "Stream", "as_data", "stream"]
