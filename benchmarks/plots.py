"""The pictures of the benchmarks, from their JSON.

python -m benchmarks.plots results.json pictures
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

OURS = "#c2410c"
PEERS = {"PyTorch": "#64748b", "JAX": "#3f7d58", "scikit-learn": "#4c6fa8"}
# Contender: what the picture calls it, and whose it is.
NAMES = {
    "run_batch": ("onnxcustom, run_batch", None),
    "run": ("onnxcustom, run", None),
    "fit": ("onnxcustom, fit", None),
    "eager": ("PyTorch eager", "PyTorch"),
    "fused": ("PyTorch eager, fused", "PyTorch"),
    "compile": ("torch.compile", "PyTorch"),
    "jit": ("JAX jit", "JAX"),
    "scan": ("JAX scan", "JAX"),
    "partial_fit": ("scikit-learn partial_fit", "scikit-learn"),
    "sklearn fit": ("scikit-learn fit", "scikit-learn"),
}
AXES = {
    "rows": "rows, one epoch of fit()",
    "batch": "rows of a batch",
    "width": "units of a hidden layer",
    "depth": "hidden layers",
    "weights": "tensors of 10,000 numbers",
}


def colour(contender: str) -> str:
    owner = NAMES[contender][1]
    return OURS if owner is None else PEERS[owner]


def plain(axes: Any) -> None:
    """No frame where nothing is read."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def draw_steps(found: dict[str, Any], title: str) -> Any:
    """Time of a step relative to ours: a panel for each network and optimizer, logarithmic."""
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator, NullLocator

    cases = list(dict.fromkeys(row["case"] for row in found["rows"]))
    names = [n for n in NAMES if any(r["contender"] == n for r in found["rows"])]
    figure, panels = plt.subplots(
        2,
        len(cases),
        figsize=(2 + 3 * len(cases), 6.4),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for line, optimizer in enumerate(("SGD", "Adam")):
        for axes, case in zip(panels[line], cases, strict=True):
            rows = {
                r["contender"]: r for r in found["rows"] if (r["case"], r["optimizer"]) == (case, optimizer)
            }
            plain(axes)
            axes.axvline(1, color=OURS, linewidth=0.8, zorder=0)
            for place, name in enumerate(names):
                if name in rows:
                    draw_ratio(axes, place, rows[name])
            ours = quantity(rows["run_batch"]["microseconds"])
            axes.set_title(f"{optimizer}, {case}\nours: {ours} a step", fontsize=9)
    first = panels[0][0]
    first.set_xscale("log")
    low, high = first.get_xlim()
    first.set_xlim(min(low, 0.5), 4 * high)  # the numbers stand at the right
    first.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    first.xaxis.set_major_formatter("{x:g}")
    first.xaxis.set_minor_locator(NullLocator())
    first.set_yticks(range(len(names)), [NAMES[n][0] for n in names])
    first.invert_yaxis()
    for axes in panels[:, 0]:
        axes.tick_params(axis="y", labelsize=9)
        for label, name in zip(axes.get_yticklabels(), names, strict=True):
            label.set_color(colour(name))
    figure.supxlabel(
        "time of a step / that of ours, run_batch, for a whole fit() fit(): right of 1 is slower than ours. "
        "Medians and quartiles of the rounds; black bars are aims",
        fontsize=9,
    )
    figure.suptitle(title, fontsize=11)
    return figure


def draw_ratio(axes: Any, place: int, row: dict[str, Any]) -> None:
    """One line of a panel: quartiles, median, aim, number."""
    ratio, shade = row[f"ratio_to_{row['against']}"], colour(row["contender"])
    axes.plot([ratio["low"], ratio["high"]], [place, place], color=shade, linewidth=3, alpha=0.4)
    axes.plot(ratio["median"], place, "o", color=shade, markersize=6)
    if row["aim"]:
        axes.plot(row["aim"], place, "|", color="black", markersize=13, markeredgewidth=1.5)
    axes.text(
        0.99, place, f"{ratio['median']:.2f}", transform=axes.get_yaxis_transform(), ha="right", va="center",
        fontsize=8, color=shade,
    )  # fmt: skip


def quantity(microseconds: float) -> str:
    return f"{microseconds:.0f} µs" if microseconds < 1000 else f"{microseconds / 1000:.1f} ms"


def draw_growth(found: dict[str, Any]) -> Any:
    """Time and memory against work, logarithmic."""
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullLocator

    found_axes = [a for a in AXES if any(r["axis"] == a for r in found["rows"])]
    figure, panels = plt.subplots(
        2, len(found_axes), figsize=(2.9 * len(found_axes), 5.2), squeeze=False, layout="constrained"
    )
    for column, axis in enumerate(found_axes):
        rows = [r for r in found["rows"] if r["axis"] == axis]
        for key, axes, label in (
            ("microseconds", panels[0][column], "time, µs"),
            ("megabytes", panels[1][column], "memory of training, MB"),
        ):
            drawn = False
            for name, shade in (("PyTorch", PEERS["PyTorch"]), ("onnxcustom", OURS)):
                points = [(r["value"], max(r[key], 0.1)) for r in rows if r["contender"] == name and key in r]
                if points:
                    axes.plot(*zip(*points, strict=True), "o-", color=shade, label=name, markersize=4)
                    drawn = True
            if not drawn:
                axes.set_visible(False)
                panels[0][column].set_xlabel(AXES[axis], fontsize=9)
                continue
            plain(axes)
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.xaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter("{x:g}")
            low, high = axes.get_ylim()
            if high / low < 20:  # at least so much, or little differences look large
                middle = (low * high) ** 0.5
                axes.set_ylim(middle / 20**0.5, middle * 20**0.5)
            axes.grid(alpha=0.25)
            if column == 0:
                axes.set_ylabel(label, fontsize=9)
            if key == "megabytes":
                axes.set_xlabel(AXES[axis], fontsize=9)
    panels[0][0].legend(fontsize=8, frameon=False)
    figure.suptitle(f"Cost against work: Adam, float32, {threads(found)}", fontsize=11)
    return figure


def draw_memory(found: dict[str, Any]) -> Any:
    """What training adds to the peak."""
    from matplotlib import pyplot as plt

    cases = list(dict.fromkeys(r["case"] for r in found["rows"]))
    names = [n for n in ("onnxcustom", "PyTorch") if any(r["contender"] == n for r in found["rows"])]
    figure, axes = plt.subplots(figsize=(8, 0.8 + 0.6 * len(cases)), layout="constrained")
    plain(axes)
    for place, name in enumerate(names):
        rows = [next(r for r in found["rows"] if (r["case"], r["contender"]) == (c, name)) for c in cases]
        where = [i + 0.36 * place for i in range(len(cases))]
        bars = axes.barh(
            where,
            [r["training"] for r in rows],
            0.34,
            color=OURS if name == "onnxcustom" else PEERS[name],
            label=name,
        )
        axes.bar_label(bars, [f"{r['training']:.3g}" for r in rows], padding=3, fontsize=8)
    data = {r["case"]: r["data"] for r in found["rows"]}
    axes.set_yticks(
        [i + 0.18 * (len(names) - 1) for i in range(len(cases))],
        [f"{c}\n{data[c]:.2g} MB of rows" for c in cases],
        fontsize=8,
    )
    axes.invert_yaxis()
    axes.set_xlabel("MB that training adds to libraries and data, two epochs of SGD", fontsize=9)
    axes.legend(fontsize=8, frameon=False)
    return figure


def draw_loop(found: dict[str, Any]) -> Any:
    """Where the time of fit() goes."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 0.9 + 0.4 * len(found["rows"])), layout="constrained")
    plain(axes)
    cases = [row["case"] for row in found["rows"]]
    shares = [100 * row["share_outside"] for row in found["rows"]]
    axes.barh(cases, [100 - s for s in shares], color="#cbd5e1", label="onnxruntime")
    bars = axes.barh(cases, shares, left=[100 - s for s in shares], color=OURS, label="outside")
    texts = [
        f"{s:.0f} % of {quantity(r['microseconds'])}" for s, r in zip(shares, found["rows"], strict=True)
    ]
    axes.bar_label(bars, texts, padding=3, fontsize=8)
    for place, row in enumerate(found["rows"]):
        if row["aim"]:
            axes.plot(
                [100 - 100 * row["aim"]] * 2, [place - 0.45, place + 0.45], color="black", linewidth=1.5
            )
    axes.invert_yaxis()
    axes.set_xlim(0, 125)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("% of the time of a step of fit(); the black line is the aim", fontsize=9)
    axes.legend(fontsize=8, frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.4, 1))
    return figure


DRAW: dict[str, Callable[[dict[str, Any]], Any]] = {
    "step": lambda f: draw_steps(f, f"One training step, {threads(f)}"),
    "step-2": lambda f: draw_steps(f, f"One training step, {threads(f)}"),
    "loop": draw_loop,
    "memory": draw_memory,
    "growth": draw_growth,
}


def threads(found: dict[str, Any]) -> str:
    return "one thread" if found["threads"] == 1 else f"{found['threads']} threads"


def draw(results: dict[str, Any], folder: Path) -> Iterator[Path]:
    """Draw what there are numbers for."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    for subject, function in DRAW.items():
        found = results["subjects"].get(subject)
        if not found or not found.get("rows"):
            continue
        figure = function(found)
        path = folder / f"{subject.replace('-', '_')}.png"
        figure.savefig(path, dpi=130)
        plt.close(figure)
        yield path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("json", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for path in draw(json.loads(arguments.json.read_text()), arguments.folder):
        print(path)


if __name__ == "__main__":
    main()
