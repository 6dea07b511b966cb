from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from onnxcustom.data.sparse import SparseRows, is_sparse

DENSE = np.array([[0, 1.5, 0], [2, 0, 0], [0, 0, 0], [3, 4, 5]])


@pytest.mark.parametrize(
    "kind", [sp.csr_matrix, sp.csc_matrix, sp.coo_matrix, sp.csr_array, sp.coo_array, sp.dok_array]
)
def test_rows_become_dense_where_they_are_used(kind):
    matrix = kind(DENSE)
    assert is_sparse(matrix)
    rows = SparseRows(matrix)
    assert (rows.shape, rows.dtype, rows.ndim, len(rows), rows.nbytes) == ((4, 3), np.float64, 2, 4, 96)
    np.testing.assert_array_equal(rows[1:3], DENSE[1:3])
    np.testing.assert_array_equal(rows[[3, 0]], DENSE[[3, 0]])
    out = np.full((2, 3), 7.0)
    rows.take(np.array([3, 1]), out)
    np.testing.assert_array_equal(out, DENSE[[3, 1]])


def test_what_is_not_sparse():
    assert not is_sparse(DENSE)
    assert not is_sparse(DENSE.tolist())


def test_one_way_to_write_a_matrix():
    twice = sp.csr_matrix((np.array([1.0, 2.0, 4.0]), [2, 0, 0], [0, 3]), shape=(1, 3))
    once = sp.csr_matrix(np.array([[6.0, 0, 1.0]]))
    for a, b in zip(SparseRows(twice).parts(), SparseRows(once).parts(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert twice.nnz == 3
