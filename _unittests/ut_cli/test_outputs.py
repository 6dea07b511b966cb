"""Files are there as a whole or not at all, and nothing is lost to a name."""

from __future__ import annotations

import os
from pathlib import Path

import click
import pytest

from onnxcustom.cli.outputs import check_folder, check_outputs, default_output, replacing

ONNX = (".onnx",)


def refused(words: str, *arguments: object, **more: object) -> None:
    with pytest.raises(click.UsageError) as caught:
        check_outputs(*arguments, **more)  # type: ignore[arg-type]
    assert words in caught.value.format_message()


def test_default_output() -> None:
    assert default_output(Path("some") / "where" / "net.v2.onnx", "trained") == Path("net.v2_trained.onnx")


def test_what_may_be_written(tmp_path: Path) -> None:
    check_outputs({"--output": (tmp_path / "m.ONNX", ONNX), "--plot": (None, (".png",))}, False)
    assert not list(tmp_path.iterdir())


def test_what_may_not(tmp_path: Path) -> None:
    old = tmp_path / "old.onnx"
    old.write_text("old")
    refused("--output", {"--output": (old, ONNX)}, False)
    check_outputs({"--output": (old, ONNX)}, True)
    refused("is a file that is read", {"--output": (old, ONNX)}, True, [old])
    refused("are the same file", {"-a": (old, ()), "-b": (tmp_path / "." / "old.onnx", ())}, True)
    refused("must end in .onnx", {"--output": (tmp_path / "m", ONNX)}, True)
    refused("there is no folder", {"--output": (tmp_path / "no" / "m.onnx", ONNX)}, True)
    (tmp_path / "folder.onnx").mkdir()
    refused("exists and is no file", {"--output": (tmp_path / "folder.onnx", ONNX)}, True)
    assert old.read_text() == "old"


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_links(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    refused("is a file that is read", {"-o": (link, ())}, True, [target])
    with replacing(link) as path:
        path.write_text("new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    link.unlink()
    link.symlink_to(tmp_path / "gone")
    refused("exists and is no file", {"-o": (link, ())}, True)


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="no devices here")
def test_devices_are_not_replaced() -> None:
    refused("exists and is no file", {"-o": (Path("/dev/null"), ())}, True)
    assert Path("/dev/null").is_char_device()


def test_a_folder_that_nobody_may_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("onnxcustom.cli.outputs.tempfile.TemporaryFile", full)
    refused("cannot be written to: Permission denied", {"-o": (tmp_path / "m", ())}, False)
    monkeypatch.undo()
    check_outputs({"-o": (tmp_path / "m", ())}, False)
    assert not list(tmp_path.iterdir())


def test_folders(tmp_path: Path) -> None:
    check_folder("--checkpoint", None)
    check_folder("--checkpoint", tmp_path)
    check_folder("--checkpoint", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    for folder, words in [(tmp_path / "file", "no folder"), (tmp_path / "a" / "b", "there is no folder")]:
        with pytest.raises(click.UsageError, match=words):
            check_folder("--checkpoint", folder)


def test_replacing(tmp_path: Path) -> None:
    path = tmp_path / "curve.svg"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            assert temporary.suffix == ".svg"
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert path.read_text() == "old"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["curve.svg"]
