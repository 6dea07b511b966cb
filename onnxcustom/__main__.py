"""``python -m onnxcustom``: see :mod:`onnxcustom.cli`."""

from __future__ import annotations

from onnxcustom.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main(prog_name="python -m onnxcustom")
