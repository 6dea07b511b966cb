from __future__ import annotations

import hashlib

import numpy as np
import pytest
import scipy.sparse as sp

from onnxcustom.data import fingerprints
from onnxcustom.data.blocks import Block
from onnxcustom.data.fingerprints import hash_array, hash_file, hash_rows
from onnxcustom.data.sparse import SparseRows


def test_the_hash_is_sha256_of_the_bytes():
    array = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert hash_array(array) == f"float32 (3, 2) {hashlib.sha256(array.tobytes()).hexdigest()[:16]}"


@pytest.mark.parametrize(
    "array",
    [
        np.arange(3000.0).reshape(100, 30),
        np.arange(3000.0).reshape(30, 100).T,
        np.arange(6000.0).reshape(200, 30)[::2],
        np.arange(3000.0).reshape(100, 30).astype(">f8"),
        np.zeros((0, 3)),
        np.zeros((3, 0)),
        np.array(["a", "bc"], object),
        np.array(["a", "bc"]),
    ],
)
def test_pieces_make_no_difference(array, monkeypatch):
    whole = hash_array(array)
    monkeypatch.setattr(fingerprints, "_PIECE", 999)
    assert hash_array(array) == whole


def test_what_differs_shows():
    base = np.arange(100.0)
    others = [base.astype(np.float32), base.reshape(10, 10), base[::-1], base + (np.arange(100) == 57)]
    assert len({hash_array(a) for a in (base, *others)}) == 5
    text = [np.array(t, object) for t in (["ab", "c"], ["a", "bc"])]
    assert hash_array(text[0]) != hash_array(text[1])


def test_memory_that_is_mapped(tmp_path):
    array = np.arange(1000.0).reshape(100, 10)
    np.save(tmp_path / "x.npy", array)
    assert hash_array(np.load(tmp_path / "x.npy", mmap_mode="r")) == hash_array(array)


def test_samples_stand_for_large_arrays(monkeypatch):
    monkeypatch.setattr(fingerprints, "_WHOLE", 1000)
    monkeypatch.setattr(fingerprints, "_PIECE", 80)
    array = np.arange(10_000.0)
    changed = array.copy()
    changed[5000] += 1
    assert hash_array(array, whole=True) != hash_array(changed, whole=True)
    read = [array[int(s) : int(s) + 10] for s in np.linspace(0, 9990, 64).astype(int)]
    wanted = hashlib.sha256(b"".join(r.tobytes() for r in read)).hexdigest()[:16]
    assert hash_array(array) == f"float64 (10000,) {wanted}"
    changed = array.copy()
    changed[-1] += 1
    assert hash_array(array) != hash_array(changed)


def test_sparse_rows():
    dense = np.eye(4)
    a, b = hash_array(SparseRows(sp.csr_matrix(dense))), hash_array(SparseRows(sp.coo_array(dense)))
    assert a == b
    assert a.startswith("sparse float64 (4, 4) ")
    assert hash_array(SparseRows(sp.csr_matrix(dense[::-1]))) != a


def test_rows_in_blocks():
    rows = np.arange(10)
    blocks = [Block.of(rows[a:b], rows[a:b].astype(str)) for a, b in ((0, 3), (3, 10))]
    assert hash_rows(blocks) == hash_rows([Block.of(rows, rows.astype(str))])
    assert hash_rows(blocks)["X"].startswith("int64 () 10 rows ")


def test_files(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"a" * 200_000)
    first = hash_file(path)
    assert first.startswith("200000 bytes ")
    for place in (0, 199_999):
        content = bytearray(b"a" * 200_000)
        content[place] = 0
        path.write_bytes(content)
        assert hash_file(path) != first
    path.write_bytes(b"a" * 200_001)
    assert hash_file(path) != first
