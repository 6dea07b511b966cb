"""Files of rows, whole and damaged, and everything that is read of them."""

from __future__ import annotations

import bz2
import contextlib
import functools
import gzip
import importlib
import io
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

from onnxcustom.data import csv_files, stream

__all__ = ["FILES", "mutate_data", "read_data"]

CELLS = (
    *(
        "",
        " ",
        '"',
        '""',
        '"a',
        "'",
        ",",
        ";",
        "\t",
        "\n",
        "\r",
        "\r\n",
        "\n\n",
        "\0",
        "\ufeff",
        "\\",
        "|",
        "#",
    ),
    *(
        "nan",
        "NaN",
        "NA",
        "null",
        "inf",
        "-inf",
        "1e999",
        "-1e-999",
        "1_000",
        "0x10",
        "1,5",
        "1.",
        ".5",
        "--1",
    ),
    *(
        "true",
        "False",
        "TRUE",
        "é",
        "名",
        "\U0001f4a9",
        "9" * 30,
        "1" * 400,
        "x" * 5000,
        '"' * 99,
        "1e5",
        "٣",
    ),
    *(
        "2020-01-01",
        "12:30",
        "[1, 2]",
        "{}",
        "__import__('os')",
        "=cmd|' /C calc'!A0",
        "-9223372036854775809",
    ),
)
BYTES = (b"\xff", b"\xfe\xff", b"\xc3", b"\x80", b"\0\0\0", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\x1f\x8b")
NUMBERS = "a,b,y\n" + "".join(f"{i},{i / 3},{i % 2}\n" for i in range(12))
TEXTS = {
    "numbers.csv": NUMBERS,
    "words.csv": "a,kind,y\n"
    + "".join(f'{i},"{"uvw"[i % 3]}, x",{"yes" if i % 2 else "no"}\n' for i in range(12)),
    "truths.tsv": "a\tb\ty\n" + "".join(f"{i}\t{i % 2 == 0}\t{i * 2}\n" for i in range(12)),
    "semicolons.csv": "a;b;y\r\n" + "".join(f"{i};{i}e-3;{i - 5}\r\n" for i in range(12)),
    "wide.csv": ",".join(f"c{i}" for i in range(40))
    + ",y\n"
    + (",".join("1" for _ in range(40)) + ",2\n") * 3,
    "short.csv": "y\n1\n",
    "numbers.csv.gz": NUMBERS,
    "numbers.csv.bz2": NUMBERS,
}
# What is asked of each: whole, it can be read so.
WORDS: dict[str, tuple[dict[str, Any], ...]] = {
    "numbers": ({}, {"target": "y"}, {"target": "y", "columns": "a"}, {"target": "y", "sample_weight": "b"}),
    "words": ({"target": "y", "columns": ["a"]}, {"target": "kind", "columns": "a"}),
    "truths": ({"target": "y"}, {"target": "b"}, {"columns": ["y", "a"]}),
    "semicolons": ({"target": "y"}, {}),
    "wide": ({"target": "y"}, {"columns": ["c1", "c30"]}),
    "short": ({}, {"columns": "y"}),
    "table": (
        *({"target": t, "columns": ["v", "a"]} for t in ("y", "d", "t")),
        {"target": "y", "columns": "b", "sample_weight": "a"},
        {"inputs": {"one": ["a", "b"], "two": "v"}, "target": "d"},
    ),
}
PACK = {".gz": (gzip.compress, gzip.decompress), ".bz2": (bz2.compress, bz2.decompress)}


def _table() -> Any:
    """A table of pyarrow with columns of many types."""
    pa = importlib.import_module("pyarrow")
    return pa.table(
        {
            "a": pa.array([1.5, 2.5, 3.5, 4.5] * 3),
            "b": pa.array([1, 2, 3, 4] * 3, pa.int32()),
            "v": pa.array([[1.0, 2.0], [3.0, 4.0]] * 6),
            "d": pa.array(["u", "v", "u", "w"] * 3).dictionary_encode(),
            "t": pa.array([True, False] * 6),
            "y": pa.array([0, 1] * 6, pa.int64()),
        }
    )


def _arrow(suffix: str) -> bytes:
    sink = io.BytesIO()
    if suffix == ".parquet":
        importlib.import_module("pyarrow.parquet").write_table(_table(), sink, row_group_size=5)
    else:
        importlib.import_module("pyarrow.feather").write_feather(_table(), sink, chunksize=5)
    return sink.getvalue()


def _text(name: str) -> bytes:
    pack = PACK.get(Path(name).suffix)
    return pack[0](TEXTS[name].encode()) if pack else TEXTS[name].encode()


def _files() -> dict[str, Callable[[], bytes]]:
    found = {name: functools.partial(_text, name) for name in TEXTS}
    with contextlib.suppress(ImportError):
        importlib.import_module("pyarrow")
        found |= {f"table{s}": functools.partial(_arrow, s) for s in (".parquet", ".feather")}
    return found


FILES = _files()
"""Makers of files by name."""


@functools.cache
def _content(name: str) -> bytes:
    return FILES[name]()


def mutate_data(name: str, random: Random) -> bytes:
    """A damaged copy of a file."""
    content = _content(name)
    pack = PACK.get(Path(name).suffix)
    if pack and random.random() < 0.7:
        return pack[0](_mutate_text(pack[1](content), random))
    if name in TEXTS and not pack and random.random() < 0.8:
        return _mutate_text(content, random)
    return _mutate_bytes(bytearray(content), random)


def _mutate_text(content: bytes, random: Random) -> bytes:
    """Other cells, lines and characters."""
    lines = content.decode().splitlines(keepends=True)
    for _ in range(random.choice((1, 1, 2, 4))):
        if not lines:
            break
        how, i = random.randrange(7), random.randrange(len(lines))
        if how == 0:
            del lines[i]
        elif how == 1:
            lines.insert(i, random.choice((lines[i], "\n", ",,,\n", "x\n", '"\n')))
        elif how == 2:
            lines[i] = lines[i].rstrip() + random.choice((",", ";", ",1,2", "\t", '"')) + "\n"
        elif how == 3:
            lines[i] = lines[i][: random.randrange(len(lines[i]) + 1)]
        elif how == 4:
            lines = lines[:i]
        else:
            at = random.randrange(len(lines[i]) + 1)
            lines[i] = lines[i][:at] + random.choice(CELLS) + lines[i][at + random.choice((0, 0, 1, 3)) :]
    text = "".join(lines)
    if random.random() < 0.03:
        return text.encode(random.choice(("utf-16", "utf-32", "utf-8-sig")))
    made = text.encode()
    if random.random() < 0.15:
        at = random.randrange(len(made) + 1)
        made = made[:at] + random.choice(BYTES) + made[at:]
    return made


def _mutate_bytes(made: bytearray, random: Random) -> bytes:
    """Other bytes: more often at the end, where Parquet keeps what it says of itself."""
    for _ in range(random.choice((1, 1, 2, 4, 16))):
        if not made:
            break
        size = len(made)
        near_end = size - 1 - random.randrange(min(size, 900))
        at = random.choice((random.randrange(size), near_end))
        how = random.randrange(6)
        if how <= 1:
            made[at] ^= 1 << random.randrange(8)
        elif how == 2:
            made[at] = random.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif how == 3:
            del made[at : at + random.choice((1, 4, 64))]
        elif how == 4:
            made[at:at] = made[at : at + random.choice((1, 4, 64))] + random.choice(BYTES)
        else:
            del made[at:]
    return bytes(made)


def read_data(name: str, content: bytes, random: Random) -> None:
    """Read a file in every way: its columns, first rows, labels, blocks, in order and shuffled."""
    words: dict[str, Any] = random.choice(WORDS[name.partition(".")[0]])
    with tempfile.TemporaryDirectory() as folder, _reader(name, random):
        path = Path(folder) / name
        path.write_bytes(content)
        rows = stream(path, block_rows=random.choice((1, 4, 100)), prefetch=random.choice((0, 2)), **words)
        rows.fingerprint()
        rows.head(3)
        if "target" in words and random.random() < 0.5:
            rows.labels()
        for shuffle in (False, True):
            for block in rows.blocks(shuffle=shuffle):
                len(block)
        rows.where_not_finite()


@contextlib.contextmanager
def _reader(name: str, random: Random) -> Iterator[None]:
    """With pyarrow, and as if it were not installed."""
    if random.random() < 0.6 or name not in TEXTS:
        yield
        return
    original = importlib.import_module

    def without(name: str, *words: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return original(name, *words)

    with mock.patch.object(csv_files.importlib, "import_module", without):
        yield
