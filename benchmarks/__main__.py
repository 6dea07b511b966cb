"""Run the benchmarks of training, each subject in a process of its own.

python -m benchmarks --json results.json --plots pictures
python -m benchmarks --only step loop --threads 1
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from . import common

# Subject: module, options, processors it is pinned to.
SUBJECTS: dict[str, tuple[str, list[str], int]] = {
    "step": ("bench_step", ["--compile"], 1),
    "step-2": ("bench_step", ["--compile"], 2),
    "loop": ("bench_loop", [], 1),
    "logistic": ("bench_logistic", [], 1),
    "memory": ("bench_memory", [], 1),
    "growth": ("bench_growth", [], 1),
    "streaming": ("bench_streaming", ["--gigabytes", "0.1", "0.5"], 1),
    "passes": ("bench_passes", ["--seconds", "1"], 1),
    "settings": ("bench_settings", ["--seconds", "1"], 1),
    "bandwidth": ("bench_bandwidth", ["--seconds", "0.5"], 1),
    "recompute": ("bench_recompute", ["--seconds", "1"], 1),
    "cache-frozen": ("bench_cache_frozen", [], 1),
    "profile": ("bench_profile", ["--seconds", "4", "--only", "10", "784"], 1),
    "architectures": ("bench_architectures", ["--rounds", "3"], 1),
    "structure": ("bench_structure", [], 1),
    "fit": ("bench_fit", ["--repeat", "3", "--cases", "0", "1", "2"], 1),
    "gradient": ("bench_gradient", ["--seconds", "0.3"], 1),
    "losses": ("bench_losses", ["--seconds", "0.3"], 1),
    "optim": ("bench_optim", ["--seconds", "0.1", "--rounds", "7", "--only", "SGD", "Adam"], 1),
}
# These only print.
PRINTED = ("fit", "gradient", "optim")
QUICK = {
    "fit": ["--repeat", "1", "--cases", "0"],
    "gradient": ["--seconds", "0.01", "--only", "mlp-small"],
    "optim": ["--seconds", "0.001", "--rounds", "3", "--only", "SGD", "--sizes", "1000"],
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: do they run?")
    parser.add_argument("--only", nargs="+", choices=SUBJECTS, metavar="SUBJECT", help=" ".join(SUBJECTS))
    parser.add_argument(
        "--threads", type=int, help="processors for every subject [default: 1, and 2 for step-2]"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw the pictures, with matplotlib")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    if arguments.plots and (why := common.missing("matplotlib")):
        sys.exit(f"--plots draws with matplotlib: {why}")
    results: dict[str, Any] = {"versions": common.versions(), "machine": common.machine(), "subjects": {}}
    results["quick"] = arguments.quick
    print(", ".join(f"{name} {version}" for name, version in results["versions"].items()))
    print(", ".join(f"{name}: {value}" for name, value in results["machine"].items()))
    failed = []
    begin = time.perf_counter()
    for subject in arguments.only or SUBJECTS:
        threads = arguments.threads or SUBJECTS[subject][2]
        if threads > common.processors():
            print(f"\n== {subject}: left out, this process may use {common.processors()} processors only")
            continue
        print(f"\n== {subject}", flush=True)
        found = run_subject(subject, threads, arguments.quick)
        results["subjects"][subject] = found
        if found["exit"]:
            failed.append(subject)
        print(f"({found['seconds']:.0f} s)", flush=True)
    results["seconds"] = time.perf_counter() - begin
    if arguments.json:
        common.save(arguments.json, results)
    if arguments.plots:
        from .plots import draw

        arguments.plots.mkdir(parents=True, exist_ok=True)
        for path in draw(results, arguments.plots):
            print(path)
    print(f"\n{results['seconds']:.0f} s" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def run_subject(subject: str, threads: int, quick: bool) -> dict[str, Any]:
    """Run one, showing what it prints; what it wrote, its text and how long it took."""
    module, options, _ = SUBJECTS[subject]
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        command = [sys.executable, "-u", "-m", f"benchmarks.{module}", "--threads", str(threads)]
        if subject in PRINTED:
            command += QUICK[subject] if quick else options
        else:
            command += [*options, "--json", str(path), *(["--quick"] if quick else [])]
        lines = []
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=common.ROOT) as process:
            for line in process.stdout or ():
                print(line, end="", flush=True)
                lines.append(line.rstrip("\n"))
        found: dict[str, Any] = {"text": lines, "exit": process.returncode}
        if path.is_file():
            found |= json.loads(path.read_text())
    return found | {"seconds": time.perf_counter() - begin}


if __name__ == "__main__":
    sys.exit(main())
