"""Sparse rows, made dense only where they are used."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["SparseRows", "is_sparse"]


def is_sparse(data: Any) -> bool:
    """Whether data is a sparse matrix or array of scipy."""
    return type(data).__module__.partition(".")[0] == "scipy" and hasattr(data, "tocsr")


class SparseRows:
    """A sparse matrix that gives out rows as dense arrays.

    Parameters
    ----------
    matrix : sparse matrix or sparse array of shape (n, k)
        Of scipy, in any format.

    Attributes
    ----------
    matrix : sparse matrix or sparse array
        The same by rows (CSR).

    Examples
    --------
    >>> import scipy.sparse
    >>> rows = SparseRows(scipy.sparse.eye_array(3))
    >>> rows[1:].tolist()
    [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """

    ndim = 2

    def __init__(self, matrix: Any) -> None:
        self.matrix = matrix.tocsr()

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.matrix.shape

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the values."""
        return self.matrix.dtype

    @property
    def nbytes(self) -> int:
        """Memory that all rows would take as a dense array."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Dense rows: a slice or indices."""
        return self.matrix[rows].toarray()

    def take(self, rows: Any, out: np.ndarray) -> None:
        """Write rows into a dense array in C order."""
        self.matrix[rows].toarray(out=out)

    def parts(self) -> tuple[np.ndarray, ...]:
        """The arrays that say which numbers are where, in the one way there is to write them."""
        matrix = self.matrix
        if not matrix.has_canonical_format:
            matrix = matrix.copy()
            matrix.sum_duplicates()
        return matrix.data, matrix.indices, matrix.indptr
