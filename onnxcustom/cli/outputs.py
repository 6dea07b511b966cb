"""Files that a command writes: checked before it begins, and there as a whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import click

__all__ = ["check_folder", "check_outputs", "default_output", "replacing"]


def default_output(model: Path, word: str) -> Path:
    """Where a command writes that was not told: beside nothing else, in the present folder.

    Examples
    --------
    >>> default_output(Path("models/net.onnx"), "trained").name
    'net_trained.onnx'
    """
    return Path(f"{model.stem}_{word}.onnx")


def check_outputs(
    outputs: Mapping[str, tuple[Path | None, tuple[str, ...]]], force: bool, inputs: Iterable[Path] = ()
) -> None:
    """Refuse, before anything is done, what could not be written in the end.

    Parameters
    ----------
    outputs : dict of str to (path or None, endings)
        By option: the file, if one is asked for, and the endings its name may have.
    force : bool
        Whether files may be overwritten.
    inputs : iterable of Path
        Files that are read and may never be.

    Raises
    ------
    click.UsageError
        Naming the option, the file, and what to do.
    """
    seen: dict[str, str] = {}
    read = {_place(path) for path in inputs}
    for option, (path, endings) in outputs.items():
        if path is None:
            continue
        if endings and not path.name.lower().endswith(endings):
            raise click.UsageError(f"{option} {str(path)!r}: its name must end in {' or '.join(endings)}.")
        place = _place(path)
        if place in seen:
            raise click.UsageError(f"{seen[place]} and {option} are the same file, {str(path)!r}.")
        if place in read:
            raise click.UsageError(f"{option} {str(path)!r} is a file that is read: give another name.")
        seen[place] = option
        if os.path.lexists(path):
            if not path.is_file():
                raise click.UsageError(f"{option} {str(path)!r} exists and is no file.")
            if not force:
                raise click.UsageError(f"{option} {str(path)!r} exists: give another name, or --force.")
        _check_writable(option, path)


def check_folder(option: str, folder: Path | None) -> None:
    """Refuse a folder that is a file or cannot be made or written to; it is not made."""
    if folder is None:
        return
    if folder.is_dir():
        _check_writable(option, folder / "file")
    elif os.path.lexists(folder):
        raise click.UsageError(f"{option} {str(folder)!r} exists and is no folder.")
    else:
        _check_writable(option, folder)


def _check_writable(option: str, path: Path) -> None:
    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        raise click.UsageError(f"{option} {str(path)!r}: there is no folder {str(folder)!r}.")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as exc:
        raise click.UsageError(
            f"{option} {str(path)!r}: folder {str(folder)!r} cannot be written to: {exc.strerror}."
        ) from exc


def _place(path: Path) -> str:
    return os.path.normcase(os.path.realpath(path))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write to, with the same ending, that takes the place of `path` when all went well.

    Yields
    ------
    Path
        In the folder of `path`; what is written there is removed if an error ends it.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{os.getpid()}.part.{target.name}")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
