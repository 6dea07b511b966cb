"""What ``onnxcustom train`` was told, and where its results go."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterable
from pathlib import Path

import click

from .outputs import check_folder, check_outputs, default_output

__all__ = ["Settings", "check_groups", "check_results"]


@dataclasses.dataclass
class Settings:
    """The options of ``train``, by the names of the command."""

    model: Path
    data: str
    target: tuple[str, ...]
    columns: tuple[str, ...]
    inputs: tuple[str, ...]
    sample_weight: str | None
    validation: str | None
    stream: bool | None
    task: str
    loss: str | None
    head: str | None
    output_name: str | None
    weights: tuple[str, ...]
    freeze: tuple[str, ...]
    penalty: tuple[str, ...]
    class_weight: str | None
    batch_axis: tuple[str, ...]
    batch_norm: str
    dropout: str
    cache_frozen: str
    cache_bytes: int
    cache_dir: str | None
    average: str | None
    lora: str | None
    quantize: str | None
    teacher: str | None
    teacher_temperature: float
    teacher_alpha: float
    optimizer: str
    lr: float | None
    schedule: str | None
    warmup: int
    epochs: int
    batch_size: int
    pairs: str | None
    m_per_class: int | None
    shuffle: bool | None
    seed: int
    metrics: tuple[str, ...]
    early_stopping: int | None
    monitor: str | None
    time_budget: float | None
    nonfinite: str
    output: Path | None
    checkpoint: Path | None
    checkpoint_every: float
    plot: Path | None
    history: Path | None
    force: bool
    quiet: bool
    engine: str
    device: str
    threads: int | None

    @property
    def trained(self) -> Path:
        """Where the trained model goes."""
        return default_output(self.model, "trained") if self.output is None else self.output

    @property
    def held_out(self) -> float | None:
        """The part of the rows that is held out; None if there is none, or a file."""
        try:
            part = float(self.validation or "")
        except ValueError:
            return None
        if not 0 < part < 1:
            raise click.UsageError(f"--validation {self.validation}: a part is in (0, 1).")
        return part

    @property
    def partial_history(self) -> Path | None:
        """What the history is called until training ends."""
        path = self.history
        return None if path is None else path.with_name(f".{path.stem}.part{path.suffix}")


def check_groups(settings: Settings) -> None:
    """Refuse words on rows of a batch that do not go together."""
    if settings.pairs is None:
        return
    if settings.m_per_class is not None:
        raise click.UsageError("--pairs and --m-per-class both say which rows make a batch: give one.")
    if settings.held_out is not None:
        raise click.UsageError(
            f"--validation {settings.validation} takes rows one by one, and --pairs keeps them together: "
            "give a file of other rows."
        )


def check_results(settings: Settings, read: Iterable[Path] = ()) -> None:
    """Refuse what could not be written in the end, before anything is read."""
    results: dict[str, tuple[Path | None, tuple[str, ...]]] = {
        "--output": (settings.trained, (".onnx",)),
        "--plot": (settings.plot, (".png", ".svg", ".pdf", ".jpg")),
        "--history": (settings.history, (".csv", ".json")),
    }
    check_outputs(results, settings.force, [settings.model, *read])
    check_folder("--checkpoint", settings.checkpoint)
    if settings.plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise click.ClickException(
            '--plot needs matplotlib, which is not installed: python -m pip install "onnxcustom[plot]".'
        )
    if settings.monitor is not None and settings.early_stopping is None and settings.schedule is None:
        raise click.UsageError("--monitor is for --early-stopping and for --schedule plateau.")
